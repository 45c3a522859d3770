"""How the ledger's changes are written: one conditional put, or one transaction.

Items of a job: `row#<key>`, `job`, `budget`, `run#<run>`, `run#<run>#shard#<0-7>`.
"""

import zlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from darkroom.aws.errors import error_code, translate_errors
from darkroom.aws.items import Item, ItemCodec
from darkroom.jobs import Counters
from darkroom.ledger.rows import Change
from darkroom.rows import RowRecord

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from darkroom.aws.items import from_attribute
from darkroom.editor.heartbeat import TIMINGS
from darkroom.errors import ServiceUnavailable
from darkroom.jobs import Checkpoint, Run, Totals
from darkroom.ledger import runs as run_transitions
from darkroom.ledger.runs import JobRecord, RunRecord

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
from collections.abc import Iterator, Mapping
from dataclasses import replace

from darkroom.ledger import rows as row_transitions
from darkroom.ledger.rows import ClaimRequest
from darkroom.rows import Claim, NotClaimed, NotSent, RowMessage, RowResult

SERVICE = "the ledger (DynamoDB)"
SHARDS = 8
ROWS = ItemCodec(RowRecord)
SUMS = tuple(field.name for field in fields(Counters))
_PASSING_REASONS = {
    "None",
    "ProvisionedThroughputExceeded",
    "ThrottlingError",
    "TransactionConflict",
}


class Conflict(Exception):
    """The write met another one on the same items; nothing was written. Try again."""


class Refused(Exception):
    """A condition failed: `item` is the row's as it is, or None when another condition did."""

    def __init__(self, item: Item | None) -> None:
        super().__init__("a condition failed")
        self.item = item


def address(job: str, item: str) -> Item:
    return {"job": {"S": job}, "item": {"S": item}}


def row_item(key: str) -> str:
    return f"row#{key}"


def run_item(run: str) -> str:
    return f"run#{run}"


def shard_prefix(run: str) -> str:
    return f"run#{run}#shard#"


def _shard_item(run: str, key: str) -> str:
    return f"{shard_prefix(run)}{zlib.crc32(key.encode()) % SHARDS}"


def write(
    db: "DynamoDBClient",
    table: str,
    job: str,
    change: Change,
    *,
    before: RowRecord | None,
    limit: int | None = None,
) -> None:
    """Write a row's move if the row is still as it was `before`, with its counters and money.

    Raises Refused, Conflict, ServiceUnavailable.
    """
    put = _put_row(table, job, change.record, before)
    others = [_add(table, job, run, change.record.key, c) for run, c in change.counters.items()]
    if change.budget or limit is not None:
        others.append(_commit(table, job, change.budget, limit))
    try:
        with translate_errors(SERVICE):
            if others:
                writes: list[Any] = [{"Put": put}, *({"Update": other} for other in others)]
                db.transact_write_items(TransactItems=writes)
            else:
                db.put_item(**put)
    except ClientError as error:
        _understand(error)
        raise


def _put_row(table: str, job: str, record: RowRecord, before: RowRecord | None) -> Any:
    put: dict[str, Any] = {
        "TableName": table,
        "Item": address(job, row_item(record.key)) | ROWS.to_item(record),
        "ConditionExpression": "attribute_not_exists(#item)",
        "ExpressionAttributeNames": {"#item": "item"},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }
    if before is None:
        return put
    put["ConditionExpression"] = "#version = :version"
    put["ExpressionAttributeNames"] = {"#version": "version"}
    put["ExpressionAttributeValues"] = {":version": {"N": str(before.version)}}
    if record.lease_owner not in (None, before.lease_owner):
        # The heartbeat renews a lease without a new version: see that it did not.
        put["ConditionExpression"] += " AND (attribute_not_exists(#until) OR #until <= :now)"
        put["ExpressionAttributeNames"]["#until"] = "lease_until"
        put["ExpressionAttributeValues"][":now"] = {"N": repr(record.updated_at)}
    return put


def _add(table: str, job: str, run: str, key: str, counters: Counters) -> Any:
    changed = {name: getattr(counters, name) for name in SUMS if getattr(counters, name)}
    return {
        "TableName": table,
        "Key": address(job, _shard_item(run, key)),
        "UpdateExpression": "ADD " + ", ".join(f"#{name} :{name}" for name in changed),
        "ExpressionAttributeNames": {f"#{name}": name for name in changed},
        "ExpressionAttributeValues": {f":{n}": {"N": str(v)} for n, v in changed.items()},
    }


