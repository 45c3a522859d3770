"""The rate limiter's computation of slots: pure functions, no clock."""

import itertools
import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from darkroom.calls import CallPlan, SourceImage
from darkroom.dispatch import rate_limiter
from darkroom.endpoint_state import (
    SECOND,
    Day,
    EndpointState,
    Limits,
    Rejection,
    RejectionReason,
    Reservation,
    ReservationRequest,
)
from darkroom.errors import Ineligible
from darkroom.providers.registry import Provider
from tests.fakes.dispatching import gemini, secret
from tests.fakes.endpoint_states import reserved
from tests.fakes.strict_provider import most_within

NOW = 1_795_000_000 * SECOND
MINUTE = 60 * SECOND


class Slots:
    """Reserves slot after slot at an endpoint with the given limits."""

    def __init__(self, limits: Limits | None = None, **fields: Any) -> None:
        self.limits = limits or rate_limiter.limits_of(secret(gemini(**fields)).endpoints[0])
        self.state = EndpointState()

    def reserve(self, now: int = NOW, latest: int = 1 << 60) -> int:
        request = ReservationRequest("l", now, latest, MINUTE, self.limits)
        planned = rate_limiter.plan_reservation(self.state, request)
        assert isinstance(planned, Reservation)
        self.state = reserved(self.state, request, planned)
        return planned.slot


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
    slots = Slots(requests_per_minute=rate, burst=burst)
    skew, network_delay = deviation
    skews = [rng.randint(-skew, skew) for _ in range(workers)]
    arrivals, true_now = [], NOW
    for turn in range(3 * rate + 50):
        true_now += int(rng.expovariate(1) * MINUTE / rate / load)
        own_skew = skews[turn % workers]
        slot = slots.reserve(true_now + own_skew)
        late = rng.randint(0, 3 * rate_limiter.MAX_LATENESS)
        if late > rate_limiter.MAX_LATENESS or rng.random() < crashes:
            continue  # it makes a new reservation, or died: the slot is lost either way
        arrivals.append(slot - own_skew + late + rng.randint(0, network_delay))
    assert most_within(MINUTE, arrivals) <= rate


@settings(max_examples=60, deadline=None)
@given(rate=rates, phase=st.integers(0, 50))
def test_the_worst_order_of_late_and_early_arrivals_keeps_the_limit(rate: int, phase: int) -> None:
    """All arrivals of one minute as late as possible, all of the next as early as possible."""
    slots, arrivals = Slots(requests_per_minute=rate), []
    for turn in range(2 * rate + phase):
        late = turn < rate + phase // 2
        deviation = 3 * SECOND // 2 + 1 if late else -SECOND // 2 + 2
        arrivals.append(slots.reserve() + deviation)
    assert most_within(MINUTE, arrivals) <= rate


