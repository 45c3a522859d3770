"""The sums of job.json, the chart's histogram, the gallery's sample."""

from datetime import UTC, datetime
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from darkroom.errors import REMEDIATIONS, Reason, remediation
from darkroom.report import sampling
from darkroom.report.rows import ReportRow, RowStatus
from darkroom.report.sampling import GallerySelection, Reservoir
from darkroom.report.summary import (
    MOST_BARS,
    MOST_WARNINGS,
    JobSummary,
    Latencies,
    Results,
    SourceSummary,
    Tally,
    Timeline,
    utc,
)
from tests.report_world import a_run


def line(row: int = 0, status: RowStatus = RowStatus.SUCCEEDED, **changes: object) -> ReportRow:
    return ReportRow(row=row, key=f"{row:06d}", status=status, **changes)  # type: ignore[arg-type]


def tally_of(*lines: ReportRow) -> Tally:
    tally = Tally()
    for one in lines:
        tally.add(one)
    return tally


statuses = st.sampled_from(list(RowStatus))


@given(st.lists(st.tuples(statuses, st.booleans(), st.integers(0, 500_000))))
def test_statuses_add_up_to_the_rows_and_costs_to_the_total(
    rows: list[tuple[RowStatus, bool, int]],
) -> None:
    tally = tally_of(*(line(i, s, earlier=e, cost_micro_usd=c) for i, (s, e, c) in enumerate(rows)))
    counts, cost = tally.counts(), tally.cost()
    assert counts.succeeded + counts.failed + counts.dead + counts.skipped == counts.rows
    assert counts.resumed <= counts.succeeded
    assert counts.kept_failed <= counts.failed + counts.dead
    assert round(cost.total_usd * 1e6) == sum(c for _, _, c in rows)


def test_the_fallback_rate_is_of_the_rows_this_upload_made() -> None:
    tally = tally_of(
        line(0, fallback=True),
        line(1),
        line(2, earlier=True, fallback=True),
        line(3, RowStatus.FAILED, fallback=True),
    )
    assert tally.fallback().model_dump() == {"rows": 1, "rate": 0.5}


def test_unknown_prices_are_counted_and_not_taken_for_free() -> None:
    cost = tally_of(line(0, cost_micro_usd=None), line(1, cost_micro_usd=10_000)).cost()
    assert (cost.total_usd, cost.unpriced_rows) == (0.01, 1)


def test_endpoints_are_told_apart() -> None:
    tally = tally_of(
        line(0, endpoint="a", provider="gemini", latency_ms=1000, cost_micro_usd=5),
        line(1, endpoint="b", provider="openai", latency_ms=2000, fallback=True),
        line(2, RowStatus.DEAD, endpoint="a", provider="gemini"),
        line(3, endpoint="a", provider="gemini", earlier=True),
    )
    a, b = tally.endpoints()
    assert (a.endpoint, a.succeeded, a.dead, a.cost_usd) == ("a", 1, 1, 0.000005)
    assert (b.provider, b.succeeded, b.fallback) == ("openai", 1, 1)


def test_errors_are_classed_with_the_most_frequent_first() -> None:
    refused = {"reason": "refused", "detail": "no"}
    tally = tally_of(
        line(5, RowStatus.DEAD, reason="unavailable", detail="HTTP 503"),
        line(6, RowStatus.FAILED, **refused),
        line(7, RowStatus.FAILED, **refused),
    )
    first, second = tally.errors()
    assert (first.reason, first.rows, first.example_row, first.example_detail) == (
        "refused",
        2,
        6,
        "no",
    )
    assert (second.status, second.what_to_do) == ("dead", REMEDIATIONS[Reason.UNAVAILABLE])


def test_every_reason_has_advice_and_an_unknown_one_too() -> None:
    assert set(REMEDIATIONS) == set(Reason)
    assert remediation("from_the_future")


def test_warnings_are_counted_and_bounded() -> None:
    tally = tally_of(*(line(i, warnings=("the same", f"row {i}")) for i in range(200)))
    told = tally.warnings()
    assert (told[0].text, told[0].rows) == ("the same", 200)
    assert len(told) == MOST_WARNINGS + 1
    assert told[-1].text.startswith("151 more warnings")


