"""What each outcome leads to: scripted providers, and a clock that advances only by sleeping."""

import itertools
import random
from typing import Any

import pytest

from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.dispatch import circuit_breaker
from darkroom.endpoint_state import SECOND, EndpointState
from darkroom.errors import DeferRow, LeaseLost, Reason, RetryRow, RowRejected
from darkroom.providers.registry import Provider
from tests.fakes.dispatching import (
    IMAGE,
    Call,
    DispatchHarness,
    FakeCallContext,
    gemini,
    openai,
    secret,
)
from tests.fakes.virtual_time import START


def two_tiers(**first: Any) -> DispatchHarness:
    return DispatchHarness(gemini(**first), openai())


def test_the_result_describes_the_call_and_its_endpoint() -> None:
    harness = two_tiers()
    result = harness.dispatch()
    assert (result.endpoint.name, result.fallback, result.calls) == ("gemini", False, 1)
    assert result.latency_ms == 2000
    assert result.slot_wait_ms == 0


def test_an_unknown_response_is_retried_once_and_then_reported() -> None:
    harness = DispatchHarness(gemini(max_retries=5))
    harness.editor.always["gemini"] = CallFailed(
        Outcome.UNAVAILABLE, "status 299: unknown", unknown=True
    )
    failed = harness.failure(RetryRow)
    assert harness.editor.called() == ["gemini", "gemini"]
    assert "status 299: unknown" in failed.detail


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.NO_IMAGE, Outcome.BAD_REQUEST])
def test_a_failure_of_the_row_neither_falls_back_nor_blames_the_endpoint(outcome: Outcome) -> None:
    harness = two_tiers(max_retries=2)
    harness.editor.always["gemini"] = outcome
    for _ in range(10):
        assert harness.failure(RowRejected).reason is Reason(outcome.value)
    assert harness.editor.called() == ["gemini"] * 10
    assert harness.state("gemini").failures == 0


def test_a_request_above_an_endpoints_limit_is_made_at_another_one() -> None:
    harness = two_tiers(max_retries=2)
    detail = "on input-images per min: Limit 5, Used 0, Requested 8"
    too_large = CallFailed(Outcome.BAD_REQUEST, detail, too_large_for_limit=True)
    harness.editor.always["gemini"] = too_large
    result = harness.dispatch()
    assert harness.editor.called() == ["gemini", "openai"]
    assert result.warnings == (f"gemini was skipped: {detail}",)
    assert harness.state("gemini").failures == 0
    harness.editor.always["openai"] = too_large
    rejected = harness.failure(RowRejected)
    assert rejected.reason is Reason.BAD_REQUEST
    assert detail in rejected.detail


@pytest.mark.parametrize(
    "outcome", [o for o in Outcome if o.transient or o.key_at_fault], ids=lambda o: o.value
)
def test_transient_failures_and_rejected_keys_fall_back(outcome: Outcome) -> None:
    harness = two_tiers()
    harness.editor.script("gemini", outcome)
    result = harness.dispatch()
    assert (result.endpoint.name, result.fallback, result.calls) == ("openai", True, 2)
    assert bool(result.fallback_cause) is outcome.key_at_fault
    if outcome.key_at_fault:
        (fingerprint,) = harness.state("gemini").key_cooldowns
        assert result.fallback_cause.startswith("gemini ")
        assert fingerprint in result.fallback_cause
        later = harness.dispatch()
        assert later.calls == 1
        assert later.fallback_cause == result.fallback_cause


def test_retries_use_the_endpoint_then_its_tier_then_the_next_tier() -> None:
    harness = DispatchHarness(
        gemini("a", tier=1, weight=1000, max_retries=2),
        gemini("b", tier=1, weight=0.001, max_retries=1),
        openai("c", tier=2),
    )
    harness.editor.always |= {"a": Outcome.UNAVAILABLE, "b": Outcome.UNAVAILABLE}
    harness.dispatch()
    assert harness.editor.called() == ["a", "a", "a", "b", "b", "c"]


