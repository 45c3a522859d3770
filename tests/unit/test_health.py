"""Breaker, weights and resting keys, as arithmetic; and what a process remembers of the table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.calls import Outcome
from darkroom.dispatch import circuit_breaker
from darkroom.dispatch.state_cache import SeenStates
from darkroom.endpoint_state import SECOND, EndpointState, Health, KeyCooldown, Report

NOW = 1_795_000_000 * SECOND


def test_cool_downs_double_up_to_a_minute() -> None:
    seconds = [circuit_breaker.cool_down(opens) / SECOND for opens in range(1, 7)]
    assert seconds == [10, 20, 40, 60, 60, 60]


@given(st.integers(0, 10_000))
def test_a_cool_down_is_never_longer_than_a_minute(opens: int) -> None:
    assert 0 < circuit_breaker.cool_down(opens) <= 60 * SECOND


@pytest.mark.parametrize(("failures", "share"), [(0, 1), (1, 0.5), (3, 0.125), (4, 1 / 16)])
def test_each_recent_failure_halves_the_weight_down_to_a_sixteenth(
    failures: int, share: float
) -> None:
    state = EndpointState(failures=failures, failed_at=NOW)
    assert circuit_breaker.effective_weight(8, state, NOW) == 8 * share
    state = EndpointState(failures=failures + 50, failed_at=NOW)
    assert circuit_breaker.effective_weight(8, state, NOW) >= 8 / 16


def test_failures_fade_by_half_in_a_minute() -> None:
    state = EndpointState(failures=4, failed_at=NOW)
    assert circuit_breaker.recent_failures(state, NOW + 60 * SECOND) == 2


@given(st.lists(st.sampled_from(list(Health)), max_size=40))
def test_the_count_of_failures_never_goes_below_zero(told: list[Health]) -> None:
    state = EndpointState()
    for turn, health_told in enumerate(told):
        state = circuit_breaker.settled(
            state, Report("l", NOW + turn, health_told, sent_at=NOW + turn)
        )
        assert state.failures >= 0


def test_an_endpoint_that_answers_half_the_time_does_not_trip() -> None:
    state = EndpointState()
    for turn in range(100):
        told = Health.FAILED if turn % 2 else Health.GOOD
        state = circuit_breaker.settled(state, Report("l", NOW + turn, told, sent_at=NOW + turn))
        assert not circuit_breaker.should_trip(state)


def test_a_resting_key_is_passed_over_until_its_rest_is_over() -> None:
    keys = {
        "a": KeyCooldown(NOW + 1, Outcome.KEY_REJECTED),
        "c": KeyCooldown(NOW, Outcome.QUOTA_SPENT),
    }
    assert circuit_breaker.usable(["a", "b", "c"], keys, NOW) == ["b", "c"]


def test_a_key_rests_as_long_as_the_provider_asks_but_at_least_ten_minutes() -> None:
    assert circuit_breaker.rest_of(Outcome.QUOTA_SPENT, None, NOW).until == NOW + 600 * SECOND
    assert circuit_breaker.rest_of(Outcome.QUOTA_SPENT, 5, NOW).until == NOW + 600 * SECOND
    assert circuit_breaker.rest_of(Outcome.QUOTA_SPENT, 7200, NOW).until == NOW + 7200 * SECOND


def test_an_answer_that_was_overtaken_does_not_hide_the_newer_one() -> None:
    view = SeenStates()
    view.saw("e", EndpointState(rev=7, tripped=True), NOW)
    view.saw("e", EndpointState(rev=6), NOW + SECOND)
    assert view.state("e") == EndpointState(rev=7, tripped=True)


def test_an_item_that_was_made_anew_is_believed() -> None:
    view = SeenStates()
    view.saw("e", EndpointState(rev=700, tripped=True), NOW)
    view.saw("e", EndpointState(rev=1), NOW + 20 * SECOND)
    assert view.state("e") == EndpointState(rev=1)


def test_the_pace_of_all_workers_is_seen_in_the_count_of_calls() -> None:
    view = SeenStates()
    for second in range(100):
        view.saw("e", EndpointState(rev=second + 1, calls=4 * second), NOW + second * SECOND)
    assert view.observed_interval("e") == SECOND // 4
    view.saw("f", EndpointState(rev=1, calls=1), NOW)
    assert view.observed_interval("f") == 0


def test_an_answer_to_a_call_older_than_the_last_failure_proves_nothing() -> None:
    state = EndpointState(failures=3, failed_at=NOW)
    slow = Report("l", NOW + 3 * SECOND, Health.GOOD, sent_at=NOW - SECOND)
    assert circuit_breaker.settled(state, slow).failures == 3
