"""Many workers at once, each with its own dispatcher, on one virtual clock and one table."""

import random
import statistics
from collections.abc import Callable

import pytest

from darkroom.calls import CallFailed, Outcome
from tests.fakes.dispatching import gemini, openai
from tests.fakes.fleet import CHECK_SECONDS, Fleet
from tests.fakes.strict_provider import StrictProvider, most_within
from tests.fakes.virtual_time import START


def within(times: list[float], start: float, end: float) -> int:
    return len([t for t in times if start <= t - START < end])


@pytest.mark.parametrize("rate", [60, 300])
@pytest.mark.parametrize("processes", [4, 12, 32])
def test_any_number_of_workers_use_96_percent_of_the_rate(rate: int, processes: int) -> None:
    harness = Fleet(gemini(requests_per_minute=rate))
    # Using up the rate takes a fifth of the workers' time.
    provider = harness.provider(latency=processes * 4 * 60 / rate / 5, per_minute=rate)
    harness.run(provider, processes=processes, skew=0.1, oversleep=0.05, network_delay=0.5)
    assert provider.refused == 0
    assert most_within(60, provider.arrivals) <= rate
    assert within(provider.allowed, 60, 240) >= 0.96 * rate * 3
    harness.assert_few_writes_per_row()
    assert harness.errors == []


@pytest.mark.parametrize(("skew", "network_delay"), [(0.5, 0.5), (0.0, 1.5)])
def test_skewed_clocks_and_slow_networks_keep_the_limit(skew: float, network_delay: float) -> None:
    harness = Fleet(gemini(requests_per_minute=60))
    provider = harness.provider(latency=8.0, per_minute=60)
    harness.run(
        provider, processes=12, seconds=400, skew=skew, oversleep=0.2, network_delay=network_delay
    )
    assert provider.refused == 0
    assert most_within(60, provider.arrivals) <= 60
    assert within(provider.allowed, 60, 360) >= 0.95 * 60 * 5


def six_of_ten_processes_die(kill_at: Callable[[int], float], seconds: float) -> StrictProvider:
    """Returns the provider, whose limits were kept."""
    harness = Fleet(gemini(requests_per_minute=60, max_in_flight=6, timeout_seconds=30))
    provider = harness.provider(per_minute=60)
    harness.run(
        provider,
        processes=10,
        seconds=seconds,
        kill_at=lambda number: kill_at(number) if number < 6 else float("inf"),
    )
    assert provider.refused == 0
    assert provider.most_in_flight <= 6
    return provider


def test_workers_that_die_at_any_time_keep_the_limits_and_their_leases_expire() -> None:
    provider = six_of_ten_processes_die(lambda number: START + 20 + 7.3 * number, seconds=400)
    # The last died at 57 s; its lease has expired, and the rate is what it was.
    assert within(provider.allowed, 130, 390) / 260 >= 0.9 * min(6 / 5.0, 60 / 62)


def test_the_leases_of_killed_workers_expire_in_time() -> None:
    provider = six_of_ten_processes_die(lambda _: START + 60, seconds=300)
    assert within(provider.allowed, 30, 60) >= 28
    assert within(provider.allowed, 65, 95) <= 25  # leases of dead workers take up places
    # A lease lasts from its slot for the call's time-out and 15 s; no slot was far ahead.
    assert within(provider.allowed, 60 + 30 + 15 + 7, 142) >= 28


@pytest.mark.parametrize("processes", [1, 4, 12])
def test_places_in_flight_are_never_exceeded_and_rarely_idle(processes: int) -> None:
    """The guide's defaults: 10 a minute, 4 in flight, calls of 30 seconds."""
    harness = Fleet(gemini(requests_per_minute=10, max_in_flight=4))
    provider = harness.provider(latency=30.0, per_minute=10)
    harness.run(provider, processes=processes, seconds=900)
    assert provider.most_in_flight <= 4
    possible = 4 / 30 * 840  # limited by the places in flight, not by the rate
    assert within(provider.allowed, 60, 900) >= 0.85 * possible


def test_an_endpoint_full_in_flight_does_not_block_the_slots_of_another() -> None:
    harness = Fleet(gemini("full", max_in_flight=2), gemini("limited", requests_per_minute=12))
    provider = harness.provider(latency=20.0)
    harness.run(provider, seconds=300)
    assert within(provider.allowed, 60, 300) >= 0.9 * (2 / 20 * 240 + 12 / 62 * 240)