def test_backoff_doubles_from_the_base_delay_with_jitter_and_a_cap() -> None:
    harness = DispatchHarness(gemini(max_retries=3, retry_delay_seconds=20))
    harness.editor.always["gemini"] = Outcome.UNAVAILABLE
    harness.failure(RetryRow)
    at = [call.at for call in harness.editor.calls]
    gaps = [later - earlier - 2.0 for earlier, later in itertools.pairwise(at)]
    jitters = [gap / base for gap, base in zip(gaps, [20, 40, 60], strict=True)]
    assert all(0.7 <= jitter <= 1.30001 for jitter in jitters)
    assert len({round(jitter, 3) for jitter in jitters}) == 3


def test_when_all_tiers_fail_the_error_of_the_first_is_reported() -> None:
    harness = two_tiers()
    harness.editor.script("gemini", CallFailed(Outcome.RATE_LIMITED, "too many requests"))
    harness.editor.script("openai", CallFailed(Outcome.UNAVAILABLE, "openai is down"))
    error = harness.failure(RetryRow)
    assert error.reason is Reason.RATE_LIMITED
    assert (error.endpoint, error.provider) == ("gemini", "gemini")
    assert "too many requests" in error.detail
    assert error.delay_seconds > 0


def test_the_first_tiers_open_breaker_is_reported_also_by_a_row_that_skipped_it() -> None:
    harness = two_tiers(max_retries=3, retry_delay_seconds=0)
    harness.editor.always |= {"gemini": Outcome.UNAVAILABLE, "openai": Outcome.UNAVAILABLE}
    harness.failure(RetryRow)
    error = harness.failure(RetryRow)
    assert harness.editor.called() == [*["gemini"] * 4, "openai", "openai"]
    assert (error.reason, error.endpoint) == (Reason.UNAVAILABLE, "gemini")
    assert "breaker" in error.detail
    assert "openai" in error.detail


def test_an_ineligible_endpoint_is_skipped_and_without_another_the_row_is_rejected() -> None:
    harness = two_tiers()
    context = FakeCallContext(ineligible={"gemini": "no masks", "openai": "too wide"})
    rejected = harness.failure(RowRejected, context)
    assert rejected.reason is Reason.BAD_REQUEST
    assert "gemini: no masks; openai: too wide" in rejected.detail
    assert harness.editor.calls == []
    result = harness.dispatch(FakeCallContext(ineligible={"gemini": "it takes no mask"}))
    assert result.endpoint.name == "openai"
    assert result.warnings == ("gemini was skipped: it takes no mask",)
    assert harness.state("gemini").calls == 0  # without a reservation


def test_a_provider_without_an_editor_is_skipped_with_one_warning() -> None:
    harness = two_tiers()
    worker = harness.worker(editor_of={Provider.OPENAI: harness.editor}.__getitem__)
    assert harness.endpoints_used(3, worker) == ["openai"] * 3
    assert harness.telemetry.logged("warning") == ["provider_missing"]


@pytest.mark.parametrize("endpoint", [gemini(), openai()])
def test_either_provider_alone_works_with_one_warning(endpoint: dict[str, object]) -> None:
    harness = DispatchHarness(endpoint)
    harness.endpoints_used(2)
    assert harness.telemetry.logged("warning") == ["no_fallback"]


# Keys


def test_keys_are_used_in_turn() -> None:
    harness = DispatchHarness(gemini(api_keys=["a", "b", "c"]))
    harness.endpoints_used(6)
    keys = [call.key for call in harness.editor.calls]
    assert sorted(keys[:3]) == ["a", "b", "c"]
    assert keys[:3] == keys[3:]


@pytest.mark.parametrize("outcome", [Outcome.KEY_REJECTED, Outcome.QUOTA_SPENT])
def test_a_rejected_key_cools_down_for_all_workers_and_the_next_is_used(outcome: Outcome) -> None:
    harness = DispatchHarness(gemini(api_keys=["bad", "good"]))
    harness.editor.always["gemini"] = lambda call: (
        CallFailed(outcome, "no") if call.key == "bad" else IMAGE
    )
    harness.endpoints_used(30, *harness.workers(3))
    assert [call.key for call in harness.editor.calls].count("bad") == 1
    assert harness.telemetry.by_endpoint["KeyRejected", "gemini"] == 1


