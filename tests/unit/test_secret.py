"""The secret is kept while it is good, and read again when there is reason to."""

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
    """Stands in for the one call of the client that is used."""

    value: str | Exception
    reads: int = 0
    version: int = 1
    gate: threading.Event | None = None
    asked: list[str] = field(default_factory=list)

    def get_secret_value(self, *, SecretId: str) -> dict[str, Any]:  # noqa: N803 - AWS's name
        self.reads += 1
        self.asked.append(SecretId)
        if self.gate is not None:
            self.gate.wait(timeout=10)
        if isinstance(self.value, Exception):
            raise self.value
        return {"SecretString": self.value, "VersionId": f"v{self.version}"}

    def put(self, value: str | Exception) -> None:
        self.value = value
        self.version += 1


class World:
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


def test_it_is_read_once_in_five_minutes() -> None:
    world = World(text())
    for _ in range(100):
        assert world.names() == ["a"]
    assert world.secrets.asked == ["arn:secret"]
    world.secrets.put(text("b"))
    world.clock.time += 299
    assert world.names() == ["a"]
    world.clock.time += 2
    assert world.names() == ["b"]
    assert world.secrets.reads == 2


@pytest.mark.parametrize("broken", ["{", text(weight=0), text(surprise=1), "", "[]"])
def test_a_broken_secret_leaves_the_last_good_one_in_force_and_says_so_loudly(broken: str) -> None:
    world = World(text())
    world.names()
    world.secrets.put(broken)
    world.clock.time += 301
    assert world.names() == ["a"]
    assert world.telemetry.logged("error") == ["secret_not_usable"]
    assert KEY not in repr(world.telemetry.events)
    for _ in range(50):
        world.names()
    assert world.secrets.reads == 2  # not hammered while it is broken
    world.secrets.put(text("mended"))
    world.clock.time += 301
    assert world.names() == ["mended"]


@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "AccessDeniedException"}}, "GetSecretValue"),
        EndpointConnectionError(endpoint_url="https://secrets"),
    ],
)
def test_a_service_that_fails_leaves_the_last_good_secret_in_force(error: Exception) -> None:
    world = World(text())
    world.names()
    world.secrets.put(error)
    world.clock.time += 301
    assert world.names() == ["a"]
    assert world.telemetry.logged("error") == ["secret_not_usable"]


def test_without_ever_a_good_one_the_error_names_the_field_and_no_key() -> None:
    world = World(text(requests_per_minut=3))
    with pytest.raises(ConfigurationError, match="requests_per_minut") as caught:
        world.names()
    assert KEY not in str(caught.value)
    world.secrets.put(text())
    assert world.names() == ["a"]  # nothing to hold on to: read again at once


def test_a_rejected_key_has_it_read_again_at_once() -> None:
    world = World(text())
    world.names()
    world.secrets.put(text("mended"))
    world.clock.time += 20
    world.source.refresh()
    assert world.names() == ["mended"]


def test_a_storm_of_rejected_keys_is_not_a_storm_of_reads() -> None:
    world = World(text())
    for _ in range(600):  # ten rejections a second for a minute
        world.source.refresh()
        world.names()
        world.clock.time += 0.1
    assert world.secrets.reads <= 5


def test_a_refresh_that_came_too_soon_is_not_forgotten() -> None:
    world = World(text())
    world.names()
    world.source.refresh()
    world.secrets.put(text("mended"))
    assert world.names() == ["a"]
    world.clock.time += 15
    assert world.names() == ["mended"]


def test_threads_go_on_with_the_old_secret_while_one_reads() -> None:
    world = World(text())
    world.names()
    world.secrets.gate = threading.Event()
    world.secrets.put(text("b"))
    world.clock.time += 301
    reader = threading.Thread(target=world.names)
    reader.start()
    while world.secrets.reads < 2:
        pass
    assert world.names() == ["a"]
    world.secrets.gate.set()
    reader.join()
    assert world.names() == ["b"]
    assert world.secrets.reads == 2
