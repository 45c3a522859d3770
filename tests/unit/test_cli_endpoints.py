"""`darkroom endpoints`: a checked secret goes in, and no key ever comes out."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from darkroom.calls import Outcome
from darkroom.endpoint_state import SECOND, EndpointState, KeyCooldown
from darkroom.endpoints import EndpointsSecret, key_fingerprint
from tests.fakes.command import FakeStack, run
from tests.fakes.services import FakeClock

KEYS = ("AIza-first-key-0001", "AIza-second-key-0002")
PRINTS = tuple(key_fingerprint(SecretStr(key)) for key in KEYS)


def document(**changes: object) -> dict[str, Any]:
    endpoint = {"name": "gemini-main", "provider": "gemini", "api_keys": list(KEYS)}
    return {"endpoints": [endpoint | changes]}


def no_key_in(text: str) -> bool:
    return not any(key in text for key in KEYS)


@pytest.fixture
def stack() -> FakeStack:
    return FakeStack(FakeClock())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps(document()))
    return path


def test_push_writes_a_secret_that_the_workers_can_read(stack: FakeStack, file: Path) -> None:
    result = run(stack, "endpoints", "push", file)
    assert result.exit_code == 0, result.stderr
    secret = EndpointsSecret.model_validate_json(stack.secret.text or "")
    assert [key.get_secret_value() for key in secret.endpoints[0].api_keys] == list(KEYS)
    assert secret == EndpointsSecret.model_validate(document())
    assert no_key_in(result.output)
    assert f"keys: {PRINTS[0]}, {PRINTS[1]}" in result.stdout


def test_push_reads_standard_input(stack: FakeStack) -> None:
    result = run(stack, "endpoints", "push", "-", typed=json.dumps(document()))
    assert result.exit_code == 0
    assert stack.secret.text


def test_a_dry_run_pushes_nothing(stack: FakeStack, file: Path) -> None:
    assert run(stack, "endpoints", "push", file, "--dry-run").exit_code == 0
    assert stack.secret.text is None


@pytest.mark.parametrize(
    ("changes", "says"),
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
def test_a_wrong_secret_is_told_by_its_field_and_never_by_its_value(
    stack: FakeStack, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps(document(**changes)))
    result = run(stack, "endpoints", "push", path)
    assert result.exit_code == 1
    assert says in result.stderr
    assert no_key_in(result.output)
    assert len(result.stderr.splitlines()) == 1
    assert stack.secret.text is None


def test_every_wrong_field_is_named_at_once(stack: FakeStack, tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps(document(weight=0, burst=0)))
    stderr = run(stack, "endpoints", "push", path).stderr
    assert "weight" in stderr
    assert "burst" in stderr


def test_json_cut_short_is_told_by_its_place(stack: FakeStack, tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps(document())[:-3])
    result = run(stack, "endpoints", "push", path)
    assert result.exit_code == 1
    assert "line 1, column" in result.stderr
    assert no_key_in(result.output)


def test_push_wants_a_file_or_the_environment_not_both(stack: FakeStack, file: Path) -> None:
    assert run(stack, "endpoints", "push").exit_code == 2
    assert run(stack, "endpoints", "push", file, "--from-env").exit_code == 2


def test_push_from_the_environment_needs_no_file(
    stack: FakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DG_GEMINI_API_KEYS", ",".join(KEYS))
    result = run(stack, "endpoints", "push", "--from-env")
    assert result.exit_code == 0, result.stderr
    secret = EndpointsSecret.model_validate_json(stack.secret.text or "")
    assert [k.get_secret_value() for k in secret.endpoints[0].api_keys] == list(KEYS)
    assert no_key_in(result.output)


def test_an_environment_without_keys_says_which_variables_to_set(
    stack: FakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if any(part in name for part in ("OPENAI", "GEMINI", "GOOGLE")):
            monkeypatch.delenv(name)
    result = run(stack, "endpoints", "push", "--from-env")
    assert result.exit_code == 1
    assert "GEMINI_API_KEY" in result.stderr
    assert stack.secret.text is None


def test_show_without_a_secret_says_how_to_make_one(stack: FakeStack) -> None:
    result = run(stack, "endpoints", "show")
    assert result.exit_code == 1
    assert "darkroom endpoints push" in result.stderr


def test_show_tells_breaker_calls_and_resting_keys(stack: FakeStack) -> None:
    stack.secret.text = json.dumps(document())
    now = int(stack.clock.now() * SECOND)
    stack.endpoint_states.states["gemini-main"] = EndpointState(
        revision=7,
        calls=12,
        breaker_open=True,
        breaker_until=now + 20 * SECOND,
        leases={"a": now + SECOND, "b": now - SECOND},
        key_cooldowns={PRINTS[1]: KeyCooldown(now + 300 * SECOND, Outcome.KEY_REJECTED)},
    )
    result = run(stack, "endpoints", "show")
    assert "state: breaker open for 20 s, 1 call in flight, 12 calls so far" in result.stdout
    assert f"{PRINTS[1]} (resting for 5 min: key rejected)" in result.stdout
    assert no_key_in(result.output)
    told = json.loads(run(stack, "endpoints", "show", "--json").stdout)
    assert told[0]["state"]["breaker"] == "open"
    assert told[0]["state"]["resting_keys"][PRINTS[1]]["why"] == "key_rejected"
    assert no_key_in(json.dumps(told))


def test_an_endpoint_never_called_says_so(stack: FakeStack) -> None:
    stack.secret.text = json.dumps(document(requests_per_minute=0, max_in_flight=0))
    shown = run(stack, "endpoints", "show").stdout
    assert "state: never used" in shown
    assert "limits: none" in shown
