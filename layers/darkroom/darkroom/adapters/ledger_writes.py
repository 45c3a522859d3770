"""How the ledger's changes are written: one conditional put, or one transaction.

Items of a job: `row#<key>`, `job`, `budget`, `run#<run>`, `run#<run>#shard#<0-7>`.
"""

import zlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from darkroom.adapters.aws_errors import code_of, translated
from darkroom.adapters.items import Item, ItemCodec
from darkroom.jobs import Counters
from darkroom.ledger.row_moves import Change
from darkroom.ledger.values import RowRecord

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

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
        with translated(SERVICE):
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
    if code_of(error) == "ConditionalCheckFailedException":
        raise Refused(response.get("Item")) from error
    if code_of(error) != "TransactionCanceledException":
        return
    reasons = response.get("CancellationReasons", [])
    codes = [reason.get("Code", "None") for reason in reasons]
    if codes and codes[0] == "ConditionalCheckFailed":
        raise Refused(reasons[0].get("Item")) from error
    if "ConditionalCheckFailed" in codes:
        raise Refused(None) from error
    if set(codes) <= _PASSING_REASONS:
        raise Conflict from error
