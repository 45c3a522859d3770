"""The batches in DynamoDB, in the ledger's table.

    batches          batch#<name>    a batch; open unless it has the attribute `closed`
    batch#<name>     candidates      the keys of the rows that may be in it

The two are apart because the first is written with every progress of a collection, and the second
once. Both expire some time after the batch is closed.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darkroom.aws.items import Item, ItemCodec, to_attribute
from darkroom.aws.ledger_table import LEDGER, add_to_run, mark_unfinished
from darkroom.aws.table import ConditionFailed, Conflict, Table
from darkroom.jobs import Counters
from darkroom.ledger.batches import BatchRecord, BatchState

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_LIST = "batches"
_CANDIDATES = "candidates"
_MAX_TRIES = 10
_CLOSED_KEPT_SECONDS = 7 * 86_400
_CANDIDATES_KEPT_SECONDS = 30 * 86_400  # longer than any batch is open


@dataclass(frozen=True, slots=True)
class _Candidates:
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Stored:
    """`job` is the table's partition key, so that a batch's own is an attribute of `batch`."""

    batch: BatchRecord
    version: int = 0


_BATCHES, _KEYS = ItemCodec(_Stored), ItemCodec(_Candidates)


class BatchTable:
    """BatchLedger on the ledger's table. Thread-safe."""

    def __init__(
        self,
        dynamodb: "DynamoDBClient",
        table: str,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        rng: Callable[[], float] = random.random,
        patience_seconds: float = 0.0,
    ) -> None:
        self._table = Table(
            dynamodb, table, LEDGER, patience_seconds=patience_seconds, sleep=sleep, rng=rng
        )
        self._now = now

    def create(self, batch: BatchRecord, candidates: Sequence[str]) -> None:
        expiry = {"expires_at": to_attribute(int(self._now() + _CANDIDATES_KEPT_SECONDS))}
        keys = _KEYS.to_item(_Candidates(tuple(candidates))) | expiry

        def attempt() -> None:
            try:
                self._table.write(
                    self._table.put(_LIST, _item(batch.name), _to_item(batch), None),
                    self._table.put(_partition(batch.name), _CANDIDATES, keys, None),
                )
            except ConditionFailed as failed:
                if failed.item is None or _from_item(failed.item) != batch:
                    raise

        self._retry(attempt, batch.name)

    def read(self, name: str) -> BatchRecord | None:
        stored = self._table.get(_BATCHES, _LIST, _item(name))
        return stored.batch if stored else None

    def candidates(self, name: str) -> Sequence[str]:
        found = self._table.get(_KEYS, _partition(name), _CANDIDATES)
        return found.keys if found else ()

    def open(self) -> Iterator[BatchRecord]:
        return map(_from_item, self._table.query(_LIST, "batch#", without="closed"))

    def update(
        self, name: str, transition: Callable[[BatchRecord], BatchRecord | None]
    ) -> BatchRecord | None:
        def attempt() -> BatchRecord | None:
            batch = self.read(name)
            changed = transition(batch) if batch else None
            return self._swap(changed) if changed else None

        return self._retry(attempt, name)

    def _swap(self, batch: BatchRecord) -> BatchRecord:
        """Replace the previous version. Raises Conflict when another write was first."""
        table, closed = self._table, batch.state is BatchState.CLOSED
        attributes = _to_item(batch) | (self._closed() if closed else {})
        writes = [table.put(_LIST, _item(batch.name), attributes, batch.version - 1)]
        counters = batch.unclaimed_cost
        if closed and counters != Counters():
            writes.append(add_to_run(table, batch.job, batch.run, counters, 0))
            writes.append(mark_unfinished(table, batch.job))
        try:
            table.write(*writes)
        except ConditionFailed as failed:
            if failed.item is None or _from_item(failed.item) != batch:
                raise Conflict from failed
        return batch

    def _closed(self) -> Item:
        expiry = int(self._now() + _CLOSED_KEPT_SECONDS)
        return {"closed": to_attribute(True), "expires_at": to_attribute(expiry)}  # an item's value

    def _retry[T](self, attempt: Callable[[], T], name: str) -> T:
        return self._table.retry(attempt, f"batch {name} changes too often", _MAX_TRIES)


def _to_item(batch: BatchRecord) -> Item:
    return _BATCHES.to_item(_Stored(batch, batch.version))


def _from_item(item: Item) -> BatchRecord:
    return _BATCHES.from_item(item).batch


def _item(name: str) -> str:
    return f"batch#{name}"


def _partition(name: str) -> str:
    return f"batch#{name}"
