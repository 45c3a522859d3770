"""Measures the time and memory of a report on a million ledger rows.

    .venv/bin/python -m benchmarks.report_million [rows]

Reading the CSV, joining, manifest, aggregation and gallery are the real code. The records are
generated, but each lookup of 100 waits as long as DynamoDB takes, and the real ledger adapter
parses a canned response of 100 items, so that its CPU counts. The manifest goes to a file; the
thumbnails are 9 KB of noise. Prints one JSON object; fails above 300 MB.
"""

import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import batched
from pathlib import Path

import boto3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders

from darkroom.aws.ledger_table import ROWS, LedgerTable
from darkroom.csv_input.reader import JobRows, read_job_rows
from darkroom.errors import Reason
from darkroom.jobs import Counters, JobOptions, ResultPaths, Run, RunState, Source
from darkroom.report.reporter import Reporter, ReportOutcome
from darkroom.report.rows import LOOKUP_ROWS
from darkroom.rows import RowRecord, RowResult, RowState
from tests.fakes.services import FakeClock, FakeStore, FakeTelemetry

JOB = "jobs/million"
LOOKUP_SECONDS = 0.015  # one BatchGetItem of 100 items
THUMB = b"RIFF\x00\x00\x00\x00WEBP" + os.urandom(9_000)
MAX_MEGABYTES = 300


def record(key: str) -> RowRecord:
    """Every row is settled: 1 % failed, 0.1 % dead."""
    row = int(key)
    if row % 100 == 7:
        result = RowResult(RowState.FAILED, Reason.REFUSED, "blocked by a safety filter")
    elif row % 1_000 == 11:
        result = RowResult(RowState.DEAD, Reason.UNAVAILABLE, "HTTP 503")
    else:
        result = RowResult(
            RowState.SUCCEEDED,
            outputs=(f"{JOB}/images/{key}.png",),
            provider="gemini",
            endpoint=f"gemini-{row % 3}",
            model="gemini-3-pro-image",
            latency_ms=5_000 + row % 9_000,
            cost_micro_usd=134_000,
        )
    at = 1_790_000_000 + row * 0.3
    return RowRecord(
        key, row, result.status, "a" * 24, "run-1", attempts=1, updated_at=at, result=result
    )


@dataclass
class GeneratedLedger:
    """RowLedger and RunLedger of one run."""

    rows: int
    canned: LedgerTable
    done: bool = False

    def get_many(self, job: str, keys: Sequence[str]) -> Mapping[str, RowRecord]:
        time.sleep(LOOKUP_SECONDS)
        self.canned.get_many(job, keys)
        return {key: record(key) for key in keys}

    def current(self, job: str) -> Run:
        source = Source("in", f"{job}.csv", "v1")
        return Run(job, "run-1", RunState.RUNNING, source, JobOptions(), 0.0, split_done=True)

    def begin_report(self, _run: Run, _lease_seconds: float, _owner: str = "") -> bool:
        return not self.done

    def finish_report(self, _run: Run, _finished_at: float) -> bool:
        self.done = True
        return True

    def counters(self, _job: str, _run: str) -> Counters:
        dead, failed = len(range(11, self.rows, 1_000)), len(range(7, self.rows, 100))
        return Counters(succeeded=self.rows - failed - dead, failed=failed, dead=dead)


def canned_ledger() -> LedgerTable:
    """The real adapter, whose client responds to every lookup with the same 100 items."""
    items = [
        ROWS.to_item(record(key)) | {"job": {"S": JOB}, "item": {"S": f"row#{key}"}}
        for key in (f"{row:06d}" for row in range(LOOKUP_ROWS))
    ]
    body = json.dumps({"Items": items, "Count": len(items)}).encode()
    client = boto3.client(
        "dynamodb", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
    )

    def respond(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        return AWSResponse(request.url, 200, HTTPHeaders(), _Body(body))

    client.meta.events.register("before-send.dynamodb.Query", respond)  # type: ignore[arg-type]
    return LedgerTable(client, "ledger")


class _Body(io.BytesIO):
    def stream(self) -> Iterator[bytes]:
        yield self.read()


@dataclass
class Disk(FakeStore):
    """Results bucket and uploads: parts go to files in `folder`, only sizes are kept in memory."""

    folder: Path = field(kw_only=True)
    written: dict[str, int] = field(default_factory=dict)

    def put(self, key: str, body: bytes, *_: object, **__: object) -> bool:
        self.written[key] = len(body)
        return True

    def get(self, key: str) -> bytes | None:
        return THUMB if "/thumbs/" in key else None

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


def generated_csv(count: int) -> JobRows:
    def pieces() -> Iterator[bytes]:
        yield b"image_url,instruction,sku,price\n"
        for rows in batched(range(count), 1_000, strict=False):
            lines = (
                f"https://cdn.example.com/catalogue/item-{n:07d}.jpg,"
                '"Replace the background with light grey, keep the shadow",'
                f"SKU-{n:07d},-{n % 90}.5\n"
                for n in rows
            )
            yield "".join(lines).encode()

    def from_offset(left: int) -> Iterator[bytes]:
        for piece in pieces():
            if left < len(piece):
                yield piece[left:]
            left = max(0, left - len(piece))

    return read_job_rows(from_offset, JobOptions())


def peak_mb() -> int:
    """Peak memory of this process. getrusage would include the parent's, inherited until exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def main(count: int) -> int:
    before = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        ledger, disk = GeneratedLedger(count, canned_ledger()), Disk(folder=Path(folder))
        telemetry = FakeTelemetry()
        reporter = Reporter(
            runs=ledger,  # type: ignore[arg-type]
            rows=ledger,  # type: ignore[arg-type]
            store=disk,
            job_rows=lambda _: generated_csv(count),
            notify=lambda *_: None,
            continue_later=lambda *_: None,
            clock=FakeClock(),
            telemetry=telemetry,
        )
        started, cpu = time.monotonic(), time.process_time()
        outcome = reporter.report(JOB)
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        lines = disk.lines("upload-0") - 1
    peak, errors = peak_mb(), telemetry.logged("error")
    measured = {
        "rows": count,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "rows_per_second": round(count / seconds),
        "peak_rss_mb": peak,
        "rss_mb_before": before,
        "manifest_lines": lines,
        "manifest_mb": round(disk.written[ResultPaths(JOB).manifest] / 1e6, 1),
        "pages": sum(key.endswith(".html") for key in disk.written),
        "errors": errors,
    }
    print(json.dumps(measured))
    passed = outcome is ReportOutcome.MADE and lines == count and not errors
    return 0 if passed and peak < MAX_MEGABYTES else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
