"""`darkroom endpoints`: the secret is validated before it is written, and no key is printed."""

import json
import os
from datetime import UTC, datetime
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
        (text(api_keys=[]), "endpoints[0].api_keys: is missing or empty"),
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
    for arguments in ((), (file, "--from-env")):
        error = cli.error("endpoints", "push", *arguments, exit_code=2)
        assert "--from-env" in error


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
    assert f"{FINGERPRINTS[1]} (was rejected recently and is paused for 5 min)" in result.stdout
    assert has_no_key(result.output)
    (shown,) = cli.json("endpoints", "show")
    assert shown["state"]["breaker"] == "open"
    assert shown["state"]["cooling_down_keys"][FINGERPRINTS[1]]["reason"] == "key_rejected"
    assert has_no_key(json.dumps(shown))


def cool_down(cli: CliHarness, outcome: Outcome) -> None:
    (endpoint,) = EndpointsSecret.model_validate_json(cli.secret or "").endpoints
    until = int(cli.clock.now() + 300) * SECOND
    cooldowns = {key_id: KeyCooldown(until, outcome) for key_id in endpoint.key_ids()}
    state = EndpointState(revision=7, calls=12, key_cooldowns=cooldowns)
    cli.endpoint_states.items["gemini-main"] = state


def test_a_model_that_does_not_exist_is_not_shown_as_a_rejected_key(cli: CliHarness) -> None:
    cli.secret = text(model="gemini-3-pro-imag")
    cool_down(cli, Outcome.MODEL_UNAVAILABLE)
    shown = cli.succeed("endpoints", "show").stdout
    assert f"{FINGERPRINTS[0]} (model gemini-3-pro-imag not found, paused for " in shown
    assert "rejected" not in shown


def test_a_push_ends_the_cooldowns_of_endpoints_that_it_changes_and_of_no_other(
    cli: CliHarness,
) -> None:
    cli.secret = text(project="wrong")
    cool_down(cli, Outcome.KEY_REJECTED)
    same = cli.write("same.json", text(project="wrong"))
    assert "Ended" not in cli.succeed("endpoints", "push", same).stderr
    assert len(cli.endpoint_states.read("gemini-main").key_cooldowns) == 2
    corrected = cli.write("corrected.json", text(project="right"))
    assert (
        "Ended the cooldowns of gemini-main." in cli.succeed("endpoints", "push", corrected).stderr
    )
    state = cli.endpoint_states.read("gemini-main")
    assert (state.key_cooldowns, state.calls) == ({}, 12)


def test_push_and_show_say_until_when_workers_may_use_the_previous_secret(
    cli: CliHarness, file: Path
) -> None:
    cli.clock.time = datetime(2026, 11, 21, 12, 47, 10).timestamp()  # noqa: DTZ001 - local
    expected = "in use by all workers by 12:48:10. Until then some may still use the previous"
    assert expected in cli.succeed("endpoints", "push", file).stderr
    cli.clock.time += 59
    assert expected in cli.succeed("endpoints", "show").stderr
    cli.clock.time += 1
    assert "previous" not in cli.succeed("endpoints", "show").stderr


def test_an_endpoint_without_calls_is_shown_as_never_used(cli: CliHarness) -> None:
    cli.secret = text(requests_per_minute=0, max_in_flight=0)
    shown = cli.run("endpoints", "show").stdout
    assert "state: never used" in shown
    assert "limits: none" in shown


def pushed(cli: CliHarness, **fields: object) -> str:
    """What a push of one endpoint prints to standard error."""
    file = cli.write("endpoints.json", text(**fields))
    return cli.succeed("endpoints", "push", file, "--dry-run").stderr


