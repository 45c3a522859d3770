"""The moves of a row from state to state, as pure functions; an adapter only compares and swaps.

Every move takes the record as it is and gives the record as it shall be, with what changes in the
counters of runs and in the job's budget. Whoever writes it does so in one transaction, and only
if the record is still at the version the move started from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from darkroom.jobs import Counters, Run
from darkroom.rows import Claim, NotClaimed, RowMessage, RowRecord, RowResult, RowState

NO_COUNTERS: Mapping[str, Counters] = MappingProxyType({})
MOVE = Counters(transitions=1)


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


# Which delivery gets a row, as a pure function of the row, the message and the job's current run.
#
# Messages come twice, late, in any order, from earlier uploads and from the dead-letter queue. The
# answer is a claim with which to work, or what becomes of the message.


@dataclass(frozen=True, slots=True)
class Decision:
    """What a message gets, and what has to be written for it (None: nothing)."""

    verdict: Claim | NotClaimed
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A delivery that asks for its row. `run` is the job's current run, `now` in Unix seconds."""

    message: RowMessage
    run: Run
    owner: str
    now: float
    lease_seconds: float

    def decide(self, record: RowRecord | None) -> Decision:
        """Whether the delivery gets the row. Total: there is an answer for every record."""
        if record is None:
            if self.message.run != self.run.run:
                return Decision(NotClaimed.SUPERSEDED)
            return self._grant(self._fresh())
        return self._decide_known(record)

    def _decide_known(self, record: RowRecord) -> Decision:
        if self._granted_already(record):
            return Decision(self._claim(record))
        if record.run_number > self.run.number:
            return Decision(NotClaimed.HELD)  # our view of the job is old: look again later
        if not (self._of_current_run or self._redrives(record) or self._brought_here(record)):
            return Decision(NotClaimed.SUPERSEDED)
        return self._settled(record) if record.state.terminal else self._take_over(record)

    def _settled(self, record: RowRecord) -> Decision:
        if record.state is RowState.DEAD and self._redrives(record):
            return self._revive(record)
        if not self._of_current_run:
            return Decision(NotClaimed.SETTLED)
        if self._here(record):
            return self._settled_here(record)
        same = self._asks_the_same(record)
        if same and record.state is RowState.SUCCEEDED and not self.message.redo:
            return self._adopt(record)
        return self._grant(self._anew(record))

    @property
    def _of_current_run(self) -> bool:
        return self.message.run == self.run.run

    def _redrives(self, record: RowRecord) -> bool:
        """A copy from the dead-letter queue that is newer than all the row has seen."""
        return self.message.generation > record.generation and self._asks_the_same(record)

    def _asks_the_same(self, record: RowRecord) -> bool:
        return self.message.request.fingerprint() == record.fingerprint

    def _here(self, record: RowRecord) -> bool:
        return record.run == self.run.run

    def _brought_here(self, record: RowRecord) -> bool:
        """An earlier run's message for what this run does: it came here with it, or before it."""
        same_generation = self.message.generation == record.generation
        return self._here(record) and same_generation and self._asks_the_same(record)

    def _queued_here(self, record: RowRecord) -> bool:
        """The splitter's own message for a row that was redriven into this run before."""
        return record.redriven and self._of_current_run and self.message.generation == 0

    def _granted_already(self, record: RowRecord) -> bool:
        """Our claim was written and only the service's answer was lost."""
        return (
            record.lease_owner == self.owner
            and not record.state.terminal
            and record.lease_until > self.now
        )

    def _take_over(self, record: RowRecord) -> Decision:
        if record.lease_until > self.now:
            return Decision(NotClaimed.HELD)
        queued = self._queued_here(record)
        if self._here(record) and not queued and not self._asks_the_same(record):
            return Decision(NotClaimed.SUPERSEDED)  # an old copy: the row asks for more by now
        counters = {self.run.run: Counters(redriven=-1, transitions=1)} if queued else NO_COUNTERS
        record = replace(record, redriven=record.redriven and not queued)
        redo = self.message.redo and not self._here(record)
        if redo or not self._asks_the_same(record):
            return self._grant(self._anew(record), counters)
        if not self._here(record):
            return self._bring_here(replace(record, attempts=0))
        if self._redrives(record):
            record = replace(record, attempts=0, generation=self.message.generation)
        return self._grant(record, counters)

    def _bring_here(self, record: RowRecord, undo: Counters | None = None) -> Decision:
        """An unsettled row of an earlier run; by a redrive it counts beyond what was queued."""
        redriven = not self._of_current_run
        counters = {self.run.run: Counters(redriven=1, transitions=1)} if redriven else {}
        if undo is not None:
            counters[record.run] = undo
        moved = replace(
            record,
            run=self.run.run,
            run_number=self.run.number,
            redriven=redriven,
            generation=max(record.generation, self.message.generation),
        )
        return self._grant(moved, counters)

    def _revive(self, record: RowRecord) -> Decision:
        undo = -contribution(record) + MOVE
        alive = replace(
            record,
            state=RowState.CLAIMED,
            attempts=0,
            generation=self.message.generation,
            result=None,
        )
        if not self._here(record):
            return self._bring_here(alive, undo)
        return self._grant(alive, {record.run: undo})

    def _settled_here(self, record: RowRecord) -> Decision:
        if not self._queued_here(record):
            return Decision(NotClaimed.SETTLED)
        counters = Counters(redriven=-1, transitions=1)
        if self._asks_the_same(record):
            queued = replace(record, redriven=False, version=record.version + 1)
            return Decision(NotClaimed.SETTLED, Change(queued, {self.run.run: counters}))
        undo = counters + -contribution(record)
        return self._grant(self._anew(record, keep_costs=True), {self.run.run: undo})

    def _adopt(self, record: RowRecord) -> Decision:
        """It succeeded for an earlier upload while this one was being queued: count it here."""
        share = contribution(record)
        moved = replace(
            record,
            run=self.run.run,
            run_number=self.run.number,
            redriven=False,
            version=record.version + 1,
        )
        counters = {record.run: -share + MOVE, self.run.run: share + MOVE}
        return Decision(NotClaimed.SETTLED, Change(moved, counters))

    def _fresh(self) -> RowRecord:
        return RowRecord(
            key=self.message.key,
            row=self.message.row,
            state=RowState.CLAIMED,
            fingerprint=self.message.request.fingerprint(),
            run=self.run.run,
            run_number=self.run.number,
            generation=self.message.generation,
        )

    def _anew(self, record: RowRecord, *, keep_costs: bool = False) -> RowRecord:
        """Start over. What an unsettled row has cost stays with it; a settled one was counted."""
        carry = keep_costs or not record.state.terminal
        return replace(
            self._fresh(),
            generation=max(record.generation, self.message.generation),
            possible_duplicate_charges=(record.possible_duplicate_charges if carry else 0)
            + int(record.state is RowState.SENT),
            spent=_known_cost(record) if carry else 0,
            version=record.version,
        )

    def _grant(self, record: RowRecord, counters: Mapping[str, Counters] = NO_COUNTERS) -> Decision:
        spent = record.attempts >= self.run.options.max_attempts
        granted = replace(
            record,
            row=self.message.row,
            attempts=record.attempts + (0 if spent else 1),
            lease_owner=self.owner,
            lease_until=self.now + self.lease_seconds,
            updated_at=self.now,
            version=record.version + 1,
        )
        claim = replace(self._claim(granted), attempts_spent=spent)
        return Decision(claim, Change(granted, counters))

    def _claim(self, record: RowRecord) -> Claim:
        return Claim(job=self.message.job, owner=self.owner, record=record)


def _known_cost(record: RowRecord) -> int:
    """What a row has cost so far; a result's cost includes what was spent before it."""
    return record.spent if record.result is None else record.result.cost_micro_usd or record.spent
