"""The submitter: puts the rows of jobs with mode=batch into batches at the providers.

An invocation handles some hundred messages. Rows are claimed, loaded and planned one after the
other, as in the editor, and their requests are written to files on disk: its memory is that of one
row. Whatever keeps a row from a batch ends or defers it as it would a call.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from darkroom.batches.drafts import Drafts
from darkroom.batches.endpoints import BatchEndpoints
from darkroom.batches.returns import RowReturns
from darkroom.editor.batch import Completion, ReturnRow, copy_if_old, reject
from darkroom.editor.image_loading import LoadedImages
from darkroom.editor.leases import Leases, Timings
from darkroom.editor.row_editor import RowCallContext, RowWorker
from darkroom.editor.waiting import CurrentRuns, JobWaits
from darkroom.errors import (
    DeferRow,
    Ineligible,
    LeaseLost,
    Reason,
    RowRejected,
    ServiceUnavailable,
    Waiting,
)
from darkroom.formatting import describe_validation
from darkroom.jobs import Run, RunState
from darkroom.metrics import Metric
from darkroom.ports import Clock, RowLedger, RowQueue, Telemetry
from darkroom.rows import Claim, Received, RowMessage, RowResult

# Kept free at the end of an invocation, for the upload of its files.
SUBMIT_SECONDS = 300.0
# One row is in work at a time, so its lease has no heartbeat.
TIMINGS = Timings(lease_seconds=300.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSubmitter(RowWorker):
    """Puts a row's request into a draft. `live_queue` takes rows that no batch can take."""

    endpoints: BatchEndpoints
    drafts: Drafts
    live_queue: RowQueue
    timings: Timings = TIMINGS

    def context(self, claim: Claim, run: Run, message: RowMessage) -> RowCallContext:
        context = RowWorker.context(self, claim, run, message)
        context.batch = True
        return context

    def process(
        self,
        context: RowCallContext,
        loaded: LoadedImages,
        deadline: float,  # noqa: ARG002  # of a call, which is not made here
    ) -> RowResult | None:
        try:
            choice = self.endpoints.choose(context.plan)
            warnings = self._put_thumbnail(context, loaded)
            self.drafts.add(context, choice, (*loaded.warnings, *warnings))
        except Ineligible as reason:
            self._call_instead(context, str(reason))
        return None

    def _put_thumbnail(self, context: RowCallContext, loaded: LoadedImages) -> tuple[str, ...]:
        """Of the input image, which the collector does not have."""
        if not loaded.images:
            return ()
        image = self.images.planned_output(context.claim, context.message.request)
        return self.images.put_thumbnails(context.claim, image, loaded.images[0].data, None)

    def _call_instead(self, context: RowCallContext, reason: str) -> None:
        if context.run.options.batch_fallback == "batch":
            raise RowRejected(Reason.BAD_REQUEST, reason)
        self.telemetry.info("row_called_instead", reason=reason)
        message = context.message.model_copy(update={"run": context.claim.run, "live": True})
        self.live_queue.send([message])
        self.rows.release(context.claim, refund_attempt=True)


@dataclass(slots=True)
class _Task:
    received: Received
    message: RowMessage
    owner: str


@dataclass(frozen=True, slots=True)
class Submitter:
    """Handles the messages of one invocation at a time."""

    worker: RowSubmitter
    drafts: Drafts
    endpoints: BatchEndpoints
    returns: RowReturns
    rows: RowLedger
    runs: CurrentRuns
    waits: JobWaits
    queue: RowQueue
    completion: Completion
    clock: Clock
    telemetry: Telemetry
    timings: Timings = TIMINGS

    def submit(self, batch: Sequence[Received], deadline: float, invocation: str) -> list[str]:
        """Returns the ids of the messages that the queue must keep."""
        work = _Invocation(self, deadline, invocation)
        try:
            work.add(batch)
            work.process_rows()
            work.check_completion()
        finally:
            self.drafts.discard()
        return sorted(work.kept)


