"""The rows queue on SQS (MiniStack): batches, groups, attributes, partial failures."""

import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from darkroom.aws.errors import is_transient
from darkroom.aws.sqs import SqsRowQueue
from darkroom.errors import ServiceUnavailable
from darkroom.rows import RowMessage, RowRequest
from tests.conftest import ClientFactory
from tests.fakes.services import FakeClock, FakeQueue

_names = itertools.count()


class QueueHarness:
    """Two queues of the test's own, and the adapter on them."""

    def __init__(self, sqs: Any) -> None:
        number = next(_names)
        self.sqs = sqs
        self.rows = sqs.create_queue(QueueName=f"contract-rows-{number}")["QueueUrl"]
        self.dead = sqs.create_queue(QueueName=f"contract-dead-{number}")["QueueUrl"]
        self.clock = FakeClock()
        self.queue = SqsRowQueue(sqs, self.rows, self.dead, sleep=self.clock.sleep)

    def receive(self, url: str, hidden: int = 600) -> list[Any]:
        received: list[Any] = []
        while True:
            response = self.sqs.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=10,
                VisibilityTimeout=hidden,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
            if not response.get("Messages"):
                return received
            received += response["Messages"]


@pytest.fixture
def harness(aws_client: ClientFactory) -> QueueHarness:
    return QueueHarness(aws_client("sqs"))


def message(row: int, job: str = "jobs/products", size: int = 10) -> RowMessage:
    return RowMessage(
        job=job,
        run="run-1",
        row=row,
        key=f"{row:06d}",
        base="s3://in/",
        request=RowRequest(instruction="é" * size),
    )


@pytest.mark.parametrize("kind", ["memory", "sqs"])
def test_every_message_arrives_as_it_was_sent(kind: str, request: pytest.FixtureRequest) -> None:
    messages = [message(n) for n in range(23)]
    if kind == "memory":
        fake = FakeQueue()
        fake.send(messages)
        arrived = fake.sent
    else:
        harness: QueueHarness = request.getfixturevalue("harness")
        harness.queue.send(messages)
        bodies = [m["Body"] for m in harness.receive(harness.rows)]
        arrived = [RowMessage.model_validate_json(body) for body in bodies]
    assert sorted(arrived, key=lambda m: m.row) == messages


def test_messages_of_a_job_share_a_group_for_fair_delivery(harness: QueueHarness) -> None:
    harness.queue.send([message(0), message(1, job="jobs/größe mit " + "x" * 200)])
    groups = {m["Attributes"]["MessageGroupId"] for m in harness.receive(harness.rows)}
    assert "jobs/products" in groups
    assert all(len(group) <= 128 and group.isascii() and " " not in group for group in groups)


def test_batches_keep_within_one_mebibyte(harness: QueueHarness) -> None:
    large = [message(n, size=100_000) for n in range(12)]  # 200 kB each in UTF-8
    harness.queue.send(large)
    assert len(harness.receive(harness.rows)) == 12


def test_a_dead_letter_carries_its_reason_and_the_body_untouched(harness: QueueHarness) -> None:
    attributes = {"reason": "unavailable", "detail": "503\x00\n" + "x" * 5000, "endpoint": ""}
    harness.queue.dead_letter('{"not": "ours"}', attributes)
    (dead,) = harness.receive(harness.dead)
    sent = {n: a["StringValue"] for n, a in dead["MessageAttributes"].items()}
    assert dead["Body"] == '{"not": "ours"}'
    assert sent["reason"] == "unavailable"
    assert sent["detail"].startswith("503xxx")
    assert len(sent["detail"]) <= 1000
    assert "endpoint" not in sent


def test_visibility_is_set_and_invalid_receipts_are_skipped(harness: QueueHarness) -> None:
    harness.queue.send([message(n) for n in range(12)])
    received = harness.receive(harness.rows)
    receipts = [m["ReceiptHandle"] for m in received]
    assert len(receipts) == 12
    harness.sqs.delete_message(QueueUrl=harness.rows, ReceiptHandle=receipts[0])
    harness.queue.extend(receipts, 0)
    assert len(harness.receive(harness.rows)) == 11


class FlakySqs:
    """Accepts every third entry of a batch; fails the others, by its own or the sender's fault."""

    def __init__(self, *, sender_fault: bool = False) -> None:
        self.accepted: list[str] = []
        self.sender_fault = sender_fault

    def send_message_batch(self, QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803
        good, bad = Entries[::3], [e for n, e in enumerate(Entries) if n % 3]
        self.accepted += [entry["MessageBody"] for entry in good]
        fault = {"SenderFault": self.sender_fault, "Code": "X", "Message": "no"}
        return {"Failed": [{"Id": entry["Id"], **fault} for entry in bad]}


def test_only_entries_that_failed_are_sent_again() -> None:
    sqs, clock = FlakySqs(), FakeClock()
    queue = SqsRowQueue(cast("Any", sqs), "rows", "dead", sleep=clock.sleep)
    queue.send([message(n) for n in range(10)])
    rows = [RowMessage.model_validate_json(body).row for body in sqs.accepted]
    assert sorted(rows) == list(range(10))
    assert clock.slept == sorted(clock.slept)


def test_a_message_that_sqs_rejects_is_an_error_not_a_retry() -> None:
    queue = SqsRowQueue(cast("Any", FlakySqs(sender_fault=True)), "rows", "dead")
    with pytest.raises(ValueError, match="SQS rejected a message"):
        queue.send([message(n) for n in range(10)])


class DeadSqs:
    def __init__(self, error: Callable[[], Exception]) -> None:
        self.error = error

    def send_message_batch(self, **_: Any) -> Any:
        raise self.error()


def client_error(code: str, status: int) -> ClientError:
    response: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "SendMessageBatch")


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (client_error("InternalFailure", 500), True),
        (client_error("Whatever", 503), True),
        (client_error("RequestThrottled", 400), True),
        (client_error("ProvisionedThroughputExceededException", 400), True),
        (EndpointConnectionError(endpoint_url="http://sqs"), True),
        (client_error("AccessDenied", 403), False),
        (client_error("ValidationException", 400), False),
    ],
)
def test_only_transient_errors_are_service_unavailable(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient
    queue = SqsRowQueue(cast("Any", DeadSqs(lambda: error)), "rows", "dead")
    with pytest.raises(ServiceUnavailable if transient else ClientError):
        queue.send([message(0)])
