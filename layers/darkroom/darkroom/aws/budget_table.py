"""A job's budget in DynamoDB, spread over shards, because one item takes few transactions a second.

    <job>              budget    `granted`: micro-USD handed out to the shards
    <job>#shard#<n>    budget    `room`: what is left of its grants, under `room_limit`;
                                 `reserved`: for calls under way

A reservation takes from the room of its row's shard, in the transaction that writes the row. What
was granted never exceeds the limit, and room is only made by grants: so what is reserved or spent
never exceeds it either. Another limit (of a later upload) takes effect by new grants.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from darkroom.aws.items import ItemCodec, to_attribute
from darkroom.aws.table import ConditionFailed, Table, key
from darkroom.ledger.rows import Change
from darkroom.rows import NotSent

SHARDS = 32  # 500 settlements a second are 16 for each: few of them meet in one transaction
_ITEM = "budget"
# A grant is this part of what is left: grants are rare at first, and small towards the end.
_GRANT_DIVISOR = 2 * SHARDS
_MAX_TRIES = 10


@dataclass(frozen=True, slots=True)
class _Granted:
    granted: int = 0


@dataclass(frozen=True, slots=True)
class _Shard:
    room: int = 0
    room_limit: int = -1
    reserved: int = 0


_GRANTED, _SHARD = ItemCodec(_Granted), ItemCodec(_Shard)


@dataclass(frozen=True, slots=True)
class BudgetTable:
    table: Table

    def writes(self, job: str, shard: int, change: Change, limit: int | None) -> list[Any]:
        """What a change of a row writes; with a `limit`, only if the shard has room for it."""
        if not change.budget and not change.reserved:
            return []
        numbers = {"room": -change.budget, "reserved": change.reserved}
        attributes = {name: to_attribute(number) for name, number in numbers.items()}
        write = self.table.add(shard_partition(job, shard), _ITEM, attributes)
        if limit is not None:
            write["Update"]["ConditionExpression"] = "room >= :cost AND room_limit = :limit"
            values = write["Update"]["ExpressionAttributeValues"]
            values |= {":cost": to_attribute(change.budget), ":limit": to_attribute(limit)}
        return [write]

    def make_room(self, job: str, shard: int, cost: int, limit: int) -> NotSent | None:
        """Find room for `cost` in the shard: None when the reservation may be tried again."""
        granted, shards = self._read(job)
        own = shards.get(shard, _Shard())
        available = own.room + limit - granted
        if available >= cost:
            self._grant(
                job, shard, own, min(available, self._wanted(own, cost, limit, granted)), limit
            )
            return None
        others = {n: s for n, s in shards.items() if n != shard and s.room > 0}
        available += sum(other.room for other in others.values())
        if available >= cost:
            self._take_back(job, others, cost)
            return None
        reserved = sum(s.reserved for s in shards.values())
        return NotSent.BUDGET_RESERVED if available + reserved >= cost else NotSent.NO_BUDGET

    def _wanted(self, own: _Shard, cost: int, limit: int, granted: int) -> int:
        room = own.room if own.room_limit == limit else 0
        return max(cost, room + (limit - granted) // _GRANT_DIVISOR)

    def committed(self, job: str) -> int:
        """Micro-USD spent or reserved."""
        granted, shards = self._read(job)
        return granted - sum(shard.room for shard in shards.values())

    def _read(self, job: str) -> tuple[int, dict[int, _Shard]]:
        partitions = {shard_partition(job, n): n for n in range(SHARDS)}
        keys = [key(job, _ITEM), *(key(partition, _ITEM) for partition in partitions)]
        granted, shards = 0, dict[int, _Shard]()
        for item in self.table.get_many(keys, _MAX_TRIES):
            partition = item["job"]["S"]
            if partition == job:
                granted = _GRANTED.from_item(item).granted
            else:
                shards[partitions[partition]] = _SHARD.from_item(item)
        return granted, shards

    def _grant(self, job: str, shard: int, own: _Shard, room: int, limit: int) -> None:
        """Change the shard's room; what it has more, or less, is granted or given back."""
        added = room - own.room
        if added == 0 and own.room_limit == limit:
            return  # made by another row meanwhile
        grant = self._change_granted(job, added)
        if added > 0:
            most = {":most": to_attribute(limit - added)}
            grant["Update"]["ExpressionAttributeValues"] |= most
            missing = "attribute_not_exists(granted) OR "
            grant["Update"]["ConditionExpression"] = f"{missing}granted <= :most"
        values = {":new": to_attribute(room), ":limit": to_attribute(limit)}
        expression = "SET room = :new, room_limit = :limit"
        self._write(self._swap_room(job, shard, own, expression, values), grant)

    def _take_back(self, job: str, others: dict[int, _Shard], cost: int) -> None:
        """Return the room of the richest shards, as many as the cost needs."""
        writes, returned = list[Any](), 0
        for n, other in sorted(others.items(), key=lambda entry: -entry[1].room):
            writes.append(self._swap_room(job, n, other, "SET room = :new", {":new": {"N": "0"}}))
            returned += other.room
            if returned >= cost:
                break
        self._write(*writes, self._change_granted(job, -returned))

    def _change_granted(self, job: str, added: int) -> Any:
        return self.table.add(job, _ITEM, {"granted": to_attribute(added)})

    def _swap_room(
        self, job: str, shard: int, before: _Shard, expression: str, values: dict[str, Any]
    ) -> Any:
        condition = "room = :before"
        if before.room == 0:  # a default, and a shard without an item yet
            condition = f"attribute_not_exists(room) OR {condition}"
        values = values | {":before": to_attribute(before.room)}
        partition = shard_partition(job, shard)
        return self.table.update(partition, _ITEM, expression, values, condition)

    def _write(self, *writes: Any) -> None:
        """Raises Conflict. When something has changed since it was read, nothing is written."""
        with suppress(ConditionFailed):
            self.table.write(*writes)


def shard_partition(job: str, shard: int) -> str:
    return f"{job}#shard#{shard}"
