"""Many workers at once, each with a dispatcher of its own, on one virtual clock and one table."""

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from darkroom.dispatch.dispatcher import TieredDispatcher
from darkroom.endpoints import EndpointsSecret
from darkroom.errors import DarkroomError, DeferRow
from darkroom.ports import DispatchResult
from darkroom.providers.registry import Provider
from tests.fakes.dispatching import FakeSecretSource, PlainErrand, gemini, openai, secret
from tests.fakes.endpoint_states import InMemoryEndpointStates
from tests.fakes.services import FakeTelemetry
from tests.fakes.strict_provider import StrictProvider
from tests.fakes.virtual_time import START, SkewedClock, VirtualTime


@dataclass
class Fleet:
    """`processes` x `threads` workers that take row after row until `seconds` are over."""

    given: EndpointsSecret
    processes: int
    threads: int = 4
    seconds: float = 240.0
    skew: float = 0.0
    late: float = 0.0  # a sleep lasts up to this much too long
    wire: float = 0.0
    kill: Callable[[int], float] = lambda _: float("inf")
    time: VirtualTime = field(default_factory=VirtualTime)
    states: InMemoryEndpointStates = field(default_factory=InMemoryEndpointStates)
    telemetry: FakeTelemetry = field(default_factory=FakeTelemetry)
    rows: list[tuple[float, float, DispatchResult]] = field(
        default_factory=list
    )  # begun, took, came
    errors: list[DarkroomError] = field(default_factory=list)

    def run(self, providers: Mapping[Provider, StrictProvider]) -> None:
        for number in range(self.processes):
            rng = random.Random(number)
            clock = SkewedClock(
                self.time,
                rng.uniform(-self.skew, self.skew),
                self.kill(number),
                lambda rng=rng: rng.uniform(0, self.late),  # type: ignore[misc]
            )
            editors = {p: s.for_worker(clock, rng, self.wire) for p, s in providers.items()}
            dispatcher = TieredDispatcher(
                FakeSecretSource(self.given), self.states, editors, clock, rng, self.telemetry
            )
            for _ in range(self.threads):
                self.time.start(self._worker(dispatcher, clock), after=rng.uniform(0, 2))
        self.time.run()

    def _worker(self, dispatcher: TieredDispatcher, clock: SkewedClock) -> Callable[[], None]:
        def work() -> None:
            while self.time.at < START + self.seconds:
                begun = self.time.at
                try:
                    delivery = dispatcher.dispatch(PlainErrand(), clock.now() + 900)
                except DeferRow as deferred:
                    clock.sleep(deferred.delay_seconds)
                except DarkroomError as error:
                    self.errors.append(error)
                else:
                    self.rows.append((begun, self.time.at - begun, delivery))

        return work

    def requests_per_row(self) -> dict[str, float]:
        return {kind: n / len(self.rows) for kind, n in self.states.requests.items()}


def within(times: list[float], start: float, end: float) -> int:
    return len([t for t in times if start <= t - START < end])


@pytest.mark.parametrize("rate", [60, 300])
@pytest.mark.parametrize("processes", [4, 12, 32])
def test_no_call_is_refused_at_96_percent_of_the_rate_however_many_workers(
    rate: int, processes: int
) -> None:
    fleet = Fleet(
        secret(gemini(requests_per_minute=rate)), processes, skew=0.1, late=0.05, wire=0.5
    )
    # Enough workers must call at once to use the rate up: a fifth of the workers' time is calling.
    provider = StrictProvider(fleet.time, latency=processes * 4 * 60 / rate / 5, per_minute=rate)
    fleet.run({Provider.GEMINI: provider})
    assert provider.refused == 0
    assert provider.most_in_a_minute() <= rate
    assert within(provider.allowed, 60, 240) >= 0.96 * rate * 3
    spent = fleet.requests_per_row()
    assert spent["book"] <= 1.3
    assert sum(spent.values()) <= 2.4
    assert fleet.errors == []


@pytest.mark.parametrize(("skew", "wire"), [(0.5, 0.5), (0.0, 1.5)])
def test_skewed_clocks_late_sleepers_and_slow_lines_break_no_limit(
    skew: float, wire: float
) -> None:
    fleet = Fleet(
        secret(gemini(requests_per_minute=60)), 12, seconds=400, skew=skew, late=0.2, wire=wire
    )
    provider = StrictProvider(fleet.time, latency=8.0, per_minute=60)
    fleet.run({Provider.GEMINI: provider})
    assert provider.refused == 0
    assert provider.most_in_a_minute() <= 60
    assert within(provider.allowed, 60, 360) >= 0.95 * 60 * 5


def test_workers_that_die_at_any_moment_break_no_limit_and_free_their_leases() -> None:
    given = secret(gemini(requests_per_minute=60, max_in_flight=6, timeout_seconds=30))
    fleet = Fleet(
        given,
        10,
        seconds=400,
        kill=lambda n: START + 20 + 7.3 * n if n < 6 else float("inf"),
    )
    provider = StrictProvider(fleet.time, latency=5.0, per_minute=60)
    fleet.run({Provider.GEMINI: provider})
    assert provider.refused == 0
    assert provider.most_in_flight <= 6
    # The last died at 57 s; their leases have ended and the rate is what it was.
    assert within(provider.allowed, 130, 390) / 260 >= 0.9 * min(6 / 5.0, 60 / 62)


