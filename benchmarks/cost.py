"""What a job costs on AWS: billed time of the editor while limits bind, and operations per image.

python -m benchmarks.cost [--minutes 40] [--skip-operations] [--note TEXT]

The billed time comes from the real editor and dispatcher on Lambda's event source, all on a virtual
clock (tests/fakes/cost_fleet.py). The operations are counted in a real run of splitter, editor and
adapters on MiniStack. Prices: docs/cost.md.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import harness
from darkroom_local.processes import ROOT
from tests.fakes.cost_fleet import CostFleet

FLEETS = [(4, 4), (20, 4), (50, 4), (100, 10)]  # processes x threads
RATES = [10, 60, 600]
MAX_ROWS = 9600
ROWS = 100  # of the run that counts operations

# US East (N. Virginia), in US dollars: see docs/cost.md.
GB_SECOND = 0.0000166667
GB_SECOND_ARM = 0.0000133334
INVOCATION = 0.20e-6
MEMORY_GB = 2.0
SQS_REQUEST = 0.40e-6
WRITE_UNIT = 0.625e-6
READ_UNIT = 0.125e-6
S3_WRITE = 0.005e-3
S3_READ = 0.0004e-3
LOG_GB = 0.50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--skip-operations", action="store_true")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    output = ROOT / "benchmarks" / "results" / "cost.json"
    parser.add_argument("--output", type=Path, default=output)
    chosen = parser.parse_args()
    runs = []
    for processes, threads in FLEETS:
        for rate in RATES:
            runs.append(_fleet(processes, threads, rate, chosen.minutes))
            print(json.dumps(runs[-1]), flush=True)
    runs.append(_fleet(4, 10, 0, chosen.minutes))
    facts: dict[str, Any] = {"call_seconds": 20, "memory_gb": MEMORY_GB}
    if not chosen.skip_operations:
        facts["operations_per_image"] = _operations()
        print(json.dumps(facts["operations_per_image"]), flush=True)
    harness.save(chosen, facts, runs)
    harness.print_table(runs, without=set())


def _fleet(processes: int, threads: int, rate: int, minutes: float) -> dict[str, Any]:
    """One job; the rate is in calls a minute, 0 for no limit."""
    rows = min(MAX_ROWS, int((rate or 60 / 20 * processes * threads) * minutes))
    fleet = CostFleet(rows, processes, threads, rate)
    fleet.run()
    gb_seconds = fleet.billed_per_row * MEMORY_GB
    invocations = fleet.source.invocations / rows
    return {
        "workers": f"{processes} x {threads}",
        "limit": rate or "none",
        "rows": rows,
        "rate_used_percent": round(100 * fleet.utilisation, 1) if fleet.limit_binds else None,
        "billed_seconds": round(fleet.billed_per_row, 2),
        "floor_seconds": round(fleet.floor_per_row, 2),
        "times_floor": round(fleet.billed_per_row / fleet.floor_per_row, 2),
        "usd_per_1000": round(1000 * (gb_seconds * GB_SECOND + invocations * INVOCATION), 3),
        "deferrals": round(fleet.deferrals_per_row, 2),
        "deferred_with_images": fleet.counts["deferred_with_images"],
        "invocations": fleet.source.invocations,
        "sqs_requests": round(sum(fleet.queue.requests.values()) / rows, 2),
        "endpoint_requests": round(sum(fleet.harness.states.requests.values()) / rows, 2),
        "refused": fleet.provider.refused,
    }


def _operations() -> dict[str, float]:
    """Requests per image, by service and operation, of a job without faults on MiniStack."""
    from tests.e2e import fault_harness, worker  # noqa: PLC0415  # needs MiniStack

    counts: Counter[str] = Counter()
    rates = fault_harness.FaultRates(ROWS, aws=0.0, providers=0.0, kill_every_seconds=1e9)
    with (
        tempfile.TemporaryDirectory() as folder,
        fault_harness.running(rates, Path(folder)) as faults,
    ):
        wiring = faults.counting(counts)
        job = faults.upload("jobs/cost.csv", [f"make it {n}" for n in range(ROWS)])
        sqs = worker.client("sqs", faults.url)
        counts.clear()
        began_at = time.monotonic()
        while not faults.wiring.ledger.report_due(job):
            worker.poll(sqs, faults.settings, fault_harness.TIMINGS, wiring.editor)
            assert time.monotonic() - began_at < 300
    return {name: round(n / ROWS, 3) for name, n in sorted(counts.items())}


if __name__ == "__main__":
    main()
