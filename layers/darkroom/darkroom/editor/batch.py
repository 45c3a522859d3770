"""One invocation of the editor: rows in threads, their messages hidden and leased by a heartbeat.

An invocation starts with the batch that Lambda received. While rows are in work it receives further
messages itself, so that its threads stay full until its time is over. It takes a row only when a
slot is near; messages without one return to the queue, unclaimed and within a fraction of a second.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import batched
from math import ceil, inf
from typing import Protocol

from pydantic import ValidationError

from darkroom.editor.leases import TIMINGS, Leases, Timings
from darkroom.editor.waiting import TYPICAL_ROW_SECONDS, CurrentRuns, JobWaits, hide_seconds
from darkroom.errors import Reason, ServiceUnavailable, Waiting
from darkroom.formatting import describe_validation
from darkroom.jobs import Run, RunState
from darkroom.metrics import Metric
from darkroom.ports import (
    Clock,
    Dispatcher,
    Readiness,
    RowLedger,
    RowQueue,
    RunLedger,
    Telemetry,
)
from darkroom.rows import Received, RowMessage

# The queue drops a message after 1,000 receives or 14 days: a fresh copy restarts both.
FRESH_COPY_RECEIVES = 900
FRESH_COPY_SECONDS = 10 * 86_400.0
_MAX_SEND_DELAY_SECONDS = 900.0

# An invocation without rows in work takes one only if a slot is this near. One with rows takes the
# next row when a slot is within AHEAD_SECONDS, or within two slots of a slow endpoint; with few
# busy threads or a low rank, within a share of that. So some invocations stay full, and the others
# end. Those that could start at the same moment check again after a random part of an interval.
ABOUT_NOW_SECONDS = 1.0
AHEAD_SECONDS = 5.0
MAX_AHEAD_SECONDS = 15.0  # what is waited here is billed
MAX_START_DELAY_SECONDS = 2.0
# A place in flight that becomes free is left to the fullest invocation for up to this long.
PLACE_PATIENCE_SECONDS = 5.0
NEWCOMER_SHARE = 0.6  # and to any live one for at least this share of that
LIMIT_BINDS_SECONDS = 30.0  # after no place in flight was free
RESERVED_AFTER_SECONDS = 2.0  # by then a row taken has loaded its images and reserved its slot
# While the limits leave no free slot, this supply of messages is held for the threads.
SUPPLY_SECONDS = 600.0
MAX_SUPPLY = 200
RECEIVERS = 4  # that request a supply at the same time: Lambda polls with five
FREE_SLOT_CHECK_SECONDS = 2.0
FREE_SLOT_CHECKS = 2  # in a row that find a free slot, before the supply is shared
SHARED_MESSAGES = 10


@dataclass(frozen=True, slots=True)
class ReturnRow:
    """The row's message is to be delivered again, after `seconds`.

    `called`: a call was made for the row, so it precedes rows that were not called for.
    `alone`: it may have killed its worker, so it is processed while no other row is in work.
    """

    seconds: float
    called: bool = False
    alone: bool = False


def copy_if_old(received: Received, message: RowMessage, now: float) -> RowMessage | None:
    """A copy to replace a message that the queue would drop soon."""
    age = now - received.sent_at if received.sent_at else 0.0
    if received.receive_count < FRESH_COPY_RECEIVES and age < FRESH_COPY_SECONDS:
        return None
    return message.model_copy(update={"queued_at": message.queued_at or received.sent_at})


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
        self,
        message: RowMessage,
        run: Run,
        owner: str,
        deadline: float,
        leases: Leases,
        *,
        given_up: Waiting | None = None,
    ) -> ReturnRow | None:
        """Work on one row until `deadline` (Unix seconds); `run` is its job's current run.

        `owner` is unique to this delivery of the message; `leases` keeps the claim alive.
        `given_up` is what the job has waited for too long: the row is not called for. Returns None
        when the message is done.
        """


def reject(received: Received, detail: str, queue: RowQueue, telemetry: Telemetry) -> None:
    """Keep a message that is not Darkroom's as a dead letter. Raises ServiceUnavailable."""
    telemetry.error("unparseable", message_id=received.message_id, detail=detail)
    queue.dead_letter(received.body, {"reason": Reason.UNPARSEABLE.value, "detail": detail})


