"""Report rows: the rows of the CSV joined with their outcomes in the ledger."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import batched

from darkroom.csv_input.names import is_content_key
from darkroom.csv_input.reader import JobRow
from darkroom.errors import Reason, RowRejected
from darkroom.jobs import STOPPED_DETAIL, Run, RunState
from darkroom.ports import RowLedger
from darkroom.rows import RowRecord, RowRequest, RowResult, RowState

LOOKUP_ROWS = 100  # the limit of RowLedger.get_many
_LOOKUP_THREADS = 4
_LOOKUPS_AHEAD = 8  # bounds the memory of the prefetch to 800 rows

_OUTSIDE_FILTER = "outside filter-rows"
_KEPT_OUTPUT = f"{_OUTSIDE_FILTER}; output is the result of an earlier upload for this row"
_SKIPPED = RowResult(RowState.SKIPPED, detail=_OUTSIDE_FILTER)
_LOST = RowResult(
    RowState.FAILED,
    Reason.WORKER_LOST,
    "the job is complete but the ledger has no outcome for this row: upload the same CSV again, "
    "and only rows like this one will be processed",
)
_STOPPED = RowResult(RowState.FAILED, Reason.STOPPED, STOPPED_DETAIL)


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One row of the manifest: its result, with what the CSV and the ledger add to it."""

    row: int
    key: str
    result: RowResult
    cells: tuple[str, ...] = ()
    instruction: str = ""
    images: tuple[str, ...] = ()  # references as written in the CSV
    attempts: int = 0
    possible_duplicate_charges: int = 0
    settled_at: float | None = None  # Unix seconds; None for a row that was never queued
    earlier: bool = False  # the outcome of an earlier upload
    unaccounted: bool = False  # queued, but without an outcome in the ledger
    shown_cells: tuple[tuple[str, str], ...] = ()  # for the gallery: columns and values

    @property
    def index(self) -> str:
        """The row's name in the CSV; empty if it has none."""
        return "" if is_content_key(self.key) else self.key

    @property
    def status(self) -> RowState:
        return self.result.status

    @property
    def reason(self) -> str:
        return self.result.reason.value if self.result.reason else ""

    @property
    def edited_by_fallback(self) -> bool:
        return self.result.fallback and self.status is RowState.SUCCEEDED


def report_rows(sources: Iterable[JobRow], rows: RowLedger, run: Run) -> Iterator[ReportRow]:
    """Join the CSV with the ledger, in the order of the CSV, in constant memory, with prefetch."""
    with ThreadPoolExecutor(_LOOKUP_THREADS, "report-lookup") as pool:
        pending: deque[tuple[tuple[JobRow, ...], Future[Mapping[str, RowRecord]]]] = deque()

        def next_rows() -> Iterator[ReportRow]:
            chunk, lookup = pending.popleft()
            records = lookup.result()
            return (report_row(source, records.get(source.key), run) for source in chunk)

        for chunk in batched(sources, LOOKUP_ROWS, strict=False):
            keys = list({s.key: None for s in chunk if isinstance(s.request, RowRequest)})
            pending.append((chunk, pool.submit(rows.get_many, run.job, keys)))
            if len(pending) == _LOOKUPS_AHEAD:
                yield from next_rows()
        while pending:
            yield from next_rows()


def ledger_report_rows(rows: RowLedger, run: Run) -> Iterator[ReportRow]:
    """Rows from the ledger alone, for a CSV that is gone: no cells, no rows never queued."""
    for record in rows.all(run.job):
        if record.result is not None:
            row = ReportRow(record.row, record.key, record.result)
            yield _settled(row, record, record.result, earlier=record.run != run.run)


def report_row(source: JobRow, record: RowRecord | None, run: Run) -> ReportRow:
    """The row of the CSV with exactly one terminal status, whatever the ledger contains."""
    request = source.request
    # Skipped, unless one of the cases below applies.
    row = ReportRow(source.row, source.key, _SKIPPED, cells=source.cells)
    if isinstance(request, RowRejected):
        rejected = RowResult(RowState.FAILED, request.reason, request.detail)
        return row if source.skipped else replace(row, result=rejected)
    row = replace(row, instruction=request.instruction, images=request.images)
    result = record.result if record is not None and record.state.terminal else None
    if record is None or result is None:
        if source.skipped:
            return row
        stopped = run.state is RunState.STOPPED and run.lost > 0
        return replace(row, result=_STOPPED if stopped else _LOST, unaccounted=not stopped)
    if not source.skipped:
        return _settled(row, record, result, earlier=record.run != run.run)
    if record.state is RowState.SUCCEEDED and record.fingerprint == request.fingerprint():
        kept = replace(result, status=RowState.SKIPPED, detail=_KEPT_OUTPUT)
        return _settled(row, record, kept, earlier=True)
    return row


def _settled(row: ReportRow, record: RowRecord, result: RowResult, *, earlier: bool) -> ReportRow:
    return replace(
        row,
        result=result,
        attempts=record.attempts,
        possible_duplicate_charges=record.possible_duplicate_charges,
        settled_at=record.updated_at or None,
        earlier=earlier,
    )
