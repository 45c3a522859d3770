"""Makes the report of a job: manifest, gallery, job.json, then one notification.

In this order, so that a job.json with the run's id means that everything else is there.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from pydantic import ValidationError

from darkroom.csv_input.reader import JobRows
from darkroom.errors import DarkroomError, JobRejected, ServiceUnavailable
from darkroom.jobs import ResultPaths, Run, RunState
from darkroom.ports import Clock, ObjectStore, RowLedger, RunLedger, Telemetry
from darkroom.report.gallery import (
    Thumbs,
    gallery_pages,
    page_count,
    rejected_page,
    replaced_page,
)
from darkroom.report.manifest import ManifestFormat
from darkroom.report.notification import notification
from darkroom.report.rows import ReportRow, ledger_report_rows, report_rows
from darkroom.report.sampling import GallerySelection
from darkroom.report.summary import Aggregate, JobSummary, rejected_summary
from darkroom.rows import SETTLED_STATUSES

# Just over the reporter's time-out (900 s): the lease of a reporter that was killed ends before
# Lambda's second retry.
_LEASE_SECONDS = 915.0
_THUMB_THREADS = 16
_MAX_REBUILDS = 3
_CSV = "text/csv; charset=utf-8"
_HTML = "text/html; charset=utf-8"
_JSON = "application/json"
_WITHOUT_CSV = (
    "This report lists the rows in the ledger, without the columns of the CSV; rows that were "
    "never queued (bad input, outside filter-rows) are missing."
)


class ReportOutcome(StrEnum):
    MADE = "made"
    NOT_READY = "not_ready"  # rows are unsettled, or another reporter is active
    ALREADY_MADE = "already_made"
    NO_SUCH_JOB = "no_such_job"


class _Superseded(DarkroomError):
    """A newer upload has taken over the ledger's rows: the report would mix the two runs."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """`job_rows` reads a run's pinned CSV again; `notify` takes a subject and a body."""

    runs: RunLedger
    rows: RowLedger
    store: ObjectStore
    job_rows: Callable[[Run], JobRows]
    notify: Callable[[str, str], None]
    clock: Clock
    telemetry: Telemetry

    def report(self, job: str, owner: str = "") -> ReportOutcome:
        """Make the report if the job is complete and no other reporter is making it.

        `owner` identifies the invocation: Lambda retries a crashed one under the same request id.
        Rows redriven in the meantime make the report stale: it is made again once they are
        settled, here or by the reporter that their last editor starts. Raises ServiceUnavailable,
        so that Lambda retries, if rows kept being redriven.
        """
        for _ in range(_MAX_REBUILDS):
            run = self.runs.current(job)
            if run is None:
                return ReportOutcome.NO_SUCH_JOB
            if run.state is RunState.FAILED:
                return self._report_rejected_file(run)
            if not self.runs.begin_report(run, _LEASE_SECONDS, owner):
                made = run.finished_at is not None
                return ReportOutcome.ALREADY_MADE if made else ReportOutcome.NOT_READY
            try:
                summary = self._make(run)
            except _Superseded:
                continue
            if self.runs.finish_report(run, summary.finished_at.timestamp()):
                self._log_and_notify(summary)
                return ReportOutcome.MADE
        if self.runs.report_due(job):
            raise ServiceUnavailable(f"{job}: rows were redriven each time its report was made")
        return ReportOutcome.NOT_READY

    def _report_rejected_file(self, run: Run) -> ReportOutcome:
        paths = ResultPaths(run.job)
        # Two reporters may run at once: only the one that writes job.json notifies.
        stored = self.store.metadata(paths.summary)
        previous = self._previous_summary(run.job)
        if previous is not None and previous.run == run.run and previous.state == "failed":
            return ReportOutcome.ALREADY_MADE
        summary = rejected_summary(run, run.finished_at or self.clock.now(), previous)
        self.store.put(paths.report, rejected_page(summary), _HTML)
        if not self.store.put(
            paths.summary,
            summary.to_json(),
            _JSON,
            only_if_new=stored is None,
            replaces=stored["etag"] if stored else None,
        ):
            return ReportOutcome.ALREADY_MADE
        self._log_and_notify(summary)
        return ReportOutcome.MADE

    def _make(self, run: Run) -> JobSummary:
        previous = self._previous_summary(run.job)
        aggregate, selection = self._write_manifest(run)
        rows = selection.rows()
        summary = aggregate.summary(run, page_count(rows), self.clock.now(), previous)
        self._write_gallery(summary, rows, selection.note())
        pages = summary.results.pages
        for surplus in previous.results.pages[len(pages) :] if previous else ():
            self.store.put(surplus, replaced_page(run.job), _HTML)
        self._check_current(run)
        self.store.put(ResultPaths(run.job).summary, summary.to_json(), _JSON)
        self._check_counters(run, aggregate)
        return summary

    def _write_manifest(self, run: Run) -> tuple[Aggregate, GallerySelection]:
        try:
            source = self.job_rows(run)
            rows = report_rows(source, self.rows, run)
            return self._stream(run, source.header, rows, Aggregate())
        except JobRejected as error:
            # It was readable when the job began: since then it, or its key, was deleted.
            self.telemetry.warning("csv_gone_before_report", job=run.job, why=str(error))
            aggregate = Aggregate(notes=[f"{error} {_WITHOUT_CSV}"])
            return self._stream(run, (), ledger_report_rows(self.rows, run), aggregate)

    def _stream(
        self, run: Run, columns: Sequence[str], rows: Iterator[ReportRow], aggregate: Aggregate
    ) -> tuple[Aggregate, GallerySelection]:
        """One pass: every row goes to the manifest, the aggregate and the gallery's selection."""
        manifest, selection = ManifestFormat(columns), GallerySelection(run.job)

        def lines() -> Iterator[bytes]:
            yield manifest.header()
            for row in rows:
                aggregate.add(row)
                selection.add(row)
                yield manifest.line(row)
            self._check_current(run)

        self.store.upload(ResultPaths(run.job).manifest, lines(), _CSV)
        return aggregate, selection

    def _write_gallery(
        self, summary: JobSummary, selected: Sequence[ReportRow], note: str | None
    ) -> None:
        paths = ResultPaths(summary.job)
        with ThreadPoolExecutor(_THUMB_THREADS, "report-thumbs") as pool:

            def load(rows: Sequence[ReportRow]) -> list[Thumbs]:
                return list(pool.map(lambda row: self._thumbs(paths, row), rows))

            pages = gallery_pages(summary, selected, note, load)
            for key, html in zip(summary.results.pages, pages, strict=True):
                self.store.put(key, html, _HTML)

    def _thumbs(self, paths: ResultPaths, row: ReportRow) -> Thumbs:
        if not row.result.outputs:
            return Thumbs()  # stored thumbnails, if any, belong to an earlier upload's row
        before = self.store.get(paths.thumb(row.key, "before")) if row.images else None
        return Thumbs(before, self.store.get(paths.thumb(row.key, "after")))

    def _previous_summary(self, job: str) -> JobSummary | None:
        body = self.store.get(ResultPaths(job).summary)
        if body is None:
            return None
        try:
            return JobSummary.model_validate_json(body)
        except ValidationError:
            # Written by another version: only its revision and page count are lost.
            self.telemetry.warning("summary_not_readable", job=job)
            return None

    def _check_current(self, run: Run) -> None:
        current = self.runs.current(run.job)
        if current is None or current.run != run.run:
            raise _Superseded(f"run {run.run} of job {run.job} is no longer the current one")

    def _check_counters(self, run: Run, aggregate: Aggregate) -> None:
        """Log an error if the ledger's counters and the manifest disagree on the settled rows."""
        counters = self.runs.counters(run.job, run.run)
        counted = [getattr(counters, status) for status in SETTLED_STATUSES]
        reported = [aggregate.settled[status] for status in SETTLED_STATUSES]
        if aggregate.unaccounted or counted != reported:
            self.telemetry.error(
                "manifest_disagrees_with_counters",
                job=run.job,
                run=run.run,
                counters=counted,
                manifest=reported,
                unaccounted=aggregate.unaccounted,
            )

    def _log_and_notify(self, summary: JobSummary) -> None:
        self.telemetry.info(
            "job_reported",
            job=summary.job,
            run=summary.run,
            state=summary.state,
            **summary.counts.model_dump(),
        )
        try:
            self.notify(*notification(summary))
        except Exception:  # noqa: BLE001 - the report stands without its notification
            self.telemetry.exception("notification_not_sent", job=summary.job)
