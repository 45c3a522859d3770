"""The arithmetic of slots, on a virtual clock."""

import itertools
import random
from bisect import bisect_left
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from darkroom.dispatch import rate_limiter
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

NOW = 1_795_000_000 * SECOND
MINUTE = 60 * SECOND
FAR = 1 << 60


def endpoint(**fields: object) -> Endpoint:
    return secret(gemini(**fields)).endpoints[0]  # type: ignore[arg-type]


def most_in_a_minute(times: list[int]) -> int:
    """The most arrivals in any half-open minute: what a strict sliding window counts."""
    ordered = sorted(times)
    return max(
        (bisect_left(ordered, t + MINUTE) - bisect_left(ordered, t) for t in ordered), default=0
    )


def take(state: EndpointState, ask: ReservationRequest) -> tuple[EndpointState, int]:
    move = rate_limiter.decide(state, ask)
    assert isinstance(move, ReservationUpdate)
    return rate_limiter.booked(state, ask, move), move.slot


# Pace

rates = st.integers(1, 600)
# What may tear an arrival from its slot: half a second of skew either way, half a second of waking
# late (later ones book again), half a second on the wire; or no skew and three times the wire.
tears = st.one_of(
    st.tuples(st.just(SECOND // 2), st.just(SECOND // 2)),
    st.tuples(st.just(0), st.just(3 * SECOND // 2)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rate=rates,
    burst=st.integers(1, 20),
    tear=tears,
    workers=st.integers(1, 64),
    load=st.floats(0.2, 5.0),
    crashes=st.floats(0, 0.3),
    seed=st.integers(0, 1 << 32),
)
def test_no_sliding_minute_ever_holds_more_than_the_limit(  # noqa: PLR0917 - drawn by name
    rate: int,
    burst: int,
    tear: tuple[int, int],
    workers: int,
    load: float,
    crashes: float,
    seed: int,
) -> None:
    rng = random.Random(seed)
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=rate, burst=burst))
    skew, wire = tear
    skews = [rng.randint(-skew, skew) for _ in range(workers)]
    state, arrivals, true_now = EndpointState(), [], NOW
    for turn in range(3 * rate + 50):
        true_now += int(rng.expovariate(1) * MINUTE / rate / load)
        own = skews[turn % workers]
        state, slot = take(state, ReservationRequest("l", true_now + own, FAR, MINUTE, limits))
        late = rng.randint(0, 3 * rate_limiter.LATE)
        if late > rate_limiter.LATE or rng.random() < crashes:
            continue  # books again, or is dead: the slot is lost either way
        arrivals.append(slot - own + late + rng.randint(0, wire))
    assert most_in_a_minute(arrivals) <= rate


@settings(max_examples=60, deadline=None)
@given(rate=rates, phase=st.integers(0, 50))
def test_the_worst_order_of_late_and_early_arrivals_still_fits(rate: int, phase: int) -> None:
    """All of one minute's arrivals as late as can be, the next as early as can be."""
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=rate))
    state, arrivals = EndpointState(), []
    for turn in range(2 * rate + phase):
        state, slot = take(state, ReservationRequest("l", NOW, FAR, MINUTE, limits))
        late = turn < rate + phase // 2
        arrivals.append(slot + (3 * SECOND // 2 if late else -SECOND // 2) + (1 if late else 2))
    assert most_in_a_minute(arrivals) <= rate


def test_without_the_margin_that_order_breaks_the_limit() -> None:
    """The margin is what keeps it: the property above can fail."""
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=60), margin=0)
    state, arrivals = EndpointState(), []
    for turn in range(120):
        state, slot = take(state, ReservationRequest("l", NOW, FAR, MINUTE, limits))
        arrivals.append(slot + (SECOND // 4 if turn < 60 else -SECOND // 4))
    assert most_in_a_minute(arrivals) > 60


@pytest.mark.parametrize("rate", [1, 7, 10, 60, 300, 600, 3000])
def test_a_saturated_endpoint_gets_at_least_96_percent_of_its_rate(rate: int) -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=rate))
    slots: list[int] = []
    state, now = EndpointState(), NOW
    while not slots or slots[-1] < NOW + 60 * MINUTE:
        state, slot = take(state, ReservationRequest("l", now, FAR, MINUTE, limits))
        slots.append(slot)
        now = max(now, slot - MINUTE)
    assert len(slots) / 60 >= 0.96 * rate


