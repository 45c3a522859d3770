"""The report as a use case: what is written, when, and that it is never stale."""

import itertools
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from darkroom.csv_input.reader import JobRow
from darkroom.errors import JobRejected, Reason, ServiceUnavailable, UploadLost
from darkroom.images.containers import add_thumbnail
from darkroom.jobs import JobOptions, RejectedUpload, ResultPaths
from darkroom.report.notification import notification
from darkroom.report.reporter import ReportOutcome
from darkroom.report.summary import JobSummary
from darkroom.rows import RowRequest, RowResult, RowState
from tests.corpus.images import saved
from tests.fakes.ledger import FakeLedger
from tests.fakes.reporting import EDITED, JOB, START, ReportHarness, read_csv, split_run
from tests.fakes.services import FakeStore

CSV = "image_url,instruction,sku\nhttps://x.test/a.jpg,make it blue,A1\nb.jpg,make it red,B2\n"
REFUSED = RowResult(RowState.FAILED, Reason.REFUSED, "blocked by the provider")


def started_job(*results: RowResult, text: str = CSV) -> ReportHarness:
    """A run whose first rows have `results`."""
    harness = ReportHarness(text)
    harness.start()
    for row, result in zip(harness.job_rows, results, strict=False):
        harness.settle(row, result)
    return harness


def complete_job(text: str = CSV) -> ReportHarness:
    """A run whose first row succeeded and whose second was refused."""
    return started_job(EDITED, REFUSED, text=text)


def reported_job(text: str = CSV) -> ReportHarness:
    harness = complete_job(text)
    assert harness.report() is ReportOutcome.MADE
    return harness


def test_every_row_has_one_line_with_its_outcome_and_job_json_counts_them() -> None:
    harness = reported_job(CSV + "c.jpg,,C3\n")
    assert [(x["sku"], x["row"], x["status"], x["reason"]) for x in harness.manifest] == [
        ("A1", "0", "succeeded", ""),
        ("B2", "1", "failed", "refused"),
        ("C3", "2", "failed", "bad_input"),
    ]
    zero = dict.fromkeys(("dead", "skipped", "resumed", "kept_failed"), 0)
    assert harness.summary["counts"] == {"rows": 3, "succeeded": 1, "failed": 2} | zero
    assert harness.summary["by_reason"] == {"refused": 1, "bad_input": 1}
    assert harness.summary["state"] == "done"
    assert list(harness.store.objects)[-1] == f"{JOB}/job.json"
    assert harness.telemetry.logged("error") == []  # its counters agree with the ledger's


SMALL, LARGE = (saved(Image.new("RGB", (side, side)), "WEBP") for side in (32, 64))
(IMAGE,) = EDITED.outputs
PREVIEW = add_thumbnail(LARGE, SMALL)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (PREVIEW, SMALL),
        (SMALL, SMALL),  # as an earlier version stored it
        (PREVIEW + bytes(500_000), SMALL),
        (LARGE + bytes(500_000), None),  # too large for a page
        (add_thumbnail(LARGE, b"<svg onload=alert(1)>"), None),
        (b"damaged", None),
        (b"", None),
        (None, None),
    ],
)
def test_the_gallery_embeds_the_thumbnail_in_the_preview_and_links_the_preview(
    stored: bytes | None, shown: bytes | None
) -> None:
    """One that cannot be read leaves the card without "before"."""
    harness = started_job(EDITED, text=CSV.split("b.jpg", maxsplit=1)[0])
    if stored is not None:
        harness.store.put(ResultPaths(JOB).thumb(IMAGE, "before"), stored, "image/webp")
    assert harness.report() is ReportOutcome.MADE
    page = harness.text("report.html")
    uris = re.findall(r'<img src="data:image/webp;base64,([^"]+)" alt="Before', page)
    assert uris == ([b64encode(shown).decode()] if shown else [])
    assert ('href="thumbs/000000.png-before.webp"' in page) is (shown is not None)
    assert harness.telemetry.logged("error") == []


