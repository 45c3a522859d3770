"""State transitions of a job's runs, as pure functions: start, split, report. Unix seconds.

A report is current for one value of `Counters.transitions`, the number of changes ever made to the
run's counters. A report is due whenever all rows are settled and the last report was made for
another value, so no order of crashes, redrives and late deliveries can leave an old one in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from darkroom.errors import Reason, Waiting
from darkroom.jobs import Checkpoint, Counters, RejectedUpload, Run, RunState, Totals

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
class RunRecord:
    """A run with what only the ledger uses."""

    run: Run
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


def start(run: Run, current: JobRecord | None, spent_before: int, until: float) -> RunRecord:
    """The job's next run. `spent_before` is the cost of its unbudgeted runs, in micro-USD."""
    number = current.number + 1 if current else 1
    started = replace(run, number=number, spent_before=spent_before, state=RunState.SPLITTING)
    return RunRecord(started, split_until=until)


def start_rejected(record: RunRecord, reason: str, now: float) -> RunRecord:
    """A run that has just been made, of an upload that cannot be used."""
    return replace(fail(record, reason, now), version=record.version)


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
    return _next(record, run=run, split_until=0.0)


def fail(record: RunRecord, reason: str, now: float) -> RunRecord:
    run = replace(record.run, state=RunState.FAILED, reason=reason, finished_at=now)
    return _next(record, run=run, split_until=0.0)


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


def reopen(record: RunRecord) -> RunRecord | None:
    """Rows were redriven: the run continues. The changed counters make its report due."""
    if record.run.finished_at is None or record.run.state is RunState.FAILED:
        return None
    state = RunState.RUNNING if record.run.state is RunState.DONE else record.run.state
    return _next(record, run=replace(record.run, state=state, finished_at=None))


def all_settled(run: Run, counters: Counters) -> bool:
    complete = counters.settled == run.totals.queued
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
    if record.reporting != counters.transitions:
        run = _in_state(record.run, RunState.RUNNING)
        return False, _next(record, run=run, report_until=0.0)
    run = replace(_in_state(record.run, RunState.DONE), finished_at=finished_at)
    return True, _next(record, run=run, report_until=0.0, reported=record.reporting)


def _in_state(run: Run, state: RunState) -> Run:
    """The run in this state, unless it failed or was stopped: that stays."""
    return run if run.state in _FINAL_STATES else replace(run, state=state)


def _next(record: RunRecord, **changes: Any) -> RunRecord:  # fields of RunRecord
    return replace(record, version=record.version + 1, **changes)
