"""`darkroom status`, `list`, `stop` and `failures`: what the ledger tells."""

import json
from dataclasses import replace

import pytest

from darkroom.errors import Reason, ServiceUnavailable
from darkroom.jobs import Checkpoint, Counters, Run, RunState, Source, Totals
from darkroom.report.manifest import ManifestFormat
from darkroom.report.rows import ReportRow, RowStatus
from darkroom.rows import Claim, RowMessage, RowRequest, RowResult, RowState
from darkroom_cli.progress import Pace, measure
from tests.fakes.command import FakeStack, Held, run
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.services import FakeClock

JOB = "jobs/products"


@pytest.fixture
def stack() -> FakeStack:
    return FakeStack(FakeClock())


def start(stack: FakeStack, job: str = JOB, **totals: int) -> Run:
    source = Source("in", f"{job}.csv", "v1")
    begun = stack.ledger.start(
        running(job, source=source, started_at=stack.clock.now()), lease_seconds=60
    )
    assert begun is not None
    if totals:
        stack.ledger.finish_split(begun, Totals(**totals), ["Two columns mean the same."])
    found = stack.ledger.current(job)
    assert found is not None
    return found


def settle(stack: FakeStack, run_: Run, row: int, result: RowResult) -> None:
    message = RowMessage(
        job=run_.job,
        run=run_.run,
        row=row,
        key=f"{row:06d}",
        base="s3://in/jobs/",
        request=RowRequest(instruction="warm"),
    )
    claim = stack.ledger.claim(message, run_, f"worker-{row}", 60)
    assert isinstance(claim, Claim)
    assert stack.ledger.settle(claim, result)


GOOD = RowResult(RowState.SUCCEEDED, endpoint="gemini-main", cost_micro_usd=39_000)
REFUSED = RowResult(RowState.FAILED, Reason.REFUSED, "It shows\na person.", cost_micro_usd=0)


