"""One DynamoDB table: strong reads, and conditional writes that are repeated after conflicts."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import batched
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from darkroom.aws.errors import (
    CONDITION_FAILED,
    CONDITION_FAILED_REASON,
    TRANSACTION_CANCELLED,
    TRANSACTION_CONFLICT,
    TRANSIENT_REASONS,
    error_code,
    translate_errors,
)
from darkroom.aws.items import Item, ItemCodec, to_attribute
from darkroom.errors import ServiceUnavailable
from darkroom.retry import backoff, while_unavailable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_BATCH_KEYS = 100  # the most that BatchGetItem accepts
_PAUSE_SECONDS = 0.05
_PAUSE_CAP_SECONDS = 1.0
_UNANSWERED_TRIES = 6
_UNANSWERED_PAUSE_SECONDS = 1.0
_UNANSWERED_PAUSE_CAP_SECONDS = 8.0


class Conflict(Exception):
    """Another write was first, and this one was not made: repeat it."""


class ConditionFailed(Exception):
    """The condition of write number `index` failed; `item` is what the table has there, if any."""

    def __init__(self, index: int, item: Item | None) -> None:
        super().__init__(f"the condition of write {index} failed")
        self.index = index
        self.item = item


class Table:
    """A table with partition key `job` and sort key `item`. Thread-safe.

    `service` names it in errors. All methods raise ServiceUnavailable for transient errors that
    last for longer than `patience_seconds`.
    """

    def __init__(
        self,
        dynamodb: "DynamoDBClient",
        name: str,
        service: str,
        *,
        patience_seconds: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._db = dynamodb
        self._name = name
        self._service = service
        self._patience_seconds = patience_seconds
        self._sleep = sleep
        self._rng = rng

    # -- reads

    def get[T](self, codec: ItemCodec[T], partition: str, item: str) -> T | None:
        def read() -> Any:
            with translate_errors(self._service):
                return self._db.get_item(
                    TableName=self._name, Key=key(partition, item), ConsistentRead=True
                )

        found = self._answered(read).get("Item")
        return codec.from_item(found) if found else None

    def get_many(self, keys: Iterable[Item], max_tries: int) -> list[Item]:
        """The items that exist, in any order."""
        found = list[Item]()
        for batch in batched(keys, _BATCH_KEYS, strict=False):
            pending: list[Any] = list(batch)

            def read(pending: list[Any] = pending) -> None:
                with translate_errors(self._service):
                    response = self._db.batch_get_item(
                        RequestItems={self._name: {"Keys": pending, "ConsistentRead": True}}
                    )
                found.extend(response["Responses"].get(self._name, []))
                unread = response["UnprocessedKeys"].get(self._name, {"Keys": []})["Keys"]
                pending[:] = unread
                if unread:
                    raise Conflict

            failure = f"{self._service} left keys unread: too many requests"
            self.retry(partial(self._answered, read), failure, max_tries)
        return found

    def query(
        self,
        partition: str,
        prefix: str,
        *,
        page_items: int | None = None,
        without: str | None = None,
    ) -> Iterator[Item]:
        """Items of the partition whose sort key begins with `prefix`, in its order, by pages.

        Those that have the attribute `without` are read, and cost, but are not sent.
        """
        values = {":first": {"S": prefix}}
        return self._query(partition, "begins_with(#item, :first)", values, page_items, without)

    def query_between(self, partition: str, first: str, last: str) -> Iterator[Item]:
        """Items of the partition with a sort key from `first` to `last`, both included."""
        values = {":first": {"S": first}, ":last": {"S": last}}
        return self._query(partition, "#item BETWEEN :first AND :last", values)

    def _query(
        self,
        partition: str,
        condition: str,
        values: Item,
        page_items: int | None = None,
        without: str | None = None,
    ) -> Iterator[Item]:
        request: dict[str, Any] = {
            "TableName": self._name,
            "KeyConditionExpression": f"job = :job AND {condition}",
            "ExpressionAttributeNames": {"#item": "item"},
            "ExpressionAttributeValues": {":job": {"S": partition}, **values},
            "ConsistentRead": True,
        }
        if page_items is not None:
            request["Limit"] = page_items
        if without is not None:
            request["FilterExpression"] = "attribute_not_exists(#without)"
            request["ExpressionAttributeNames"]["#without"] = without

        def read() -> Any:
            with translate_errors(self._service):
                return self._db.query(**request)

        while True:
            page = self._answered(read)
            yield from page["Items"]
            if "LastEvaluatedKey" not in page:
                return
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    # -- writes: each method returns a request for `write`

    def put(self, partition: str, item: str, attributes: Item, version: int | None) -> Any:
        """A put that replaces the record of this version, or creates it (None)."""
        put = {
            "TableName": self._name,
            "Item": attributes | key(partition, item),
            "ConditionExpression": "attribute_not_exists(job)",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if version is not None:
            # Version 0 is a default, which items leave out.
            condition = "#version = :version"
            if version == 0:
                condition = (
                    f"attribute_exists(job) AND (attribute_not_exists(#version) OR {condition})"
                )
            put["ConditionExpression"] = condition
            put["ExpressionAttributeNames"] = {"#version": "version"}
            put["ExpressionAttributeValues"] = {":version": to_attribute(version)}
        return {"Put": put}

    def add(self, partition: str, item: str, numbers: Item) -> Any:
        """An update that adds `numbers` to the item's attributes."""
        return {
            "Update": {
                "TableName": self._name,
                "Key": key(partition, item),
                "UpdateExpression": "ADD " + ", ".join(f"#{name} :{name}" for name in numbers),
                "ExpressionAttributeNames": {f"#{name}": name for name in numbers},
                "ExpressionAttributeValues": {f":{name}": n for name, n in numbers.items()},
            }
        }

    def update(
        self, partition: str, item: str, expression: str, values: Item, condition: str | None = None
    ) -> Any:
        update = {
            "TableName": self._name,
            "Key": key(partition, item),
            "UpdateExpression": expression,
            "ExpressionAttributeValues": values,
        }
        return {"Update": update | ({"ConditionExpression": condition} if condition else {})}

    def write(self, *writes: Any, patient: bool = True) -> None:
        """Write all or nothing. Raises ConditionFailed, Conflict, ServiceUnavailable.

        An earlier try may have been done and not answered: then the condition of write 0 fails,
        and the item there is the caller's own.
        """
        if patient:
            self._answered(lambda: self._write(writes))
        else:
            self._write(writes)

    def _write(self, writes: Sequence[Any]) -> None:
        try:
            with translate_errors(self._service):
                if len(writes) > 1:
                    self._db.transact_write_items(TransactItems=writes)
                elif "Put" in writes[0]:
                    self._db.put_item(**writes[0]["Put"])
                else:
                    self._db.update_item(**writes[0]["Update"])
        except ServiceUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, ClientError) and error_code(cause) == TRANSACTION_CONFLICT:
                raise Conflict from error
            raise
        except ClientError as error:
            _raise_refusal(error)
            raise

    def _answered[T](self, request: Callable[[], T]) -> T:
        """Make a request again while it is not answered, for up to `patience_seconds`."""
        return while_unavailable(
            request,
            tries=_UNANSWERED_TRIES,
            patience_seconds=self._patience_seconds,
            pause=self._unanswered_pause,
            sleep=self._sleep,
        )

    def _unanswered_pause(self, tries: int) -> float:
        longest = backoff(tries, _UNANSWERED_PAUSE_SECONDS, _UNANSWERED_PAUSE_CAP_SECONDS)
        return longest * self._rng()

    def retry[T](self, attempt: Callable[[], T], failure: str, max_tries: int) -> T:
        """Repeat `attempt` after every Conflict. Raises ServiceUnavailable(failure)."""
        for tries in range(1, max_tries + 1):
            try:
                return attempt()
            except Conflict:
                self._pause(tries)
        raise ServiceUnavailable(failure)

    def _pause(self, tries: int) -> None:
        """Wait before another try, with full jitter: writers that conflicted must not do so again.

        Source: "Exponential Backoff And Jitter", AWS Architecture Blog.
        """
        self._sleep(backoff(tries, _PAUSE_SECONDS, _PAUSE_CAP_SECONDS) * self._rng())


def key(partition: str, item: str) -> Item:
    return {"job": {"S": partition}, "item": {"S": item}}


def _raise_refusal(error: ClientError) -> None:
    """Raises ConditionFailed or Conflict if that is what the error means."""
    response: Any = error.response
    if error_code(error) == CONDITION_FAILED:
        raise ConditionFailed(0, response.get("Item")) from error
    if error_code(error) != TRANSACTION_CANCELLED:
        return
    reasons: Sequence[Any] = response.get("CancellationReasons", [])
    codes = [reason.get("Code", "None") for reason in reasons]
    if CONDITION_FAILED_REASON in codes:
        index = codes.index(CONDITION_FAILED_REASON)
        raise ConditionFailed(index, reasons[index].get("Item")) from error
    if set(codes) <= TRANSIENT_REASONS:
        raise Conflict from error
