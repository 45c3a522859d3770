"""`darkroom status`, `list`, `stop` and `failures`."""

import json
from dataclasses import replace
from datetime import datetime
from unittest.mock import Mock

import pytest

from darkroom.errors import Reason, ServiceUnavailable
from darkroom.jobs import Checkpoint, JobOptions, RejectedUpload, Run, RunState, Source, Totals
from darkroom.ledger.batches import BatchRecord, BatchState
from darkroom.report.manifest import ManifestFormat
from darkroom.report.rows import ReportRow
from darkroom.report.summary import Aggregate
from darkroom.rows import Claim, Mode, RowResult, RowState
from darkroom_cli.row_names import row_name
from darkroom_cli.status import RecentRate
from tests.fakes.command import CliHarness, FakeObject
from tests.fakes.editing import row_message
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.reporting import report_row

JOB = "jobs/products"


def start(cli: CliHarness, job: str = JOB, **totals: int) -> Run:
    source = Source("in", f"{job}.csv", "v1")
    run = cli.ledger.start(running(job, source=source, started_at=cli.clock.now()), 60)
    assert run is not None
    if totals:
        cli.ledger.finish_split(run, Totals(**totals), ["Two columns mean the same."])
    return cli.ledger.current_run(job)


def settle(cli: CliHarness, run: Run, row: int, result: RowResult) -> None:
    message = row_message(run.run, f"{row:06d}", job=run.job)
    message = message.model_copy(update={"key": f"row-{row:012x}"})  # a row without an index
    claim = cli.ledger.claim(message, run, f"worker-{row}", 60)
    assert isinstance(claim, Claim)
    assert cli.ledger.settle(claim, result)


GOOD = RowResult(RowState.SUCCEEDED, endpoint="gemini-main", cost_micro_usd=39_000)
REFUSED = RowResult(RowState.FAILED, Reason.REFUSED, "It shows\na person.", cost_micro_usd=0)


def test_status_shows_counts_cost_and_rate(cli: CliHarness) -> None:
    run = start(cli, rows=10, queued=7, resumed=1, invalid=1, skipped=1)
    settle(cli, run, 0, GOOD)
    settle(cli, run, 1, replace(GOOD, fallback=True))
    settle(cli, run, 2, REFUSED)
    cli.clock.time += 60
    answer = cli.json("status", JOB)
    assert answer["state"] == "running"
    assert (answer["rows"], answer["done"]) == (10, 6)
    assert (answer["succeeded"], answer["failed"], answer["dead"]) == (3, 2, 0)
    assert answer["fallback_rate"] == 0.5
    assert answer["cost_usd"] == pytest.approx(0.078)
    assert answer["rows_per_minute"] == pytest.approx(3)
    assert answer["eta_seconds"] == pytest.approx(80)


def test_status_in_a_pipe_is_plain_lines(cli: CliHarness) -> None:
    settle(cli, start(cli, rows=2, queued=2), 0, GOOD)
    lines = cli.run("status", JOB).stdout.splitlines()
    assert f"job: {JOB}" in lines
    assert "rows: 1 of 2 (50%)" in lines
    assert "warning: Two columns mean the same." in lines
    assert "\x1b" not in "".join(lines)


def test_the_cost_line_has_this_upload_all_uploads_and_the_budget(cli: CliHarness) -> None:
    settle(cli, start(cli, rows=2, queued=2), 0, replace(GOOD, cost_micro_usd=950_000))
    assert "cost: $0.95" in cli.run("status", JOB).stdout.splitlines()
    options = JobOptions(budget_usd=3)
    later = running(JOB, run="run-2", options=options, sequencer="02")
    assert cli.ledger.start(later, 60)
    cli.ledger.finish_split(later, Totals(rows=2, queued=2), [])
    settle(cli, cli.ledger.current_run(JOB), 1, replace(GOOD, cost_micro_usd=1_900_000))
    expected = "cost: $1.90 this upload, $2.85 in all, budget $3.00"
    assert expected in cli.run("status", JOB).stdout.splitlines()
    answer = cli.json("status", JOB)
    assert (answer["cost_usd"], answer["earlier_cost_usd"], answer["budget_usd"]) == (1.9, 0.95, 3)
    cli.ledger.stop(JOB)
    assert expected in cli.run("status", JOB, "--watch").stdout.splitlines()


