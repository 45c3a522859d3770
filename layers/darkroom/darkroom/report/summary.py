"""job.json: what became of a job, for scripts. docs/results.md shows one.

Money in US dollars, times in UTC (ISO 8601), durations in seconds, latencies in milliseconds.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import log
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from darkroom.errors import remediation
from darkroom.jobs import JobOptions, ResultPaths, Run, RunState
from darkroom.report.rows import ReportRow, RowStatus


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RowCounts(_Value):
    """Lines of the manifest by status: the four statuses add up to `rows`."""

    rows: int = 0
    succeeded: int = Field(default=0, description="includes `resumed`")
    failed: int = Field(default=0, description="`failed` and `dead` include `kept_failed`")
    dead: int = 0
    skipped: int = 0
    resumed: int = Field(default=0, description="succeeded in an earlier upload, not done again")
    kept_failed: int = Field(
        default=0, description="failed or dead since an earlier upload, not tried again"
    )


class Cost(_Value):
    """`this_run_usd` is what the rows this upload settled cost; unknown prices count as 0."""

    this_run_usd: float = 0.0
    earlier_runs_usd: float = Field(default=0.0, description="rows resumed or kept")
    total_usd: float = 0.0
    unpriced_rows: int = Field(default=0, description="made by models whose price is not known")


class Fallback(_Value):
    """Rows of this upload that another tier than the first one made."""

    rows: int = 0
    rate: float = Field(default=0.0, description="share of the rows this upload made, 0 to 1")


class EndpointSummary(_Value):
    """What one endpoint did for this upload."""

    endpoint: str
    provider: str
    succeeded: int = 0
    failed: int = 0
    dead: int = 0
    fallback: int = Field(default=0, description="of `succeeded`")
    cost_usd: float = 0.0
    latency_ms_p50: int | None = Field(default=None, description="within 5 %")
    latency_ms_p95: int | None = Field(default=None, description="within 5 %")


class ErrorClass(_Value):
    """Rows that ended alike, with one example."""

    status: str
    reason: str
    rows: int
    what_to_do: str
    example_row: int
    example_detail: str


class WarningSummary(_Value):
    """A warning and how many rows it concerns; 0 rows: it concerns the job."""

    text: str
    rows: int = 0


class TimelineBar(_Value):
    """Rows settled from `start` on, for `Timeline.bar_seconds`."""

    start: datetime
    succeeded: int
    failed: int
    dead: int


class TimelineSummary(_Value):
    bar_seconds: int = 1
    bars: tuple[TimelineBar, ...] = ()


class Results(_Value):
    """Keys in the results bucket."""

    manifest: str | None = None
    report: str
    pages: tuple[str, ...] = Field(default=(), description="of the gallery, the first is `report`")
    images: str = Field(description="prefix of the pictures")


class SourceSummary(_Value):
    bucket: str
    key: str
    version_id: str | None = None


class JobSummary(_Value):
    """The content of job.json. Its presence with the run's id means that the report is complete."""

    version: Literal[1] = 1
    job: str
    run: str = Field(description="one upload of the CSV")
    revision: int = Field(default=1, description="2 and up: made again, after a redrive")
    state: Literal["done", "failed", "stopped"]
    reason: str | None = Field(default=None, description="why the file was rejected")
    source: SourceSummary
    options: JobOptions
    started_at: datetime
    finished_at: datetime
    duration_seconds: float
    counts: RowCounts = RowCounts()
    by_reason: dict[str, int] = Field(default_factory=dict, description="failed and dead rows")
    cost: Cost = Cost()
    fallback: Fallback = Fallback()
    attempts: int = Field(default=0, description="of the rows this upload settled")
    possible_duplicate_charges: int = Field(
        default=0, description="calls whose answer a crash hid, and which were made again"
    )
    endpoints: tuple[EndpointSummary, ...] = ()
    models: dict[str, int] = Field(default_factory=dict, description="rows succeeded, by model")
    errors: tuple[ErrorClass, ...] = ()
    warnings: tuple[WarningSummary, ...] = ()
    timeline: TimelineSummary = TimelineSummary()
    results: Results

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=2).encode()


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds, 3), UTC)


def source_of(run: Run) -> SourceSummary:
    return SourceSummary(
        bucket=run.source.bucket, key=run.source.key, version_id=run.source.version_id
    )


# Outcomes over time: a histogram in bounded memory, and its small inline SVG.


MOST_BARS = 60
BAR_STATUSES = (RowStatus.SUCCEEDED, RowStatus.FAILED, RowStatus.DEAD)