def test_a_key_is_used_again_when_its_cooldown_ends() -> None:
    harness = DispatchHarness(gemini(api_keys=["a"]), openai())
    harness.editor.script("gemini", Outcome.QUOTA_SPENT)
    assert harness.endpoints_used(2) == ["openai"] * 2
    harness.clock.time += 601
    assert harness.endpoints_used(1) == ["gemini"]


def test_a_rejected_key_makes_the_secret_be_read_again_for_the_same_row() -> None:
    harness = DispatchHarness(gemini(api_keys=["revoked"]), openai())
    harness.secret_source.after_refresh = secret(gemini(api_keys=["fresh"]), openai())
    harness.editor.script("gemini", Outcome.KEY_REJECTED)
    assert harness.endpoints_used(1) == ["gemini"]
    assert [call.key for call in harness.editor.calls] == ["revoked", "fresh"]


def test_when_every_key_is_cooling_down_attempts_are_spent_slowly() -> None:
    harness = DispatchHarness(gemini(api_keys=["a", "b"]))
    harness.editor.always["gemini"] = Outcome.KEY_REJECTED
    for _ in range(2):
        error = harness.failure(RetryRow)
        assert len(harness.editor.calls) == 2
        assert error.reason is Reason.KEY_REJECTED
        assert error.delay_seconds > 200


# The breaker


def test_in_an_outage_the_first_few_failures_stop_all_workers() -> None:
    harness = two_tiers()
    harness.editor.always["gemini"] = Outcome.UNAVAILABLE
    for worker in harness.workers(8) * 10:
        assert harness.endpoints_used(1, worker) == ["openai"]
        harness.clock.time -= 2.0  # so that the whole outage is within one cooldown
    assert harness.editor.called().count("gemini") <= 4
    assert harness.telemetry.by_endpoint["BreakerOpened", "gemini"] == 1


def test_an_open_breaker_ends_the_retries_of_a_row_in_backoff() -> None:
    harness = two_tiers(max_retries=9, retry_delay_seconds=1)
    harness.editor.always["gemini"] = Outcome.UNAVAILABLE
    harness.dispatch()
    assert harness.editor.called() == ["gemini"] * 4 + ["openai"]


def test_a_successful_probe_closes_the_breaker() -> None:
    harness = two_tiers(max_retries=5, retry_delay_seconds=0)
    harness.editor.script("gemini", *[Outcome.UNAVAILABLE] * 5)
    harness.dispatch()
    # The first probe is the fifth failure; then the cooldown is twice as long.
    for endpoint in ("openai", "openai", "gemini"):
        harness.clock.time += 10
        assert harness.endpoints_used(1) == [endpoint]
    assert harness.state("gemini").breaker_open is False
    assert harness.editor.called().count("gemini") == 6


def test_with_every_endpoint_down_a_row_waits_or_is_deferred_at_no_cost() -> None:
    harness = DispatchHarness(gemini())
    harness.editor.script("gemini", *[Outcome.UNAVAILABLE] * 4)
    for _ in range(4):
        harness.failure(RetryRow)
    error = harness.failure(DeferRow, seconds=95)  # too few for a wait and a call
    assert 1 <= error.delay_seconds <= 10
    assert "breaker" in error.detail
    assert len(harness.editor.calls) == 4
    before = harness.clock.now()
    assert harness.dispatch().calls == 1
    assert 5 <= harness.clock.now() - before <= 15


# Limits


def test_a_row_waits_in_its_worker_for_a_slot_before_its_deadline() -> None:
    harness = DispatchHarness(gemini(requests_per_minute=6))
    harness.dispatch()
    started = harness.clock.now()
    result = harness.dispatch()
    assert result.slot_wait_ms == pytest.approx(62_000 / 6 - 2000, abs=2)
    assert harness.clock.now() - started == pytest.approx(62 / 6, abs=0.01)


def test_a_row_without_a_slot_in_time_is_deferred_without_a_call() -> None:
    harness = two_tiers(requests_per_minute=1)
    harness.dispatch()
    context = FakeCallContext()
    deferred = harness.failure(DeferRow, context, seconds=95)
    assert deferred.delay_seconds == pytest.approx(60, abs=1)
    assert harness.editor.called() == ["gemini"]
    assert context.events == ["plan gemini"]