def test_status_tells_rows_cost_and_rate_of_every_kind(stack: FakeStack) -> None:
    begun = start(stack, rows=10, queued=7, resumed=1, invalid=1, skipped=1)
    settle(stack, begun, 0, GOOD)
    settle(stack, begun, 1, replace(GOOD, fallback=True))
    settle(stack, begun, 2, REFUSED)
    stack.clock.time += 60
    result = run(stack, "status", JOB, "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["state"] == "running"
    assert (told["rows"], told["done"]) == (10, 6)
    assert (told["succeeded"], told["failed"], told["dead"]) == (3, 2, 0)
    assert told["fallback_rate"] == 0.5
    assert told["cost_usd"] == pytest.approx(0.078)
    assert told["rows_per_minute"] == pytest.approx(3)
    assert told["eta_seconds"] == pytest.approx(80)


def test_status_in_a_pipe_is_plain_lines(stack: FakeStack) -> None:
    settle(stack, start(stack, rows=2, queued=2), 0, GOOD)
    lines = run(stack, "status", JOB).stdout.splitlines()
    assert f"job: {JOB}" in lines
    assert "rows: 1 of 2 (50%)" in lines
    assert "warning: Two columns mean the same." in lines
    assert "\x1b" not in "".join(lines)


def test_a_job_that_failed_exits_with_1_and_its_reason(stack: FakeStack) -> None:
    stack.ledger.fail(start(stack), "The file is a PNG image, not a CSV.")
    result = run(stack, "status", JOB)
    assert result.exit_code == 1
    assert "reason: The file is a PNG image, not a CSV." in result.stdout


def test_an_unknown_job_is_one_sentence(stack: FakeStack) -> None:
    for verb in ("status", "failures", "stop"):
        result = run(stack, verb, "jobs/nothing")
        assert result.exit_code == 1
        assert "knows no job jobs/nothing" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_watch_follows_to_the_end_and_prints_only_changes(stack: FakeStack) -> None:
    begun = start(stack, rows=3, queued=3)

    def work(seconds: float) -> None:
        stack.clock.slept.append(seconds)
        stack.clock.time += seconds
        done = len(stack.clock.slept)
        if done in (2, 4, 6):
            settle(stack, begun, done // 2 - 1, GOOD)
        if done == 7:
            assert stack.ledger.begin_report(begun, 60)
            assert stack.ledger.finish_report(begun, stack.clock.now())

    stack.clock.sleep = work  # type: ignore[method-assign]
    result = run(stack, "status", JOB, "--watch", "--every", "5")
    assert result.exit_code == 0
    assert stack.clock.slept == [5.0] * 7
    heads = [line.split(" · ")[0] for line in result.stderr.splitlines()]
    assert heads == ["0/3 rows", "1/3 rows", "2/3 rows", "3/3 rows"]
    assert "state: done" in result.stdout


class FlakyLedger(FakeLedger):
    """Answers only every third look."""

    looks = 0

    def current(self, job: str) -> Run | None:
        self.looks += 1
        if self.looks % 3:
            raise ServiceUnavailable("the ledger does not answer")
        return super().current(job)


def test_a_watch_outlasts_a_ledger_that_does_not_answer_for_a_while(stack: FakeStack) -> None:
    begun = start(stack, rows=1, queued=1)
    stack.ledger.fail(begun, "No header.")
    stack.ledger = FlakyLedger(stack.clock, runs=stack.ledger.runs, jobs=stack.ledger.jobs)
    result = run(stack, "status", JOB, "--watch")
    assert "reason: No header." in result.stdout
    assert stack.clock.slept == [2.0, 2.0]


def test_a_watch_interrupted_says_that_the_job_goes_on(stack: FakeStack) -> None:
    start(stack, rows=1, queued=1)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    stack.clock.sleep = interrupt  # type: ignore[method-assign, assignment]
    result = run(stack, "status", JOB, "--watch")
    assert result.exit_code == 130
    assert "The job goes on" in result.stderr


@pytest.mark.parametrize("end", [RunState.FAILED, RunState.STOPPED])
def test_a_script_that_watches_does_not_go_on_after_a_bad_end(
    stack: FakeStack, end: RunState
) -> None:
    begun = start(stack, rows=1, queued=1)
    if end is RunState.FAILED:
        stack.ledger.fail(begun, "No header.")
    else:
        stack.ledger.stop(JOB)
    result = run(stack, "status", JOB, "--watch", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[-1])["state"] == end.value


def test_while_splitting_the_total_is_open(stack: FakeStack) -> None:
    begun = start(stack)
    so_far = Totals(rows=400, queued=400)
    stack.ledger.checkpoint(begun, Checkpoint(9, 400, 1, so_far), 60)
    told = json.loads(run(stack, "status", JOB, "--json").stdout)
    assert (told["rows"], told["split_done"], told["eta_seconds"]) == (400, False, None)
    assert "rows: 0 of 400 or more" in run(stack, "status", JOB).stdout


def test_redriven_rows_of_an_earlier_upload_never_pass_the_total() -> None:
    begun = running(split_done=True, totals=Totals(rows=5, queued=2, kept_failed=3))
    progress = measure(begun, Counters(succeeded=3, redriven=1), now=60)
    assert progress.done == 5
    assert progress.eta_seconds is None


def test_pace_forgets_what_lies_more_than_a_minute_back() -> None:
    pace = Pace()
    assert pace.note(0, 0) is None
    assert pace.note(30, 600) == pytest.approx(1200)
    for second in range(40, 131, 10):
        latest = pace.note(second, 600 + second)
    assert latest == pytest.approx(60)


def test_list_shows_the_newest_jobs_and_not_their_images(stack: FakeStack) -> None:
    start(stack, "jobs/a", rows=1, queued=1)
    for key in ("jobs/a.csv", "jobs/b.csv.gz", "jobs/photos/1.png"):
        stack.inputs.objects[key] = Held(b"", "text/csv", {})
    told = json.loads(run(stack, "list", "--json").stdout)
    assert {(row["job"], row["state"]) for row in told} == {
        ("jobs/a", "running"),
        ("jobs/b", "not started"),
    }
    assert len(run(stack, "list", "--limit", "1").stdout.splitlines()) == 1


def test_stop_stops_once(stack: FakeStack) -> None:
    start(stack, rows=1, queued=1)
    assert json.loads(run(stack, "stop", JOB, "--json").stdout)["stopped"] is True
    current = stack.ledger.current(JOB)
    assert current is not None
    assert current.state is RunState.STOPPED
    again = run(stack, "stop", JOB)
    assert "nothing to stop" in again.stdout
    assert again.exit_code == 0


def test_failures_of_a_running_job_come_from_the_ledger(stack: FakeStack) -> None:
    begun = start(stack, rows=3, queued=3)
    settle(stack, begun, 0, GOOD)
    settle(stack, begun, 1, REFUSED)
    dead = RowResult(RowState.DEAD, Reason.UNAVAILABLE, "503", endpoint="gemini-main")
    settle(stack, begun, 2, dead)
    result = run(stack, "failures", JOB)
    assert result.stdout.splitlines() == [
        "1\tfailed\trefused\tIt shows a person.",
        "2\tdead\tunavailable\t503",
    ]
    assert "2 rows: 1 refused, 1 unavailable." in result.stderr
    assert run(stack, "failures", JOB, "--reason", "refused").stdout.count("\n") == 1


def test_failures_of_a_finished_job_come_from_its_manifest(stack: FakeStack) -> None:
    begun = start(stack, rows=2, queued=1, invalid=1)
    settle(stack, begun, 0, GOOD)
    assert stack.ledger.begin_report(begun, 60)
    assert stack.ledger.finish_report(begun, 9)
    manifest = ManifestFormat(("image_url", "status"))
    bad = ReportRow(
        1, "000001", RowStatus.FAILED, ("x", "mine"), reason="bad_input", detail="=column n"
    )
    good = ReportRow(0, "000000", RowStatus.SUCCEEDED, ("y", ""))
    body = manifest.header() + manifest.line(good) + manifest.line(bad)
    stack.results.objects[f"{JOB}/manifest.csv"] = Held(body, "text/csv", {})
    found = json.loads(run(stack, "failures", JOB, "--json").stdout)
    assert [(f["row"], f["reason"], f["detail"]) for f in found] == [(1, "bad_input", "=column n")]