def test_in_an_outage_rows_reach_the_fallback_at_once() -> None:
    harness = Fleet(gemini(requests_per_minute=60, max_retries=2, retry_delay_seconds=5), openai())
    first = harness.provider(latency=3.0, per_minute=60, outage=(10.0, 70.0))
    harness.run(first, harness.provider(latency=3.0), seconds=120)
    assert within(first.failed, 10, 70) <= 10
    during = [seconds for started, seconds, _ in harness.rows if 10 <= started - START < 65]
    assert statistics.median(during) <= 3.0 + 0.5
    assert harness.errors == []
    # And the first tier is used again soon after its recovery.
    after = [r.endpoint.name for started, _, r in harness.rows if started - START > 105]
    assert "gemini" in after


def test_answers_that_come_in_an_outage_to_earlier_calls_cost_few_wasted_ones() -> None:
    fleet = Fleet(gemini(requests_per_minute=120, max_in_flight=0), openai())
    provider = fleet.provider(latency=20.0, per_minute=120, outage=(60.0, 120.0))
    fleet.run(provider, fleet.provider(), processes=12, seconds=120)
    assert len(provider.failed) <= 20  # there are 40 calls in flight when it begins


def test_an_outage_of_both_tiers_costs_few_calls_and_ends_by_itself() -> None:
    harness = Fleet(gemini(max_retries=2, retry_delay_seconds=5), openai(max_retries=0))
    first, fallback = [harness.provider(outage=(10.0, 100.0), latency=3.0) for _ in range(2)]
    harness.run(first, fallback)
    for provider in (first, fallback):
        assert within(provider.failed, 40, 100) <= 10
    assert len(harness.errors) <= 40  # attempts spent by 16 threads in 90 seconds
    assert within(first.allowed, 175, 240) > 0


def test_two_endpoints_provide_the_sum_of_their_rates() -> None:
    harness = Fleet(
        gemini("one", requests_per_minute=30, weight=5), gemini("two", requests_per_minute=60)
    )
    provider = harness.provider(latency=4.0, per_minute=90)
    harness.run(provider, processes=6, seconds=300)
    assert within(provider.allowed, 60, 300) >= 0.96 * 90 * 4
    assert provider.refused == 0
    harness.assert_few_writes_per_row()


def test_reservations_made_before_a_429_are_void() -> None:
    harness = Fleet(gemini(requests_per_minute=60), openai())
    stricter = harness.provider(latency=1.0, per_minute=30)
    harness.run(stricter, harness.provider(), seconds=150)
    assert stricter.refused <= 12


# Providers that are noisy, down or slow: benchmarks/noise.py runs the same for hours


def stray(share: float, outcome: Outcome) -> Callable[[float], CallFailed | None]:
    """Answers that share of the calls with a failure."""
    rng = random.Random(1)
    return lambda _: CallFailed(outcome, "stray") if rng.random() < share else None


def test_stray_429s_leave_most_of_the_rate() -> None:
    fleet = Fleet(gemini(requests_per_minute=60, max_retries=2, retry_delay_seconds=5))
    noise = stray(0.03, Outcome.RATE_LIMITED)
    provider = fleet.provider(latency=5.0, per_minute=60, noise=noise)
    fleet.run(provider, seconds=1200)
    assert within(provider.allowed, 60, 1200) >= 0.85 * 60 * 19


