"""The ledger in DynamoDB: reads a record, applies a transition, writes it by compare-and-swap.

Items by partition key (`job`) and sort key (`item`):

    <job>              job           which run is the current one
    <job>              run#<run>     a run
    <job>#shard#<n>    run#<run>     a share of the run's counters
    <job>#rows#<n>     row#<key>     a row, from its first claim on
    unfinished         job#<job>     a job that the sweep looks at
    (the batches', in batch_table.py)
    (and the budget's, in budget_table.py)

One partition key takes 1,000 write units a second, so rows and counters are spread over several.
A hundred neighbouring rows ("000100" to "000199") share one: they are read by one query, and take
fewer writes in all than a partition key takes in a second. Neighbouring hundreds, which workers
write at the same time, are on different ones.
Source of the limit: "Best practices for designing and using partition keys effectively" in the
DynamoDB developer guide.

A record is written only if it still has the version that the transition started from. A worker
that holds a row knows its record, so a transition of a row is one write and no read. A write whose
response was lost is recognised when it is repeated.
"""

import heapq
import random
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from darkroom.aws.budget_table import SHARDS, BudgetTable, shard_partition
from darkroom.aws.items import Item, ItemCodec, to_attribute
from darkroom.aws.table import ConditionFailed, Conflict, Table, key
from darkroom.errors import Reason, ServiceUnavailable
from darkroom.jobs import Checkpoint, Counters, Run, Totals
from darkroom.ledger import rows, runs
from darkroom.ledger.rows import LEASE_SECONDS, Change, ClaimRequest
from darkroom.ledger.runs import JobRecord, RunRecord, UnfinishedJob
from darkroom.ledger.transitions import RowTransitions
from darkroom.rows import (
    Claim,
    NotClaimed,
    NotSent,
    RowMessage,
    RowRecord,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_ROW_PARTITIONS = 64
_BLOCK_DIGITS = 2  # rows whose keys differ only in these share a partition key
_MIN_QUERY_ROWS = 10  # of a block: fewer are read one by one
_PAGE_ROWS = 200  # bounds the memory of reading all partitions at once
ROWS = ItemCodec(RowRecord)
_RUNS = ItemCodec(RunRecord)
_JOBS = ItemCodec(JobRecord)
_COUNTERS = ItemCodec(Counters)
LEDGER = "the ledger (DynamoDB)"  # in errors
_JOB_ITEM = "job"
_UNFINISHED = "unfinished"
_FINISHED_KEPT_SECONDS = 86_400
_MAX_ROW_TRIES = 10
_MAX_RUN_TRIES = 10


class LedgerTable(RowTransitions):
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
        rng: Callable[[], float] = random.random,
        lease_seconds: float = LEASE_SECONDS,
        patience_seconds: float = 0.0,
    ) -> None:
        self._table = Table(
            dynamodb, table, LEDGER, patience_seconds=patience_seconds, sleep=sleep, rng=rng
        )
        self._budget = BudgetTable(self._table)
        self._now = now
        self._lease_seconds = lease_seconds

    # -- rows

    def get_many(self, job: str, keys: Sequence[str]) -> Mapping[str, RowRecord]:
        blocks = defaultdict[str, list[str]](list)
        for name in dict.fromkeys(keys):
            blocks[_block(name)].append(name)
        single, items = list[Item](), list[Item]()
        for members in blocks.values():
            if len(members) < _MIN_QUERY_ROWS:
                single += (_row_key(job, name) for name in members)
                continue
            first, last = _row_item(min(members)), _row_item(max(members))
            items += self._table.query_between(row_partition(job, members[0]), first, last)
        items += self._table.get_many(single, _MAX_ROW_TRIES)
        wanted = set(keys)
        return {r.key: r for r in map(ROWS.from_item, items) if r.key in wanted}

    def all(self, job: str) -> Iterator[RowRecord]:
        partitions = (f"{job}#rows#{n}" for n in range(_ROW_PARTITIONS))
        streams = (self._table.query(p, "row#", page_items=_PAGE_ROWS) for p in partitions)
        return map(ROWS.from_item, heapq.merge(*streams, key=lambda item: item["item"]["S"]))

    def committed(self, job: str) -> int:
        """Micro-USD spent or reserved by the job's runs with a budget."""
        return self._budget.committed(job)

    def unsettled(self, job: str) -> Iterator[RowRecord]:
        for n in range(_ROW_PARTITIONS):
            items = self._table.query(f"{job}#rows#{n}", "row#", without="result")
            yield from map(ROWS.from_item, items)

    def discard_result(self, job: str, key: str, image: str) -> None:
        def attempt() -> None:
            record = self._read_row(job, key)
            change = rows.discard_result(record, image, self._now()) if record else None
            if change is None:
                return
            try:
                self._write_change(job, change, before=record)
            except ConditionFailed as failed:
                raise Conflict from failed

        failure = f"row {key} is written by too many workers at once"
        self._table.retry(attempt, failure, _MAX_ROW_TRIES)

    def claim(
        self, message: RowMessage, run: Run, owner: str, lease_seconds: float
    ) -> Claim | NotClaimed:
        if message.run != run.run:  # the worker may not know of the message's own, newer run
            run = self.current(message.job) or run
        record: RowRecord | None = None  # most rows are new: assuming so saves a read
        failure = f"row {message.key} is claimed by too many workers at once"
        for _ in range(_MAX_ROW_TRIES):
            request = ClaimRequest(message, run, owner, self._now(), lease_seconds)
            decision = request.decide(record)
            change = decision.change
            if change is None:
                if record is not None:
                    return decision.verdict
                record = self._read_row(message.job, message.key)
                if record is None:
                    return decision.verdict
                continue
            write = partial(self._write_change, message.job, change, before=record, claims=True)
            try:
                self._table.retry(write, failure, _MAX_ROW_TRIES)
            except ConditionFailed as failed:
                record = _stored_row(failed)
                if not _is_written(change, record):
                    continue
            if change.counters:  # redriven into a run that may have finished
                # The row is claimed already: raising would only cost it an attempt.
                with suppress(ServiceUnavailable):
                    self._update_run(run, partial(runs.reopen, now=self._now()))
            return decision.verdict
        raise ServiceUnavailable(failure)

    def renew(self, claims: Sequence[Claim], lease_seconds: float) -> None:
        unavailable: ServiceUnavailable | None = None
        for claim in claims:
            try:
                self._renew(claim, lease_seconds)
            except ServiceUnavailable as error:  # the other leases are renewed all the same
                unavailable = error
        if unavailable is not None:
            raise unavailable

    def _renew(self, claim: Claim, lease_seconds: float) -> None:
        update = self._table.update(
            row_partition(claim.job, claim.key),
            _row_item(claim.key),
            "SET lease_until = :until",
            {
                ":until": to_attribute(self._now() + lease_seconds),
                ":owner": to_attribute(claim.owner),
                ":zero": to_attribute(0),
            },
            "lease_owner = :owner AND lease_until > :zero",
        )
        failure = f"the lease of row {claim.key} conflicts with other writes"

        def write() -> None:  # the other leases of the heartbeat must not wait
            self._table.write(update, patient=False)

        with suppress(ConditionFailed):  # a lost lease is not renewed
            self._table.retry(write, failure, _MAX_ROW_TRIES)

    def _apply(self, claim: Claim, change: Change, *, limit: int | None = None) -> Claim | NotSent:
        """The claim after the change, or why the change was not made."""

        def attempt() -> Claim | NotSent:
            written = self._try(claim, change, limit)
            if written is None and limit is not None:
                shard = row_shard(claim.key)
                refused = self._budget.make_room(claim.job, shard, change.budget, limit)
                written = refused or self._try(claim, change, limit)
            if written is None:
                raise Conflict
            return written

        failure = f"row {claim.key} is written by too many workers at once"
        return self._table.retry(attempt, failure, _MAX_ROW_TRIES)

    def _try(self, claim: Claim, change: Change, limit: int | None) -> Claim | NotSent | None:
        """None when the row's share of the budget has no room. Raises Conflict."""
        after = replace(claim, record=change.record)
        try:
            self._write_change(claim.job, change, before=claim.record, limit=limit)
        except ConditionFailed as failed:
            if failed.index > 0:
                return None
            is_written = _is_written(change, _stored_row(failed))
            return after if is_written else NotSent.LEASE_LOST
        return after

    def _write_change(
        self,
        job: str,
        change: Change,
        *,
        before: RowRecord | None,
        limit: int | None = None,
        claims: bool = False,
    ) -> None:
        """Write the row if it is still as `before`, together with its counters and money.

        Raises ConditionFailed (of write 0: the row), Conflict, ServiceUnavailable.
        """
        record, table = change.record, self._table
        version = before.version if before else None
        partition, item = row_partition(job, record.key), _row_item(record.key)
        put = table.put(partition, item, ROWS.to_item(record), version)
        if before is not None and record.lease_owner not in (None, before.lease_owner):
            # The heartbeat renews a lease without a new version, so the lease is checked as well.
            put["Put"]["ConditionExpression"] += (
                " AND (attribute_not_exists(lease_until) OR lease_until <= :now)"
            )
            put["Put"]["ExpressionAttributeValues"][":now"] = to_attribute(record.updated_at)
        writes, shard = [put], row_shard(record.key)
        for run, counters in change.counters.items():
            writes.append(add_to_run(table, job, run, counters, shard))
        if limit is None or change.budget:  # a call that costs nothing needs no room
            writes += self._budget.writes(job, shard, change, limit)
        if claims and change.counters:  # redriven into a run that may have finished
            writes.append(mark_unfinished(table, job))
        table.write(*writes)

    # -- runs

    def start(self, run: Run, lease_seconds: float) -> Run | None:
        def attempt() -> Run | None:
            current = self._read_job(run.job)
            known = self._read_run(run.job, run.run)
            if known is not None:
                if current is None or current.run != run.run:
                    return None
                taken = runs.take_over_split(known, self._now(), lease_seconds)
                return self._swap_run(taken) if taken else None
            if current is not None and not runs.is_newer(run.sequencer, current):
                return None
            return self._make_current(self._next_run(run, current, lease_seconds), current)

        return self._retry_run(attempt, f"job {run.job} is started by too many uploads at once")

    def reject(self, run: Run, reason: str) -> Run | None:
        def attempt() -> Run | None:
            now, current = self._now(), self._read_job(run.job)
            if self._read_run(run.job, run.run) is not None:
                return None
            if current is not None and not runs.is_newer(run.sequencer, current):
                return None
            known = self._read_run(run.job, current.run) if current else None
            if known is not None and runs.is_under_way(known):
                return self._swap_run(runs.add_rejected_upload(known, run, reason, now))
            record = runs.start_rejected(self._next_run(run, current, 0.0), reason, now)
            return self._make_current(record, current)

        return self._retry_run(attempt, f"job {run.job} is started by too many uploads at once")

    def _next_run(self, run: Run, current: JobRecord | None, lease_seconds: float) -> RunRecord:
        previous = self._read_run(run.job, current.run) if current else None
        spent = self._spent_without_budget(run.job) if current else 0
        return runs.start(run, previous, spent, self._now() + lease_seconds)

    def checkpoint(self, run: Run, checkpoint: Checkpoint, lease_seconds: float) -> bool:
        if not self._is_current(run):
            return False
        until = self._now() + lease_seconds
        self._update_run(run, lambda record: runs.checkpoint(record, checkpoint, until))
        return True

    def finish_split(self, run: Run, totals: Totals, warnings: Sequence[str]) -> None:
        self._update_run(run, lambda record: runs.finish_split(record, totals, warnings))

    def unfinished(self) -> Iterator[UnfinishedJob]:
        for item in self._table.query(_UNFINISHED, "job#", without="finished"):
            job = item["item"]["S"].removeprefix("job#")
            yield UnfinishedJob(job, int(item["marks"]["N"]))

    def finish(self, job: UnfinishedJob) -> None:
        # Left out of the list, and removed by DynamoDB: no function may delete items.
        update = self._table.update(
            _UNFINISHED,
            f"job#{job.job}",
            "SET finished = :marks, expires_at = :expiry",
            {
                ":marks": to_attribute(job.marks),
                ":expiry": to_attribute(int(self._now() + _FINISHED_KEPT_SECONDS)),
            },
            "marks = :marks",
        )
        with suppress(ConditionFailed):  # added again meanwhile
            self._retry_run(lambda: self._table.write(update), f"{job.job} changes too often")

    def inspect(self, job: str) -> tuple[RunRecord, Counters] | None:
        current = self._read_job(job)
        return self._snapshot(job, current.run) if current else None

    def queue_again(self, run: Run) -> bool:
        def attempt() -> bool:
            record, counters = self._snapshot(run.job, run.run)
            changed = runs.queue_again(record, counters, self._now())
            if changed is not None:
                self._swap_run(changed)
            return changed is not None

        return self._retry_run(attempt, f"run {run.run} of job {run.job} changes too fast")

    def give_up_lost(self, run: Run) -> Run | None:
        settled = self.counters(run.job, run.run).settled
        return self._update_run(run, lambda record: runs.give_up_lost(record, settled))

    def note_progress(self, run: Run) -> None:
        counters, now = self.counters(run.job, run.run), self._now()
        self._update_run(run, lambda record: runs.note_progress(record, counters, now))

    def dropped_settled(self, run: Run) -> None:
        self._update_run(run, runs.dropped_settled)

    def set_waiting(self, run: Run, reason: Reason, detail: str) -> Run | None:
        if runs.waits_for(run, reason, detail):
            return None
        now = self._now()
        return self._update_run(run, lambda record: runs.set_waiting(record, reason, detail, now))

    def clear_waiting(self, run: Run) -> Run | None:
        return self._update_run(run, runs.clear_waiting)

    def fail(self, run: Run, reason: str) -> None:
        now = self._now()
        self._update_run(run, lambda record: runs.fail(record, reason, now))

    def stop(self, job: str) -> Run | None:
        run = self.current(job)
        return None if run is None else self._update_run(run, runs.stop)

    def current(self, job: str) -> Run | None:
        current = self._read_job(job)
        record = self._read_run(job, current.run) if current else None
        return record.run if record else None

    def counters(self, job: str, run: str) -> Counters:
        return _sum(self._table.get_many(_shard_keys(job, run), _MAX_RUN_TRIES))

    def spent_earlier(self, run: Run) -> int:
        if run.number <= 1:
            return 0
        earlier = (r for r in self._runs(run.job) if r.number < run.number)
        return sum(self.counters(run.job, r.run).cost_micro_usd for r in earlier)

    def report_due(self, job: str) -> bool:
        current = self._read_job(job)
        return current is not None and runs.report_due(*self._snapshot(job, current.run))

    def begin_report(self, run: Run, lease_seconds: float, owner: str = "") -> bool:
        def attempt() -> bool:
            if not self._is_current(run):
                return False
            record, counters = self._snapshot(run.job, run.run)
            begun = runs.begin_report(record, counters, owner, self._now(), lease_seconds)
            if begun is None:
                return False
            # The shards are not read at one moment: two equal readings are as good as that.
            if self.counters(run.job, run.run) != counters:
                raise Conflict
            self._swap_run(begun)
            return True

        return self._retry_run(
            attempt, f"the counters of job {run.job} change too fast to report them"
        )

    def finish_report(self, run: Run, finished_at: float) -> bool:
        def attempt() -> bool:
            record, counters = self._snapshot(run.job, run.run)
            is_current, changed = runs.finish_report(record, counters, finished_at)
            self._swap_run(changed)
            return is_current

        return self._retry_run(attempt, f"the report of job {run.job} could not be recorded")

    def _update_run(
        self, run: Run, transition: Callable[[RunRecord], RunRecord | None]
    ) -> Run | None:
        """The run after the transition, or None if there is nothing to change."""

        def attempt() -> Run | None:
            record = self._read_run(run.job, run.run)
            changed = transition(record) if record else None
            return self._swap_run(changed) if changed else None

        return self._retry_run(
            attempt, f"run {run.run} of job {run.job} is written by too many at once"
        )

    def _swap_run(self, record: RunRecord) -> Run:
        """Replace the previous version. Raises Conflict when another write was first."""
        job, item = record.run.job, _run_item(record.run.run)
        put = self._table.put(job, item, _RUNS.to_item(record), record.version - 1)
        try:
            self._table.write(put)
        except ConditionFailed as failed:
            if failed.item is None or _RUNS.from_item(failed.item) != record:
                raise Conflict from failed
        return record.run

    def _make_current(self, record: RunRecord, before: JobRecord | None) -> Run:
        """Write the new run and the job's reference to it. Raises Conflict."""
        run = record.run
        previous = before.version if before else None
        version = 0 if previous is None else previous + 1
        job = JobRecord(run.job, run.run, run.number, run.sequencer, version)
        try:
            self._table.write(
                self._table.put(run.job, _run_item(run.run), _RUNS.to_item(record), None),
                self._table.put(run.job, _JOB_ITEM, _JOBS.to_item(job), previous),
                mark_unfinished(self._table, run.job),
            )
        except (ConditionFailed, Conflict) as failed:
            written = self._read_run(run.job, run.run)
            if written != record or self._read_job(run.job) != job:
                raise Conflict from failed
        return run

    def _is_current(self, run: Run) -> bool:
        current = self._read_job(run.job)
        return current is not None and current.run == run.run

    def _snapshot(self, job: str, run: str) -> tuple[RunRecord, Counters]:
        """A run and its counters, by one request."""
        keys = [key(job, _run_item(run)), *_shard_keys(job, run)]
        items = self._table.get_many(keys, _MAX_RUN_TRIES)
        (record,) = (item for item in items if item["job"]["S"] == job)
        return _RUNS.from_item(record), _sum(item for item in items if item is not record)

    def _spent_without_budget(self, job: str) -> int:
        """Micro-USD spent by the job's runs that had no budget."""
        unbudgeted = [r.run for r in self._runs(job) if r.options.budget_micro_usd is None]
        return sum(self.counters(job, run).cost_micro_usd for run in unbudgeted)

    def _runs(self, job: str) -> list[Run]:
        return [_RUNS.from_item(item).run for item in self._table.query(job, "run#")]

    def _read_job(self, job: str) -> JobRecord | None:
        return self._table.get(_JOBS, job, _JOB_ITEM)

    def _read_run(self, job: str, run: str) -> RunRecord | None:
        return self._table.get(_RUNS, job, _run_item(run))

    def _read_row(self, job: str, name: str) -> RowRecord | None:
        return self._table.get(ROWS, row_partition(job, name), _row_item(name))

    def _retry_run[T](self, attempt: Callable[[], T], failure: str) -> T:
        return self._table.retry(attempt, failure, _MAX_RUN_TRIES)


