"""Many workers at once, each with its own dispatcher, on one virtual clock and one table."""

import random
import statistics
from collections.abc import Callable

import pytest

from darkroom.dispatch.dispatcher import TieredDispatcher
from darkroom.errors import DarkroomError, DeferRow
from darkroom.ports import DispatchResult
from darkroom.providers.registry import Provider
from tests.fakes.dispatching import DispatchHarness, FakeCallContext, gemini, openai
from tests.fakes.strict_provider import StrictProvider, most_within
from tests.fakes.virtual_time import START, SkewedClock, VirtualTime


class WorkersHarness(DispatchHarness):
    """`processes` of four threads each, which dispatch row after row for `seconds`.

    Seconds too: the clocks' `skew` either way, how much too long a sleep lasts, the network delay.
    `kill_at` gives the time at which a process dies, by its number.
    """

    def __init__(
        self,
        *endpoints: dict[str, object],
        processes: int,
        seconds: float = 240.0,
        skew: float = 0.0,
        oversleep: float = 0.0,
        network_delay: float = 0.0,
        kill_at: Callable[[int], float] = lambda _: float("inf"),
    ) -> None:
        super().__init__(*endpoints)
        self.time = VirtualTime()
        self.processes, self.seconds = processes, seconds
        self.skew, self.oversleep, self.network_delay = skew, oversleep, network_delay
        self.kill_at = kill_at
        self.rows: list[tuple[float, float, DispatchResult]] = []  # (start, duration, result)
        self.errors: list[DarkroomError] = []

    def run(self, providers: dict[Provider, StrictProvider]) -> None:
        for number in range(self.processes):
            rng = random.Random(number)
            clock = SkewedClock(
                self.time,
                rng.uniform(-self.skew, self.skew),
                self.kill_at(number),
                lambda rng=rng: rng.uniform(0, self.oversleep),  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            )
            editors = {p: s.editor(clock, rng, self.network_delay) for p, s in providers.items()}
            dispatcher = self.worker(editors.__getitem__, clock, rng)
            for _ in range(4):
                self.time.start(self._thread(dispatcher, clock), after=rng.uniform(0, 2))
        self.time.run()

    def _thread(self, dispatcher: TieredDispatcher, clock: SkewedClock) -> Callable[[], None]:
        def work() -> None:
            while self.time.at < START + self.seconds:
                started = self.time.at
                try:
                    result = dispatcher.dispatch(FakeCallContext(), clock.now() + 900)
                except DeferRow as deferred:
                    clock.sleep(deferred.delay_seconds)
                except DarkroomError as error:
                    self.errors.append(error)
                else:
                    self.rows.append((started, self.time.at - started, result))

        return work

    def requests_per_row(self) -> dict[str, float]:
        return {kind: n / len(self.rows) for kind, n in self.states.requests.items()}


def within(times: list[float], start: float, end: float) -> int:
    return len([t for t in times if start <= t - START < end])


@pytest.mark.parametrize("rate", [60, 300])
@pytest.mark.parametrize("processes", [4, 12, 32])
def test_no_call_is_refused_at_96_percent_of_the_rate_whatever_the_number_of_workers(
    rate: int, processes: int
) -> None:
    harness = WorkersHarness(
        gemini(requests_per_minute=rate),
        processes=processes,
        skew=0.1,
        oversleep=0.05,
        network_delay=0.5,
    )
    # Using up the rate takes a fifth of the workers' time.
    latency = processes * 4 * 60 / rate / 5
    provider = StrictProvider(harness.time, latency=latency, per_minute=rate)
    harness.run({Provider.GEMINI: provider})
    assert provider.refused == 0
    assert most_within(60, provider.arrivals) <= rate
    assert within(provider.allowed, 60, 240) >= 0.96 * rate * 3
    requests = harness.requests_per_row()
    assert requests["reserve"] <= 1.3
    assert sum(requests.values()) <= 2.4
    assert harness.errors == []


@pytest.mark.parametrize(("skew", "network_delay"), [(0.5, 0.5), (0.0, 1.5)])
def test_skewed_clocks_late_wake_ups_and_slow_networks_keep_the_limit(
    skew: float, network_delay: float
) -> None:
    harness = WorkersHarness(
        gemini(requests_per_minute=60),
        processes=12,
        seconds=400,
        skew=skew,
        oversleep=0.2,
        network_delay=network_delay,
    )
    provider = StrictProvider(harness.time, latency=8.0, per_minute=60)
    harness.run({Provider.GEMINI: provider})
    assert provider.refused == 0
    assert most_within(60, provider.arrivals) <= 60
    assert within(provider.allowed, 60, 360) >= 0.95 * 60 * 5


