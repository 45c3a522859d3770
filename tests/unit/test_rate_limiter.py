"""The rate limiter's computation of slots: pure functions, no clock."""

import itertools
import random
from bisect import bisect_left
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from darkroom.dispatch import rate_limiter
from darkroom.dispatch.outcomes import doubled_interval
from darkroom.endpoint_state import (
    SECOND,
    Day,
    EndpointState,
    Limits,
    Rejection,
    RejectionReason,
    ReservationRequest,
    ReservationUpdate,
)
from darkroom.endpoints import Endpoint
from darkroom.providers.registry import Provider
from tests.fakes.dispatching import gemini, secret
from tests.fakes.endpoint_states import reserved

NOW = 1_795_000_000 * SECOND
MINUTE = 60 * SECOND
LATEST = 1 << 60


def endpoint(**fields: Any) -> Endpoint:
    return secret(gemini(**fields)).endpoints[0]


def most_in_a_minute(times: list[int]) -> int:
    """The most arrivals in any half-open minute: what a strict sliding window counts."""
    ordered = sorted(times)
    return max(
        (bisect_left(ordered, t + MINUTE) - bisect_left(ordered, t) for t in ordered), default=0
    )


def reserve(state: EndpointState, request: ReservationRequest) -> tuple[EndpointState, int]:
    planned = rate_limiter.plan_reservation(state, request)
    assert isinstance(planned, ReservationUpdate)
    return reserved(state, request, planned), planned.slot


# Rate

rates = st.integers(1, 600)
# What separates an arrival from its slot, as (clock skew either way, network delay), beside half a
# second of waking late.
deviations = st.one_of(
    st.tuples(st.just(SECOND // 2), st.just(SECOND // 2)),
    st.tuples(st.just(0), st.just(3 * SECOND // 2)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rate=rates,
    burst=st.integers(1, 20),
    deviation=deviations,
    workers=st.integers(1, 64),
    load=st.floats(0.2, 5.0),
    crashes=st.floats(0, 0.3),
    seed=st.integers(0, 1 << 32),
)
def test_no_sliding_minute_ever_holds_more_than_the_limit(  # noqa: PLR0917 - drawn by name
    rate: int,
    burst: int,
    deviation: tuple[int, int],
    workers: int,
    load: float,
    crashes: float,
    seed: int,
) -> None:
    rng = random.Random(seed)
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=rate, burst=burst))
    skew, network_delay = deviation
    skews = [rng.randint(-skew, skew) for _ in range(workers)]
    state, arrivals, true_now = EndpointState(), [], NOW
    for turn in range(3 * rate + 50):
        true_now += int(rng.expovariate(1) * MINUTE / rate / load)
        own_skew = skews[turn % workers]
        request = ReservationRequest("l", true_now + own_skew, LATEST, MINUTE, limits)
        state, slot = reserve(state, request)
        late = rng.randint(0, 3 * rate_limiter.MAX_LATENESS)
        if late > rate_limiter.MAX_LATENESS or rng.random() < crashes:
            continue  # it makes a new reservation, or died: the slot is lost either way
        arrivals.append(slot - own_skew + late + rng.randint(0, network_delay))
    assert most_in_a_minute(arrivals) <= rate


@settings(max_examples=60, deadline=None)
@given(rate=rates, phase=st.integers(0, 50))
def test_the_worst_order_of_late_and_early_arrivals_keeps_the_limit(rate: int, phase: int) -> None:
    """All arrivals of one minute as late as possible, all of the next as early as possible."""
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=rate))
    state, arrivals = EndpointState(), []
    for turn in range(2 * rate + phase):
        state, slot = reserve(state, ReservationRequest("l", NOW, LATEST, MINUTE, limits))
        late = turn < rate + phase // 2
        arrivals.append(slot + (3 * SECOND // 2 if late else -SECOND // 2) + (1 if late else 2))
    assert most_in_a_minute(arrivals) <= rate


def test_without_the_margin_that_order_exceeds_the_limit() -> None:
    """Proves that the property above can fail."""
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=60), margin=0)
    state, arrivals = EndpointState(), []
    for turn in range(120):
        state, slot = reserve(state, ReservationRequest("l", NOW, LATEST, MINUTE, limits))
        arrivals.append(slot + (SECOND // 4 if turn < 60 else -SECOND // 4))
    assert most_in_a_minute(arrivals) > 60


@pytest.mark.parametrize("rate", [1, 7, 10, 60, 300, 600, 3000])
def test_a_saturated_endpoint_gets_at_least_96_percent_of_its_rate(rate: int) -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=rate))
    slots: list[int] = []
    state, now = EndpointState(), NOW
    while not slots or slots[-1] < NOW + 60 * MINUTE:
        state, slot = reserve(state, ReservationRequest("l", now, LATEST, MINUTE, limits))
        slots.append(slot)
        now = max(now, slot - MINUTE)
    assert len(slots) / 60 >= 0.96 * rate


