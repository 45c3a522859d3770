"""Each fault of the simulated providers, through the real SDKs, becomes its outcome and action."""

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from darkroom.calls import (
    CallFailed,
    CallPlan,
    EditResult,
    Outcome,
    ProviderLimits,
    SourceImage,
)
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.errors import Reason, RetryRow, RowRejected
from darkroom.models.planner import plan_call
from darkroom.ports import DispatchResult
from darkroom.providers.registry import Provider
from darkroom.rows import RowRequest
from darkroom_local.providers import FaultKind
from tests.contract.provider_harness import (
    BOTH,
    GEMINI,
    KEY,
    OPENAI,
    TODAY,
    Harness,
    left_half_mask,
    photo,
    running_harness,
)
from tests.fakes.dispatching import (
    DispatchHarness,
    FakeCallContext,
    ScriptedEditor,
    gemini,
    openai,
)
from tests.fakes.elapsed import shortest_seconds
from tests.fakes.services import FakeClock

TIMEOUT = 0.5  # seconds, for a provider that hangs
SLOW = ("hang", "trickle", "trickle_headers")
ROW_AT_FAULT = tuple(outcome for outcome in Outcome if outcome.row_at_fault)


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with running_harness() as harness:
        yield harness


# A fault, and the properties of the failure it must lead to.
EXPECTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kind": "rate_limited", "hint": "header"}, {"outcome": "rate_limited", "wait": 17}),
    ({"kind": "rate_limited", "hint": "body"}, {"outcome": "rate_limited", "wait": 17}),
    ({"kind": "rate_limited", "hint": "none"}, {"outcome": "rate_limited", "wait": None}),
    ({"kind": "rate_limited", "per": "day"}, {"outcome": "rate_limited", "daily": True}),
    ({"kind": "rate_limited", "per": "both"}, {"outcome": "rate_limited", "daily": True}),
    ({"kind": "quota_spent"}, {"outcome": "quota_spent"}),
    ({"kind": "key_rejected", "status": 400}, {"outcome": "key_rejected"}),
    ({"kind": "key_rejected", "status": 401}, {"outcome": "key_rejected"}),
    ({"kind": "key_rejected", "status": 403}, {"outcome": "key_rejected"}),
    ({"kind": "model_retired"}, {"outcome": "model_unavailable", "detail": "model"}),
    ({"kind": "server_error", "status": 500}, {"outcome": "unavailable"}),
    ({"kind": "server_error", "status": 502}, {"outcome": "unavailable"}),
    ({"kind": "server_error", "status": 504}, {"outcome": "unavailable", "charged": True}),
    ({"kind": "overloaded"}, {"outcome": "unavailable", "detail": "overloaded"}),
    ({"kind": "html", "status": 502}, {"outcome": "unavailable", "detail": "502 Bad Gateway"}),
    ({"kind": "html", "status": 403}, {"outcome": "unavailable"}),
    ({"kind": "html", "status": 200}, {"outcome": "unavailable", "charged": True}),
    ({"kind": "hang"}, {"outcome": "unavailable", "charged": True, "detail": "0.5 s"}),
    ({"kind": "drop"}, {"outcome": "unavailable", "charged": True}),
    ({"kind": "drop_after"}, {"outcome": "unavailable", "charged": True}),
    ({"kind": "trickle"}, {"outcome": "unavailable", "charged": True, "detail": "0.5 s"}),
    ({"kind": "trickle_headers"}, {"outcome": "unavailable", "charged": True, "detail": "0.5 s"}),
    ({"kind": "cut_json"}, {"outcome": "unavailable", "charged": True}),
    ({"kind": "odd_json"}, {"outcome": "unavailable", "charged": True, "unknown": True}),
    ({"kind": "broken_image"}, {"outcome": "unavailable", "charged": True, "costs": True}),
    ({"kind": "teapot"}, {"outcome": "unavailable", "detail": "teapot", "unknown": True}),
    ({"kind": "refused"}, {"outcome": "refused", "detail": "safety"}),
    ({"kind": "text_only"}, {"outcome": "no_image"}),
    ({"kind": "empty"}, {"outcome": "no_image"}),
    ({"kind": "bad_request"}, {"outcome": "bad_request"}),
    ({"kind": "bad_image"}, {"outcome": "bad_image"}),
    ({"kind": "account_blocked"}, {"outcome": "key_rejected"}),
    ({"kind": "conflict"}, {"outcome": "unavailable"}),
]
FAULT_IDS = [" ".join(map(str, fault.values())) for fault, _ in EXPECTED]
FAULT_OF = {Outcome(expected["outcome"]): fault for fault, expected in EXPECTED}
OUTCOME_OF = {fault["kind"]: Outcome(expected["outcome"]) for fault, expected in EXPECTED}
ENDS_ROW = {kind: outcome for kind, outcome in OUTCOME_OF.items() if outcome in ROW_AT_FAULT}
FALLS_BACK = {kind: outcome for kind, outcome in OUTCOME_OF.items() if kind not in ENDS_ROW}


