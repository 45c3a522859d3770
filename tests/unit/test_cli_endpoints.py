"""`darkroom endpoints`: the secret is validated before it is written, and no key is printed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from darkroom.calls import Outcome
from darkroom.endpoint_state import SECOND, EndpointState, KeyCooldown
from darkroom.endpoints import EndpointsSecret, key_fingerprint
from tests.fakes.command import CliHarness

KEYS = ("AIza-first-key-0001", "AIza-second-key-0002")
FINGERPRINTS = tuple(key_fingerprint(SecretStr(key)) for key in KEYS)


def document(**changes: object) -> dict[str, Any]:
    endpoint = {"name": "gemini-main", "provider": "gemini", "api_keys": list(KEYS)}
    return {"endpoints": [endpoint | changes]}


def has_no_key(text: str) -> bool:
    return not any(key in text for key in KEYS)


@pytest.fixture
def cli() -> CliHarness:
    return CliHarness()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps(document()))
    return path


def test_push_writes_the_secret_that_workers_read(cli: CliHarness, file: Path) -> None:
    result = cli.run("endpoints", "push", file)
    assert result.exit_code == 0, result.stderr
    secret = EndpointsSecret.model_validate_json(cli.stack.secret or "")
    assert [key.get_secret_value() for key in secret.endpoints[0].api_keys] == list(KEYS)
    assert secret == EndpointsSecret.model_validate(document())
    assert has_no_key(result.output)
    assert f"keys: {FINGERPRINTS[0]}, {FINGERPRINTS[1]}" in result.stdout


def test_push_reads_standard_input(cli: CliHarness) -> None:
    result = cli.run("endpoints", "push", "-", stdin=json.dumps(document()))
    assert result.exit_code == 0
    assert cli.stack.secret


def test_a_dry_run_pushes_nothing(cli: CliHarness, file: Path) -> None:
    assert cli.run("endpoints", "push", file, "--dry-run").exit_code == 0
    assert cli.stack.secret is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"api_key": KEYS[0]}, "endpoints[0].api_key: no such field"),
        ({"api_keys": KEYS[0]}, "endpoints[0].api_keys: "),
        ({"api_keys": []}, "endpoints[0].api_keys: "),
        ({"api_keys": [[KEYS[0]]]}, "endpoints[0].api_keys[0]: "),
        ({"provider": "gemni"}, "endpoints[0].provider: "),
        ({"requests_per_minute": -1}, "endpoints[0].requests_per_minute: "),
        ({"name": KEYS[0] + "!"}, "endpoints[0].name: "),
    ],
)
def test_an_invalid_secret_is_rejected_naming_the_field_but_never_its_value(
    cli: CliHarness, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps(document(**changes)))
    result = cli.run("endpoints", "push", path)
    assert result.exit_code == 1
    assert message in result.stderr
    assert has_no_key(result.output)
    assert len(result.stderr.splitlines()) == 1
    assert cli.stack.secret is None


def test_all_invalid_fields_are_named_at_once(cli: CliHarness, tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps(document(weight=0, burst=0)))
    stderr = cli.run("endpoints", "push", path).stderr
    assert "weight" in stderr
    assert "burst" in stderr


def test_truncated_json_is_rejected_naming_line_and_column(cli: CliHarness, tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps(document())[:-3])
    result = cli.run("endpoints", "push", path)
    assert result.exit_code == 1
    assert "line 1 column" in result.stderr
    assert has_no_key(result.output)


def test_push_takes_either_a_file_or_the_environment(cli: CliHarness, file: Path) -> None:
    assert cli.run("endpoints", "push").exit_code == 2
    assert cli.run("endpoints", "push", file, "--from-env").exit_code == 2


def test_push_from_the_environment_needs_no_file(
    cli: CliHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DG_GEMINI_API_KEYS", ",".join(KEYS))
    result = cli.run("endpoints", "push", "--from-env")
    assert result.exit_code == 0, result.stderr
    secret = EndpointsSecret.model_validate_json(cli.stack.secret or "")
    assert [k.get_secret_value() for k in secret.endpoints[0].api_keys] == list(KEYS)
    assert has_no_key(result.output)


def test_an_environment_without_keys_is_rejected_naming_the_variables(
    cli: CliHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if any(part in name for part in ("OPENAI", "GEMINI", "GOOGLE")):
            monkeypatch.delenv(name)
    result = cli.run("endpoints", "push", "--from-env")
    assert result.exit_code == 1
    assert "GEMINI_API_KEY" in result.stderr
    assert cli.stack.secret is None


def test_show_without_a_secret_says_how_to_push_one(cli: CliHarness) -> None:
    result = cli.run("endpoints", "show")
    assert result.exit_code == 1
    assert "darkroom endpoints push" in result.stderr


def test_show_includes_breaker_calls_and_keys_that_are_cooling_down(cli: CliHarness) -> None:
    cli.stack.secret = json.dumps(document())
    now = int(cli.clock.now() * SECOND)
    cli.stack.endpoint_states.items["gemini-main"] = EndpointState(
        revision=7,
        calls=12,
        breaker_open=True,
        breaker_until=now + 20 * SECOND,
        leases={"a": now + SECOND, "b": now - SECOND},
        key_cooldowns={FINGERPRINTS[1]: KeyCooldown(now + 300 * SECOND, Outcome.KEY_REJECTED)},
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
    cli.stack.secret = json.dumps(document(requests_per_minute=0, max_in_flight=0))
    shown = cli.run("endpoints", "show").stdout
    assert "state: never used" in shown
    assert "limits: none" in shown