@pytest.mark.parametrize(("rate", "latency", "minutes"), [(60, 5.0, 20), (10, 20.0, 60)])
def test_a_limit_that_is_half_of_what_is_configured_is_found_with_few_refusals(
    rate: int, latency: float, minutes: int
) -> None:
    fleet = Fleet(gemini(requests_per_minute=rate, max_retries=2, retry_delay_seconds=5))
    provider = fleet.provider(latency=latency, per_minute=rate // 2)
    fleet.run(provider, processes=4, seconds=60 * minutes)
    assert provider.refused <= 0.1 * len(provider.arrivals)
    assert within(provider.allowed, 300, 60 * minutes) >= 0.6 * rate / 2 * (minutes - 5)


def test_scattered_503s_send_no_rows_to_the_fallback() -> None:
    fleet = Fleet(gemini(requests_per_minute=300, max_retries=2, retry_delay_seconds=5), openai())
    noise = stray(0.05, Outcome.UNAVAILABLE)
    provider = fleet.provider(latency=5.0, per_minute=300, noise=noise)
    fleet.run(provider, fleet.provider(), processes=8, seconds=600)
    assert fleet.telemetry.metrics["BreakerOpened"] == 0
    assert sum(result.fallback for _, _, result in fleet.rows) <= 3


@pytest.mark.parametrize("processes", [12, 50])
def test_after_an_outage_the_full_rate_is_back_within_half_a_minute(processes: int) -> None:
    fleet = Fleet(gemini(requests_per_minute=10, max_retries=2, retry_delay_seconds=5))
    provider = fleet.provider(latency=5.0, per_minute=10, outage=(60.0, 120.0))
    fleet.run(provider, processes=processes, seconds=500)
    probe = min(t for t in provider.allowed if t - START >= 120) - START
    assert within(provider.allowed, probe + 30, probe + 210) >= 0.95 * 10 * 3


@pytest.mark.parametrize(("rows", "retries"), [(1, 2), (30, 2), (1, 0), (30, 0)])
def test_no_row_is_dead_after_hours_of_an_outage_of_the_only_tier(rows: int, retries: int) -> None:
    fleet = Fleet(gemini(requests_per_minute=10, max_retries=retries), rows=rows)
    provider = fleet.provider(latency=5.0, per_minute=10, outage=(0.0, 7200.0))
    fleet.run(provider, seconds=9000)
    assert len(fleet.rows) == rows
    assert len(fleet.errors) <= 1  # the first failure may be the row's own
    assert len(provider.failed) <= 2 * 120 + 10


def test_retries_are_not_displaced_by_a_backlog_of_first_calls() -> None:
    fleet = Fleet(gemini(requests_per_minute=10, max_retries=2, retry_delay_seconds=5))
    provider = fleet.provider(latency=5.0, per_minute=10, noise=stray(0.1, Outcome.UNAVAILABLE))
    fleet.run(provider, processes=12, seconds=1800)
    saved = sum(result.calls > 1 for _, _, result in fleet.rows)
    assert saved >= 0.8 * provider.stray
    assert len(fleet.errors) <= 1  # a row whose three calls all fail, by chance


@pytest.mark.parametrize("stall", [3.0, 5.0, 10.0])
def test_a_ledger_that_stalls_never_makes_a_call_late(stall: float) -> None:
    fleet = Fleet(gemini(requests_per_minute=60))
    provider = fleet.provider(latency=2.0, per_minute=60)

    def delay(rng: random.Random) -> float:
        return stall if rng.random() < 0.05 else 0.02

    fleet.run(provider, processes=6, seconds=600, ledger_delay=delay)
    assert most_within(60, provider.arrivals) <= 60
    assert within(provider.allowed, 60, 600) >= 0.7 * 60 * 9


@pytest.mark.parametrize(("delay", "rate"), [(0.6, 60), (1.0, 30)])
def test_a_slow_table_and_ledger_cost_their_time_and_no_slots(delay: float, rate: int) -> None:
    fleet = Fleet(gemini(requests_per_minute=rate))
    provider = fleet.provider(latency=5.0, per_minute=rate)
    fleet.run(provider, processes=8, seconds=400, table_seconds=delay, ledger_delay=lambda _: delay)
    assert within(provider.allowed, 60, 400) >= 0.95 * 340 * rate / 62


def test_many_idle_workers_defer_hardly_a_row_and_are_hardly_billed() -> None:
    fleet = Fleet(gemini(requests_per_minute=10))
    provider = fleet.provider(latency=20.0, per_minute=10)
    fleet.run(provider, processes=50, seconds=1200)
    assert len(fleet.deferred) <= len(fleet.rows)
    billed = sum(p.billed + p.checks * CHECK_SECONDS for p in fleet.processes)
    assert billed <= 1.5 * 1200  # one process holds the 3.3 calls in flight
    assert within(provider.allowed, 120, 1200) >= 0.96 * 10 * 18
