"""Each fault of a provider leads to the action of its outcome, and to no other.

The real dispatcher, planner, editors and SDKs; the providers are simulated, over HTTP. Only time
and the shared state of the endpoints are in memory.
"""

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest

from darkroom.calls import CallFailed, CallPlan, EditResult, SourceImage
from darkroom.dispatch.dispatcher import TieredDispatcher
from darkroom.endpoints import Endpoint
from darkroom.errors import Reason, RetryRow, RowRejected
from darkroom.models.planner import plan_call
from darkroom.ports import DispatchResult
from darkroom.providers.gemini import GeminiImageEditor
from darkroom.providers.openai import OpenAIImageEditor
from darkroom.rows import RowRequest
from darkroom_local.providers import FaultKind, Simulator, running
from tests.contract.provider_harness import GEMINI, OPENAI, left_half_mask, photo
from tests.fakes.dispatching import FakeSecretSource, gemini, openai, secret
from tests.fakes.endpoint_states import InMemoryEndpointStates
from tests.fakes.services import FakeClock, FakeTelemetry

REJECTED = {
    FaultKind.REFUSED: Reason.REFUSED,
    FaultKind.TEXT_ONLY: Reason.NO_IMAGE,
    FaultKind.EMPTY: Reason.NO_IMAGE,
    FaultKind.BAD_REQUEST: Reason.BAD_REQUEST,
}
FALLS_BACK = {
    FaultKind.RATE_LIMITED: Reason.RATE_LIMITED,
    FaultKind.QUOTA_SPENT: Reason.QUOTA_SPENT,
    FaultKind.KEY_REJECTED: Reason.KEY_REJECTED,
    FaultKind.MODEL_RETIRED: Reason.KEY_REJECTED,
} | dict.fromkeys(
    (
        FaultKind.SERVER_ERROR,
        FaultKind.OVERLOADED,
        FaultKind.HTML,
        FaultKind.HANG,
        FaultKind.DROP,
        FaultKind.DROP_AFTER,
        FaultKind.TRICKLE,
        FaultKind.TRICKLE_HEADERS,
        FaultKind.CUT_JSON,
        FaultKind.ODD_JSON,
        FaultKind.BROKEN_IMAGE,
        FaultKind.TEAPOT,
    ),
    Reason.UNAVAILABLE,
)


SLOW = {FaultKind.HANG, FaultKind.TRICKLE, FaultKind.TRICKLE_HEADERS}


@dataclass
class Row:
    """Implements CallContext with one image."""

    request: RowRequest
    images: tuple[SourceImage, ...] = field(default_factory=lambda: (photo(),))
    mask: SourceImage | None = None

    def plan(self, endpoint: Endpoint) -> CallPlan:
        return plan_call(self.request, self.images, self.mask, endpoint.provider, endpoint.model)

    def before_call(self, endpoint: Endpoint, plan: CallPlan) -> None: ...

    def after_call(self, outcome: EditResult | CallFailed) -> None: ...


@dataclass
class Harness:
    """Gemini in the first tier and OpenAI as its fallback, both simulated."""

    simulator: Simulator
    editors: dict[Any, Any]

    def dispatch(
        self,
        first: dict[str, Any] | None = None,
        second: dict[str, Any] | None = None,
        row: Row | None = None,
        **endpoint: Any,
    ) -> DispatchResult:
        """Dispatches one row; `first` and `second` are the faults of the two providers."""
        faults = {"gemini": first, "openai": second}
        self.simulator.configure(
            {
                "endpoints": {
                    name: {"mode": "fast", "faults": [fault] if fault else []}
                    for name, fault in faults.items()
                }
            }
        )
        # Only a call that never ends needs a short time-out; others may be slow on a busy machine.
        slow = first is not None and first["kind"] in SLOW
        fields = {"timeout_seconds": 0.5 if slow else 30, **endpoint}
        endpoints = secret(
            gemini(base_url=self.simulator.base_url("gemini"), **fields),
            openai(base_url=self.simulator.base_url("openai"), **{**fields, "timeout_seconds": 30}),
        )
        clock = FakeClock(1_795_000_000.0)
        dispatcher = TieredDispatcher(
            FakeSecretSource(endpoints),
            InMemoryEndpointStates(),
            self.editors.__getitem__,
            clock,
            random.Random(1),
            FakeTelemetry(),
        )
        request = RowRequest(instruction="make it warm")
        return dispatcher.dispatch(row or Row(request), clock.now() + 900)

    def calls(self) -> tuple[int, int]:
        stats = self.simulator.stats()
        return stats["gemini"]["calls"], stats["openai"]["calls"]


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with (
        running() as simulator,
        closing(GeminiImageEditor()) as first,
        closing(OpenAIImageEditor()) as second,
    ):
        yield Harness(simulator, {GEMINI: first, OPENAI: second})