@given(rate=st.integers(2, 600), burst=st.integers(2, 30))
def test_a_burst_goes_at_once_after_a_pause(rate: int, burst: int) -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=rate, burst=burst))
    state, slots = EndpointState(), []
    for _ in range(min(burst, rate)):
        state, slot = take(state, ReservationRequest("l", NOW, FAR, MINUTE, limits))
        slots.append(slot)
    assert slots == [NOW] * min(burst, rate)


def test_no_limit_means_no_waiting() -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=0))
    state = EndpointState()
    for _ in range(100):
        state, slot = take(state, ReservationRequest("l", NOW, NOW, MINUTE, limits))
        assert slot == NOW


def test_a_clock_that_lags_cannot_take_a_slot_twice() -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=60))
    state, first = take(EndpointState(), ReservationRequest("a", NOW, FAR, MINUTE, limits))
    state, second = take(state, ReservationRequest("b", NOW - 5 * SECOND, FAR, MINUTE, limits))
    assert second - first == limits.interval


# Learned pace


def test_a_learned_interval_doubles_then_recovers_by_half_in_five_minutes() -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=60))
    gap = rate_limiter.slowed_gap(EndpointState(), limits, 0, NOW)
    assert gap == 2 * limits.interval
    state = EndpointState(gap=gap, slowed_at=NOW)
    assert rate_limiter.learned_interval(state, NOW + 300 * SECOND) == pytest.approx(gap / 2, abs=1)
    assert rate_limiter.pace_in_force(state, limits, NOW + 301 * SECOND)[0] == limits.interval
    again = rate_limiter.slowed_gap(state, limits, 0, NOW + 60 * SECOND)
    assert again == pytest.approx(2 * gap * 0.5**0.2, abs=2)


def test_a_learned_interval_is_forgotten_in_the_end() -> None:
    state = EndpointState(gap=SECOND, slowed_at=NOW)
    assert rate_limiter.learned_interval(state, NOW + 3600 * SECOND) == 0


@given(gap=st.integers(1, 100 * SECOND), minutes=st.floats(0, 600))
def test_a_learned_interval_never_makes_an_endpoint_faster(gap: int, minutes: float) -> None:
    limits = rate_limiter.limits_of(endpoint(requests_per_minute=60))
    state = EndpointState(gap=gap, slowed_at=NOW)
    now = NOW + int(minutes * MINUTE)
    assert rate_limiter.pace_in_force(state, limits, now)[0] >= limits.interval


# In flight, leases, breaker, day: whatever the order of events


