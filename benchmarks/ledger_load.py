"""Does a large job stay inside DynamoDB's limits, and does the splitter get to its end?

    python -m benchmarks.ledger_load [rows] [rows per second]

Counts the write units of every partition key in every second while the rows are edited in the order
of the CSV, with calls of 10 to 40 seconds; and the read units while they are read in order. Then
splits a generated CSV: its own CPU time, and modelled times of SQS and DynamoDB.
Limits: 1,000 WCU and 3,000 RCU a second for one partition key ("Best practices for designing and
using partition keys effectively" in the DynamoDB developer guide).
"""

import json
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from darkroom.aws.budget_table import SHARDS, shard_partition
from darkroom.aws.ledger_table import row_partition, row_shard
from darkroom.jobs import Source
from darkroom.rows import RowMessage
from darkroom.splitter import CsvUploaded, Splitter
from tests.fakes.ledger import FakeLedger
from tests.fakes.services import FakeClock, FakeTelemetry

JOB = "jobs/products"
WCU_LIMIT, RCU_LIMIT = 1_000, 3_000
CLAIM, SENT, SETTLED = 1, 2, 2  # write units of a row's item below 1 KB; two in a transaction
COUNTERS, BUDGET = 2, 2
HEARTBEAT_SECONDS = 30
BLOCK_ROWS, BLOCK_RCU = 100, 12.5  # a strong query of 100 items of 500 bytes
READ_ROWS_PER_SECOND = 100_000
SQS_SECONDS, DYNAMODB_SECONDS = 0.015, 0.008  # of a request for 10 messages, and for 100 rows
INVOCATION_SECONDS = 900.0


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
    """CsvStore with rows of about 120 bytes."""

    rows: int

    def metadata(self, _source: Source) -> Mapping[str, str]:
        return {}

    def read(self, _source: Source, offset: int = 0) -> Iterator[bytes]:
        yield from _from_offset(self._pieces(), offset)

    def _pieces(self) -> Iterator[bytes]:
        yield b"image_url,instruction\n"
        for first in range(0, self.rows, 1_000):
            lines = (
                f'https://cdn.example.com/item-{n:08d}.jpg,"Replace the background with light '
                'grey, keep the shadow of the product"\n'
                for n in range(first, min(first + 1_000, self.rows))
            )
            yield "".join(lines).encode()


def _from_offset(pieces: Iterator[bytes], left: int) -> Iterator[bytes]:
    for piece in pieces:
        if left < len(piece):
            yield piece[left:]
        left = max(0, left - len(piece))


@dataclass
class ModelledQueue:
    sent: int = 0
    seconds: float = 0.0  # of requests to AWS

    def send(self, messages: Sequence[RowMessage], **_: object) -> None:
        for message in messages:
            message.model_dump_json(exclude_defaults=True)
        self.sent += len(messages)
        self.seconds += -(-len(messages) // 10) * SQS_SECONDS + DYNAMODB_SECONDS


@dataclass
class SplitRun:
    """Invocations of the splitter until the CSV is at its end."""

    rows: int
    queue: ModelledQueue = field(default_factory=ModelledQueue)
    pending: list[CsvUploaded] = field(default_factory=list)

    def measure(self) -> dict[str, float]:
        clock = FakeClock()
        ledger = FakeLedger(clock)
        splitter = Splitter(
            runs=ledger,
            rows=ledger,
            queue=self.queue,  # type: ignore[arg-type]  # it only sends
            batch_queue=self.queue,  # type: ignore[arg-type]
            store=GeneratedCsv(self.rows),
            clock=clock,
            telemetry=FakeTelemetry(),
            continue_later=self.pending.append,
            request_report=lambda _: None,
            show_progress=lambda _: None,
            check_complete=lambda _: None,
        )
        self.pending.append(CsvUploaded("in", f"{JOB}.csv", "v1", "01", 0))
        invocations, cpu = 0, time.process_time()
        while self.pending:
            began = time.process_time() + self.queue.seconds

            def remaining(began: float = began) -> float:
                return INVOCATION_SECONDS - (time.process_time() + self.queue.seconds - began)

            splitter.split(self.pending.pop(), remaining)
            invocations += 1
        cpu = time.process_time() - cpu
        queued = ledger.current_run(JOB).totals.queued
        return {
            "split_rows": queued,
            "split_cpu_seconds": round(cpu, 1),
            "split_modelled_seconds": round(cpu + self.queue.seconds, 1),
            "split_invocations": invocations,
        }


def main(rows: int, rows_per_second: int) -> int:
    writes, reads = busiest_writes(rows, rows_per_second), busiest_reads(rows)
    split = SplitRun(rows).measure()
    print(
        json.dumps(
            {
                "rows": rows,
                "rows_per_second": rows_per_second,
                "busiest_row_partition_wcu": writes["rows"],
                "busiest_shard_wcu": writes["shard"],
                "shards": SHARDS,
                "busiest_row_partition_rcu": reads,
                **split,
            }
        )
    )
    fits = max(writes.values()) <= WCU_LIMIT and reads <= RCU_LIMIT
    return 0 if fits and split["split_rows"] == rows else 1


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [1_000_000, 500][len(given) :])))