def _commit(table: str, job: str, amount: int, limit: int | None) -> Any:
    update: dict[str, Any] = {
        "TableName": table,
        "Key": address(job, "budget"),
        "UpdateExpression": "ADD committed :amount",
        "ExpressionAttributeValues": {":amount": {"N": str(amount)}},
    }
    if limit is not None:
        room = "committed <= :room"
        if amount <= limit:
            room = f"attribute_not_exists(committed) OR {room}"
        update["ConditionExpression"] = room
        update["ExpressionAttributeValues"][":room"] = {"N": str(limit - amount)}
    return update


def _understand(error: ClientError) -> None:
    """Raises Refused or Conflict if that is what the error tells."""
    response: Any = error.response
    if error_code(error) == "ConditionalCheckFailedException":
        raise Refused(response.get("Item")) from error
    if error_code(error) != "TransactionCanceledException":
        return
    reasons = response.get("CancellationReasons", [])
    codes = [reason.get("Code", "None") for reason in reasons]
    if codes and codes[0] == "ConditionalCheckFailed":
        raise Refused(reasons[0].get("Item")) from error
    if "ConditionalCheckFailed" in codes:
        raise Refused(None) from error
    if set(codes) <= _PASSING_REASONS:
        raise Conflict from error


# The ledger's jobs and runs in DynamoDB: read, decide as the pure moves say, compare and swap.


_TRIES = 10
_jobs = ItemCodec(JobRecord)
_runs = ItemCodec(RunRecord)