def _stored_row(failed: ConditionFailed) -> RowRecord | None:
    return ROWS.from_item(failed.item) if failed.item else None


def _is_written(change: Change, stored: RowRecord | None) -> bool:
    """The write was made before, and only its response was lost."""
    return stored is not None and rows.same_write(stored, change.record)


def mark_unfinished(table: Table, job: str) -> Any:
    """The write that puts the job into the sweep's list."""
    expression = "ADD marks :one REMOVE finished, expires_at"
    return table.update(_UNFINISHED, f"job#{job}", expression, {":one": to_attribute(1)})


def add_to_run(table: Table, job: str, run: str, counters: Counters, shard: int) -> Any:
    """The write that adds to the counters of a run, in one of its shards."""
    return table.add(shard_partition(job, shard), _run_item(run), _COUNTERS.to_item(counters))


def _sum(shards: Iterable[Item]) -> Counters:
    return sum(map(_COUNTERS.from_item, shards), Counters())


def _block(name: str) -> str:
    """What neighbouring rows have in common: "0001" for "000100" to "000199"."""
    return name[:-_BLOCK_DIGITS] if name[-_BLOCK_DIGITS:].isdecimal() else name


def row_partition(job: str, name: str) -> str:
    return f"{job}#rows#{zlib.crc32(_block(name).encode()) % _ROW_PARTITIONS}"


def _row_item(name: str) -> str:
    return f"row#{name}"


def _row_key(job: str, name: str) -> Item:
    return key(row_partition(job, name), _row_item(name))


def _run_item(run: str) -> str:
    return f"run#{run}"


def row_shard(name: str) -> int:
    """The row's share of the job's counters and budget."""
    return zlib.crc32(name.encode()) % SHARDS


def _shard_keys(job: str, run: str) -> list[Item]:
    return [key(shard_partition(job, n), _run_item(run)) for n in range(SHARDS)]
