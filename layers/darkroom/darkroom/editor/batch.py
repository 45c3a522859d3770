"""Whoever settles a job's last row asks for its report."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil

from pydantic import ValidationError

from darkroom.editor.heartbeat import Heartbeat, Leases
from darkroom.editor.row_editor import RowEditor
from darkroom.errors import Reason, ServiceUnavailable
from darkroom.formatting import describe_validation
from darkroom.jobs import Run
from darkroom.ports import Clock, RowQueue, RunLedger, Telemetry
from darkroom.rows import RowMessage


@dataclass(frozen=True, slots=True)
class Completion:
    """`on_complete` invokes the reporter for a job; asking more than once is harmless."""

    runs: RunLedger
    on_complete: Callable[[str], None]
    telemetry: Telemetry

    def check(self, job: str) -> bool:
        """True when the report was asked for. Raises ServiceUnavailable: check again."""
        if not self.runs.report_due(job):
            return False
        self.telemetry.info("job_complete", job=job)
        self.on_complete(job)
        return True


# One invocation of the editor: a batch of messages in, the ids of those that come back out.


# The queue gives up on a message after 1,000 receives or 14 days: a fresh copy starts both anew.
FRESH_COPY_RECEIVES = 900
FRESH_COPY_SECONDS = 10 * 86_400.0
LONGEST_HIDDEN_SECONDS = 11 * 3600.0  # SQS takes 12 h from the first receive


@dataclass(frozen=True, slots=True)
class Received:
    """A message as the queue delivered it. `sent_at` in Unix seconds."""

    message_id: str
    receipt: str
    body: str
    receive_count: int = 1
    sent_at: float = 0.0


@dataclass(frozen=True, slots=True)
class EditorBatch:
    """`threads` is RowsPerWorker."""

    editor: RowEditor
    runs: RunLedger
    queue: RowQueue
    heartbeat: Heartbeat
    completion: Completion
    clock: Clock
    telemetry: Telemetry
    threads: int

    def handle(self, batch: Sequence[Received], deadline: float, invocation: str) -> list[str]:
        """Work on all messages until `deadline` (Unix seconds); `invocation` names this delivery.

        Returns the ids of the messages that the queue must keep.
        """
        leases = Leases()
        for received in batch:
            leases.hold(received.receipt)
        with self.heartbeat.beating(leases):
            work = _Batch(self, leases, deadline, invocation)
            with ThreadPoolExecutor(self.threads, "row") as pool:
                jobs = list(pool.map(work.handle, range(len(batch)), batch))
            kept = work.kept | self._unchecked(batch, jobs)
        return [received.message_id for received in batch if received.message_id in kept]

    def _unchecked(self, batch: Sequence[Received], jobs: Sequence[str | None]) -> set[str]:
        """Messages of jobs whose completion could not be checked: their return checks again."""
        unchecked: set[str] = set()
        for job in sorted({job for job in jobs if job is not None}):
            try:
                self.completion.check(job)
            except ServiceUnavailable as error:
                self.telemetry.warning("completion_unchecked", job=job, error=str(error))
                unchecked |= {r.message_id for r, j in zip(batch, jobs, strict=True) if j == job}
        return unchecked


class _Batch:
    def __init__(
        self, editor: EditorBatch, leases: Leases, deadline: float, invocation: str
    ) -> None:
        self._to = editor
        self._leases = leases
        self._deadline = deadline
        self._invocation = invocation
        self._runs: dict[str, Run | None] = {}
        self.kept: set[str] = set()

    def handle(self, number: int, received: Received) -> str | None:
        """Work on one message; the job whose completion is to be checked."""
        try:
            return self._handle(number, received)
        except ServiceUnavailable as error:
            self._to.telemetry.warning("service_unavailable", error=str(error))
        except Exception:  # noqa: BLE001  # one message must not fail the others
            self._to.telemetry.exception("message_crashed", message_id=received.message_id)
        self._keep(received, self._to.heartbeat.timings.trouble)
        return None

    def _handle(self, number: int, received: Received) -> str | None:
        try:
            message = RowMessage.model_validate_json(received.body)
        except ValidationError as error:
            self._reject(received, describe_validation(error, "not a row's message"))
            return None
        run = self._run(message.job)
        if run is None:
            self._reject(received, f"the ledger knows no job {message.job}")
            return None
        owner = f"{self._invocation}/{number}"
        delay = self._to.editor.handle(message, run, owner, self._deadline, self._leases)
        if delay is not None:
            self._come_back(received, message, delay)
        return message.job

    def _run(self, job: str) -> Run | None:
        if job not in self._runs:
            self._runs[job] = self._to.runs.current(job)
        return self._runs[job]

    def _reject(self, received: Received, detail: str) -> None:
        self._to.telemetry.error("unparseable", message_id=received.message_id, detail=detail)
        attributes = {"reason": Reason.UNPARSEABLE.value, "detail": detail}
        self._to.queue.dead_letter(received.body, attributes)

    def _come_back(self, received: Received, message: RowMessage, delay: float) -> None:
        age = self._to.clock.now() - received.sent_at if received.sent_at else 0.0
        if received.receive_count >= FRESH_COPY_RECEIVES or age >= FRESH_COPY_SECONDS:
            self._to.queue.send([message])
            return
        self._keep(received, delay)

    def _keep(self, received: Received, delay: float) -> None:
        self.kept.add(received.message_id)
        seconds = ceil(min(max(delay, 0.0), LONGEST_HIDDEN_SECONDS))
        try:
            self._leases.let_go(received.receipt, self._to.queue, seconds)
        except ServiceUnavailable as error:  # it comes back when its visibility ends
            self._to.telemetry.warning("not_hidden", error=str(error))
