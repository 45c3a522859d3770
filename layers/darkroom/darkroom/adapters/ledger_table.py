"""The ledger in DynamoDB. Its rows: the pure moves, written by compare and swap.

A row has an item from its first claim on. Whoever holds a row knows it, so a move is one
conditional put, or one transaction where counters or money change; a failed condition brings the
row as it is along.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from botocore.exceptions import ClientError

from darkroom.adapters.aws_errors import code_of, translated
from darkroom.adapters.ledger_runs import RunItems
from darkroom.adapters.ledger_writes import (
    ROWS,
    SERVICE,
    Conflict,
    Refused,
    address,
    row_item,
    write,
)
from darkroom.errors import ServiceUnavailable
from darkroom.jobs import Run
from darkroom.ledger import row_moves as rowmoves
from darkroom.ledger.claiming import ClaimRequest
from darkroom.ledger.row_moves import Change
from darkroom.ledger.values import Claim, NotClaimed, NotSent, RowRecord, RowResult
from darkroom.rows import RowMessage

_TRIES = 8  # of a write that meets others on the same items


class LedgerTable(RunItems):
    """RowLedger, RunLedger and Budget on one table. Thread-safe."""

    def get_many(self, job: str, keys: Sequence[str]) -> Mapping[str, RowRecord]:
        if not keys:
            return {}
        wanted: list[Any] = [address(job, row_item(key)) for key in dict.fromkeys(keys)]
        found: dict[str, RowRecord] = {}
        for attempt in range(_TRIES):
            with translated(SERVICE):
                answer = self._db.batch_get_item(
                    RequestItems={self._table: {"Keys": wanted, "ConsistentRead": True}}
                )
            for item in answer["Responses"].get(self._table, []):
                record = ROWS.from_item(item)
                found[record.key] = record
            left = answer["UnprocessedKeys"].get(self._table)
            wanted = list(left["Keys"]) if left else []
            if not wanted:
                return found
            self._pause(attempt)
        raise ServiceUnavailable(f"{SERVICE} left keys unread: too many requests")

    def all(self, job: str) -> Iterator[RowRecord]:
        pages = self._db.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="job = :job AND begins_with(#item, :rows)",
            ExpressionAttributeNames={"#item": "item"},
            ExpressionAttributeValues={":job": {"S": job}, ":rows": {"S": "row#"}},
            ConsistentRead=True,
        )
        with translated(SERVICE):
            for page in pages:
                yield from map(ROWS.from_item, page["Items"])

    def claim(
        self, message: RowMessage, run: Run, owner: str, lease_seconds: float
    ) -> Claim | NotClaimed:
        record: RowRecord | None = None  # most rows are new: guess so, and save a read
        for attempt in range(_TRIES):
            request = ClaimRequest(message, run, owner, self._now(), lease_seconds)
            decision = request.decide(record)
            if decision.change is None:
                if record is not None:
                    return decision.verdict
                record = self._row(message.job, message.key)
                if record is None:
                    return decision.verdict
                continue
            try:
                write(self._db, self._table, message.job, decision.change, before=record)
            except Refused as refused:
                record = ROWS.from_item(refused.item) if refused.item else None
            except Conflict:
                self._pause(attempt)
            else:
                if decision.change.counters:
                    self.reopen(message.job, decision.change.record.run)
                return decision.verdict
        raise ServiceUnavailable(f"row {message.key} is wanted by too many workers at once")

    def _row(self, job: str, key: str) -> RowRecord | None:
        item = self._read(job, row_item(key))
        return ROWS.from_item(item) if item else None

    def renew(self, claims: Sequence[Claim], lease_seconds: float) -> None:
        for claim in claims:
            with translated(SERVICE):
                self._renew(claim, self._now() + lease_seconds)

    def mark_sent(
        self, claim: Claim, endpoint: str, *, reserve: int = 0, limit: int | None = None
    ) -> Claim | NotSent:
        amount = reserve if limit is not None else 0
        change = rowmoves.send(claim, endpoint, amount, self._now(), self._lease_seconds)
        moved = self._move(claim, change, limit=limit)
        if moved is None:
            return NotSent.LEASE_LOST
        return NotSent.NO_BUDGET if moved is claim else moved

    def mark_failed_call(
        self, claim: Claim, *, cost_micro_usd: int = 0, maybe_charged: bool = False
    ) -> Claim | None:
        change = rowmoves.call_failed(
            claim,
            cost_micro_usd,
            maybe_charged=maybe_charged,
            now=self._now(),
            lease_seconds=self._lease_seconds,
        )
        return self._move(claim, change)

    def release(self, claim: Claim, *, refund_attempt: bool) -> None:
        self._move(claim, rowmoves.release(claim, self._now(), refund_attempt=refund_attempt))

    def settle(self, claim: Claim, result: RowResult) -> bool:
        return self._move(claim, rowmoves.settle(claim, result, self._now())) is not None

    def committed(self, job: str) -> int:
        with translated(SERVICE):
            answer = self._db.get_item(
                TableName=self._table, Key=address(job, "budget"), ConsistentRead=True
            )
        return int(answer.get("Item", {}).get("committed", {}).get("N", "0"))

    def _move(self, claim: Claim, change: Change, *, limit: int | None = None) -> Claim | None:
        """The claim after the move; None: lease lost; the same one: no room in the budget."""
        moved = replace(claim, record=change.record)
        for attempt in range(_TRIES):
            try:
                write(self._db, self._table, claim.job, change, before=claim.record, limit=limit)
            except Refused as refused:
                if refused.item is None:
                    return claim
                written = ROWS.from_item(refused.item)
                return moved if rowmoves.same_write(written, change.record) else None
            except Conflict:
                self._pause(attempt)
            else:
                return moved
        raise ServiceUnavailable(f"row {claim.key} could not be written: too many at once")

    def _renew(self, claim: Claim, until: float) -> None:
        try:
            self._db.update_item(
                TableName=self._table,
                Key=address(claim.job, row_item(claim.key)),
                UpdateExpression="SET lease_until = :until",
                ConditionExpression="lease_owner = :owner AND lease_until > :zero",
                ExpressionAttributeValues={
                    ":until": {"N": repr(until)},
                    ":owner": {"S": claim.owner},
                    ":zero": {"N": "0"},
                },
            )
        except ClientError as error:
            if code_of(error) != "ConditionalCheckFailedException":
                raise
