"""The rows queue and its dead-letter queue in SQS."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import batched
from typing import TYPE_CHECKING, Any

from darkroom.aws.errors import translate_errors
from darkroom.errors import ServiceUnavailable
from darkroom.retry import while_unavailable
from darkroom.rows import Received, RowMessage

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType


_SERVICE = "the queue (SQS)"
_BATCH = 10
# SQS accepts 1 MiB a batch; leave room for the envelope of ten entries.
_BATCH_BYTES = 1024 * 1024 - 16 * 1024
_MAX_DELAY_SECONDS = 900  # of a message sent
_BACKLOG_ATTRIBUTES: Sequence["QueueAttributeNameType"] = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)
_MAX_TRIES = 6
_PATIENCE_SECONDS = 10.0  # the heartbeat's other requests wait meanwhile
_MAX_GROUP_CHARS = 128
_MAX_ATTRIBUTE_CHARS = 1000


class SqsRowQueue:
    """RowQueue on SQS. Thread-safe."""

    def __init__(
        self,
        sqs: "SQSClient",
        queue_url: str,
        dead_letter_url: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sqs = sqs
        self._queue = queue_url
        self._dead = dead_letter_url
        self._sleep = sleep

    def send(self, messages: Sequence[RowMessage], *, delay_seconds: int = 0) -> None:
        for batch in _batches(messages):
            if delay_seconds:
                for entry in batch:
                    entry["DelaySeconds"] = min(delay_seconds, _MAX_DELAY_SECONDS)
            self._request(self._sqs.send_message_batch, batch)

    def receive(self, limit: int, *, hide_seconds: int, wait_seconds: int) -> Sequence[Received]:
        with translate_errors(_SERVICE):
            response = self._sqs.receive_message(
                QueueUrl=self._queue,
                MaxNumberOfMessages=min(limit, _BATCH),
                VisibilityTimeout=hide_seconds,
                WaitTimeSeconds=wait_seconds,
                MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
            )
        return [received_message(message) for message in response.get("Messages", [])]

    def delete(self, receipts: Sequence[str]) -> None:
        for batch in batched(receipts, _BATCH, strict=False):
            entries = [{"Id": str(n), "ReceiptHandle": r} for n, r in enumerate(batch)]
            self._request(self._sqs.delete_message_batch, entries, skip_rejected=True)

    def backlog(self) -> int:
        with translate_errors(_SERVICE):
            attributes = self._sqs.get_queue_attributes(
                QueueUrl=self._queue, AttributeNames=_BACKLOG_ATTRIBUTES
            )["Attributes"]
        return sum(int(attributes.get(name, 0)) for name in _BACKLOG_ATTRIBUTES)

    def dead_letter(self, body: str, attributes: Mapping[str, str]) -> None:
        described: dict[str, Any] = {}
        for name, value in attributes.items():
            # SQS rejects control characters and empty values.
            if sendable := "".join(filter(str.isprintable, value[:_MAX_ATTRIBUTE_CHARS])):
                described[name] = {"DataType": "String", "StringValue": sendable}
        with translate_errors(_SERVICE):
            self._sqs.send_message(
                QueueUrl=self._dead, MessageBody=body, MessageAttributes=described
            )

    def extend(self, receipts: Sequence[str], seconds: int) -> None:
        """Skips receipts that are no longer valid: deleted, or received by another worker."""
        for batch in batched(receipts, _BATCH, strict=False):
            entries = [
                {"Id": str(n), "ReceiptHandle": receipt, "VisibilityTimeout": seconds}
                for n, receipt in enumerate(batch)
            ]
            self._request(self._sqs.change_message_visibility_batch, entries, skip_rejected=True)

    def _request(
        self, request: Callable[..., Any], entries: list[Any], *, skip_rejected: bool = False
    ) -> None:
        """Make a batch request, and again with the entries that SQS failed to process.

        One that is not answered is repeated as well. Otherwise a splitter would begin again after
        a few messages, and messages that return would stay hidden for the queue's visibility
        time-out. A message that was sent twice is edited once.
        """
        remaining = entries

        def attempt() -> None:
            nonlocal remaining
            with translate_errors(_SERVICE):
                failures = request(QueueUrl=self._queue, Entries=remaining).get("Failed", [])
            rejected = [failure for failure in failures if failure.get("SenderFault")]
            if rejected and not skip_rejected:
                raise ValueError(f"SQS rejected a message: {rejected[0].get('Message')}")
            failed = {failure["Id"] for failure in failures if failure not in rejected}
            remaining = [entry for entry in remaining if entry["Id"] in failed]
            if remaining:
                raise ServiceUnavailable(f"{_SERVICE} keeps failing entries of a batch")

        while_unavailable(
            attempt,
            tries=_MAX_TRIES,
            patience_seconds=_PATIENCE_SECONDS,
            sleep=self._sleep,
        )


def received_in(record: Mapping[str, Any]) -> Received:
    """Of an event's record: "Using Lambda with Amazon SQS" in the Lambda developer guide."""
    named = ("messageId", "receiptHandle", "body", "attributes")
    return _received(*(record[name] for name in named))


def received_message(message: Any) -> Received:
    """A message as boto3 returns it."""
    named = ("MessageId", "ReceiptHandle", "Body", "Attributes")
    return _received(*(message[name] for name in named))


def _received(message_id: str, receipt: str, body: str, attributes: Mapping[str, str]) -> Received:
    return Received(
        message_id=message_id,
        receipt=receipt,
        body=body,
        receive_count=int(attributes["ApproximateReceiveCount"]),
        sent_at=int(attributes["SentTimestamp"]) / 1000,
    )


def _batches(messages: Sequence[RowMessage]) -> Iterator[list[Any]]:
    """Up to ten messages and 1 MiB each, the limits of one request."""
    batch: list[Any] = []
    room = _BATCH_BYTES
    for message in messages:
        body = message.model_dump_json(exclude_defaults=True)
        size = len(body.encode())
        if batch and (len(batch) == _BATCH or size > room):
            yield batch
            batch, room = [], _BATCH_BYTES
        group = message_group(message.job)
        batch.append({"Id": str(len(batch)), "MessageBody": body, "MessageGroupId": group})
        room -= size
    if batch:
        yield batch


def message_group(job: str) -> str:
    """The group id of a job's messages, for fair queues: ASCII letters, digits and punctuation."""
    safe = "".join(c if c.isascii() and c.isprintable() and c != " " else "_" for c in job)
    return safe[-_MAX_GROUP_CHARS:]
