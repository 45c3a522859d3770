"""Under kills and faults no row is lost or counted twice, and every charge is accounted for.

The short run belongs to all tests; the long one to `make soak`.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from darkroom.aws.ledger_table import LedgerTable
from darkroom.jobs import Counters
from darkroom.ledger.rows import contribution
from tests.e2e import deployed_faults
from tests.e2e.deployed_faults import SoakRates
from tests.e2e.fault_harness import FaultRates, running
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
SOAK = SoakRates(
    rows=int(os.environ.get("SOAK_ROWS", "2000")),
    aws=float(os.environ.get("SOAK_AWS_FAULTS", "0.1")),
    providers=0.1,
    kill_every_requests=int(os.environ.get("SOAK_KILL_EVERY", "4000")),
    timeout_seconds=4 * 3600,
)


def check(ledger: LedgerTable, results: Results, rows: int, charged: Counter[str]) -> None:
    """Check what must hold for a finished job of `rows` rows, whatever happened to it.

    `charged` are the images that the providers charged for, by row.
    """
    job, manifest = results.job, results.manifest
    assert [line["row"] for line in manifest] == [str(n) for n in range(rows)]
    statuses = Counter(line["status"] for line in manifest)
    assert set(statuses) <= {"succeeded", "failed", "dead"}
    lost = [line for line in manifest if line["reason"] == "worker_lost"]
    assert all(line["attempts"] for line in lost)

    run = ledger.current(job)
    assert run is not None
    counters = ledger.counters(job, run.run)
    summed = Counters()
    for record in ledger.all(job):
        assert record.state.terminal
        summed += contribution(record)
    assert counters.settled == rows == run.totals.queued
    counted = {"succeeded": counters.succeeded, "failed": counters.failed, "dead": counters.dead}
    assert {k: v for k, v in counted.items() if v} == dict(statuses)
    assert (counters.cost_micro_usd, counters.attempts) == (summed.cost_micro_usd, summed.attempts)

    for line in manifest:
        images = int(line["status"] == "succeeded")
        unknown = int(line["possible_duplicate_charges"])
        charges = charged.get(f"{int(line['row']):06d}", 0)
        assert images <= charges <= images + unknown, (line, charges)
    assert charged.total() <= counters.succeeded + counters.possible_duplicate_charges


def csv_instructions(rows: int, dead_ends: int) -> list[str]:
    """Text-to-image rows whose instruction names the row to the simulated providers."""
    ends = [" dead end" if n < dead_ends else "" for n in range(rows)]
    return [f"a hat{end} [row:{n:06d}]" for n, end in enumerate(ends)]


def test_kills_and_faults_lose_no_row_and_hide_no_charge(tmp_path: Path) -> None:
    """A job under all faults, then a redrive of its dead rows without faults."""
    with running(SHORT, tmp_path) as harness:
        ledger, options = harness.wiring.ledger, {"max-attempts": str(SHORT.max_attempts)}
        instructions = csv_instructions(SHORT.rows, SHORT.dead_ends)
        job = harness.upload("jobs/faults.csv", instructions, **options)
        harness.process(job)
        results = harness.report(job)
        check(ledger, results, SHORT.rows, harness.charged_images())
        assert harness.kills >= 3
        assert injected(harness.proxy.counts).total() > 10

        dead = rows_with(results, "dead")
        assert len(dead) >= SHORT.dead_ends
        harness.stop_faults()
        assert harness.redrive() >= len(dead)
        harness.process(job, kill=False, until_none_dead=True)
        results = harness.report(job)
        check(ledger, results, SHORT.rows, harness.charged_images())
        assert dead <= rows_with(results, "succeeded")


@pytest.mark.soak
def test_deployed_functions_that_are_killed_lose_no_row_and_hide_no_charge() -> None:
    """The same with the deployed functions, and a tenth of each kind of fault."""
    with deployed_faults.running(SOAK) as soak:
        version = soak.upload("jobs/soak.csv")
        results = soak.run_until_reported("jobs/soak", version)
        check(soak.ledger, results, SOAK.rows, soak.charged_images())
        assert injected(soak.proxy.counts).total() > SOAK.rows
        assert soak.kills.total() >= 3

        dead = rows_with(results, "dead")
        assert len(dead) >= SOAK.dead_ends
        soak.stop_faults()
        soak.redrive(results.job)
        results = soak.wait_until_none_dead(results)
        check(soak.ledger, results, SOAK.rows, soak.charged_images())
        assert dead <= rows_with(results, "succeeded")


def rows_with(results: Results, status: str) -> set[str]:
    return {line["row"] for line in results.manifest if line["status"] == status}


def injected(counts: Counter[str]) -> Counter[str]:
    """The faults among the proxy's counts."""
    return Counter({name: n for name, n in counts.items() if "requests" not in name})