def test_a_card_takes_one_read_for_each_of_its_sides() -> None:
    """Without a request to find out whether what it links to is there."""
    asked: list[str] = []

    class CountingStore(FakeStore):
        def get(self, key: str) -> bytes | None:
            asked.append(key)
            return super().get(key)

        def metadata(self, key: str) -> Mapping[str, str] | None:
            asked.append(key)
            return super().metadata(key)

    harness = started_job(EDITED, text=CSV.split("b.jpg", maxsplit=1)[0])
    harness.store = CountingStore()
    harness.store.put(ResultPaths(JOB).thumb(IMAGE, "before"), PREVIEW, "image/webp")
    asked.clear()
    assert harness.report() is ReportOutcome.MADE
    thumbs = [ResultPaths(JOB).thumb(IMAGE, side) for side in ("after", "before")]
    assert sorted(key for key in asked if "/thumbs/" in key) == thumbs


def test_a_job_with_unsettled_rows_is_not_reported() -> None:
    harness = started_job(EDITED)
    assert harness.report() is ReportOutcome.NOT_READY
    assert harness.store.objects == {}


def test_rows_that_no_worker_had_when_the_job_was_stopped_are_reported_as_stopped() -> None:
    harness = started_job(EDITED)
    harness.ledger.stop(JOB)
    harness.ledger.give_up_lost(harness.run)
    assert harness.report() is ReportOutcome.MADE
    row = harness.manifest[1]
    assert (row["status"], row["reason"]) == ("failed", "stopped")
    assert row["detail"] == "the job was stopped: upload the CSV again to continue"
    assert (harness.summary["state"], harness.summary["counts"]["failed"]) == ("stopped", 1)
    assert harness.telemetry.logged("error") == []


def test_a_second_reporter_or_an_unknown_job_makes_nothing() -> None:
    harness = reported_job()
    assert harness.report() is ReportOutcome.ALREADY_MADE
    assert harness.report(job="jobs/other") is ReportOutcome.NO_SUCH_JOB
    assert len(harness.notifications) == 1


class BrokenStore(FakeStore):
    def upload_part(self, key: str, *args: Any) -> str:
        if key.endswith(".html"):
            raise OSError("the bucket is unavailable")
        return super().upload_part(key, *args)


def test_a_reporter_that_crashed_leaves_no_job_json_and_its_retry_makes_it() -> None:
    harness = complete_job()
    broken = BrokenStore()
    with pytest.raises(OSError, match="unavailable"):
        harness.report(owner="request-1", store=broken)
    assert f"{JOB}/job.json" not in broken.objects
    assert harness.report(owner="request-2") is ReportOutcome.NOT_READY
    assert harness.report(owner="request-1") is ReportOutcome.MADE
    assert len(harness.notifications) == 1


def test_a_report_that_s3_did_not_answer_is_left_to_any_reporter() -> None:
    """The sweep's begins under another name, and need not wait for a lease of 15 minutes."""
    harness = complete_job()

    class UnavailableStore(FakeStore):
        def upload_part(self, key: str, *args: Any) -> str:
            raise ServiceUnavailable("the results bucket (S3) is unavailable at the moment")

    with pytest.raises(ServiceUnavailable):
        harness.report(owner="request-1", store=UnavailableStore())
    assert harness.report(owner="request-2") is ReportOutcome.MADE


def redrive_and_succeed(harness: ReportHarness) -> None:
    """Redrives the failed row: its old outcome leaves the counters in one more transition."""
    harness.add_to_counters(failed=-1, transitions=1)
    harness.settle(harness.job_rows[1])


class RedrivingStore(FakeStore):
    """Calls `redrive` when the report is about to be complete."""

    redrive: Callable[[], None]

    def put(self, key: str, *args: Any, **options: Any) -> bool:
        if key.endswith("job.json"):
            self.redrive()
        return super().put(key, *args, **options)


def test_rows_redriven_meanwhile_make_the_report_again() -> None:
    harness = complete_job()
    harness.store = store = RedrivingStore()

    def once() -> None:
        store.redrive = lambda: None
        redrive_and_succeed(harness)

    store.redrive = once
    assert harness.report() is ReportOutcome.MADE
    assert [x["status"] for x in harness.manifest] == ["succeeded", "succeeded"]
    assert len(harness.notifications) == 1


def test_a_report_that_redrives_keep_overtaking_is_left_to_a_retry() -> None:
    harness = complete_job()
    store = RedrivingStore()
    store.redrive = lambda: harness.add_to_counters(transitions=1)
    with pytest.raises(ServiceUnavailable, match="redriven each time"):
        harness.report(store=store)
    assert harness.report() is ReportOutcome.MADE