def test_every_fault_has_its_action_here() -> None:
    assert set(REJECTED) | set(FALLS_BACK) == set(FaultKind)
    assert not set(REJECTED) & set(FALLS_BACK)


@pytest.mark.parametrize(("kind", "reason"), REJECTED.items())
def test_a_failure_caused_by_the_row_ends_it_after_one_call_without_fallback(
    harness: Harness, kind: FaultKind, reason: Reason
) -> None:
    with pytest.raises(RowRejected) as caught:
        harness.dispatch({"kind": kind}, max_retries=2)
    assert caught.value.reason is reason
    assert harness.calls() == (1, 0)


@pytest.mark.parametrize("kind", FALLS_BACK)
def test_any_other_failure_is_answered_by_the_fallback(harness: Harness, kind: FaultKind) -> None:
    result = harness.dispatch({"kind": kind})
    assert result.fallback
    assert result.plan.provider is OPENAI
    assert len(result.plan.images) == 1  # the fallback edits the image, it does not generate one
    assert harness.calls() == (1, 1)


@pytest.mark.parametrize(("kind", "reason"), FALLS_BACK.items())
def test_when_both_tiers_fail_the_row_is_retried_with_the_first_tiers_reason(
    harness: Harness, kind: FaultKind, reason: Reason
) -> None:
    with pytest.raises(RetryRow) as caught:
        harness.dispatch({"kind": kind}, {"kind": "server_error"})
    assert caught.value.reason is reason
    assert caught.value.provider == "gemini"
    assert harness.calls() == (1, 1)


@pytest.mark.parametrize("kind", [FaultKind.SERVER_ERROR, FaultKind.DROP, FaultKind.CUT_JSON])
def test_a_transient_failure_is_retried_in_place(harness: Harness, kind: FaultKind) -> None:
    result = harness.dispatch({"kind": kind, "when": {"count": 2}}, max_retries=2)
    assert not result.fallback
    assert harness.calls() == (3, 0)


@pytest.mark.parametrize("kind", [FaultKind.QUOTA_SPENT, FaultKind.KEY_REJECTED])
def test_the_next_key_replaces_a_rejected_one(harness: Harness, kind: FaultKind) -> None:
    fault = {"kind": kind, "when": {"key": "bad"}}
    result = harness.dispatch(fault, api_keys=["bad", "good"])
    assert not result.fallback
    stats = harness.simulator.stats()["gemini"]
    assert stats["keys"].get("good") == 1
    assert stats["keys"].get("bad", 0) <= 1


def test_a_row_with_a_mask_calls_only_a_provider_with_masks(harness: Harness) -> None:
    row = Row(RowRequest(instruction="make it warm"), mask=left_half_mask())
    result = harness.dispatch(row=row)
    assert result.plan.provider is OPENAI
    assert result.plan.mask is not None
    assert harness.calls() == (0, 1)
    assert any("does not support masks" in warning for warning in result.warnings)


def test_a_refusal_by_the_fallback_ends_the_row(harness: Harness) -> None:
    with pytest.raises(RowRejected) as caught:
        harness.dispatch({"kind": "server_error"}, {"kind": "refused"})
    assert caught.value.reason is Reason.REFUSED
    assert harness.calls() == (1, 1)
