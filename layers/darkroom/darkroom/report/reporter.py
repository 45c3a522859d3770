"""Makes the report of a job: manifest, gallery, job.json, then one message.

In this order, so that a job.json with the run's id means that everything else is there.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pydantic import ValidationError

from darkroom.csv_input.reader import JobRows
from darkroom.errors import DarkroomError, JobRejected, ServiceUnavailable
from darkroom.jobs import ResultPaths, Run, RunState
from darkroom.ports import Clock, ObjectStore, RowLedger, RunLedger, Telemetry
from darkroom.report.gallery import Gallery, Thumbs, failure_page, pages_for, stale_page
from darkroom.report.manifest import ManifestFormat
from darkroom.report.notification import message
from darkroom.report.rows import ReportRow, ledger_report_rows, report_rows
from darkroom.report.sampling import GallerySelection
from darkroom.report.summary import JobSummary, Tally, failure_of, summary_of

# The reporter's time-out (900 s) and a little: the lease of one that was killed ends before
# Lambda's second retry.
LEASE_SECONDS = 915.0
THUMB_THREADS = 16
_MOST_REBUILDS = 3
_HTML = "text/html; charset=utf-8"
_JSON = "application/json"
_WITHOUT_CSV = (
    "This report lists the rows that the ledger knows, without the columns of the CSV; rows that "
    "were never queued (bad input, outside filter-rows) are missing."
)


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Uploads(Protocol):
    """Objects of any size, written as they come."""

    def open(self, key: str, content_type: str) -> AbstractContextManager[Sink]:
        """The object appears when the block ends without an error, and not at all otherwise."""


class ReportOutcome(StrEnum):
    MADE = "made"
    NOT_READY = "not_ready"  # rows are still at work, or another reporter is
    ALREADY_MADE = "already_made"
    NO_SUCH_JOB = "no_such_job"


class _Superseded(DarkroomError):
    """A newer upload has taken the ledger's rows: this run's report would tell of neither."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """`job_rows` reads a run's pinned CSV again; `notify` takes a subject and a body."""

    runs: RunLedger
    rows: RowLedger
    store: ObjectStore
    uploads: Uploads
    job_rows: Callable[[Run], JobRows]
    notify: Callable[[str, str], None]
    clock: Clock
    telemetry: Telemetry

    def report(self, job: str, owner: str = "") -> ReportOutcome:
        """Make the report if the job is complete and nobody else makes it.

        `owner` names the invocation: Lambda retries one that crashed under the same request id.
        Rows that were redriven while it was made render it stale: it is made again once they are
        settled, here or by the reporter their last editor starts. Raises ServiceUnavailable, for
        Lambda to try again, when that never came to rest.
        """
        for _ in range(_MOST_REBUILDS):
            run = self.runs.current(job)
            if run is None:
                return ReportOutcome.NO_SUCH_JOB
            if run.state is RunState.FAILED:
                return self._report_failure(run)
            if not self.runs.begin_report(run, LEASE_SECONDS, owner):
                return _not_begun(run)
            try:
                summary = self._make(run)
            except _Superseded:
                continue
            if self.runs.finish_report(run, summary.finished_at.timestamp()):
                self._tell(summary)
                return ReportOutcome.MADE
        if self.runs.report_due(job):
            raise ServiceUnavailable(f"{job}: rows were settled while its report was made, again")
        return ReportOutcome.NOT_READY

    def _report_failure(self, run: Run) -> ReportOutcome:
        paths = ResultPaths(run.job)
        # Two reporters may be here at once: the one whose job.json gets in tells the user.
        held = self.store.metadata(paths.summary)
        before = self._last_summary(run.job)
        if before is not None and before.run == run.run and before.state == "failed":
            return ReportOutcome.ALREADY_MADE
        summary = failure_of(run, run.finished_at or self.clock.now(), before)
        self.store.put(paths.report, failure_page(summary), _HTML)
        if not self.store.put(
            paths.summary,
            summary.to_json(),
            _JSON,
            only_if_new=held is None,
            replaces=held["etag"] if held else None,
        ):
            return ReportOutcome.ALREADY_MADE
        self._tell(summary)
        return ReportOutcome.MADE

    def _make(self, run: Run) -> JobSummary:
        before = self._last_summary(run.job)
        tally, selection = self._write_manifest(run)
        shown = selection.rows()
        summary = summary_of(run, tally, pages_for(len(shown)), self.clock.now(), before)
        self._write_gallery(Gallery(summary, shown, selection.note()), before)
        self._check_current(run)
        self.store.put(ResultPaths(run.job).summary, summary.to_json(), _JSON)
        self._check_sums(run, tally)
        return summary

    def _write_manifest(self, run: Run) -> tuple[Tally, GallerySelection]:
        try:
            sources = self.job_rows(run)
            lines = report_rows(sources, self.rows, run)
            return self._stream(run, sources.header, lines, Tally())
        except JobRejected as gone:
            # It could be read when the job began: since then it was deleted, or its key was.
            self.telemetry.warning("csv_gone_before_report", job=run.job, why=str(gone))
            tally = Tally(notes=[f"{gone} {_WITHOUT_CSV}"])
            return self._stream(run, (), ledger_report_rows(self.rows, run), tally)

    def _stream(
        self, run: Run, columns: Sequence[str], lines: Iterator[ReportRow], tally: Tally
    ) -> tuple[Tally, GallerySelection]:
        """One pass: every line goes into the manifest, the sums and the gallery's choice."""
        manifest, selection = ManifestFormat(columns), GallerySelection(run.job)
        with self.uploads.open(ResultPaths(run.job).manifest, "text/csv; charset=utf-8") as out:
            out.write(manifest.header())
            for line in lines:
                out.write(manifest.line(line))
                tally.add(line)
                selection.add(line)
            self._check_current(run)
        return tally, selection

    def _write_gallery(self, gallery: Gallery, before: JobSummary | None) -> None:
        job = gallery.summary.job
        paths = ResultPaths(job)
        with ThreadPoolExecutor(THUMB_THREADS, "report-thumbs") as pool:

            def load(lines: Sequence[ReportRow]) -> list[Thumbs]:
                return list(pool.map(lambda line: self._thumbs(paths, line), lines))

            for number, html in enumerate(gallery.pages(load), 1):
                self.store.put(paths.report_page(number), html, _HTML)
        for left_over in before.results.pages[gallery.page_count :] if before else ():
            self.store.put(left_over, stale_page(job), _HTML)

    def _thumbs(self, paths: ResultPaths, line: ReportRow) -> Thumbs:
        if not line.outputs:
            return Thumbs()  # pictures there, if any, are of an earlier upload's row
        before = self._thumb(paths, line, "before") if line.images else None
        return Thumbs(before, self._thumb(paths, line, "after"))

    def _thumb(self, paths: ResultPaths, line: ReportRow, side: str) -> bytes | None:
        return self.store.get(paths.thumb(line.key, side))

    def _last_summary(self, job: str) -> JobSummary | None:
        found = self.store.get(ResultPaths(job).summary)
        if found is None:
            return None
        try:
            return JobSummary.model_validate_json(found)
        except ValidationError:
            # Written by another version: only its revision and page count are lost.
            self.telemetry.warning("summary_not_readable", job=job)
            return None

    def _check_current(self, run: Run) -> None:
        current = self.runs.current(run.job)
        if current is None or current.run != run.run:
            raise _Superseded(f"run {run.run} of job {run.job} is not the current one any more")

    def _check_sums(self, run: Run, tally: Tally) -> None:
        """Counters and manifest count the same rows in two ways: say so if they ever differ.

        Up to `redriven` rows may be missing from this CSV: they belong to an earlier upload.
        """
        counters, found = self.runs.counters(run.job, run.run), tally.settled_this_run()
        counted = (counters.succeeded, counters.failed, counters.dead)
        missing = [c - f for c, f in zip(counted, found, strict=True)]
        if tally.unaccounted or min(missing) < 0 or sum(missing) > counters.redriven:
            self.telemetry.error(
                "manifest_disagrees_with_counters",
                job=run.job,
                run=run.run,
                counters=list(counted),
                manifest=list(found),
                unaccounted=tally.unaccounted,
            )

    def _tell(self, summary: JobSummary) -> None:
        self.telemetry.info(
            "job_reported",
            job=summary.job,
            run=summary.run,
            state=summary.state,
            **summary.counts.model_dump(),
        )
        try:
            self.notify(*message(summary))
        except Exception:  # noqa: BLE001 - the report is made; a message is a courtesy
            self.telemetry.exception("job_message_not_sent", job=summary.job)


def _not_begun(run: Run) -> ReportOutcome:
    made = run.finished_at is not None
    return ReportOutcome.ALREADY_MADE if made else ReportOutcome.NOT_READY