def test_a_report_made_again_after_a_redrive_says_so() -> None:
    harness = reported_job()
    redrive_and_succeed(harness)
    assert harness.report() is ReportOutcome.MADE
    assert harness.summary["revision"] == 2
    assert "made again" in harness.notifications[1][0]
    assert "made again" in harness.text("report.html")


def test_rows_of_an_earlier_upload_stay_succeeded_and_are_counted_apart() -> None:
    harness = reported_job()
    del harness.ledger.rows[JOB, harness.job_rows[1].key]
    harness.csv = CSV.replace("make it red", "make it green")
    harness.start(run="run-2", sequencer="2")
    harness.settle(harness.job_rows[1], replace(EDITED, cost_micro_usd=40_000, fallback=True))
    assert harness.report() is ReportOutcome.MADE
    summary = harness.summary
    assert summary["run"] == "run-2"
    assert summary["revision"] == 1
    assert summary["counts"]["succeeded"] == 2
    assert summary["counts"]["resumed"] == 1
    cost = {"this_run_usd": 0.04, "earlier_runs_usd": 0.134, "total_usd": 0.174}
    assert summary["cost"] == cost | {"unpriced_rows": 0, "unclaimed_usd": 0}
    assert summary["fallback"] == {"rows": 1, "rate": 1.0, "note": None}
    assert [x["endpoint"] for x in harness.manifest] == ["gemini-main", "gemini-main"]


def test_the_total_includes_results_that_a_later_upload_replaced_or_dropped() -> None:
    harness = reported_job()
    spent = harness.summary["cost"]["total_usd"]
    assert spent > 0
    harness.csv = "image_url,instruction\nnew.jpg,make it night\n"
    harness.start(run="run-2", sequencer="2")
    harness.settle(harness.job_rows[0], replace(EDITED, cost_micro_usd=40_000))
    harness.report()
    total = pytest.approx(spent + 0.04)
    cost = {"this_run_usd": 0.04, "earlier_runs_usd": spent, "total_usd": total}
    assert harness.summary["cost"] == cost | {"unpriced_rows": 0, "unclaimed_usd": 0}
    harness.reject_file("The file is empty.", run="run-3", sequencer="3")
    harness.report()
    assert harness.summary["cost"]["total_usd"] == total


def test_rows_kept_failed_are_counted_apart() -> None:
    harness = reported_job()
    harness.start(run="run-2", sequencer="2")
    assert harness.report() is ReportOutcome.MADE
    counts = harness.summary["counts"]
    assert (counts["failed"], counts["kept_failed"]) == (1, 1)


def test_skipped_rows_keep_the_image_of_an_earlier_upload() -> None:
    harness = reported_job()
    harness.options = JobOptions(filter_rows="1:")
    assert harness.start(run="run-2", sequencer="2").options.filter_rows == "1:"
    harness.report()
    first = harness.manifest[0]
    assert first["status"] == "skipped"
    assert first["output"] == f"{JOB}/images/000000.png"
    assert "earlier upload" in first["detail"]


def test_a_row_without_an_outcome_in_the_ledger_is_reported_as_failed() -> None:
    harness = complete_job()
    del harness.ledger.rows[JOB, harness.job_rows[0].key]
    harness.report()
    assert harness.manifest[0]["status"] == "failed"
    assert harness.manifest[0]["reason"] == "worker_lost"
    assert "manifest_disagrees_with_counters" in harness.telemetry.logged("error")


def test_a_deleted_csv_still_gets_a_report_of_the_ledgers_rows() -> None:
    harness = complete_job(CSV + "c.jpg,,C3\n")

    def deleted(run: object) -> Any:
        raise JobRejected("The file jobs/products.csv is not in the bucket any more.")

    assert harness.report(job_rows=deleted) is ReportOutcome.MADE
    assert sorted((x["row"], x["status"], x["reason"]) for x in harness.manifest) == [
        ("0", "succeeded", ""),
        ("1", "failed", "refused"),
    ]
    assert "sku" not in harness.manifest[0]
    assert "not in the bucket any more" in str(harness.summary["warnings"])
    assert "not in the bucket any more" in harness.text("report.html")


