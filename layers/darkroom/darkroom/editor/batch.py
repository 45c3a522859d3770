"""One invocation of the editor: a batch of messages, kept hidden and leased by a heartbeat.

Leases end 90 s after the last heartbeat, so a crash is repaired within two minutes, whatever the
time-out of the function is.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

from pydantic import ValidationError

from darkroom.errors import Reason, ServiceUnavailable
from darkroom.formatting import describe_validation
from darkroom.jobs import Run
from darkroom.ledger.rows import LEASE_SECONDS
from darkroom.ports import Clock, RowLedger, RowQueue, RunLedger, Telemetry
from darkroom.rows import Claim, Received, RowMessage

# The queue drops a message after 1,000 receives or 14 days: a fresh copy restarts both.
FRESH_COPY_RECEIVES = 900
FRESH_COPY_SECONDS = 10 * 86_400.0
_MAX_HIDDEN_SECONDS = 11 * 3600.0  # SQS allows 12 h from the receive


@dataclass(frozen=True, slots=True)
class Timings:
    lease_seconds: float = LEASE_SECONDS  # of a row, and how long its message stays hidden
    heartbeat_seconds: float = 30.0  # two may be missed
    held_delay_seconds: float = 30.0  # before a retry of a row that another worker holds
    aws_delay_seconds: float = 15.0  # before a retry after an AWS error
    backoff_seconds: float = 10.0  # before the second attempt; doubles with each
    backoff_cap_seconds: float = 900.0


TIMINGS = Timings()


@dataclass(slots=True)
class Leases:
    """The messages and the claims of one batch, which a heartbeat renews. Thread-safe."""

    queue: RowQueue
    rows: RowLedger
    telemetry: Telemetry
    timings: Timings = TIMINGS
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _receipts: set[str] = field(default_factory=set)
    _claims: dict[str, Claim] = field(default_factory=dict)

    @contextmanager
    def heartbeat(self, receipts: Iterable[str]) -> Iterator[None]:
        """Hold these messages: renew in a thread, at once and then every `heartbeat_seconds`."""
        self._receipts.update(receipts)
        stopped = threading.Event()

        def run() -> None:
            self.renew()
            while not stopped.wait(self.timings.heartbeat_seconds):
                self.renew()

        thread = threading.Thread(target=run, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    @contextmanager
    def claimed(self, claim: Claim) -> Iterator[None]:
        with self._lock:
            self._claims[claim.owner] = claim
        try:
            yield
        finally:
            with self._lock:
                self._claims.pop(claim.owner, None)

    def return_message(self, receipt: str, seconds: int) -> None:
        """Hide the message for `seconds` from now; no heartbeat extends that."""
        with self._lock:
            self._receipts.discard(receipt)
            self.queue.extend([receipt], seconds)

    def renew(self) -> None:
        """Hide the messages and lease the rows for another `lease_seconds`.

        A failure is left to the next heartbeat: a lease lasts for three.
        """
        seconds = self.timings.lease_seconds
        try:
            with self._lock:
                if self._receipts:
                    self.queue.extend(sorted(self._receipts), ceil(seconds))
                claims = list(self._claims.values())
            if claims:
                self.rows.renew(claims, seconds)
        except ServiceUnavailable as error:
            self.telemetry.warning("heartbeat_missed", error=str(error))
        except Exception:  # noqa: BLE001  # a bug must not stop the heartbeat
            self.telemetry.exception("heartbeat_failed")


@dataclass(frozen=True, slots=True)
class Completion:
    """`on_complete` invokes the reporter for a job; a repeat is harmless."""

    runs: RunLedger
    on_complete: Callable[[str], None]
    telemetry: Telemetry

    def check(self, job: str) -> bool:
        """Request the report if it is due. Raises ServiceUnavailable: check again."""
        if not self.runs.report_due(job):
            return False
        self.telemetry.info("job_complete", job=job)
        self.on_complete(job)
        return True


class RowHandler(Protocol):
    """Implemented by RowEditor."""

    def handle(
        self, message: RowMessage, run: Run, owner: str, deadline: float, leases: Leases
    ) -> float | None:
        """Work on one row until `deadline` (Unix seconds); `run` is its job's current run.

        `owner` is unique to this delivery of the message; `leases` keeps the claim alive. Returns
        None when the message is done, else the seconds after which to deliver it again.
        """


@dataclass(frozen=True, slots=True)
class EditorBatch:
    """Handles the batches of all invocations. `threads` is RowsPerWorker."""

    editor: RowHandler
    rows: RowLedger
    runs: RunLedger
    queue: RowQueue
    completion: Completion
    clock: Clock
    telemetry: Telemetry
    threads: int
    timings: Timings = TIMINGS

    def handle(self, batch: Sequence[Received], deadline: float, invocation: str) -> list[str]:
        """Work on all messages until `deadline` (Unix seconds); `invocation` names this delivery.

        Returns the ids of the messages that the queue must keep.
        """
        leases = Leases(self.queue, self.rows, self.telemetry, self.timings)
        with leases.heartbeat(received.receipt for received in batch):
            work = _Invocation(self, leases, deadline, invocation)
            with ThreadPoolExecutor(self.threads, "row") as pool:
                jobs = list(pool.map(work.handle, range(len(batch)), batch))
            kept = work.kept | self._unchecked(batch, jobs)
        return [received.message_id for received in batch if received.message_id in kept]

    def _unchecked(self, batch: Sequence[Received], jobs: Sequence[str | None]) -> set[str]:
        """Messages of jobs whose completion check failed: their next delivery repeats it."""
        unchecked: set[str] = set()
        for job in sorted({job for job in jobs if job is not None}):
            try:
                self.completion.check(job)
            except ServiceUnavailable as error:
                self.telemetry.warning("completion_unchecked", job=job, error=str(error))
                unchecked |= {r.message_id for r, j in zip(batch, jobs, strict=True) if j == job}
        return unchecked


@dataclass(slots=True)
class _Invocation:
    batch: EditorBatch
    leases: Leases
    deadline: float
    name: str
    runs: dict[str, Run | None] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)

    def handle(self, number: int, received: Received) -> str | None:
        """Work on one message. Returns the job whose completion is to be checked."""
        try:
            return self._handle(number, received)
        except ServiceUnavailable as error:
            self.batch.telemetry.warning("service_unavailable", error=str(error))
        except Exception:  # noqa: BLE001  # one message must not fail the others
            self.batch.telemetry.exception("message_crashed", message_id=received.message_id)
        self._keep(received, self.batch.timings.aws_delay_seconds)
        return None

    def _handle(self, number: int, received: Received) -> str | None:
        try:
            message = RowMessage.model_validate_json(received.body)
        except ValidationError as error:
            self._reject(received, describe_validation(error, "not a row's message"))
            return None
        if message.job not in self.runs:
            self.runs[message.job] = self.batch.runs.current(message.job)
        run = self.runs[message.job]
        if run is None:
            self._reject(received, f"the ledger has no job {message.job}")
            return None
        owner = f"{self.name}/{number}"
        delay = self.batch.editor.handle(message, run, owner, self.deadline, self.leases)
        if delay is not None:
            self._deliver_again(received, message, delay)
        return message.job

    def _reject(self, received: Received, detail: str) -> None:
        self.batch.telemetry.error("unparseable", message_id=received.message_id, detail=detail)
        attributes = {"reason": Reason.UNPARSEABLE.value, "detail": detail}
        self.batch.queue.dead_letter(received.body, attributes)

    def _deliver_again(self, received: Received, message: RowMessage, delay: float) -> None:
        age = self.batch.clock.now() - received.sent_at if received.sent_at else 0.0
        if received.receive_count >= FRESH_COPY_RECEIVES or age >= FRESH_COPY_SECONDS:
            self.batch.queue.send([message])
        else:
            self._keep(received, delay)

    def _keep(self, received: Received, delay: float) -> None:
        self.kept.add(received.message_id)
        seconds = ceil(min(max(delay, 0.0), _MAX_HIDDEN_SECONDS))
        try:
            self.leases.return_message(received.receipt, seconds)
        except ServiceUnavailable as error:  # it is delivered again when its visibility ends
            self.batch.telemetry.warning("not_hidden", error=str(error))
