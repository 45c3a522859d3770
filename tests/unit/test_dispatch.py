"""What each outcome leads to. One worker, scripted providers, a clock that jumps."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.dispatch.dispatcher import TieredDispatcher
from darkroom.endpoint_state import SECOND, EndpointState, StatesUnavailable
from darkroom.endpoints import EndpointsSecret
from darkroom.errors import DeferRow, LeaseLost, Reason, RetryRow, RowRejected
from darkroom.ports import DispatchResult
from darkroom.providers.registry import Provider
from tests.fakes.dispatching import (
    PICTURE,
    Call,
    FakeSecretSource,
    PlainErrand,
    ScriptedEditor,
    both,
    gemini,
    openai,
    secret,
)
from tests.fakes.endpoint_states import InMemoryEndpointStates
from tests.fakes.services import FakeClock, FakeTelemetry

START = 1_795_000_000.0


@dataclass
class World:
    """A dispatcher with everything around it in memory."""

    given: EndpointsSecret
    clock: FakeClock = field(default_factory=lambda: FakeClock(START))
    telemetry: FakeTelemetry = field(default_factory=FakeTelemetry)
    states: InMemoryEndpointStates = field(default_factory=InMemoryEndpointStates)

    def __post_init__(self) -> None:
        self.editor = ScriptedEditor(self.clock, latency=2.0)
        self.source = FakeSecretSource(self.given)
        self.dispatcher = self.another()

    def another(self) -> TieredDispatcher:
        """Another worker: same table, a view of its own."""
        return TieredDispatcher(
            self.source,
            self.states,
            both(self.editor),
            self.clock,
            random.Random(7),
            self.telemetry,
        )

    def go(self, context: PlainErrand | None = None, seconds: float = 900.0) -> DispatchResult:
        return self.dispatcher.dispatch(context or PlainErrand(), self.clock.now() + seconds)

    def failing[E: Exception](self, error: type[E], seconds: float = 900.0) -> E:
        with pytest.raises(error) as caught:
            self.go(seconds=seconds)
        return caught.value

    def state(self, endpoint: str) -> EndpointState:
        return self.states.items[endpoint]


def two_tiers(**first: Any) -> World:
    return World(secret(gemini(**first), openai()))


def test_a_picture_comes_with_how_it_came_about() -> None:
    world = two_tiers()
    delivery = world.go()
    assert (delivery.endpoint.name, delivery.fallback, delivery.calls) == ("gemini", False, 1)
    assert delivery.latency_ms == 2000
    assert delivery.slot_wait_ms == 0


def test_an_answer_that_no_table_knows_is_tried_once_more_and_then_reported() -> None:
    world = World(secret(gemini(max_retries=5)))
    world.editor.always["gemini"] = CallFailed(
        Outcome.UNAVAILABLE, "status 299: a riddle", unknown=True
    )
    failed = world.failing(RetryRow)
    assert world.editor.called() == ["gemini", "gemini"]
    assert "a riddle" in failed.detail


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.NO_IMAGE, Outcome.BAD_REQUEST])
def test_what_blames_the_row_never_falls_back(outcome: Outcome) -> None:
    world = two_tiers(max_retries=2)
    world.editor.script("gemini", outcome)
    rejected = world.failing(RowRejected)
    assert rejected.reason is Reason(outcome.value)
    assert world.editor.called() == ["gemini"]


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.NO_IMAGE, Outcome.BAD_REQUEST])
def test_what_blames_the_row_says_nothing_of_the_endpoints_health(outcome: Outcome) -> None:
    world = two_tiers()
    world.editor.always["gemini"] = outcome
    for _ in range(10):
        world.failing(RowRejected)
    assert world.state("gemini").failures == 0


@pytest.mark.parametrize(
    "outcome", [o for o in Outcome if o.transient or o.blames_key], ids=lambda o: o.value
)
def test_transient_failures_and_bad_keys_fall_back(outcome: Outcome) -> None:
    world = two_tiers()
    world.editor.script("gemini", outcome)
    delivery = world.go()
    assert (delivery.endpoint.name, delivery.fallback, delivery.calls) == ("openai", True, 2)


def test_retries_stay_with_the_endpoint_then_its_tier_then_the_next() -> None:
    world = World(
        secret(
            gemini("a", tier=1, weight=1000, max_retries=2),
            gemini("b", tier=1, weight=0.001, max_retries=1),
            openai("c", tier=2),
        )
    )
    world.editor.always |= {"a": Outcome.UNAVAILABLE, "b": Outcome.UNAVAILABLE}
    world.go()
    assert world.editor.called() == ["a", "a", "a", "b", "b", "c"]


def test_backoff_doubles_from_the_base_delay_with_jitter_and_a_cap() -> None:
    world = World(secret(gemini(max_retries=3, retry_delay_seconds=20)))
    world.editor.always["gemini"] = Outcome.UNAVAILABLE
    world.failing(RetryRow)
    at = [call.at for call in world.editor.calls]
    gaps = [later - earlier - 2.0 for earlier, later in itertools.pairwise(at)]
    for gap, base in zip(gaps, [20, 40, 60], strict=True):
        assert base * 0.7 <= gap <= base * 1.3 + 0.001
    assert len({round(gap / base, 3) for gap, base in zip(gaps, [20, 40, 60], strict=True)}) == 3


def test_when_all_fail_the_first_tiers_error_is_the_one_reported() -> None:
    world = two_tiers()
    world.editor.script("gemini", CallFailed(Outcome.RATE_LIMITED, "gemini says slow down"))
    world.editor.script("openai", CallFailed(Outcome.UNAVAILABLE, "openai is down"))
    error = world.failing(RetryRow)
    assert (error.reason, error.endpoint, error.provider) == (
        Reason.RATE_LIMITED,
        "gemini",
        "gemini",
    )
    assert "gemini says slow down" in error.detail
    assert error.delay_seconds > 0


def test_the_first_tiers_trouble_is_reported_also_by_a_row_that_was_spared_it() -> None:
    world = two_tiers(max_retries=3, retry_delay_seconds=0)
    world.editor.always |= {"gemini": Outcome.UNAVAILABLE, "openai": Outcome.UNAVAILABLE}
    world.failing(RetryRow)
    error = world.failing(RetryRow)
    assert world.editor.called() == [*["gemini"] * 4, "openai", "openai"]
    assert (error.reason, error.endpoint) == (Reason.UNAVAILABLE, "gemini")
    assert "breaker" in error.detail
    assert "openai" in error.detail


def test_a_mask_that_one_model_cannot_honour_goes_to_another_before_any_booking() -> None:
    world = two_tiers()
    delivery = world.go(PlainErrand(unfit={"gemini": "it takes no mask"}))
    assert delivery.endpoint.name == "openai"
    assert delivery.warnings == ("gemini was passed over: it takes no mask",)
    assert world.state("gemini").calls == 0


def test_a_row_that_nobody_can_honour_is_rejected_with_every_reason() -> None:
    world = two_tiers()
    with pytest.raises(RowRejected, match="gemini: no masks; openai: too wide") as caught:
        world.go(PlainErrand(unfit={"gemini": "no masks", "openai": "too wide"}))
    assert caught.value.reason is Reason.BAD_REQUEST
    assert world.editor.calls == []


def test_a_provider_that_is_not_there_is_a_warning() -> None:
    world = two_tiers()
    alone = TieredDispatcher(
        world.source,
        world.states,
        {Provider.OPENAI: world.editor},
        world.clock,
        random.Random(1),
        world.telemetry,
    )
    for _ in range(3):
        assert alone.dispatch(PlainErrand(), START + 900).endpoint.name == "openai"
    assert world.telemetry.logged("warning") == ["provider_missing"]


@pytest.mark.parametrize("make", [gemini, openai])
def test_either_provider_alone_works_with_one_warning(
    make: Callable[[], dict[str, object]],
) -> None:
    world = World(secret(make()))
    world.go()
    world.go()
    assert world.telemetry.logged("warning") == ["no_fallback"]


# Keys


def test_keys_take_turns() -> None:
    world = World(secret(gemini(api_keys=["a", "b", "c"])))
    for _ in range(6):
        world.go()
    keys = [call.key for call in world.editor.calls]
    assert sorted(keys[:3]) == ["a", "b", "c"]
    assert keys[:3] == keys[3:]


@pytest.mark.parametrize("outcome", [Outcome.KEY_REJECTED, Outcome.QUOTA_SPENT])
def test_a_rejected_key_rests_for_all_workers_and_the_next_is_used(outcome: Outcome) -> None:
    world = World(secret(gemini(api_keys=["bad", "good"])))
    world.editor.always["gemini"] = lambda call: (
        CallFailed(outcome, "no") if call.key == "bad" else PICTURE
    )
    workers = [world.dispatcher, world.another(), world.another()]
    for turn in range(30):
        workers[turn % 3].dispatch(PlainErrand(), world.clock.now() + 900)
    bad = [call for call in world.editor.calls if call.key == "bad"]
    assert len(bad) == 1
    assert world.telemetry.by_endpoint["KeyRejected", "gemini"] == 1


def test_a_key_is_tried_again_when_its_rest_is_over() -> None:
    world = World(secret(gemini(api_keys=["a"]), openai()))
    world.editor.script("gemini", Outcome.QUOTA_SPENT)
    assert world.go().endpoint.name == "openai"
    assert world.go().endpoint.name == "openai"
    world.clock.time += 601
    assert world.go().endpoint.name == "gemini"


def test_a_new_secret_is_read_at_once_and_its_key_used_for_the_same_row() -> None:
    world = World(secret(gemini(api_keys=["revoked"]), openai()))
    world.source.after_refresh = secret(gemini(api_keys=["fresh"]), openai())
    world.editor.script("gemini", Outcome.KEY_REJECTED)
    assert world.go().endpoint.name == "gemini"
    assert [call.key for call in world.editor.calls] == ["revoked", "fresh"]


def test_when_every_key_rests_an_attempt_is_spent_slowly() -> None:
    world = World(secret(gemini(api_keys=["a", "b"])))
    world.editor.always["gemini"] = Outcome.KEY_REJECTED
    first = world.failing(RetryRow)
    second = world.failing(RetryRow)
    assert len(world.editor.calls) == 2
    for error in (first, second):
        assert error.reason is Reason.KEY_REJECTED
        assert error.delay_seconds > 200


# The breaker


def test_in_an_outage_all_workers_learn_from_the_first_few_failures() -> None:
    world = two_tiers()
    world.editor.always["gemini"] = Outcome.UNAVAILABLE
    workers = [world.another() for _ in range(8)]
    for turn in range(80):
        delivery = workers[turn % 8].dispatch(PlainErrand(), world.clock.now() + 900)
        assert delivery.endpoint.name == "openai"
        world.clock.time -= 2.0  # so that the whole outage lies within one cool-down
    assert world.editor.called().count("gemini") <= 4
    assert world.telemetry.by_endpoint["BreakerOpened", "gemini"] == 1


def test_an_open_breaker_ends_the_retries_of_a_row_in_backoff() -> None:
    world = two_tiers(max_retries=9, retry_delay_seconds=1)
    world.editor.always["gemini"] = Outcome.UNAVAILABLE
    world.go()
    assert world.editor.called() == ["gemini"] * 4 + ["openai"]


def test_a_probe_finds_the_recovery() -> None:
    world = two_tiers(max_retries=5, retry_delay_seconds=0)
    world.editor.script("gemini", *[Outcome.UNAVAILABLE] * 5)
    world.go()
    world.clock.time += 10
    assert world.go().endpoint.name == "openai"  # the probe failed: the fifth failure
    world.clock.time += 10
    assert world.go().endpoint.name == "openai"  # twice the cool-down: nothing was called
    world.clock.time += 10
    assert world.go().endpoint.name == "gemini"
    assert world.state("gemini").tripped is False
    assert world.editor.called().count("gemini") == 6


def test_with_every_endpoint_down_the_row_waits_and_then_goes() -> None:
    world = World(secret(gemini(max_retries=0)))
    world.editor.script("gemini", *[Outcome.UNAVAILABLE] * 4)
    for _ in range(4):
        world.failing(RetryRow)
    before = world.clock.now()
    assert world.go().calls == 1
    assert 5 <= world.clock.now() - before <= 15


def test_with_every_endpoint_down_and_no_time_left_the_row_is_deferred_at_no_cost() -> None:
    world = World(secret(gemini(max_retries=0)))
    world.editor.always["gemini"] = Outcome.UNAVAILABLE
    for _ in range(4):
        world.failing(RetryRow)
    error = world.failing(DeferRow, seconds=95)
    assert 1 <= error.delay_seconds <= 10
    assert "breaker" in error.detail
    assert len(world.editor.calls) == 4


# Limits


def test_a_row_waits_in_place_for_a_slot_inside_its_time() -> None:
    world = World(secret(gemini(requests_per_minute=6)))
    world.go()
    started = world.clock.now()
    delivery = world.go()
    assert delivery.slot_wait_ms == pytest.approx(62_000 / 6 - 2000, abs=2)
    assert world.clock.now() - started == pytest.approx(62 / 6, abs=0.01)


def test_a_row_without_a_slot_in_time_is_deferred_and_nothing_is_called() -> None:
    world = two_tiers(requests_per_minute=1)
    world.go()
    context = PlainErrand()
    with pytest.raises(DeferRow) as caught:
        world.dispatcher.dispatch(context, world.clock.now() + 95)
    assert caught.value.delay_seconds == pytest.approx(60, abs=1)
    assert world.editor.called() == ["gemini"]
    assert context.events == [("plan", "gemini")]


def test_a_busy_first_tier_is_waited_for_not_replaced() -> None:
    world = two_tiers(requests_per_minute=2)
    assert [world.go().endpoint.name for _ in range(3)] == ["gemini"] * 3


def test_a_deferral_is_never_longer_than_the_queue_can_hide_a_message() -> None:
    world = World(secret(gemini(requests_per_day=1)))
    world.go()
    error = world.failing(DeferRow)
    assert error.delay_seconds == 900


def test_a_spent_day_limit_falls_back() -> None:
    world = two_tiers(requests_per_day=2)
    assert [world.go().endpoint.name for _ in range(4)] == ["gemini"] * 2 + ["openai"] * 2


def test_a_free_endpoint_is_used_before_one_waits() -> None:
    world = World(
        secret(
            gemini("heavy", weight=1000, requests_per_minute=6),
            gemini("light", weight=0.001, requests_per_minute=6),
        )
    )
    names = [world.go().endpoint.name for _ in range(4)]
    assert names == ["heavy", "light", "heavy", "light"]
    # Two endpoints of 6 a minute make 12 a minute: nobody waited for the heavier one.
    assert world.clock.now() - START < 62 / 6 + 2 * 2.1


def test_weights_of_three_to_one_give_three_quarters() -> None:
    world = World(secret(gemini("three", weight=3), gemini("one", weight=1)))
    names = [world.go().endpoint.name for _ in range(1000)]
    assert 720 <= names.count("three") <= 780


def test_recent_errors_reduce_an_endpoints_weight_for_all_workers() -> None:
    world = World(secret(gemini("shaky"), gemini("sound")))
    failing = EndpointState(failures=3, failed_at=int(START * SECOND))
    names: list[str] = []
    for turn in range(900):
        world.states.items["shaky"] = failing
        world.clock.time = START
        worker = TieredDispatcher(
            world.source,
            world.states,
            both(world.editor),
            world.clock,
            random.Random(turn),
            world.telemetry,
        )
        names.append(worker.dispatch(PlainErrand(), START + 900).endpoint.name)
    assert names.count("shaky") == pytest.approx(100, abs=30)  # an eighth against one


def test_a_429_moves_the_next_slot_for_all_workers() -> None:
    world = World(secret(gemini(requests_per_minute=60)))
    world.editor.script("gemini", CallFailed(Outcome.RATE_LIMITED, "!", retry_after_seconds=30))
    world.failing(RetryRow)
    told = world.clock.now()
    other = world.another()
    other.dispatch(PlainErrand(), world.clock.now() + 900)
    assert world.editor.calls[-1].at >= told + 30
    assert world.telemetry.by_endpoint["RateLimited", "gemini"] == 1


def test_a_429_that_asks_for_hours_sends_everybody_to_the_fallback() -> None:
    world = two_tiers(max_retries=3)
    world.editor.script("gemini", CallFailed(Outcome.RATE_LIMITED, "!", retry_after_seconds=7200))
    workers = [world.dispatcher, world.another()]
    names = [w.dispatch(PlainErrand(), world.clock.now() + 900).endpoint.name for w in workers * 3]
    assert names == ["openai"] * 6
    assert world.editor.called().count("gemini") == 1


def test_a_spent_daily_quota_rests_until_the_providers_midnight() -> None:
    world = two_tiers()
    world.editor.script("gemini", CallFailed(Outcome.RATE_LIMITED, "day", daily=True))
    assert world.go().endpoint.name == "openai"
    midnight = 1_795_075_200  # 2026-11-19 00:00 in California
    assert world.state("gemini").breaker_until == (midnight + 2) * SECOND
    world.clock.time = midnight - 10.0
    assert world.go().endpoint.name == "openai"
    world.clock.time = midnight + 3.0
    assert world.go().endpoint.name == "gemini"


def test_the_pace_adapts_to_a_limit_that_was_configured_too_high() -> None:
    """The provider really allows 30 in any minute, the secret says 60."""
    world = World(secret(gemini(requests_per_minute=60), openai()))
    world.editor.latency = 0.5
    allowed: list[float] = []

    def strict(call: Call) -> EditResult | CallFailed:
        now = world.clock.now()
        if len([t for t in allowed if t > now - 60]) >= 30:
            return CallFailed(Outcome.RATE_LIMITED, "30 a minute")
        allowed.append(now)
        return PICTURE

    world.editor.always["gemini"] = strict
    while world.clock.now() < START + 1800:
        world.go()
    refused = world.editor.called().count("gemini") - len(allowed)
    assert refused <= 12  # of some 600: one or two per incident
    assert len(allowed) >= 30 * 30 * 0.6


def test_an_endpoint_without_a_limit_learns_one_from_429s() -> None:
    world = World(secret(gemini(), openai()))
    world.editor.latency = 0.1
    for _ in range(50):
        world.go()
    world.editor.script("gemini", Outcome.RATE_LIMITED)
    world.go()
    gap = world.state("gemini").gap
    assert 0.15 * SECOND <= gap <= 0.25 * SECOND  # twice the pace that was seen


# Leases and accidents


def held(world: World) -> int:
    return len(world.state("gemini").leases)


@pytest.mark.parametrize("error", [RowRejected(Reason.BUDGET, "broke"), LeaseLost("gone")])
def test_a_row_stopped_just_before_its_call_gives_the_lease_back(error: Exception) -> None:
    world = World(secret(gemini(max_in_flight=4)))
    context = PlainErrand(refuse=error)
    with pytest.raises(type(error)):
        world.go(context)
    assert held(world) == 0
    assert world.editor.calls == []


def test_a_probe_stopped_just_before_its_call_leaves_the_turn_to_the_next() -> None:
    world = two_tiers()
    world.go()
    world.states.trip("gemini", int(world.clock.now() * SECOND))
    world.clock.time += 11  # the view is looked over again
    with pytest.raises(LeaseLost):
        world.go(PlainErrand(refuse=LeaseLost("gone")))
    world.clock.time += 1
    assert world.another().dispatch(PlainErrand(), world.clock.now() + 900).fallback is False


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_an_editor_that_breaks_gives_the_lease_back(error: BaseException) -> None:
    world = World(secret(gemini(max_in_flight=4)))

    def explode(call: object) -> CallFailed:
        raise error

    world.editor.script("gemini", explode)
    with pytest.raises(type(error)):
        world.go()
    assert held(world) == 0


def test_a_ledger_that_breaks_after_the_call_gives_the_lease_back() -> None:
    world = World(secret(gemini(max_in_flight=4)))
    with pytest.raises(OSError, match="ledger"):
        world.go(PlainErrand(refuse_after=OSError("ledger")))
    assert held(world) == 0
    assert world.state("gemini").failures == 0


def test_a_dead_workers_lease_frees_itself() -> None:
    world = World(secret(gemini(max_in_flight=1, timeout_seconds=60)))

    def die(call: object) -> CallFailed:
        raise SystemExit

    lost = world.states.settle
    world.states.settle = lambda endpoint, report: world.state(endpoint)  # type: ignore[method-assign]
    world.editor.script("gemini", die)
    with pytest.raises(SystemExit):
        world.go()
    world.states.settle = lost  # type: ignore[method-assign]
    assert held(world) == 1
    died = world.clock.now()
    world.another().dispatch(PlainErrand(), world.clock.now() + 900)
    assert world.clock.now() - died <= 60 + 15 + 5


def test_a_table_that_does_not_answer_defers_the_row_and_calls_nobody() -> None:
    world = two_tiers()

    def down(*args: object) -> None:
        raise StatesUnavailable("the endpoints table did not answer")

    world.states.book = down  # type: ignore[method-assign,assignment]
    world.failing(DeferRow)
    assert world.editor.calls == []


def test_a_table_that_fails_after_the_call_does_not_lose_the_picture() -> None:
    world = two_tiers()

    def down(*args: object) -> None:
        raise StatesUnavailable("the endpoints table did not answer")

    world.states.settle = down  # type: ignore[method-assign,assignment]
    assert world.go().result.images == (b"png",)
    assert "lease_not_given_back" in world.telemetry.logged("warning")


def test_every_call_is_told_before_and_after_in_order() -> None:
    world = two_tiers(max_retries=1, retry_delay_seconds=0)
    world.editor.script("gemini", Outcome.UNAVAILABLE, Outcome.UNAVAILABLE)
    context = PlainErrand()
    world.go(context)
    assert context.events == [
        ("plan", "gemini"),
        ("before", "gemini"),
        ("unavailable", "gemini"),
        ("before", "gemini"),
        ("unavailable", "gemini"),
        ("plan", "openai"),
        ("before", "openai"),
        ("succeeded", "openai"),
    ]


def test_every_attempt_is_one_log_line_without_a_key() -> None:
    world = World(secret(gemini(api_keys=["sk-hidden-1"]), openai(api_keys=["sk-hidden-2"])))
    world.editor.script("gemini", CallFailed(Outcome.KEY_REJECTED, "401"))
    world.go()
    lines = [fields for _, event, fields in world.telemetry.events if event == "attempt"]
    assert [(f["endpoint"], f["outcome"], f["latency_ms"]) for f in lines] == [
        ("gemini", "key_rejected", 2000),
        ("openai", "succeeded", 2000),
    ]
    assert "sk-hidden" not in repr(world.telemetry.events)
    assert "sk-hidden" not in repr(world.states.items)
    assert world.telemetry.metrics["ProviderCalls"] == 2
    assert world.telemetry.metrics["ProviderErrors"] == 1