def test_a_csv_that_becomes_unreadable_midway_leaves_no_partial_manifest() -> None:
    harness = started_job(*[EDITED] * 250, text="instruction\n" + "draw a cat\n" * 250)

    class ReplacedFile:
        columns = read_csv(harness.csv).columns
        header = columns.header

        def from_row(self, row: int) -> Iterator[JobRow]:
            yield from harness.job_rows[:200]
            raise JobRejected("The file was replaced while it was read.")

    assert harness.report(job_rows=lambda run: ReplacedFile()) is ReportOutcome.MADE
    assert sorted(int(x["row"]) for x in harness.manifest) == list(range(250))
    assert harness.summary["counts"]["rows"] == 250


def test_a_rejected_file_gets_its_reason_and_nothing_else() -> None:
    harness = ReportHarness(CSV)
    harness.reject_file("The file has no instruction column: name one.")
    assert harness.report() is ReportOutcome.MADE
    assert harness.summary["state"] == "failed"
    assert harness.summary["reason"] == "The file has no instruction column: name one."
    assert harness.summary["results"]["manifest"] is None
    assert sorted(harness.store.objects) == [f"{JOB}/job.json", f"{JOB}/report.html"]
    assert "no instruction column" in harness.text("report.html")
    assert harness.report() is ReportOutcome.ALREADY_MADE
    assert len(harness.notifications) == 1


def test_only_one_of_two_reporters_notifies_of_a_rejected_file() -> None:
    harness = ReportHarness(CSV)
    harness.reject_file("no header")

    class RacingStore(FakeStore):
        other: ReportOutcome | None = None

        def metadata(self, key: str) -> Any:
            stored = super().metadata(key)
            if self.other is None:
                self.other = ReportOutcome.NO_SUCH_JOB  # once only, not in the other's own call
                self.other = harness.report()
            return stored

    harness.store = racing = RacingStore()
    first = harness.report()
    assert {first, racing.other} == {ReportOutcome.MADE, ReportOutcome.ALREADY_MADE}
    assert len(harness.notifications) == 1


def two_page_report() -> ReportHarness:
    harness = started_job(*[EDITED] * 150, text="instruction\n" + "draw a cat\n" * 150)
    harness.report()
    return harness


def test_a_rejected_file_leaves_the_earlier_manifest_and_further_pages() -> None:
    harness = two_page_report()
    harness.reject_file("The file is empty.", run="run-2", sequencer="2")
    assert harness.report() is ReportOutcome.MADE
    assert "The file is empty." in harness.text("report.html")
    assert len(harness.manifest) == 150
    assert 'id="r-149"' in harness.text("report-002.html")


def test_an_upload_during_a_report_leaves_the_report_to_its_own_run() -> None:
    harness = complete_job()

    class UploadingLedger(FakeLedger):
        uploaded = False

        def get_many(self, job: str, keys: Any) -> Any:
            if not self.uploaded:
                self.uploaded = True
                self.start(split_run(run="run-2", sequencer="2", split_done=False), 60)
            return super().get_many(job, keys)

    old = harness.ledger
    harness.ledger = UploadingLedger(harness.clock, old.rows, old.runs, old.jobs, old.sums)
    assert harness.report() is ReportOutcome.NOT_READY
    assert harness.store.objects == {}
    assert harness.notifications == []


def test_the_report_of_a_stopped_job_says_so() -> None:
    harness = started_job(EDITED)
    harness.ledger.stop(JOB)
    stopped = RowResult(RowState.FAILED, Reason.STOPPED, "stopped by the user")
    harness.settle(harness.job_rows[1], stopped)
    assert harness.report() is ReportOutcome.MADE
    assert harness.summary["state"] == "stopped"
    assert harness.report() is ReportOutcome.ALREADY_MADE


def test_the_notification_has_counts_cost_and_keys_and_a_subject_for_sns() -> None:
    harness = reported_job()
    subject, body = harness.notifications[0]
    assert subject == "Darkroom: 1 of 2 rows succeeded, 1 did not - jobs/products"
    assert "\nCost of this upload: $0.134\n" in body
    assert f"{JOB}/manifest.csv" in body
    assert "1 failed, refused:" in body
    summary = JobSummary.model_validate_json(harness.text("job.json"))
    subject, _ = notification(summary.model_copy(update={"job": "jobs/" + "ü" * 200}))
    assert len(subject) <= 100
    assert subject.isascii()