@given(st.lists(st.integers(1, 900_000), min_size=1, max_size=200), st.floats(0.01, 1))
def test_percentiles_are_within_five_percent(values: list[int], share: float) -> None:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    found = latencies.percentile(share)
    assert found is not None
    at_most = sum(v <= found * 1.05 + 1 for v in values)
    below = sum(v < found / 1.05 - 1 for v in values)
    assert below - 1e-6 <= share * len(values) <= at_most + 1e-6


def test_no_latency_has_no_percentile() -> None:
    assert Latencies().percentile(0.5) is None


@given(
    st.lists(
        st.tuples(
            st.floats(1.7e9, 1.9e9),
            st.sampled_from([RowStatus.SUCCEEDED, RowStatus.FAILED, RowStatus.DEAD]),
        ),
        max_size=60,
    )
)
def test_a_timeline_never_grows_and_loses_nothing(
    points: list[tuple[float, RowStatus]],
) -> None:
    timeline = Timeline()
    for at, status in points:
        timeline.add(at, status)
    bars = timeline.bars()
    assert len(bars) <= MOST_BARS
    assert sum(bar.total for bar in bars) == len(points)
    assert sum(bar.dead for bar in bars) == sum(s is RowStatus.DEAD for _, s in points)
    for at, _ in points:
        assert any(bar.start <= at < bar.start + timeline.width_seconds for bar in bars)


def test_a_small_job_is_shown_whole_but_for_rows_outside_the_filter() -> None:
    selection = GallerySelection("j")
    for row in range(30):
        selection.add(line(row, RowStatus.SKIPPED if row < 10 else RowStatus.SUCCEEDED))
    assert [x.row for x in selection.rows()] == list(range(10, 30))
    assert selection.note() == (
        "10 rows outside filter-rows are not shown. manifest.csv lists every row."
    )


def test_a_job_of_exactly_the_limit_is_shown_whole() -> None:
    selection = GallerySelection("j")
    for row in range(sampling.SHOW_ALL_UP_TO):
        selection.add(line(row))
    assert len(selection.rows()) == sampling.SHOW_ALL_UP_TO
    assert selection.note() is None


def large(job: str, bad_every: int, rows: int = 6_000) -> GallerySelection:
    selection = GallerySelection(job)
    for row in range(rows):
        bad = row % bad_every == 0
        selection.add(line(row, RowStatus.FAILED if bad else RowStatus.SUCCEEDED))
    return selection


def test_a_large_job_shows_what_failed_and_a_sample_and_says_so() -> None:
    selection = large("j", bad_every=60)
    rows = selection.rows()
    assert sum(x.status is RowStatus.FAILED for x in rows) == 100
    assert sum(x.status is RowStatus.SUCCEEDED for x in rows) == sampling.SAMPLE
    assert [x.row for x in rows] == sorted(x.row for x in rows)
    assert "all 100 rows that failed" in (selection.note() or "")
    assert "a random 1,000 of the 5,900 rows" in (selection.note() or "")


def test_more_failures_than_fit_are_sampled_too() -> None:
    selection = large("j", bad_every=2)
    assert len(selection.rows()) == sampling.MOST_FAILED + sampling.SAMPLE
    assert "a random 1,000 of the 3,000 rows that failed" in (selection.note() or "")


def test_the_sample_is_the_same_each_time_and_another_for_another_job() -> None:
    assert large("a", 60).rows() == large("a", 60).rows()
    assert large("a", 60).rows() != large("b", 60).rows()


def test_a_reservoir_is_fair() -> None:
    hits = [0] * 10
    random = Random(1)
    for _ in range(4_000):
        reservoir = Reservoir(3, random)
        for row in range(10):
            reservoir.add(line(row))
        for kept in reservoir.kept:
            hits[kept.row] += 1
    assert all(1_080 < count < 1_320 for count in hits)  # 1,200 each, give or take 4 sigma


def test_job_json_reads_back_as_it_was_written() -> None:
    run = a_run()
    summary = JobSummary(
        job=run.job,
        run=run.run,
        state="done",
        source=SourceSummary(bucket="b", key="k"),
        options=run.options,
        started_at=utc(0.0),
        finished_at=utc(1.2345),
        duration_seconds=1.234,
        results=Results(report="r", images="i"),
    )
    assert JobSummary.model_validate_json(summary.to_json()) == summary
    assert summary.finished_at == datetime(1970, 1, 1, 0, 0, 1, 234_000, UTC)