def test_every_fault_and_every_outcome_except_success_is_listed_here() -> None:
    assert set(OUTCOME_OF) == {kind.value for kind in FaultKind}
    assert set(FAULT_OF) == set(Outcome) - {Outcome.SUCCEEDED}


# --- outcomes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", BOTH)
@pytest.mark.parametrize(("fault", "expected"), EXPECTED, ids=FAULT_IDS)
def test_each_fault_leads_to_its_outcome_after_one_request(
    harness: Harness, provider: Provider, fault: dict[str, Any], expected: dict[str, Any]
) -> None:
    harness.fault(retry_after=17, **fault)
    timeout = TIMEOUT if fault["kind"] in SLOW else 20
    failed = harness.failure(provider, photo(), timeout=timeout)
    assert failed.outcome == Outcome(expected["outcome"])
    assert failed.daily == expected.get("daily", False)
    assert failed.unknown == expected.get("unknown", False)
    if failed.outcome is Outcome.UNAVAILABLE and not failed.unknown:
        assert failed.maybe_charged == expected.get("charged", False)
    if "wait" in expected:
        assert failed.retry_after_seconds == expected["wait"]
    assert expected.get("detail", "").lower() in failed.detail.lower()
    assert (failed.cost_micro_usd is not None) >= expected.get("costs", False)
    assert harness.stats()["calls"] == 1  # the SDKs do not retry