class RunItems:
    """RunLedger. Raises ServiceUnavailable, as all adapters do."""

    def __init__(
        self,
        dynamodb: "DynamoDBClient",
        table: str,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        lease_seconds: float = TIMINGS.lease,
    ) -> None:
        self._db = dynamodb
        self._table = table
        self._now = now
        self._sleep = sleep
        self._lease_seconds = lease_seconds  # that each move of a row gives it anew

    def start(self, run: Run, lease_seconds: float) -> Run | None:
        for attempt in range(_TRIES):
            current = self._job(run.job)
            if current is not None and current.run == run.run:
                return self._take_over(run, lease_seconds)
            known = self._record(run.job, run.run) is not None
            if known or (
                current is not None and not run_transitions.is_newer(run.sequencer, current)
            ):
                return None
            spent = self._unbudgeted(run.job) if current else 0
            record = run_transitions.start(run, current, spent, self._now() + lease_seconds)
            if self._make_current(record, current):
                return record.run
            self._pause(attempt)
        raise ServiceUnavailable(f"job {run.job} is started by too many uploads at once")

    def checkpoint(self, run: Run, checkpoint: Checkpoint, lease_seconds: float) -> bool:
        if not self._is_current(run):
            return False
        until = self._now() + lease_seconds
        self._change(run, lambda record: run_transitions.checkpoint(record, checkpoint, until))
        return True

    def finish_split(self, run: Run, totals: Totals, warnings: Sequence[str]) -> None:
        self._change(run, lambda record: run_transitions.finish_split(record, totals, warnings))

    def fail(self, run: Run, reason: str) -> None:
        now = self._now()
        self._change(run, lambda record: run_transitions.fail(record, reason, now))

    def stop(self, job: str) -> Run | None:
        run = self.current(job)
        return None if run is None else self._change(run, run_transitions.stop)

    def reopen(self, job: str, run: str) -> None:
        """Rows were redriven into the run: it goes on."""
        for attempt in range(_TRIES):
            record = self._record(job, run)
            opened = run_transitions.reopen(record) if record else None
            if opened is None or self._swap(opened):
                return
            self._pause(attempt)

    def current(self, job: str) -> Run | None:
        current = self._job(job)
        record = self._record(job, current.run) if current else None
        return record.run if record else None

    def counters(self, job: str, run: str) -> Counters:
        return _sum(self._items(job, shard_prefix(run)))

    def report_due(self, job: str) -> bool:
        current = self._job(job)
        return current is not None and run_transitions.report_due(*self._snapshot(job, current.run))

    def begin_report(self, run: Run, lease_seconds: float, owner: str = "") -> bool:
        for attempt in range(_TRIES):
            if not self._is_current(run):
                return False
            record, counters = self._snapshot(run.job, run.run)
            begun, new = run_transitions.begin_report(
                record, counters, owner, self._now(), lease_seconds
            )
            # Eight items are not read at one moment; two equal readings are as good as that.
            if begun and self.counters(run.job, run.run) != counters:
                continue
            if new is None or self._swap(new):
                return begun
            self._pause(attempt)
        raise ServiceUnavailable(f"the counters of job {run.job} change too fast to report them")

    def finish_report(self, run: Run, finished_at: float) -> bool:
        for attempt in range(_TRIES):
            record, counters = self._snapshot(run.job, run.run)
            true, new = run_transitions.finish_report(record, counters, finished_at)
            if self._swap(new):
                return true
            self._pause(attempt)
        raise ServiceUnavailable(f"the report of job {run.job} could not be booked")

    def _take_over(self, run: Run, lease_seconds: float) -> Run | None:
        record = self._record(run.job, run.run)
        if record is None:
            return None
        taken = run_transitions.take_over_split(record, self._now(), lease_seconds)
        return taken.run if taken is not None and self._swap(taken) else None

    def _make_current(self, record: RunRecord, before: JobRecord | None) -> bool:
        """The new run and the job's word of it in one transaction; False: another was faster."""
        run = record.run
        old = before.version if before else None
        version = 0 if old is None else old + 1
        job = JobRecord(run.job, run.run, run.number, run.sequencer, version)
        puts: list[Any] = [
            {"Put": self._put(record.run.job, run_item(run.run), _runs.to_item(record), None)},
            {"Put": self._put(run.job, "job", _jobs.to_item(job), old)},
        ]
        try:
            with translate_errors(SERVICE):
                self._db.transact_write_items(TransactItems=puts)
        except ClientError as error:
            if error_code(error) != "TransactionCanceledException":
                raise
            now_current = self._job(run.job)  # our own write, if only its answer was lost
            return now_current == job and self._record(run.job, run.run) == record
        return True

    def _change(self, run: Run, move: Callable[[RunRecord], RunRecord | None]) -> Run | None:
        for attempt in range(_TRIES):
            record = self._record(run.job, run.run)
            changed = move(record) if record else None
            if changed is None:
                return None
            if self._swap(changed):
                return changed.run
            self._pause(attempt)
        raise ServiceUnavailable(f"run {run.run} of job {run.job} is written by too many at once")

    def _swap(self, record: RunRecord) -> bool:
        """Write over the version before; False when somebody else did."""
        job, item = record.run.job, run_item(record.run.run)
        put = self._put(job, item, _runs.to_item(record), record.version - 1)
        try:
            with translate_errors(SERVICE):
                self._db.put_item(**put)
        except ClientError as error:
            if error_code(error) != "ConditionalCheckFailedException":
                raise
            return self._record(job, record.run.run) == record  # only its answer was lost
        return True

    def _put(self, job: str, item: str, attributes: Item, version: int | None) -> Any:
        put: dict[str, Any] = {
            "TableName": self._table,
            "Item": attributes | address(job, item),
            "ConditionExpression": "attribute_not_exists(#key)",
            "ExpressionAttributeNames": {"#key": "item"},
        }
        if version is not None:
            # Version 0 is a default, and those are left out of items.
            missing = "attribute_not_exists(#key) OR " if version == 0 else ""
            put["ConditionExpression"] = f"{missing}#key = :version"
            put["ExpressionAttributeNames"] = {"#key": "version"}
            put["ExpressionAttributeValues"] = {":version": {"N": str(version)}}
        return put

    def _is_current(self, run: Run) -> bool:
        current = self._job(run.job)
        return current is not None and current.run == run.run

    def _job(self, job: str) -> JobRecord | None:
        item = self._read(job, "job")
        return _jobs.from_item(item) if item else None

    def _record(self, job: str, run: str) -> RunRecord | None:
        item = self._read(job, run_item(run))
        return _runs.from_item(item) if item else None

    def _read(self, job: str, item: str) -> Any:
        with translate_errors(SERVICE):
            answer = self._db.get_item(
                TableName=self._table, Key=address(job, item), ConsistentRead=True
            )
        return answer.get("Item")

    def _snapshot(self, job: str, run: str) -> tuple[RunRecord, Counters]:
        """The run and its counters, in one read of about 2 KB."""
        items = list(self._items(job, run_item(run)))
        (mine,) = [i for i in items if i["item"]["S"] == run_item(run)]
        shards = [i for i in items if i["item"]["S"].startswith(shard_prefix(run))]
        return _runs.from_item(mine), _sum(shards)

    def _unbudgeted(self, job: str) -> int:
        """Micro-USD that runs without a budget have cost."""
        items = list(self._items(job, "run#"))
        runs = [_runs.from_item(i) for i in items if "#shard#" not in i["item"]["S"]]
        free = [r.run.run for r in runs if r.run.options.budget_micro_usd is None]
        prefixes = tuple(shard_prefix(run) for run in free)
        return _sum(i for i in items if i["item"]["S"].startswith(prefixes)).cost_micro_usd

    def _items(self, job: str, prefix: str) -> Iterable[Item]:
        with translate_errors(SERVICE):
            pages = self._db.get_paginator("query").paginate(
                TableName=self._table,
                KeyConditionExpression="job = :job AND begins_with(#item, :prefix)",
                ExpressionAttributeNames={"#item": "item"},
                ExpressionAttributeValues={":job": {"S": job}, ":prefix": {"S": prefix}},
                ConsistentRead=True,
            )
            for page in pages:
                yield from page["Items"]

    def _pause(self, attempt: int) -> None:
        self._sleep(min(0.02 * 2.0**attempt, 1.0))


