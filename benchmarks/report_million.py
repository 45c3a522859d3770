"""Measures the report of a large job, with the limits of DynamoDB modelled.

    .venv/bin/python -m benchmarks.report_million [--by-index] [rows] [seconds of an invocation]
    .venv/bin/python -m benchmarks.report_million --simulate ROWS ROWS_PER_SECOND

The first runs the real code: reading the CSV, the ledger's adapter, joining, manifest, aggregation
and gallery, in as many invocations as it takes. Responses to the adapter's queries are generated;
each takes as long as DynamoDB's, and waits while its partition key is above 3,000 read units a
second. With `--by-index` the rows have an `index` that counts, so that neighbours are read by one
query; without, they are identified by their content, read one by one, and have all succeeded. Parts
of uploads go to files; the thumbnails are 9 KB of noise.

The second runs the reporter alone over generated rows on a virtual clock, which each lookup
advances by its time at the given rate, in invocations of 900 s.

Prints one JSON object; fails above 300 MB.
"""

import argparse
import io
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import batched
from pathlib import Path
from typing import Any, cast

import boto3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders

from darkroom.aws.ledger_table import ROWS, LedgerTable
from darkroom.csv_input.fields import read_columns
from darkroom.csv_input.reader import JobRow, JobRows, read_job_rows
from darkroom.errors import Reason
from darkroom.jobs import Counters, JobOptions, ResultPaths, Run, RunState, Source
from darkroom.report.reporter import Reporter, ReportOutcome
from darkroom.rows import RowRecord, RowRequest, RowResult, RowState
from tests.fakes.services import FakeClock, FakeStore, FakeTelemetry

JOB = "jobs/million"
QUERY_SECONDS = 0.012  # one query of 100 items
BATCH_SECONDS = 0.025  # one BatchGetItem of 100 keys
READ_UNITS_PER_SECOND = 3_000  # of a partition key: DynamoDB developer guide, partition key design
READ_UNIT_BYTES = 4_096  # of a strongly consistent read, per request: the same guide
LAMBDA_SECONDS = 900.0
THUMB = b"RIFF\x00\x00\x00\x00WEBP" + os.urandom(9_000)
MAX_MEGABYTES = 300
HEADER = ("image_url", "instruction", "sku", "price")
_KEY, _ROW, _AT = "@key@", 987_654_321, 1_234_567_890.5  # placeholders in an item's JSON


def record(key: str, row: int, kind: int, at: float) -> RowRecord:
    """Every row is settled; `kind` is the row modulo 1,000: 1 % failed, 0.1 % dead."""
    provenance: dict[str, Any] = {
        "provider": "gemini",
        "endpoint": f"gemini-{kind % 3}",
        "model": "gemini-3-pro-image",
    }
    if kind % 100 == 7:
        detail = "blocked by a safety filter"
        result = RowResult(RowState.FAILED, Reason.REFUSED, detail, **provenance)
    elif kind == 11:
        result = RowResult(RowState.DEAD, Reason.UNAVAILABLE, "HTTP 503", **provenance)
    else:
        result = RowResult(
            RowState.SUCCEEDED,
            outputs=(f"{JOB}/images/{key}.png",),
            latency_ms=5_000 + kind * 9,
            cost_micro_usd=134_000,
            **provenance,
        )
    return RowRecord(
        key, row, result.status, "a" * 24, "run-1", attempts=1, updated_at=at, result=result
    )


def _templates() -> list[str]:
    """The JSON of an item for each kind of row, with placeholders."""
    items = (
        ROWS.to_item(record(_KEY, _ROW, kind, _AT)) | {"item": {"S": f"row#{_KEY}"}}
        for kind in range(1_000)
    )
    return [json.dumps(item | {"job": {"S": f"{JOB}#rows#17"}}) for item in items]


class Capacity:
    """Read units by partition key; a request waits until its key has units left in this second."""

    def __init__(self, sleep: Callable[[float], None], now: Callable[[], float]) -> None:
        self._sleep, self._now = sleep, now
        self._lock = threading.Lock()
        self._used: Counter[tuple[str, int]] = Counter()  # by partition key and second
        self.units = 0
        self.waits = 0

    def read(self, partition: str, size: int) -> None:
        units = math.ceil(size / READ_UNIT_BYTES)
        with self._lock:
            second = int(self._now())
            while self._used[partition, second] + units > READ_UNITS_PER_SECOND:
                second += 1
                self.waits += 1
            self._used[partition, second] += units
            self.units += units
            wait = second - self._now()
        if wait > 0:
            self._sleep(wait)

    def busiest(self) -> int:
        """The most units that one partition key gave in a second."""
        return max(self._used.values(), default=0)