def test_every_field_survives_a_push(cli: CliHarness) -> None:
    credentials = {"type": "service_account", "private_key": KEYS[0]}
    cli.succeed(
        *("endpoints", "push"),
        cli.write(
            "endpoints.json",
            text(
                api_keys=None,
                credentials=credentials,
                project="p",
                location="global",
                headers={"x-team": KEYS[1]},
                quality="high",
                service_tier="flex",
                prices={"image": 0.05},
                weight=0,
                images_per_minute=5,
                input_images_per_minute=9,
            ),
        ),
    )
    (endpoint,) = EndpointsSecret.model_validate_json(cli.secret or "").endpoints
    assert json.loads(endpoint.keys[0].get_secret_value()) == credentials
    assert endpoint.headers["x-team"].get_secret_value() == KEYS[1]
    assert (endpoint.prices.image, endpoint.weight, endpoint.quality) == (0.05, 0, "high")
    result = cli.run("endpoints", "show")
    assert "5 images a minute, 9 input images a minute" in result.stdout
    assert has_no_key(result.output)
    assert has_no_key(json.dumps(cli.json("endpoints", "show")))
    assert "Every endpoint has weight 0" in result.stderr


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"model": "gemini-3-pro-imag"}, "did you mean gemini-3-pro-image?"),
        ({"model": "gemini-9-ultra"}, "Darkroom does not know the model gemini-9-ultra"),
        ({"model": "gemini-2.5-flash-image"}, "use gemini-nano-banana-2.1"),
        ({"provider": "openai", "model": "gpt-image-1.5"}, "use gpt-image-2.6-sunburst"),
        ({"provider": "openai", "service_tier": "flex"}, "has no service_tier flex"),
        ({"service_tier": "flex", "location": "eu", "project": "p"}, "needs the location global"),
        ({"provider": "openai", "base_url": "https://h.example"}, "base_url has no path"),
        ({"base_url": "http://h.example/x"}, "sent unencrypted"),
        ({"base_url": "https://h.example/", "model": "flux-9"}, "the price of the model flux-9"),
        ({"model": "m", "model_is": "gemini-3-pro-imag"}, "did you mean gemini-3-pro-image?"),
    ],
)
def test_what_is_likely_a_mistake_is_a_warning_of_push_and_show(
    cli: CliHarness, fields: dict[str, object], warning: str
) -> None:
    cli.clock.time = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
    assert warning in pushed(cli, **fields)
    cli.secret = text(**fields)
    assert warning in cli.run("endpoints", "show").stderr


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"provider": "openai"},
        {"provider": "openai", "base_url": "https://h.example/v1", "model": "gpt-image-2"},
        {"provider": "openai", "base_url": "https://x.openai.azure.com", "api_version": "1"},
        {"base_url": "http://127.0.0.1:8080"},
        {"base_url": "https://h.example/v1", "model": "gpt-9", "prices": {"image": 0.1}},
        {"service_tier": "flex", "model": "gemini-nano-banana-2.1"},
    ],
)
def test_a_plain_endpoint_has_no_warning(cli: CliHarness, fields: dict[str, object]) -> None:
    cli.clock.time = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
    assert [line for line in pushed(cli, **fields).splitlines() if "Warning" in line] == []


def test_a_model_of_another_provider_is_rejected_unless_a_service_may_have_it(
    cli: CliHarness,
) -> None:
    file = cli.write("endpoints.json", text(model="gpt-image-2"))
    error = cli.error("endpoints", "push", file)
    assert "the model gpt-image-2 is OpenAI's and the provider is Gemini" in error
    pushed(cli, model="gpt-image-2", base_url="https://gateway.example")


def test_what_is_changed_on_purpose_is_printed_when_the_environment_is_pushed(
    cli: CliHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if any(part in name for part in ("OPENAI", "GEMINI", "GOOGLE", "DG_", "IMAGE_GEN")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DG_GEMINI_API_KEYS", ";".join(KEYS))
    monkeypatch.setenv("DG_GEMINI_MAX_WORKERS", "8")
    result = cli.succeed("endpoints", "push", "--from-env")
    assert "gemini-1, gemini-2: 10 calls a minute, since no limit is set" in result.stderr
    assert "DG_GEMINI_MAX_WORKERS is not used" in result.stderr
    assert has_no_key(result.output)