class Bookings(RuleBasedStateMachine):
    """Workers that book, finish, die and lag, against one endpoint's invariants."""

    @initialize(
        most=st.integers(1, 5),
        rate=st.integers(1, 120),
        per_day=st.integers(5, 60),
        skew=st.sampled_from([0, SECOND // 2]),
    )
    def begin(self, most: int, rate: int, per_day: int, skew: int) -> None:
        paced = rate_limiter.limits_of(endpoint(requests_per_minute=rate))
        self.limits = replace(paced, max_in_flight=most, per_day=per_day)
        self.skew = skew
        self.now = NOW
        self.state = EndpointState()
        self.day = Day(100, NOW - 10 * MINUTE, NOW + 10 * MINUTE)
        self.live: dict[str, int] = {}  # leases of workers that still call
        self.slots: list[tuple[int, int]] = []  # (slot, day)
        self.probes = 0
        self.serial = 0

    def ask(self, own: int) -> ReservationRequest:
        self.serial += 1
        own_now = self.now + own
        day = self.day
        while own_now >= day.end:
            day = Day(day.number + 1, day.end, day.end + 20 * MINUTE)
        return ReservationRequest(
            f"l{self.serial}", own_now, own_now + 5 * MINUTE, MINUTE, self.limits, day
        )

    @rule(ahead=st.sampled_from([-1, 0, 1]))
    def book(self, ahead: int) -> None:
        ask = self.ask(ahead * self.skew)
        move = rate_limiter.decide(self.state, ask)
        if isinstance(move, Rejection):
            assert move.opens_at > ask.now or move.gate is RejectionReason.IN_FLIGHT
            return
        was_tripped = self.state.tripped
        self.state = rate_limiter.booked(self.state, ask, move)
        self.live[ask.lease] = self.state.leases[ask.lease]
        assert ask.day is not None
        self.slots.append((move.slot, ask.day.number))
        assert move.slot >= ask.now
        assert ask.day.start <= move.slot <= ask.day.end
        assert move.probe == was_tripped

    @rule(which=st.integers(0, 100))
    def finish(self, which: int) -> None:
        if self.live:
            lease = sorted(self.live)[which % len(self.live)]
            del self.live[lease]
            leases = {i: t for i, t in self.state.leases.items() if i != lease}
            self.state = replace(self.state, leases=leases)

    @rule(which=st.integers(0, 100))
    def die(self, which: int) -> None:
        """The worker is gone; its lease stays until it runs out."""
        if self.live:
            del self.live[sorted(self.live)[which % len(self.live)]]

    @rule(seconds=st.integers(0, 90))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds * SECOND
        # A living worker's call has ended before its lease does, grace included.
        for lease, until in list(self.live.items()):
            if until - rate_limiter.LEASE_GRACE <= self.now:
                del self.live[lease]
                leases = {i: t for i, t in self.state.leases.items() if i != lease}
                self.state = replace(self.state, leases=leases)

    @rule()
    def trip(self) -> None:
        self.state = replace(self.state, tripped=True, breaker_until=self.now + 10 * SECOND)

    @rule()
    def recover(self) -> None:
        self.state = replace(self.state, tripped=False, breaker_until=0)

    @invariant()
    def never_more_in_flight_than_allowed(self) -> None:
        if hasattr(self, "state"):
            assert len(self.live) <= self.limits.max_in_flight
            assert len(self.state.leases) <= self.limits.max_in_flight

    @invariant()
    def never_more_a_day_than_allowed(self) -> None:
        if hasattr(self, "slots"):
            for number in {day for _, day in self.slots}:
                assert sum(1 for _, d in self.slots if d == number) <= self.limits.per_day

    @invariant()
    def slots_are_an_interval_apart(self) -> None:
        if hasattr(self, "slots"):
            slots = sorted(slot for slot, _ in self.slots)
            gaps = [b - a for a, b in itertools.pairwise(slots)]
            assert all(gap >= self.limits.interval for gap in gaps)


TestBookings = Bookings.TestCase
TestBookings.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_an_open_breaker_lets_one_probe_through_and_nobody_else() -> None:
    state = EndpointState(tripped=True, breaker_until=NOW)
    ask = ReservationRequest("p", NOW + 1, FAR, MINUTE, Limits())
    move = rate_limiter.decide(state, ask)
    assert isinstance(move, ReservationUpdate)
    assert move.probe
    after = rate_limiter.booked(state, ask, move)
    other = rate_limiter.decide(after, replace(ask, lease="q", now=NOW + 30 * SECOND))
    assert isinstance(other, Rejection)
    assert other.gate is RejectionReason.BREAKER
    prober_died = rate_limiter.decide(after, replace(ask, lease="q", now=NOW + 61 * SECOND))
    assert isinstance(prober_died, ReservationUpdate)


# The provider's day


@settings(max_examples=300)
@given(st.integers(1_700_000_000, 2_200_000_000))
@example(1_793_523_600)  # 2026-11-01 09:00 UTC, clocks go back
@example(1_773_050_400)  # 2026-03-09, the day after clocks went forward
def test_the_pacific_day_is_the_one_of_the_zone_database(second: int) -> None:
    local = datetime.fromtimestamp(second, ZoneInfo("America/Los_Angeles"))
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    day = rate_limiter.provider_day(Provider.GEMINI, second * SECOND)
    assert day.start == int(midnight.timestamp()) * SECOND
    assert day.start <= second * SECOND < day.end
    assert day.number == (midnight.date() - datetime(1970, 1, 1, tzinfo=UTC).date()).days
    assert rate_limiter.provider_day(Provider.GEMINI, day.end).number == day.number + 1


@given(st.integers(0, 4_000_000_000))
def test_the_utc_day_is_the_calendars(second: int) -> None:
    day = rate_limiter.provider_day(Provider.OPENAI, second * SECOND)
    assert day.number == second // 86_400
    assert (day.start, day.end) == (
        second // 86_400 * 86_400 * SECOND,
        (second // 86_400 + 1) * 86_400 * SECOND,
    )


def test_nothing_is_sent_around_the_turn_of_the_day() -> None:
    limits = Limits(per_day=5, margin=2 * SECOND)
    day = Day(1, NOW, NOW + 100 * SECOND)
    just_after = rate_limiter.decide(
        EndpointState(), ReservationRequest("a", NOW + 1, FAR, MINUTE, limits, day)
    )
    assert just_after == Rejection(RejectionReason.DAY, NOW + 2 * SECOND)
    just_before = rate_limiter.decide(
        EndpointState(), ReservationRequest("a", NOW + 99 * SECOND, FAR, MINUTE, limits, day)
    )
    assert just_before == Rejection(RejectionReason.DAY, NOW + 102 * SECOND)
