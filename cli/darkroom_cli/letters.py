"""The dead-letter queue on SQS, and the way back to the rows queue."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from botocore.exceptions import ClientError

from darkroom.aws.sqs import message_group
from darkroom_cli.ports import DeadLetter

HOLD_SECONDS = 300  # how long a message stays ours; also what an interrupted run leaves hidden
_UNSUPPORTED = {
    "InvalidAction",
    "UnsupportedOperation",
    "AWS.SimpleQueueService.UnsupportedOperation",
}


class SqsDeadLetters:
    """ports.DeadLetters."""

    def __init__(self, client: Any, dead_letter_url: str, rows_url: str) -> None:
        self._client, self._from, self._to = client, dead_letter_url, rows_url

    def count(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self._client.get_queue_attributes(QueueUrl=self._from, AttributeNames=names)
        return sum(int(value) for value in found["Attributes"].values())

    def receive(self) -> Sequence[DeadLetter]:
        # The long poll asks all of SQS's hosts: an empty answer means an empty queue.
        answer = self._client.receive_message(
            QueueUrl=self._from,
            MaxNumberOfMessages=10,
            VisibilityTimeout=HOLD_SECONDS,
            WaitTimeSeconds=1,
            MessageAttributeNames=["All"],
        )
        return [
            DeadLetter(
                m["MessageId"],
                m["ReceiptHandle"],
                m["Body"],
                {
                    name: value["StringValue"]
                    for name, value in m.get("MessageAttributes", {}).items()
                    if "StringValue" in value
                },
            )
            for m in answer.get("Messages", ())
        ]

    def send_back(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        entries = [
            {
                "Id": str(i),
                "MessageBody": letter.body,
                **({"MessageGroupId": message_group(letter.job)} if letter.job else {}),
            }
            for i, letter in enumerate(letters)
        ]
        answer = self._client.send_message_batch(QueueUrl=self._to, Entries=entries)
        return [letters[int(done["Id"])] for done in answer.get("Successful", ())]

    def delete(self, letters: Sequence[DeadLetter]) -> None:
        entries = [{"Id": str(i), "ReceiptHandle": m.receipt} for i, m in enumerate(letters)]
        if entries:
            self._client.delete_message_batch(QueueUrl=self._from, Entries=entries)

    def release(self, letters: Sequence[DeadLetter]) -> None:
        for start in range(0, len(letters), 10):
            entries = [
                {"Id": str(i), "ReceiptHandle": m.receipt, "VisibilityTimeout": 0}
                for i, m in enumerate(letters[start : start + 10])
            ]
            self._client.change_message_visibility_batch(QueueUrl=self._from, Entries=entries)

    def move_all(self) -> Iterator[int] | None:
        source, target = self._arn(self._from), self._arn(self._to)
        try:
            self._client.start_message_move_task(SourceArn=source, DestinationArn=target)
        except ClientError as error:
            if error.response["Error"]["Code"] in _UNSUPPORTED:
                return None
            raise
        return self._progress(source)

    def _progress(self, source: str) -> Iterator[int]:
        while True:
            found = self._client.list_message_move_tasks(SourceArn=source, MaxResults=1)
            task = found["Results"][0]
            yield int(task.get("ApproximateNumberOfMessagesMoved", 0))
            if task["Status"] == "FAILED":
                raise ClientError(
                    {"Error": {"Code": "MoveFailed", "Message": json.dumps(task, default=str)}},
                    "StartMessageMoveTask",
                )
            if task["Status"] != "RUNNING":
                return

    def _arn(self, url: str) -> str:
        found = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        return str(found["Attributes"]["QueueArn"])
