"""The ledger in DynamoDB: reads a record, applies a transition, writes it by compare-and-swap.

The items of a job (partition key `job`, sort key `item`):

    job                      which run is the current one
    run#<run>                a run
    run#<run>#shard#<0-7>    a share of the run's counters
    row#<key>                a row, from its first claim on
    budget                   micro-USD spent or reserved by runs with a budget

A record is written only if it still has the version that the transition started from. A worker
that holds a row knows its record, so a transition of a row is one write and no read. A write whose
response was lost is recognised when it is repeated.
"""

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from darkroom.aws.errors import (
    CONDITION_FAILED,
    CONDITION_FAILED_REASON,
    TRANSACTION_CANCELLED,
    TRANSIENT_REASONS,
    error_code,
    translate_errors,
)
from darkroom.aws.items import Item, ItemCodec, to_attribute
from darkroom.errors import ServiceUnavailable
from darkroom.jobs import Checkpoint, Counters, Run, Totals
from darkroom.ledger import rows, runs
from darkroom.ledger.rows import LEASE_SECONDS, Change, ClaimRequest
from darkroom.ledger.runs import JobRecord, RunRecord
from darkroom.retry import backoff
from darkroom.rows import Claim, NotClaimed, NotSent, RowMessage, RowRecord, RowResult

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_SHARDS = 8  # one item takes about 1,000 writes a second
ROWS = ItemCodec(RowRecord)
_RUNS = ItemCodec(RunRecord)
_JOBS = ItemCodec(JobRecord)
_COUNTERS = ItemCodec(Counters)
_SERVICE = "the ledger (DynamoDB)"
_JOB_ITEM = "job"
_MAX_ROW_TRIES = 8
_MAX_RUN_TRIES = 10
_PAUSE_SECONDS = 0.02
_PAUSE_CAP_SECONDS = 1.0


class _Conflict(Exception):
    """Another write was first, and this one was not made: repeat it."""


class _ConditionFailed(Exception):
    """`item` is the record in the table, or None when the condition of another item failed."""

    def __init__(self, item: Item | None) -> None:
        super().__init__("a condition failed")
        self.item = item


