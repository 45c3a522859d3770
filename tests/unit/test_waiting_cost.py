"""Waiting is not billed: the editor on Lambda's event source, with limits that bind."""

import pytest

from darkroom.calls import CallFailed, Outcome
from tests.fakes.cost_fleet import CostFleet
from tests.fakes.dispatching import gemini, secret
from tests.fakes.virtual_time import START


@pytest.mark.parametrize(
    ("processes", "threads", "rate", "rows"), [(4, 4, 10, 200), (20, 10, 10, 200), (20, 4, 60, 900)]
)
def test_workers_are_billed_for_little_more_than_their_calls(
    processes: int, threads: int, rate: int, rows: int
) -> None:
    fleet = CostFleet(rows, processes, threads, rate)
    fleet.run()
    assert fleet.provider.refused == 0
    assert fleet.counts["done"] == rows
    # Slots are 62 s / rate apart, so 96.8 % is the most. Longer jobs: benchmarks/cost.py.
    assert fleet.utilisation >= 0.9
    assert fleet.billed_per_row <= 1.5 * fleet.floor_per_row
    assert fleet.counts["deferred_with_images"] <= 0.005 * rows
    assert fleet.source.most_at_once <= processes


def test_threads_are_full_when_no_limit_binds() -> None:
    fleet = CostFleet(400, 4, 10, rate=0)
    fleet.run()
    assert fleet.billed_per_row <= 1.5 * fleet.floor_per_row
    assert fleet.deferrals_per_row <= 0.1


def test_rows_return_to_an_endpoint_that_has_recovered() -> None:
    fleet = CostFleet(300, 4, 4, rate=10, outage=(20.0, 1200.0))
    fleet.run()
    good = sorted(t - START for t in fleet.provider.allowed if t - START >= 1200)
    assert good[0] <= 1200 + 75  # the last probe of the outage may be a minute before
    assert sum(good[0] + 60 <= t < good[0] + 360 for t in good) >= 0.95 * 50 * 60 / 62


def test_rows_return_once_the_secret_is_corrected() -> None:
    fleet = CostFleet(300, 4, 4, rate=60)
    fleet.provider.noise = lambda second: (
        CallFailed(Outcome.KEY_REJECTED, "401") if second < 900 else None
    )
    good_key = secret(gemini(requests_per_minute=60, api_keys=["good"]))

    def correct() -> None:
        fleet.harness.secret_source.current = good_key

    fleet.time.start(correct, after=900.0)
    fleet.run()
    assert len(fleet.provider.arrivals) - len(fleet.provider.allowed) <= 16
    good = sorted(t - START for t in fleet.provider.allowed)
    assert good[0] <= 900 + 60
    # 16 threads can make 90.
    assert sum(good[0] + 30 <= t < good[0] + 150 for t in good) >= 80


def test_rows_without_a_place_in_flight_wait_in_the_queue() -> None:
    fleet = CostFleet(200, 20, 4, rate=60, max_in_flight=4)
    fleet.run()
    assert fleet.utilisation >= 0.9
    assert fleet.counts["deferred_with_images"] <= 2
    assert fleet.billed_per_row <= 1.6 * fleet.floor_per_row
    assert fleet.deferrals_per_row <= 4
    assert fleet.provider.most_in_flight <= 4
