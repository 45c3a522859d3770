"""The sweep: every few minutes, looks at the jobs that are not finished and restarts what stopped.

Messages are lost after 14 days, splitters and reporters after three minutes of AWS errors. Nothing
here decides who does the work: a step too many meets a lease, a claim or a finished report.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass

from darkroom.errors import Reason, ServiceUnavailable
from darkroom.jobs import STOPPED_DETAIL, Run, RunState
from darkroom.ledger.runs import RunRecord, SweepStep, UnfinishedJob, sweep_step
from darkroom.metrics import Metric
from darkroom.ports import BatchLedger, Clock, LostEvents, RowLedger, RowQueue, RunLedger, Telemetry
from darkroom.rows import RowRecord, RowState
from darkroom.splitter import CsvUploaded

_LOST_DETAIL = "its message is gone, and the CSV could not be read to queue it again"
_DROPPED_DETAIL = "a later upload of the CSV no longer has this row"
_STOP_BEFORE_SECONDS = 60.0  # the other jobs are looked at next time


@dataclass(frozen=True, slots=True)
class Sweep:
    """`start_splitter` and `request_report` invoke those functions asynchronously."""

    runs: RunLedger
    rows: RowLedger
    queue: RowQueue
    batch_queue: RowQueue
    batches: BatchLedger
    lost_events: LostEvents
    clock: Clock
    telemetry: Telemetry
    start_splitter: Callable[[CsvUploaded], None]
    request_report: Callable[[str], None]

    def sweep(self, remaining_seconds: Callable[[], float]) -> None:
        """Raises ServiceUnavailable when the list of unfinished jobs cannot be read."""
        self._restart_lost_uploads()
        live_is_empty = self._is_empty(self.queue)
        batch_is_empty = self._is_empty(self.batch_queue)
        in_batches = self._jobs_in_batches()
        for unfinished in self.runs.unfinished():
            if remaining_seconds() < _STOP_BEFORE_SECONDS:
                self.telemetry.warning("sweep_incomplete", next_job=unfinished.job)
                return
            try:
                self._sweep(
                    unfinished,
                    live_is_empty=live_is_empty,
                    batch_is_empty=batch_is_empty,
                    in_batches=in_batches,
                )
            except ServiceUnavailable as error:
                self.telemetry.warning("job_not_swept", job=unfinished.job, error=str(error))
            except Exception:  # noqa: BLE001  # one job must not keep the others from being swept
                self.telemetry.exception("sweep_crashed", job=unfinished.job)

    def _restart_lost_uploads(self) -> None:
        """A splitter that failed three times before it recorded a run is in no list of jobs."""
        try:
            restarted = self.lost_events.restart_uploads()
        except Exception:  # noqa: BLE001  # the jobs are swept all the same
            self.telemetry.exception("lost_events_not_read")
            return
        if restarted:
            self.telemetry.warning("lost_uploads_restarted", events=restarted)

    def _jobs_in_batches(self) -> Set[str] | None:
        """Jobs with open batches; None when they cannot be read."""
        try:
            return {batch.job for batch in self.batches.open()}
        except Exception:  # noqa: BLE001  # the jobs are swept all the same
            self.telemetry.exception("batches_not_read")
            return None

    def _is_empty(self, queue: RowQueue) -> bool:
        try:
            return queue.backlog() == 0
        except ServiceUnavailable as error:
            self.telemetry.warning("service_unavailable", error=str(error))
            return False

    def _sweep(
        self,
        unfinished: UnfinishedJob,
        *,
        live_is_empty: bool,
        batch_is_empty: bool,
        in_batches: Set[str] | None,
    ) -> None:
        inspected = self.runs.inspect(unfinished.job)
        if inspected is None:
            return
        record, counters = inspected
        run = record.run
        step = sweep_step(
            record,
            counters,
            self.clock.now(),
            queue_is_empty=live_is_empty and (batch_is_empty or run.options.mode != "batch"),
            in_batches=run.options.mode == "batch" if in_batches is None else run.job in in_batches,
        )
        if step is SweepStep.FINISH:
            if not record.replaces_unfinished or self._settle_dropped(record):
                self.runs.finish(unfinished)
            return
        if step is SweepStep.WAIT:
            self.runs.note_progress(run)
            return
        self.telemetry.warning("job_resumed", job=run.job, run=run.run, step=step.value)
        if step is SweepStep.REPORT:
            self.request_report(run.job)
        elif step is SweepStep.GIVE_UP:
            self._end_unsettled(run, _LOST_DETAIL)
        elif step is SweepStep.END_STOPPED:
            self._end_unsettled(run, STOPPED_DETAIL)
        elif step is SweepStep.SPLIT or self.runs.queue_again(run):
            self.start_splitter(_upload_of(run))

    def _end_unsettled(self, run: Run, detail: str) -> None:
        """End the rows that no worker has; once none has any, the next sweep has the report made.

        Those that no worker has ever claimed are not in the ledger: the run records how many.
        """
        in_work = False
        for row in self.rows.unsettled(run.job):
            if row.run != run.run:
                continue
            if self._is_held(row) or not self._drop(run, row, detail):
                in_work = True
        if not in_work:
            self.runs.give_up_lost(run)

    def _is_held(self, row: RowRecord) -> bool:
        """A worker has the row, or a batch, which settles it or has it queued again."""
        return row.lease_until > self.clock.now() or row.state is RowState.SUBMITTED

    def _drop(self, run: Run, row: RowRecord, detail: str, reason: Reason = Reason.STOPPED) -> bool:
        dropped = self.rows.drop(run.job, row, reason, detail)
        if dropped and row.state is RowState.SENT:
            self.telemetry.metric(Metric.POSSIBLE_DUPLICATE_CHARGES)
        return dropped

    def _settle_dropped(self, record: RunRecord) -> bool:
        """End the rows that earlier uploads left unsettled, and that this one does not have.

        Called when the current run has ended: what it has is settled. True when all have ended.
        """
        run, all_ended = record.run, True
        for row in self.rows.unsettled(run.job):
            redriven = row.run == run.run and run.state is not RunState.FAILED
            held = redriven or self._is_held(row)
            if held or not self._drop(run, row, _DROPPED_DETAIL, Reason.SUPERSEDED):
                all_ended = False
                continue
            self.telemetry.info("dropped_row_settled", job=run.job, row=row.key, run=row.run)
        if all_ended:
            self.runs.dropped_settled(run)
        return all_ended


def _upload_of(run: Run) -> CsvUploaded:
    """The upload event from which the run was made."""
    source = run.source
    return CsvUploaded(
        source.bucket, source.key, source.version_id, run.sequencer, source.size, run.etag
    )
