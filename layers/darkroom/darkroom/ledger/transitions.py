"""The part of RowLedger that is the same for the table and the ledger in memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from darkroom.errors import Reason
from darkroom.ledger import batches, rows
from darkroom.ledger.rows import Change
from darkroom.rows import Claim, NotSent, RowRecord, RowResult, Submission


class RowTransitions(ABC):
    """Changes a row that is claimed or in a batch by one transition, which a subclass stores."""

    _now: Callable[[], float]
    _lease_seconds: float  # the least that a lease lasts from a call, sent or failed

    @abstractmethod
    def _apply(self, claim: Claim, change: Change, *, limit: int | None = None) -> Claim | NotSent:
        """Store the change if the row is still as in the claim, and its budget has room.

        Returns the claim after the change, or why it was not made.
        """

    def mark_sent(
        self, claim: Claim, endpoint: str, *, reserve: int = 0, limit: int | None = None
    ) -> Claim | NotSent:
        amount = reserve if limit is not None else 0
        change = rows.send(claim, endpoint, amount, self._now(), self._lease_seconds)
        return self._apply(claim, change, limit=limit)

    def mark_submitted(
        self,
        claim: Claim,
        batch: str,
        submission: Submission,
        endpoint: str,
        *,
        reserve: int = 0,
        limit: int | None = None,
    ) -> Claim | NotSent:
        amount = reserve if limit is not None else 0
        change = batches.submit_row(
            claim, batch, submission, endpoint=endpoint, reserve=amount, now=self._now()
        )
        return self._apply(claim, change, limit=limit)

    def take_back(
        self,
        job: str,
        record: RowRecord,
        *,
        cost_micro_usd: int = 0,
        maybe_charged: bool = False,
        refund_attempt: bool = False,
    ) -> Claim | None:
        change = batches.take_back_row(
            record,
            self._now(),
            cost=cost_micro_usd,
            maybe_charged=maybe_charged,
            refund_attempt=refund_attempt,
        )
        after = self._apply(Claim(job, "", record), change)
        return after if isinstance(after, Claim) else None

    def mark_failed_call(
        self, claim: Claim, *, cost_micro_usd: int = 0, maybe_charged: bool = False
    ) -> Claim | None:
        change = rows.call_failed(
            claim,
            cost_micro_usd,
            maybe_charged=maybe_charged,
            now=self._now(),
            lease_seconds=self._lease_seconds,
        )
        after = self._apply(claim, change)
        return after if isinstance(after, Claim) else None

    def release(self, claim: Claim, *, refund_attempt: bool) -> None:
        change = rows.release(claim, self._now(), refund_attempt=refund_attempt)
        self._apply(claim, change)

    def settle(self, claim: Claim, result: RowResult) -> bool:
        change = rows.settle(claim, result, self._now())
        return isinstance(self._apply(claim, change), Claim)

    def drop(self, job: str, record: RowRecord, reason: Reason, detail: str) -> bool:
        claim = Claim(job, record.lease_owner or "", record)
        change = rows.drop(record, self._now(), reason, detail)
        return isinstance(self._apply(claim, change), Claim)
