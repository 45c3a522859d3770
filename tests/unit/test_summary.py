"""The aggregation of job.json, the chart's histogram, the gallery's sample."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from darkroom.errors import Reason, remediation
from darkroom.report import sampling
from darkroom.report.rows import ReportRow
from darkroom.report.sampling import GallerySelection, Sample
from darkroom.report.summary import (
    MAX_BARS,
    MAX_WARNINGS,
    Aggregate,
    JobSummary,
    LatencyHistogram,
    Timeline,
)
from darkroom.rows import RowState
from tests.fakes.reporting import report_row, split_run


def summary_of(*rows: ReportRow) -> JobSummary:
    aggregate = Aggregate()
    for row in rows:
        aggregate.add(row)
    return aggregate.summary(split_run(), pages=1, finished_at=1.8e9, spent_earlier=SPENT_EARLIER)


SPENT_EARLIER = 70_000
statuses = st.sampled_from([state for state in RowState if state.terminal])


@given(st.lists(st.tuples(statuses, st.booleans(), st.integers(0, 500_000))))
def test_statuses_add_up_to_rows_and_costs_to_the_total(
    rows: list[tuple[RowState, bool, int]],
) -> None:
    summary = summary_of(
        *(report_row(i, s, earlier=e, cost_micro_usd=c) for i, (s, e, c) in enumerate(rows))
    )
    counts, cost = summary.counts, summary.cost
    assert counts.succeeded + counts.failed + counts.dead + counts.skipped == counts.rows
    assert counts.resumed <= counts.succeeded
    assert counts.kept_failed <= counts.failed + counts.dead
    spent = sum(c for _, earlier, c in rows if not earlier)
    assert round(cost.this_run_usd * 1e6) == spent
    assert round(cost.total_usd * 1e6) == spent + SPENT_EARLIER


def test_the_fallback_rate_is_of_this_uploads_rows_and_rows_of_unknown_price_are_counted() -> None:
    summary = summary_of(
        report_row(0, fallback=True, cost_micro_usd=10_000),
        report_row(1, cost_micro_usd=None),
        report_row(2, earlier=True, fallback=True),
        report_row(3, RowState.FAILED, fallback=True),
    )
    assert summary.fallback.model_dump() == {"rows": 1, "rate": 0.5, "note": None}
    assert (summary.cost.total_usd, summary.cost.unpriced_rows) == (0.08, 1)


def test_endpoints_are_summed_separately() -> None:
    summary = summary_of(
        report_row(0, endpoint="a", provider="gemini", latency_ms=1000, cost_micro_usd=5),
        report_row(1, endpoint="b", provider="openai", latency_ms=2000, fallback=True),
        report_row(2, RowState.DEAD, endpoint="a", provider="gemini"),
        report_row(3, endpoint="a", provider="gemini", earlier=True),
    )
    a, b = summary.endpoints
    assert (a.endpoint, a.succeeded, a.dead, a.cost_usd) == ("a", 1, 1, 0.000005)
    assert (b.provider, b.succeeded, b.fallback) == ("openai", 1, 1)


def test_failures_are_grouped_with_the_most_frequent_first() -> None:
    refused = {"reason": Reason.REFUSED, "detail": "no"}
    summary = summary_of(
        report_row(5, RowState.DEAD, reason=Reason.UNAVAILABLE, detail="HTTP 503"),
        report_row(6, RowState.FAILED, **refused),
        report_row(7, RowState.FAILED, **refused),
    )
    first, second = summary.errors
    assert (first.reason, first.rows) == ("refused", 2)
    assert (first.example_row, first.example_detail) == (6, "no")
    assert (second.status, second.what_to_do) == ("dead", Reason.UNAVAILABLE.remediation)


def test_every_reason_has_a_remediation_of_its_own_and_an_unknown_one_too() -> None:
    for reason in Reason:
        assert reason.remediation
        assert remediation(reason.value) == reason.remediation
        assert Reason(reason.value) is reason
    assert "redrive or upload the CSV again" in remediation("from_the_future")
    assert remediation(None) == remediation("from_the_future")


def test_warnings_are_counted_and_bounded() -> None:
    rows = (report_row(i, warnings=("the same", f"row {i}")) for i in range(200))
    warnings = summary_of(*rows).warnings
    assert (warnings[0].text, warnings[0].rows) == ("the same", 200)
    assert len(warnings) == MAX_WARNINGS + 1
    assert warnings[-1].text.startswith("151 more warnings")


@given(st.lists(st.integers(1, 900_000), min_size=1, max_size=200), st.floats(0.01, 1))
def test_percentiles_are_within_five_percent(values: list[int], share: float) -> None:
    latencies = LatencyHistogram()
    assert latencies.percentile(share) is None  # without values
    for value in values:
        latencies.add(value)
    percentile = latencies.percentile(share)
    assert percentile is not None
    at_most = sum(v <= percentile * 1.05 + 1 for v in values)
    below = sum(v < percentile / 1.05 - 1 for v in values)
    assert below - 1e-6 <= share * len(values) <= at_most + 1e-6


settled = st.sampled_from([RowState.SUCCEEDED, RowState.FAILED, RowState.DEAD])


@given(st.lists(st.tuples(st.floats(1.7e9, 1.9e9), settled), max_size=60))
def test_a_timeline_is_bounded_and_loses_nothing(points: list[tuple[float, RowState]]) -> None:
    timeline = Timeline()
    for at, status in points:
        timeline.add(at, status)
    summary = timeline.summary()
    bars, width = summary.bars, summary.bar_seconds
    assert len(bars) <= MAX_BARS
    assert sum(bar.succeeded + bar.failed + bar.dead for bar in bars) == len(points)
    assert sum(bar.dead for bar in bars) == sum(s is RowState.DEAD for _, s in points)
    for at, _ in points:
        assert any(0 <= at - bar.start.timestamp() < width for bar in bars)


def selected(*states: RowState, job: str = "j") -> GallerySelection:
    """The selection of a job with one row for each of `states`."""
    selection = GallerySelection(job)
    for row, status in enumerate(states):
        selection.add(report_row(row, status))
    return selection


def large_job(job: str, fail_every: int) -> GallerySelection:
    one = [RowState.FAILED, *[RowState.SUCCEEDED] * (fail_every - 1)]
    return selected(*one * (6_000 // fail_every), job=job)


def test_a_small_job_is_shown_whole_except_rows_outside_the_filter() -> None:
    selection = selected(*[RowState.SKIPPED] * 10, *[RowState.SUCCEEDED] * 20)
    assert [x.row for x in selection.rows()] == list(range(10, 30))
    assert selection.note() == (
        "10 rows outside filter-rows are not shown. manifest.csv lists every row."
    )
    at_the_limit = selected(*[RowState.SUCCEEDED] * sampling.SHOW_ALL_UP_TO)
    assert len(at_the_limit.rows()) == sampling.SHOW_ALL_UP_TO
    assert at_the_limit.note() is None


def test_a_large_job_shows_its_failures_and_a_sample_and_says_so() -> None:
    selection = large_job("j", fail_every=60)
    rows = selection.rows()
    assert sum(x.status is RowState.FAILED for x in rows) == 100
    assert sum(x.status is RowState.SUCCEEDED for x in rows) == sampling.MAX_OTHERS
    assert [x.row for x in rows] == sorted(x.row for x in rows)
    assert "all 100 rows that failed" in (selection.note() or "")
    assert "a random 1,000 of the 5,900 rows" in (selection.note() or "")
    selection = large_job("j", fail_every=2)  # more failures than fit are sampled too
    assert len(selection.rows()) == sampling.MAX_FAILED + sampling.MAX_OTHERS
    assert "a random 1,000 of the 3,000 rows that failed" in (selection.note() or "")


def test_the_sample_is_stable_for_a_job_and_differs_between_jobs() -> None:
    assert large_job("a", 60).rows() == large_job("a", 60).rows()
    assert large_job("a", 60).rows() != large_job("b", 60).rows()


def test_a_sample_is_fair() -> None:
    hits = [0] * 10
    for job in range(4_000):
        selection = GallerySelection(f"job-{job}", first=None, others=Sample(3))
        for row in range(10):
            selection.add(report_row(row))
        for row_kept in selection.rows():
            hits[row_kept.row] += 1
    assert all(1_080 < count < 1_320 for count in hits)  # 1,200 each, give or take 4 sigma


def test_job_json_survives_a_round_trip() -> None:
    run = split_run(started_at=0.0)
    summary = Aggregate().summary(run, pages=1, finished_at=1.2345)
    assert JobSummary.model_validate_json(summary.to_json()) == summary
    assert summary.finished_at == datetime(1970, 1, 1, 0, 0, 1, 234_000, UTC)
    assert summary.duration_seconds == 1.234
