"""Breaker, weights, 429s and key cooldowns as pure functions; and the cache of endpoint state."""

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.calls import Outcome
from darkroom.dispatch import circuit_breaker
from darkroom.dispatch.circuit_breaker import Failure, after_failure
from darkroom.dispatch.state_cache import StateCache
from darkroom.endpoint_state import SECOND, EndpointState, KeyCooldown
from tests.fakes.endpoint_states import InMemoryEndpointStates
from tests.fakes.services import FakeClock, FakeTelemetry

START = 1_795_000_000
NOW = START * SECOND


def failure(at: float = 0, outcome: Outcome = Outcome.UNAVAILABLE, **fields: object) -> Failure:
    """A failure `at` seconds after NOW of a call sent just before."""
    now = NOW + int(at * SECOND)
    facts = {"lease": "l", "now": now, "sent_at": now - 1, "outcome": outcome, "detail": "why"}
    return Failure(**{**facts, **fields})  # type: ignore[arg-type]  # fields of a Failure


def after(*failures: Failure, state: EndpointState | None = None) -> EndpointState:
    state = state or EndpointState()
    for one in failures:
        state = after_failure(replace(state, calls=state.calls + 1), one)
    return state


def rate_limited(at: float = 0, **fields: object) -> Failure:
    return failure(at, Outcome.RATE_LIMITED, **fields)


def a_run(start: float = 0) -> Iterable[Failure]:
    return [rate_limited(start + n / 10) for n in range(4)]


def test_cooldowns_double_up_to_a_minute() -> None:
    seconds = [circuit_breaker.cooldown(opens) / SECOND for opens in range(1, 7)]
    assert seconds == [10, 20, 40, 60, 60, 60]


@given(st.integers(0, 10_000))
def test_a_cooldown_is_never_longer_than_a_minute(opens: int) -> None:
    assert 0 < circuit_breaker.cooldown(opens) <= 60 * SECOND


@pytest.mark.parametrize(("failures", "share"), [(0, 1), (1, 0.5), (3, 0.125), (4, 1 / 16)])
def test_each_recent_failure_halves_the_weight_down_to_a_sixteenth(
    failures: int, share: float
) -> None:
    state = EndpointState(failures=failures, failed_at=NOW)
    assert circuit_breaker.effective_weight(8, state, NOW) == 8 * share
    state = EndpointState(failures=failures + 50, failed_at=NOW)
    assert circuit_breaker.effective_weight(8, state, NOW) >= 8 / 16


def test_failures_decay_by_half_in_a_minute() -> None:
    state = EndpointState(failures=4, failed_at=NOW)
    assert circuit_breaker.recent_failures(state, NOW + 60 * SECOND) == 2


# The breaker


def test_four_failures_without_a_good_answer_open_the_breaker_and_void_reservations() -> None:
    reserved = EndpointState(next_slot=NOW + 300 * SECOND, last_interval=6 * SECOND)
    three = after(*[failure(n) for n in range(3)], state=reserved)
    assert not three.breaker_open
    four = after(failure(3), state=three)
    assert four.breaker_open
    assert four.breaker_until == NOW + 13 * SECOND
    assert four.epoch == three.epoch + 1
    assert four.next_slot <= NOW + 3 * SECOND + circuit_breaker.EPOCH_GUARD + 6 * SECOND
    assert "why" in four.cause