def test_a_notification_that_cannot_be_sent_does_not_undo_the_report() -> None:
    harness = complete_job()

    def broken(subject: str, body: str) -> None:
        raise OSError("no topic")

    assert harness.report(notify=broken) is ReportOutcome.MADE
    assert harness.telemetry.logged("exception") == ["notification_not_sent"]


def test_an_unreadable_old_job_json_does_not_prevent_a_report() -> None:
    harness = complete_job()
    harness.store.put(f"{JOB}/job.json", b'{"version": 99}', "application/json")
    assert harness.report() is ReportOutcome.MADE
    assert harness.telemetry.logged("warning") == ["summary_not_readable"]


def test_surplus_pages_of_an_earlier_report_link_to_the_new_one() -> None:
    harness = two_page_report()
    assert "report-002.html" in harness.text("report.html")
    harness.csv = "instruction\n" + "draw a cat\n" * 20
    harness.start(run="run-2", sequencer="2")
    harness.report()
    assert harness.summary["results"]["pages"] == [f"{JOB}/report.html"]
    assert "earlier report" in harness.text("report-002.html")
    assert 'href="report.html"' in harness.text("report-002.html")


def test_budget_and_dead_rows_name_the_next_step() -> None:
    harness = started_job(
        RowResult(RowState.FAILED, Reason.BUDGET, "no room"),
        RowResult(RowState.DEAD, Reason.UNAVAILABLE, "HTTP 503"),
    )
    harness.report()
    assert "larger budget-usd" in harness.text("report.html")
    assert "Redrive when it has recovered" in harness.text("report.html")


def test_the_reporter_of_an_older_run_changes_nothing_of_a_newer_report() -> None:
    harness = started_job(*[EDITED] * 150, text="instruction\n" + "draw a cat\n" * 150)

    class SlowStore(FakeStore):
        """While the first report stages its gallery, the next upload is processed and reported."""

        overtaken = False

        def upload_part(self, key: str, *args: Any) -> str:
            if key.endswith(".html") and not self.overtaken:
                self.overtaken = True
                harness.csv = CSV
                harness.ledger.rows.clear()
                harness.start(run="run-2", sequencer="2")
                for row, result in zip(harness.job_rows, (EDITED, REFUSED), strict=True):
                    harness.settle(row, result)
                assert harness.report() is ReportOutcome.MADE
                self.newest = dict(self.objects)
            return super().upload_part(key, *args)

    harness.store = store = SlowStore()
    assert harness.report() is ReportOutcome.ALREADY_MADE
    assert store.objects == store.newest
    assert harness.summary["run"] == "run-2"
    assert len(harness.manifest) == 2
    assert store.uploads == {}
    assert len(harness.notifications) == 1


def countdown(seconds: float, step: float) -> Callable[[], float]:
    """The remaining time of an invocation, `step` seconds less each time it is asked for."""
    remaining = itertools.count(seconds, -step)
    return lambda: next(remaining)


def large_rows(count: int) -> str:
    """Rows of about 20 KB each, so that a manifest has several parts."""
    return "instruction,notes\n" + "".join(
        f"draw cat {n},{n}-{'x' * 20_000}\n" for n in range(count)
    )


def test_a_report_continues_before_its_time_is_over_and_is_the_same() -> None:
    text = large_rows(1_600)
    results = [REFUSED if n % 7 == 3 else EDITED for n in range(1_600)]
    whole, interrupted = started_job(*results, text=text), started_job(*results, text=text)
    assert whole.report() is ReportOutcome.MADE
    outcomes: list[ReportOutcome] = []
    while not outcomes or outcomes[-1] is ReportOutcome.CONTINUES:
        event = interrupted.continued[-1] if interrupted.continued else (JOB, "request-1")
        assert event == (JOB, "request-1")
        # Time for one batch of rows, then too little for the gallery, then enough.
        seconds = 60.5 if len(outcomes) < 4 else 900.0
        outcomes.append(interrupted.report(event[1], remaining_seconds=countdown(seconds, 0.4)))
    assert outcomes == [ReportOutcome.CONTINUES] * 4 + [ReportOutcome.MADE]
    for name in ("manifest.csv", "failed.csv", "report.html"):
        assert interrupted.text(name) == whole.text(name)
    assert interrupted.summary == whole.summary
    assert interrupted.store.uploads == {}
    states = [body for key, (body, _, _) in interrupted.store.objects.items() if "/reports/" in key]
    assert states == [b""]


