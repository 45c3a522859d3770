"""Under kills and faults no row is lost or counted twice, and every charge is accounted for.

The short run belongs to all tests; the long one to `make soak`.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from darkroom.jobs import Counters
from darkroom.ledger.rows import contribution
from tests.e2e.fault_harness import FaultHarness, FaultRates, running
from tests.e2e.harness import Results

SHORT = FaultRates(
    rows=80,
    aws=0.01,
    providers=0.05,
    kill_every_seconds=2.0,
    max_kills=6,
    max_attempts=2,
    timeout_seconds=240,
    dead_ends=1,
)
SOAK = FaultRates(
    rows=int(os.environ.get("SOAK_ROWS", "2000")),
    aws=0.02,
    providers=0.1,
    kill_every_seconds=2.0,
    workers=4,
    timeout_seconds=3600,
)


def check(harness: FaultHarness, results: Results) -> None:
    """Check what must hold for a finished job, whatever happened to it."""
    job, count, manifest = results.job, harness.rates.rows, results.manifest
    assert [line["row"] for line in manifest] == [str(n) for n in range(count)]
    statuses = Counter(line["status"] for line in manifest)
    assert set(statuses) <= {"succeeded", "failed", "dead"}
    lost = [line for line in manifest if line["reason"] == "worker_lost"]
    assert all(line["attempts"] for line in lost)

    run = harness.wiring.ledger.current(job)
    assert run is not None
    counters = harness.wiring.ledger.counters(job, run.run)
    summed = Counters()
    for record in harness.wiring.ledger.all(job):
        assert record.state.terminal
        summed += contribution(record)
    assert counters.settled == count == run.totals.queued
    counted = {"succeeded": counters.succeeded, "failed": counters.failed, "dead": counters.dead}
    assert {k: v for k, v in counted.items() if v} == dict(statuses)
    assert (counters.cost_micro_usd, counters.attempts) == (summed.cost_micro_usd, summed.attempts)

    charged = harness.charged_images()
    for line in manifest:
        images = int(line["status"] == "succeeded")
        unknown = int(line["possible_duplicate_charges"])
        charges = charged.get(f"{int(line['row']):06d}", 0)
        assert images <= charges <= images + unknown, (line, charges)
    assert charged.total() <= counters.succeeded + counters.possible_duplicate_charges


@pytest.mark.parametrize(
    "rates",
    [pytest.param(SHORT, id="short"), pytest.param(SOAK, id="soak", marks=pytest.mark.soak)],
)
def test_kills_and_faults_lose_no_row_and_hide_no_charge(rates: FaultRates, tmp_path: Path) -> None:
    """A job under all faults, then a redrive of its dead rows without faults."""
    with running(rates, tmp_path) as harness:
        run_job_under_faults(harness)


def run_job_under_faults(harness: FaultHarness) -> None:
    options = {"max-attempts": str(harness.rates.max_attempts)}
    # Text-to-image rows whose instruction names the row to the simulated providers.
    ends = [" dead end" if n < harness.rates.dead_ends else "" for n in range(harness.rates.rows)]
    instructions = [f"a hat{end} [row:{n:06d}]" for n, end in enumerate(ends)]
    job = harness.upload("jobs/faults.csv", instructions, **options)
    harness.process(job)
    results = harness.report(job)
    check(harness, results)
    assert harness.kills >= 3
    assert sum(n for name, n in harness.proxy.counts.items() if "requests" not in name) > 10

    dead = [line["row"] for line in results.manifest if line["status"] == "dead"]
    assert len(dead) >= harness.rates.dead_ends
    harness.stop_faults()
    assert harness.redrive() >= len(dead)
    harness.process(job, kill=False, until_none_dead=True)
    results = harness.report(job)
    check(harness, results)
    statuses = {line["row"]: line["status"] for line in results.manifest}
    assert {statuses[row] for row in dead} == {"succeeded"}