def test_a_spent_daily_limit_falls_back_but_a_busy_first_tier_does_not() -> None:
    assert two_tiers(requests_per_day=2).endpoints_used(4) == ["gemini"] * 2 + ["openai"] * 2
    assert two_tiers(requests_per_minute=2).endpoints_used(3) == ["gemini"] * 3
    alone = DispatchHarness(gemini(requests_per_day=1))
    alone.dispatch()
    assert alone.failure(DeferRow).delay_seconds == 900  # the queue can hide a message no longer


def test_a_free_endpoint_is_used_before_one_waits() -> None:
    harness = DispatchHarness(
        gemini("heavy", weight=1000, requests_per_minute=6),
        gemini("light", weight=0.001, requests_per_minute=6),
    )
    assert harness.endpoints_used(4) == ["heavy", "light", "heavy", "light"]
    # Two endpoints of 6 a minute make 12 a minute: no row waited for the heavier one.
    assert harness.clock.now() - START < 62 / 6 + 2 * 2.1


def test_weights_divide_the_rows_and_recent_failures_lower_them_for_all_workers() -> None:
    harness = DispatchHarness(gemini("three", weight=3), gemini("one", weight=1))
    assert 720 <= harness.endpoints_used(1000).count("three") <= 780
    harness = DispatchHarness(gemini("shaky"), gemini("sound"))
    failing = EndpointState(failures=3, failed_at=int(START * SECOND))
    names: list[str] = []
    for turn in range(900):
        harness.states.items["shaky"] = failing
        harness.clock.time = START
        names += harness.endpoints_used(1, harness.worker(rng=random.Random(turn)))
    assert names.count("shaky") == pytest.approx(100, abs=30)  # an eighth against one


def test_a_429_delays_the_next_slot_for_all_workers() -> None:
    harness = DispatchHarness(gemini(requests_per_minute=60))
    harness.editor.script("gemini", CallFailed(Outcome.RATE_LIMITED, "!", retry_after_seconds=30))
    harness.failure(RetryRow)
    failed_at = harness.clock.now()
    harness.dispatch(worker=harness.worker())
    assert harness.editor.calls[-1].at >= failed_at + 30
    assert harness.telemetry.by_endpoint["RateLimited", "gemini"] == 1


def test_a_429_with_a_retry_after_of_hours_sends_all_workers_to_the_fallback() -> None:
    harness = two_tiers(max_retries=3)
    harness.editor.script("gemini", CallFailed(Outcome.RATE_LIMITED, "!", retry_after_seconds=7200))
    assert harness.endpoints_used(6, *harness.workers(2)) == ["openai"] * 6
    assert harness.editor.called().count("gemini") == 1


def test_a_spent_daily_quota_falls_back_until_the_providers_midnight() -> None:
    harness = two_tiers()
    harness.editor.script("gemini", CallFailed(Outcome.RATE_LIMITED, "day", daily=True))
    assert harness.endpoints_used(1) == ["openai"]
    midnight = 1_795_075_200  # 2026-11-19 00:00 in California
    assert harness.state("gemini").breaker_until == (midnight + 2) * SECOND
    for time, endpoint in ((midnight - 10.0, "openai"), (midnight + 3.0, "gemini")):
        harness.clock.time = time
        assert harness.endpoints_used(1) == [endpoint]


def test_the_rate_adapts_to_a_limit_that_was_configured_too_high() -> None:
    """The provider really allows 30 in any minute, the secret says 60."""
    harness = DispatchHarness(gemini(requests_per_minute=60), openai())
    harness.editor.latency = 0.5
    allowed: list[float] = []

    def strict(call: Call) -> EditResult | CallFailed:
        now = harness.clock.now()
        if len([t for t in allowed if t > now - 60]) >= 30:
            return CallFailed(Outcome.RATE_LIMITED, "30 a minute")
        allowed.append(now)
        return IMAGE

    harness.editor.always["gemini"] = strict
    while harness.clock.now() < START + 1800:
        harness.dispatch()
    refused = harness.editor.called().count("gemini") - len(allowed)
    assert refused <= 12  # of some 600: one or two per incident
    assert len(allowed) >= 30 * 30 * 0.6