def _sum(shards: Iterable[Item]) -> Counters:
    total = Counters()
    for shard in shards:
        total += Counters(**{n: from_attribute(shard[n]) for n in SUMS if n in shard})
    return total


# The ledger in DynamoDB. Its rows: the pure moves, written by compare and swap.
#
# A row has an item from its first claim on. Whoever holds a row knows it, so a move is one
# conditional put, or one transaction where counters or money change; a failed condition brings the
# row as it is along.


_TRIES_ledger_table = 8  # of a write that meets others on the same items


class LedgerTable(RunItems):
    """RowLedger, RunLedger and Budget on one table. Thread-safe."""

    def get_many(self, job: str, keys: Sequence[str]) -> Mapping[str, RowRecord]:
        if not keys:
            return {}
        wanted: list[Any] = [address(job, row_item(key)) for key in dict.fromkeys(keys)]
        found: dict[str, RowRecord] = {}
        for attempt in range(_TRIES_ledger_table):
            with translate_errors(SERVICE):
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
        with translate_errors(SERVICE):
            for page in pages:
                yield from map(ROWS.from_item, page["Items"])

    def claim(
        self, message: RowMessage, run: Run, owner: str, lease_seconds: float
    ) -> Claim | NotClaimed:
        record: RowRecord | None = None  # most rows are new: guess so, and save a read
        for attempt in range(_TRIES_ledger_table):
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
            with translate_errors(SERVICE):
                self._renew(claim, self._now() + lease_seconds)

    def mark_sent(
        self, claim: Claim, endpoint: str, *, reserve: int = 0, limit: int | None = None
    ) -> Claim | NotSent:
        amount = reserve if limit is not None else 0
        change = row_transitions.send(claim, endpoint, amount, self._now(), self._lease_seconds)
        moved = self._move(claim, change, limit=limit)
        if moved is None:
            return NotSent.LEASE_LOST
        return NotSent.NO_BUDGET if moved is claim else moved

    def mark_failed_call(
        self, claim: Claim, *, cost_micro_usd: int = 0, maybe_charged: bool = False
    ) -> Claim | None:
        change = row_transitions.call_failed(
            claim,
            cost_micro_usd,
            maybe_charged=maybe_charged,
            now=self._now(),
            lease_seconds=self._lease_seconds,
        )
        return self._move(claim, change)

    def release(self, claim: Claim, *, refund_attempt: bool) -> None:
        self._move(
            claim, row_transitions.release(claim, self._now(), refund_attempt=refund_attempt)
        )

    def settle(self, claim: Claim, result: RowResult) -> bool:
        return self._move(claim, row_transitions.settle(claim, result, self._now())) is not None

    def committed(self, job: str) -> int:
        with translate_errors(SERVICE):
            answer = self._db.get_item(
                TableName=self._table, Key=address(job, "budget"), ConsistentRead=True
            )
        return int(answer.get("Item", {}).get("committed", {}).get("N", "0"))

    def _move(self, claim: Claim, change: Change, *, limit: int | None = None) -> Claim | None:
        """The claim after the move; None: lease lost; the same one: no room in the budget."""
        moved = replace(claim, record=change.record)
        for attempt in range(_TRIES_ledger_table):
            try:
                write(self._db, self._table, claim.job, change, before=claim.record, limit=limit)
            except Refused as refused:
                if refused.item is None:
                    return claim
                written = ROWS.from_item(refused.item)
                return moved if row_transitions.same_write(written, change.record) else None
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
            if error_code(error) != "ConditionalCheckFailedException":
                raise
