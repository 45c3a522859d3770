"""Adds up report lines, one at a time, into what job.json says; memory does not grow with rows."""

from collections import Counter
from dataclasses import dataclass, field
from math import log

from darkroom.report.advice import advice
from darkroom.report.chart import Timeline
from darkroom.report.lines import ReportLine, RowStatus
from darkroom.report.summary import (
    Cost,
    EndpointSummary,
    ErrorClass,
    Fallback,
    RowCounts,
    TimelineBar,
    TimelineSummary,
    WarningSummary,
    utc,
)

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

    def add(self, line: ReportLine) -> None:
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

    def add(self, line: ReportLine) -> None:
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

    def _add_this_run(self, line: ReportLine) -> None:
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

    def _add_error(self, line: ReportLine) -> None:
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
                what_to_do=advice(reason),
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
