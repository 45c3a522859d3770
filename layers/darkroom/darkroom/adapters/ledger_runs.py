"""The ledger's jobs and runs in DynamoDB: read, decide as the pure moves say, compare and swap."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from darkroom.adapters.aws_errors import code_of, translated
from darkroom.adapters.items import Item, ItemCodec, from_attribute
from darkroom.adapters.ledger_writes import SERVICE, SUMS, address, run_item, shard_prefix
from darkroom.editing.pace import PACE
from darkroom.errors import ServiceUnavailable
from darkroom.jobs import Checkpoint, Counters, Run, Totals
from darkroom.ledger import run_moves as runmoves
from darkroom.ledger.run_moves import JobRecord, RunRecord

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

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
        lease_seconds: float = PACE.lease,
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
            if known or (current is not None and not runmoves.is_newer(run.sequencer, current)):
                return None
            spent = self._unbudgeted(run.job) if current else 0
            record = runmoves.start(run, current, spent, self._now() + lease_seconds)
            if self._make_current(record, current):
                return record.run
            self._pause(attempt)
        raise ServiceUnavailable(f"job {run.job} is started by too many uploads at once")

    def checkpoint(self, run: Run, checkpoint: Checkpoint, lease_seconds: float) -> bool:
        if not self._is_current(run):
            return False
        until = self._now() + lease_seconds
        self._change(run, lambda record: runmoves.checkpoint(record, checkpoint, until))
        return True

    def finish_split(self, run: Run, totals: Totals, warnings: Sequence[str]) -> None:
        self._change(run, lambda record: runmoves.finish_split(record, totals, warnings))

    def fail(self, run: Run, reason: str) -> None:
        now = self._now()
        self._change(run, lambda record: runmoves.fail(record, reason, now))

    def stop(self, job: str) -> Run | None:
        run = self.current(job)
        return None if run is None else self._change(run, runmoves.stop)

    def reopen(self, job: str, run: str) -> None:
        """Rows were redriven into the run: it goes on."""
        for attempt in range(_TRIES):
            record = self._record(job, run)
            opened = runmoves.reopen(record) if record else None
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
        return current is not None and runmoves.report_due(*self._snapshot(job, current.run))

    def begin_report(self, run: Run, lease_seconds: float, owner: str = "") -> bool:
        for attempt in range(_TRIES):
            if not self._is_current(run):
                return False
            record, counters = self._snapshot(run.job, run.run)
            begun, new = runmoves.begin_report(record, counters, owner, self._now(), lease_seconds)
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
            true, new = runmoves.finish_report(record, counters, finished_at)
            if self._swap(new):
                return true
            self._pause(attempt)
        raise ServiceUnavailable(f"the report of job {run.job} could not be booked")

    def _take_over(self, run: Run, lease_seconds: float) -> Run | None:
        record = self._record(run.job, run.run)
        if record is None:
            return None
        taken = runmoves.take_over_split(record, self._now(), lease_seconds)
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
            with translated(SERVICE):
                self._db.transact_write_items(TransactItems=puts)
        except ClientError as error:
            if code_of(error) != "TransactionCanceledException":
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
            with translated(SERVICE):
                self._db.put_item(**put)
        except ClientError as error:
            if code_of(error) != "ConditionalCheckFailedException":
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
        with translated(SERVICE):
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
        with translated(SERVICE):
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
