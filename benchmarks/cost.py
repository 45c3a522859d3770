"""What a job costs on AWS: billed time of the editor while limits bind, and operations per image.

python -m benchmarks.cost [--minutes 40] [--skip-operations] [--note TEXT]

The billed time comes from the real editor and dispatcher on Lambda's event source, all on a virtual
clock (tests/fakes/cost_fleet.py). The operations are counted in a real run of splitter, editor and
adapters on MiniStack. Prices: docs/cost.md.
"""

import argparse
import io
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks import harness
from darkroom_local.processes import ROOT
from tests.fakes.cost_fleet import CostFleet

FLEETS = [(4, 4), (20, 4), (50, 4), (100, 10)]  # processes x threads
RATES = [10, 60, 600]
MAX_ROWS = 9600
ROWS = 100  # of the run that counts operations
MAX_SECONDS = 900  # of that run

# US East (N. Virginia), in US dollars: see docs/cost.md.
GB_SECOND = 0.0000166667
GB_SECOND_ARM = 0.0000133334
INVOCATION = 0.20e-6
MEMORY_GB = 1.5
SQS_REQUEST = 0.40e-6
WRITE_UNIT = 0.625e-6
READ_UNIT = 0.125e-6
S3_WRITE = 0.005e-3
S3_READ = 0.0004e-3
LOG_GB = 0.50
GALLERY_READS = 2  # of each row that the report's pages show: report/builder.py
SPLIT_AND_REPORT = 0.0006  # 10 ms a row each at 1,769 MB


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
        facts |= _operations()
        print_bill(facts, runs[-1])
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


@dataclass
class Counted:
    """Requests of a job, by service and operation, and what else AWS bills by its size."""

    requests: Counter[str] = field(default_factory=Counter)
    write_units: float = 0  # of DynamoDB
    item_bytes: int = 0  # of the largest row
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, service: str, operation: str, body: Any) -> None:
        with self.lock:
            self.requests[f"{service}:{operation}"] += 1
            if service == "dynamodb":
                self.write_units += self._units(operation, json.loads(body))

    def _units(self, operation: str, request: dict[str, Any]) -> float:
        """One for each KB of an item, twice that in a transaction. Updated items are small ones."""
        if operation == "TransactWriteItems":
            puts = [item["Put"] for item in request["TransactItems"] if "Put" in item]
            others = len(request["TransactItems"]) - len(puts)
            return 2 * (sum(self._units("PutItem", put) for put in puts) + others)
        if operation == "PutItem":
            size = item_bytes(request["Item"])
            self.item_bytes = max(self.item_bytes, size)
            return ceil(size / 1024)
        return float(operation == "UpdateItem")


def item_bytes(item: Mapping[str, Any]) -> int:
    """About as DynamoDB counts it: names and texts in UTF-8, numbers by their digits."""
    total = 0
    for name, attribute in item.items():
        ((kind, value),) = attribute.items()
        total += len(name.encode()) if name else 0
        if kind == "M":
            total += 3 + item_bytes(value) + len(value)
        elif kind == "L":
            total += 3 + sum(item_bytes({"": entry}) + 1 for entry in value)
        else:
            total += len(str(value).encode()) if kind in ("S", "N") else 1
    return total


def _operations() -> dict[str, Any]:
    """What AWS counts per image of a job without faults, with one input image a row."""
    from darkroom.aws.telemetry import PowertoolsTelemetry  # noqa: PLC0415
    from tests.e2e import fault_harness, worker  # noqa: PLC0415  # needs MiniStack

    counted, printed = Counted(), io.StringIO()
    rates = fault_harness.FaultRates(ROWS, aws=0.0, providers=0.0, kill_every_seconds=1e9)
    with (
        tempfile.TemporaryDirectory() as folder,
        fault_harness.running(rates, Path(folder)) as faults,
        redirect_stdout(printed),
    ):
        telemetry = PowertoolsTelemetry("darkroom", "darkroom-editor")
        wiring = faults.counting(counted.add, telemetry)
        photo = (ROOT / "examples" / "photos" / "coffee.jpg").read_bytes()
        faults.client("s3").put_object(Bucket="input", Key="coffee.jpg", Body=photo)
        lines = [f"make it {n},s3://input/coffee.jpg" for n in range(ROWS)]
        job = faults.upload("jobs/cost.csv", lines, header="instruction,image_url")
        sqs = worker.client("sqs", faults.url)
        began_at = time.monotonic()
        while not faults.wiring.ledger.report_due(job):
            worker.poll(sqs, faults.settings, fault_harness.TIMINGS, wiring.editor)
            telemetry.flush()
            assert time.monotonic() - began_at < MAX_SECONDS
    requests = {name: round(n / ROWS, 3) for name, n in sorted(counted.requests.items())}
    return {
        "requests_per_image": requests,
        "write_units_per_image": round(counted.write_units / ROWS, 2),
        "row_item_bytes": counted.item_bytes,
        "log_bytes_per_image": round(len(printed.getvalue().encode()) / ROWS),
    }


def print_bill(counted: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """The lines of docs/cost.md, per 1,000 images: of a run without limits that bind."""
    requests = counted["requests_per_image"]
    s3_writes = requests["s3:PutObject"]
    s3_reads = requests["s3:GetObject"] + requests.get("s3:HeadObject", 0)
    reads = requests["dynamodb:GetItem"] + 3 * requests.get("dynamodb:BatchGetItem", 0)
    logs = counted["log_bytes_per_image"]
    lines = [
        (f"Lambda, editor: {run['billed_seconds']} s of {MEMORY_GB} GB", run["usd_per_1000"]),
        (f"S3 writes: {s3_writes}", 1000 * s3_writes * S3_WRITE),
        (f"S3 reads: {s3_reads}", 1000 * s3_reads * S3_READ),
        (f"S3 reads for the gallery: {GALLERY_READS}", 1000 * GALLERY_READS * S3_READ),
        (
            f"DynamoDB writes: {counted['write_units_per_image']} units",
            1000 * counted["write_units_per_image"] * WRITE_UNIT,
        ),
        (f"DynamoDB reads: about {reads} units", 1000 * reads * READ_UNIT),
        (f"SQS: {run['sqs_requests']} requests", 1000 * run["sqs_requests"] * SQS_REQUEST),
        (f"CloudWatch Logs: {logs} bytes", 1000 * logs * LOG_GB / 1e9),
        ("splitter, reporter (estimated)", SPLIT_AND_REPORT),
    ]
    on_arm = run["usd_per_1000"] * (GB_SECOND_ARM / GB_SECOND - 1)
    total = sum(usd for _, usd in lines)
    for name, usd in [*lines, ("total, x86_64", total), ("total, arm64", total + on_arm)]:
        print(f"| {name} | ${usd:.4f} |")


if __name__ == "__main__":
    main()
