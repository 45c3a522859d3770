"""Builds one version of a job's report as staged objects, over as many invocations as it takes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import batched, islice

from darkroom.csv_input.reader import JobRows
from darkroom.errors import JobRejected
from darkroom.images.containers import embedded_thumbnail
from darkroom.jobs import ResultPaths, Run
from darkroom.ports import Clock, ObjectStore, RowLedger, Telemetry
from darkroom.report.gallery import Thumbs, gallery_pages, problems_page, replaced_page
from darkroom.report.manifest import FailedRowsFormat, ManifestFormat
from darkroom.report.rows import ReportRow, ledger_report_rows, report_rows
from darkroom.report.sampling import GallerySelection
from darkroom.report.staging import StagedObject, Staging
from darkroom.report.state import ReportState
from darkroom.report.summary import JobSummary

# What must be left of an invocation's time: to save the state, and to make the gallery (50 pages).
STOP_BEFORE_SECONDS = 60.0
GALLERY_SECONDS = 240.0
_BATCH_ROWS = 500  # between two looks at the clock
_THUMB_THREADS = 16
CSV = "text/csv; charset=utf-8"
HTML = "text/html; charset=utf-8"
JSON = "application/json"
_WITHOUT_CSV = (
    "This report lists the rows in the ledger, without the columns of the CSV; rows that were "
    "never queued (bad input, outside filter-rows) are missing."
)


class OutOfTime(Exception):
    """The state is saved: the report continues in another invocation."""


@dataclass(slots=True)
class ReportBuilder:
    """`key` is where the state is saved."""

    run: Run
    key: str
    staging: Staging
    store: ObjectStore
    rows: RowLedger
    job_rows: Callable[[Run], JobRows]
    clock: Clock
    telemetry: Telemetry
    remaining_seconds: Callable[[], float]
    state: ReportState = field(init=False)
    _pages: list[StagedObject] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = self._saved() or self._new()

    def _saved(self) -> ReportState | None:
        body = self.store.get(self.key)
        return ReportState.from_json(body, self.clock.now()) if body else None

    def _new(self) -> ReportState:
        manifest = self.staging.create(ResultPaths(self.run.job).manifest, CSV)
        return ReportState(self.clock.now(), manifest, GallerySelection(self.run.job))

    def read_rows(self) -> ReportState:
        """Every row goes to the manifest, the aggregate and the gallery's selection, in one pass.

        Raises OutOfTime.
        """
        state = self.state
        if not state.rows_done and not state.without_csv:
            try:
                self._read_csv(self.job_rows(self.run))
            except JobRejected as error:
                # It was readable when the job began: since then it, or its key, was deleted.
                self.telemetry.warning("csv_gone_before_report", job=self.run.job, why=str(error))
                self.discard()
                self.state = state = self._new()
                state.without_csv = True
                state.aggregate.notes.append(f"{error} {_WITHOUT_CSV}")
        if not state.rows_done and state.without_csv:
            rows = ledger_report_rows(self.rows, self.run)
            self._stream(islice(rows, state.row, None), ManifestFormat(()), None)
        if self.remaining_seconds() < GALLERY_SECONDS:
            self._save_for_later()
        return self.state

    def _read_csv(self, source: JobRows) -> None:
        """Raises JobRejected."""
        if self.state.failed_rows is None:
            key = ResultPaths(self.run.job).failed_rows
            self.state.failed_rows = self.staging.create(key, CSV)
            self.state.selection.describe_columns(source.columns)
        rows = report_rows(source.from_row(self.state.row), self.rows, self.run)
        has_template = source.columns.template is not None
        manifest = ManifestFormat(source.header, instructions=has_template)
        self._stream(rows, manifest, FailedRowsFormat(source.columns))

    def _stream(
        self, rows: Iterator[ReportRow], manifest: ManifestFormat, failed: FailedRowsFormat | None
    ) -> None:
        state, staging = self.state, self.staging
        if state.row == 0:
            staging.write(state.manifest, manifest.header())
            if failed and state.failed_rows:
                staging.write(state.failed_rows, failed.header())
        for batch in batched(rows, _BATCH_ROWS, strict=False):
            for row in batch:
                state.aggregate.add(row)
                state.selection.add(row)
            staging.write(state.manifest, b"".join(map(manifest.line, batch)))
            unsuccessful = [row for row in batch if row.status.unsuccessful]
            if failed and state.failed_rows:
                staging.write(state.failed_rows, b"".join(map(failed.line, unsuccessful)))
            state.row += len(batch)
            if self.remaining_seconds() < STOP_BEFORE_SECONDS:
                self._save_for_later()
        state.rows_done = True
        for staged in state.staged():
            staging.finish(staged)

    def _save_for_later(self) -> None:
        self.state.continuations += 1
        self.store.put(self.key, self.state.to_json(), JSON)
        raise OutOfTime

    def forget(self) -> None:
        """The saved state is of no more use: it is replaced by an empty object."""
        if self.state.continuations:
            self.store.put(self.key, b"", JSON)

    def discard(self) -> None:
        """Remove what was staged, and the saved state."""
        for staged in (*self.state.staged(), *self._pages):
            self.staging.discard(staged)
        self.forget()

    def stage_pages(
        self, summary: JobSummary, selected: Sequence[ReportRow], surplus: Sequence[str]
    ) -> list[StagedObject]:
        """The gallery; `surplus` are keys of an earlier, longer gallery."""
        note = self.state.selection.note()
        with ThreadPoolExecutor(_THUMB_THREADS, "report-thumbs") as pool:

            def load(rows: Sequence[ReportRow]) -> list[Thumbs]:
                return list(pool.map(self._thumbs, rows))

            pages = gallery_pages(summary, selected, note, load)
            for key, html in zip(summary.results.pages, pages, strict=True):
                self._pages.append(self.staging.create_whole(key, html, HTML))
        if summary.results.problems:
            html = problems_page(summary, selected)
            self._pages.append(self.staging.create_whole(summary.results.problems, html, HTML))
        replacement = replaced_page(self.run.job)
        self._pages += [self.staging.create_whole(key, replacement, HTML) for key in surplus]
        return self._pages

    def _thumbs(self, row: ReportRow) -> Thumbs:
        if not row.result.outputs:
            return Thumbs()  # stored thumbnails, if any, belong to an earlier upload's row
        paths, image = ResultPaths(self.run.job), row.result.outputs[0]
        after, key = self.store.get(paths.thumb(image, "after")), paths.thumb(image, "before")
        preview = self.store.get(key) if row.images else None
        if preview is None:
            return Thumbs(after=after)
        return Thumbs(embedded_thumbnail(preview) or preview, after, key)