def test_a_killed_workers_leases_are_free_within_their_time() -> None:
    given = secret(gemini(requests_per_minute=60, max_in_flight=6, timeout_seconds=30))
    fleet = Fleet(given, 10, seconds=300, kill=lambda n: START + 60 if n < 6 else float("inf"))
    provider = StrictProvider(fleet.time, latency=5.0, per_minute=60)
    fleet.run({Provider.GEMINI: provider})
    assert provider.refused == 0
    assert provider.most_in_flight <= 6
    assert within(provider.allowed, 30, 60) >= 28
    assert within(provider.allowed, 65, 95) <= 22  # places are held by the dead
    # A lease lasts from its slot for the call's time-out and 15 s; no slot was far ahead.
    assert within(provider.allowed, 60 + 30 + 15 + 7, 142) >= 28


@pytest.mark.parametrize("processes", [1, 4, 12])
def test_in_flight_is_never_passed_and_hardly_ever_idle(processes: int) -> None:
    """The guide's defaults: 10 a minute, 4 in flight, calls of 30 seconds."""
    fleet = Fleet(secret(gemini(requests_per_minute=10, max_in_flight=4)), processes, seconds=900)
    provider = StrictProvider(fleet.time, latency=30.0, per_minute=10)
    fleet.run({Provider.GEMINI: provider})
    assert provider.most_in_flight <= 4
    possible = 4 / 30 * 840  # the places, not the timings, are what is scarce
    assert within(provider.allowed, 60, 900) >= 0.85 * possible


def test_an_endpoint_full_in_flight_keeps_nobody_from_the_slots_of_another() -> None:
    given = secret(
        gemini("full", max_in_flight=2, requests_per_minute=0),
        gemini("paced", requests_per_minute=12),
    )
    fleet = Fleet(given, 4, seconds=300)
    provider = StrictProvider(fleet.time, latency=20.0)
    fleet.run({Provider.GEMINI: provider})
    both = within(provider.allowed, 60, 300)
    assert both >= 0.9 * (2 / 20 * 240 + 12 / 62 * 240)


def test_in_an_outage_rows_reach_the_fallback_at_once() -> None:
    given = secret(gemini(requests_per_minute=60, max_retries=2, retry_delay_seconds=5), openai())
    fleet = Fleet(given, 4, seconds=120)
    broken = StrictProvider(fleet.time, latency=3.0, per_minute=60, down=(10.0, 70.0))
    sound = StrictProvider(fleet.time, latency=3.0)
    fleet.run({Provider.GEMINI: broken, Provider.OPENAI: sound})
    assert within(broken.failed, 10, 70) <= 10
    during = [took for begun, took, _ in fleet.rows if 10 <= begun - START < 65]
    assert statistics.median(during) <= 3.0 + 0.5
    assert fleet.errors == []
    # And the first tier is used again soon after it is back.
    after = [d.endpoint.name for begun, _, d in fleet.rows if begun - START > 105]
    assert "gemini" in after


def test_an_outage_of_both_tiers_costs_few_calls_and_ends_by_itself() -> None:
    given = secret(gemini(max_retries=2, retry_delay_seconds=5), openai(max_retries=0))
    fleet = Fleet(given, 4, seconds=240)
    down = {"down": (10.0, 100.0), "latency": 3.0}
    providers = {p: StrictProvider(fleet.time, **down) for p in Provider}  # type: ignore[arg-type]
    fleet.run(providers)
    for provider in providers.values():
        assert within(provider.failed, 40, 100) <= 10
    assert len(fleet.errors) <= 40  # attempts spent by 16 workers in 90 seconds
    assert within(providers[Provider.GEMINI].allowed, 175, 240) > 0


def test_two_endpoints_give_the_sum_of_their_rates() -> None:
    given = secret(
        gemini("one", requests_per_minute=30, weight=5), gemini("two", requests_per_minute=60)
    )
    fleet = Fleet(given, 6, seconds=300)
    provider = StrictProvider(fleet.time, latency=4.0, per_minute=90)
    fleet.run({Provider.GEMINI: provider})
    assert within(provider.allowed, 60, 300) >= 0.96 * 90 * 4
    assert provider.refused == 0
    spent = fleet.requests_per_row()
    assert spent["book"] <= 1.3
    assert sum(spent.values()) <= 2.4


def test_bookings_made_before_a_429_are_not_used() -> None:
    given = secret(gemini(requests_per_minute=60), openai())
    fleet = Fleet(given, 4, seconds=150)
    wrong = StrictProvider(fleet.time, latency=1.0, per_minute=30)
    fallback = StrictProvider(fleet.time, latency=5.0)
    fleet.run({Provider.GEMINI: wrong, Provider.OPENAI: fallback})
    assert wrong.refused <= 12
