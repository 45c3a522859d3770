"""Workers killed, AWS and providers failing: no row is lost, none counted twice, every charge told.

The short form runs with all tests; the long one by `make soak`.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from darkroom.jobs import Counters
from darkroom.ledger.rows import contribution
from tests.e2e.fault_world import Chaos, World, world

SHORT = Chaos(rows=80, aws=0.01, providers=0.05, kill_every=2.0, kills=6, attempts=2, seconds=120)
SOAK = Chaos(
    rows=int(os.environ.get("SOAK_ROWS", "2000")),
    aws=0.02,
    providers=0.1,
    kill_every=2.0,
    workers=4,
    seconds=3600,
)


DEAD_ENDS = 3


def rows(count: int) -> list[dict[str, str]]:
    """Text-to-image rows whose instruction tells the simulated providers which row it is."""
    ends = [" dead end" if n < DEAD_ENDS else "" for n in range(count)]
    return [{"instruction": f"a hat{end} [row:{n:06d}]"} for n, end in enumerate(ends)]


def check(world: World, job: str, count: int) -> None:
    """What must be true of a finished job, whatever happened to it."""
    manifest = world.manifest(job)
    assert [line["row"] for line in manifest] == [str(n) for n in range(count)]
    statuses = Counter(line["status"] for line in manifest)
    assert set(statuses) <= {"succeeded", "failed", "dead"}
    assert not [
        line for line in manifest if line["reason"] == "worker_lost" and not line["attempts"]
    ]

    run = world.wiring.ledger.current(job)
    assert run is not None
    counters = world.wiring.ledger.counters(job, run.run)
    summed = Counters()
    for record in world.wiring.ledger.all(job):
        assert record.state.terminal
        summed += contribution(record)
    assert counters.settled == count == run.totals.queued + counters.redriven
    told = {"succeeded": counters.succeeded, "failed": counters.failed, "dead": counters.dead}
    assert {k: v for k, v in told.items() if v} == dict(statuses)
    assert (counters.cost_micro_usd, counters.attempts) == (summed.cost_micro_usd, summed.attempts)

    paid = world.paid()
    for line in manifest:
        images = int(line["status"] == "succeeded")
        unknown = int(line["possible_duplicate_charges"])
        bills = paid.get(f"{int(line['row']):06d}", 0)
        assert images <= bills <= images + unknown, (line, bills)
    assert paid.total() <= counters.succeeded + counters.possible_duplicate_charges


def stress(world: World) -> None:
    """A job through all the faults, then the dead brought back in peace."""
    count = world.chaos.rows
    job = world.upload(
        "jobs/faults.csv", rows(count), **{"max-attempts": str(world.chaos.attempts)}
    )
    world.work(job)
    world.report(job)
    check(world, job, count)
    assert world.kills >= 3
    assert sum(n for what, n in world.proxy.met.items() if "requests" not in what) > 10

    dead = [line["row"] for line in world.manifest(job) if line["status"] == "dead"]
    assert len(dead) >= DEAD_ENDS
    world.calm()
    assert world.redrive() >= len(dead)
    world.work(job, kill=False, revive=True)
    world.report(job)
    check(world, job, count)
    lines = {line["row"]: line["status"] for line in world.manifest(job)}
    assert {lines[row] for row in dead} == {"succeeded"}


def test_kills_and_faults_lose_no_row_and_hide_no_charge(tmp_path: Path) -> None:
    with world(SHORT, tmp_path) as made:
        stress(made)


@pytest.mark.soak
def test_soak(tmp_path: Path) -> None:
    with world(SOAK, tmp_path) as made:
        stress(made)
