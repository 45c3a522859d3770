"""Rows that a batch gave no image: queued again for the next batch or a live call, or ended."""

from collections.abc import Iterable
from dataclasses import dataclass

from darkroom.calls import CallFailed
from darkroom.editor.row_editor import RowWorker, failure
from darkroom.editor.waiting import CurrentRuns
from darkroom.errors import LeaseLost, Reason, RetryRow, RowRejected, ServiceUnavailable
from darkroom.jobs import STOPPED_DETAIL, Run, RunState
from darkroom.ledger.batches import is_in, is_taken_back
from darkroom.metrics import Metric
from darkroom.ports import RowLedger, RowQueue
from darkroom.rows import Claim, RowMessage, RowRecord, RowState

_QUEUE_DELAY_SECONDS = 60  # so that a batch is not tried again by the same invocation


@dataclass(frozen=True, slots=True)
class Answerless:
    """Why rows come back from a batch, and what follows.

    `refund_attempt`: the cause is not the rows' own, so they join the next batch at no cost in
    attempts, whatever the job's batch-fallback says.
    """

    batch: str
    endpoint: str
    cause: CallFailed
    refund_attempt: bool = False


@dataclass(frozen=True, slots=True)
class RowReturns:
    """`live_queue` is the editor's, `batch_queue` the submitter's."""

    rows: RowLedger
    runs: CurrentRuns
    worker: RowWorker
    live_queue: RowQueue
    batch_queue: RowQueue

    def give_back(self, job: str, records: Iterable[RowRecord], why: Answerless) -> None:
        """Queue the rows again that are still in the batch, or were taken back from it.

        May be repeated after a crash at any point. Raises ServiceUnavailable, and the unexpected
        error that one of the rows led to when the others are queued.
        """
        run = self.runs.get(job)
        if run is None:
            return
        to_batches, to_calls = list[RowMessage](), list[RowMessage]()
        wanted = why.refund_attempt or run.options.batch_fallback == "batch"
        next_batch = wanted and run.options.mode == "batch"  # a later upload may have another
        crashed: Exception | None = None
        for record in records:
            try:
                message = self._take_back(job, record, run, why)
            except (LeaseLost, ServiceUnavailable):
                raise
            except Exception as error:  # noqa: BLE001  # one row must not keep the others waiting
                self.worker.telemetry.exception("return_crashed", row=record.key)
                crashed, message = error, None
            if message is not None:
                queued = message.model_copy(update={"live": not next_batch})
                (to_batches if next_batch else to_calls).append(queued)
        if to_batches:
            self.batch_queue.send(to_batches, delay_seconds=_QUEUE_DELAY_SECONDS)
        if to_calls:
            self.live_queue.send(to_calls)
        if crashed is not None:
            raise crashed

    def _take_back(
        self, job: str, found: RowRecord, run: Run, why: Answerless
    ) -> RowMessage | None:
        """The row's message, if it is to be queued again."""
        record: RowRecord | None = found
        while record is not None and is_in(record, why.batch):
            claim = self.rows.take_back(
                job,
                record,
                cost_micro_usd=why.cause.cost_micro_usd or 0,
                maybe_charged=why.cause.maybe_charged,
                refund_attempt=why.refund_attempt,
            )
            if claim is not None:
                return self._taken_back(claim, run, why)
            # A later upload has changed the row, which may be in the batch all the same.
            record = self.rows.get_many(job, [found.key]).get(found.key)
        return _message_of(record) if is_taken_back(record, why.batch) else None

    def _taken_back(self, claim: Claim, run: Run, why: Answerless) -> RowMessage | None:
        if why.cause.maybe_charged:
            self.worker.telemetry.metric(Metric.POSSIBLE_DUPLICATE_CHARGES)
        message = _message_of(claim.record)
        return None if message is None or self._end(claim, run, message, why) else message

    def _end(self, claim: Claim, run: Run, message: RowMessage, why: Answerless) -> bool:
        """Settle a row of a stopped job, and one that has no attempts left."""
        context = self.worker.context(claim, run, message)
        if run.state is RunState.STOPPED and run.run == claim.run:
            stopped = RowRejected(Reason.STOPPED, STOPPED_DETAIL)
            self.worker.settle(context, failure(RowState.FAILED, stopped, context))
            return True
        if why.refund_attempt or not context.is_last_attempt:
            return False
        cause, submission = why.cause, claim.record.submission
        error = RetryRow(
            cause.reason,
            f"{why.endpoint}: {cause.detail}",
            endpoint=why.endpoint,
            model=submission.model if submission else None,
        )
        self.worker.dead_letter(context, error)
        return True


def _message_of(record: RowRecord | None) -> RowMessage | None:
    """To queue the row again, in the run that it belongs to now."""
    if record is None or record.submission is None:
        return None
    return record.submission.message.model_copy(update={"run": record.run})
