"""From what a report added up to the content of job.json."""

from darkroom.jobs import ResultPaths, Run, RunState
from darkroom.report.summary import JobSummary, Results, WarningSummary, source_of, utc
from darkroom.report.tally import Tally


def summary_of(
    run: Run, tally: Tally, pages: int, ended: float, before: JobSummary | None
) -> JobSummary:
    """`before` is what job.json said last; `ended` in Unix seconds."""
    paths = ResultPaths(run.job)
    again = before is not None and before.run == run.run
    return JobSummary(
        job=run.job,
        run=run.run,
        revision=before.revision + 1 if before is not None and again else 1,
        state="stopped" if run.state is RunState.STOPPED else "done",
        source=source_of(run),
        options=run.options,
        started_at=utc(run.started_at),
        finished_at=utc(ended),
        duration_seconds=round(ended - run.started_at, 3),
        counts=tally.counts(),
        by_reason=dict(tally.reasons.most_common()),
        cost=tally.cost(),
        fallback=tally.fallback(),
        attempts=tally.attempts,
        possible_duplicate_charges=tally.possible_duplicate_charges,
        endpoints=tally.endpoints(),
        models=dict(tally.models.most_common()),
        errors=tally.errors(),
        warnings=(*_warnings_of(run), *tally.warnings()),
        timeline=tally.timeline_summary(),
        results=Results(
            manifest=paths.manifest,
            report=paths.report,
            pages=tuple(paths.report_page(n) for n in range(1, pages + 1)),
            images=f"{run.job}/images/",
        ),
    )


def failure_of(run: Run, ended: float, before: JobSummary | None) -> JobSummary:
    """The file could not be used. Further pages of an earlier report stay where they are."""
    report = ResultPaths(run.job).report
    left = before.results.pages[1:] if before is not None else ()
    return JobSummary(
        job=run.job,
        run=run.run,
        state="failed",
        reason=run.reason,
        source=source_of(run),
        options=run.options,
        started_at=utc(run.started_at),
        finished_at=utc(ended),
        duration_seconds=round(ended - run.started_at, 3),
        warnings=_warnings_of(run),
        results=Results(report=report, pages=(report, *left), images=f"{run.job}/images/"),
    )


def _warnings_of(run: Run) -> tuple[WarningSummary, ...]:
    return tuple(WarningSummary(text=w) for w in run.warnings)
