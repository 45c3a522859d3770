"""The harness of the report's tests: a CSV, a ledger, a results bucket and a topic, in memory."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from darkroom.csv_input.reader import JobRow, JobRows, read_job_rows
from darkroom.jobs import Counters, JobOptions, Run, RunState, Totals
from darkroom.report.reporter import Reporter, ReportOutcome
from darkroom.report.rows import ReportRow
from darkroom.rows import RowRecord, RowRequest, RowResult, RowState
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.services import FakeClock, FakeStore, FakeTelemetry

START = 1_790_000_000.0
JOB = "jobs/products"
EDITED = RowResult(
    RowState.SUCCEEDED,
    outputs=(f"{JOB}/images/000000.png",),
    provider="gemini",
    endpoint="gemini-main",
    model="gemini-3-pro-image",
    latency_ms=8_000,
    cost_micro_usd=134_000,
)
_RESULT_FIELDS = {f.name for f in fields(RowResult)}


def report_row(row: int = 0, status: RowState = RowState.SUCCEEDED, **values: Any) -> ReportRow:
    """`values` for the row and for its result alike."""
    result = {name: values.pop(name) for name in _RESULT_FIELDS & set(values)}
    return ReportRow(row, f"{row:06d}", RowResult(status, **result), **values)


def read_csv(text: str, options: JobOptions | None = None) -> JobRows:
    data = text.encode()
    return read_job_rows(lambda start: iter([data[start:]]), options or JobOptions())


def split_run(**changes: object) -> Run:
    state = {"run": "run-1", "state": RunState.RUNNING, "started_at": START, "split_done": True}
    return running(JOB, **(state | changes))


@dataclass
class ReportHarness:
    """One job: give it a `csv`, `start()` a run, `settle()` its rows, then `report()`."""

    csv: str
    options: JobOptions = field(default_factory=JobOptions)
    clock: FakeClock = field(default_factory=lambda: FakeClock(START + 60))
    store: FakeStore = field(default_factory=FakeStore)
    telemetry: FakeTelemetry = field(default_factory=FakeTelemetry)
    notifications: list[tuple[str, str]] = field(default_factory=list)  # subject and body
    continued: list[tuple[str, str]] = field(default_factory=list)  # job and owner

    def __post_init__(self) -> None:
        self.ledger = FakeLedger(self.clock)

    @property
    def job_rows(self) -> list[JobRow]:
        return list(read_csv(self.csv, self.options))

    @property
    def run(self) -> Run:
        return self.ledger.current_run(JOB)

    def start(self, warnings: tuple[str, ...] = (), **changes: object) -> Run:
        """Starts the job's next run and ends its split."""
        run = self.ledger.start(split_run(options=self.options, **changes), 60)
        assert run is not None
        valid = [
            row for row in self.job_rows if not row.skipped and isinstance(row.request, RowRequest)
        ]
        kept = sum(bool(self.ledger.get_many(JOB, [row.key])) for row in valid)
        totals = Totals(rows=len(self.job_rows), queued=len(valid) - kept, resumed=kept)
        self.ledger.finish_split(run, totals, warnings)
        return run

    def reject_file(self, reason: str, **changes: object) -> None:
        run = self.ledger.start(split_run(split_done=False, **changes), 60)
        assert run is not None
        self.ledger.fail(run, reason)

    def settle(self, row: JobRow, result: RowResult = EDITED, **changes: object) -> None:
        """Writes a row's record and the run's counters, like the ledger's one transaction."""
        assert isinstance(row.request, RowRequest)
        record = RowRecord(
            key=row.key,
            row=row.row,
            state=result.status,
            fingerprint=row.request.fingerprint(),
            run=self.run.run,
            attempts=1,
            updated_at=START + 10,
            result=result,
        )
        self.ledger.rows[JOB, row.key] = replace(record, **changes)  # type: ignore[arg-type]
        cost = result.cost_micro_usd or 0
        self.add_to_counters(**{result.status.value: 1}, cost_micro_usd=cost, transitions=1)

    def add_to_counters(self, **deltas: int) -> None:
        run = self.run.run
        before = self.ledger.sums.get((JOB, run), Counters())
        self.ledger.sums[JOB, run] = before + Counters(**deltas)

    def report(
        self,
        owner: str = "",
        job: str = JOB,
        remaining_seconds: Callable[[], float] = lambda: 900.0,
        **overrides: Any,
    ) -> ReportOutcome:
        """`overrides` for the fields of Reporter."""
        reporter = replace(self._reporter(), **overrides)
        return reporter.report(job, owner, remaining_seconds)

    def progress(self, job: str = JOB) -> ReportOutcome:
        return self._reporter().progress(job)

    def _reporter(self) -> Reporter:
        return Reporter(
            runs=self.ledger,
            rows=self.ledger,
            store=self.store,
            job_rows=lambda run: read_csv(self.csv, run.options),
            notify=lambda subject, body: self.notifications.append((subject, body)),
            continue_later=lambda *event: self.continued.append(event),
            clock=self.clock,
            telemetry=self.telemetry,
        )

    def text(self, name: str) -> str:
        return self.store.objects[f"{JOB}/{name}"][0].decode()

    @property
    def manifest(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.text("manifest.csv"))))

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads(self.text("job.json"))
        return summary