@pytest.mark.parametrize("provider", BOTH)
@pytest.mark.parametrize(("fault", "expected"), EXPECTED, ids=FAULT_IDS)
def test_no_failure_shows_the_key(
    harness: Harness, provider: Provider, fault: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Even if the provider repeats it in its message."""
    harness.fault(message=f"your key {KEY} is bad", **fault)
    timeout = 0.1 if fault["kind"] in SLOW else 20
    failed = harness.failure(provider, photo(), timeout=timeout)
    shown = "".join(traceback.format_exception(failed)) + repr(failed) + failed.detail
    assert KEY not in shown


@pytest.mark.parametrize("provider", BOTH)
@pytest.mark.parametrize("kind", SLOW)
def test_a_call_to_a_hanging_provider_ends_within_its_timeout_and_a_second(
    harness: Harness, provider: Provider, kind: str
) -> None:
    """Even if it sends a byte now and then, so that a time-out per read never ends."""
    harness.fault(kind=kind, seconds=60)
    elapsed = shortest_seconds(lambda: harness.failure(provider, photo(), timeout=1.2), 2.2)
    assert 1.1 <= elapsed <= 2.2


@pytest.mark.parametrize("provider", BOTH)
@pytest.mark.parametrize(
    "base_url", ["http://127.0.0.1:9/", "ftp://example.invalid/x", "not a url"]
)
def test_a_base_url_without_a_provider_is_unavailable_and_charges_nothing(
    harness: Harness, provider: Provider, base_url: str
) -> None:
    # The secret refuses the last two.
    endpoint = harness.endpoint(provider).model_copy(update={"base_url": base_url})
    failed = harness.failure(provider, photo(), endpoint=endpoint)
    assert failed.outcome is Outcome.UNAVAILABLE
    assert not failed.maybe_charged


GEMINI_REFUSALS = (
    *("SAFETY", "IMAGE_SAFETY", "PROHIBITED_CONTENT", "IMAGE_PROHIBITED_CONTENT"),
    *("BLOCKLIST", "SPII", "RECITATION", "IMAGE_RECITATION"),
)
PROMPT_REFUSALS = ("SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "IMAGE_SAFETY")
WITHOUT_IMAGE = ("NO_IMAGE", "IMAGE_OTHER", "OTHER", "MAX_TOKENS")
QUESTION = "Which of the two mugs do you mean?"


@pytest.mark.parametrize(
    ("fault", "outcome", "detail"),
    [
        *(({"category": c}, Outcome.REFUSED, f"refused: {c}") for c in GEMINI_REFUSALS),
        *(
            ({"category": c, "blocked": "prompt"}, Outcome.REFUSED, f"the prompt was blocked: {c}")
            for c in PROMPT_REFUSALS
        ),
        *(({"category": c}, Outcome.NO_IMAGE, f"{c}: an empty response") for c in WITHOUT_IMAGE),
        ({"kind": "text_only", "message": QUESTION}, Outcome.NO_IMAGE, QUESTION),
    ],
)
def test_the_detail_is_geminis_reason_or_text(
    harness: Harness, fault: dict[str, str], outcome: Outcome, detail: str
) -> None:
    harness.fault(**{"kind": "refused", **fault})
    failed = harness.failure(GEMINI, photo())
    assert (failed.outcome, failed.detail) == (outcome, detail)
    assert failed.cost_micro_usd


@pytest.mark.parametrize("reason", ["IMAGE_OTHER", "RECITATION"])
def test_geminis_own_words_about_an_image_that_it_does_not_show_are_kept(
    harness: Harness, reason: str
) -> None:
    harness.fault(
        kind="refused", category=reason, message="Unable to\x1b[2J <b>show</b> the image."
    )
    assert "Unable to�[2J show the image." in harness.failure(GEMINI, photo()).detail


@pytest.mark.parametrize(
    "code",
    [
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    ],
)
def test_every_code_of_spent_money_is_about_the_account(harness: Harness, code: str) -> None:
    harness.fault(kind="quota_spent", code=code, message="no more")
    assert harness.failure(OPENAI, photo()).outcome is Outcome.QUOTA_SPENT


def test_a_limit_of_input_images_differs_from_a_call_that_exceeds_it(
    harness: Harness,
) -> None:
    harness.set_up(input_images_per_minute=2, requests_per_minute=60, limit_hint="body")
    stated = harness.call(OPENAI, photo(), photo(name="b")).provider_limits
    assert stated == ProviderLimits(requests_per_minute=60, input_images_per_minute=2)
    failed = harness.failure(OPENAI, photo())
    assert failed.outcome is Outcome.RATE_LIMITED
    assert 50 < (failed.retry_after_seconds or 0) <= 60
    assert failed.provider_limits.input_images_per_minute == 2
    too_many = harness.failure(OPENAI, *(photo(name=str(i)) for i in range(3)))
    assert too_many.too_large_for_limit
    assert too_many.outcome is Outcome.BAD_REQUEST


@pytest.mark.parametrize("provider", BOTH)
def test_a_retired_model_is_the_endpoints_and_its_error_names_a_successor(
    harness: Harness, provider: Provider
) -> None:
    endpoint = harness.endpoint(provider)
    harness.set_up(retired_models=[endpoint.model])
    failed = harness.failure(provider, photo(), endpoint=endpoint)
    assert failed.outcome is Outcome.MODEL_UNAVAILABLE
    assert endpoint.model in failed.detail
    assert "name another model" in failed.detail


@pytest.mark.filterwarnings("ignore:.*is not a valid FinishReason:UserWarning")
def test_a_finish_reason_new_to_the_sdk_is_unknown_with_its_name(harness: Harness) -> None:
    harness.fault(kind="refused", category="COSMIC_RAYS")
    failed = harness.failure(GEMINI, photo())
    assert failed.outcome is Outcome.UNAVAILABLE
    assert failed.unknown
    assert "COSMIC_RAYS" in failed.detail


@pytest.mark.parametrize(
    ("category", "detail"),
    [("sexual", "sexual"), ("violence", "violence"), ("content_filter", "filtered")],
)
def test_an_openai_refusal_names_its_category(harness: Harness, category: str, detail: str) -> None:
    harness.fault(kind="refused", category=category)
    failed = harness.failure(OPENAI, photo())
    assert failed.outcome is Outcome.REFUSED
    assert detail in failed.detail


@pytest.mark.parametrize("provider", BOTH)
def test_an_unknown_model_of_the_row_is_a_bad_request(harness: Harness, provider: Provider) -> None:
    """Otherwise one row's typing error would disable the endpoint's keys."""
    harness.set_up()
    model = "gemini-99-image" if provider is GEMINI else "gpt-image-99"
    assert harness.failure(provider, photo(), model=model).outcome is Outcome.BAD_REQUEST
    endpoint = harness.endpoint(provider, model=model)
    failed = harness.failure(provider, photo(), endpoint=endpoint)
    assert failed.outcome is Outcome.MODEL_UNAVAILABLE


@pytest.mark.parametrize("provider", BOTH)
def test_an_unknown_key_is_rejected(harness: Harness, provider: Provider) -> None:
    harness.set_up(keys=["another-key"])
    assert harness.failure(provider, photo()).outcome is Outcome.KEY_REJECTED


@pytest.mark.parametrize("provider", BOTH)
def test_the_simulators_rate_limit_is_rate_limited(harness: Harness, provider: Provider) -> None:
    harness.set_up(requests_per_minute=1, limit_hint="body")
    harness.call(provider, photo())
    failed = harness.failure(provider, photo())
    assert failed.outcome is Outcome.RATE_LIMITED
    assert 50 < (failed.retry_after_seconds or 0) <= 60
    assert not failed.daily


# --- the contract of ports.ImageEditor, also for the fake of the tests --------------------------


@dataclass
class Subject:
    """One editor: its next call can be made to fail, and the keys it used are recorded."""

    harness: Harness
    provider: Provider
    fake: ScriptedEditor | None = None

    def fail_with(self, outcome: Outcome) -> None:
        if self.fake is not None:
            self.fake.script("e", outcome)
        else:
            self.harness.fault(**FAULT_OF[outcome], when={"count": 1})

    def edit(self, key: str = KEY) -> EditResult:
        return self.harness.call(self.provider, photo(), key=key)

    def keys_used(self) -> list[str]:
        if self.fake is not None:
            return [call.key for call in self.fake.calls]
        return [key for key, n in self.harness.stats()["keys"].items() for _ in range(n)]


@pytest.fixture(params=["fake", *BOTH])
def subject(request: pytest.FixtureRequest, harness: Harness) -> Subject:
    harness.set_up()
    if request.param == "fake":
        fake: Any = ScriptedEditor(FakeClock())
        return Subject(Harness(harness.simulator, gemini=fake), GEMINI, fake)
    return Subject(harness, request.param)


def test_a_successful_call_returns_images(subject: Subject) -> None:
    result = subject.edit()
    assert result.images
    assert all(isinstance(image, bytes) and image for image in result.images)
    assert result.model


@pytest.mark.parametrize("outcome", FAULT_OF)
def test_a_failed_call_raises_its_outcome_and_the_next_works(
    subject: Subject, outcome: Outcome
) -> None:
    subject.fail_with(outcome)
    with pytest.raises(CallFailed) as caught:
        subject.edit()
    assert caught.value.outcome is outcome
    assert caught.value.detail
    assert subject.edit().images


def test_each_call_uses_the_key_it_is_given(subject: Subject) -> None:
    subject.edit("key-a-123456")
    subject.edit("key-b-123456")
    assert subject.keys_used() == ["key-a-123456", "key-b-123456"]


# --- actions: the real dispatcher, with Gemini in the first tier and OpenAI as its fallback -------


@dataclass
class OneImage(FakeCallContext):
    """A row with one image, planned for the endpoint's model."""

    mask: SourceImage | None = None

    def plan(self, endpoint: Endpoint) -> CallPlan:
        request = RowRequest(instruction="make it warm")
        return plan_call(request, (photo(),), self.mask, endpoint, TODAY)


@dataclass
class Tiers:
    harness: Harness

    def dispatch(
        self,
        first: dict[str, Any] | None = None,
        second: dict[str, Any] | None = None,
        *,
        mask: SourceImage | None = None,
        **endpoint: Any,
    ) -> DispatchResult:
        """Dispatches one row; `first` and `second` are the faults of the two providers."""
        simulator = self.harness.simulator
        faults = {"gemini": first, "openai": second}
        scripts = {
            n: {"mode": "fast", "faults": [f] if f else [], "min_server_timeout": 0}
            for n, f in faults.items()
        }
        simulator.configure({"endpoints": scripts})
        # Only a call that never ends needs a short time-out; others may be slow on a busy machine.
        timeout = TIMEOUT if first is not None and first["kind"] in SLOW else 30
        dispatch = DispatchHarness(
            gemini(base_url=simulator.base_url("gemini"), timeout_seconds=30, **endpoint),
            openai(base_url=simulator.base_url("openai"), timeout_seconds=30, **endpoint),
        )
        if timeout < 10:  # shorter than the secret allows for Gemini
            shorter, other = dispatch.secret_source.current.endpoints
            shorter = shorter.model_copy(update={"timeout_seconds": timeout})
            current = EndpointsSecret.model_construct(endpoints=(shorter, other))
            dispatch.secret_source.current = current
        editors: dict[Any, Any] = {GEMINI: self.harness.gemini, OPENAI: self.harness.openai}
        worker = dispatch.worker(editors.__getitem__)
        return dispatch.dispatch(OneImage(mask=mask), worker=worker)

    def calls(self) -> tuple[int, int]:
        stats = self.harness.simulator.stats()
        return stats["gemini"]["calls"], stats["openai"]["calls"]


@pytest.fixture
def tiers(harness: Harness) -> Tiers:
    return Tiers(harness)


@pytest.mark.parametrize(("kind", "outcome"), ENDS_ROW.items())
def test_a_failure_caused_by_the_row_ends_it_without_fallback(
    tiers: Tiers, kind: str, outcome: Outcome
) -> None:
    """After one call; after two of the same endpoint where the API asks to retry."""
    with pytest.raises(RowRejected) as caught:
        tiers.dispatch({"kind": kind}, max_retries=2)
    error = caught.value
    assert error.reason.value == outcome.value
    assert (error.provider, error.endpoint) == ("gemini", "gemini")
    assert error.model == "gemini-3-pro-image"
    assert tiers.calls() == (2 if kind == "bad_image" else 1, 0)


BY_CHANCE = ("NO_IMAGE", "IMAGE_OTHER", "OTHER", "MALFORMED_FUNCTION_CALL")


@pytest.mark.parametrize("reason", BY_CHANCE)
def test_an_empty_answer_by_chance_gets_one_more_call_at_the_same_endpoint(
    tiers: Tiers, reason: str
) -> None:
    """Source B: one more try, and none at the fallback, whatever `max_retries` says."""
    fault = {"kind": "refused", "category": reason}
    assert not tiers.dispatch({**fault, "when": {"count": 1}}, max_retries=0).fallback
    assert tiers.calls() == (2, 0)
    with pytest.raises(RowRejected) as caught:
        tiers.dispatch(fault, max_retries=2)
    assert caught.value.reason is Reason.NO_IMAGE
    assert tiers.calls() == (2, 0)


def test_a_text_in_place_of_an_image_is_not_asked_for_again(tiers: Tiers) -> None:
    with pytest.raises(RowRejected):
        tiers.dispatch({"kind": "text_only"}, max_retries=2)
    assert tiers.calls() == (1, 0)


@pytest.mark.parametrize("kind", FALLS_BACK)
def test_any_other_failure_is_answered_by_the_fallback(tiers: Tiers, kind: str) -> None:
    result = tiers.dispatch({"kind": kind})
    assert result.fallback
    assert result.plan.provider is OPENAI
    assert len(result.plan.images) == 1  # the fallback edits the image, it does not generate one
    assert tiers.calls() == (1, 1)


@pytest.mark.parametrize(("kind", "outcome"), FALLS_BACK.items())
def test_when_both_tiers_fail_the_row_is_retried_with_the_first_tiers_reason(
    tiers: Tiers, kind: str, outcome: Outcome
) -> None:
    with pytest.raises(RetryRow) as caught:
        tiers.dispatch({"kind": kind}, {"kind": "server_error"})
    assert caught.value.reason.value == outcome.value
    assert caught.value.provider == "gemini"
    assert tiers.calls() == (1, 1)


@pytest.mark.parametrize(("kind", "retries"), [("server_error", 2), ("drop", 1), ("cut_json", 1)])
def test_a_transient_failure_is_retried_in_place(tiers: Tiers, kind: str, retries: int) -> None:
    """Only once where the provider may have done and billed the work."""
    result = tiers.dispatch({"kind": kind, "when": {"count": retries}}, max_retries=2)
    assert not result.fallback
    assert tiers.calls() == (retries + 1, 0)
    assert tiers.dispatch({"kind": kind}, max_retries=2).fallback
    assert tiers.calls() == (retries + 1, 1)


def test_a_call_that_timed_out_and_may_be_billed_is_made_once_more_at_most(tiers: Tiers) -> None:
    assert tiers.dispatch({"kind": "hang"}, max_retries=5).fallback
    assert tiers.calls() == (2, 1)


@pytest.mark.parametrize("kind", ["quota_spent", "key_rejected"])
def test_the_next_key_replaces_a_rejected_one(tiers: Tiers, kind: str) -> None:
    fault = {"kind": kind, "when": {"key": "bad"}}
    result = tiers.dispatch(fault, api_keys=["bad", "good"])
    assert not result.fallback
    stats = tiers.harness.simulator.stats()["gemini"]
    assert stats["keys"].get("good") == 1
    assert stats["keys"].get("bad", 0) <= 1


def test_a_row_with_a_mask_calls_only_a_provider_with_masks(tiers: Tiers) -> None:
    result = tiers.dispatch(mask=left_half_mask())
    assert result.plan.provider is OPENAI
    assert result.plan.mask is not None
    assert tiers.calls() == (0, 1)
    assert any("does not support masks" in warning for warning in result.warnings)


def test_a_refusal_by_the_fallback_ends_the_row(tiers: Tiers) -> None:
    with pytest.raises(RowRejected) as caught:
        tiers.dispatch({"kind": "server_error"}, {"kind": "refused"})
    assert caught.value.reason is Reason.REFUSED
    assert tiers.calls() == (1, 1)