@pytest.mark.parametrize("rate", [10, 60, 300, 1000])
def test_scattered_failures_never_open_the_breaker(rate: int) -> None:
    """5 % of failures, each known at once; the good answers come 20 s after their calls."""
    rng, state, answers = random.Random(rate), EndpointState(), deque[float]()
    for call in range(10_000):
        at = call * 60 / rate
        state = replace(state, calls=state.calls + 1)
        while answers and answers[0] <= at:
            sent_at = NOW + int((answers.popleft() - 20) * SECOND)
            if sent_at < state.failing_since:
                state = replace(state, earlier_good=state.earlier_good + 1)
            else:
                state = replace(state, good=state.good + 1)
        if rng.random() < 0.05:
            state = after_failure(state, failure(at, interval=60 * SECOND // rate))
        else:
            answers.append(at + 20)
        assert not state.breaker_open, call


def test_the_breaker_stays_closed_while_most_calls_succeed_and_opens_when_most_fail() -> None:
    state = EndpointState()
    for turn in range(200):
        state = replace(after(failure(turn), state=state), good=2)
    assert not state.breaker_open
    opened_at = 0
    for turn in range(200, 300):
        state = after(failure(turn), failure(turn), failure(turn), state=state)
        state = replace(state, good=state.good + 1, calls=state.calls + 1)
        opened_at = opened_at or (turn if state.breaker_open else 0)
    assert 200 < opened_at < 215


def test_answers_to_calls_sent_before_an_outage_delay_the_opening_only_a_little() -> None:
    state = EndpointState()
    for number in range(20):
        state = after(failure(number), state=state)
        if state.breaker_open:
            break
        state = replace(state, earlier_good=state.earlier_good + 1)
    assert number + 1 == 2 * circuit_breaker.OPEN_AT_FAILURES


def test_stray_429s_are_no_run_while_answers_to_earlier_calls_come() -> None:
    state = EndpointState(volume=500, counted_at=NOW)
    for number in range(6):
        state = after(rate_limited(number), state=replace(state, earlier_good=number))
    assert not state.slowdown


def test_time_outs_far_apart_add_up() -> None:
    window = 600 * SECOND
    state = after(*[failure(300 * n, window=window) for n in range(4)])
    assert state.breaker_open
    assert not after(*[failure(300 * n) for n in range(4)]).breaker_open


def test_a_probe_that_fails_keeps_the_breaker_open_for_longer() -> None:
    state = after(*[failure(n) for n in range(4)])
    probing = replace(state, probe="p", breaker_until=NOW + 90 * SECOND)
    unrelated = after(failure(20), state=probing)
    assert (unrelated.probe, unrelated.breaker_until) == ("p", NOW + 90 * SECOND)
    failed = after(failure(20, lease="p"), state=probing)
    assert (failed.probe, failed.opens) == ("", 2)
    assert failed.breaker_until == NOW + 40 * SECOND
    good = circuit_breaker.closed(probing, NOW)
    assert (good.breaker_open, good.opens, good.failures) == (False, 0, 0)
    rejected = failure(20, Outcome.KEY_REJECTED, lease="p", key_id="k")
    assert not after(rejected, state=probing).breaker_open  # the provider answers


# 429s


def test_a_stray_429_changes_nothing_but_its_own_retry_after() -> None:
    calm = EndpointState(volume=80.0, counted_at=NOW, counted_span=80.0 * SECOND, next_slot=NOW)
    state = after(rate_limited(1), rate_limited(20), state=calm)
    assert (state.epoch, state.slowdown, state.paused_until) == (0, 0.0, 0)
    state = after(rate_limited(1, retry_after_seconds=7.0), state=calm)
    assert (state.slowdown, state.paused_until) == (0.0, NOW + 8 * SECOND)
    assert state.epoch == 1


def test_a_run_of_429s_withholds_a_quarter_which_halves_in_two_minutes() -> None:
    state = after(*a_run())
    assert state.slowdown == 0.25
    assert state.paused_until > NOW
    later = state.slowed_at + 120 * SECOND
    assert circuit_breaker.slowdown(state, later) == pytest.approx(0.125)
    assert circuit_breaker.slowdown(state, later + 600 * SECOND) == 0.0
    again = after(*a_run(100), state=state)
    assert again.slowdown > 0.25
    slower_recovery = circuit_breaker.slowdown(again, again.slowed_at + 120 * SECOND)
    assert slower_recovery > again.slowdown / 2


def test_two_429s_slow_down_further_while_the_rate_is_lowered() -> None:
    slowed, two = after(*a_run()), [rate_limited(100), rate_limited(100.1)]
    assert after(*two, state=slowed).slowdowns == 2
    assert after(*two).slowdowns == 0


def test_429s_of_calls_sent_before_a_slowdown_do_not_slow_down_again() -> None:
    state = after(*a_run())
    more = [rate_limited(1, sent_at=NOW) for _ in range(20)]
    assert after(*more, state=replace(state, breaker_open=True)).slowdown == 0.25


def test_a_retry_after_pauses_and_is_never_shortened() -> None:
    state = after(rate_limited(retry_after_seconds=30.0), rate_limited(retry_after_seconds=5.0))
    assert state.paused_until == NOW + 30 * SECOND
    hours = after(rate_limited(retry_after_seconds=7200.0), state=state)
    assert (hours.breaker_open, hours.breaker_until) == (True, NOW + 7200 * SECOND)
    assert after(rate_limited(retry_after_seconds=90.0), state=hours).breaker_until == (
        hours.breaker_until
    )


def test_a_spent_daily_quota_lasts_until_midnight_whatever_retry_after_says() -> None:
    midnight = NOW + 9 * 3600 * SECOND
    state = after(rate_limited(retry_after_seconds=38.0, quota_until=midnight))
    assert (state.breaker_open, state.breaker_until) == (True, midnight)
    assert "quota of the day" in state.cause


# Keys


def test_a_key_is_skipped_until_its_cooldown_ends() -> None:
    cooldowns = {
        "a": KeyCooldown(NOW + 1, Outcome.KEY_REJECTED),
        "c": KeyCooldown(NOW, Outcome.QUOTA_SPENT),
    }
    assert circuit_breaker.usable_keys(["a", "b", "c"], cooldowns, NOW) == ["b", "c"]


@pytest.mark.parametrize(("retry_after", "seconds"), [(None, 600), (5.0, 600), (7200.0, 7200)])
def test_a_key_cools_down_as_the_provider_says_but_at_least_ten_minutes(
    retry_after: float | None, seconds: int
) -> None:
    rejected = failure(0, Outcome.QUOTA_SPENT, key_id="k", retry_after_seconds=retry_after)
    state = after(
        rejected, state=EndpointState(key_cooldowns={"old": KeyCooldown(NOW, Outcome.QUOTA_SPENT)})
    )
    assert state.key_cooldowns == {
        "k": KeyCooldown(NOW + seconds * SECOND, Outcome.QUOTA_SPENT, "why")
    }
    assert state.failures == 0


# The cache


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture
def cache(clock: FakeClock) -> StateCache:
    return StateCache(InMemoryEndpointStates(), clock, FakeTelemetry())


@pytest.mark.parametrize(
    ("seconds", "revision", "replaces"),
    [
        pytest.param(1, 6, False, id="a response that was overtaken"),
        pytest.param(20, 1, True, id="the state of an item that was created again"),
    ],
)
def test_a_lower_revision_replaces_the_known_state_only_after_a_while(
    cache: StateCache, clock: FakeClock, seconds: int, revision: int, replaces: bool
) -> None:
    known, later = EndpointState(revision=7, breaker_open=True), EndpointState(revision=revision)
    cache.update("e", known)
    clock.time += seconds
    cache.update("e", later)
    assert cache.state("e") == (later if replaces else known)