@dataclass(frozen=True, slots=True)
class Bar:
    """Rows that settled in one stretch of time; `start` in Unix seconds."""

    start: float
    succeeded: int = 0
    failed: int = 0
    dead: int = 0

    @property
    def total(self) -> int:
        return self.succeeded + self.failed + self.dead


@dataclass(slots=True)
class Timeline:
    """Counts per stretch of time. The stretch doubles whenever the span outgrows MOST_BARS."""

    width_seconds: int = 1
    _counts: dict[int, dict[RowStatus, int]] = field(default_factory=dict)

    def add(self, at: float, status: RowStatus) -> None:
        place = int(at // self.width_seconds)
        counts = self._counts.get(place)
        if counts is None:
            counts = self._counts[place] = dict.fromkeys(BAR_STATUSES, 0)
            while max(self._counts) - min(self._counts) >= MOST_BARS:
                self._widen()
            counts = self._counts[int(at // self.width_seconds)]
        counts[status] += 1

    def _widen(self) -> None:
        self.width_seconds *= 2
        wider: dict[int, dict[RowStatus, int]] = {}
        for place, counts in self._counts.items():
            into = wider.setdefault(place // 2, dict.fromkeys(BAR_STATUSES, 0))
            for status, count in counts.items():
                into[status] += count
        self._counts = wider

    def bars(self) -> tuple[Bar, ...]:
        """One bar per stretch from the first outcome to the last, empty ones included."""
        if not self._counts:
            return ()
        empty: dict[RowStatus, int] = {}
        return tuple(
            Bar(
                place * self.width_seconds,
                *(self._counts.get(place, empty).get(status, 0) for status in BAR_STATUSES),
            )
            for place in range(min(self._counts), max(self._counts) + 1)
        )


# Adds up report lines, one at a time, into what job.json says; memory does not grow with rows.


MOST_WARNINGS = 50  # different texts
_LONGEST_EXAMPLE = 500
_LATENCY_STEP = 1.05  # buckets of a histogram 5 % apart


@dataclass(slots=True)
class Latencies:
    """Percentiles within 5 % from a histogram with logarithmic buckets. Milliseconds."""

    _buckets: Counter[int] = field(default_factory=Counter)

    def add(self, ms: int) -> None:
        if ms > 0:
            self._buckets[round(log(ms, _LATENCY_STEP))] += 1

    def percentile(self, share: float) -> int | None:
        wanted = share * self._buckets.total()
        for bucket in sorted(self._buckets):
            wanted -= self._buckets[bucket]
            if wanted <= 0:
                return round(_LATENCY_STEP**bucket)
        return None


@dataclass(slots=True)
class _EndpointTally:
    provider: str
    statuses: Counter[RowStatus] = field(default_factory=Counter)
    fallback: int = 0
    cost: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    def add(self, line: ReportRow) -> None:
        self.statuses[line.status] += 1
        self.fallback += line.fallback and line.status is RowStatus.SUCCEEDED
        self.cost += line.cost_micro_usd or 0
        self.latencies.add(line.latency_ms)

    def summary(self, name: str) -> EndpointSummary:
        return EndpointSummary(
            endpoint=name,
            provider=self.provider,
            succeeded=self.statuses[RowStatus.SUCCEEDED],
            failed=self.statuses[RowStatus.FAILED],
            dead=self.statuses[RowStatus.DEAD],
            fallback=self.fallback,
            cost_usd=usd(self.cost),
            latency_ms_p50=self.latencies.percentile(0.5),
            latency_ms_p95=self.latencies.percentile(0.95),
        )


@dataclass(slots=True)
class _ErrorTally:
    row: int
    detail: str
    rows: int = 0


@dataclass(slots=True)
class Tally:
    """Sums of one report."""

    statuses: Counter[RowStatus] = field(default_factory=Counter)
    earlier: Counter[RowStatus] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    timeline: Timeline = field(default_factory=Timeline)
    fallback_rows: int = 0
    attempts: int = 0
    possible_duplicate_charges: int = 0
    unpriced: int = 0
    unaccounted: int = 0
    notes: list[str] = field(default_factory=list)  # warnings that concern no row
    cost_this_run: int = 0
    cost_earlier: int = 0
    _settled: Counter[RowStatus] = field(default_factory=Counter)
    _endpoints: dict[str, _EndpointTally] = field(default_factory=dict)
    _errors: dict[tuple[RowStatus, str], _ErrorTally] = field(default_factory=dict)
    _warnings: Counter[str] = field(default_factory=Counter)
    _more_warnings: int = 0

    def add(self, line: ReportRow) -> None:
        self.statuses[line.status] += 1
        self.possible_duplicate_charges += line.possible_duplicate_charges
        self.unpriced += line.cost_micro_usd is None
        self.unaccounted += line.unaccounted
        if line.status is RowStatus.SUCCEEDED:
            self.models[line.model] += 1
        elif line.reason and line.status is not RowStatus.SKIPPED:
            self._add_error(line)
        for warning in line.warnings:
            self._add_warning(warning)
        if line.earlier:
            self.earlier[line.status] += 1
            self.cost_earlier += line.cost_micro_usd or 0
        else:
            self._add_this_run(line)

    def _add_this_run(self, line: ReportRow) -> None:
        self.attempts += line.attempts
        self.cost_this_run += line.cost_micro_usd or 0
        self.fallback_rows += line.fallback and line.status is RowStatus.SUCCEEDED
        if line.settled_at is not None:
            self._settled[line.status] += 1
            self.timeline.add(line.settled_at, line.status)
        if line.endpoint:
            tally = self._endpoints.get(line.endpoint)
            if tally is None:
                tally = self._endpoints[line.endpoint] = _EndpointTally(line.provider)
            tally.add(line)

    def _add_error(self, line: ReportRow) -> None:
        self.reasons[line.reason] += 1
        place = (line.status, line.reason)
        found = self._errors.get(place)
        if found is None:
            found = self._errors[place] = _ErrorTally(line.row, line.detail[:_LONGEST_EXAMPLE])
        found.rows += 1

    def _add_warning(self, text: str) -> None:
        if text in self._warnings or len(self._warnings) < MOST_WARNINGS:
            self._warnings[text] += 1
        else:
            self._more_warnings += 1

    def settled_this_run(self) -> tuple[int, int, int]:
        """Rows the ledger settled in this run: succeeded, failed, dead, as its counters have it."""
        done = self._settled
        return done[RowStatus.SUCCEEDED], done[RowStatus.FAILED], done[RowStatus.DEAD]

    def counts(self) -> RowCounts:
        return RowCounts(
            rows=self.statuses.total(),
            succeeded=self.statuses[RowStatus.SUCCEEDED],
            failed=self.statuses[RowStatus.FAILED],
            dead=self.statuses[RowStatus.DEAD],
            skipped=self.statuses[RowStatus.SKIPPED],
            resumed=self.earlier[RowStatus.SUCCEEDED],
            kept_failed=self.earlier[RowStatus.FAILED] + self.earlier[RowStatus.DEAD],
        )

    def cost(self) -> Cost:
        return Cost(
            this_run_usd=usd(self.cost_this_run),
            earlier_runs_usd=usd(self.cost_earlier),
            total_usd=usd(self.cost_this_run + self.cost_earlier),
            unpriced_rows=self.unpriced,
        )

    def fallback(self) -> Fallback:
        made = self.statuses[RowStatus.SUCCEEDED] - self.earlier[RowStatus.SUCCEEDED]
        rate = round(self.fallback_rows / made, 4) if made else 0.0
        return Fallback(rows=self.fallback_rows, rate=rate)

    def endpoints(self) -> tuple[EndpointSummary, ...]:
        return tuple(self._endpoints[name].summary(name) for name in sorted(self._endpoints))

    def errors(self) -> tuple[ErrorClass, ...]:
        """The most frequent first."""
        return tuple(
            ErrorClass(
                status=status.value,
                reason=reason,
                rows=tally.rows,
                what_to_do=remediation(reason),
                example_row=tally.row,
                example_detail=tally.detail,
            )
            for (status, reason), tally in sorted(
                self._errors.items(), key=lambda item: (-item[1].rows, item[0])
            )
        )

    def warnings(self) -> tuple[WarningSummary, ...]:
        told = (
            *(WarningSummary(text=note) for note in self.notes),
            *(WarningSummary(text=t, rows=n) for t, n in self._warnings.most_common()),
        )
        if not self._more_warnings:
            return told
        more = f"{self._more_warnings:,} more warnings: each row's are shown with it in the gallery"
        return (*told, WarningSummary(text=more))

    def timeline_summary(self) -> TimelineSummary:
        return TimelineSummary(
            bar_seconds=self.timeline.width_seconds,
            bars=tuple(
                TimelineBar(
                    start=utc(bar.start), succeeded=bar.succeeded, failed=bar.failed, dead=bar.dead
                )
                for bar in self.timeline.bars()
            ),
        )


def usd(micro: int) -> float:
    return micro / 1_000_000


# From what a report added up to the content of job.json.


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
