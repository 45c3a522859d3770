"""State transitions of a job's runs, as pure functions: start, split, report. Unix seconds.

A report is current for one value of `Counters.transitions`, the number of changes ever made to the
run's counters. A report is due whenever all rows are settled and the last report was made for
another value, so no order of crashes, redrives and late deliveries can leave an old one in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from darkroom.errors import Reason, Waiting
from darkroom.jobs import Checkpoint, Counters, RejectedUpload, Run, RunState, Totals

# Lambda retries a crashed invocation after one and two minutes.
# Source: "Asynchronous invocation" in the Lambda developer guide.
SPLITTER_RETRIES_SECONDS = 300.0
# SQS deletes a message 14 days after it was sent, received or not ("SetQueueAttributes",
# MessageRetentionPeriod). Two days are left for the rows to be queued again, and processed.
QUEUE_AGAIN_SECONDS = 12 * 86_400.0
# A message is hidden for up to 4 hours. A job none of whose rows was settled for longer, while
# other jobs keep the queue busy, has probably lost its messages.
NO_PROGRESS_SECONDS = 6 * 3_600.0
# The numbers of messages that SQS reports are approximate for a minute; a worker may also have sent
# a copy of its message.
MESSAGES_IN_TRANSIT_SECONDS = 3_600.0
_SEQUENCER_DIGITS = 64
_MAX_REJECTED_UPLOADS = 10  # bounds the run's item
_FINAL_STATES = (RunState.FAILED, RunState.STOPPED)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Which run is the job's current one."""

    job: str
    run: str
    number: int
    sequencer: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class UnfinishedJob:
    """A job in the sweep's list; `marks` counts how often it was added."""

    job: str
    marks: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run with what only the ledger uses."""

    run: Run
    queued_at: float = 0.0  # when the splitter began to queue the rows, for the last time
    split_before: Totals | None = None  # set while the rows are queued again
    not_queued: str = ""  # why the rows could not be queued again
    progress: int = 0  # Counters.transitions, when the sweep last saw them change
    progress_at: float = 0.0
    replaces_unfinished: bool = False  # rows of an earlier run may be left unsettled
    split_until: float = 0.0  # lease of the splitter
    report_until: float = 0.0  # lease of the reporter
    report_owner: str = ""
    reporting: int = -1  # the version (Counters.transitions) of the report being made
    reported: int = -1  # the version of the last finished report
    version: int = 0


def is_newer(sequencer: str, current: JobRecord) -> bool:
    """Compare S3 sequencers: right-padded with zeros, as text. One without a sequencer is newer."""
    if not sequencer or not current.sequencer:
        return True
    padded = sequencer.lower().ljust(_SEQUENCER_DIGITS, "0")
    return padded > current.sequencer.lower().ljust(_SEQUENCER_DIGITS, "0")


def start(run: Run, current: RunRecord | None, spent_before: int, until: float) -> RunRecord:
    """The job's next run. `spent_before` is the cost of its unbudgeted runs, in micro-USD."""
    number = current.run.number + 1 if current else 1
    started = replace(run, number=number, spent_before=spent_before, state=RunState.SPLITTING)
    return RunRecord(
        started,
        queued_at=run.started_at,
        replaces_unfinished=current is not None
        and (current.replaces_unfinished or not _is_done(current)),
        split_until=until,
    )


def _is_done(record: RunRecord) -> bool:
    return record.run.state is RunState.DONE and record.run.finished_at is not None


def start_rejected(record: RunRecord, reason: str, now: float) -> RunRecord:
    """A run that has just been made, of an upload that cannot be used."""
    failed = fail(record, reason, now)
    return replace(failed, version=record.version, replaces_unfinished=record.replaces_unfinished)


def is_under_way(record: RunRecord) -> bool:
    return record.run.finished_at is None and record.run.state is not RunState.FAILED


def add_rejected_upload(record: RunRecord, rejected: Run, reason: str, now: float) -> RunRecord:
    source = rejected.source
    upload = RejectedUpload(source.key, source.version_id, reason, now, rejected.run)
    known = [u for u in record.run.rejected_uploads if u.run != rejected.run]
    uploads = (*known, upload)[-_MAX_REJECTED_UPLOADS:]
    return _next(record, run=replace(record.run, rejected_uploads=uploads))


def take_over_split(record: RunRecord, now: float, lease_seconds: float) -> RunRecord | None:
    """A repeated event of the same upload: only if its splitter died before it finished."""
    if record.run.split_done or record.run.state is RunState.FAILED or record.split_until > now:
        return None
    return _next(record, split_until=now + lease_seconds)


def checkpoint(record: RunRecord, checkpoint: Checkpoint, until: float) -> RunRecord:
    run = replace(record.run, checkpoint=checkpoint, totals=checkpoint.totals)
    return _next(record, run=run, split_until=until)