def test_workers_that_die_at_any_time_keep_the_limits_and_their_leases_expire() -> None:
    harness = WorkersHarness(
        gemini(requests_per_minute=60, max_in_flight=6, timeout_seconds=30),
        processes=10,
        seconds=400,
        kill_at=lambda n: START + 20 + 7.3 * n if n < 6 else float("inf"),
    )
    provider = StrictProvider(harness.time, latency=5.0, per_minute=60)
    harness.run({Provider.GEMINI: provider})
    assert provider.refused == 0
    assert provider.most_in_flight <= 6
    # The last died at 57 s; its lease has expired, and the rate is what it was.
    assert within(provider.allowed, 130, 390) / 260 >= 0.9 * min(6 / 5.0, 60 / 62)


def test_the_leases_of_killed_workers_expire_in_time() -> None:
    harness = WorkersHarness(
        gemini(requests_per_minute=60, max_in_flight=6, timeout_seconds=30),
        processes=10,
        seconds=300,
        kill_at=lambda n: START + 60 if n < 6 else float("inf"),
    )
    provider = StrictProvider(harness.time, latency=5.0, per_minute=60)
    harness.run({Provider.GEMINI: provider})
    assert provider.refused == 0
    assert provider.most_in_flight <= 6
    assert within(provider.allowed, 30, 60) >= 28
    assert within(provider.allowed, 65, 95) <= 22  # leases of dead workers take up places
    # A lease lasts from its slot for the call's time-out and 15 s; no slot was far ahead.
    assert within(provider.allowed, 60 + 30 + 15 + 7, 142) >= 28


@pytest.mark.parametrize("processes", [1, 4, 12])
def test_places_in_flight_are_never_exceeded_and_rarely_idle(processes: int) -> None:
    """The guide's defaults: 10 a minute, 4 in flight, calls of 30 seconds."""
    harness = WorkersHarness(
        gemini(requests_per_minute=10, max_in_flight=4), processes=processes, seconds=900
    )
    provider = StrictProvider(harness.time, latency=30.0, per_minute=10)
    harness.run({Provider.GEMINI: provider})
    assert provider.most_in_flight <= 4
    possible = 4 / 30 * 840  # limited by the places in flight, not by the rate
    assert within(provider.allowed, 60, 900) >= 0.85 * possible


def test_an_endpoint_full_in_flight_does_not_block_the_slots_of_another() -> None:
    harness = WorkersHarness(
        gemini("full", max_in_flight=2, requests_per_minute=0),
        gemini("limited", requests_per_minute=12),
        processes=4,
        seconds=300,
    )
    provider = StrictProvider(harness.time, latency=20.0)
    harness.run({Provider.GEMINI: provider})
    assert within(provider.allowed, 60, 300) >= 0.9 * (2 / 20 * 240 + 12 / 62 * 240)


def test_in_an_outage_rows_reach_the_fallback_at_once() -> None:
    harness = WorkersHarness(
        gemini(requests_per_minute=60, max_retries=2, retry_delay_seconds=5),
        openai(),
        processes=4,
        seconds=120,
    )
    first = StrictProvider(harness.time, latency=3.0, per_minute=60, outage=(10.0, 70.0))
    fallback = StrictProvider(harness.time, latency=3.0)
    harness.run({Provider.GEMINI: first, Provider.OPENAI: fallback})
    assert within(first.failed, 10, 70) <= 10
    during = [seconds for started, seconds, _ in harness.rows if 10 <= started - START < 65]
    assert statistics.median(during) <= 3.0 + 0.5
    assert harness.errors == []
    # And the first tier is used again soon after its recovery.
    after = [r.endpoint.name for started, _, r in harness.rows if started - START > 105]
    assert "gemini" in after


def test_an_outage_of_both_tiers_costs_few_calls_and_ends_by_itself() -> None:
    harness = WorkersHarness(
        gemini(max_retries=2, retry_delay_seconds=5), openai(max_retries=0), processes=4
    )
    providers = {
        p: StrictProvider(harness.time, outage=(10.0, 100.0), latency=3.0) for p in Provider
    }
    harness.run(providers)
    for provider in providers.values():
        assert within(provider.failed, 40, 100) <= 10
    assert len(harness.errors) <= 40  # attempts spent by 16 threads in 90 seconds
    assert within(providers[Provider.GEMINI].allowed, 175, 240) > 0


def test_two_endpoints_provide_the_sum_of_their_rates() -> None:
    harness = WorkersHarness(
        gemini("one", requests_per_minute=30, weight=5),
        gemini("two", requests_per_minute=60),
        processes=6,
        seconds=300,
    )
    provider = StrictProvider(harness.time, latency=4.0, per_minute=90)
    harness.run({Provider.GEMINI: provider})
    assert within(provider.allowed, 60, 300) >= 0.96 * 90 * 4
    assert provider.refused == 0
    requests = harness.requests_per_row()
    assert requests["reserve"] <= 1.3
    assert sum(requests.values()) <= 2.4


def test_reservations_made_before_a_429_are_void() -> None:
    harness = WorkersHarness(gemini(requests_per_minute=60), openai(), processes=4, seconds=150)
    stricter = StrictProvider(harness.time, latency=1.0, per_minute=30)
    fallback = StrictProvider(harness.time, latency=5.0)
    harness.run({Provider.GEMINI: stricter, Provider.OPENAI: fallback})
    assert stricter.refused <= 12
