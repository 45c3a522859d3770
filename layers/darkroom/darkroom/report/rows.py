"""A row as the report tells it: what the CSV asked for, joined with what the ledger knows."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import batched

from darkroom.csv_input.reader import JobRow
from darkroom.errors import Reason, RowRejected
from darkroom.jobs import Run
from darkroom.ports import RowLedger
from darkroom.rows import RowRecord, RowRequest, RowResult, RowState

CHUNK_ROWS = 100  # what RowLedger.get_many takes
LOOKUP_THREADS = 4
CHUNKS_AHEAD = 8  # bounds the memory of the prefetch to 800 rows

OUTSIDE_FILTER = "outside filter-rows"
_KEPT = f"{OUTSIDE_FILTER}; output is what an earlier upload made of this row"
_LOST = (
    "the job is complete but the ledger holds no outcome for this row: upload the same CSV again, "
    "and only rows like this one will be done"
)


class RowStatus(StrEnum):
    """The four ways a row can end; the manifest's `status` column."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEAD = "dead"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One line of the manifest. Costs in millionths of a US dollar, None where not known."""

    row: int
    key: str
    status: RowStatus
    cells: tuple[str, ...] = ()
    instruction: str = ""
    images: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""
    outputs: tuple[str, ...] = ()
    provider: str = ""
    endpoint: str = ""
    model: str = ""
    fallback: bool = False
    attempts: int = 0
    latency_ms: int = 0
    cost_micro_usd: int | None = 0
    possible_duplicate_charges: int = 0
    warnings: tuple[str, ...] = ()
    settled_at: float | None = None  # Unix seconds; None for a row that was never queued
    earlier: bool = False  # the outcome is an earlier upload's, kept
    unaccounted: bool = False  # queued, and the ledger has no outcome for it


def join(source: JobRow, record: RowRecord | None, run: Run) -> ReportRow:
    """What became of one row: exactly one of the four statuses, whatever the ledger holds."""
    asked = source.request
    if source.skipped:
        return _skipped(source, record)
    if isinstance(asked, RowRejected):
        rejected = _bare(source, RowStatus.FAILED)
        return replace(rejected, reason=asked.reason.value, detail=asked.detail)
    if record is None or record.result is None or not record.state.terminal:
        lost = _bare(source, RowStatus.FAILED)
        return replace(lost, reason=Reason.WORKER_LOST.value, detail=_LOST, unaccounted=True)
    status = RowStatus(record.state.value)
    told = _bare(source, status)
    return _told(told, record, record.result, earlier=record.run != run.run)


def _skipped(source: JobRow, record: RowRecord | None) -> ReportRow:
    """A skipped row keeps the picture an earlier upload made of it, if it asks for the same."""
    same = (
        isinstance(source.request, RowRequest)
        and record is not None
        and record.state is RowState.SUCCEEDED
        and record.fingerprint == source.request.fingerprint()
    )
    if same and record is not None and record.result is not None:
        line = _told(_bare(source, RowStatus.SKIPPED), record, record.result, earlier=True)
        return replace(line, detail=_KEPT)
    return replace(_bare(source, RowStatus.SKIPPED), detail=OUTSIDE_FILTER)


def _bare(source: JobRow, status: RowStatus) -> ReportRow:
    asked = source.request
    wish = asked if isinstance(asked, RowRequest) else None
    return ReportRow(
        row=source.row,
        key=source.key,
        status=status,
        cells=source.cells,
        instruction=wish.instruction if wish else "",
        images=wish.images if wish else (),
    )


def _told(line: ReportRow, record: RowRecord, result: RowResult, *, earlier: bool) -> ReportRow:
    return replace(
        line,
        reason=result.reason.value if result.reason else "",
        detail=result.detail,
        outputs=tuple(result.outputs),
        provider=result.provider or "",
        endpoint=result.endpoint or "",
        model=result.model or "",
        fallback=result.fallback,
        attempts=record.attempts,
        latency_ms=result.latency_ms,
        cost_micro_usd=result.cost_micro_usd,
        possible_duplicate_charges=record.possible_duplicate_charges,
        warnings=tuple(result.warnings),
        settled_at=record.updated_at or None,
        earlier=earlier,
    )


def report_rows(sources: Iterable[JobRow], rows: RowLedger, run: Run) -> Iterator[ReportRow]:
    """Join the CSV with the ledger: in the CSV's order, in constant memory, looking ahead."""
    with ThreadPoolExecutor(LOOKUP_THREADS, "report-lookup") as pool:
        waiting: deque[tuple[tuple[JobRow, ...], Future[Mapping[str, RowRecord]]]] = deque()
        for chunk in batched(sources, CHUNK_ROWS, strict=False):
            waiting.append((chunk, pool.submit(rows.get_many, run.job, _keys(chunk))))
            if len(waiting) == CHUNKS_AHEAD:
                yield from _joined(*waiting.popleft(), run)
        while waiting:
            yield from _joined(*waiting.popleft(), run)


def ledger_report_rows(rows: RowLedger, run: Run) -> Iterator[ReportRow]:
    """What the ledger alone knows, for a CSV that is gone: no cells, no rows never queued."""
    for record in rows.all(run.job):
        if record.result is not None:
            line = ReportRow(record.row, record.key, RowStatus(record.state.value))
            yield _told(line, record, record.result, earlier=record.run != run.run)


def _keys(chunk: tuple[JobRow, ...]) -> list[str]:
    return list({s.key: None for s in chunk if isinstance(s.request, RowRequest)})


def _joined(
    chunk: tuple[JobRow, ...], records: Future[Mapping[str, RowRecord]], run: Run
) -> Iterator[ReportRow]:
    found = records.result()
    return (join(source, found.get(source.key), run) for source in chunk)
