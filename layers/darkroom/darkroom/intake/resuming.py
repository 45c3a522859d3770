"""What an upload does with a row that the ledger may know from before."""

from enum import StrEnum

from darkroom.errors import Reason
from darkroom.jobs import Run
from darkroom.ledger.values import RowRecord, RowState

# These ended for a cause outside the row, which the new upload is there to lift.
_ALWAYS_AGAIN = (Reason.BUDGET, Reason.STOPPED)


class Fate(StrEnum):
    """Each fate but SENT_BEFORE is the name of a field of Totals; that one counts as queued."""

    QUEUED = "queued"
    SENT_BEFORE = "sent_before"  # settled in this very run: the splitter was here already
    RESUMED = "resumed"
    KEPT_FAILED = "kept_failed"


def fate_of(record: RowRecord | None, fingerprint: str, run: Run) -> Fate:
    """`record` is the ledger's, None if it knows none; `fingerprint` of what the row asks now."""
    if record is None:
        return Fate.QUEUED
    if record.run == run.run:
        return _fate_in_this_run(record)
    # Settled for an earlier upload while this one is split: a splitter that crashed may have queued
    # the row before, and must come to the same. Its claim takes a success over without a call.
    settled_since = record.updated_at > run.started_at
    if settled_since or not run.options.resume or record.fingerprint != fingerprint:
        return Fate.QUEUED
    if record.state is RowState.SUCCEEDED:
        return Fate.RESUMED
    if not record.state.terminal or run.options.retry_failed:
        return Fate.QUEUED
    reason = record.result.reason if record.result else None
    return Fate.QUEUED if reason in _ALWAYS_AGAIN else Fate.KEPT_FAILED


def _fate_in_this_run(record: RowRecord) -> Fate:
    """The splitter sent the row before it was interrupted, or a redrive brought it in."""
    if record.extra:
        return Fate.KEPT_FAILED  # the redrive's own copy is on its way, and counted apart
    return Fate.SENT_BEFORE if record.state.terminal else Fate.QUEUED
