"""Does a large job stay inside DynamoDB's limits, and does the splitter get to its end?

    python -m benchmarks.ledger_load [rows] [rows per second] [--split-only] [--last] [--index]

The real splitter splits a generated CSV, in invocations of 900 s: its own CPU time, and modelled
times of S3, SQS and DynamoDB. With `--last` only the last invocation: the rows before count as
queued, and the number of invocations assumes that each reads as long as this one before it sends.
With `--index` rows have an index.
Then, unless `--split-only`, counts the write units of each partition key in every second while the
rows are edited in the order of the CSV, with calls of 10 to 40 seconds; and the read units while
they are read in order.
Limits: 1,000 WCU and 3,000 RCU a second for one partition key ("Best practices for designing and
using partition keys effectively" in the DynamoDB developer guide). Prices: docs/cost.md.
"""

import json
import math
import random
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from darkroom.aws.budget_table import SHARDS, shard_partition
from darkroom.aws.ledger_table import row_partition, row_shard
from darkroom.jobs import Checkpoint, Source, Totals
from darkroom.rows import RowMessage
from darkroom.splitter import STOP_BEFORE_SECONDS, CsvUploaded, Splitter
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.services import FakeClock, FakeTelemetry

JOB = "jobs/products"
WCU_LIMIT, RCU_LIMIT = 1_000, 3_000
CLAIM, SENT, SETTLED = 1, 2, 2  # write units of a row's item below 1 KB; two in a transaction
COUNTERS, BUDGET = 2, 2
HEARTBEAT_SECONDS = 30
BLOCK_ROWS, BLOCK_RCU = 100, 12.5  # a strong query of 100 items of 500 bytes
READ_ROWS_PER_SECOND = 100_000
SQS_SECONDS, DYNAMODB_SECONDS = 0.015, 0.008  # of a request for 10 messages, and for 100 rows
S3_BYTES_PER_SECOND = 50e6
INVOCATION_SECONDS, MEMORY_GB = 900.0, 1769 / 1024
GB_SECOND, SQS_REQUEST, READ_UNIT = 0.0000166667, 0.40e-6, 0.125e-6  # US dollars
MAX_MEGABYTES = 1769 * 0.8
PIECE_ROWS = 1_000
LAST_ROWS = 20_000
HEADER = b"image_url,instruction,index\n"


def busiest_writes(rows: int, rows_per_second: int) -> dict[str, int]:
    """Most write units that one partition key gets in one second, by what it holds."""
    rng = random.Random(1)
    seconds = deque[Counter[str]](Counter[str]() for _ in range(60))
    busiest = Counter[str]()

    def add(after: int, partition: str, units: int) -> None:
        seconds[after][partition] += units

    for row in range(rows):
        key, lasts = f"{row:06d}", rng.randrange(10, 40)
        item, shard = row_partition(JOB, key), shard_partition(JOB, row_shard(key))
        add(0, item, CLAIM)
        add(2, item, SENT)
        add(2, shard, BUDGET)
        for beat in range(HEARTBEAT_SECONDS, lasts, HEARTBEAT_SECONDS):
            add(2 + beat, item, 1)
        add(2 + lasts, item, SETTLED)
        add(2 + lasts, shard, COUNTERS + BUDGET)
        if (row + 1) % rows_per_second == 0:
            for partition, units in seconds.popleft().items():
                kind = partition.split("#")[1]
                busiest[kind] = max(busiest[kind], units)
            seconds.append(Counter())
    return dict(busiest)


def busiest_reads(rows: int) -> float:
    """Most read units that one partition key gets in one second, at READ_ROWS_PER_SECOND."""
    busiest = 0.0
    for start in range(0, rows, READ_ROWS_PER_SECOND):
        blocks = range(start, min(start + READ_ROWS_PER_SECOND, rows), BLOCK_ROWS)
        units = Counter(row_partition(JOB, f"{block:06d}") for block in blocks)
        busiest = max(busiest, max(units.values()) * BLOCK_RCU)
    return busiest


@dataclass
class GeneratedCsv:
    """CsvStore with rows of about 130 bytes, all of the same length."""

    rows: int
    by_index: bool = False
    seconds: float = 0.0  # of reading from S3

    def metadata(self, _source: Source) -> Mapping[str, str]:
        return {}

    def read(self, _source: Source, offset: int = 0) -> Iterator[bytes]:
        if offset < len(HEADER):
            yield HEADER[offset:]
        first, skipped = divmod(max(0, offset - len(HEADER)), len(self._line(0)))
        for start in range(first, self.rows, PIECE_ROWS):
            lines = map(self._line, range(start, min(start + PIECE_ROWS, self.rows)))
            piece = b"".join(lines)[skipped:]
            skipped = 0
            self.seconds += len(piece) / S3_BYTES_PER_SECOND
            yield piece

    def _line(self, row: int) -> bytes:
        instruction = '"Replace the background with light grey, keep the shadow of the product"'
        index = f"{row:08d}" if self.by_index else ""
        return f"https://cdn.example.com/item-{row:08d}.jpg,{instruction},{index}\n".encode()


