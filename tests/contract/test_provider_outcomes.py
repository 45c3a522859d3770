"""Every fault of the simulated providers, through the real SDKs, becomes its outcome."""

import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from darkroom.calls import Outcome
from darkroom.providers.registry import Provider
from darkroom_local.providers import FaultKind
from tests.contract.provider_harness import (
    BOTH,
    GEMINI,
    KEY,
    OPENAI,
    Harness,
    photo,
    running_harness,
)
from tests.fakes.elapsed import shortest_seconds

TIMEOUT = 0.5  # seconds, for a provider that hangs


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
    ({"kind": "model_retired"}, {"outcome": "key_rejected", "detail": "model"}),
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
]
FAULT_IDS = [" ".join(map(str, fault.values())) for fault, _ in EXPECTED]


def test_every_fault_of_the_simulator_is_listed_here() -> None:
    assert {fault["kind"] for fault, _ in EXPECTED} == {kind.value for kind in FaultKind}


@pytest.mark.parametrize("provider", BOTH)
@pytest.mark.parametrize(("fault", "expected"), EXPECTED, ids=FAULT_IDS)
def test_each_fault_leads_to_its_outcome_after_one_request(
    harness: Harness, provider: Provider, fault: dict[str, Any], expected: dict[str, Any]
) -> None:
    harness.fault(retry_after=17, **fault)
    slow = fault["kind"] in {"hang", "trickle", "trickle_headers"}
    failed = harness.failure(provider, photo(), timeout=TIMEOUT if slow else 20)
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
    slow = fault["kind"] in {"hang", "trickle", "trickle_headers"}
    failed = harness.failure(provider, photo(), timeout=0.1 if slow else 20)
    shown = "".join(traceback.format_exception(failed)) + repr(failed) + failed.detail
    assert KEY not in shown


@pytest.mark.parametrize("provider", BOTH)
@pytest.mark.parametrize("kind", ["hang", "trickle", "trickle_headers"])
def test_a_call_to_a_hanging_provider_ends_within_its_timeout_and_a_second(
    harness: Harness, provider: Provider, kind: str
) -> None:
    """Even if it sends a byte now and then, so that a time-out per read never ends."""
    harness.fault(kind=kind, seconds=60)
    elapsed = shortest_seconds(lambda: harness.failure(provider, photo(), timeout=1.2), 2.2)
    assert 1.1 <= elapsed <= 2.2


@pytest.mark.parametrize("provider", BOTH)
def test_an_unreachable_provider_charges_nothing(harness: Harness, provider: Provider) -> None:
    unreachable = harness.endpoint(provider, base_url="http://127.0.0.1:9/")
    failed = harness.failure(provider, photo(), endpoint=unreachable)
    assert failed.outcome is Outcome.UNAVAILABLE
    assert not failed.maybe_charged


@pytest.mark.parametrize("provider", BOTH)
@pytest.mark.parametrize("base_url", ["ftp://example.invalid/x", "not a url"])
def test_an_invalid_base_url_is_unavailable_not_a_crash(
    harness: Harness, provider: Provider, base_url: str
) -> None:
    failed = harness.failure(
        provider, photo(), endpoint=harness.endpoint(provider, base_url=base_url)
    )
    assert failed.outcome is Outcome.UNAVAILABLE


@pytest.mark.parametrize(
    "reason",
    [
        "SAFETY",
        "IMAGE_SAFETY",
        "PROHIBITED_CONTENT",
        "IMAGE_PROHIBITED_CONTENT",
        "BLOCKLIST",
        "SPII",
        "RECITATION",
        "IMAGE_RECITATION",
    ],
)
def test_a_gemini_refusal_names_its_category(harness: Harness, reason: str) -> None:
    harness.fault(kind="refused", category=reason)
    failed = harness.failure(GEMINI, photo())
    assert failed.outcome is Outcome.REFUSED
    assert failed.detail == f"refused: {reason}"
    assert failed.cost_micro_usd is not None


@pytest.mark.parametrize("reason", ["SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "IMAGE_SAFETY"])
def test_a_blocked_prompt_is_a_refusal_with_its_category(harness: Harness, reason: str) -> None:
    harness.fault(kind="refused", category=reason, blocked="prompt")
    failed = harness.failure(GEMINI, photo())
    assert failed.outcome is Outcome.REFUSED
    assert reason in failed.detail


@pytest.mark.parametrize("reason", ["NO_IMAGE", "IMAGE_OTHER", "OTHER", "MAX_TOKENS"])
def test_gemini_without_an_image_is_no_image_with_its_reason(harness: Harness, reason: str) -> None:
    harness.fault(kind="refused", category=reason)
    failed = harness.failure(GEMINI, photo())
    assert failed.outcome is Outcome.NO_IMAGE
    assert reason in failed.detail


@pytest.mark.filterwarnings("ignore:.*is not a valid FinishReason:UserWarning")
def test_a_finish_reason_new_to_the_sdk_is_unknown_with_its_name(harness: Harness) -> None:
    harness.fault(kind="refused", category="COSMIC_RAYS")
    failed = harness.failure(GEMINI, photo())
    assert failed.outcome is Outcome.UNAVAILABLE
    assert failed.unknown
    assert "COSMIC_RAYS" in failed.detail


@pytest.mark.parametrize("category", ["sexual", "violence", "content_filter"])
def test_an_openai_refusal_names_its_category(harness: Harness, category: str) -> None:
    harness.fault(kind="refused", category=category)
    failed = harness.failure(OPENAI, photo())
    assert failed.outcome is Outcome.REFUSED
    assert category in failed.detail or "filtered" in failed.detail


def test_a_text_instead_of_an_image_is_the_detail(harness: Harness) -> None:
    harness.fault(kind="text_only", message="Which of the two mugs do you mean?")
    failed = harness.failure(GEMINI, photo())
    assert failed.outcome is Outcome.NO_IMAGE
    assert failed.detail == "Which of the two mugs do you mean?"
    assert failed.cost_micro_usd


@pytest.mark.parametrize("provider", BOTH)
def test_an_unknown_model_of_the_row_is_a_bad_request(harness: Harness, provider: Provider) -> None:
    """Otherwise one row's typing error would disable the endpoint's keys."""
    harness.set_up()
    model = "gemini-99-image" if provider is GEMINI else "gpt-image-99"
    assert harness.failure(provider, photo(), model=model).outcome is Outcome.BAD_REQUEST
    endpoint = harness.endpoint(provider, model=model)
    assert harness.failure(provider, photo(), endpoint=endpoint).outcome is Outcome.KEY_REJECTED


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