def finish_split(record: RunRecord, totals: Totals, warnings: Sequence[str]) -> RunRecord:
    state = record.run.state
    run = replace(
        record.run,
        split_done=True,
        totals=totals,
        warnings=tuple(warnings),
        state=RunState.RUNNING if state is RunState.SPLITTING else state,
    )
    return _next(record, run=run, split_until=0.0, split_before=None)


def queue_again(record: RunRecord, counters: Counters, now: float) -> RunRecord | None:
    """Start another pass of the splitter, which queues the rows that are not settled.

    Its totals will be the same: it decides as before, and counts as queued what was settled since.
    A run whose reopening for a redriven row was not recorded is reopened. None when a pass is under
    way, or nothing is left to queue.
    """
    is_over = record.run.state is RunState.FAILED or all_settled(record.run, counters)
    if not record.run.split_done or is_over:
        return None
    record = reopen(record, now) or _next(record)
    run = replace(record.run, split_done=False, checkpoint=Checkpoint())
    return replace(
        record,
        run=run,
        queued_at=now,
        split_before=record.run.totals,
        split_until=0.0,
        not_queued="",
    )


def give_up_lost(record: RunRecord, settled: int) -> RunRecord | None:
    """End the run without the rows that have no outcome, although one may still arrive late.

    Their messages and the CSV are gone, or the job was stopped. `settled` rows have an outcome:
    more than were queued when a row was taken for one of an earlier upload, and settled in this run
    all the same. None when the run has ended, or its rows are queued again.
    """
    totals = record.run.totals
    lost = totals.queued - settled
    if not record.run.split_done or not is_under_way(record) or lost == 0:
        return None
    if lost < 0:
        totals = replace(totals, queued=settled, resumed=max(0, totals.resumed + lost))
        return _next(record, run=replace(record.run, totals=totals))
    run = replace(record.run, lost=lost)
    if run.state is not RunState.STOPPED:
        warning = (
            f"{lost:,} of {totals.queued:,} rows were not edited: their messages are gone, and "
            f"they could not be queued again. {record.not_queued}"
        )
        run = replace(run, warnings=(*run.warnings, warning))
    return _next(record, run=run)


def fail(record: RunRecord, reason: str, now: float) -> RunRecord:
    """The file cannot be used. Rows queued before are edited, if it became so since then."""
    if record.split_before is not None:
        split = finish_split(record, record.split_before, record.run.warnings)
        return replace(split, not_queued=reason)
    run = replace(record.run, state=RunState.FAILED, reason=reason, finished_at=now)
    # Rows may have been queued, and called for, before the file became unreadable.
    return _next(record, run=run, split_until=0.0, replaces_unfinished=True)


def set_waiting(record: RunRecord, reason: Reason, detail: str, now: float) -> RunRecord | None:
    """None when the run is finished, or waits for the same already."""
    if record.run.finished_at is not None or waits_for(record.run, reason, detail):
        return None
    since = record.run.waiting.since if record.run.waiting else now
    return _next(record, run=replace(record.run, waiting=Waiting(reason, detail, since)))


def waits_for(run: Run, reason: Reason, detail: str) -> bool:
    return run.waiting is not None and (run.waiting.reason, run.waiting.detail) == (reason, detail)


def clear_waiting(record: RunRecord) -> RunRecord | None:
    """None when the run does not wait."""
    if record.run.waiting is None:
        return None
    return _next(record, run=replace(record.run, waiting=None))


def stop(record: RunRecord) -> RunRecord | None:
    """None when there is nothing to stop."""
    if record.run.finished_at is not None or record.run.state is RunState.STOPPED:
        return None
    return _next(record, run=replace(record.run, state=RunState.STOPPED))


def reopen(record: RunRecord, now: float) -> RunRecord | None:
    """Rows were redriven: the run continues. The changed counters make its report due."""
    if record.run.finished_at is None or record.run.state is RunState.FAILED:
        return None
    state = RunState.RUNNING if record.run.state is RunState.DONE else record.run.state
    run = replace(record.run, state=state, finished_at=None)
    return _next(record, run=run, queued_at=now)


def all_settled(run: Run, counters: Counters) -> bool:
    # More than were queued: the totals are corrected when the rows are queued again.
    complete = counters.settled == run.totals.queued
    if run.lost:  # one of them may arrive late
        complete = counters.settled >= run.totals.queued - run.lost
    return run.split_done and run.state is not RunState.FAILED and complete


def report_due(record: RunRecord, counters: Counters) -> bool:
    return all_settled(record.run, counters) and record.reported != counters.transitions


def begin_report(
    record: RunRecord, counters: Counters, owner: str, now: float, lease_seconds: float
) -> RunRecord | None:
    """None when the caller does not make the report: it is not due, or another reporter makes it.

    The owner of the lease may begin again: it is the same invocation, retried after a crash.
    """
    if not report_due(record, counters) or report_leased(record, owner, now):
        return None
    return _next(
        record,
        run=_in_state(record.run, RunState.REPORTING),
        report_until=now + lease_seconds,
        report_owner=owner,
        reporting=counters.transitions,
    )