def test_a_429_limits_an_endpoint_without_a_configured_limit() -> None:
    harness = DispatchHarness(gemini(), openai())
    harness.editor.latency = 0.1
    harness.endpoints_used(50)
    harness.editor.script("gemini", Outcome.RATE_LIMITED)
    harness.dispatch()
    interval = harness.state("gemini").slowed_interval
    assert 0.15 * SECOND <= interval <= 0.25 * SECOND  # twice the one that was observed


# Leases and crashes


@pytest.mark.parametrize(
    ("error", "when"),
    [
        (RowRejected(Reason.BUDGET, "broke"), "before"),
        (LeaseLost("gone"), "before"),
        (ValueError("a bug"), "in"),
        (KeyboardInterrupt(), "in"),
        (OSError("ledger"), "after"),
    ],
)
def test_an_exception_in_any_phase_releases_the_lease(error: BaseException, when: str) -> None:
    harness = DispatchHarness(gemini(max_in_flight=4))
    if when == "in":
        harness.editor.script("gemini", error)
    assert harness.failure(type(error), FakeCallContext(raises={when: error})) is error
    assert harness.state("gemini").leases == {}
    assert harness.state("gemini").failures == 0
    assert harness.editor.called() == ([] if when == "before" else ["gemini"])


def test_a_probe_stopped_just_before_its_call_leaves_its_turn_to_the_next() -> None:
    harness = two_tiers()
    harness.dispatch()
    opened_at = int((harness.clock.now() - 10) * SECOND)
    harness.states.change("gemini", lambda state: circuit_breaker.opened(state, opened_at))
    harness.clock.time += 11  # after which the table is read again
    harness.failure(LeaseLost, FakeCallContext(raises={"before": LeaseLost("gone")}))
    harness.clock.time += 1
    assert harness.dispatch(worker=harness.worker()).fallback is False


def test_a_dead_workers_lease_expires() -> None:
    harness = DispatchHarness(gemini(max_in_flight=1, timeout_seconds=60))
    harness.editor.script("gemini", SystemExit())
    harness.states.unavailable = {"settle"}
    harness.failure(SystemExit)
    harness.states.unavailable = set()
    assert len(harness.state("gemini").leases) == 1
    died = harness.clock.now()
    harness.dispatch(worker=harness.worker())
    assert harness.clock.now() - died <= 60 + 15 + 5


def test_an_unavailable_table_defers_the_row_before_the_call_but_loses_no_image_after_it() -> None:
    harness = two_tiers()
    harness.states.unavailable = {"reserve"}
    harness.failure(DeferRow)
    assert harness.editor.calls == []
    harness.states.unavailable = {"settle"}
    assert harness.dispatch().result.images == (b"png",)
    assert "lease_not_released" in harness.telemetry.logged("warning")


def test_the_context_is_notified_before_and_after_every_call_in_order() -> None:
    harness = two_tiers(max_retries=1, retry_delay_seconds=0)
    harness.editor.script("gemini", Outcome.UNAVAILABLE, Outcome.UNAVAILABLE)
    context = FakeCallContext()
    harness.dispatch(context)
    call = ["before gemini", "unavailable"]
    fallback = ["plan openai", "before openai", "succeeded"]
    assert context.events == ["plan gemini", *call, *call, *fallback]


def test_every_call_is_one_log_line_without_a_key() -> None:
    harness = DispatchHarness(gemini(api_keys=["sk-hidden-1"]), openai(api_keys=["sk-hidden-2"]))
    harness.editor.script("gemini", CallFailed(Outcome.KEY_REJECTED, "401"))
    harness.dispatch()
    lines = [fields for _, event, fields in harness.telemetry.events if event == "attempt"]
    assert [(f["endpoint"], f["outcome"], f["latency_ms"]) for f in lines] == [
        ("gemini", "key_rejected", 2000),
        ("openai", "succeeded", 2000),
    ]
    assert "sk-hidden" not in repr(harness.telemetry.events)
    assert "sk-hidden" not in repr(harness.states.items)
    assert harness.telemetry.metrics["ProviderCalls"] == 2
    assert harness.telemetry.metrics["ProviderErrors"] == 1
