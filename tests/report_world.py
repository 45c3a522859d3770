"""Jobs to report on: a ledger, a results bucket and a topic in memory, and the CSV beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from darkroom.csv_input.reader import JobRow, JobRows, read_job_rows
from darkroom.jobs import Counters, JobOptions, Run, RunState, Totals
from darkroom.report.reporter import Reporter
from darkroom.rows import RowRecord, RowRequest, RowResult, RowState
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.services import FakeClock, FakeStore, FakeTelemetry

START = 1_790_000_000.0
JOB = "jobs/products"
MADE = RowResult(
    RowState.SUCCEEDED,
    outputs=(f"{JOB}/images/000000.png",),
    provider="gemini",
    endpoint="gemini-main",
    model="gemini-3-pro-image",
    latency_ms=8_000,
    cost_micro_usd=134_000,
)


def read_csv(text: str, options: JobOptions | None = None) -> JobRows:
    data = text.encode()
    return read_job_rows(lambda start: iter([data[start:]]), options or JobOptions())


def a_run(**changes: object) -> Run:
    state = {"run": "run-1", "state": RunState.RUNNING, "started_at": START, "split_done": True}
    return running(JOB, **(state | changes))


def a_record(row: JobRow, result: RowResult = MADE, **changes: object) -> RowRecord:
    assert isinstance(row.request, RowRequest)
    record = RowRecord(
        key=row.key,
        row=row.row,
        state=result.status,
        fingerprint=row.request.fingerprint(),
        run="run-1",
        attempts=1,
        updated_at=START + 10,
        result=result,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


@dataclass
class FakeUploads:
    """Streams into the store; nothing appears when the block fails."""

    store: FakeStore

    @contextmanager
    def open(self, key: str, content_type: str) -> Iterator["FakeSink"]:
        sink = FakeSink()
        yield sink
        self.store.put(key, bytes(sink.data), content_type)


@dataclass
class FakeSink:
    data: bytearray = field(default_factory=bytearray)

    def write(self, data: bytes, /) -> None:
        self.data += data


@dataclass
class World:
    """One job: set `csv`, tell the ledger what became of its rows, then `report()`."""

    csv: str
    options: JobOptions = field(default_factory=JobOptions)
    clock: FakeClock = field(default_factory=lambda: FakeClock(START + 60))
    store: FakeStore = field(default_factory=FakeStore)
    telemetry: FakeTelemetry = field(default_factory=FakeTelemetry)
    messages: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = FakeLedger(self.clock)

    @property
    def sources(self) -> list[JobRow]:
        return list(read_csv(self.csv, self.options))

    def start(self, **changes: object) -> Run:
        """The job's next run, split."""
        run = self.ledger.start(a_run(options=self.options, **changes), 60)
        assert run is not None
        self.ledger.finish_split(run, self._totals(run), changes.get("warnings", ()))  # type: ignore[arg-type]
        return run

    def _totals(self, run: Run) -> Totals:
        held = self.ledger.get_many
        known = [s for s in self.sources if not s.skipped and isinstance(s.request, RowRequest)]
        kept = {s.key for s in known if held(run.job, [s.key])}
        return Totals(rows=len(self.sources), queued=len(known) - len(kept), resumed=len(kept))

    def settle(self, run: Run, row: JobRow, result: RowResult = MADE, **changes: object) -> None:
        """The row's outcome and the run's counters, as the ledger's one transaction leaves them."""
        record = a_record(row, result, **{"run": run.run, **changes})
        self.ledger.rows[run.job, row.key] = record
        sums = self.ledger.sums.get((run.job, run.run), Counters())
        one = Counters(
            **{result.status.value: 1},
            cost_micro_usd=result.cost_micro_usd or 0,
            transitions=1,
        )
        self.ledger.sums[run.job, run.run] = sums + one

    def reporter(self) -> Reporter:
        return Reporter(
            runs=self.ledger,
            rows=self.ledger,
            store=self.store,
            uploads=FakeUploads(self.store),
            job_rows=lambda run: read_csv(self.csv, run.options),
            notify=lambda subject, body: self.messages.append((subject, body)),
            clock=self.clock,
            telemetry=self.telemetry,
        )

    def text(self, name: str) -> str:
        return self.store.objects[f"{JOB}/{name}"][0].decode()
