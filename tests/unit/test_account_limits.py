"""Limits that responses state correct those of the endpoints secret downwards, with a warning."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome, ProviderLimits
from darkroom.dispatch.account_limits import AccountLimits, ObservedEditor
from darkroom.endpoints import Endpoint
from tests.fakes.dispatching import IMAGE, FakeSecretSource, ScriptedEditor, openai, secret
from tests.fakes.services import FakeClock, FakeTelemetry


class Harness:
    """One OpenAI endpoint with 60 calls a minute, whose responses state `ProviderLimits`."""

    def __init__(self) -> None:
        self.telemetry = FakeTelemetry()
        self.source = FakeSecretSource(secret(openai(requests_per_minute=60)))
        self.limits = AccountLimits(self.source, self.telemetry)
        self.scripted = ScriptedEditor(FakeClock())
        self.editor = ObservedEditor(self.scripted, self.limits)

    @property
    def endpoint(self) -> Endpoint:
        return self.limits.endpoints().endpoints[0]

    def call(self, **stated: int) -> EditResult:
        self.scripted.script("openai", replace(IMAGE, provider_limits=ProviderLimits(**stated)))
        return self.edit()

    def edit(self) -> EditResult:
        plan = CallPlan(self.endpoint.provider, self.endpoint.model, "p")
        return self.editor.edit(plan, self.endpoint, SecretStr("k"), 60)

    def in_force(self) -> tuple[int, int, int]:
        e = self.endpoint
        return e.requests_per_minute, e.images_per_minute, e.input_images_per_minute


@pytest.fixture
def harness() -> Harness:
    return Harness()


def warnings_of(harness: Harness) -> list[Any]:
    return [f["detail"] for _, event, f in harness.telemetry.events if "limit_above" in event]


def test_limits_below_the_secrets_are_used_and_said_once(harness: Harness) -> None:
    assert harness.limits.endpoints() is harness.source.current
    for _ in range(3):
        assert harness.call(requests_per_minute=20, input_images_per_minute=5).images
    assert harness.in_force() == (20, 0, 5)
    rest = "in the endpoints secret, and the account allows"
    assert warnings_of(harness) == [
        f"requests_per_minute is 60 {rest} 20: 20 is used",
        f"input_images_per_minute is not limited {rest} 5: 5 is used",
    ]
    assert harness.limits.endpoints() is harness.limits.endpoints()


def test_limits_are_never_raised_above_the_secrets(harness: Harness) -> None:
    harness.call(requests_per_minute=10_000)
    assert harness.in_force() == (60, 0, 0)
    harness.call(requests_per_minute=20)
    harness.call(requests_per_minute=40)  # the account was upgraded
    assert harness.in_force() == (40, 0, 0)
    harness.call(requests_per_minute=500)
    assert harness.in_force() == (60, 0, 0)
    assert len(warnings_of(harness)) == 1


def test_a_rejection_states_limits_too_and_the_next_secret_keeps_them(harness: Harness) -> None:
    limits = ProviderLimits(images_per_minute=5)
    failed = CallFailed(Outcome.RATE_LIMITED, "429", provider_limits=limits)
    harness.scripted.script("openai", failed)
    with pytest.raises(CallFailed):
        harness.edit()
    assert harness.in_force() == (60, 5, 0)
    harness.source.after_refresh = secret(openai(requests_per_minute=30, images_per_minute=4))
    harness.limits.refresh()
    assert harness.in_force() == (30, 4, 0)