def test_a_row_redriven_between_two_invocations_starts_the_report_again() -> None:
    harness = started_job(*[EDITED, *[REFUSED] * 1_199], text=large_rows(1_200))
    assert harness.report("a", remaining_seconds=countdown(60.5, 1)) is ReportOutcome.CONTINUES
    harness.add_to_counters(failed=-1, transitions=1)
    assert harness.report("a") is ReportOutcome.NOT_READY
    harness.settle(harness.job_rows[1])
    assert harness.report("b") is ReportOutcome.NOT_READY  # the first one's lease
    assert harness.report("a") is ReportOutcome.MADE
    assert harness.summary["counts"]["succeeded"] == 2
    assert [line["row"] for line in harness.manifest] == [str(n) for n in range(1_200)]


def test_a_report_whose_parts_are_gone_starts_again() -> None:
    harness = started_job(*[EDITED] * 1_200, text=large_rows(1_200))
    assert harness.report("a", remaining_seconds=countdown(60.5, 1)) is ReportOutcome.CONTINUES
    harness.store.uploads.clear()
    with pytest.raises(UploadLost):
        harness.report("a")
    assert harness.report("a") is ReportOutcome.MADE
    assert len(harness.manifest) == 1_200


def test_a_refused_part_ends_the_report_at_once() -> None:
    harness = started_job(*[EDITED] * 2_500, text=large_rows(2_500))

    class FullStore(FakeStore):
        def upload_part(self, key: str, *args: Any) -> str:
            raise PermissionError("AccessDenied")

    looked_up: list[str] = []

    class CountingLedger(FakeLedger):
        def get_many(self, job: str, keys: Any) -> Any:
            looked_up.extend(keys)
            return super().get_many(job, keys)

    old = harness.ledger
    harness.ledger = CountingLedger(harness.clock, old.rows, old.runs, old.jobs, old.sums)
    with pytest.raises(PermissionError):
        harness.report(store=FullStore())
    assert len(looked_up) < 2_000  # the rows of the first part, and those read ahead


def test_a_report_that_crashed_while_it_was_published_is_published_by_its_retry() -> None:
    harness = reported_job()
    redrive_and_succeed(harness)

    class CrashingStore(FakeStore):
        def complete_upload(self, key: str, *args: Any, **options: Any) -> bool:
            if key.endswith(".html"):
                raise OSError("the worker is gone")
            return super().complete_upload(key, *args, **options)

    crashing = CrashingStore(harness.store.objects)
    with pytest.raises(OSError, match="gone"):
        harness.report("a", store=crashing)
    assert harness.summary["revision"] == 1
    assert harness.report("a") is ReportOutcome.MADE
    assert harness.summary["revision"] == 2
    assert "made again" in harness.text("report.html")


def test_failed_rows_are_listed_as_a_csv_that_keeps_their_identity() -> None:
    text = "instruction,sku\n=draw a cat,A\ndraw a dog,B\n,C\ndraw a cow,D\n"
    harness = started_job(REFUSED, EDITED, text=text)
    harness.settle(harness.job_rows[3], RowResult(RowState.DEAD, Reason.UNAVAILABLE, "HTTP 503"))
    harness.report()
    assert harness.text("failed.csv").splitlines() == [
        "index,instruction,sku",
        f"{harness.job_rows[0].key},=draw a cat,A",
        f"{harness.job_rows[2].key},,C",
        f"{harness.job_rows[3].key},draw a cow,D",
    ]
    assert harness.summary["results"]["failed_rows"] == f"{JOB}/failed.csv"
    again = list(read_csv(harness.text("failed.csv")))
    first, dead = harness.job_rows[0], harness.job_rows[3]
    assert isinstance(first.request, RowRequest)
    assert isinstance(again[0].request, RowRequest)
    assert [row.key for row in again] == [first.key, harness.job_rows[2].key, dead.key]
    assert again[0].request.fingerprint() == first.request.fingerprint()


