"""The rows queue and its dead-letter queue in SQS."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import batched
from typing import TYPE_CHECKING, Any

from darkroom.aws.errors import translate_errors
from darkroom.errors import ServiceUnavailable
from darkroom.retry import backoff
from darkroom.rows import RowMessage

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


_SERVICE = "the queue (SQS)"
_BATCH = 10
# SQS accepts 1 MiB a batch; leave room for the envelope of ten entries.
_BATCH_BYTES = 1024 * 1024 - 16 * 1024
_MAX_TRIES = 6
_PAUSE_SECONDS = 0.1
_PAUSE_CAP_SECONDS = 3.0
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

    def send(self, messages: Sequence[RowMessage]) -> None:
        for batch in _batches(messages):
            self._repeat(self._send_batch, batch)

    def dead_letter(self, body: str, attributes: Mapping[str, str]) -> None:
        # SQS rejects control characters and empty values.
        values = {
            name: "".join(filter(str.isprintable, value[:_MAX_ATTRIBUTE_CHARS]))
            for name, value in attributes.items()
        }
        described: dict[str, Any] = {
            name: {"DataType": "String", "StringValue": value}
            for name, value in values.items()
            if value
        }
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
            self._repeat(self._extend_batch, entries)

    def _extend_batch(self, entries: list[Any]) -> list[Any]:
        response = self._sqs.change_message_visibility_batch(QueueUrl=self._queue, Entries=entries)
        return [f for f in response.get("Failed", []) if not f.get("SenderFault")]

    def _send_batch(self, entries: list[Any]) -> list[Any]:
        response = self._sqs.send_message_batch(QueueUrl=self._queue, Entries=entries)
        failures: list[Any] = response.get("Failed", [])
        for failure in failures:
            if failure.get("SenderFault"):
                raise ValueError(f"SQS rejected a message: {failure.get('Message')}")
        return failures

    def _repeat(self, request: Callable[[list[Any]], list[Any]], entries: list[Any]) -> None:
        """Make a batch request, and again with the entries that failed."""
        for tries in range(1, _MAX_TRIES + 1):
            with translate_errors(_SERVICE):
                failed = {failure["Id"] for failure in request(entries)}
            entries = [entry for entry in entries if entry["Id"] in failed]
            if not entries:
                return
            self._sleep(backoff(tries, _PAUSE_SECONDS, _PAUSE_CAP_SECONDS))
        raise ServiceUnavailable(f"{_SERVICE} keeps failing entries of a batch")


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
