"""The report as a use case: what is written, when, and that it stays true."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from darkroom.csv_input.reader import JobRow
from darkroom.errors import JobRejected, Reason, ServiceUnavailable
from darkroom.jobs import JobOptions
from darkroom.report.notification import message
from darkroom.report.reporter import ReportOutcome
from darkroom.report.summary import JobSummary
from darkroom.rows import RowResult, RowState
from tests.fakes.ledger import FakeLedger
from tests.fakes.services import FakeStore
from tests.report_world import JOB, MADE, World, a_run

CSV = "image_url,instruction,sku\nhttps://x.test/a.jpg,make it blue,A1\nb.jpg,make it red,B2\n"
REFUSED = RowResult(RowState.FAILED, reason=Reason.REFUSED, detail="the provider says no")
DEAD = RowResult(RowState.DEAD, reason=Reason.UNAVAILABLE, detail="HTTP 503")


def manifest(world: World) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(world.text("manifest.csv"))))


def summary(world: World) -> dict[str, object]:
    found: dict[str, object] = json.loads(world.text("job.json"))
    return found


def finished(text: str = CSV, options: JobOptions | None = None) -> World:
    world = World(text, options or JobOptions())
    run = world.start()
    first, second = [s for s in world.sources if not s.skipped][:2]
    world.settle(run, first)
    world.settle(run, second, REFUSED)
    return world


def test_every_row_of_the_csv_has_one_line_with_its_outcome() -> None:
    world = finished(CSV + "c.jpg,,C3\n")
    assert world.reporter().report(JOB) is ReportOutcome.MADE
    lines = manifest(world)
    assert [(x["sku"], x["row"], x["status"], x["reason"]) for x in lines] == [
        ("A1", "0", "succeeded", ""),
        ("B2", "1", "failed", "refused"),
        ("C3", "2", "failed", "bad_input"),
    ]


def test_counts_in_job_json_are_those_of_the_manifest() -> None:
    world = finished(CSV + "c.jpg,,C3\n")
    world.reporter().report(JOB)
    told = summary(world)
    assert told["counts"] == {
        "rows": 3,
        "succeeded": 1,
        "failed": 2,
        "dead": 0,
        "skipped": 0,
        "resumed": 0,
        "kept_failed": 0,
    }
    assert told["by_reason"] == {"refused": 1, "bad_input": 1}
    assert told["state"] == "done"


def test_a_job_with_rows_at_work_is_not_reported() -> None:
    world = World(CSV)
    run = world.start()
    world.settle(run, world.sources[0])
    assert world.reporter().report(JOB) is ReportOutcome.NOT_READY
    assert world.store.objects == {}


def test_a_second_reporter_makes_nothing_and_tells_nobody() -> None:
    world = finished()
    world.reporter().report(JOB)
    assert world.reporter().report(JOB) is ReportOutcome.ALREADY_MADE
    assert len(world.messages) == 1


def test_an_unknown_job_is_no_error() -> None:
    assert World(CSV).reporter().report("jobs/other") is ReportOutcome.NO_SUCH_JOB


def test_job_json_is_written_last() -> None:
    world = finished()
    world.reporter().report(JOB)
    assert list(world.store.objects)[-1] == f"{JOB}/job.json"


class BrokenStore(FakeStore):
    def put(self, key: str, *args: Any, **options: Any) -> bool:
        if key.endswith(".html"):
            raise OSError("the bucket is away")
        return super().put(key, *args, **options)


def test_a_reporter_that_crashed_leaves_no_job_json_and_its_retry_makes_it() -> None:
    world = finished()
    good, world.store = world.store, BrokenStore()
    with pytest.raises(OSError, match="away"):
        world.reporter().report(JOB, owner="request-1")
    assert f"{JOB}/job.json" not in world.store.objects
    world.store = good
    assert world.reporter().report(JOB, owner="request-2") is ReportOutcome.NOT_READY
    assert world.reporter().report(JOB, owner="request-1") is ReportOutcome.MADE
    assert len(world.messages) == 1


def redrive_and_succeed(world: World) -> None:
    """The failed row comes back and succeeds: its old outcome leaves the counters, as a move."""
    run = world.ledger.current(JOB)
    assert run is not None
    held = world.ledger.sums[JOB, run.run]
    world.ledger.sums[JOB, run.run] = replace(held, failed=0, transitions=held.transitions + 1)
    world.settle(run, world.sources[1])


def test_rows_redriven_meanwhile_make_the_report_again() -> None:
    world = finished()

    class Redriving(FakeStore):
        redriven = False

        def put(self, key: str, *args: Any, **options: Any) -> bool:
            if key.endswith("job.json") and not self.redriven:
                self.redriven = True
                redrive_and_succeed(world)
            return super().put(key, *args, **options)

    world.store = Redriving()
    assert world.reporter().report(JOB) is ReportOutcome.MADE
    assert [x["status"] for x in manifest(world)] == ["succeeded", "succeeded"]
    assert len(world.messages) == 1


def test_a_report_that_never_comes_to_rest_is_left_to_a_retry() -> None:
    world = finished()

    class Restless(FakeStore):
        def put(self, key: str, *args: Any, **options: Any) -> bool:
            if key.endswith("job.json"):
                run = world.ledger.current(JOB)
                assert run is not None
                held = world.ledger.sums[JOB, run.run]
                world.ledger.sums[JOB, run.run] = replace(held, transitions=held.transitions + 1)
            return super().put(key, *args, **options)

    world.store = Restless()
    with pytest.raises(ServiceUnavailable, match="again"):
        world.reporter().report(JOB)
    world.store = FakeStore()
    assert world.reporter().report(JOB) is ReportOutcome.MADE


def test_a_report_made_again_after_a_redrive_says_so() -> None:
    world = finished()
    world.reporter().report(JOB)
    redrive_and_succeed(world)
    assert world.reporter().report(JOB) is ReportOutcome.MADE
    assert summary(world)["revision"] == 2
    assert "made again" in world.messages[1][0]
    assert "made again" in world.text("report.html")


def test_rows_of_an_earlier_upload_stay_succeeded_and_are_counted_apart() -> None:
    world = finished()
    world.reporter().report(JOB)
    world.csv = CSV.replace("make it red", "make it green")
    del world.ledger.rows[JOB, "000001"]
    second = world.start(run="run-2", sequencer="2")
    world.settle(second, world.sources[1], replace(MADE, cost_micro_usd=40_000, fallback=True))
    assert world.reporter().report(JOB) is ReportOutcome.MADE
    told = summary(world)
    assert told["run"] == "run-2"
    assert told["revision"] == 1
    assert told["counts"]["succeeded"] == 2  # type: ignore[index]
    assert told["counts"]["resumed"] == 1  # type: ignore[index]
    assert told["cost"] == {
        "this_run_usd": 0.04,
        "earlier_runs_usd": 0.134,
        "total_usd": 0.174,
        "unpriced_rows": 0,
    }
    assert told["fallback"] == {"rows": 1, "rate": 1.0}
    assert [x["endpoint"] for x in manifest(world)] == ["gemini-main", "gemini-main"]


def test_rows_kept_failed_are_counted_apart() -> None:
    world = finished()
    world.reporter().report(JOB)
    world.start(run="run-2", sequencer="2")
    assert world.reporter().report(JOB) is ReportOutcome.MADE
    told = summary(world)["counts"]
    assert isinstance(told, dict)
    assert (told["failed"], told["kept_failed"]) == (1, 1)


def test_skipped_rows_keep_what_an_earlier_upload_made_of_them() -> None:
    world = finished()
    world.reporter().report(JOB)
    world.options = JobOptions(filter_rows="1:")
    run = world.start(run="run-2", sequencer="2")
    assert run.options.filter_rows == "1:"
    world.reporter().report(JOB)
    first = manifest(world)[0]
    assert first["status"] == "skipped"
    assert first["output"] == f"{JOB}/images/000000.png"
    assert "earlier upload" in first["detail"]


def test_a_row_the_ledger_lost_is_failed_and_told_not_left_out() -> None:
    world = finished()
    del world.ledger.rows[JOB, "000000"]
    world.reporter().report(JOB)
    line = manifest(world)[0]
    assert (line["status"], line["reason"]) == ("failed", "worker_lost")
    assert "manifest_disagrees_with_counters" in world.telemetry.logged("error")


def test_a_csv_that_is_gone_still_gets_a_report_of_what_the_ledger_knows() -> None:
    world = finished(CSV + "c.jpg,,C3\n")

    def gone(run: Any) -> Any:
        raise JobRejected("The file jobs/products.csv is not in the bucket any more.")

    assert replace(world.reporter(), job_rows=gone).report(JOB) is ReportOutcome.MADE
    lines = manifest(world)
    assert [(x["row"], x["status"], x["reason"]) for x in lines] == [
        ("0", "succeeded", ""),
        ("1", "failed", "refused"),
    ]
    assert "sku" not in lines[0]
    assert "not in the bucket any more" in str(summary(world)["warnings"])
    assert "not in the bucket any more" in world.text("report.html")


def test_a_csv_that_breaks_off_in_the_middle_leaves_no_half_manifest() -> None:
    world = finished("instruction\n" + "draw a cat\n" * 250)
    run = world.ledger.current(JOB)
    assert run is not None
    for row in world.sources[2:]:
        world.settle(run, row)

    class Broken:
        header = ("instruction",)

        def __iter__(self) -> Iterator[JobRow]:
            yield from world.sources[:200]
            raise JobRejected("The file was replaced while it was read.")

    reporter = replace(world.reporter(), job_rows=lambda run: Broken())  # type: ignore[arg-type,return-value]
    assert reporter.report(JOB) is ReportOutcome.MADE
    assert [x["row"] for x in manifest(world)] == [str(n) for n in range(250)]
    assert summary(world)["counts"]["rows"] == 250  # type: ignore[index]


def test_counters_that_agree_raise_no_alarm() -> None:
    world = finished()
    world.reporter().report(JOB)
    assert world.telemetry.logged("error") == []


def test_a_rejected_file_gets_its_sentence_and_nothing_else() -> None:
    world = World(CSV)
    run = world.ledger.start(a_run(split_done=False), 60)
    assert run is not None
    world.ledger.fail(run, "The file has no instruction column: name one.")
    assert world.reporter().report(JOB) is ReportOutcome.MADE
    told = summary(world)
    assert (told["state"], told["reason"]) == (
        "failed",
        "The file has no instruction column: name one.",
    )
    assert told["results"]["manifest"] is None  # type: ignore[index]
    assert sorted(world.store.objects) == [f"{JOB}/job.json", f"{JOB}/report.html"]
    assert "no instruction column" in world.text("report.html")
    assert world.reporter().report(JOB) is ReportOutcome.ALREADY_MADE
    assert len(world.messages) == 1


def test_only_one_of_two_reporters_tells_of_a_rejected_file() -> None:
    world = World(CSV)
    run = world.ledger.start(a_run(split_done=False), 60)
    assert run is not None
    world.ledger.fail(run, "no header")

    class Racing(FakeStore):
        other = ReportOutcome.NOT_READY

        def metadata(self, key: str) -> Any:
            held = super().metadata(key)
            if self.other is ReportOutcome.NOT_READY:
                self.other = ReportOutcome.NO_SUCH_JOB  # not again within the other's own call
                self.other = world.reporter().report(JOB)
            return held

    world.store = racing = Racing()
    first = world.reporter().report(JOB)
    assert {first, racing.other} == {ReportOutcome.MADE, ReportOutcome.ALREADY_MADE}
    assert len(world.messages) == 1


def test_a_rejected_file_leaves_the_earlier_manifest_and_further_pages() -> None:
    world = World("instruction\n" + "draw a cat\n" * 150)
    run = world.start()
    for row in world.sources:
        world.settle(run, row)
    world.reporter().report(JOB)
    bad = world.ledger.start(a_run(run="run-2", sequencer="2", split_done=False), 60)
    assert bad is not None
    world.ledger.fail(bad, "The file is empty.")
    assert world.reporter().report(JOB) is ReportOutcome.MADE
    assert "The file is empty." in world.text("report.html")
    assert len(manifest(world)) == 150
    assert 'id="r-149"' in world.text("report-002.html")


def test_an_upload_in_the_middle_of_a_report_leaves_the_report_to_its_own_run() -> None:
    world = finished()

    class Uploading(FakeLedger):
        uploaded = False

        def get_many(self, job: str, keys: Any) -> Any:
            if not self.uploaded:
                self.uploaded = True
                self.start(a_run(run="run-2", sequencer="2", split_done=False), 60)
            return super().get_many(job, keys)

    old = world.ledger
    world.ledger = Uploading(world.clock, old.rows, old.runs, old.jobs, old.sums)
    assert world.reporter().report(JOB) is ReportOutcome.NOT_READY
    assert world.store.objects == {}
    assert world.messages == []


def test_rows_redriven_that_this_csv_no_longer_has_raise_no_alarm() -> None:
    world = finished()
    run = world.ledger.current(JOB)
    assert run is not None
    held = world.ledger.sums[JOB, run.run]
    world.ledger.sums[JOB, run.run] = replace(held, succeeded=held.succeeded + 1, redriven=1)
    world.reporter().report(JOB)
    assert world.telemetry.logged("error") == []


def test_a_stopped_job_says_stopped() -> None:
    world = World(CSV)
    run = world.start()
    world.settle(run, world.sources[0])
    world.ledger.stop(JOB)
    stopped = RowResult(RowState.FAILED, reason=Reason.STOPPED, detail="stopped by the user")
    world.settle(run, world.sources[1], stopped)
    assert world.reporter().report(JOB) is ReportOutcome.MADE
    assert summary(world)["state"] == "stopped"
    assert world.reporter().report(JOB) is ReportOutcome.ALREADY_MADE


def test_the_message_has_counts_cost_and_keys() -> None:
    world = finished()
    world.reporter().report(JOB)
    subject, body = world.messages[0]
    assert subject == "Darkroom: 1 of 2 rows succeeded, 1 did not - jobs/products"
    assert "$0.1340" in body
    assert f"{JOB}/manifest.csv" in body
    assert "1 failed, refused:" in body


def test_a_subject_is_what_sns_takes() -> None:
    world = finished()
    world.reporter().report(JOB)
    told = JobSummary.model_validate_json(world.text("job.json"))
    subject, _ = message(told.model_copy(update={"job": "jobs/" + "ü" * 200}))
    assert len(subject) <= 100
    assert subject.isascii()


def test_a_message_that_cannot_be_sent_does_not_undo_the_report() -> None:
    world = finished()

    def broken(subject: str, body: str) -> None:
        raise OSError("no topic")

    reporter = replace(world.reporter(), notify=broken)
    assert reporter.report(JOB) is ReportOutcome.MADE
    assert world.telemetry.logged("exception") == ["job_message_not_sent"]


def test_an_unreadable_old_job_json_is_no_obstacle() -> None:
    world = finished()
    world.store.put(f"{JOB}/job.json", b'{"version": 99}', "application/json")
    assert world.reporter().report(JOB) is ReportOutcome.MADE
    assert world.telemetry.logged("warning") == ["summary_not_readable"]


def test_pages_of_a_longer_earlier_report_lead_to_the_new_one() -> None:
    world = World("instruction\n" + "draw a cat\n" * 150)
    run = world.start()
    for row in world.sources:
        world.settle(run, row)
    world.reporter().report(JOB)
    assert "report-002.html" in world.text("report.html")
    world.csv = "instruction\n" + "draw a cat\n" * 20
    world.start(run="run-2", sequencer="2")
    world.reporter().report(JOB)
    assert summary(world)["results"]["pages"] == [f"{JOB}/report.html"]  # type: ignore[index]
    assert "earlier report" in world.text("report-002.html")


def test_budget_and_dead_rows_say_what_to_do_next() -> None:
    world = World(CSV)
    run = world.start()
    budget = RowResult(RowState.FAILED, reason=Reason.BUDGET, detail="no room")
    world.settle(run, world.sources[0], budget)
    world.settle(run, world.sources[1], DEAD)
    world.reporter().report(JOB)
    page = world.text("report.html")
    assert "larger budget-usd" in page
    assert "Redrive when it has recovered" in page
