"""Breaker, weights and key cooldowns as pure functions; and the cache of endpoint state."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.calls import Outcome
from darkroom.dispatch import circuit_breaker
from darkroom.dispatch.state_cache import StateCache
from darkroom.endpoint_state import SECOND, EndpointState, Health, KeyCooldown, Settlement
from tests.fakes.endpoint_states import InMemoryEndpointStates, settled
from tests.fakes.services import FakeClock, FakeTelemetry

START = 1_795_000_000
NOW = START * SECOND


def states_after(calls: list[Health]) -> Iterator[EndpointState]:
    """The state after each call of an endpoint."""
    state = EndpointState()
    for turn, health in enumerate(calls):
        state = settled(state, Settlement("l", NOW + turn, health, sent_at=NOW + turn))
        yield state


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


@given(st.lists(st.sampled_from(list(Health)), max_size=40))
def test_the_count_of_failures_never_goes_below_zero(calls: list[Health]) -> None:
    assert all(state.failures >= 0 for state in states_after(calls))


def test_the_breaker_stays_closed_when_half_of_the_calls_succeed() -> None:
    states = states_after([Health.GOOD, Health.FAILED] * 50)
    assert not any(circuit_breaker.should_open(state) for state in states)


def test_a_key_is_skipped_until_its_cooldown_ends() -> None:
    cooldowns = {
        "a": KeyCooldown(NOW + 1, Outcome.KEY_REJECTED),
        "c": KeyCooldown(NOW, Outcome.QUOTA_SPENT),
    }
    assert circuit_breaker.usable_keys(["a", "b", "c"], cooldowns, NOW) == ["b", "c"]


@pytest.mark.parametrize(("retry_after", "seconds"), [(None, 600), (5, 600), (7200, 7200)])
def test_a_key_cools_down_as_the_provider_says_but_at_least_ten_minutes(
    retry_after: float | None, seconds: int
) -> None:
    cooldown = circuit_breaker.key_cooldown(Outcome.QUOTA_SPENT, retry_after, NOW)
    assert cooldown.until == NOW + seconds * SECOND


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


def test_the_call_interval_of_all_workers_is_observed_from_the_count_of_calls(
    cache: StateCache, clock: FakeClock
) -> None:
    for second in range(100):
        clock.time = START + second
        cache.update("e", EndpointState(revision=second + 1, calls=4 * second))
    assert cache.observed_interval("e") == SECOND // 4
    cache.update("f", EndpointState(revision=1, calls=1))
    assert cache.observed_interval("f") == 0