@given(rate=st.integers(2, 600), burst=st.integers(2, 30))
def test_a_burst_is_sent_at_once_by_an_idle_endpoint(rate: int, burst: int) -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=rate, burst=burst))
    state, slots = EndpointState(), []
    for _ in range(min(burst, rate)):
        state, slot = reserve(state, ReservationRequest("l", NOW, LATEST, MINUTE, limits))
        slots.append(slot)
    assert slots == [NOW] * min(burst, rate)


def test_an_endpoint_without_a_limit_never_waits() -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=0))
    state = EndpointState()
    for _ in range(100):
        state, slot = reserve(state, ReservationRequest("l", NOW, NOW, MINUTE, limits))
        assert slot == NOW


def test_a_worker_whose_clock_lags_cannot_reserve_a_slot_twice() -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=60))
    state, first = reserve(EndpointState(), ReservationRequest("a", NOW, LATEST, MINUTE, limits))
    state, second = reserve(
        state, ReservationRequest("b", NOW - 5 * SECOND, LATEST, MINUTE, limits)
    )
    assert second - first == limits.interval


# Slowdown after 429s


def test_a_429_doubles_the_interval_which_then_halves_in_five_minutes() -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=60))
    interval = doubled_interval(EndpointState(), limits, 0, NOW)
    assert interval == 2 * limits.interval
    state = EndpointState(slowed_interval=interval, slowed_at=NOW)
    halved = rate_limiter.slowed_interval(state, NOW + 300 * SECOND)
    assert halved == pytest.approx(interval / 2, abs=1)
    assert rate_limiter.rate_in_force(state, limits, NOW + 301 * SECOND)[0] == limits.interval
    again = doubled_interval(state, limits, 0, NOW + 60 * SECOND)
    assert again == pytest.approx(2 * interval * 0.5**0.2, abs=2)


def test_a_slowdown_ends() -> None:
    state = EndpointState(slowed_interval=SECOND, slowed_at=NOW)
    assert rate_limiter.slowed_interval(state, NOW + 3600 * SECOND) == 0


@given(interval=st.integers(1, 100 * SECOND), minutes=st.floats(0, 600))
def test_a_slowdown_never_makes_an_endpoint_faster(interval: int, minutes: float) -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=60))
    state = EndpointState(slowed_interval=interval, slowed_at=NOW)
    now = NOW + int(minutes * MINUTE)
    assert rate_limiter.rate_in_force(state, limits, now)[0] >= limits.interval


# In flight, leases, breaker, day: in any order of events