def test_the_page_of_failed_rows_is_replaced_when_none_failed_any_more() -> None:
    harness = reported_job()
    assert harness.summary["results"]["problems"] == f"{JOB}/report-problems.html"
    assert harness.text("report-problems.html").count("<article") == 1
    redrive_and_succeed(harness)
    harness.report()
    assert harness.summary["results"]["problems"] is None
    assert "earlier report" in harness.text("report-problems.html")


def test_an_index_of_the_csv_stays_in_its_column() -> None:
    harness = started_job(REFUSED, REFUSED, text="instruction,id\na cat,cat-1\na dog,\n")
    harness.report()
    dog = harness.job_rows[1].key
    assert harness.text("failed.csv").splitlines()[1:] == ["a cat,cat-1", f"a dog,{dog}"]


def test_without_failures_there_is_no_failed_csv_and_an_older_one_becomes_empty() -> None:
    harness = started_job(EDITED, EDITED)
    harness.report()
    assert f"{JOB}/failed.csv" not in harness.store.objects
    assert harness.summary["results"]["failed_rows"] is None
    harness = reported_job()
    assert len(harness.text("failed.csv").splitlines()) == 2
    redrive_and_succeed(harness)
    harness.report()
    assert harness.text("failed.csv").splitlines() == ["index,image_url,instruction,sku"]
    assert harness.summary["results"]["failed_rows"] is None


WAITING = "every key of gemini-main was rejected (401): correct it with `darkroom endpoints push`"


def test_progress_writes_job_json_alone_with_what_the_job_waits_for() -> None:
    harness = started_job(EDITED)
    harness.clock.time = START + 30
    harness.ledger.set_waiting(harness.run, Reason.KEY_REJECTED, WAITING)
    harness.clock.time = START + 90
    assert harness.progress() is ReportOutcome.PROGRESS
    assert list(harness.store.objects) == [f"{JOB}/job.json"]
    summary = harness.summary
    assert (summary["state"], summary["finished_at"], summary["duration_seconds"]) == (
        *("running", None),
        90.0,
    )
    assert summary["waiting"] == {
        "reason": "key_rejected",
        "detail": WAITING,
        "since": "2026-09-21T14:13:50Z",
    }
    assert (summary["counts"]["rows"], summary["counts"]["succeeded"]) == (2, 1)
    assert summary["cost"]["this_run_usd"] == 0.134
    assert harness.notifications == []
    harness.ledger.clear_waiting(harness.run)
    harness.progress()
    assert harness.summary["waiting"] is None
    harness.settle(harness.job_rows[1])
    assert harness.report() is ReportOutcome.MADE
    assert (harness.summary["state"], harness.summary["revision"]) == ("done", 1)


def test_progress_never_replaces_a_report_of_the_same_rows() -> None:
    harness = reported_job()
    before = dict(harness.store.objects)
    assert harness.progress() is ReportOutcome.ALREADY_MADE
    harness.ledger.runs[JOB, "run-1"] = replace(
        harness.ledger.runs[JOB, "run-1"], run=replace(harness.run, finished_at=None)
    )
    assert harness.progress() is ReportOutcome.ALREADY_MADE
    assert harness.progress(job="jobs/other") is ReportOutcome.NO_SUCH_JOB
    assert harness.store.objects == before


def test_progress_after_a_redrive_keeps_the_results_of_the_last_report() -> None:
    harness = reported_job()
    harness.add_to_counters(failed=-1, transitions=1)
    record = harness.ledger.runs[JOB, "run-1"]
    harness.ledger.runs[JOB, "run-1"] = replace(record, run=replace(harness.run, finished_at=None))
    assert harness.progress() is ReportOutcome.PROGRESS
    assert harness.summary["state"] == "running"
    assert harness.summary["results"]["pages"] == [f"{JOB}/report.html"]
    harness.settle(harness.job_rows[1])
    harness.report()
    assert harness.summary["revision"] == 2


