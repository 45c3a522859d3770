"""State transitions of a row, as pure functions: claim, send, release, settle.

Each transition takes the record as it is and returns a `Change`: the new record, and what it adds
to the counters of runs and to the job's budget. An adapter writes a change in one transaction, and
only if the record still has the version that the transition started from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from darkroom.csv_input.names import is_content_key
from darkroom.errors import Reason
from darkroom.jobs import Counters, Run, RunState
from darkroom.rows import Claim, NotClaimed, RowMessage, RowRecord, RowResult, RowState

LEASE_SECONDS = 90.0  # three heartbeats: a crash is repaired within two minutes

_NO_COUNTERS: Mapping[str, Counters] = MappingProxyType({})
_ONE_TRANSITION = Counters(transitions=1)
_MAX_LEFT = 20  # batches: bounds the row's item


@dataclass(frozen=True, slots=True)
class Change:
    """What a transition writes. `counters` by run; `budget` is added to the job's commitment."""

    record: RowRecord
    counters: Mapping[str, Counters] = field(default=_NO_COUNTERS)
    budget: int = 0
    reserved: int = 0  # added to what the job has reserved for calls under way


def contribution(record: RowRecord) -> Counters:
    """What a settled row adds to the counters of its run."""
    result = record.result
    if result is None:
        return Counters()
    return Counters(
        **{result.status.value: 1},
        fallback=int(result.fallback),
        attempts=record.attempts,
        cost_micro_usd=result.cost_micro_usd or 0,
        possible_duplicate_charges=record.possible_duplicate_charges,
        unpriced=int(result.cost_micro_usd is None),
    )


def same_write(written: RowRecord, wanted: RowRecord) -> bool:
    """True for our own write whose response was lost; the heartbeat may have renewed its lease."""
    return replace(written, lease_until=wanted.lease_until) == wanted


def send(claim: Claim, endpoint: str, reserve: int, now: float, lease_seconds: float) -> Change:
    """A call is about to be made, with `reserve` micro-USD set aside for it."""
    record = replace(
        _renewed(claim.record, now, lease_seconds),
        state=RowState.SENT,
        endpoint=endpoint,
        sent_run=claim.run,
        reserved=reserve,
    )
    return Change(record, budget=reserve, reserved=reserve)


def call_failed(
    claim: Claim, cost: int, *, maybe_charged: bool, now: float, lease_seconds: float
) -> Change:
    """The call gave no image. A possible charge of unknown cost keeps its reservation."""
    before = claim.record
    unknown = maybe_charged and cost == 0
    record = replace(
        _renewed(before, now, lease_seconds),
        state=RowState.CLAIMED,
        sent_run=None,
        reserved=0,
        spent=before.spent + cost,
        possible_duplicate_charges=before.possible_duplicate_charges + int(maybe_charged),
    )
    budget = 0 if unknown else cost - before.reserved
    return Change(record, budget=budget, reserved=-before.reserved)


def release(claim: Claim, now: float, *, refund_attempt: bool) -> Change:
    attempts = claim.record.attempts - int(refund_attempt and not claim.attempts_spent)
    return Change(_next(claim.record, now, lease_owner=None, lease_until=0.0, attempts=attempts))


def settle(claim: Claim, result: RowResult, now: float) -> Change:
    """The row's outcome. The budget keeps what the call cost, or all of the reservation if unknown.

    A sent call without a recorded outcome counts as a possible duplicate charge.
    """
    before = claim.record
    unknown = before.state is RowState.SENT and result.status is not RowState.SUCCEEDED
    record = _next(
        before,
        now,
        state=result.status,
        result=result,
        lease_until=0.0,
        sent_run=None,
        reserved=0,
        submission=None,
        possible_duplicate_charges=before.possible_duplicate_charges + int(unknown),
    )
    budget = 0
    if before.reserved and not unknown and result.cost_micro_usd is not None:
        budget = result.cost_micro_usd - before.spent - before.reserved
    counters = {before.run: contribution(record) + _ONE_TRANSITION}
    return Change(record, counters, budget=budget, reserved=-before.reserved)


