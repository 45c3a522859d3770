"""What each outcome leads to: scripted providers, and a clock that advances only by sleeping."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.endpoint_state import SECOND, EndpointState
from darkroom.endpoints import key_fingerprint
from darkroom.errors import (
    DeferRow,
    LeaseLost,
    Reason,
    RetryRow,
    RowRejected,
    ServiceUnavailable,
)
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
        assert result.fallback_cause.startswith("gemini ")
        assert key_fingerprint(SecretStr("key-1")) in result.fallback_cause
        if outcome is Outcome.MODEL_UNAVAILABLE:
            assert "model gemini-3-pro-image was not found" in result.fallback_cause
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
    harness.failure(DeferRow)  # the fourth failure opens the breaker
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
    harness.editor.always["gemini"] = Outcome.UNAVAILABLE
    harness.editor.script("openai", Outcome.UNAVAILABLE, IMAGE, Outcome.UNAVAILABLE)
    harness.failure(RetryRow)
    harness.dispatch()
    error = harness.failure(RetryRow)
    assert harness.editor.called() == [*["gemini"] * 4, *["openai"] * 3]
    assert (error.reason, error.endpoint) == (Reason.UNAVAILABLE, "gemini")
    assert "gemini is out of service until" in error.detail
    assert "openai: scripted" not in error.detail.split(";")[0]


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


def test_rows_that_wait_for_a_model_that_does_not_exist_name_it() -> None:
    harness = DispatchHarness(gemini("gemini-main", model="gemini-3-pro-imag"))
    harness.editor.always["gemini-main"] = CallFailed(Outcome.MODEL_UNAVAILABLE, "404")
    waiting = harness.failure(DeferRow).waiting
    assert waiting is not None
    assert waiting.reason is Reason.MODEL_UNAVAILABLE
    assert waiting.detail.startswith("model gemini-3-pro-imag of gemini-main was not found (404)")


def test_when_every_key_is_rejected_rows_wait_without_spending_attempts() -> None:
    harness = DispatchHarness(gemini("gemini-main", api_keys=["a", "b"]))
    harness.editor.always["gemini-main"] = CallFailed(Outcome.KEY_REJECTED, "401")
    for _ in range(20):
        deferred = harness.failure(DeferRow)
        assert deferred.waiting is not None
        assert deferred.waiting.reason is Reason.KEY_REJECTED
        assert deferred.waiting.detail.startswith("every key of gemini-main was rejected (401)")
        assert harness.first_worker.readiness().waiting == deferred.waiting
        harness.clock.time += 20
    assert len(harness.editor.calls) == 2


@pytest.mark.parametrize(
    "corrected", [{"api_keys": ["b"]}, {"model": "m"}, {"base_url": "https://x"}]
)
def test_a_corrected_endpoint_is_not_blocked_by_the_cooldown_of_the_old_one(
    corrected: dict[str, object],
) -> None:
    harness = DispatchHarness(gemini(api_keys=["a"]))
    harness.editor.script("gemini", *[CallFailed(Outcome.MODEL_UNAVAILABLE, "404")] * 2)
    harness.failure(DeferRow)
    harness.failure(DeferRow)
    assert len(harness.editor.calls) == 1
    harness.secret_source.current = secret(gemini() | {"api_keys": ["a"]} | corrected)
    harness.editor.scripts.clear()
    assert harness.dispatch().calls == 1


def test_a_model_that_the_row_names_and_nobody_has_is_the_rows_fault() -> None:
    harness = DispatchHarness(gemini())
    harness.editor.always["gemini"] = CallFailed(Outcome.MODEL_UNAVAILABLE, "no such model")
    assert harness.failure(RowRejected, FakeCallContext(model="row-model")).reason is (
        Reason.BAD_REQUEST
    )
    assert harness.state("gemini").key_cooldowns == {}


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


def test_with_every_endpoint_down_a_row_is_deferred_at_no_cost_and_says_why() -> None:
    harness = DispatchHarness(gemini())
    harness.editor.script("gemini", *[CallFailed(Outcome.UNAVAILABLE, "503")] * 4)
    harness.failure(RetryRow)  # the first failure may be the row's own
    for _ in range(3):
        harness.failure(DeferRow)  # others fail too
    deferred = harness.failure(DeferRow)
    assert 1 <= deferred.delay_seconds <= 20
    assert deferred.waiting is not None
    assert deferred.waiting.reason is Reason.UNAVAILABLE
    assert "gemini is out of service until 11:06 UTC" in deferred.waiting.detail
    assert "503" in deferred.waiting.detail
    assert len(harness.editor.calls) == 4
    assert harness.dispatch_until_done().calls == 1
    assert harness.first_worker.readiness().waiting is None


def test_a_failed_probe_costs_its_row_no_attempt() -> None:
    harness = DispatchHarness(gemini())
    harness.editor.always["gemini"] = Outcome.UNAVAILABLE
    harness.failure(RetryRow)
    for _ in range(50):
        harness.clock.sleep(harness.failure(DeferRow).delay_seconds)
    assert len(harness.editor.calls) >= 20


def test_without_a_usable_secret_rows_wait_and_no_attempt_is_spent() -> None:
    harness = DispatchHarness(gemini(weight=0))
    deferred = harness.failure(DeferRow)
    assert deferred.waiting is not None
    assert deferred.waiting.reason is Reason.NO_ENDPOINT
    assert "weight 0" in deferred.waiting.detail
    readiness = harness.first_worker.readiness()
    assert readiness.waiting == deferred.waiting
    assert harness.clock.now() < readiness.start_at <= harness.clock.now() + 60


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
    assert 60 <= deferred.delay_seconds <= 60 * 1.3 / 0.7
    assert deferred.waiting is None
    assert harness.editor.called() == ["gemini"]
    assert context.events == ["plan gemini"]


def test_a_spent_daily_limit_falls_back_but_a_busy_first_tier_does_not() -> None:
    assert two_tiers(requests_per_day=2).endpoints_used(4) == ["gemini"] * 2 + ["openai"] * 2
    assert two_tiers(requests_per_minute=6).endpoints_used(3) == ["gemini"] * 3
    alone = DispatchHarness(gemini(requests_per_day=1))
    alone.dispatch()
    deferred = alone.failure(DeferRow)
    assert deferred.waiting is not None
    assert "gemini is out of service until 08:00 UTC (its requests_per_day" in (
        deferred.waiting.detail
    )
    assert deferred.delay_seconds <= 60 * 1.3 / 0.7  # a corrected secret is noticed in time


def test_fallback_means_that_an_earlier_tier_failed_and_not_that_it_was_ineligible() -> None:
    harness = two_tiers(requests_per_day=1)
    context = FakeCallContext(ineligible={"gemini": "it takes no mask"})
    assert harness.dispatch(context).fallback is False
    harness.dispatch()
    assert harness.dispatch().fallback is True  # out of service
    assert harness.dispatch(context).fallback is False


def test_an_endpoint_of_weight_0_gets_no_rows() -> None:
    harness = DispatchHarness(gemini("drained", weight=0), gemini("other"), openai())
    assert harness.endpoints_used(20) == ["other"] * 20
    assert not harness.dispatch().fallback


def test_a_row_that_waits_does_not_use_an_endpoint_that_was_removed() -> None:
    harness = DispatchHarness(gemini("old", requests_per_minute=6))
    harness.dispatch()
    harness.secret_source.current = secret(gemini("new"))
    assert harness.dispatch().endpoint.name == "new"


def test_a_call_larger_than_a_limit_is_ineligible_there() -> None:
    harness = DispatchHarness(gemini(images_per_minute=4), openai())
    result = harness.dispatch(FakeCallContext(n=8))
    assert (result.endpoint.name, result.fallback) == ("openai", False)
    assert "8 images" in result.warnings[0]
    harness = DispatchHarness(gemini(), openai())
    too_large = CallFailed(Outcome.BAD_REQUEST, "Limit 5, Requested 8", too_large_for_limit=True)
    harness.editor.script("gemini", too_large)
    assert harness.dispatch().endpoint.name == "openai"


def test_a_failure_by_chance_is_repeated_once_at_the_same_endpoint() -> None:
    harness = two_tiers()
    empty = CallFailed(Outcome.NO_IMAGE, "no image", retry_once=True)
    harness.editor.script("gemini", empty)
    assert harness.dispatch().calls == 2
    harness.editor.script("gemini", empty, empty)
    assert harness.failure(RowRejected).reason is Reason.NO_IMAGE
    assert harness.editor.called() == ["gemini"] * 4


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


@pytest.mark.parametrize("seconds", [3, 15, 30])
def test_a_retry_after_delays_all_workers_and_slots_already_reserved(seconds: float) -> None:
    harness = DispatchHarness(gemini(requests_per_minute=60))
    harness.editor.script(
        "gemini", CallFailed(Outcome.RATE_LIMITED, "!", retry_after_seconds=seconds)
    )
    harness.failure(RetryRow)
    failed_at = harness.clock.now()
    harness.dispatch_until_done(worker=harness.worker())
    assert harness.editor.calls[-1].at >= failed_at + seconds - 0.001
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
        harness.dispatch_until_done()
    refused = harness.editor.called().count("gemini") - len(allowed)
    assert refused <= 0.1 * harness.editor.called().count("gemini")
    assert len(allowed) >= 30 * 30 * 0.6


def test_a_run_of_429s_limits_an_endpoint_without_a_configured_limit() -> None:
    harness = DispatchHarness(gemini(), openai())
    harness.editor.latency = 0.1
    harness.editor.script("gemini", Outcome.RATE_LIMITED, *[IMAGE] * 150)
    harness.endpoints_used(151)
    harness.editor.script("gemini", *[Outcome.RATE_LIMITED] * 4)
    while not harness.state("gemini").slowdown:
        harness.dispatch()
    base = harness.state("gemini").slowed_base
    assert 0.08 * SECOND <= base <= 0.15 * SECOND  # the interval that was observed
    assert harness.state("gemini").slowdown == 0.25


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
    harness.editor.script("gemini", *[Outcome.UNAVAILABLE] * 4)
    assert harness.endpoints_used(5) == ["openai"] * 5
    harness.clock.time += 11
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
    harness.dispatch_until_done(worker=harness.worker())
    assert harness.clock.now() - died <= 60 + 15 + 20


def test_an_unavailable_table_defers_the_row_before_the_call_but_loses_no_image_after_it() -> None:
    harness = two_tiers()
    harness.states.unavailable = {"reserve"}
    harness.failure(DeferRow)
    assert harness.editor.calls == []
    harness.states.unavailable = {"settle"}
    assert harness.dispatch().result.images == (b"png",)
    assert "lease_not_released" in harness.telemetry.logged("warning")


def test_readiness_outlasts_a_read_that_fails_but_not_an_outage_of_the_table() -> None:
    """One failed read must not send a whole batch back to the queue."""
    harness = two_tiers()
    ready = harness.first_worker.readiness()
    harness.states.unavailable = {"read"}
    harness.clock.time += 25
    assert harness.first_worker.readiness().start_at - harness.clock.now() <= 0
    assert harness.first_worker.readiness().free_places == ready.free_places
    assert harness.states.requests["read"] == 2  # the one that failed is not repeated at once
    harness.clock.time += 6
    with pytest.raises(ServiceUnavailable):
        harness.first_worker.readiness()
    harness.states.unavailable = set()
    assert harness.first_worker.readiness() == replace(ready, start_at=harness.clock.now())


def test_a_call_whose_slot_passed_while_sent_was_written_is_not_made() -> None:
    harness = DispatchHarness(gemini(requests_per_minute=60, max_in_flight=1))
    context = FakeCallContext()
    stalls = iter([5.0, 0.0])
    context.during_before_call = lambda: harness.clock.sleep(next(stalls))
    result = harness.dispatch(context)
    assert context.events == [
        "plan gemini", "before gemini", "cancelled", "before gemini", "succeeded",
    ]  # fmt: skip
    assert result.calls == len(harness.editor.calls) == 1
    assert harness.state("gemini").leases == {}


def test_a_lowered_limit_with_leases_of_dead_workers_does_not_spin() -> None:
    harness = DispatchHarness(gemini(max_in_flight=2))
    now = int(START * SECOND)
    dead = {f"dead-{n}": now + 500 * SECOND for n in range(20)}
    harness.states.items["gemini"] = EndpointState(leases=dead, revision=1)
    harness.failure(DeferRow)
    assert harness.states.requests["reserve"] + harness.states.requests["read"] <= 60
    assert len(harness.clock.slept) <= 250
    harness.clock.time += 501
    assert harness.dispatch().calls == 1


def test_a_row_keeps_the_time_for_a_call_at_the_next_tier_or_makes_none() -> None:
    harness = DispatchHarness(gemini(timeout_seconds=300), openai(timeout_seconds=300))
    harness.failure(DeferRow, seconds=640)
    assert harness.editor.calls == []
    harness.editor.latency = 299
    harness.editor.script("gemini", Outcome.UNAVAILABLE)
    assert harness.dispatch(seconds=655).endpoint.name == "openai"


def test_the_context_is_notified_before_and_after_every_call_in_order() -> None:
    harness = two_tiers(max_retries=1, retry_delay_seconds=0)
    harness.editor.script("gemini", Outcome.UNAVAILABLE, Outcome.UNAVAILABLE)
    context = FakeCallContext()
    harness.dispatch(context)
    call = ["before gemini", "unavailable"]
    fallback = ["plan openai", "before openai", "succeeded"]
    assert context.events == ["plan gemini", *call, *call, *fallback]


def test_an_answer_to_a_call_sent_before_the_failures_is_counted_apart() -> None:
    harness = DispatchHarness(gemini())
    began = int((harness.clock.now() + 1) * SECOND)
    harness.states.items["gemini"] = EndpointState(failures=3, failing_since=began, revision=1)
    harness.dispatch()
    assert (harness.state("gemini").good, harness.state("gemini").earlier_good) == (0, 1)
    harness.clock.sleep(2)
    harness.dispatch()
    assert (harness.state("gemini").good, harness.state("gemini").earlier_good) == (1, 1)


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