def run_in_threads(works: Sequence[Callable[[], None]]) -> None:
    """Run all of `works` at once, until each has ended."""
    with ThreadPoolExecutor(len(works), "editor") as pool:
        for result in [pool.submit(work) for work in works]:
            result.result()


@dataclass(frozen=True, slots=True)
class EditorBatch:
    """Handles the batches of all invocations. `threads` is RowsPerWorker."""

    editor: RowHandler
    dispatcher: Dispatcher
    rows: RowLedger
    runs: CurrentRuns
    waits: JobWaits
    queue: RowQueue
    completion: Completion
    clock: Clock
    telemetry: Telemetry
    threads: int
    timings: Timings = TIMINGS
    rng: Callable[[], float] = random.random
    run_all: Callable[[Sequence[Callable[[], None]]], None] = run_in_threads

    @property
    def rows_at_once(self) -> int:
        """One more than calls: while limits bind, a row is loaded or stored beside the calls."""
        return self.threads + min(1, self.threads - 1)

    def handle(self, batch: Sequence[Received], deadline: float, invocation: str) -> list[str]:
        """Work on all messages until `deadline` (Unix seconds); `invocation` names this delivery.

        Returns the ids of the messages of `batch` that the queue must keep.
        """
        leases = Leases(self.queue, self.rows, self.telemetry, self.timings, alone=False)
        leases.hold(received.receipt for received in batch)
        leases.renew()  # a crash must not hide the messages for the queue's visibility time-out
        work = _Invocation(self, leases, deadline, invocation, self.rng())
        work.add(batch)
        if work.can_start():
            receivers: list[Callable[[], None]] = [
                partial(work.receive, number) for number in range(RECEIVERS)
            ]
            threads = [work.keep_alive, *receivers, *[work.process_rows] * self.rows_at_once]
            self.run_all(threads)
        work.finish()
        return [received.message_id for received in batch if received.message_id in work.kept]


@dataclass(slots=True)
class _Task:
    """A message in work, or held for it."""

    received: Received
    message: RowMessage
    owner: str
    alone: bool = False
    given_up: Waiting | None = None