def drop(record: RowRecord, now: float, reason: Reason, detail: str) -> Change:
    """End a row that no worker will end. Its call, if one was sent, may be charged."""
    sent = record.state in (RowState.SENT, RowState.SUBMITTED)
    ended = _next(
        record,
        now,
        state=RowState.FAILED,
        result=RowResult(
            RowState.FAILED,
            Reason.OUTCOME_UNKNOWN if sent else reason,
            detail,
            endpoint=record.endpoint if sent else None,
            cost_micro_usd=record.spent,
            mode="batch" if record.state is RowState.SUBMITTED else "live",
        ),
        lease_owner=None,
        lease_until=0.0,
        sent_run=None,
        reserved=0,
        submission=None,
        possible_duplicate_charges=record.possible_duplicate_charges + int(sent),
    )
    counters = {record.run: contribution(ended) + _ONE_TRANSITION}
    return Change(ended, counters, reserved=-record.reserved)


def discard_result(record: RowRecord, image: str, now: float) -> Change | None:
    """The row's `image` is about to be replaced by another row's. None if it is not in its result.

    What the row has cost stays counted.
    """
    result = record.result
    if record.state is not RowState.SUCCEEDED or result is None or image not in result.outputs:
        return None
    detail = "a later upload gave the name of its image to another row"
    replaced = replace(
        result, status=RowState.FAILED, reason=Reason.SUPERSEDED, detail=detail, outputs=()
    )
    ended = _next(record, now, state=RowState.FAILED, result=replaced)
    changed = contribution(ended) + -contribution(record)
    return Change(ended, {record.run: changed + _ONE_TRANSITION})


def _renewed(record: RowRecord, now: float, lease_seconds: float) -> RowRecord:
    """The next version of a claimed row. Every transition proves that its worker is alive."""
    return _next(record, now, lease_until=max(record.lease_until, now + lease_seconds))