@dataclass(slots=True)
class _Invocation:
    submitter: Submitter
    deadline: float
    name: str
    kept: set[str] = field(default_factory=set)
    _tasks: list[_Task] = field(default_factory=list)
    _given_up: dict[str, Waiting] = field(default_factory=dict)  # by job

    def add(self, batch: Sequence[Received]) -> None:
        now, oldest = self.submitter.clock.now(), self.submitter.clock.now()
        for number, received in enumerate(batch):
            try:
                message = RowMessage.model_validate_json(received.body)
            except ValidationError as error:
                self._reject(received, describe_validation(error, "not a row's message"))
            else:
                self._tasks.append(_Task(received, message, f"{self.name}/{number}"))
                oldest = min(oldest, message.queued_at or received.sent_at or now)
        if oldest < now:
            self.submitter.telemetry.metric(Metric.ROW_AGE, now - oldest)

    def process_rows(self) -> None:
        submitter, drafts = self.submitter, self.submitter.drafts
        keys = defaultdict[str, dict[str, None]](dict)
        for task in self._tasks:
            keys[task.message.job][task.message.key] = None
        candidates = {job: tuple(own) for job, own in keys.items()}
        drafts.begin(candidates, self.name, self.deadline)
        leases = Leases(submitter.queue, submitter.rows, submitter.telemetry, submitter.timings)
        leases.alone = False
        tasks = self._without_those_that_wait()
        alone = [task for task in tasks if self._process(task, leases)]
        self._submit_drafts(candidates)
        leases.alone = True
        for task in alone:  # it may have killed its worker, and shall take no other row along
            self._process(task, leases)
            self._submit_drafts(candidates)

    def _submit_drafts(self, candidates: Mapping[str, Sequence[str]]) -> None:
        """What is left undone here, the collector does when a batch's lease has ended."""
        submitter = self.submitter
        for job in sorted(submitter.drafts.submit_all()):
            self._clear_waiting(job)
        for batch, why in submitter.drafts.take_failed():
            try:
                rows = submitter.rows.get_many(batch.job, candidates[batch.job])
                submitter.returns.give_back(batch.job, rows.values(), why)
                submitter.drafts.close(batch)
            except (LeaseLost, ServiceUnavailable) as error:
                submitter.telemetry.warning("rows_left", batch=batch.name, error=str(error))

    def _clear_waiting(self, job: str) -> None:
        """The job waits for its batches now, not for an endpoint."""
        run = self.submitter.runs.known(job)
        if run is not None:
            self.submitter.worker.clear_waiting(run)

    def check_completion(self) -> None:
        """Rows with bad input may have been the last ones of their job."""
        done = [task for task in self._tasks if task.received.message_id not in self.kept]
        for job in sorted({task.message.job for task in done}):
            try:
                self.submitter.completion.check(job)
            except ServiceUnavailable as error:
                self.submitter.telemetry.warning("completion_unchecked", job=job, error=str(error))
                for task in done:
                    if task.message.job == job:
                        self._keep(task.received, self.submitter.timings.aws_delay_seconds)

    def _without_those_that_wait(self) -> list[_Task]:
        """The tasks, less those whose jobs wait for an endpoint that takes batches."""
        submitter = self.submitter
        try:
            submitter.endpoints.check_in_service()
        except DeferRow as outage:
            waiting = outage.waiting
            seconds = outage.delay_seconds
        except ServiceUnavailable as error:
            submitter.telemetry.warning("service_unavailable", error=str(error))
            for task in self._tasks:
                self._keep(task.received, submitter.timings.aws_delay_seconds)
            return []
        else:
            return self._tasks
        tasks = []
        for task in self._tasks:
            if waiting is None or self._ends(task.message.job, waiting):
                tasks.append(task)
            else:
                self._keep(task.received, seconds, task.message)
        submitter.telemetry.metric(Metric.ROWS_WAITING, len(self._tasks) - len(tasks))
        return tasks

    def _ends(self, job: str, waiting: Waiting) -> bool:
        """The job's rows end without an endpoint: it was stopped, or has waited for too long."""
        if job in self._given_up:
            return True
        try:
            run = self.submitter.runs.get(job)
            given_up = run is not None and self.submitter.waits.record(run, waiting)
        except ServiceUnavailable as error:
            self.submitter.telemetry.warning("waiting_not_recorded", job=job, error=str(error))
            return False
        if given_up:
            self._given_up[job] = waiting
        return given_up or (run is not None and run.state is RunState.STOPPED)

    def _process(self, task: _Task, leases: Leases) -> bool:
        """True when the row is to be processed alone."""
        submitter, received = self.submitter, task.received
        if submitter.clock.now() > self.deadline - SUBMIT_SECONDS:
            self._keep(received, 0.0)
            return False
        try:
            returned = self._handle(task, leases)
        except ServiceUnavailable as error:
            submitter.telemetry.warning("service_unavailable", error=str(error))
            returned = ReturnRow(submitter.timings.aws_delay_seconds)
        except Exception:  # noqa: BLE001  # one message must not fail the others
            submitter.telemetry.exception("message_crashed", message_id=received.message_id)
            returned = ReturnRow(submitter.timings.aws_delay_seconds)
        if returned is not None and not returned.alone:
            self._keep(received, returned.seconds, task.message)
        return returned is not None and returned.alone

    def _handle(self, task: _Task, leases: Leases) -> ReturnRow | None:
        message = task.message
        run = self.submitter.runs.get(message.job)
        if run is None:
            self._reject(task.received, f"the ledger has no job {message.job}")
            return None
        given_up = self._given_up.get(message.job)
        return self.submitter.worker.handle(
            message, run, task.owner, self.deadline, leases, given_up=given_up
        )

    def _reject(self, received: Received, detail: str) -> None:
        reject(received, detail, self.submitter.queue, self.submitter.telemetry)

    def _keep(self, received: Received, seconds: float, message: RowMessage | None = None) -> None:
        """The message is delivered again after `seconds`; one that is old is replaced."""
        queue, now = self.submitter.queue, self.submitter.clock.now()
        try:
            copy = copy_if_old(received, message, now) if message else None
            if copy is not None:
                queue.send([copy], delay_seconds=int(min(seconds, 900.0)))
                return
            queue.extend([received.receipt], int(seconds))
        except ServiceUnavailable as error:  # delivered again when its visibility ends
            self.submitter.telemetry.warning("not_hidden", error=str(error))
        self.kept.add(received.message_id)
