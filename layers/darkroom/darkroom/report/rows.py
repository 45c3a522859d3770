"""Report rows: the rows of the CSV joined with their outcomes in the ledger."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import batched

from darkroom.csv_input.reader import JobRow
from darkroom.errors import Reason, RowRejected
from darkroom.jobs import Run
from darkroom.ports import RowLedger
from darkroom.rows import RowRecord, RowRequest, RowResult, RowState

LOOKUP_ROWS = 100  # the limit of RowLedger.get_many
_LOOKUP_THREADS = 4
_LOOKUPS_AHEAD = 8  # bounds the memory of the prefetch to 800 rows

_OUTSIDE_FILTER = "outside filter-rows"
_KEPT_OUTPUT = f"{_OUTSIDE_FILTER}; output is the result of an earlier upload for this row"
_NO_OUTCOME = (
    "the job is complete but the ledger has no outcome for this row: upload the same CSV again, "
    "and only rows like this one will be processed"
)


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
            yield _with_record(row, record, earlier=record.run != run.run)


def report_row(source: JobRow, record: RowRecord | None, run: Run) -> ReportRow:
    """The row of the CSV with exactly one terminal status, whatever the ledger contains."""
    request = source.request
    result = record.result if record is not None else None
    if source.skipped:
        return _skipped(source, record)
    if isinstance(request, RowRejected):
        return _joined(source, RowResult(RowState.FAILED, request.reason, request.detail))
    if record is None or result is None or not record.state.terminal:
        lost = RowResult(RowState.FAILED, Reason.WORKER_LOST, _NO_OUTCOME)
        return replace(_joined(source, lost), unaccounted=True)
    return _with_record(_joined(source, result), record, earlier=record.run != run.run)


def _skipped(source: JobRow, record: RowRecord | None) -> ReportRow:
    """A skipped row keeps the image of an earlier upload if the request is the same."""
    if (
        isinstance(source.request, RowRequest)
        and record is not None
        and record.result is not None
        and record.state is RowState.SUCCEEDED
        and record.fingerprint == source.request.fingerprint()
    ):
        kept = replace(record.result, status=RowState.SKIPPED, detail=_KEPT_OUTPUT)
        return _with_record(_joined(source, kept), record, earlier=True)
    return _joined(source, RowResult(RowState.SKIPPED, detail=_OUTSIDE_FILTER))


def _joined(source: JobRow, result: RowResult) -> ReportRow:
    request = source.request if isinstance(source.request, RowRequest) else None
    return ReportRow(
        source.row,
        source.key,
        result,
        cells=source.cells,
        instruction=request.instruction if request else "",
        images=request.images if request else (),
    )


def _with_record(row: ReportRow, record: RowRecord, *, earlier: bool) -> ReportRow:
    return replace(
        row,
        attempts=record.attempts,
        possible_duplicate_charges=record.possible_duplicate_charges,
        settled_at=record.updated_at or None,
        earlier=earlier,
    )