def _next(record: RowRecord, now: float, **changes: Any) -> RowRecord:  # fields of RowRecord
    return replace(record, version=record.version + 1, updated_at=now, **changes)


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of a claim request, and what has to be written for it (None: nothing)."""

    verdict: Claim | NotClaimed
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A delivered message that requests its row: decides whether it gets a claim.

    Messages arrive twice, late, in any order, from earlier uploads and from the dead-letter queue.
    `run` is the job's current run, `now` in Unix seconds.
    """

    message: RowMessage
    run: Run
    owner: str
    now: float
    lease_seconds: float

    def decide(self, record: RowRecord | None) -> Decision:
        """Whether the delivery gets the row, whatever the state of its record."""
        if record is not None and record.run_number > self.run.number:
            return Decision(NotClaimed.HELD)  # `run` is outdated: retry with the newer one
        if self.message.run != self.run.run or self.run.state is RunState.FAILED:
            return Decision(self._reject_outdated(record))
        if self._is_ended(record):
            return Decision(NotClaimed.SETTLED)
        if record is None:
            return self._grant(self._new_record())
        if self._already_granted(record):
            return Decision(Claim(self.message.job, self.owner, record))
        return self._decide_settled(record) if record.state.terminal else self._decide_open(record)

    def _is_ended(self, record: RowRecord | None) -> bool:
        """The job was stopped, and has ended without the rows that this run had not claimed."""
        stopped = self.run.state is RunState.STOPPED and self.run.lost > 0
        return stopped and (record is None or not self._in_current_run(record))

    def _reject_outdated(self, record: RowRecord | None) -> NotClaimed:
        """A message of an earlier upload: the current one has queued all rows it wants edited.

        A dead letter is kept for its user, unless the row has succeeded or was queued again.
        """
        if self.message.generation == 0:
            return NotClaimed.SUPERSEDED
        if record is not None and (
            record.state is RowState.SUCCEEDED or self._in_current_run(record)
        ):
            return NotClaimed.SETTLED
        return NotClaimed.OUTDATED_LETTER

    def _decide_settled(self, record: RowRecord) -> Decision:
        if self._in_current_run(record):
            redrives = record.state is RowState.DEAD and self._redrives(record)
            return self._redrive(record) if redrives else Decision(NotClaimed.SETTLED)
        succeeded = record.state is RowState.SUCCEEDED
        if succeeded and self._same_request(record) and not self.message.redo:
            return self._transfer_success(record)
        return self._grant(self._restart(record))

    def _decide_open(self, record: RowRecord) -> Decision:
        if record.lease_until > self.now:
            return Decision(NotClaimed.HELD)
        if record.state is RowState.SUBMITTED:
            return self._decide_submitted(record)
        if self._in_current_run(record):
            if self._redrives(record):  # its worker died between the dead letter and the outcome
                return self._grant(self._with_new_attempts(record))
            return self._grant(record)
        if self._same_request(record) and not self.message.redo:
            return self._grant(replace(self._transferred(record), attempts=0))
        return self._grant(self._restart(record), reserved=-record.reserved)

    def _decide_submitted(self, record: RowRecord) -> Decision:
        """Its batch settles the row, also for a later upload that asks for the same.

        A row that is edited anew leaves the batch: what that costs is counted when it has ended.
        """
        if self._in_current_run(record):
            return Decision(NotClaimed.SUBMITTED)
        if self._same_request(record) and not self.message.redo:
            transferred = _next(self._transferred(record), record.updated_at)
            return Decision(NotClaimed.SUBMITTED, Change(transferred))
        left = (*record.left, record.batch)[-_MAX_LEFT:]
        return self._grant(replace(self._restart(record), left=left), reserved=-record.reserved)

    def _redrive(self, record: RowRecord) -> Decision:
        """A dead row starts again with all its attempts; the counters no longer include it."""
        undo = {record.run: -contribution(record) + _ONE_TRANSITION}
        alive = replace(record, state=RowState.CLAIMED, result=None, lease_owner=None)
        return self._grant(self._with_new_attempts(alive), undo)

    def _with_new_attempts(self, record: RowRecord) -> RowRecord:
        return replace(record, attempts=0, crashes=0, generation=self.message.generation)

    def _transfer_success(self, record: RowRecord) -> Decision:
        """Count here a row that succeeded for an earlier upload while this one was being queued."""
        added = contribution(record)
        counters = {
            record.run: -added + _ONE_TRANSITION,
            self.run.run: added + _ONE_TRANSITION,
        }
        transferred = replace(self._transferred(record), version=record.version + 1)
        return Decision(NotClaimed.SETTLED, Change(transferred, counters))

    def _transferred(self, record: RowRecord) -> RowRecord:
        return replace(record, run=self.run.run, run_number=self.run.number)

    def _new_record(self) -> RowRecord:
        return RowRecord(
            key=self.message.key,
            row=self.message.row,
            state=RowState.CLAIMED,
            fingerprint=self.message.request.fingerprint(),
            run=self.run.run,
            name=self.message.name,
            run_number=self.run.number,
            generation=self.message.generation,
        )

    def _restart(self, record: RowRecord) -> RowRecord:
        """Start over. An unsettled row keeps its costs; those of a settled one are counted."""
        keep = not record.state.terminal
        return replace(
            self._new_record(),
            name=record.name if self._keeps_name(record) else self.message.name,
            generation=record.generation,
            possible_duplicate_charges=(record.possible_duplicate_charges if keep else 0)
            + int(record.state is RowState.SENT),
            spent=record.spent if keep else 0,
            left=record.left,
            version=record.version,
        )

    def _keeps_name(self, record: RowRecord) -> bool:
        """An image that is made again replaces the one that is there, wherever its row has moved.

        Under a key by content, the cells that could name the image otherwise are the same.
        """
        has_image = record.state in (RowState.SUCCEEDED, RowState.SENT, RowState.SUBMITTED)
        return has_image and is_content_key(record.key)

    def _grant(
        self,
        record: RowRecord,
        counters: Mapping[str, Counters] = _NO_COUNTERS,
        reserved: int = 0,
    ) -> Decision:
        crashed = record.lease_owner is not None and not record.state.terminal
        # Any row of the dead worker's batch may have been the cause: the first crash costs nothing.
        attempts = record.attempts - int(crashed and record.crashes == 0 and record.attempts > 0)
        spent = attempts >= self.run.options.max_attempts
        granted = _next(
            record,
            self.now,
            row=self.message.row,
            attempts=attempts + (0 if spent else 1),
            crashes=record.crashes + int(crashed),
            lease_owner=self.owner,
            lease_until=self.now + self.lease_seconds,
            batch="",
            submission=None,
        )
        claim = Claim(self.message.job, self.owner, granted, attempts_spent=spent)
        return Decision(claim, Change(granted, counters, reserved=reserved))

    def _in_current_run(self, record: RowRecord) -> bool:
        return record.run == self.run.run

    def _same_request(self, record: RowRecord) -> bool:
        return self.message.request.fingerprint() == record.fingerprint

    def _redrives(self, record: RowRecord) -> bool:
        """A copy from the dead-letter queue, newer than any the row was claimed with."""
        return self.message.generation > record.generation and self._same_request(record)

    def _already_granted(self, record: RowRecord) -> bool:
        """Our claim was written and only the service's response was lost."""
        return (
            record.lease_owner == self.owner
            and not record.state.terminal
            and record.lease_until > self.now
        )