class LedgerTable:
    """RowLedger and RunLedger on one table. Thread-safe.

    A call, sent or failed, extends its row's lease to at least `lease_seconds` from then.
    """

    def __init__(
        self,
        dynamodb: "DynamoDBClient",
        table: str,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._db = dynamodb
        self._table = table
        self._now = now
        self._sleep = sleep
        self._lease_seconds = lease_seconds

    # -- rows

    def get_many(self, job: str, keys: Sequence[str]) -> Mapping[str, RowRecord]:
        found: dict[str, RowRecord] = {}
        pending: list[Any] = [_key(job, _row_item(key)) for key in dict.fromkeys(keys)]

        def read() -> None:
            nonlocal pending
            with translate_errors(_SERVICE):
                response = self._db.batch_get_item(
                    RequestItems={self._table: {"Keys": pending, "ConsistentRead": True}}
                )
            for record in map(ROWS.from_item, response["Responses"].get(self._table, [])):
                found[record.key] = record
            if unread := response["UnprocessedKeys"].get(self._table):
                pending = list(unread["Keys"])
                raise _Conflict

        if pending:
            failure = f"{_SERVICE} left keys unread: too many requests"
            self._retry(read, failure, _MAX_ROW_TRIES)
        return found

    def all(self, job: str) -> Iterator[RowRecord]:
        return map(ROWS.from_item, self._query(job, "row#"))

    def claim(
        self, message: RowMessage, run: Run, owner: str, lease_seconds: float
    ) -> Claim | NotClaimed:
        record: RowRecord | None = None  # most rows are new: assuming so saves a read
        for tries in range(1, _MAX_ROW_TRIES + 1):
            request = ClaimRequest(message, run, owner, self._now(), lease_seconds)
            decision = request.decide(record)
            if decision.change is None:
                if record is not None:
                    return decision.verdict
                record = self._read(ROWS, message.job, _row_item(message.key))
                if record is None:
                    return decision.verdict
                continue
            try:
                self._write_change(message.job, decision.change, before=record)
            except _ConditionFailed as failed:
                record = ROWS.from_item(failed.item) if failed.item else None
            except _Conflict:
                self._pause(tries)
            else:
                if decision.change.counters:  # redriven into a run that may have finished
                    # The row is claimed already: raising would only cost it an attempt.
                    with suppress(ServiceUnavailable):
                        self._update_run(run, runs.reopen)
                return decision.verdict
        raise ServiceUnavailable(f"row {message.key} is claimed by too many workers at once")

    def renew(self, claims: Sequence[Claim], lease_seconds: float) -> None:
        for claim in claims:
            update = {
                "TableName": self._table,
                "Key": _key(claim.job, _row_item(claim.key)),
                "UpdateExpression": "SET lease_until = :until",
                "ConditionExpression": "lease_owner = :owner AND lease_until > :zero",
                "ExpressionAttributeValues": {
                    ":until": to_attribute(self._now() + lease_seconds),
                    ":owner": to_attribute(claim.owner),
                    ":zero": to_attribute(0),
                },
            }
            with suppress(_ConditionFailed):  # a lost lease is not renewed
                self._write({"Update": update})

    def mark_sent(
        self, claim: Claim, endpoint: str, *, reserve: int = 0, limit: int | None = None
    ) -> Claim | NotSent:
        amount = reserve if limit is not None else 0
        change = rows.send(claim, endpoint, amount, self._now(), self._lease_seconds)
        return self._apply(claim, change, limit=limit)

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

    def _apply(self, claim: Claim, change: Change, *, limit: int | None = None) -> Claim | NotSent:
        """The claim after the change, or why the change was not made."""
        after = replace(claim, record=change.record)

        def attempt() -> Claim | NotSent:
            try:
                self._write_change(claim.job, change, before=claim.record, limit=limit)
            except _ConditionFailed as failed:
                if failed.item is None:
                    return NotSent.NO_BUDGET
                ours = rows.same_write(ROWS.from_item(failed.item), change.record)
                return after if ours else NotSent.LEASE_LOST
            return after

        failure = f"row {claim.key} is written by too many workers at once"
        return self._retry(attempt, failure, _MAX_ROW_TRIES)

    def _write_change(
        self, job: str, change: Change, *, before: RowRecord | None, limit: int | None = None
    ) -> None:
        """Write the row if it is still as `before`, together with its counters and money.

        Raises _ConditionFailed, _Conflict, ServiceUnavailable.
        """
        record = change.record
        version = before.version if before else None
        put = self._put(job, _row_item(record.key), ROWS.to_item(record), version)
        if before is not None and record.lease_owner not in (None, before.lease_owner):
            # The heartbeat renews a lease without a new version, so the lease is checked as well.
            put["ConditionExpression"] += (
                " AND (attribute_not_exists(lease_until) OR lease_until <= :now)"
            )
            put["ExpressionAttributeValues"][":now"] = to_attribute(record.updated_at)
        writes: list[Any] = [{"Put": put}]
        for run, counters in change.counters.items():
            added = _COUNTERS.to_item(counters)
            writes.append({"Update": self._add(job, _shard_item(run, record.key), added)})
        if change.budget or limit is not None:
            update = self._add(job, "budget", {"committed": to_attribute(change.budget)})
            if limit is not None:
                missing = "attribute_not_exists(committed) OR " if change.budget <= limit else ""
                update["ConditionExpression"] = f"{missing}committed <= :room"
                room = to_attribute(limit - change.budget)
                update["ExpressionAttributeValues"][":room"] = room
            writes.append({"Update": update})
        self._write(*writes)

    def _add(self, job: str, item: str, numbers: Item) -> Any:
        """An update that adds `numbers` to the item's attributes."""
        return {
            "TableName": self._table,
            "Key": _key(job, item),
            "UpdateExpression": "ADD " + ", ".join(f"#{name} :{name}" for name in numbers),
            "ExpressionAttributeNames": {f"#{name}": name for name in numbers},
            "ExpressionAttributeValues": {f":{name}": added for name, added in numbers.items()},
        }

    # -- runs

    def start(self, run: Run, lease_seconds: float) -> Run | None:
        def attempt() -> Run | None:
            current = self._read(_JOBS, run.job, _JOB_ITEM)
            known = self._read(_RUNS, run.job, _run_item(run.run))
            if known is not None:
                if current is None or current.run != run.run:
                    return None
                taken = runs.take_over_split(known, self._now(), lease_seconds)
                return self._swap_run(taken) if taken else None
            if current is not None and not runs.is_newer(run.sequencer, current):
                return None
            spent = self._spent_without_budget(run.job) if current else 0
            record = runs.start(run, current, spent, self._now() + lease_seconds)
            self._make_current(record, current)
            return record.run

        return self._retry(attempt, f"job {run.job} is started by too many uploads at once")

    def checkpoint(self, run: Run, checkpoint: Checkpoint, lease_seconds: float) -> bool:
        if not self._is_current(run):
            return False
        until = self._now() + lease_seconds
        self._update_run(run, lambda record: runs.checkpoint(record, checkpoint, until))
        return True

    def finish_split(self, run: Run, totals: Totals, warnings: Sequence[str]) -> None:
        self._update_run(run, lambda record: runs.finish_split(record, totals, warnings))

    def fail(self, run: Run, reason: str) -> None:
        now = self._now()
        self._update_run(run, lambda record: runs.fail(record, reason, now))

    def stop(self, job: str) -> Run | None:
        run = self.current(job)
        return None if run is None else self._update_run(run, runs.stop)

    def current(self, job: str) -> Run | None:
        current = self._read(_JOBS, job, _JOB_ITEM)
        record = self._read(_RUNS, job, _run_item(current.run)) if current else None
        return record.run if record else None

    def counters(self, job: str, run: str) -> Counters:
        return _sum(self._query(job, _shard_prefix(run)))

    def report_due(self, job: str) -> bool:
        current = self._read(_JOBS, job, _JOB_ITEM)
        return current is not None and runs.report_due(*self._snapshot(job, current.run))

    def begin_report(self, run: Run, lease_seconds: float, owner: str = "") -> bool:
        def attempt() -> bool:
            if not self._is_current(run):
                return False
            record, counters = self._snapshot(run.job, run.run)
            begun, changed = runs.begin_report(record, counters, owner, self._now(), lease_seconds)
            # The shards are not read at one moment: two equal readings are as good as that.
            if begun and self.counters(run.job, run.run) != counters:
                raise _Conflict
            if changed is not None:
                self._swap_run(changed)
            return begun

        return self._retry(attempt, f"the counters of job {run.job} change too fast to report them")

    def finish_report(self, run: Run, finished_at: float) -> bool:
        def attempt() -> bool:
            record, counters = self._snapshot(run.job, run.run)
            is_current, changed = runs.finish_report(record, counters, finished_at)
            self._swap_run(changed)
            return is_current

        return self._retry(attempt, f"the report of job {run.job} could not be recorded")

    def _update_run(
        self, run: Run, transition: Callable[[RunRecord], RunRecord | None]
    ) -> Run | None:
        """The run after the transition, or None if there is nothing to change."""

        def attempt() -> Run | None:
            record = self._read(_RUNS, run.job, _run_item(run.run))
            changed = transition(record) if record else None
            return self._swap_run(changed) if changed else None

        return self._retry(
            attempt, f"run {run.run} of job {run.job} is written by too many at once"
        )

    def _swap_run(self, record: RunRecord) -> Run:
        """Replace the previous version. Raises _Conflict when another write was first."""
        job, item = record.run.job, _run_item(record.run.run)
        put = self._put(job, item, _RUNS.to_item(record), record.version - 1)
        try:
            self._write({"Put": put})
        except _ConditionFailed as failed:
            if failed.item is None or _RUNS.from_item(failed.item) != record:
                raise _Conflict from failed
        return record.run

    def _make_current(self, record: RunRecord, before: JobRecord | None) -> None:
        """Write the new run and the job's reference to it. Raises _Conflict."""
        run = record.run
        previous = before.version if before else None
        version = 0 if previous is None else previous + 1
        job = JobRecord(run.job, run.run, run.number, run.sequencer, version)
        try:
            self._write(
                {"Put": self._put(run.job, _run_item(run.run), _RUNS.to_item(record), None)},
                {"Put": self._put(run.job, _JOB_ITEM, _JOBS.to_item(job), previous)},
            )
        except (_ConditionFailed, _Conflict) as failed:
            written = self._read(_RUNS, run.job, _run_item(run.run))
            if written != record or self._read(_JOBS, run.job, _JOB_ITEM) != job:
                raise _Conflict from failed

    def _is_current(self, run: Run) -> bool:
        current = self._read(_JOBS, run.job, _JOB_ITEM)
        return current is not None and current.run == run.run

    def _snapshot(self, job: str, run: str) -> tuple[RunRecord, Counters]:
        """A run and its counters, in one query of about 2 KB."""
        items = {item["item"]["S"]: item for item in self._query(job, _run_item(run))}
        shards = [i for name, i in items.items() if name.startswith(_shard_prefix(run))]
        return _RUNS.from_item(items[_run_item(run)]), _sum(shards)

    def _spent_without_budget(self, job: str) -> int:
        """Micro-USD spent by the job's runs that had no budget."""
        items = list(self._query(job, "run#"))
        records = [_RUNS.from_item(i) for i in items if "#shard#" not in i["item"]["S"]]
        unbudgeted = [r.run.run for r in records if r.run.options.budget_micro_usd is None]
        prefixes = tuple(map(_shard_prefix, unbudgeted))
        return _sum(i for i in items if i["item"]["S"].startswith(prefixes)).cost_micro_usd

    # -- the table

    def _read[T](self, codec: ItemCodec[T], job: str, item: str) -> T | None:
        with translate_errors(_SERVICE):
            response = self._db.get_item(
                TableName=self._table, Key=_key(job, item), ConsistentRead=True
            )
        found = response.get("Item")
        return codec.from_item(found) if found else None

    def _query(self, job: str, prefix: str) -> Iterator[Item]:
        pages = self._db.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="job = :job AND begins_with(#item, :prefix)",
            ExpressionAttributeNames={"#item": "item"},
            ExpressionAttributeValues={":job": {"S": job}, ":prefix": {"S": prefix}},
            ConsistentRead=True,
        )
        with translate_errors(_SERVICE):
            for page in pages:
                yield from page["Items"]

    def _put(self, job: str, item: str, attributes: Item, version: int | None) -> Any:
        """A put that replaces the record of this version, or creates it (None)."""
        put = {
            "TableName": self._table,
            "Item": attributes | _key(job, item),
            "ConditionExpression": "attribute_not_exists(job)",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if version is not None:
            # Version 0 is a default, which items leave out.
            missing = "attribute_not_exists(#version) OR " if version == 0 else ""
            put["ConditionExpression"] = f"({missing}#version = :version)"
            put["ExpressionAttributeNames"] = {"#version": "version"}
            put["ExpressionAttributeValues"] = {":version": to_attribute(version)}
        return put

    def _write(self, *writes: Any) -> None:
        """Write all or nothing. Raises _ConditionFailed, _Conflict, ServiceUnavailable."""
        try:
            with translate_errors(_SERVICE):
                if len(writes) > 1:
                    self._db.transact_write_items(TransactItems=writes)
                elif "Put" in writes[0]:
                    self._db.put_item(**writes[0]["Put"])
                else:
                    self._db.update_item(**writes[0]["Update"])
        except ClientError as error:
            _raise_refusal(error)
            raise

    def _retry[T](
        self, attempt: Callable[[], T], failure: str, max_tries: int = _MAX_RUN_TRIES
    ) -> T:
        """Repeat `attempt` after every _Conflict. Raises ServiceUnavailable(failure)."""
        for tries in range(1, max_tries + 1):
            try:
                return attempt()
            except _Conflict:
                self._pause(tries)
        raise ServiceUnavailable(failure)

    def _pause(self, tries: int) -> None:
        self._sleep(backoff(tries, _PAUSE_SECONDS, _PAUSE_CAP_SECONDS))


def _raise_refusal(error: ClientError) -> None:
    """Raises _ConditionFailed or _Conflict if that is what the error means."""
    response: Any = error.response
    if error_code(error) == CONDITION_FAILED:
        raise _ConditionFailed(response.get("Item")) from error
    if error_code(error) != TRANSACTION_CANCELLED:
        return
    reasons = response.get("CancellationReasons", [])
    codes = [reason.get("Code", "None") for reason in reasons]
    if CONDITION_FAILED_REASON in codes:
        is_first = codes[0] == CONDITION_FAILED_REASON
        raise _ConditionFailed(reasons[0].get("Item") if is_first else None) from error
    if set(codes) <= TRANSIENT_REASONS:
        raise _Conflict from error


def _sum(shards: Iterable[Item]) -> Counters:
    return sum(map(_COUNTERS.from_item, shards), Counters())


def _key(job: str, item: str) -> Item:
    return {"job": {"S": job}, "item": {"S": item}}


def _row_item(key: str) -> str:
    return f"row#{key}"


def _run_item(run: str) -> str:
    return f"run#{run}"


def _shard_prefix(run: str) -> str:
    return f"run#{run}#shard#"


def _shard_item(run: str, key: str) -> str:
    return f"{_shard_prefix(run)}{zlib.crc32(key.encode()) % _SHARDS}"