@dataclass(slots=True)
class _Invocation:
    """The state that the threads of one invocation share."""

    batch: EditorBatch
    leases: Leases
    deadline: float
    name: str
    rank: float  # 0 to 1, random: among invocations with free threads, which takes the next slot
    kept: set[str] = field(default_factory=set)  # ids of messages that return to the queue
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _held: deque[_Task] = field(default_factory=deque)  # not in work yet
    _done: list[_Task] = field(default_factory=list)  # to be deleted
    _received: int = 0
    _busy: int = 0
    _alone: bool = False  # the row in work may kill its worker
    _ended_threads: int = 0
    _idle_receives: int = 0  # since a message was received or taken
    _free_slot_checks: int = 0  # in a row
    _taken_at: deque[float] = field(default_factory=deque)
    _no_place_at: float = -inf  # when the limits in flight allowed no call
    _rows_done: int = 0
    _busy_seconds: float = 0.0
    _readiness: Readiness = field(default_factory=lambda: Readiness(0.0))
    _last_start: float = 0.0

    # Messages

    def add(self, batch: Sequence[Received]) -> None:
        """Hold new messages until there is a slot for their rows."""
        ages = [0.0]
        for received in batch:
            self._guarded(received, lambda received=received: ages.append(self._accept(received)))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        if max(ages):
            self.batch.telemetry.metric(Metric.ROW_AGE, max(ages))

    def _accept(self, received: Received) -> float:
        """Returns the age of the row in seconds; 0: not known."""
        try:
            message = RowMessage.model_validate_json(received.body)
        except ValidationError as error:
            self._reject(received, describe_validation(error, "not a row's message"))
            return 0.0
        self.batch.runs.get(message.job)  # whose state decides whether the row needs a slot
        with self._lock:
            self._received += 1
            self._held.append(_Task(received, message, f"{self.name}/{self._received}"))
        queued_at = message.queued_at or received.sent_at
        return self.batch.clock.now() - queued_at if queued_at else 0.0

    def _reject(self, received: Received, detail: str) -> None:
        reject(received, detail, self.batch.queue, self.batch.telemetry)
        self.leases.drop([received.receipt])
        self.batch.queue.delete([received.receipt])

    def _guarded(self, received: Received, work: Callable[[], None]) -> None:
        """Do `work` on a message. One that fails is delivered again, and does not fail others."""
        try:
            work()
        except ServiceUnavailable as error:
            self.batch.telemetry.warning("service_unavailable", error=str(error))
        except Exception:  # noqa: BLE001  # one message must not fail the others
            self.batch.telemetry.exception("message_crashed", message_id=received.message_id)
        else:
            return
        self._keep([received], self.batch.timings.aws_delay_seconds)

    def _keep(self, received: Sequence[Received], seconds: float) -> None:
        self.kept.update(r.message_id for r in received)
        self.leases.return_messages([r.receipt for r in received], seconds)

    def _return_held(self) -> None:
        """Return the messages whose rows had no slot, and record what their jobs wait for."""
        with self._lock:
            tasks = [*self._held]
            self._held.clear()
        if not tasks:
            return
        now, readiness = self.batch.clock.now(), self._readiness
        if self._rows_done and readiness.waiting is None:
            # The next invocation starts with these when the slots reach it.
            first, tasks = tasks[: self.batch.threads], tasks[self.batch.threads :]
            self._keep([task.received for task in first], readiness.start_at - now)
        backlog = self._backlog(len(tasks))
        for retry in (True, False):
            returned = [task.received for task in tasks if task.message.retry is retry]
            # A supply returns piece by piece.
            for group in batched(returned, self.batch.threads, strict=False):
                receives = min(message.receive_count for message in group)
                seconds = hide_seconds(
                    readiness, backlog, now, self.batch.rng, receives=receives, retry=retry
                )
                self._keep(group, seconds)
        self.batch.telemetry.info("rows_deferred", rows=len(tasks))

    def _backlog(self, at_least: int) -> int:
        try:
            return max(at_least, self.batch.queue.backlog())
        except ServiceUnavailable as error:
            self.batch.telemetry.warning("backlog_unknown", error=str(error))
            return at_least

    def _record_waiting(self) -> None:
        """No endpoint can serve rows: show that in their jobs, and end those that gave up."""
        waiting = self._readiness.waiting
        if waiting is None:
            return
        self.batch.telemetry.metric(Metric.ROWS_WAITING, len(self._held))
        for job in sorted({task.message.job for task in self._held}):
            try:
                run = self.batch.runs.get(job)
                given_up = run is not None and self.batch.waits.record(run, waiting)
            except ServiceUnavailable as error:
                self.batch.telemetry.warning("waiting_not_recorded", job=job, error=str(error))
                continue
            for task in self._held:
                if given_up and task.message.job == job:
                    task.given_up = waiting

    # Which row is next

    def can_start(self) -> bool:
        """Whether there is a row to work on now."""
        self._update_readiness()
        now = self.batch.clock.now()
        # The dispatcher defers a row that finds less time than it may need.
        self._last_start = max(self.deadline - self._readiness.row_seconds, now + 1.0)
        self._record_waiting()
        with self._lock:
            startable = self._next_held()
        if startable is None or not self._needs_slot(startable):
            return startable is not None
        rate = self._readiness.rows_per_second
        shortest, delay = 0.0, min(MAX_START_DELAY_SECONDS, rate and 0.25 / rate)
        if self._readiness.free_places < inf:
            shared = self._readiness.places_in_use > 0
            delay = max(delay, PLACE_PATIENCE_SECONDS if shared else ABOUT_NOW_SECONDS)
            shortest = NEWCOMER_SHARE * delay if shared else 0.0
        self.batch.clock.sleep(shortest + self.batch.rng() * (delay - shortest))
        self._update_readiness()
        with self._lock:
            return self._next_held() is not None

    def _update_readiness(self) -> None:
        retry_at = self.batch.clock.now() + self.batch.timings.aws_delay_seconds
        readiness = Readiness(retry_at)
        try:
            readiness = self.batch.dispatcher.readiness()
        except ServiceUnavailable as error:
            self.batch.telemetry.warning("readiness_unknown", error=str(error))
        except Exception:  # noqa: BLE001  # a bug must not fail the invocation
            self.batch.telemetry.exception("readiness_failed")
        self._readiness = readiness

    def _next(self) -> _Task | None:
        """Wait for the next row. None when the invocation is over."""
        while True:
            self._update_readiness()
            with self._lock:
                task = None if self._alone else self._next_held()
                if task is not None:
                    self._begin(task)
                    return task
                if self._is_over():
                    return None
            self.batch.clock.sleep(self.batch.timings.step_seconds)

    def _next_held(self) -> _Task | None:
        """The held message to work on now: one that needs no slot, or the first if one is near."""
        first = next((task for task in self._held if not self._needs_slot(task)), None)
        if first is None and self._held and self._slot_is_near():
            first = min(self._held, key=lambda task: not task.message.retry)
        waits_for_others = any(task.alone for task in self._held) and self._busy
        return None if waits_for_others else first

    def _begin(self, task: _Task) -> None:
        self._held.remove(task)
        self._busy += 1
        self._idle_receives = 0
        self._alone = self.leases.alone = task.alone
        self._taken_at.append(self.batch.clock.now())

    def _needs_slot(self, task: _Task) -> bool:
        """False for a row that ends without a call."""
        run = self.batch.runs.known(task.message.job)
        ended = run is not None and run.state in (RunState.STOPPED, RunState.FAILED)
        return not ended and task.given_up is None

    def _slot_is_near(self) -> bool:
        now, readiness = self.batch.clock.now(), self._readiness
        if now > self._last_start or readiness.waiting is not None:
            return False
        while self._taken_at and self._taken_at[0] < now - RESERVED_AFTER_SECONDS:
            self._taken_at.popleft()
        fullness = min(1.0, self._busy / self.batch.threads)
        share = (fullness + self.rank) / 2
        if len(self._taken_at) >= readiness.free_places:
            self._no_place_at = now
            return False
        limits_bind = readiness.start_at > now or now - self._no_place_at < LIMIT_BINDS_SECONDS
        if self._busy >= self.batch.threads and not limits_bind:
            return False
        others_call = readiness.places_in_use > self._busy
        if others_call and now - self._no_place_at < PLACE_PATIENCE_SECONDS * (1 - share):
            return False
        interval = 1 / readiness.rows_per_second if readiness.rows_per_second else 0.0
        slot = max(now, readiness.start_at) + len(self._taken_at) * interval
        ahead = min(MAX_AHEAD_SECONDS, max(AHEAD_SECONDS, 2 * interval)) if self._busy else 0.0
        return slot - now <= max(ABOUT_NOW_SECONDS, ahead * share)

    def _is_over(self) -> bool:
        """No row is in work, and none can be started."""
        if self._busy:
            return False
        return bool(self._held or self._idle_receives or self.batch.clock.now() > self._last_start)

    # Threads

    def process_rows(self) -> None:
        try:
            while (task := self._next()) is not None:
                began_at = self.batch.clock.now()
                self._guarded(task.received, lambda task=task: self._process(task))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                with self._lock:
                    self._busy -= 1
                    self._rows_done += 1
                    self._busy_seconds += self.batch.clock.now() - began_at
                    self._alone = self.leases.alone = False
        finally:
            with self._lock:
                self._ended_threads += 1

    def _process(self, task: _Task) -> None:
        run = self.batch.runs.get(task.message.job)
        if run is None:
            self._reject(task.received, f"the ledger has no job {task.message.job}")
            return
        returned = self.batch.editor.handle(
            task.message, run, task.owner, self.deadline, self.leases, given_up=task.given_up
        )
        if returned is None:
            with self._lock:
                self._done.append(task)
        elif returned.alone:
            task.alone = True
            with self._lock:
                self._held.appendleft(task)
        else:
            self._deliver_again(task, returned)

    def _deliver_again(self, task: _Task, returned: ReturnRow) -> None:
        """Hide the message, or replace it: it is old, or is to precede those not called for."""
        received, message = task.received, task.message
        is_old = copy_if_old(received, message, self.batch.clock.now()) is not None
        if not (is_old or (returned.called and not message.retry)):
            self._keep([received], returned.seconds)
            return
        queued_at = message.queued_at or received.sent_at
        retry = message.retry or returned.called
        copy = message.model_copy(update={"queued_at": queued_at, "retry": retry})
        delay = ceil(min(max(returned.seconds, 0.0), _MAX_SEND_DELAY_SECONDS))
        self.batch.queue.send([copy], delay_seconds=delay)
        with self._lock:
            self._done.append(task)

    def receive(self, number: int) -> None:
        """Receive further messages for as long as rows are in work.

        The receivers after the first (`number` 0) help while a supply is wanted.
        """
        while not self._ended():
            wanted = self._wanted(supply_only=number > 0)
            if wanted <= 0:
                self.batch.clock.sleep(self.batch.timings.step_seconds)
                continue
            messages = self._request_messages(wanted)
            with self._lock:
                self._idle_receives = 0 if messages else self._idle_receives + 1

    def _request_messages(self, wanted: int) -> Sequence[Received]:
        timings, messages = self.batch.timings, list[Received]()
        try:
            messages += self.batch.queue.receive(
                wanted,
                hide_seconds=ceil(timings.lease_seconds),
                wait_seconds=timings.receive_wait_seconds,
            )
        except Exception as error:  # noqa: BLE001  # Lambda receives what this does not
            self.batch.telemetry.warning("not_received", error=str(error))
        self.leases.hold(m.receipt for m in messages)
        self.add(messages)
        return messages

    def _wanted(self, *, supply_only: bool) -> int:
        """How many further messages to receive: for the free threads, or as a supply.

        Where the limits leave no free slot, other invocations return what they receive, so a supply
        held here keeps nobody else from working.
        """
        with self._lock:
            now, readiness = self.batch.clock.now(), self._readiness
            stopping = now > self._last_start or readiness.waiting is not None
            if stopping or self._alone or any(task.alone for task in self._held):
                return 0
            wanted = 0 if supply_only else self.batch.threads - self._busy
            if readiness.start_at > now + ABOUT_NOW_SECONDS or not readiness.free_places:
                row_seconds = self._busy_seconds / self._rows_done if self._rows_done else 0.0
                seconds = min(SUPPLY_SECONDS, self._last_start - now)
                supply = self.batch.threads * seconds / (row_seconds or TYPICAL_ROW_SECONDS)
                wanted = min(MAX_SUPPLY, ceil(supply))
            return wanted - len(self._held)

    def keep_alive(self) -> None:
        """Renew the leases, print the metrics and delete what is done, now and then."""
        timings, clock = self.batch.timings, self.batch.clock
        renewed_at = flushed_at = shared_at = clock.now()
        while not self._ended():
            clock.sleep(timings.step_seconds)
            now = clock.now()
            if now - renewed_at >= timings.heartbeat_seconds:
                renewed_at = now
                self.leases.renew()
            if now - shared_at >= FREE_SLOT_CHECK_SECONDS:
                shared_at = now
                self._share_supply()
            if now - flushed_at >= timings.flush_seconds:
                flushed_at = now
                self.batch.telemetry.flush()
                self._delete_done()

    def _share_supply(self) -> None:
        """A slot was left unused: return some of the supply, for another invocation to start."""
        if not self._readiness.rows_per_second:
            return
        self._update_readiness()
        is_free = self._readiness.start_at <= self.batch.clock.now()
        self._free_slot_checks = self._free_slot_checks + 1 if is_free else 0
        if self._free_slot_checks < FREE_SLOT_CHECKS:
            return
        self._free_slot_checks = 0
        with self._lock:
            excess = min(SHARED_MESSAGES, len(self._held) - self.batch.threads)
            shared = [self._held.pop() for _ in range(max(0, excess))]
        if shared:
            self._keep([task.received for task in shared], 0.0)

    def _ended(self) -> bool:
        with self._lock:
            return self._ended_threads >= self.batch.rows_at_once

    # The end

    def finish(self) -> None:
        self._return_held()
        self._delete_done()
        with self._lock:
            unchecked, self._done = self._done, []
        if unchecked:
            delay = self.batch.timings.aws_delay_seconds
            self._keep([task.received for task in unchecked], delay)

    def _delete_done(self) -> None:
        """Delete the messages of jobs whose completion was checked.

        The others stay: a later delivery repeats the check, should this invocation die before.
        """
        with self._lock:
            done, self._done = self._done, []
        unchecked = {job for job in sorted({t.message.job for t in done}) if not self._check(job)}
        receipts = [t.received.receipt for t in done if t.message.job not in unchecked]
        try:
            self.batch.queue.delete(receipts)
        except ServiceUnavailable as error:  # delivered again, and deleted as settled
            self.batch.telemetry.warning("not_deleted", error=str(error))
        self.leases.drop(receipts)
        with self._lock:
            self._done += [task for task in done if task.message.job in unchecked]

    def _check(self, job: str) -> bool:
        try:
            self.batch.completion.check(job)
        except ServiceUnavailable as error:
            self.batch.telemetry.warning("completion_unchecked", job=job, error=str(error))
            return False
        except Exception:  # noqa: BLE001  # the heartbeat goes on
            self.batch.telemetry.exception("completion_failed", job=job)
            return False
        return True