def test_of_two_progress_writers_the_last_has_read_last() -> None:
    harness = started_job(EDITED)
    harness.ledger.set_waiting(harness.run, Reason.KEY_REJECTED, WAITING)

    class RacingStore(FakeStore):
        raced = False

        def put(self, *args: Any, **options: Any) -> bool:
            if not self.raced:
                self.raced = True
                harness.ledger.clear_waiting(harness.run)
                assert harness.progress() is ReportOutcome.PROGRESS
            return super().put(*args, **options)

    harness.store = RacingStore()
    assert harness.progress() is ReportOutcome.PROGRESS
    assert harness.summary["waiting"] is None


def test_uploads_rejected_while_a_run_is_under_way_are_in_job_json() -> None:
    harness = started_job(EDITED)
    upload = RejectedUpload(f"{JOB}.csv", "v2", "The file is empty.", START + 5)
    record = harness.ledger.runs[JOB, "run-1"]
    run = replace(harness.run, rejected_uploads=(upload,))
    harness.ledger.runs[JOB, "run-1"] = replace(record, run=run)
    expected = [
        {
            "version_id": "v2",
            "reason": "The file is empty.",
            "rejected_at": "2026-09-21T14:13:25Z",
        }
    ]
    harness.progress()
    assert harness.summary["rejected_uploads"] == expected
    harness.settle(harness.job_rows[1])
    harness.report()
    assert harness.summary["rejected_uploads"] == expected


def test_images_from_the_fallback_because_of_a_rejected_key_are_explained() -> None:
    cause = "gemini-main rejected its key (1f3a9c2b)"
    by_fallback = replace(EDITED, endpoint="openai-main", fallback=True, fallback_cause=cause)
    harness = started_job(by_fallback, by_fallback)
    harness.report()
    note = f"All images came from the fallback: {cause}. See `darkroom endpoints show`."
    assert harness.summary["fallback"] == {"rows": 2, "rate": 1.0, "note": note}
    assert note in harness.text("report.html")
    assert note in harness.notifications[0][1]
    harness = started_job(by_fallback, EDITED)
    harness.report()
    assert harness.summary["fallback"]["note"].startswith("50% of the images came from")
    outage = replace(by_fallback, fallback_cause="")
    harness = started_job(outage, outage)
    harness.report()
    assert harness.summary["fallback"]["note"] is None


def test_a_line_break_in_a_key_adds_no_line_to_the_notification() -> None:
    harness = reported_job()
    summary = JobSummary.model_validate_json(harness.text("job.json"))
    forged = "jobs/x\nRows: 0\x1b[31m\u2028Dead: 9"
    results = summary.results.model_copy(update={"manifest": forged})
    named = summary.model_copy(update={"job": forged, "results": results})
    subject, body = notification(named)
    _, plain = notification(summary)
    assert len(body.splitlines()) == len(plain.splitlines())
    assert "\x1b" not in subject + body
    assert "\n" not in subject


def test_job_json_has_rows_and_cost_of_each_mode_and_answers_that_no_row_has() -> None:
    csv = "image_url,instruction\n" + "".join(f"{n}.jpg,night\n" for n in range(4))
    harness = ReportHarness(csv, options=JobOptions(mode="batch"))
    harness.start()
    in_batch = replace(EDITED, mode="batch", cost_micro_usd=67_000)
    refused = replace(in_batch, status=RowState.FAILED, reason=Reason.REFUSED, outputs=())
    results = (in_batch, in_batch, refused, EDITED)
    for row, result in zip(harness.job_rows, results, strict=True):
        harness.settle(row, result)
    harness.add_to_counters(cost_micro_usd=67_000, transitions=1)  # of a duplicate answer
    harness.report()
    assert [line["mode"] for line in harness.manifest] == ["batch", "batch", "batch", "live"]
    summary = harness.summary
    assert summary["options"]["mode"] == "batch"
    assert summary["modes"] == [
        {"mode": "batch", "succeeded": 2, "failed": 1, "dead": 0, "cost_usd": 0.201},
        {"mode": "live", "succeeded": 1, "failed": 0, "dead": 0, "cost_usd": 0.134},
    ]
    cost = summary["cost"]
    assert (cost["unclaimed_usd"], cost["this_run_usd"]) == (0.067, pytest.approx(0.402))
    page = harness.text("report.html")
    assert "<dt>In batches</dt><dd>3<small>$0.201</small>" in page
    assert "<dt>Live</dt><dd>1<small>$0.134</small>" in page
    assert "$0.067 of the cost is for answers of batches that no row waited for" in page
