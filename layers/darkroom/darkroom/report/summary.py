"""job.json: the outcome of a job for scripts, and its aggregation from report rows.

Money in US dollars, times in UTC (ISO 8601), durations in seconds, latencies in milliseconds.
docs/results.md shows an example.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import log
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from darkroom.errors import remediation
from darkroom.jobs import Counters, JobOptions, ResultPaths, Run, RunState
from darkroom.report.rows import ReportRow
from darkroom.rows import SETTLED_STATUSES, UNSUCCESSFUL_STATUSES, Mode, RowState

MAX_BARS = 60
MAX_WARNINGS = 50  # different texts
_MAX_EXAMPLE_CHARS = 500
_LATENCY_STEP = 1.05  # buckets of the histogram are 5 % apart
_MILLION = 1_000_000


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RowCounts(_Value):
    """Rows of the manifest by status: the statuses add up to `rows`."""

    rows: int = 0
    succeeded: int = Field(default=0, description="includes `resumed`")
    failed: int = Field(default=0, description="`failed` and `dead` include `kept_failed`")
    dead: int = 0
    skipped: int = 0
    resumed: int = Field(default=0, description="succeeded in an earlier upload, not repeated")
    kept_failed: int = Field(
        default=0, description="failed or dead since an earlier upload, not tried again"
    )


class Cost(_Value):
    """`this_run_usd` is the cost of the rows settled in this upload; unknown prices count as 0."""

    this_run_usd: float = 0.0
    earlier_runs_usd: float = Field(
        default=0.0, description="all earlier uploads, also for results replaced or dropped since"
    )
    total_usd: float = Field(default=0.0, description="everything ever spent on the job")
    unpriced_rows: int = Field(default=0, description="edited by models whose price is not known")
    unclaimed_usd: float = Field(
        default=0.0,
        description="part of `this_run_usd`: answers of batches that no row waited for any more",
    )


class Fallback(_Value):
    """Rows of this upload that were edited by another tier than the first one."""

    rows: int = 0
    rate: float = Field(default=0.0, description="share of the rows edited in this upload, 0 to 1")
    note: str | None = Field(default=None, description="if keys of an earlier tier were rejected")


class EndpointSummary(_Value):
    """The rows that one endpoint settled in this upload; null: those for which none was called."""

    endpoint: str | None
    provider: str | None
    succeeded: int = 0
    failed: int = 0
    dead: int = 0
    fallback: int = Field(default=0, description="of `succeeded`")
    cost_usd: float = 0.0
    latency_ms_p50: int | None = Field(default=None, description="within 5 %")
    latency_ms_p95: int | None = Field(default=None, description="within 5 %")


class ModeSummary(_Value):
    """The rows of this upload that providers answered in one mode."""

    mode: Mode
    succeeded: int = 0
    failed: int = 0
    dead: int = 0
    cost_usd: float = 0.0

    @property
    def rows(self) -> int:
        return sum(getattr(self, status) for status in SETTLED_STATUSES)


class FailureGroup(_Value):
    """Rows with the same status and reason, with one example."""

    status: str
    reason: str
    rows: int
    what_to_do: str
    example_row: int
    example_detail: str


class WarningSummary(_Value):
    """A warning and the number of rows it concerns; 0 rows: it concerns the job."""

    text: str
    rows: int = 0


class TimelineBar(_Value):
    """Rows settled from `start` on, for `TimelineSummary.bar_seconds`."""

    start: datetime
    succeeded: int = 0
    failed: int = 0
    dead: int = 0

    @property
    def rows(self) -> int:
        return sum(getattr(self, status) for status in SETTLED_STATUSES)


class TimelineSummary(_Value):
    bar_seconds: int = 1
    bars: tuple[TimelineBar, ...] = ()


class Results(_Value):
    """Keys in the results bucket."""

    manifest: str | None = None
    failed_rows: str | None = Field(default=None, description="a CSV of the rows that failed")
    report: str | None = None
    pages: tuple[str, ...] = Field(default=(), description="of the gallery, the first is `report`")
    problems: str | None = Field(default=None, description="the page of all rows that failed")
    images: str = Field(description="prefix of the images")


class WaitingSummary(_Value):
    """Why no endpoint can process rows at the moment, and what to do."""

    reason: str
    detail: str
    since: datetime


class RejectedUploadSummary(_Value):
    """A later upload of the CSV that could not be used: the run under way continued."""

    version_id: str | None = None
    reason: str
    rejected_at: datetime


class SourceSummary(_Value):
    bucket: str
    key: str
    version_id: str | None = None


class JobSummary(_Value):
    """The content of job.json.

    With the run's id, and a state other than `running`, it means that the report is complete. While
    a run is under way it is written only when there is something to say (`waiting`,
    `rejected_uploads`); its counts are those of the moment then.
    """

    version: Literal[1] = 1
    job: str
    run: str = Field(description="one upload of the CSV")
    revision: int = Field(default=1, description="2 and up: made again, after a redrive")
    state: Literal["running", "done", "failed", "stopped"]
    reason: str | None = Field(default=None, description="why the file was rejected")
    source: SourceSummary
    options: JobOptions
    started_at: datetime
    finished_at: datetime | None = Field(default=None, description="null while running")
    duration_seconds: float
    waiting: WaitingSummary | None = None
    rejected_uploads: tuple[RejectedUploadSummary, ...] = ()
    counts: RowCounts = RowCounts()
    by_reason: dict[str, int] = Field(default_factory=dict, description="failed and dead rows")
    cost: Cost = Cost()
    fallback: Fallback = Fallback()
    attempts: int = Field(default=0, description="of the rows settled in this upload")
    possible_duplicate_charges: int = Field(
        default=0, description="calls that were repeated because a crash lost their result"
    )
    endpoints: tuple[EndpointSummary, ...] = ()
    modes: tuple[ModeSummary, ...] = ()
    models: dict[str, int] = Field(default_factory=dict, description="rows succeeded, by model")
    errors: tuple[FailureGroup, ...] = ()
    warnings: tuple[WarningSummary, ...] = ()
    timeline: TimelineSummary = TimelineSummary()
    results: Results

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=2).encode()


def _cost(this_run: int, spent_earlier: int, unpriced_rows: int, unclaimed: int = 0) -> Cost:
    """`this_run` is of its rows, `unclaimed` of answers without one."""
    return Cost(
        this_run_usd=(this_run + unclaimed) / _MILLION,
        earlier_runs_usd=spent_earlier / _MILLION,
        total_usd=(this_run + unclaimed + spent_earlier) / _MILLION,
        unpriced_rows=unpriced_rows,
        unclaimed_usd=unclaimed / _MILLION,
    )


def rejected_summary(
    run: Run,
    counters: Counters,
    spent_earlier: int,
    finished_at: float,
    previous: JobSummary | None,
) -> JobSummary:
    """The summary of a file that could not be used; `finished_at` in Unix seconds.

    `spent_earlier` in micro-USD, as in the other functions. Further pages of an earlier report stay
    where they are.
    """
    report = ResultPaths(run.job).report
    earlier_pages = previous.results.pages[1:] if previous is not None else ()
    return _summary(
        run,
        finished_at,
        finished_at,
        state="failed",
        reason=run.reason,
        cost=_cost(counters.cost_micro_usd, spent_earlier, counters.unpriced),
        results=Results(report=report, pages=(report, *earlier_pages), images=f"{run.job}/images/"),
    )


def counts_so_far(run: Run, counters: Counters) -> RowCounts:
    """The rows of a run under way that have ended; `rows` are those read so far."""
    totals = run.totals if run.split_done else run.checkpoint.totals
    without_outcome = max(0, totals.queued - counters.settled) if run.lost else 0
    return RowCounts(
        rows=totals.rows,
        succeeded=counters.succeeded + totals.resumed,
        failed=counters.failed + totals.invalid + totals.kept_failed + without_outcome,
        dead=counters.dead,
        skipped=totals.skipped,
        resumed=totals.resumed,
        kept_failed=totals.kept_failed,
    )


def running_summary(
    run: Run, counters: Counters, spent_earlier: int, now: float, previous: JobSummary | None
) -> JobSummary:
    """The summary of a run under way; `previous` is the job.json written last.

    `results` are those of the last report until this run's takes its place.
    """
    is_same_run = previous is not None and previous.run == run.run
    images = f"{run.job}/images/"
    return _summary(
        run,
        None,
        now,
        revision=previous.revision if previous and is_same_run else 0,
        state="running",
        counts=counts_so_far(run, counters),
        cost=_cost(counters.cost_micro_usd, spent_earlier, counters.unpriced),
        fallback=_fallback(counters.fallback, counters.succeeded),
        attempts=counters.attempts,
        possible_duplicate_charges=counters.possible_duplicate_charges,
        results=previous.results if previous else Results(images=images),
    )


def _fallback(rows: int, edited: int, causes: Counter[str] | None = None) -> Fallback:
    rate = round(rows / edited, 4) if edited else 0.0
    note = None
    for cause, _ in causes.most_common(1) if causes else ():
        images = "All images" if rows == edited else f"{rate:.0%} of the images"
        note = f"{images} came from the fallback: {cause}. See `darkroom endpoints show`."
    return Fallback(rows=rows, rate=rate, note=note)


def _summary(
    run: Run,
    finished_at: float | None,
    now: float,
    warnings: list[WarningSummary] | None = None,
    **values: Any,
) -> JobSummary:
    waiting = run.waiting
    return JobSummary(
        job=run.job,
        run=run.run,
        source=SourceSummary.model_validate(run.source, from_attributes=True),
        options=run.options,
        started_at=_utc(run.started_at),
        finished_at=None if finished_at is None else _utc(finished_at),
        duration_seconds=round(now - run.started_at, 3),
        waiting=waiting
        and WaitingSummary(
            reason=waiting.reason.value, detail=waiting.detail, since=_utc(waiting.since)
        ),
        rejected_uploads=tuple(
            RejectedUploadSummary(
                version_id=upload.version_id,
                reason=upload.reason,
                rejected_at=_utc(upload.rejected_at),
            )
            for upload in run.rejected_uploads
        ),
        warnings=(*(WarningSummary(text=text) for text in run.warnings), *(warnings or ())),
        **values,
    )


@dataclass(slots=True)
class Timeline:
    """Counts per interval. The interval doubles whenever the span outgrows MAX_BARS."""

    bar_seconds: int = 1
    _counts: dict[int, Counter[str]] = field(default_factory=dict)  # by interval, then by status

    def add(self, at: float, status: RowState) -> None:
        """`at` in Unix seconds."""
        index = int(at // self.bar_seconds)
        if index in self._counts:
            self._counts[index][status] += 1
            return
        self._counts[index] = Counter({status: 1})
        while max(self._counts) - min(self._counts) >= MAX_BARS:
            self._double_interval()

    def _double_interval(self) -> None:
        self.bar_seconds *= 2
        wider: dict[int, Counter[str]] = {}
        for index, counts in self._counts.items():
            wider.setdefault(index // 2, Counter()).update(counts)
        self._counts = wider

    def summary(self) -> TimelineSummary:
        """One bar per interval from the first outcome to the last, empty ones included."""
        indexes = range(min(self._counts), max(self._counts) + 1) if self._counts else range(0)
        bars = (
            TimelineBar(start=_utc(index * self.bar_seconds), **self._counts.get(index, Counter()))
            for index in indexes
        )
        return TimelineSummary(bar_seconds=self.bar_seconds, bars=tuple(bars))


@dataclass(slots=True)
class LatencyHistogram:
    """Percentiles within 5 % from a histogram with logarithmic buckets. Milliseconds."""

    _buckets: Counter[int] = field(default_factory=Counter)

    def add(self, ms: int) -> None:
        if ms > 0:
            self._buckets[round(log(ms, _LATENCY_STEP))] += 1

    def percentile(self, share: float) -> int | None:
        remaining = share * self._buckets.total()
        for bucket in sorted(self._buckets):
            remaining -= self._buckets[bucket]
            if remaining <= 0:
                return round(_LATENCY_STEP**bucket)
        return None


@dataclass(slots=True)
class _EndpointAggregate:
    provider: str
    counts: Counter[str] = field(default_factory=Counter)  # by field of EndpointSummary
    cost_micro_usd: int = 0
    latencies: LatencyHistogram = field(default_factory=LatencyHistogram)

    def add(self, row: ReportRow) -> None:
        self.counts[row.status] += 1
        self.counts["fallback"] += row.edited_by_fallback
        self.cost_micro_usd += row.result.cost_micro_usd or 0
        self.latencies.add(row.result.latency_ms)

    def summary(self, endpoint: str) -> EndpointSummary:
        return EndpointSummary(
            endpoint=endpoint or None,
            provider=self.provider or None,
            **self.counts,
            cost_usd=self.cost_micro_usd / _MILLION,
            latency_ms_p50=self.latencies.percentile(0.5),
            latency_ms_p95=self.latencies.percentile(0.95),
        )


@dataclass(slots=True)
class _ModeAggregate:
    counts: Counter[str] = field(default_factory=Counter)  # by field of ModeSummary
    cost_micro_usd: int = 0

    def add(self, row: ReportRow) -> None:
        self.counts[row.status] += 1
        self.cost_micro_usd += row.result.cost_micro_usd or 0

    def summary(self, mode: Mode) -> ModeSummary:
        return ModeSummary(mode=mode, **self.counts, cost_usd=self.cost_micro_usd / _MILLION)


@dataclass(slots=True)
class _FailureAggregate:
    status: RowState
    reason: str
    example_row: int
    example_detail: str
    rows: int = 0

    @classmethod
    def of(cls, row: ReportRow) -> Self:
        return cls(row.status, row.reason, row.row, row.result.detail[:_MAX_EXAMPLE_CHARS])

    def summary(self) -> FailureGroup:
        return FailureGroup(
            status=self.status.value,
            reason=self.reason,
            rows=self.rows,
            what_to_do=remediation(self.reason),
            example_row=self.example_row,
            example_detail=self.example_detail,
        )


@dataclass(slots=True)
class Aggregate:
    """Sums over the rows of one report; memory does not grow with their number.

    `notes` are warnings that concern the job. `settled` counts the rows settled in this run by
    status, to compare with the ledger's counters.
    """

    notes: list[str] = field(default_factory=list)
    unaccounted: int = 0
    settled: Counter[str] = field(default_factory=Counter)
    _counts: Counter[str] = field(default_factory=Counter)  # by field of RowCounts
    _timeline: Timeline = field(default_factory=Timeline)
    _models: Counter[str] = field(default_factory=Counter)
    _endpoints: dict[str, _EndpointAggregate] = field(default_factory=dict)
    _modes: dict[Mode, _ModeAggregate] = field(default_factory=dict)
    _reasons: Counter[str] = field(default_factory=Counter)
    _failures: dict[str, _FailureAggregate] = field(default_factory=dict)
    _warnings: Counter[str] = field(default_factory=Counter)
    _further_warnings: int = 0
    _fallback_rows: int = 0
    _fallback_causes: Counter[str] = field(default_factory=Counter)
    _attempts: int = 0
    _possible_duplicate_charges: int = 0
    _unpriced: int = 0
    _cost_this_run: int = 0  # micro-USD

    def add(self, row: ReportRow) -> None:
        result = row.result
        self._counts["rows"] += 1
        self._counts[row.status] += 1
        self._possible_duplicate_charges += row.possible_duplicate_charges
        self._unpriced += result.cost_micro_usd is None
        self.unaccounted += row.unaccounted
        if row.status is RowState.SUCCEEDED:
            self._models[result.model or ""] += 1
        elif row.reason and row.status.unsuccessful:
            self._reasons[row.reason] += 1
            group = f"{row.status} {row.reason}"
            if group not in self._failures:
                self._failures[group] = _FailureAggregate.of(row)
            self._failures[group].rows += 1
        for warning in result.warnings:
            self._further_warnings += not _count(self._warnings, warning)
        if row.earlier:
            self._counts["resumed"] += row.status is RowState.SUCCEEDED
            self._counts["kept_failed"] += row.status.unsuccessful
        else:
            self._add_this_run(row)

    def _add_this_run(self, row: ReportRow) -> None:
        result = row.result
        self._attempts += row.attempts
        self._cost_this_run += result.cost_micro_usd or 0
        self._fallback_rows += row.edited_by_fallback
        if row.edited_by_fallback and result.fallback_cause:
            _count(self._fallback_causes, result.fallback_cause)
        if row.settled_at is not None:
            self.settled[row.status] += 1
            self._timeline.add(row.settled_at, row.status)
        if row.status in SETTLED_STATUSES:
            endpoint = result.endpoint or ""
            if endpoint not in self._endpoints:
                self._endpoints[endpoint] = _EndpointAggregate(result.provider or "")
            self._endpoints[endpoint].add(row)
            if endpoint:
                self._modes.setdefault(result.mode, _ModeAggregate()).add(row)

    @property
    def unsuccessful(self) -> int:
        """Rows that are failed or dead."""
        return sum(self._counts[status] for status in UNSUCCESSFUL_STATUSES)

    def summary(
        self,
        run: Run,
        pages: int,
        finished_at: float,
        previous: JobSummary | None = None,
        failed_rows: str | None = None,
        *,
        spent_earlier: int = 0,
        counters: Counters | None = None,
    ) -> JobSummary:
        """`previous` is the job.json written last; `finished_at` in Unix seconds.

        `counters` are the ledger's, whose cost includes answers that belong to no row.
        """
        paths = ResultPaths(run.job)
        edited = self._counts["succeeded"] - self._counts["resumed"]
        unclaimed = 0
        if counters is not None and run.options.mode == "batch":
            unclaimed = max(0, counters.cost_micro_usd - self._cost_this_run)
        return _summary(
            replace(run, waiting=None),
            finished_at,
            finished_at,
            revision=previous.revision + 1 if previous and previous.run == run.run else 1,
            state="stopped" if run.state is RunState.STOPPED else "done",
            counts=RowCounts(**self._counts),
            by_reason=dict(self._reasons.most_common()),
            cost=_cost(self._cost_this_run, spent_earlier, self._unpriced, unclaimed),
            fallback=_fallback(self._fallback_rows, edited, self._fallback_causes),
            attempts=self._attempts,
            possible_duplicate_charges=self._possible_duplicate_charges,
            endpoints=tuple(
                self._endpoints[name].summary(name)
                for name in sorted(self._endpoints, key=lambda name: (not name, name))
            ),
            modes=tuple(self._modes[mode].summary(mode) for mode in sorted(self._modes)),
            models=dict(self._models.most_common()),
            errors=self._failure_groups(),
            warnings=self._warning_summaries(),
            timeline=self._timeline.summary(),
            results=Results(
                manifest=paths.manifest,
                failed_rows=failed_rows,
                report=paths.report,
                problems=paths.problems if self.unsuccessful else None,
                pages=tuple(paths.report_page(n) for n in range(1, pages + 1)),
                images=f"{run.job}/images/",
            ),
        )

    def _failure_groups(self) -> tuple[FailureGroup, ...]:
        """The most frequent first."""
        groups = (failure.summary() for failure in self._failures.values())
        return tuple(sorted(groups, key=lambda group: (-group.rows, group.status, group.reason)))

    def _warning_summaries(self) -> list[WarningSummary]:
        texts = [*((note, 0) for note in self.notes), *self._warnings.most_common()]
        if self._further_warnings:
            more = f"{self._further_warnings:,} more warnings: the gallery shows each row's with it"
            texts.append((more, 0))
        return [WarningSummary(text=text, rows=rows) for text, rows in texts]


def _count(texts: Counter[str], text: str) -> bool:
    """Count a text from outside; False for one more than MAX_WARNINGS different ones."""
    if text not in texts and len(texts) >= MAX_WARNINGS:
        return False
    texts[text] += 1
    return True


def unsuccessful(counts: RowCounts | EndpointSummary) -> int:
    """Rows that are failed or dead."""
    return sum(getattr(counts, status) for status in UNSUCCESSFUL_STATUSES)


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds, 3), UTC)
