"""`darkroom endpoints`: the secret is validated before it is written, and no key is printed."""

import json
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from darkroom.calls import Outcome
from darkroom.endpoint_state import SECOND, EndpointState, KeyCooldown
from darkroom.endpoints import EndpointsSecret, key_fingerprint
from tests.fakes.command import CliHarness

KEYS = ("AIza-first-key-0001", "AIza-second-key-0002")
FINGERPRINTS = tuple(key_fingerprint(SecretStr(key)) for key in KEYS)


def text(**changes: object) -> str:
    """A secret with one endpoint."""
    endpoint = {"name": "gemini-main", "provider": "gemini", "api_keys": list(KEYS)}
    return json.dumps({"endpoints": [endpoint | changes]})


def has_no_key(text: str) -> bool:
    return not any(key in text for key in KEYS)


@pytest.fixture
def file(cli: CliHarness) -> Path:
    return cli.write("endpoints.json", text())


@pytest.mark.parametrize("source", ["file", "standard input", "environment"])
def test_push_writes_the_secret_that_workers_read(
    cli: CliHarness, file: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("DG_GEMINI_API_KEYS", ",".join(KEYS))
    argument = {"file": file, "standard input": "-", "environment": "--from-env"}[source]
    result = cli.succeed("endpoints", "push", argument, stdin=text())
    secret = EndpointsSecret.model_validate_json(cli.secret or "")
    assert [key.get_secret_value() for key in secret.endpoints[0].api_keys] == list(KEYS)
    if source != "environment":
        assert secret == EndpointsSecret.model_validate_json(text())
    assert has_no_key(result.output)
    assert f"keys: {FINGERPRINTS[0]}, {FINGERPRINTS[1]}" in result.stdout


def test_a_dry_run_pushes_nothing(cli: CliHarness, file: Path) -> None:
    cli.succeed("endpoints", "push", file, "--dry-run")
    assert cli.secret is None


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (text(api_key=KEYS[0]), "endpoints[0].api_key: no such field"),
        (text(api_keys=KEYS[0]), "endpoints[0].api_keys: "),
        (text(api_keys=[]), "endpoints[0]: api_keys: "),
        (text(api_keys=[[KEYS[0]]]), "endpoints[0].api_keys[0]: "),
        (text(provider="gemni"), "endpoints[0].provider: "),
        (text(requests_per_minute=-1), "endpoints[0].requests_per_minute: "),
        (text(name=KEYS[0] + "!"), "endpoints[0].name: "),
        (text(weight=-1, burst=0), "weight"),
        (text(weight=-1, burst=0), "burst"),
        (text()[:-3], "line 1 column"),
    ],
)
def test_an_invalid_secret_is_rejected_naming_all_fields_but_never_their_values(
    cli: CliHarness, secret: str, message: str
) -> None:
    error = cli.error("endpoints", "push", cli.write("endpoints.json", secret))
    assert message in error
    assert has_no_key(error)
    assert cli.secret is None


def test_push_takes_either_a_file_or_the_environment(cli: CliHarness, file: Path) -> None:
    cli.error("endpoints", "push", exit_code=2)
    cli.error("endpoints", "push", file, "--from-env", exit_code=2)


def test_push_needs_keys_in_the_environment(
    cli: CliHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if any(part in name for part in ("OPENAI", "GEMINI", "GOOGLE")):
            monkeypatch.delenv(name)
    assert "GEMINI_API_KEY" in cli.error("endpoints", "push", "--from-env")
    assert cli.secret is None


def test_show_without_a_secret_explains_how_to_push_one(cli: CliHarness) -> None:
    assert "darkroom endpoints push" in cli.error("endpoints", "show")


def test_show_includes_breaker_calls_and_keys_that_are_cooling_down(cli: CliHarness) -> None:
    cli.secret = text()
    now = int(cli.clock.now() * SECOND)
    (endpoint,) = EndpointsSecret.model_validate_json(text()).endpoints
    rejected = list(endpoint.key_ids())[1]
    cli.endpoint_states.items["gemini-main"] = EndpointState(
        revision=7,
        calls=12,
        breaker_open=True,
        breaker_until=now + 20 * SECOND,
        leases={"a": now + SECOND, "b": now - SECOND},
        key_cooldowns={rejected: KeyCooldown(now + 300 * SECOND, Outcome.KEY_REJECTED)},
    )
    result = cli.run("endpoints", "show")
    assert "state: breaker open for 20 s, 1 call in flight, 12 calls so far" in result.stdout
    assert f"{FINGERPRINTS[1]} (cooling down for 5 min: key rejected)" in result.stdout
    assert has_no_key(result.output)
    (shown,) = cli.json("endpoints", "show")
    assert shown["state"]["breaker"] == "open"
    assert shown["state"]["cooling_down_keys"][FINGERPRINTS[1]]["reason"] == "key_rejected"
    assert has_no_key(json.dumps(shown))


def test_an_endpoint_without_calls_is_shown_as_never_used(cli: CliHarness) -> None:
    cli.secret = text(requests_per_minute=0, max_in_flight=0)
    shown = cli.run("endpoints", "show").stdout
    assert "state: never used" in shown
    assert "limits: none" in shown
