"""Makes the report of a job: manifest, gallery, job.json, then one notification.

Published in this order, so that a job.json with the run's id means that everything else is there.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from pydantic import ValidationError

from darkroom.csv_input.reader import JobRows
from darkroom.errors import DarkroomError, ServiceUnavailable, UploadLost
from darkroom.jobs import Counters, ResultPaths, Run, RunState
from darkroom.ports import Clock, ObjectStore, RowLedger, RunLedger, Telemetry
from darkroom.report.builder import HTML, JSON, OutOfTime, ReportBuilder
from darkroom.report.gallery import page_count, rejected_page
from darkroom.report.notification import notification
from darkroom.report.staging import ReportVersion, Staging, Superseded
from darkroom.report.summary import Aggregate, JobSummary, rejected_summary, running_summary
from darkroom.rows import SETTLED_STATUSES

# Just over the reporter's time-out (900 s): the lease of a reporter that was killed ends before
# Lambda's second retry. A report that continues renews it.
_LEASE_SECONDS = 915.0
_MAX_REBUILDS = 3
_MAX_CONTINUATIONS = 100
_MAX_TRIES = 5  # of one key that several reporters write at the same time


class ReportOutcome(StrEnum):
    MADE = "made"
    CONTINUES = "continues"  # in another invocation
    PROGRESS = "progress"  # job.json of an unfinished run
    NOT_READY = "not_ready"  # rows are unsettled, or another reporter is active
    ALREADY_MADE = "already_made"
    NO_SUCH_JOB = "no_such_job"


@dataclass(frozen=True, slots=True)
class Reporter:
    """`job_rows` reads a run's pinned CSV again; `notify` takes a subject and a body.

    `continue_later` invokes the reporter again, with the job and the maker of its report.
    """

    runs: RunLedger
    rows: RowLedger
    store: ObjectStore
    job_rows: Callable[[Run], JobRows]
    notify: Callable[[str, str], None]
    continue_later: Callable[[str, str], None]
    clock: Clock
    telemetry: Telemetry

    def report(
        self, job: str, owner: str = "", remaining_seconds: Callable[[], float] = lambda: inf
    ) -> ReportOutcome:
        """Make the report if the job is complete and no other reporter is making it.

        `owner` names the report's maker: Lambda retries a crashed invocation under the same request
        id, and a report that continues in another invocation passes the name on. Rows redriven in
        the meantime make the report stale: it is made again once they are settled, here or by the
        reporter that their last editor starts. Raises ServiceUnavailable, so that Lambda retries.
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
                summary = self._make(run, remaining_seconds)
            except OutOfTime:
                self.continue_later(job, owner)
                return ReportOutcome.CONTINUES
            except Superseded as newer:
                self.telemetry.info("report_superseded", job=job, run=run.run, why=str(newer))
                continue
            except ServiceUnavailable:
                with suppress(ServiceUnavailable):  # end the lease: any reporter may go on
                    self.runs.begin_report(run, 0.0, owner)
                raise
            if self.runs.finish_report(run, self.clock.now()):
                self._log_and_notify(summary)
                return ReportOutcome.MADE
        if self.runs.report_due(job):
            raise ServiceUnavailable(f"{job}: rows were redriven each time its report was made")
        return ReportOutcome.NOT_READY

    def progress(self, job: str) -> ReportOutcome:
        """Write job.json alone, for a run under way: its counts, and what it waits for.

        The ledger is read after the object that is replaced, so that of two writers the one that
        writes last has read last.
        """
        for _ in range(_MAX_TRIES):
            stored = self.store.metadata(ResultPaths(job).summary)
            run = self.runs.current(job)
            if run is None:
                return ReportOutcome.NO_SUCH_JOB
            if run.finished_at is not None or run.state is RunState.FAILED:
                return ReportOutcome.ALREADY_MADE
            counters, previous = self.runs.counters(job, run.run), self._previous_summary(job)
            version = ReportVersion(run.number, counters.transitions, final=False)
            spent = self.runs.spent_earlier(run)
            body = running_summary(run, counters, spent, self.clock.now(), previous).to_json()
            try:
                staging = Staging(self.store, version)
                if staging.put(ResultPaths(job).summary, body, JSON, stored):
                    return ReportOutcome.PROGRESS
            except Superseded:
                return ReportOutcome.ALREADY_MADE
        raise ServiceUnavailable(f"job.json of {job} is written by too many reporters at once")

    def _make(self, run: Run, remaining_seconds: Callable[[], float]) -> JobSummary:
        """Raises OutOfTime, Superseded."""
        counters = self.runs.counters(run.job, run.run)
        changes = counters.transitions
        builder = ReportBuilder(
            run=run,
            key=ResultPaths(run.job).report_state(run.run, changes),
            staging=Staging(self.store, ReportVersion(run.number, changes)),
            store=self.store,
            rows=self.rows,
            job_rows=self.job_rows,
            clock=self.clock,
            telemetry=self.telemetry,
            remaining_seconds=remaining_seconds,
        )
        if builder.state.continuations > _MAX_CONTINUATIONS:
            raise DarkroomError(f"{run.job}: its report needs too many invocations")
        try:
            builder.read_rows()
            self._check_current(run)
            summary = self._publish(builder, counters)
        except (Superseded, UploadLost):
            builder.discard()
            raise
        builder.forget()
        self._check_counters(run, builder.state.aggregate)
        return summary

    def _publish(self, builder: ReportBuilder, counters: Counters) -> JobSummary:
        """Stage the gallery, then make all of the report visible, job.json last."""
        run, state = builder.run, builder.state
        previous = self._previous_summary(run.job)
        rows = state.selection.rows()
        failed = state.failed_rows
        if failed and not (state.aggregate.unsuccessful or self.store.metadata(failed.key)):
            builder.staging.discard(failed)  # nothing failed, and no old file needs replacing
            failed = None
        summary = state.aggregate.summary(
            run,
            page_count(rows),
            self.clock.now(),
            previous,
            failed_rows=failed.key if failed and state.aggregate.unsuccessful else None,
            spent_earlier=self.runs.spent_earlier(run),
            counters=counters,
        )
        earlier, results = previous.results if previous else None, summary.results
        surplus = earlier.pages[len(results.pages) :] if earlier else ()
        if earlier and earlier.problems and not results.problems:
            surplus = (*surplus, earlier.problems)
        pages = builder.stage_pages(summary, rows, surplus)
        for staged in (state.manifest, *((failed,) if failed else ()), *pages):
            builder.staging.publish(staged)
        self._replace(builder.staging, ResultPaths(run.job).summary, summary.to_json(), JSON)
        return summary

    def _replace(self, staging: Staging, key: str, body: bytes, content_type: str) -> bool:
        """Put an object unless the same version of it is there: False then. Raises Superseded."""
        for _ in range(_MAX_TRIES):
            stored = self.store.metadata(key)
            if stored is not None and ReportVersion.of(stored) == staging.version:
                return False
            if staging.put(key, body, content_type, stored):
                return True
        raise ServiceUnavailable(f"{key} is written by too many reporters at once")

    def _report_rejected_file(self, run: Run) -> ReportOutcome:
        # Two reporters may run at once: only the one that writes job.json notifies.
        paths, staging = ResultPaths(run.job), Staging(self.store, ReportVersion(run.number))
        previous = self._previous_summary(run.job)
        counters, spent = self.runs.counters(run.job, run.run), self.runs.spent_earlier(run)
        ended = run.finished_at or self.clock.now()
        summary = rejected_summary(run, counters, spent, ended, previous)
        try:
            self._replace(staging, paths.report, rejected_page(summary), HTML)
            is_new = self._replace(staging, paths.summary, summary.to_json(), JSON)
        except Superseded:
            return ReportOutcome.ALREADY_MADE
        self.runs.finish_report(run, self.clock.now())
        if not is_new:
            return ReportOutcome.ALREADY_MADE
        self._log_and_notify(summary)
        return ReportOutcome.MADE

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
            raise Superseded(f"run {run.run} of job {run.job} is no longer the current one")

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