def test_status_of_a_failed_job_shows_the_reason_and_exits_with_1(cli: CliHarness) -> None:
    cli.ledger.fail(start(cli), "The file is a PNG image, not a CSV.")
    result = cli.run("status", JOB)
    assert result.exit_code == 1
    assert "reason: The file is a PNG image, not a CSV." in result.stdout


@pytest.mark.parametrize("subcommand", ["status", "failures", "stop"])
def test_an_unknown_job_is_reported_in_one_sentence(cli: CliHarness, subcommand: str) -> None:
    assert "has no job jobs/nothing" in cli.error(subcommand, "jobs/nothing")


def test_watch_ends_with_the_job_and_prints_only_changes(cli: CliHarness) -> None:
    run = start(cli, rows=3, queued=3)

    def work() -> None:
        sleeps = len(cli.clock.slept)
        if sleeps in (2, 4, 6):
            settle(cli, run, sleeps // 2 - 1, GOOD)
        if sleeps == 7:
            assert cli.ledger.begin_report(run, 60)
            assert cli.ledger.finish_report(run, cli.clock.now())

    cli.clock.on_sleep = work
    result = cli.succeed("status", JOB, "--watch", "--every", "5")
    assert cli.clock.slept == [5.0] * 7
    printed = [line.split(" · ")[0] for line in result.stderr.splitlines()]
    assert printed == ["0/3 rows", "1/3 rows", "2/3 rows", "3/3 rows"]
    assert "state: done" in result.stdout


@pytest.mark.parametrize(("result", "exit_code"), [(GOOD, 0), (REFUSED, 3)])
def test_a_watched_job_exits_with_3_if_a_row_failed(
    cli: CliHarness, result: RowResult, exit_code: int
) -> None:
    run = start(cli, rows=1, queued=1)
    settle(cli, run, 0, result)
    assert cli.ledger.begin_report(run, 60)
    assert cli.ledger.finish_report(run, cli.clock.now())
    assert cli.run("status", JOB, "--watch").exit_code == exit_code
    assert cli.run("status", JOB).exit_code == 0


@pytest.mark.parametrize("name", ["products", "products.csv", "jobs/products.csv", JOB])
def test_a_job_is_found_by_its_short_name_and_by_its_csv(cli: CliHarness, name: str) -> None:
    settle(cli, start(cli, rows=2, queued=2), 0, REFUSED)
    assert cli.json("status", name)["job"] == JOB
    assert len(cli.json("failures", name)) == 1
    assert cli.json("stop", name) == {"job": JOB, "stopped": True}


def test_an_unknown_reason_is_answered_with_the_reasons_there_are(cli: CliHarness) -> None:
    settle(cli, start(cli, rows=2, queued=2), 0, REFUSED)
    error = cli.error("failures", JOB, "--reason", "refusd", exit_code=2)
    assert "'refusd'. Did you mean refused? The reasons are" in error
    none = cli.succeed("failures", JOB, "--reason", "budget").stderr
    assert "No row failed for the reason budget, 1 for others." in none


def test_a_prefix_without_jobs_is_not_an_empty_stack(cli: CliHarness) -> None:
    cli.input_bucket.objects["jobs/p.csv"] = FakeObject(b"")
    assert "No job's name begins with summer" in cli.succeed("list", "summer").stderr


class FlakyLedger(FakeLedger):
    """Answers only every third read."""

    reads = 0

    def current(self, job: str) -> Run | None:
        self.reads += 1
        if self.reads % 3:
            raise ServiceUnavailable("the ledger does not answer")
        return super().current(job)


def test_watch_continues_while_the_ledger_is_unavailable(cli: CliHarness) -> None:
    run = start(cli, rows=1, queued=1)
    cli.ledger.fail(run, "No header.")
    cli.ledger = FlakyLedger(cli.clock, runs=cli.ledger.runs, jobs=cli.ledger.jobs)
    result = cli.run("status", JOB, "--watch")
    assert "reason: No header." in result.stdout
    assert cli.clock.slept == [2.0, 2.0]


def test_an_interrupted_watch_notes_that_the_job_continues(cli: CliHarness) -> None:
    start(cli, rows=1, queued=1)
    cli.clock.on_sleep = Mock(side_effect=KeyboardInterrupt)
    result = cli.run("status", JOB, "--watch")
    assert result.exit_code == 130
    assert "The job continues" in result.stderr


@pytest.mark.parametrize("end", [RunState.FAILED, RunState.STOPPED])
def test_watch_exits_with_1_unless_the_job_is_done(cli: CliHarness, end: RunState) -> None:
    run = start(cli, rows=1, queued=1)
    if end is RunState.FAILED:
        cli.ledger.fail(run, "No header.")
    else:
        cli.ledger.stop(JOB)
    result = cli.run("status", JOB, "--watch", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[-1])["state"] == end.value


def test_the_total_is_open_while_the_csv_is_being_split(cli: CliHarness) -> None:
    run = start(cli)
    totals = Totals(rows=400, queued=400)
    cli.ledger.checkpoint(run, Checkpoint(400, 1, totals), 60)
    answer = cli.json("status", JOB)
    assert (answer["rows"], answer["split_done"], answer["eta_seconds"]) == (400, False, None)
    assert "rows: 0 of 400 or more" in cli.run("status", JOB).stdout


def test_the_recent_rate_ignores_samples_older_than_a_minute() -> None:
    recent = RecentRate()
    assert recent.update(0, 0) is None
    assert recent.update(30, 600) == pytest.approx(1200)
    for second in range(40, 131, 10):
        latest = recent.update(second, 600 + second)
    assert latest == pytest.approx(60)


def test_list_shows_the_newest_jobs_but_not_their_images(cli: CliHarness) -> None:
    start(cli, "jobs/a", rows=1, queued=1)
    for key in ("jobs/a.csv", "jobs/b.csv.gz", "jobs/photos/1.png"):
        cli.input_bucket.objects[key] = FakeObject(b"")
    answer = cli.json("list")
    assert {(row["job"], row["state"]) for row in answer} == {
        ("jobs/a", "running"),
        ("jobs/b", "not started"),
    }
    assert len(cli.run("list", "--limit", "1").stdout.splitlines()) == 1


def test_status_counts_the_rows_that_a_stopped_job_ended_in_the_queue_as_failed(
    cli: CliHarness,
) -> None:
    run = start(cli, rows=10, queued=10)
    settle(cli, run, 0, GOOD)
    cli.ledger.stop(JOB)
    cli.ledger.give_up_lost(run)
    answer = json.loads(cli.run("status", JOB, "--json").stdout)
    assert (answer["state"], answer["succeeded"], answer["failed"]) == ("stopped", 1, 9)
    assert answer["done"] == 10


def test_stopping_a_stopped_job_changes_nothing(cli: CliHarness) -> None:
    start(cli, rows=1, queued=1)
    assert cli.json("stop", JOB)["stopped"] is True
    assert cli.ledger.current_run(JOB).state is RunState.STOPPED
    assert "nothing to stop" in cli.succeed("stop", JOB).stdout


def test_failures_of_a_running_job_come_from_the_ledger(cli: CliHarness) -> None:
    run = start(cli, rows=3, queued=3)
    settle(cli, run, 0, GOOD)
    settle(cli, run, 1, REFUSED)
    dead = RowResult(RowState.DEAD, Reason.UNAVAILABLE, "503", endpoint="gemini-main")
    settle(cli, run, 2, dead)
    result = cli.run("failures", JOB)
    assert result.stdout.splitlines() == [
        "3\t1\t\tfailed\trefused\tIt shows a person.",
        "4\t2\t\tdead\tunavailable\t503",
    ]
    assert "2 rows: 1 refused, 1 unavailable." in result.stderr
    assert cli.run("failures", JOB, "--reason", "refused").stdout.count("\n") == 1


def test_failures_of_a_finished_job_come_from_its_manifest(cli: CliHarness) -> None:
    run = start(cli, rows=2, queued=1, invalid=1)
    settle(cli, run, 0, GOOD)
    assert cli.ledger.begin_report(run, 60)
    assert cli.ledger.finish_report(run, 9)
    manifest = ManifestFormat(("image_url", "status"))
    reason = {"reason": Reason.BAD_INPUT, "detail": "=column n"}
    bad = report_row(1, RowState.FAILED, cells=("x", "mine"), **reason)
    good = report_row(0, cells=("y", ""))
    body = manifest.header() + manifest.line(good) + manifest.line(bad)
    cli.results_bucket.objects[f"{JOB}/manifest.csv"] = FakeObject(body)
    found = cli.json("failures", JOB)
    assert [(f["row"], f["reason"], f["detail"]) for f in found] == [(1, "bad_input", "=column n")]
    assert [(f["line"], f["name"]) for f in found] == [(3, "x")]


@pytest.mark.parametrize(
    ("header", "cells", "name"),
    [
        (("ID", "Image URL"), ("shoe", "photos/a.png"), "shoe"),
        (("ID", "Image URL"), ("", "photos/a.png|b.png"), "a.png"),
        (("images",), ("https://cdn.example/w/a.png?signature=x",), "a.png"),
        (("images",), ('["a',), ""),
        (("prompt",), ("warm",), ""),
    ],
)
def test_a_row_is_named_by_its_index_or_its_image(
    header: tuple[str, ...], cells: tuple[str, ...], name: str
) -> None:
    assert row_name(header, cells) == name


def test_status_and_list_show_what_a_job_waits_for(cli: CliHarness) -> None:
    run = start(cli, rows=2, queued=2)
    detail = "every key of gemini-main was rejected (401): correct the endpoints secret"
    cli.ledger.set_waiting(run, Reason.KEY_REJECTED, detail)
    since = datetime.fromtimestamp(cli.clock.now()).astimezone()
    cli.clock.time += 60
    lines = cli.run("status", JOB).stdout.splitlines()
    assert f"waiting: since {since:%H:%M}: {detail}" in lines
    assert cli.json("status", JOB)["waiting"]["detail"] == detail
    cli.input_bucket.objects[f"{JOB}.csv"] = FakeObject(b"")
    result = cli.run("list")
    assert "running, waiting" in result.stdout
    assert detail in result.stderr
    cli.clock.time += 86_400
    assert f"waiting: since {since:%Y-%m-%d %H:%M}: {detail}" in cli.run("status", JOB).stdout


def test_watch_prints_a_line_when_a_job_begins_to_wait_and_when_it_ends(cli: CliHarness) -> None:
    run = start(cli, rows=1, queued=1)

    def work() -> None:
        if len(cli.clock.slept) == 2:
            cli.ledger.set_waiting(run, Reason.KEY_REJECTED, "every key was rejected")
        if len(cli.clock.slept) == 4:
            cli.ledger.clear_waiting(run)
        if len(cli.clock.slept) == 5:
            cli.ledger.stop(JOB)

    cli.clock.on_sleep = work
    result = cli.run("status", JOB, "--watch", "--every", "1")
    assert result.stderr.splitlines() == [
        "0/1 row",
        "0/1 row · waiting: every key was rejected",
        "0/1 row",
    ]


def test_what_a_job_waits_for_cannot_control_the_terminal(cli: CliHarness) -> None:
    run = start(cli, rows=1, queued=1)
    cli.ledger.set_waiting(run, Reason.NOT_STORED, "denied \x1b[2J\x1b]0;owned\x07\rDone")

    def stop() -> None:
        cli.ledger.stop(JOB)

    cli.clock.on_sleep = stop
    printed = cli.run("status", JOB, "--watch", "--every", "1").output
    assert "waiting: denied" in printed
    assert not set("\x1b\x07\r") & set(printed)


def test_status_of_a_job_made_by_the_fallback_says_why(cli: CliHarness) -> None:
    run = start(cli, rows=1, queued=1)
    result = replace(GOOD, fallback=True, fallback_cause="gemini-main rejected its key (1f3a9c2b)")
    settle(cli, run, 0, result)
    assert cli.ledger.begin_report(run, 60)
    assert cli.ledger.finish_report(run, 9)
    aggregate = Aggregate()
    aggregate.add(ReportRow(0, "000000", result))
    summary = aggregate.summary(cli.ledger.current_run(JOB), pages=1, finished_at=9)
    cli.results_bucket.objects[f"{JOB}/job.json"] = FakeObject(summary.to_json())
    expected = (
        "All images came from the fallback: gemini-main rejected its key (1f3a9c2b). "
        "See `darkroom endpoints show`."
    )
    assert expected in cli.run("status", JOB).stdout
    assert cli.json("status", JOB)["fallback_note"] == expected


def test_status_shows_uploads_that_were_rejected(cli: CliHarness) -> None:
    start(cli, rows=1, queued=1)
    record = cli.ledger.runs[JOB, cli.ledger.current_run(JOB).run]
    upload = RejectedUpload(f"{JOB}.csv", "v2", "The file is empty.", cli.clock.now())
    run = replace(record.run, rejected_uploads=(upload,))
    cli.ledger.runs[JOB, run.run] = replace(record, run=run)
    assert "The file is empty." in cli.run("status", JOB).stdout


def start_batch_job(cli: CliHarness, rows: int) -> Run:
    source, options = Source("in", f"{JOB}.csv", "v1"), JobOptions(mode="batch")
    started = running(JOB, source=source, options=options, started_at=cli.clock.now())
    assert cli.ledger.start(started, 60)
    cli.ledger.finish_split(started, Totals(rows=rows, queued=rows), [])
    return cli.ledger.current_run(JOB)


def add_batch(
    cli: CliHarness,
    name: str,
    rows: int,
    state: BatchState = BatchState.SUBMITTED,
    *,
    job: str = JOB,
    run: str = "run-1",
) -> None:
    now = cli.clock.now()
    record = BatchRecord(name, job, run, "g", "key", "model", now, state, rows=rows)
    cli.batches.create(replace(record, submitted_at=now), [])


def test_status_shows_rows_waiting_submitted_and_done(cli: CliHarness) -> None:
    run = start_batch_job(cli, 1_300)
    add_batch(cli, "closed", 50, BatchState.CLOSED)
    add_batch(cli, "other", 70, job="jobs/another")
    add_batch(cli, "a", 500)
    first = cli.clock.now()
    cli.clock.time += 3_600
    add_batch(cli, "b", 500)
    add_batch(cli, "c", 200)
    add_batch(cli, "new", 0, BatchState.PREPARING)
    settle(cli, run, 0, GOOD)
    cli.clock.time += 4_200
    lines = cli.succeed("status", JOB).stdout.splitlines()
    since = datetime.fromtimestamp(first).astimezone()
    submitted = f"1,200 rows in 3 batches, the oldest since {since:%H:%M} (2 h 10 min)"
    assert {"mode: batch", f"submitted: {submitted}", "queued: 99 rows not in a batch"} <= {*lines}
    assert not any(line.startswith("left:") for line in lines)  # the providers decide
    answer = cli.json("status", JOB)
    assert answer["in_batches"] == {
        "queued": 99,
        "submitted": 1_200,
        "batches": 3,
        "oldest_at": first,
        "oldest_seconds": 7_800,
        "earlier_submitted": 0,
        "earlier_batches": 0,
    }
    assert (answer["mode"], answer["eta_seconds"]) == ("batch", None)


def test_rows_of_a_batch_job_wait_before_the_first_batch(cli: CliHarness) -> None:
    start_batch_job(cli, 2)
    assert "queued: 2 rows not in a batch" in cli.succeed("status", JOB).stdout.splitlines()


def test_answers_that_are_being_collected_are_not_counted_twice(cli: CliHarness) -> None:
    run = start_batch_job(cli, 3)
    add_batch(cli, "a", 3)
    settle(cli, run, 0, GOOD)
    found = cli.json("status", JOB)["in_batches"]
    assert (found["queued"], found["submitted"]) == (0, 2)


def test_a_live_job_does_not_read_the_batches(cli: CliHarness) -> None:
    start(cli, rows=2, queued=2)
    cli.batches.open = Mock(side_effect=AssertionError)  # type: ignore[method-assign]
    assert cli.json("status", JOB)["in_batches"] is None


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_batches_of_earlier_uploads_are_shown_apart(cli: CliHarness, mode: Mode) -> None:
    start_batch_job(cli, 5)
    add_batch(cli, "a", 5)
    later = running(JOB, run="run-2", sequencer="02", options=JobOptions(mode=mode))
    assert cli.ledger.start(later, 60)
    cli.ledger.finish_split(later, Totals(rows=3, queued=3), [])
    cli.clock.time += 3_600
    add_batch(cli, "b", 2, run="run-2")
    found = cli.json("status", JOB)["in_batches"]
    assert (found["queued"], found["submitted"], found["batches"]) == (1, 2, 1)
    assert (found["oldest_seconds"], found["earlier_submitted"]) == (0, 5)
    lines = cli.succeed("status", JOB).stdout.splitlines()
    assert "queued: 1 row not in a batch of this upload" in lines
    assert any(line.startswith("submitted earlier: 5 rows in 1 batch of earlier") for line in lines)


def test_a_watch_of_batches_polls_seldom_and_says_now_and_then_that_it_waits(
    cli: CliHarness,
) -> None:
    run = start_batch_job(cli, 1)
    add_batch(cli, "a", 1)
    ends_at = cli.clock.now() + 3_600

    def work() -> None:
        if cli.clock.now() >= ends_at:
            settle(cli, run, 0, GOOD)
            cli.batches.batches.clear()
            assert cli.ledger.begin_report(run, 60)
            assert cli.ledger.finish_report(run, cli.clock.now())

    cli.clock.on_sleep = work
    printed = cli.succeed("status", JOB, "--watch").stderr.splitlines()
    assert set(cli.clock.slept) == {15.0}
    assert printed[0] == "0/1 row · 1 submitted in 1 batch 0 s ago"
    assert "0/1 row · 1 submitted in 1 batch 50 min ago" in printed
    assert len(printed) == 6  # one every ten minutes


def test_a_watch_survives_ten_minutes_without_aws_and_says_that_the_job_continues(
    cli: CliHarness,
) -> None:
    start_batch_job(cli, 1)
    add_batch(cli, "a", 1)
    dark_until = cli.clock.now() + 600
    read = cli.ledger.current

    def current(job: str) -> Run | None:
        if cli.clock.now() < dark_until:
            raise ServiceUnavailable("the ledger does not answer")
        return read(job)

    cli.ledger.current = current  # type: ignore[method-assign]

    def work() -> None:
        if cli.clock.now() == dark_until:
            assert read(JOB)
            cli.ledger.stop(JOB)

    cli.clock.on_sleep = work
    assert "state: stopped" in cli.run("status", JOB, "--watch").stdout
    dark_until, cli.clock.on_sleep = float("inf"), lambda: None
    ended = cli.run("status", JOB, "--watch")
    assert ended.exit_code == 1
    assert "The job continues: darkroom status" in ended.stderr


def test_stop_says_what_becomes_of_the_batches(cli: CliHarness) -> None:
    start_batch_job(cli, 2)
    add_batch(cli, "a", 2)
    text = cli.succeed("stop", JOB).stdout
    assert "Its batches are cancelled at their providers within minutes" in text
    assert "submitted: 2 rows in 1 batch" in cli.run("status", JOB).stdout
