"""The moves of a row from state to state, as pure functions; an adapter only compares and swaps.

Every move takes the record as it is and gives the record as it shall be, with what changes in the
counters of runs and in the job's budget. Whoever writes it does so in one transaction, and only
if the record is still at the version the move started from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from darkroom.jobs import Counters
from darkroom.ledger.values import Claim, RowRecord, RowResult, RowState

NO_COUNTERS: Mapping[str, Counters] = MappingProxyType({})
MOVE = Counters(moves=1)


@dataclass(frozen=True, slots=True)
class Change:
    """What a move writes. `counters` by run; `budget` is what to add to the job's commitment."""

    record: RowRecord
    counters: Mapping[str, Counters] = field(default=NO_COUNTERS)
    budget: int = 0


def contribution(record: RowRecord) -> Counters:
    """What a settled row adds to the counters of its run."""
    result = record.result
    if result is None:
        return Counters()
    return Counters(
        succeeded=int(result.status is RowState.SUCCEEDED),
        failed=int(result.status is RowState.FAILED),
        dead=int(result.status is RowState.DEAD),
        fallback=int(result.fallback),
        attempts=record.attempts,
        cost_micro_usd=result.cost_micro_usd or 0,
        possible_duplicate_charges=record.possible_duplicate_charges,
        unpriced=int(result.cost_micro_usd is None),
    )


def same_write(written: RowRecord, wanted: RowRecord) -> bool:
    """Our own write, whose answer was lost; only the heartbeat may have touched it since."""
    return replace(written, lease_until=wanted.lease_until) == wanted


def _next(record: RowRecord, now: float, lease_seconds: float) -> RowRecord:
    """The version after `record`, still held: every move proves that its worker lives."""
    until = max(record.lease_until, now + lease_seconds)
    return replace(record, version=record.version + 1, updated_at=now, lease_until=until)


def send(claim: Claim, endpoint: str, reserve: int, now: float, lease_seconds: float) -> Change:
    record = replace(
        _next(claim.record, now, lease_seconds),
        state=RowState.SENT,
        endpoint=endpoint,
        sent_run=claim.run,
        reserved=reserve,
    )
    return Change(record, budget=reserve)


def call_failed(
    claim: Claim, cost: int, *, maybe_charged: bool, now: float, lease_seconds: float
) -> Change:
    """The call is over. A charge of which only the possibility is known keeps its reservation."""
    before = claim.record
    unknown = maybe_charged and cost == 0
    record = replace(
        _next(before, now, lease_seconds),
        state=RowState.CLAIMED,
        sent_run=None,
        reserved=0,
        spent=before.spent + cost,
        possible_duplicate_charges=before.possible_duplicate_charges + int(maybe_charged),
    )
    return Change(record, budget=0 if unknown else cost - before.reserved)


def release(claim: Claim, now: float, *, refund_attempt: bool) -> Change:
    record = replace(
        claim.record,
        lease_owner=None,
        lease_until=0.0,
        updated_at=now,
        attempts=claim.record.attempts - int(refund_attempt and not claim.attempts_spent),
        version=claim.record.version + 1,
    )
    return Change(record)


def settle(claim: Claim, result: RowResult, now: float) -> Change:
    """The end. Of a reservation only what the call cost stays; all of it if that is not known."""
    before = claim.record
    unknown = before.state is RowState.SENT and result.status is not RowState.SUCCEEDED
    record = replace(
        before,
        state=result.status,
        result=result,
        updated_at=now,
        lease_until=0.0,
        sent_run=None,
        reserved=0,
        possible_duplicate_charges=before.possible_duplicate_charges + int(unknown),
        version=before.version + 1,
    )
    over = 0
    if before.reserved and not unknown and result.cost_micro_usd is not None:
        over = result.cost_micro_usd - before.spent - before.reserved
    return Change(record, {before.run: contribution(record) + MOVE}, budget=over)
