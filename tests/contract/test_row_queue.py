"""What the rest relies on in SQS (on MiniStack), and how partial failures are met."""

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


class Station:
    """Two queues of the test's own, and the adapter on them."""

    def __init__(self, sqs: Any) -> None:
        number = next(_names)
        self.sqs = sqs
        self.rows = sqs.create_queue(QueueName=f"contract-rows-{number}")["QueueUrl"]
        self.dead = sqs.create_queue(QueueName=f"contract-dead-{number}")["QueueUrl"]
        self.clock = FakeClock()
        self.queue = SqsRowQueue(sqs, self.rows, self.dead, sleep=self.clock.sleep)

    def receive(self, url: str, hidden: int = 600) -> list[Any]:
        got: list[Any] = []
        while True:
            answer = self.sqs.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=10,
                VisibilityTimeout=hidden,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
            if not answer.get("Messages"):
                return got
            got += answer["Messages"]


@pytest.fixture
def station(aws_client: ClientFactory) -> Station:
    return Station(aws_client("sqs"))


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
    wanted = [message(n) for n in range(23)]
    if kind == "memory":
        fake = FakeQueue()
        fake.send(wanted)
        arrived = fake.sent
    else:
        station: Station = request.getfixturevalue("station")
        station.queue.send(wanted)
        bodies = [m["Body"] for m in station.receive(station.rows)]
        arrived = [RowMessage.model_validate_json(body) for body in bodies]
    assert sorted(arrived, key=lambda m: m.row) == wanted


def test_a_jobs_messages_share_a_group_for_fair_delivery(station: Station) -> None:
    station.queue.send([message(0), message(1, job="jobs/größe mit " + "x" * 200)])
    groups = {m["Attributes"]["MessageGroupId"] for m in station.receive(station.rows)}
    assert "jobs/products" in groups
    assert all(len(group) <= 128 and group.isascii() and " " not in group for group in groups)


def test_batches_keep_within_one_mebibyte(station: Station) -> None:
    large = [message(n, size=100_000) for n in range(12)]  # 200 kB each in UTF-8
    station.queue.send(large)
    assert len(station.receive(station.rows)) == 12


def test_a_dead_letter_carries_its_reason_and_the_body_untouched(station: Station) -> None:
    attributes = {"reason": "unavailable", "detail": "503\x00\n" + "x" * 5000, "endpoint": ""}
    station.queue.dead_letter('{"not": "ours"}', attributes)
    (letter,) = station.receive(station.dead)
    told = {n: a["StringValue"] for n, a in letter["MessageAttributes"].items()}
    assert letter["Body"] == '{"not": "ours"}'
    assert told["reason"] == "unavailable"
    assert told["detail"].startswith("503xxx")
    assert len(told["detail"]) <= 1000
    assert "endpoint" not in told


def test_visibility_is_set_and_stale_receipts_are_passed_over(station: Station) -> None:
    station.queue.send([message(n) for n in range(12)])
    held = station.receive(station.rows)
    receipts = [m["ReceiptHandle"] for m in held]
    assert len(receipts) == 12
    station.sqs.delete_message(QueueUrl=station.rows, ReceiptHandle=receipts[0])
    station.queue.extend(receipts, 0)
    assert len(station.receive(station.rows)) == 11


class FlakySqs:
    """Takes every third entry of a batch and blames itself, or the sender, for the others."""

    def __init__(self, *, sender_fault: bool = False) -> None:
        self.taken: list[str] = []
        self.sender_fault = sender_fault

    def send_message_batch(self, QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803
        good, bad = Entries[::3], [e for n, e in enumerate(Entries) if n % 3]
        self.taken += [entry["MessageBody"] for entry in good]
        fault = {"SenderFault": self.sender_fault, "Code": "X", "Message": "no"}
        return {"Failed": [{"Id": entry["Id"], **fault} for entry in bad]}


def test_only_entries_that_failed_are_sent_again() -> None:
    sqs, clock = FlakySqs(), FakeClock()
    queue = SqsRowQueue(cast("Any", sqs), "rows", "dead", sleep=clock.sleep)
    queue.send([message(n) for n in range(10)])
    rows = [RowMessage.model_validate_json(body).row for body in sqs.taken]
    assert sorted(rows) == list(range(10))
    assert clock.slept == sorted(clock.slept)


def test_a_message_sqs_refuses_for_what_it_is_is_an_error_not_a_retry() -> None:
    queue = SqsRowQueue(cast("Any", FlakySqs(sender_fault=True)), "rows", "dead")
    with pytest.raises(ValueError, match="takes no such message"):
        queue.send([message(n) for n in range(10)])


class DeadSqs:
    def __init__(self, error: Callable[[], Exception]) -> None:
        self.error = error

    def send_message_batch(self, **_: Any) -> Any:
        raise self.error()


def client_error(code: str, status: int) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "SendMessageBatch")


@pytest.mark.parametrize(
    ("error", "passing"),
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
def test_what_passes_is_told_from_what_somebody_must_see(error: Exception, passing: bool) -> None:
    assert is_transient(error) is passing
    queue = SqsRowQueue(cast("Any", DeadSqs(lambda: error)), "rows", "dead")
    with pytest.raises(ServiceUnavailable if passing else ClientError):
        queue.send([message(0)])