def modelled_ledger(rows: int, capacity: Capacity) -> LedgerTable:
    """The real adapter on a client that answers every query with generated items."""
    templates = _templates()
    client = boto3.client(
        "dynamodb", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
    )

    def respond(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        values = json.loads(cast("bytes", request.body))["ExpressionAttributeValues"]
        first, last = (int(values[name]["S"].removeprefix("row#")) for name in (":first", ":last"))
        items = [
            templates[row % 1_000]
            .replace(_KEY, f"{row:06d}")
            .replace(str(_ROW), str(row))
            .replace(str(_AT), str(1_790_000_000 + row * 0.3))
            for row in range(first, min(last + 1, rows))
        ]
        body = f'{{"Items": [{", ".join(items)}], "Count": {len(items)}}}'.encode()
        capacity.read(values[":job"]["S"], sum(map(len, items)))
        time.sleep(QUERY_SECONDS)
        return AWSResponse(request.url, 200, HTTPHeaders(), _Body(body))

    def respond_to_batch(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        """Rows identified by their content: what is said about them does not depend on the key."""
        (keys,) = json.loads(cast("bytes", request.body))["RequestItems"].values()
        items = []
        for key in keys["Keys"]:
            name = key["item"]["S"].removeprefix("row#")
            item = templates[0].replace(_KEY, name).replace(str(_ROW), "0")
            items.append(item.replace(str(_AT), "1790000000.5"))
            capacity.read(key["job"]["S"], len(item))
        body = f'{{"Responses": {{"ledger": [{", ".join(items)}]}}, "UnprocessedKeys": {{}}}}'
        time.sleep(BATCH_SECONDS)
        return AWSResponse(request.url, 200, HTTPHeaders(), _Body(body.encode()))

    events = client.meta.events
    events.register("before-send.dynamodb.Query", respond)  # type: ignore[arg-type]
    events.register("before-send.dynamodb.BatchGetItem", respond_to_batch)  # type: ignore[arg-type]
    return LedgerTable(client, "ledger")


class _Body(io.BytesIO):
    def stream(self) -> Iterator[bytes]:
        yield self.read()


@dataclass
class OneRun:
    """RunLedger and RowLedger of one run whose rows are all settled."""

    rows: int
    lookup: Callable[[str, Sequence[str]], Mapping[str, RowRecord]]
    by_index: bool = True
    done: bool = False

    def get_many(self, job: str, keys: Sequence[str]) -> Mapping[str, RowRecord]:
        return self.lookup(job, keys)

    def current(self, job: str) -> Run:
        source = Source("in", f"{job}.csv", "v1")
        return Run(job, "run-1", RunState.RUNNING, source, JobOptions(), 0.0, split_done=True)

    def begin_report(self, _run: Run, _lease_seconds: float, _owner: str = "") -> bool:
        return not self.done

    def finish_report(self, _run: Run, _finished_at: float) -> bool:
        self.done = True
        return True

    def spent_earlier(self, _run: Run) -> int:
        return 0

    def counters(self, _job: str, _run: str) -> Counters:
        if not self.by_index:
            return Counters(succeeded=self.rows)
        dead, failed = len(range(11, self.rows, 1_000)), len(range(7, self.rows, 100))
        return Counters(succeeded=self.rows - failed - dead, failed=failed, dead=dead)


@dataclass
class Disk(FakeStore):
    """Results bucket: parts of uploads go to files in `folder`, of other objects the last stays."""

    folder: Path = field(kw_only=True)
    written: dict[str, int] = field(default_factory=dict)

    def get(self, key: str) -> bytes | None:
        return THUMB if "/thumbs/" in key else super().get(key)

    def upload_part(self, key: str, upload: str, number: int, body: bytes) -> str:
        (self.folder / f"{upload}-{number:05d}").write_bytes(body)
        self.written[key] = self.written.get(key, 0) + len(body)
        return str(number)

    def complete_upload(
        self, key: str, upload: str, etags: Sequence[str], *, replaces: str | None
    ) -> bool:
        assert replaces is None
        assert self.uploads.pop(upload).key == key
        return bool(etags)

    def lines(self, upload: str) -> int:
        parts = sorted(self.folder.glob(f"{upload}-*"))
        return sum(part.read_bytes().count(b"\n") for part in parts)


def generated_csv(count: int, *, by_index: bool) -> JobRows:
    def pieces() -> Iterator[bytes]:
        yield ",".join((*HEADER, *(["index"] if by_index else []))).encode() + b"\n"
        for rows in batched(range(count), 1_000, strict=False):
            lines = (
                f"https://cdn.example.com/catalogue/item-{n:07d}.jpg,"
                '"Replace the background with light grey, keep the shadow",'
                f"SKU-{n:07d},-{n % 90}.5" + (f",{n:06d}\n" if by_index else "\n")
                for n in rows
            )
            yield "".join(lines).encode()

    def from_offset(left: int) -> Iterator[bytes]:
        for piece in pieces():
            if left < len(piece):
                yield piece[left:]
            left = max(0, left - len(piece))

    return read_job_rows(from_offset, JobOptions())


@dataclass
class GeneratedRows:
    """Stands for JobRows: rows without the work of reading a CSV."""

    count: int
    header: tuple[str, ...] = HEADER
    columns = read_columns(HEADER, JobOptions())

    def from_row(self, row: int) -> Iterator[JobRow]:
        request = RowRequest(instruction="Replace the background", images=("item.jpg",))
        cells = ("https://cdn.example.com/catalogue/item.jpg", "Replace the background", "S", "5")
        for number in range(row, self.count):
            yield JobRow(number, f"{number:06d}", cells, request, False)


def peak_mb() -> int:
    """Peak memory of this process. getrusage would include the parent's, inherited until exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


@dataclass
class Measured:
    rows: int
    invocations: int
    seconds: float
    outcome: ReportOutcome
    disk: Disk
    errors: list[str]


def run_report(
    ledger: OneRun,
    job_rows: Callable[[Run], Any],
    folder: Path,
    now: Callable[[], float],
    invocation_seconds: float,
) -> Measured:
    """The report in as many invocations as it takes."""
    disk, telemetry, started = Disk(folder=folder), FakeTelemetry(), now()
    reporter = Reporter(
        runs=ledger,  # type: ignore[arg-type]  # what the reporter calls of it
        rows=ledger,  # type: ignore[arg-type]
        store=disk,
        job_rows=job_rows,
        notify=lambda *_: None,
        continue_later=lambda *_: None,
        clock=FakeClock(),
        telemetry=telemetry,
    )
    outcome, invocations = ReportOutcome.CONTINUES, 0
    while outcome is ReportOutcome.CONTINUES:
        invocations += 1
        deadline = now() + invocation_seconds
        outcome = reporter.report(JOB, "owner", lambda end=deadline: end - now())  # type: ignore[misc]
    seconds = now() - started
    return Measured(ledger.rows, invocations, seconds, outcome, disk, telemetry.logged("error"))


def measure(
    rows: int, invocation_seconds: float, folder: Path, *, by_index: bool
) -> dict[str, Any]:
    before, cpu = peak_mb(), time.process_time()
    capacity = Capacity(time.sleep, time.monotonic)
    ledger = OneRun(rows, modelled_ledger(rows, capacity).get_many, by_index)
    csv = generated_csv(rows, by_index=by_index)
    measured = run_report(ledger, lambda _: csv, folder, time.monotonic, invocation_seconds)
    cpu = time.process_time() - cpu
    return {"mode": "measured", "cpu_seconds": round(cpu, 1), "rss_mb_before": before} | described(
        measured, capacity
    )


def simulate(rows: int, rows_per_second: float, folder: Path) -> dict[str, Any]:
    """Lookups take the time that everything takes in `measure`."""
    clock, before = FakeClock(0.0), peak_mb()
    capacity = Capacity(clock.sleep, clock.now)
    records = [record(_KEY, 0, kind, 0.0) for kind in range(1_000)]
    size = len(_templates()[0])

    def lookup(job: str, keys: Sequence[str]) -> Mapping[str, RowRecord]:
        # As in LedgerTable: a hundred neighbouring rows are one query of one partition key.
        capacity.read(f"{job}#{int(keys[0]) // 100 % 64}", size * len(keys))
        clock.time += len(keys) / rows_per_second
        return {
            key: replace(records[int(key) % 1_000], key=key, updated_at=clock.time) for key in keys
        }

    source = GeneratedRows(rows)
    measured = run_report(OneRun(rows, lookup), lambda _: source, folder, clock.now, LAMBDA_SECONDS)
    return {"mode": "simulated", "rss_mb_before": before} | described(measured, capacity)


def described(measured: Measured, capacity: Capacity) -> dict[str, Any]:
    disk = measured.disk
    states = [
        len(body) for key, (body, _, _) in disk.objects.items() if key.startswith(f"{JOB}/reports/")
    ]
    return {
        "rows": measured.rows,
        "outcome": measured.outcome.value,
        "invocations": measured.invocations,
        "seconds": round(measured.seconds, 1),
        "rows_per_second": round(measured.rows / measured.seconds),
        "peak_rss_mb": peak_mb(),
        "read_units": capacity.units,
        "read_units_per_row": round(capacity.units / measured.rows, 3),
        "busiest_key_read_units_per_second": capacity.busiest(),
        "waits_for_capacity": capacity.waits,
        "manifest_lines": disk.lines("upload-0") - 1,
        "manifest_mb": round(disk.written[ResultPaths(JOB).manifest] / 1e6, 1),
        "manifest_parts": len(list(disk.folder.glob("upload-0-*"))),
        "pages": sum(key.endswith(".html") for key in disk.written),
        "states_left": sum(states),
        "errors": measured.errors,
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000)
    parser.add_argument("invocation_seconds", type=float, nargs="?", default=LAMBDA_SECONDS)
    parser.add_argument("--by-index", action="store_true", help="rows have an index that counts")
    parser.add_argument("--simulate", type=float, nargs=2, metavar=("ROWS", "ROWS_PER_SECOND"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.simulate:
            result = simulate(int(arguments.simulate[0]), arguments.simulate[1], Path(name))
        else:
            seconds, by_index = arguments.invocation_seconds, arguments.by_index
            result = measure(arguments.rows, seconds, Path(name), by_index=by_index)
    print(json.dumps(result))
    complete = result["outcome"] == "made" and result["manifest_lines"] == result["rows"]
    return 0 if complete and not result["errors"] and result["peak_rss_mb"] < MAX_MEGABYTES else 1


if __name__ == "__main__":
    sys.exit(main())
