"""The rows queue on SQS (MiniStack): batches, groups, attributes, partial failures."""

from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from darkroom.aws.errors import is_transient
from darkroom.aws.sqs import SqsRowQueue
from darkroom.errors import ServiceUnavailable
from darkroom.ports import RowQueue
from darkroom.rows import Received, RowMessage, RowRequest
from tests.conftest import ClientFactory
from tests.fakes.services import FakeClock, FakeQueue


class QueueHarness:
    """Two queues of the test's own, and the adapter on them."""

    def __init__(self, sqs: Any) -> None:
        self.sqs = sqs
        self.rows, self.dead = (
            sqs.create_queue(QueueName=f"{kind}-{uuid4().hex}")["QueueUrl"]
            for kind in ("rows", "dead")
        )
        self.queue = SqsRowQueue(sqs, self.rows, self.dead, sleep=FakeClock().sleep)

    def receive(self, url: str) -> list[Any]:
        """All messages, hidden for ten minutes."""
        received: list[Any] = []
        while messages := self.sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=600,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        ).get("Messages"):
            received += messages
        return received


@pytest.fixture
def harness(aws_client: ClientFactory) -> QueueHarness:
    return QueueHarness(aws_client("sqs"))


def message(row: int, job: str = "jobs/products", size: int = 10) -> RowMessage:
    request = RowRequest(instruction="é" * size)
    return RowMessage(job=job, run="r", row=row, key=str(row), base="s3://in/", request=request)


def test_every_message_arrives_as_it_was_sent_in_memory_and_in_sqs(harness: QueueHarness) -> None:
    # 200 kB each in UTF-8: a batch has at most 1 MiB, and 10 messages.
    wanted = [message(n, size=100_000 if n < 12 else 10) for n in range(35)]
    fake = FakeQueue()
    fake.send(wanted)
    assert fake.sent == wanted
    harness.queue.send(wanted)
    arrived = [RowMessage.model_validate_json(m["Body"]) for m in harness.receive(harness.rows)]
    assert sorted(arrived, key=lambda m: m.row) == wanted


def test_messages_of_a_job_share_a_group_for_fair_delivery(harness: QueueHarness) -> None:
    harness.queue.send([message(0), message(1, job="jobs/größe mit " + "x" * 200)])
    groups = {m["Attributes"]["MessageGroupId"] for m in harness.receive(harness.rows)}
    assert "jobs/products" in groups
    assert all(len(group) <= 128 and group.isascii() and " " not in group for group in groups)


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


@pytest.fixture(params=["memory", "sqs"])
def queue(request: pytest.FixtureRequest) -> RowQueue:
    if request.param == "memory":
        return FakeQueue()
    aws_client: ClientFactory = request.getfixturevalue("aws_client")
    return QueueHarness(aws_client("sqs")).queue


def receive_all(queue: RowQueue) -> list[Received]:
    received: list[Received] = []
    while batch := queue.receive(10, hide_seconds=600, wait_seconds=0):
        assert len(batch) <= 10
        received += batch
    return received


def test_a_received_message_is_hidden_from_others_until_it_is_shown_again(queue: RowQueue) -> None:
    queue.send([message(n) for n in range(12)])
    received = receive_all(queue)
    bodies = [RowMessage.model_validate_json(m.body) for m in received]
    assert sorted(body.row for body in bodies) == list(range(12))
    assert {m.receive_count for m in received} == {1}
    assert all(m.sent_at > 0 for m in received)
    queue.extend([received[0].receipt], 0)
    (again,) = receive_all(queue)
    assert (again.message_id, again.receive_count) == (received[0].message_id, 2)


def test_a_receive_takes_no_more_messages_than_asked_for(queue: RowQueue) -> None:
    queue.send([message(n) for n in range(12)])
    assert 1 <= len(queue.receive(3, hide_seconds=600, wait_seconds=0)) <= 3


def test_deleted_messages_are_gone_and_invalid_receipts_are_skipped(queue: RowQueue) -> None:
    queue.send([message(n) for n in range(12)])
    receipts = [m.receipt for m in receive_all(queue)]
    queue.delete(receipts[:11])
    queue.delete(receipts[:1])
    queue.extend(receipts, 0)
    assert [m.receipt for m in receive_all(queue)] != []
    assert receive_all(queue) == []


def test_the_backlog_counts_visible_hidden_and_delayed_messages(queue: RowQueue) -> None:
    assert queue.backlog() == 0
    queue.send([message(n) for n in range(5)])
    queue.send([message(5)], delay_seconds=2000)
    assert len(queue.receive(2, hide_seconds=600, wait_seconds=0)) == 2
    assert queue.backlog() == 6


def test_a_delayed_message_cannot_be_received_yet(queue: RowQueue) -> None:
    queue.send([message(0)], delay_seconds=600)
    assert receive_all(queue) == []


class ScriptedSqs:
    """Accepts every third entry of a batch, and fails the others; or raises `error` at first."""

    def __init__(
        self, *, sender_fault: bool = False, error: Exception | None = None, errors: int = 100
    ) -> None:
        self.accepted: list[str] = []
        self.sender_fault = sender_fault
        self.errors = [error] * errors if error else []
        self.clock = FakeClock()

    def send_message_batch(self, QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803
        if self.errors and (error := self.errors.pop()):
            raise error
        self.accepted += [entry["MessageBody"] for entry in Entries[::3]]
        failed = {"SenderFault": self.sender_fault, "Code": "X", "Message": "no"}
        return {"Failed": [{"Id": e["Id"], **failed} for n, e in enumerate(Entries) if n % 3]}

    def send(self, messages: int) -> None:
        client: Any = self
        queue = SqsRowQueue(client, "rows", "dead", sleep=self.clock.sleep)
        queue.send([message(n) for n in range(messages)])


def test_only_entries_that_failed_are_sent_again() -> None:
    sqs = ScriptedSqs()
    sqs.send(10)
    rows = [RowMessage.model_validate_json(body).row for body in sqs.accepted]
    assert sorted(rows) == list(range(10))
    assert sqs.clock.slept == sorted(sqs.clock.slept)


def test_messages_are_sent_again_when_sqs_does_not_answer() -> None:
    """A splitter that ended here would begin again, and send a few messages more each time."""
    sqs = ScriptedSqs(error=client_error("InternalFailure", 500), errors=3)
    sqs.send(3)
    rows = {RowMessage.model_validate_json(body).row for body in sqs.accepted}
    assert rows == {0, 1, 2}
    unanswered = ScriptedSqs(error=client_error("InternalFailure", 500))
    with pytest.raises(ServiceUnavailable):
        unanswered.send(1)
    assert 0 < sum(unanswered.clock.slept) < 10


def test_a_message_that_sqs_rejects_is_an_error_not_a_retry() -> None:
    with pytest.raises(ValueError, match="SQS rejected a message"):
        ScriptedSqs(sender_fault=True).send(10)


def client_error(code: str, status: int) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "SendMessageBatch")


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
    with pytest.raises(ServiceUnavailable if transient else ClientError):
        ScriptedSqs(error=error).send(1)