class Reservations(RuleBasedStateMachine):
    """Workers that reserve, finish, die and have skewed clocks, against an endpoint's limits."""

    @initialize(
        most=st.integers(1, 5),
        rate=st.integers(1, 120),
        per_day=st.integers(5, 60),
        skew=st.sampled_from([0, SECOND // 2]),
    )
    def begin(self, most: int, rate: int, per_day: int, skew: int) -> None:
        by_rate = rate_limiter.limits_of(endpoint(requests_per_minute=rate))
        self.limits = replace(by_rate, max_in_flight=most, per_day=per_day)
        self.skew = skew
        self.now = NOW
        self.state = EndpointState()
        self.day = Day(100, NOW - 10 * MINUTE, NOW + 10 * MINUTE)
        self.live: dict[str, int] = {}  # leases of workers whose call is under way
        self.slots: list[tuple[int, int]] = []  # (slot, day)
        self.serial = 0

    def request(self, skew: int) -> ReservationRequest:
        self.serial += 1
        now = self.now + skew
        day = self.day
        while now >= day.end:
            day = Day(day.number + 1, day.end, day.end + 20 * MINUTE)
        return ReservationRequest(
            f"l{self.serial}", now, now + 5 * MINUTE, MINUTE, self.limits, day
        )

    @rule(ahead=st.sampled_from([-1, 0, 1]))
    def reserve(self, ahead: int) -> None:
        request = self.request(ahead * self.skew)
        planned = rate_limiter.plan_reservation(self.state, request)
        if isinstance(planned, Rejection):
            assert planned.retry_at > request.now or planned.reason is RejectionReason.IN_FLIGHT
            return
        was_open = self.state.breaker_open
        self.state = reserved(self.state, request, planned)
        self.live[request.lease] = self.state.leases[request.lease]
        assert request.day is not None
        self.slots.append((planned.slot, request.day.number))
        assert planned.slot >= request.now
        assert request.day.start <= planned.slot <= request.day.end
        assert planned.probe == was_open

    @rule(which=st.integers(0, 100))
    def finish(self, which: int) -> None:
        if self.live:
            lease = sorted(self.live)[which % len(self.live)]
            self._end_call(lease)

    @rule(which=st.integers(0, 100))
    def die(self, which: int) -> None:
        """The worker dies; its lease stays until it expires."""
        if self.live:
            del self.live[sorted(self.live)[which % len(self.live)]]

    @rule(seconds=st.integers(0, 90))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds * SECOND
        # A living worker's call has ended before its lease does, grace included.
        for lease, until in list(self.live.items()):
            if until - rate_limiter.LEASE_GRACE <= self.now:
                self._end_call(lease)

    @rule()
    def open_breaker(self) -> None:
        self.state = replace(self.state, breaker_open=True, breaker_until=self.now + 10 * SECOND)

    @rule()
    def close_breaker(self) -> None:
        self.state = replace(self.state, breaker_open=False, breaker_until=0)

    def _end_call(self, lease: str) -> None:
        del self.live[lease]
        leases = {i: t for i, t in self.state.leases.items() if i != lease}
        self.state = replace(self.state, leases=leases)

    @invariant()
    def calls_in_flight_stay_within_the_limit(self) -> None:
        if hasattr(self, "state"):
            assert len(self.live) <= self.limits.max_in_flight
            assert len(self.state.leases) <= self.limits.max_in_flight

    @invariant()
    def calls_a_day_stay_within_the_limit(self) -> None:
        if hasattr(self, "slots"):
            for number in {day for _, day in self.slots}:
                assert sum(1 for _, d in self.slots if d == number) <= self.limits.per_day

    @invariant()
    def slots_are_at_least_an_interval_apart(self) -> None:
        if hasattr(self, "slots"):
            slots = sorted(slot for slot, _ in self.slots)
            gaps = [b - a for a, b in itertools.pairwise(slots)]
            assert all(gap >= self.limits.interval for gap in gaps)


TestReservations = Reservations.TestCase
TestReservations.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_a_half_open_breaker_allows_one_probe_at_a_time() -> None:
    state = EndpointState(breaker_open=True, breaker_until=NOW)
    request = ReservationRequest("p", NOW + 1, LATEST, MINUTE, Limits())
    planned = rate_limiter.plan_reservation(state, request)
    assert isinstance(planned, ReservationUpdate)
    assert planned.probe
    after = reserved(state, request, planned)
    later = replace(request, lease="q", now=NOW + 30 * SECOND)
    other = rate_limiter.plan_reservation(after, later)
    assert isinstance(other, Rejection)
    assert other.reason is RejectionReason.BREAKER
    probe_lost = replace(request, lease="q", now=NOW + 61 * SECOND)
    assert isinstance(rate_limiter.plan_reservation(after, probe_lost), ReservationUpdate)


# The provider's day


@settings(max_examples=300)
@given(st.integers(1_700_000_000, 2_200_000_000))
@example(1_793_523_600)  # 2026-11-01 09:00 UTC, clocks go back
@example(1_773_050_400)  # 2026-03-09, the day after clocks went forward
def test_the_pacific_day_equals_the_one_in_the_time_zone_database(second: int) -> None:
    local = datetime.fromtimestamp(second, ZoneInfo("America/Los_Angeles"))
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    day = rate_limiter.provider_day(Provider.GEMINI, second * SECOND)
    assert day.start == int(midnight.timestamp()) * SECOND
    assert day.start <= second * SECOND < day.end
    assert day.number == (midnight.date() - datetime(1970, 1, 1, tzinfo=UTC).date()).days
    assert rate_limiter.provider_day(Provider.GEMINI, day.end).number == day.number + 1


@given(st.integers(0, 4_000_000_000))
def test_the_utc_day_is_the_calendar_day(second: int) -> None:
    day = rate_limiter.provider_day(Provider.OPENAI, second * SECOND)
    assert day.number == second // 86_400
    assert (day.start, day.end) == (
        second // 86_400 * 86_400 * SECOND,
        (second // 86_400 + 1) * 86_400 * SECOND,
    )


def test_nothing_is_sent_around_midnight() -> None:
    limits = Limits(per_day=5, margin=2 * SECOND)
    day = Day(1, NOW, NOW + 100 * SECOND)

    def planned(now: int) -> ReservationUpdate | Rejection:
        request = ReservationRequest("a", now, LATEST, MINUTE, limits, day)
        return rate_limiter.plan_reservation(EndpointState(), request)

    assert planned(NOW + 1) == Rejection(RejectionReason.DAY, NOW + 2 * SECOND)
    assert planned(NOW + 99 * SECOND) == Rejection(RejectionReason.DAY, NOW + 102 * SECOND)
