"""The rows queue and its dead-letter queue in SQS."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from darkroom.aws.errors import translate_errors
from darkroom.errors import ServiceUnavailable
from darkroom.rows import RowMessage

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


_SERVICE = "the queue (SQS)"
_BATCH = 10
# SQS takes 1 MiB a batch; the envelope of ten entries is left some room.
_BATCH_BYTES = 1024 * 1024 - 16 * 1024
_TRIES = 6
_LONGEST_GROUP = 128
_LONGEST_ATTRIBUTE = 1000  # characters: for people to read


class SqsRowQueue:
    """RowQueue."""

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
            self._send_batch(batch)

    def dead_letter(self, body: str, attributes: Mapping[str, str]) -> None:
        described: dict[str, Any] = {
            name: {"DataType": "String", "StringValue": _sendable(value)}
            for name, value in attributes.items()
            if _sendable(value)
        }
        with translate_errors(_SERVICE):
            self._sqs.send_message(
                QueueUrl=self._dead, MessageBody=body, MessageAttributes=described
            )

    def extend(self, receipts: Sequence[str], seconds: int) -> None:
        """A receipt no longer in work (its message is gone, or hidden anew) is passed over."""
        for start in range(0, len(receipts), _BATCH):
            entries: list[Any] = [
                {"Id": str(n), "ReceiptHandle": receipt, "VisibilityTimeout": seconds}
                for n, receipt in enumerate(receipts[start : start + _BATCH])
            ]
            self._extend_batch(entries)

    def _extend_batch(self, entries: list[Any]) -> None:
        for attempt in range(_TRIES):
            with translate_errors(_SERVICE):
                answer = self._sqs.change_message_visibility_batch(
                    QueueUrl=self._queue, Entries=entries
                )
            failed = {f["Id"] for f in answer.get("Failed", []) if not f.get("SenderFault")}
            entries = [entry for entry in entries if entry["Id"] in failed]
            if not entries:
                return
            self._pause(attempt)
        raise ServiceUnavailable(f"{_SERVICE} keeps refusing to extend messages")

    def _send_batch(self, entries: list[Any]) -> None:
        for attempt in range(_TRIES):
            with translate_errors(_SERVICE):
                answer = self._sqs.send_message_batch(QueueUrl=self._queue, Entries=entries)
            failures = answer.get("Failed", [])
            failed = {failure["Id"] for failure in failures}
            entries = [entry for entry in entries if entry["Id"] in failed]
            if not entries:
                return
            faults = [f for f in failures if f.get("SenderFault")]
            if faults:
                raise ValueError(f"SQS takes no such message: {faults[0].get('Message')}")
            self._pause(attempt)
        raise ServiceUnavailable(f"{_SERVICE} keeps refusing messages")

    def _pause(self, attempt: int) -> None:
        self._sleep(min(0.1 * 2.0**attempt, 3.0))


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
        entry = {"Id": str(len(batch)), "MessageBody": body, "MessageGroupId": group}
        batch.append(entry)
        room -= size
    if batch:
        yield batch


def message_group(job: str) -> str:
    """The group id of a job's messages, for fair queues: ASCII letters, digits and punctuation."""
    safe = "".join(c if c.isascii() and c.isprintable() and c != " " else "_" for c in job)
    return safe[-_LONGEST_GROUP:]


def _sendable(value: str) -> str:
    """Without the control characters that SQS refuses."""
    return "".join(c for c in value[:_LONGEST_ATTRIBUTE] if c.isprintable())