def test_without_the_margin_that_order_exceeds_the_limit() -> None:
    """Proves that the property above can fail."""
    slots = Slots(Limits(interval=MINUTE // 60))
    deviation = SECOND // 4  # late in the first minute, early in the second
    arrivals = [slots.reserve() + (deviation if n < 60 else -deviation) for n in range(120)]
    assert most_within(MINUTE, arrivals) > 60


@pytest.mark.parametrize("rate", [1, 7, 10, 60, 300, 600, 3000])
def test_a_saturated_endpoint_gets_at_least_96_percent_of_its_rate(rate: int) -> None:
    slots, times, now = Slots(requests_per_minute=rate), [NOW], NOW
    while times[-1] < NOW + 60 * MINUTE:
        times.append(slots.reserve(now))
        now = max(now, times[-1] - MINUTE)
    assert len(times) - 1 >= 60 * 0.96 * rate


@given(rate=st.integers(2, 600), burst=st.integers(2, 30))
def test_a_burst_is_sent_at_once_by_an_idle_endpoint(rate: int, burst: int) -> None:
    slots, count = Slots(requests_per_minute=rate, burst=burst), min(burst, rate)
    assert [slots.reserve() for _ in range(count)] == [NOW] * count


def test_an_endpoint_without_a_limit_never_waits() -> None:
    slots = Slots(requests_per_minute=0)
    assert [slots.reserve(latest=NOW) for _ in range(100)] == [NOW] * 100


def test_a_worker_whose_clock_lags_cannot_reserve_a_slot_twice() -> None:
    slots = Slots(requests_per_minute=60)
    first = slots.reserve()
    assert slots.reserve(NOW - 5 * SECOND) - first == slots.limits.interval


# Slowdown after 429s


@given(slowdown=st.floats(0, 0.95), minutes=st.floats(0, 600))
def test_a_slowdown_never_makes_an_endpoint_faster(slowdown: float, minutes: float) -> None:
    limits = Slots(requests_per_minute=60).limits
    state = EndpointState(slowdown=slowdown, slowdowns=1, slowed_at=NOW)
    now = NOW + int(minutes * MINUTE)
    assert rate_limiter.rate_in_force(state, limits, now)[0] >= limits.interval


def test_a_slowed_endpoint_keeps_its_rate_but_for_what_is_withheld() -> None:
    limits = Slots(requests_per_minute=60, burst=5).limits
    state = EndpointState(slowdown=0.25, slowdowns=1, slowed_at=NOW)
    interval, tolerance = rate_limiter.rate_in_force(state, limits, NOW)
    assert interval == pytest.approx(limits.interval / 0.75, abs=1)
    assert tolerance == 0


# Images


@settings(max_examples=200, deadline=None)
@given(
    rate=st.integers(1, 60),
    images=st.integers(1, 40),
    inputs=st.integers(1, 40),
    requests=st.lists(st.tuples(st.integers(1, 10), st.integers(0, 16)), min_size=5, max_size=80),
    load=st.floats(0.2, 5.0),
    seed=st.integers(0, 1 << 32),
)
def test_no_sliding_minute_holds_more_than_the_limit_of_any_kind(  # noqa: PLR0917 - drawn by name
    rate: int,
    images: int,
    inputs: int,
    requests: list[tuple[int, int]],
    load: float,
    seed: int,
) -> None:
    rng = random.Random(seed)
    (endpoint,) = secret(
        gemini(
            requests_per_minute=rate,
            images_per_minute=images,
            input_images_per_minute=inputs,
            burst=3,
        )
    ).endpoints
    slots, now = Slots(), NOW
    sent: list[tuple[int, int, int]] = []  # (slot, images out, images in)
    for out, into in requests:
        now += int(rng.expovariate(1) * MINUTE / rate / load)
        try:
            slots.limits = rate_limiter.limits_of(endpoint, a_plan(out, into))
        except Ineligible:
            assert out > images or into > inputs
            continue
        late = rng.randint(0, rate_limiter.MAX_LATENESS)
        sent.append((slots.reserve(now) + late, out, into))
    for start, _, _ in sent:
        window = [row for row in sent if start <= row[0] < start + MINUTE]
        assert len(window) <= rate
        assert sum(out for _, out, _ in window) <= images
        assert sum(into for _, _, into in window) <= inputs


def test_equal_requests_use_most_of_an_image_limit() -> None:
    for limit, count, least in ((5, 1, 4.8), (20, 2, 8.5), (10, 5, 1.0)):
        (endpoint,) = secret(gemini(input_images_per_minute=limit)).endpoints
        slots = Slots(rate_limiter.limits_of(endpoint, a_plan(1, count)))
        times = [slots.reserve() for _ in range(60)]
        assert 59 * MINUTE / (times[-1] - times[0]) >= least


def a_plan(images: int, input_images: int) -> CallPlan:
    source = SourceImage(b"", "image/png", 1, 1, "name")
    return CallPlan(Provider.GEMINI, "m", "p", images=(source,) * input_images, n=images)


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
        by_rate = Slots(requests_per_minute=rate).limits
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
            self._end_call(sorted(self.live)[which % len(self.live)])

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
        assert len(self.live) <= self.limits.max_in_flight
        assert len(self.state.leases) <= self.limits.max_in_flight

    @invariant()
    def calls_a_day_stay_within_the_limit(self) -> None:
        calls = Counter(day for _, day in self.slots)
        assert all(count <= self.limits.per_day for count in calls.values())

    @invariant()
    def slots_are_at_least_an_interval_apart(self) -> None:
        slots = sorted(slot for slot, _ in self.slots)
        assert all(b - a >= self.limits.interval for a, b in itertools.pairwise(slots))


TestReservations = Reservations.TestCase
TestReservations.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


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
    number = second // 86_400
    start, end = number * 86_400 * SECOND, (number + 1) * 86_400 * SECOND
    assert rate_limiter.provider_day(Provider.OPENAI, second * SECOND) == Day(number, start, end)


def test_nothing_is_sent_around_midnight() -> None:
    limits, day = Limits(per_day=5), Day(1, NOW, NOW + 100 * SECOND)

    def planned(now: int) -> Reservation | Rejection:
        request = ReservationRequest("a", now, now + MINUTE, MINUTE, limits, day)
        return rate_limiter.plan_reservation(EndpointState(), request)

    assert planned(NOW + 1) == Rejection(RejectionReason.DAY, NOW + 2 * SECOND)
    assert planned(NOW + 99 * SECOND) == Rejection(RejectionReason.DAY, NOW + 102 * SECOND)
