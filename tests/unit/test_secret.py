"""The secret is cached while it is valid, and read again when there is a reason to."""

import json
import threading
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from darkroom.aws.secrets import SecretsManagerSource
from darkroom.errors import ConfigurationError
from darkroom.metrics import Metric
from tests.fakes.services import FakeClock, FakeTelemetry

KEY = "sk-very-secret-99"


def text(name: str = "a", **fields: object) -> str:
    endpoint = {"name": name, "provider": "openai", "api_keys": [KEY], **fields}
    return json.dumps({"endpoints": [endpoint]})


class Harness:
    """The source on a scripted Secrets Manager, whose client this is."""

    def __init__(self, value: str | None = None) -> None:
        self.value: str | Exception = value or text()
        self.ids: list[str] = []  # of the secrets read
        self.version = 1
        self.released: threading.Event | None = None  # a read waits for it
        self.reading = threading.Event()
        self.clock = FakeClock()
        self.telemetry = FakeTelemetry()
        client: Any = self
        self.source = SecretsManagerSource(client, "arn:secret", self.clock, self.telemetry)

    def get_secret_value(self, *, SecretId: str) -> dict[str, Any]:  # noqa: N803 - AWS's name
        self.ids.append(SecretId)
        if self.released is not None:
            self.reading.set()
            self.released.wait(timeout=60)
        if isinstance(self.value, Exception):
            raise self.value
        return {"SecretString": self.value, "VersionId": f"v{self.version}"}

    def put(self, value: str | Exception, after: float = 0) -> None:
        self.value = value
        self.version += 1
        self.clock.time += after

    def names(self) -> list[str]:
        return [e.name for e in self.source.endpoints().endpoints]


def test_the_secret_is_read_every_half_minute() -> None:
    harness = Harness()
    for _ in range(100):
        assert harness.names() == ["a"]
    assert harness.ids == ["arn:secret"]
    harness.put(text("b"), after=29)
    assert harness.names() == ["a"]
    harness.clock.time += 2
    assert harness.names() == ["b"]
    assert len(harness.ids) == 2


@pytest.mark.parametrize(
    "unusable",
    [
        *("{", text(weight=-1), text(surprise=1), "", "[]"),
        ClientError({"Error": {"Code": "AccessDeniedException"}}, "GetSecretValue"),
        EndpointConnectionError(endpoint_url="https://secrets"),
    ],
)
def test_an_unusable_secret_leaves_the_last_valid_one_in_use_and_logs_an_error(
    unusable: str | Exception,
) -> None:
    harness = Harness()
    harness.names()
    harness.put(unusable, after=301)
    assert harness.names() == ["a"]
    assert harness.telemetry.logged("error") == ["secret_not_usable"]
    assert harness.telemetry.metrics[Metric.SECRET_UNUSABLE] == 1
    assert KEY not in repr(harness.telemetry.events)
    for _ in range(50):
        harness.names()
    assert len(harness.ids) == 2  # not for every row while it is invalid
    harness.put(text("fixed"), after=301)
    assert harness.names() == ["fixed"]


def test_without_a_valid_secret_the_error_names_the_field_and_no_key() -> None:
    harness = Harness(text(requests_per_minut=3))
    with pytest.raises(ConfigurationError, match="requests_per_minut") as caught:
        harness.names()
    assert KEY not in str(caught.value)
    harness.put(text())
    assert harness.names() == ["a"]  # without a valid one it is read again at once


def test_many_rejected_keys_cause_few_reads() -> None:
    harness = Harness()
    for _ in range(600):  # ten rejections a second for a minute
        harness.source.refresh()
        harness.names()
        harness.clock.time += 0.1
    assert len(harness.ids) <= 5


@pytest.mark.parametrize("age", [0, 20])
def test_after_a_rejected_key_the_secret_is_read_at_once_or_15_seconds_after_the_last_time(
    age: float,
) -> None:
    harness = Harness()
    harness.names()
    harness.put(text("fixed"), after=age)
    harness.source.refresh()
    assert harness.names() == (["fixed"] if age else ["a"])
    harness.clock.time += 15
    assert harness.names() == ["fixed"]


def test_other_threads_use_the_old_secret_while_one_reads() -> None:
    harness = Harness()
    harness.names()
    harness.released = threading.Event()
    harness.put(text("b"), after=301)
    reader = threading.Thread(target=harness.names)
    reader.start()
    assert harness.reading.wait(timeout=60)
    assert harness.names() == ["a"]
    harness.released.set()
    reader.join()
    assert harness.names() == ["b"]
    assert len(harness.ids) == 2


@pytest.mark.parametrize("value", ["", "{}", '{"endpoints": []}'])
def test_a_secret_that_nobody_has_pushed_says_what_to_do(value: str) -> None:
    harness = Harness()
    harness.put(value)
    with pytest.raises(ConfigurationError, match="no endpoints are configured: push them with"):
        harness.names()


def test_a_corrected_secret_is_used_within_a_minute_by_a_process_without_a_failure() -> None:
    harness = Harness()
    harness.names()
    harness.put(text("corrected"), after=31)
    assert harness.names() == ["corrected"]