@dataclass
class ModelledQueue:
    sent: int = 0
    first_at: float = 0.0  # CPU time of the invocation's first message
    requests: int = 0
    reads: int = 0  # of the ledger, for a hundred rows each
    seconds: float = 0.0  # of requests to AWS

    def send(self, messages: Sequence[RowMessage], **_: object) -> None:
        self.first_at = self.first_at or time.process_time()
        for message in messages:
            message.model_dump_json(exclude_defaults=True)
        self.sent += len(messages)
        self.requests += -(-len(messages) // 10)
        self.reads += 1
        self.seconds += -(-len(messages) // 10) * SQS_SECONDS + DYNAMODB_SECONDS


@dataclass
class SplitRun:
    """Invocations of the splitter until the CSV is at its end."""

    rows: int
    by_index: bool = False
    last_only: bool = False
    queue: ModelledQueue = field(default_factory=ModelledQueue)
    pending: list[CsvUploaded] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.csv = GeneratedCsv(self.rows, self.by_index)
        self.began_at = time.process_time()

    def seconds(self) -> float:
        """Of CPU, and of waiting for AWS."""
        return time.process_time() - self.began_at + self.queue.seconds + self.csv.seconds

    def measure(self) -> dict[str, float]:
        clock = FakeClock()
        ledger = FakeLedger(clock)
        splitter = Splitter(
            runs=ledger,
            rows=ledger,
            queue=self.queue,  # type: ignore[arg-type]  # it only sends
            batch_queue=self.queue,  # type: ignore[arg-type]
            store=self.csv,
            clock=clock,
            telemetry=FakeTelemetry(),
            continue_later=self.pending.append,
            request_report=lambda _: None,
            show_progress=lambda _: None,
            check_complete=lambda _: None,
        )
        self.pending.append(CsvUploaded("in", f"{JOB}.csv", "v1", "01", 0))
        if self.last_only:
            self._skip_to_the_last(ledger, self.pending[0])
        invocations = list[Invocation]()
        while self.pending:
            invocations.append(self._invoke(splitter))
        seconds, queue = self.seconds(), self.queue
        lambda_usd = seconds * MEMORY_GB * GB_SECOND
        return {
            "split_rows": ledger.current_run(JOB).totals.queued,
            "split_cpu_seconds": round(time.process_time() - self.began_at, 1),
            "split_modelled_seconds": round(seconds, 1),
            "split_invocations": self._count(invocations),
            "last_reads_seconds": round(invocations[-1].reads_seconds, 1),
            "split_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "split_usd": round(
                lambda_usd + queue.requests * SQS_REQUEST + queue.reads * READ_UNIT, 2
            ),
        }

    def _invoke(self, splitter: Splitter) -> "Invocation":
        start, cpu, sent = self.seconds(), time.process_time(), self.queue.sent
        s3, self.queue.first_at = self.csv.seconds, 0.0
        splitter.split(self.pending.pop(), lambda: start + INVOCATION_SECONDS - self.seconds())
        reads = self.queue.first_at - cpu + self.csv.seconds - s3
        return Invocation(self.seconds() - start, reads, self.queue.sent - sent)

    def _skip_to_the_last(self, ledger: FakeLedger, event: CsvUploaded) -> None:
        """As if other invocations had queued all rows but LAST_ROWS."""
        row = self.rows - LAST_ROWS
        run = ledger.start(running(JOB, run=event.run, source=event.source), 0.0)
        checkpoint = Checkpoint(row, 1, Totals(rows=row, queued=row))
        if run is None or not ledger.checkpoint(run, checkpoint, 0.0):
            raise AssertionError("the run is not the current one")

    def _count(self, invocations: "list[Invocation]") -> int:
        """With `last_only` at most: those before read less of the file before they sent rows."""
        if not self.last_only:
            return len(invocations)
        (last,) = invocations
        sends = (INVOCATION_SECONDS - STOP_BEFORE_SECONDS - last.reads_seconds) * (
            last.sent / (last.seconds - last.reads_seconds)
        )
        return 1 + math.ceil((self.rows - last.sent) / sends)


@dataclass(frozen=True)
class Invocation:
    seconds: float
    reads_seconds: float  # before it sends its first row: CPU, and S3
    sent: int


def main(rows: int, rows_per_second: int, options: set[str]) -> int:
    split = SplitRun(
        rows, "--index" in options, "--last" in options
    ).measure()  # first: the peak of memory is the process's
    figures: dict[str, float] = {"rows": rows, **split}
    fits = split["split_rows"] == rows and split["split_peak_mb"] < MAX_MEGABYTES
    if "--split-only" not in options:
        writes, reads = busiest_writes(rows, rows_per_second), busiest_reads(rows)
        fits = fits and max(writes.values()) <= WCU_LIMIT and reads <= RCU_LIMIT
        figures |= {
            "rows_per_second": rows_per_second,
            "busiest_row_partition_wcu": writes["rows"],
            "busiest_shard_wcu": writes["shard"],
            "shards": SHARDS,
            "busiest_row_partition_rcu": reads,
        }
    print(json.dumps(figures))
    return 0 if fits else 1


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:] if argument.isdecimal()]
    sizes = given + [1_000_000, 500][len(given) :]
    sys.exit(main(sizes[0], sizes[1], set(sys.argv)))
