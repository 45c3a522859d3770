"""State transitions of batches and of the rows in them, as pure functions. Unix seconds.

A batch is in the ledger, under a name of our own, before any row is in it and before its provider
knows of it. A row's record names its batch, so that what a batch consists of is never in doubt:
the rows among its candidates whose records name it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from darkroom.jobs import Counters
from darkroom.ledger.rows import Change
from darkroom.rows import Claim, RowRecord, RowState, Submission


class BatchState(StrEnum):
    PREPARING = "preparing"  # the provider may not know of it yet
    SUBMITTED = "submitted"  # the provider's id is known
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch of one job's rows at one endpoint."""

    name: str  # also stored by the provider
    job: str
    run: str  # which made it; its rows may have been transferred to a later one
    endpoint: str
    key_id: str  # of the endpoint's keys, the one that it was made with
    model: str
    created_at: float
    state: BatchState = BatchState.PREPARING
    rows: int = 0  # requests in its file
    batch_id: str = ""  # the provider's
    submitted_at: float = 0.0
    status: str = ""  # the provider's, when it was last read
    cancelled_at: float = 0.0  # when the provider was asked to stop
    owner: str = ""  # of the lease: its submitter, then a collector
    lease_until: float = 0.0
    position: str = ""  # where the results continue
    collected: bool = False  # all results are stored
    # Of the results up to `position`. By custom id, digests of the different answers: the first one
    # is the row's, and a provider that repeats a request bills each.
    answered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unreadable: int = 0  # lines that no row got, though each may be a row's
    crashes: int = 0  # collectors that died since the position was saved
    unclaimed_micro_usd: int = 0  # cost of answers that no row waited for
    version: int = 0

    @property
    def unclaimed_cost(self) -> Counters:
        """What the batch adds to the counters of its run when it is closed."""
        cost = self.unclaimed_micro_usd
        return Counters(cost_micro_usd=cost, transitions=1) if cost else Counters()


def custom_id(position: int) -> str:
    """Of a row's request: its position among the batch's candidates."""
    return f"row-{position}"


def take_lease(record: BatchRecord, owner: str, now: float, seconds: float) -> BatchRecord | None:
    """None when another process works on the batch, or nobody has to."""
    held = record.lease_until > now and record.owner != owner
    if held or record.state is BatchState.CLOSED:
        return None
    # A collector ends its lease, unless it dies. That of a submitter ends with the submission.
    died = record.state is BatchState.SUBMITTED and record.lease_until > 0
    crashes = record.crashes + int(died and record.owner != owner)
    return _next(record, owner=owner, lease_until=now + seconds, crashes=crashes)


def end_lease(record: BatchRecord, owner: str, until: float = 0.0) -> BatchRecord | None:
    """Let another process take the batch, from `until` on. None: the lease was lost."""
    return _next(record, lease_until=until) if _owned(record, owner) else None


def submitted(
    record: BatchRecord, owner: str, *, batch_id: str, rows: int, now: float
) -> BatchRecord | None:
    """The provider has it. None when the lease was lost: then its new owner finds it by name."""
    if not _owned(record, owner) or record.state is not BatchState.PREPARING:
        return None
    return _next(
        record,
        state=BatchState.SUBMITTED,
        batch_id=batch_id,
        rows=rows,
        submitted_at=now,
        lease_until=0.0,
    )


def changed(record: BatchRecord, owner: str, **changes: Any) -> BatchRecord | None:
    """With other values of its status, `cancelled_at`, or of what was read of the results."""
    return _next(record, **changes) if _owned(record, owner) else None


def closed(record: BatchRecord, owner: str) -> BatchRecord | None:
    """All its rows are settled, or queued again."""
    if not _owned(record, owner):
        return None
    return _next(record, state=BatchState.CLOSED, lease_until=0.0, answered={})


def _owned(record: BatchRecord, owner: str) -> bool:
    return record.owner == owner and record.state is not BatchState.CLOSED


def _next(record: BatchRecord, **changes: Any) -> BatchRecord:  # fields of BatchRecord
    return replace(record, version=record.version + 1, **changes)


# Rows


def submit_row(
    claim: Claim, batch: str, submission: Submission, *, endpoint: str, reserve: int, now: float
) -> Change:
    """The row's request becomes part of a batch, with `reserve` micro-USD set aside for it.

    Its worker lets go of it: whatever happens, the batch's collector settles it or queues it again.
    """
    record = replace(
        claim.record,
        state=RowState.SUBMITTED,
        endpoint=endpoint,
        sent_run=claim.run,
        reserved=reserve,
        batch=batch,
        submission=submission,
        crashes=0,
        lease_owner=None,
        lease_until=0.0,
        updated_at=now,
        version=claim.record.version + 1,
    )
    return Change(record, budget=reserve, reserved=reserve)


def take_back_row(
    record: RowRecord, now: float, *, cost: int, maybe_charged: bool, refund_attempt: bool
) -> Change:
    """The batch gave the row no image. It can be claimed again, and still names its batch.

    So a collector that dies before it has queued the row again is repeated by another.
    """
    unknown = maybe_charged and cost == 0
    free = replace(
        record,
        state=RowState.CLAIMED,
        sent_run=None,
        reserved=0,
        spent=record.spent + cost,
        possible_duplicate_charges=record.possible_duplicate_charges + int(maybe_charged),
        attempts=record.attempts - int(refund_attempt and record.attempts > 0),
        updated_at=now,
        version=record.version + 1,
    )
    budget = 0 if unknown else cost - record.reserved
    return Change(free, budget=budget, reserved=-record.reserved)


def is_in(record: RowRecord | None, batch: str) -> bool:
    """The row waits for an answer from the batch."""
    return record is not None and record.state is RowState.SUBMITTED and record.batch == batch


def is_taken_back(record: RowRecord | None, batch: str) -> bool:
    """The row was taken back from the batch, and may not have been queued again yet."""
    return (
        record is not None
        and record.state is RowState.CLAIMED
        and record.batch == batch
        and record.lease_owner is None
    )
