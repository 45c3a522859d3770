"""`darkroom endpoints check`: the real SDKs list the models of each key, and nothing is charged."""

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from darkroom.calls import AvailableModels, CallFailed, Outcome
from darkroom.endpoints import key_fingerprint
from darkroom.providers.gemini import GeminiImageEditor
from darkroom.providers.http import new_client
from darkroom.providers.openai import OpenAIImageEditor
from darkroom.providers.registry import Provider
from darkroom_local.providers import Simulator
from tests.contract.provider_harness import BOTH, GEMINI, NAME, OPENAI, Harness, running_harness
from tests.fakes.command import CliHarness

GOOD, BAD = "sk-test-good-000111222", "sk-test-bad-333444555"
MODELS = {"gemini-3-pro-image": None, "gpt-image-2.6-sunburst": None, "gpt-image-1.5": "2026-12-01"}


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with running_harness() as harness:
        yield harness


@pytest.fixture
def simulator(harness: Harness) -> Simulator:
    harness.set_up(keys=[GOOD], models=MODELS)
    return harness.simulator


@pytest.fixture
def cli(tmp_path: Path) -> CliHarness:
    cli = CliHarness(tmp_path)
    cli.clock.time = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
    return cli


def endpoint(simulator: Simulator, provider: str, **fields: Any) -> dict[str, Any]:
    base_url = simulator.base_url(NAME) + ("/v1" if provider == "openai" else "")
    return {"name": provider, "provider": provider, "base_url": base_url, **fields}


def checked(cli: CliHarness, *endpoints: dict[str, Any]) -> tuple[int, list[dict[str, Any]], str]:
    file = cli.write("endpoints.json", json.dumps({"endpoints": endpoints}))
    result = cli.run("endpoints", "check", file, "--json")
    assert GOOD not in result.output
    assert BAD not in result.output
    return result.exit_code, json.loads(result.stdout), result.stderr


@pytest.mark.parametrize("provider", ["gemini", "openai"])
def test_each_key_is_reported_by_its_fingerprint(
    harness: Harness, simulator: Simulator, cli: CliHarness, provider: str
) -> None:
    code, (good, bad), _ = checked(cli, endpoint(simulator, provider, api_keys=[GOOD, BAD]))
    assert code == 1
    assert good["key"] == key_fingerprint(SecretStr(GOOD))
    assert (good["accepted"], good["model_available"]) == (True, True)
    assert (bad["accepted"], bad["reason"]) == (False, "key_rejected")
    assert harness.stats()["paid_images"] == 0
    shown = cli.run("endpoints", "check", cli.folder / "endpoints.json")
    assert f"key: {key_fingerprint(SecretStr(GOOD))}: accepted" in shown.stdout
    assert f"key: {key_fingerprint(SecretStr(BAD))}: key rejected (" in shown.stdout


def test_the_end_of_a_model_is_that_of_the_list_and_of_the_catalogue(
    simulator: Simulator, cli: CliHarness
) -> None:
    code, (found,), warnings = checked(
        cli, endpoint(simulator, "openai", api_keys=[GOOD], model="gpt-image-1.5")
    )
    assert code == 0
    assert found["model_ends_on"] == "2026-12-01"
    assert "use gpt-image-2.6-sunburst" in warnings


def test_the_stacks_endpoints_are_checked_without_a_file(
    simulator: Simulator, cli: CliHarness
) -> None:
    cli.push_endpoints(endpoint(simulator, "gemini", api_keys=[GOOD]))
    assert "model: gemini-3-pro-image: available" in cli.succeed("endpoints", "check").stdout


def test_a_server_that_does_not_answer_is_named(cli: CliHarness) -> None:
    nowhere = {"name": "g", "provider": "gemini", "base_url": "http://127.0.0.1:9"}
    code, (found,), _ = checked(cli, nowhere | {"api_keys": [GOOD]})
    assert (code, found["reason"]) == (1, "unavailable")


def listed(harness: Harness, provider: Provider, response: httpx2.Response) -> AvailableModels:
    """What a server with that response lists. Raises CallFailed."""
    with new_client(httpx2.MockTransport(lambda _: response)) as http:
        editor = GeminiImageEditor(http) if provider is GEMINI else OpenAIImageEditor(http)
        return editor.available_models(harness.endpoint(provider), SecretStr(GOOD), 5)


@pytest.mark.parametrize("provider", BOTH)
def test_a_service_without_a_list_of_models_is_not_a_rejected_key(
    harness: Harness, provider: Provider
) -> None:
    body = {"error": {"message": "not found"}}
    with pytest.raises(CallFailed) as caught:
        listed(harness, provider, httpx2.Response(404, json=body))
    assert caught.value.outcome is Outcome.BAD_REQUEST


@pytest.mark.parametrize(
    "body", [{"data": 5}, {"models": 5}, {"data": [{"id": None}]}, {"models": [{}]}, "x", [], None]
)
@pytest.mark.parametrize("provider", BOTH)
def test_a_malformed_list_is_empty_or_a_failed_call(
    harness: Harness, provider: Provider, body: object
) -> None:
    response = httpx2.Response(200, json=body)
    with contextlib.suppress(CallFailed):  # any other exception fails the test
        assert not any(listed(harness, provider, response).ends)


def test_an_own_deployment_is_not_expected_in_the_list(
    simulator: Simulator, cli: CliHarness
) -> None:
    deployment = endpoint(
        simulator, "openai", api_keys=[GOOD], model="team", model_is="gpt-image-2"
    )
    code, (found,), _ = checked(cli, deployment)
    assert (code, found["model_available"]) == (0, None)


def test_limits_in_the_response_are_reported(harness: Harness) -> None:
    headers = {"x-ratelimit-limit-requests": "60"}
    response = httpx2.Response(200, json={"object": "list", "data": []}, headers=headers)
    assert listed(harness, OPENAI, response).provider_limits.requests_per_minute == 60


def test_a_name_that_was_shut_down_is_checked_as_the_name_that_is_sent(
    simulator: Simulator, cli: CliHarness
) -> None:
    old = endpoint(simulator, "gemini", api_keys=[GOOD], model="gemini-3-pro-image-preview")
    code, (found,), warnings = checked(cli, old)
    assert (code, found["model_available"]) == (0, True)
    assert "it is sent as gemini-3-pro-image" in warnings
