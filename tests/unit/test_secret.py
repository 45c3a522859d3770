"""The secret is cached while it is valid, and read again when there is a reason to."""

import json
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from darkroom.aws.secrets import SecretsManagerSource
from darkroom.errors import ConfigurationError
from tests.fakes.services import FakeClock, FakeTelemetry

KEY = "sk-very-secret-99"


def text(name: str = "a", **fields: object) -> str:
    endpoint = {"name": name, "provider": "openai", "api_keys": [KEY], **fields}
    return json.dumps({"endpoints": [endpoint]})


@dataclass
class ScriptedSecrets:
    """Stands in for the Secrets Manager client."""

    value: str | Exception
    reads: int = 0
    version: int = 1
    released: threading.Event | None = None  # a read waits for it
    reading: threading.Event = field(default_factory=threading.Event)
    ids: list[str] = field(default_factory=list)

    def get_secret_value(self, *, SecretId: str) -> dict[str, Any]:  # noqa: N803 - AWS's name
        self.reads += 1
        self.ids.append(SecretId)
        if self.released is not None:
            self.reading.set()
            self.released.wait(timeout=60)
        if isinstance(self.value, Exception):
            raise self.value
        return {"SecretString": self.value, "VersionId": f"v{self.version}"}

    def put(self, value: str | Exception) -> None:
        self.value = value
        self.version += 1


class Harness:
    def __init__(self, value: str | Exception) -> None:
        self.secrets = ScriptedSecrets(value)
        self.clock = FakeClock()
        self.telemetry = FakeTelemetry()
        self.source = SecretsManagerSource(
            self.secrets,  # type: ignore[arg-type]
            "arn:secret",
            self.clock,
            self.telemetry,
        )

    def names(self) -> list[str]:
        return [e.name for e in self.source.endpoints().endpoints]


def test_the_secret_is_read_once_in_five_minutes() -> None:
    harness = Harness(text())
    for _ in range(100):
        assert harness.names() == ["a"]
    assert harness.secrets.ids == ["arn:secret"]
    harness.secrets.put(text("b"))
    harness.clock.time += 299
    assert harness.names() == ["a"]
    harness.clock.time += 2
    assert harness.names() == ["b"]
    assert harness.secrets.reads == 2


@pytest.mark.parametrize("invalid", ["{", text(weight=0), text(surprise=1), "", "[]"])
def test_an_invalid_secret_leaves_the_last_valid_one_in_use_and_logs_an_error(invalid: str) -> None:
    harness = Harness(text())
    harness.names()
    harness.secrets.put(invalid)
    harness.clock.time += 301
    assert harness.names() == ["a"]
    assert harness.telemetry.logged("error") == ["secret_not_usable"]
    assert KEY not in repr(harness.telemetry.events)
    for _ in range(50):
        harness.names()
    assert harness.secrets.reads == 2  # not for every row while it is invalid
    harness.secrets.put(text("fixed"))
    harness.clock.time += 301
    assert harness.names() == ["fixed"]


@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "AccessDeniedException"}}, "GetSecretValue"),
        EndpointConnectionError(endpoint_url="https://secrets"),
    ],
)
def test_an_aws_error_leaves_the_last_valid_secret_in_use(error: Exception) -> None:
    harness = Harness(text())
    harness.names()
    harness.secrets.put(error)
    harness.clock.time += 301
    assert harness.names() == ["a"]
    assert harness.telemetry.logged("error") == ["secret_not_usable"]


def test_without_a_valid_secret_the_error_names_the_field_and_no_key() -> None:
    harness = Harness(text(requests_per_minut=3))
    with pytest.raises(ConfigurationError, match="requests_per_minut") as caught:
        harness.names()
    assert KEY not in str(caught.value)
    harness.secrets.put(text())
    assert harness.names() == ["a"]  # without a valid one it is read again at once


def test_after_a_rejected_key_the_secret_is_read_at_once() -> None:
    harness = Harness(text())
    harness.names()
    harness.secrets.put(text("fixed"))
    harness.clock.time += 20
    harness.source.refresh()
    assert harness.names() == ["fixed"]


def test_many_rejected_keys_cause_few_reads() -> None:
    harness = Harness(text())
    for _ in range(600):  # ten rejections a second for a minute
        harness.source.refresh()
        harness.names()
        harness.clock.time += 0.1
    assert harness.secrets.reads <= 5


def test_a_refresh_that_comes_too_soon_is_done_later() -> None:
    harness = Harness(text())
    harness.names()
    harness.source.refresh()
    harness.secrets.put(text("fixed"))
    assert harness.names() == ["a"]
    harness.clock.time += 15
    assert harness.names() == ["fixed"]


def test_other_threads_use_the_old_secret_while_one_reads() -> None:
    harness = Harness(text())
    harness.names()
    harness.secrets.released = threading.Event()
    harness.secrets.put(text("b"))
    harness.clock.time += 301
    reader = threading.Thread(target=harness.names)
    reader.start()
    assert harness.secrets.reading.wait(timeout=60)
    assert harness.names() == ["a"]
    harness.secrets.released.set()
    reader.join()
    assert harness.names() == ["b"]
    assert harness.secrets.reads == 2