def report_leased(record: RunRecord, owner: str, now: float) -> bool:
    """Another reporter is at work."""
    return record.report_until > now and not (owner and owner == record.report_owner)


def finish_report(
    record: RunRecord, counters: Counters, finished_at: float
) -> tuple[bool, RunRecord]:
    """Whether the report is still current, and what to write."""
    if record.run.state is RunState.FAILED:
        return True, _next(record, reported=counters.transitions)
    if record.reporting != counters.transitions:
        run = _in_state(record.run, RunState.RUNNING)
        return False, _next(record, run=run, report_until=0.0)
    run = replace(_in_state(record.run, RunState.DONE), finished_at=finished_at)
    return True, _next(record, run=run, report_until=0.0, reported=record.reporting)


class SweepStep(StrEnum):
    """What the sweep does about a job."""

    WAIT = "wait"  # it is in progress
    SPLIT = "split"  # its splitter died, and Lambda's retries are over: start another
    QUEUE_AGAIN = "queue_again"  # messages of unsettled rows are gone, or will be soon
    GIVE_UP = "give_up"  # the same, but the CSV is gone too: end the run without these rows
    END_STOPPED = "end_stopped"  # the user stopped it: end the rows that wait in the queue
    REPORT = "report"  # start a reporter
    FINISH = "finish"  # nothing is left to do for the run


def sweep_step(
    record: RunRecord,
    counters: Counters,
    now: float,
    *,
    queue_is_empty: bool,
    in_batches: bool = False,
) -> SweepStep:
    """A step too many does no harm: claims, leases and versions decide who does the work.

    Rows `in_batches` at a provider have no messages, and take a day.
    """
    run = record.run
    if run.state is RunState.FAILED:
        return SweepStep.FINISH if record.reported >= 0 else SweepStep.REPORT
    if not run.split_done:
        died = record.split_until + SPLITTER_RETRIES_SECONDS < now
        return SweepStep.SPLIT if died else SweepStep.WAIT
    if not all_settled(run, counters):
        if in_batches and run.state is not RunState.STOPPED:
            return SweepStep.WAIT
        return _step_for_unsettled(record, counters, now, queue_is_empty=queue_is_empty)
    if not report_due(record, counters):
        return SweepStep.FINISH
    return SweepStep.WAIT if record.report_until > now else SweepStep.REPORT


def _step_for_unsettled(
    record: RunRecord, counters: Counters, now: float, *, queue_is_empty: bool
) -> SweepStep:
    if record.run.state is RunState.STOPPED:
        return SweepStep.END_STOPPED
    if _messages_are_gone(record, now, queue_is_empty=queue_is_empty):
        return SweepStep.GIVE_UP if record.not_queued else SweepStep.QUEUE_AGAIN
    if _makes_no_progress(record, counters, now) and not record.not_queued:
        return SweepStep.QUEUE_AGAIN
    return SweepStep.WAIT


def _messages_are_gone(record: RunRecord, now: float, *, queue_is_empty: bool) -> bool:
    """Or will be soon."""
    queued_seconds = now - record.queued_at
    in_transit = queued_seconds <= MESSAGES_IN_TRANSIT_SECONDS
    return (queue_is_empty and not in_transit) or queued_seconds > QUEUE_AGAIN_SECONDS


def _makes_no_progress(record: RunRecord, counters: Counters, now: float) -> bool:
    """Some messages may be gone, although others keep the queue busy.

    A job that waits for its endpoints makes no progress either, until its rows give up.
    """
    patience = NO_PROGRESS_SECONDS
    if record.run.waiting is not None:
        patience += record.run.options.give_up_after_hours * 3_600.0
    idle_seconds = now - max(record.progress_at, record.queued_at)
    return record.progress == counters.transitions and idle_seconds > patience


def note_progress(record: RunRecord, counters: Counters, now: float) -> RunRecord | None:
    """Remember that rows were settled since the last sweep; None if none was."""
    if record.progress == counters.transitions:
        return None
    return _next(record, progress=counters.transitions, progress_at=now)


def dropped_settled(record: RunRecord) -> RunRecord | None:
    """The rows that earlier uploads left unsettled are settled."""
    return _next(record, replaces_unfinished=False) if record.replaces_unfinished else None


def _in_state(run: Run, state: RunState) -> Run:
    """The run in this state, unless it failed or was stopped: that stays."""
    return run if run.state in _FINAL_STATES else replace(run, state=state)


def _next(record: RunRecord, **changes: Any) -> RunRecord:  # fields of RunRecord
    return replace(record, version=record.version + 1, **changes)
