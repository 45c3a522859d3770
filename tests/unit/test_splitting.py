"""The splitter: every row with work is queued, despite repeated or late events and crashes."""

import gc
import gzip
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.csv_input.names import ImageNames, NameCounts, UsedNames, is_content_key
from darkroom.errors import Reason, ServiceUnavailable
from darkroom.jobs import JobOptions, RunState, Source, Totals
from darkroom.rows import RowRecord, RowResult, RowState
from darkroom.splitter import (
    LEASE_SECONDS,
    MAX_CONTINUATIONS,
    STOP_BEFORE_SECONDS,
    CsvUploaded,
    ResumeDecision,
    resume_decision,
)
from tests.fakes.csv_files import HEADER
from tests.fakes.ledger import running
from tests.fakes.splitting import (
    JOB,
    Crash,
    CsvBucket,
    FaultInjector,
    SplitterHarness,
    failing,
)


@pytest.fixture
def harness() -> SplitterHarness:
    return SplitterHarness()


def csv_of(rows: int, instruction: str = "red") -> str:
    return HEADER + "".join(f"photos/{row}.jpg,{instruction}\n" for row in range(rows))


def rows_sent(harness: SplitterHarness) -> list[int]:
    return [message.row for message in harness.queue.sent]


def test_every_row_becomes_one_message_with_its_request(harness: SplitterHarness) -> None:
    harness.split(harness.upload(csv_of(3)))
    assert rows_sent(harness) == [0, 1, 2]
    message = harness.queue.sent[1]
    assert (message.job, message.run) == (JOB, harness.run.run)
    assert is_content_key(message.key)
    assert message.base == "s3://in/jobs/"
    assert message.request.images == ("photos/1.jpg",)
    assert harness.run.state is RunState.RUNNING
    assert harness.run.totals == Totals(rows=3, queued=3)
    assert harness.checks == [JOB]


def test_invalid_and_skipped_rows_are_counted_not_queued(harness: SplitterHarness) -> None:
    harness.split(harness.upload(csv_of(3) + "a.jpg,\nb.jpg,\n", filter_rows="1:4"))
    assert rows_sent(harness) == [1, 2]
    assert harness.run.totals == Totals(rows=5, queued=2, invalid=1, skipped=2)


def test_rows_of_a_job_with_mode_batch_go_to_a_queue_of_their_own(
    harness: SplitterHarness,
) -> None:
    harness.split(harness.upload(csv_of(3), mode="batch"))
    assert (len(harness.queue.sent), len(harness.batch_queue.sent)) == (0, 3)


def test_a_csv_of_invalid_rows_only_is_done_at_once_and_its_warnings_are_stored(
    harness: SplitterHarness,
) -> None:
    harness.split(harness.upload("image,image_url,prompt\na.jpg,b.jpg,\n"))
    assert harness.run.totals == Totals(rows=1, invalid=1)
    assert harness.is_settled()
    assert len(harness.run.warnings) == 1


LONG_JOB = "x" * 481


@pytest.mark.parametrize(
    ("data", "job", "options", "sentence"),
    [
        (b"", JOB, {}, "The file is empty: it needs a header row and at least one row."),
        (b"\x89PNG\r\n", JOB, {}, "The file is a PNG image, not a CSV: save or export it as CSV"),
        (csv_of(500) + 'x,"y', JOB, {}, "The file ends in the middle of a quoted field"),
        (csv_of(500).encode() + b"x,\xff\n", JOB, {}, "Line 502 is not UTF-8 text (byte 0xFF)"),
        (csv_of(2), JOB, {"budget": "5"}, "There is no option 'budget'"),
        (csv_of(2), JOB, {"filter_rows": "x"}, "The option filter-rows: 'x' is not a row"),
        (csv_of(1), LONG_JOB, {}, "The CSV's key is longer than 480 bytes"),
    ],
)
def test_a_bad_upload_fails_the_job_and_queues_nothing(
    harness: SplitterHarness, data: str | bytes, job: str, options: dict[str, str], sentence: str
) -> None:
    harness.split(harness.upload(data, key=f"{job}.csv", **options))
    run = harness.ledger.current(job)
    assert run is not None
    assert run.state is RunState.FAILED
    assert run.reason is not None
    assert run.reason.startswith(sentence)
    assert harness.queue.sent == []
    assert harness.reports == [job]


@pytest.mark.parametrize("key", [".csv", "jobs/.csv", ".csv.gz"])
def test_a_file_without_a_name_is_ignored_and_logged(harness: SplitterHarness, key: str) -> None:
    harness.split(harness.upload(csv_of(1), key=key))
    assert harness.ledger.jobs == {}
    assert harness.telemetry.logged("warning") == ["csv_without_name"]


@pytest.mark.parametrize(
    ("text", "sent", "checks", "reports"),
    [(csv_of(3), [0, 1, 2], [JOB, JOB], []), ("", [], [], [JOB, JOB])],
)
def test_the_same_event_twice_only_repeats_the_last_step(
    harness: SplitterHarness, text: str, sent: list[int], checks: list[str], reports: list[str]
) -> None:
    upload = harness.upload(text)
    harness.split(upload)
    harness.split(upload)  # the first invocation may have died before its last step
    assert (rows_sent(harness), harness.checks, harness.reports) == (sent, checks, reports)
    assert harness.run.number == 1


def test_a_late_event_of_an_older_upload_changes_nothing(harness: SplitterHarness) -> None:
    older, newer = harness.upload(csv_of(3, "red")), harness.upload(csv_of(2, "blue"))
    harness.split(newer)
    harness.split(older)
    assert harness.run.run == newer.run
    assert [message.run for message in harness.queue.sent] == [newer.run] * 2
    assert harness.telemetry.logged("info")[-1] == "upload_superseded"


def test_a_newer_upload_stops_the_split_of_the_older_one(harness: SplitterHarness) -> None:
    older, newer = harness.upload(csv_of(5_000)), harness.upload(csv_of(2))
    interrupted = list[bool]()

    def remaining() -> float:
        if not interrupted and len(harness.queue.sent) >= 300:
            interrupted.append(True)
            harness.split(newer)
        return 900.0

    harness.split(older, remaining)
    assert harness.run.run == newer.run
    assert harness.run.totals == Totals(rows=2, queued=2)
    assert Counter(message.run for message in harness.queue.sent) == {
        older.run: 1_000,
        newer.run: 2,
    }
    assert harness.telemetry.logged("info")[-1] == "split_interrupted"


def test_uploads_are_distinguished_by_their_version_or_else_by_their_event() -> None:
    one = CsvUploaded("in", "a.csv", "null", "01", 5, "etag")
    assert one.source.version_id is None
    assert one.run == replace(one, version_id=None).run
    assert one.run != replace(one, version_id=None, sequencer="02").run
    assert replace(one, version_id="v1").run != replace(one, version_id="v2").run


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("batches", [1, 2, 7])
def test_a_long_file_is_continued_in_new_invocations(
    harness: SplitterHarness, index: bool, batches: int
) -> None:
    text = csv_of(1_250)
    if index:
        lines = text.splitlines()
        text = "\n".join([lines[0] + ",index", *(f"{r},k{i}" for i, r in enumerate(lines[1:]))])
    invocations = harness.split_with_continuations(harness.upload(text), batches)
    assert invocations == -(-13 // batches)
    assert rows_sent(harness) == list(range(1_250))
    assert harness.run.totals == Totals(rows=1_250, queued=1_250)
    assert harness.run.state is RunState.RUNNING


def test_the_number_of_continuations_is_limited(harness: SplitterHarness) -> None:
    upload = harness.upload(csv_of(100 * (MAX_CONTINUATIONS + 5)))
    invocations = harness.split_with_continuations(upload, 1)
    assert invocations == MAX_CONTINUATIONS + 1
    assert harness.run.state is RunState.FAILED
    assert "after 100 invocations the splitter was at row 10,100" in str(harness.run.reason)


def test_a_leased_split_is_waited_for_only_if_time_allows(harness: SplitterHarness) -> None:
    upload = harness.upload(csv_of(2))
    harness.faults.at = 2  # dies at its first batch with its lease still valid
    with pytest.raises(Crash):
        harness.split(upload)
    harness.split(upload, lambda: LEASE_SECONDS)  # too little time to wait: Lambda retries
    assert harness.queue.sent == []
    harness.split(upload)
    assert harness.clock.slept == [LEASE_SECONDS + 1]
    assert rows_sent(harness) == [0, 1]


def test_a_file_of_blank_lines_is_read_only_as_long_as_the_time_allows(
    harness: SplitterHarness,
) -> None:
    remaining = itertools.chain([900.0] * 5, itertools.repeat(STOP_BEFORE_SECONDS - 1)).__next__
    harness.split(harness.upload(gzip.compress(csv_of(2).encode() + b"\n" * 50_000)), remaining)
    assert "too large to be read in time" in str(harness.run.reason)
    assert harness.queue.sent == []


def test_a_part_of_the_file_that_takes_too_long_ends_the_job(harness: SplitterHarness) -> None:
    upload = harness.upload(csv_of(250) + "\n" * 50_000)
    slow: Callable[[], float] = lambda: 900.0 if len(harness.queue.sent) < 250 else 0.0  # noqa: E731
    harness.split(upload, slow)
    assert [harness.run.checkpoint.row, len(harness.invoked)] == [250, 1]
    harness.split(upload, lambda: 0.0)
    assert harness.run.reason == "The file is too large: row 250 is not reached in time. Split it."


@dataclass
class SlowBucket(CsvBucket):
    """Reading takes its time, in equal parts for every 1,000 bytes."""

    seconds_per_chunk: float = 0.0
    seconds: float = 0.0

    def read(self, source: Source, offset: int = 0) -> Iterator[bytes]:
        for chunk in super().read(source, offset):
            self.seconds += self.seconds_per_chunk
            yield chunk


@pytest.mark.parametrize("pass_seconds", [100, 180, 300, 420, 600])
def test_a_file_is_rejected_before_its_first_row_is_queued_or_split_to_its_end(
    pass_seconds: int,
) -> None:
    bucket = SlowBucket()
    harness = SplitterHarness(bucket=bucket)
    harness.split(harness.upload(csv_of(3)))
    good, sent = harness.run.run, len(harness.queue.sent)
    text = csv_of(12_000)
    bucket.seconds_per_chunk = pass_seconds / (len(text) / 1_000)
    pending, invocations = [harness.upload(text)], 0

    def elapsed() -> float:
        return bucket.seconds + 0.1 * len(harness.queue.sent)

    while pending:
        start, invocations = elapsed(), invocations + 1
        harness.split(pending.pop(), lambda start=start: 900 - (elapsed() - start))  # type: ignore[misc]
        pending, harness.invoked = harness.invoked, []
    if pass_seconds > 180:
        (rejected,) = harness.run.rejected_uploads
        assert "too large to be read in time" in rejected.reason
        assert (harness.run.run, len(harness.queue.sent)) == (good, sent)
    else:
        assert rows_sent(harness)[sent:] == list(range(12_000))
        assert invocations > 1


def test_an_interrupted_split_leaves_no_tables_in_memory(harness: SplitterHarness) -> None:
    upload = harness.upload(csv_of(500))
    gc.collect()
    gc.disable()  # a cycle of large tables may stay for long: few objects, many bytes
    try:
        harness.split(upload, lambda: 900.0 if len(harness.queue.sent) < 100 else 0.0)
        assert len(harness.invoked) == 1
        harness.split(upload, lambda: 900.0 if len(harness.queue.sent) < 300 else 0.0)
        assert len(harness.invoked) == 2
        tables = (ImageNames, NameCounts, UsedNames)
        assert not [o for o in gc.get_objects() if isinstance(o, tables)]
    finally:
        gc.enable()


def test_a_broken_upload_leaves_the_run_under_way(harness: SplitterHarness) -> None:
    harness.split(harness.upload(csv_of(3)))
    good = harness.run.run
    harness.split(harness.upload(csv_of(3) + 'x,"y'))
    harness.split(harness.upload(csv_of(3), budget="5"))
    assert harness.run.run == good
    assert [upload.reason[:32] for upload in harness.run.rejected_uploads] == [
        "The file ends in the middle of a",
        "There is no option 'budget'. Did",
    ]
    assert (harness.reports, harness.progress) == ([], [JOB, JOB])
    harness.edit()
    assert harness.is_settled()


def test_a_broken_upload_ends_a_job_that_has_no_run_under_way(harness: SplitterHarness) -> None:
    harness.split(harness.upload(csv_of(1)))
    harness.edit()
    assert harness.ledger.begin_report(harness.run, 60)
    assert harness.ledger.finish_report(harness.run, 1.0)
    harness.split(harness.upload(""))
    assert harness.run.state is RunState.FAILED
    assert (harness.reports, harness.progress) == ([JOB], [])


def test_a_success_whose_images_were_deleted_since_is_edited_again(
    harness: SplitterHarness,
) -> None:
    harness.retention_seconds = 86_400
    harness.edit_csv(csv_of(2))
    harness.clock.time += 86_399
    harness.split(harness.upload(csv_of(2)))
    assert harness.run.totals == Totals(rows=2, resumed=2)
    harness.clock.time += 1
    harness.split(harness.upload(csv_of(2)))
    assert harness.run.totals == Totals(rows=2, queued=2)
    assert all(message.redo for message in harness.queue.sent)
    harness.edit()
    assert harness.ledger.counters(JOB, harness.run.run).succeeded == 2
    assert harness.is_settled()


def test_a_corrected_csv_queues_the_changed_and_new_rows(harness: SplitterHarness) -> None:
    harness.outcome = failing(Reason.REFUSED, 2)
    harness.edit_csv(csv_of(3))
    harness.split(harness.upload(csv_of(4).replace("photos/0.jpg,red", "photos/0.jpg,blue")))
    assert rows_sent(harness) == [0, 3]
    assert harness.run.totals == Totals(rows=4, queued=2, resumed=1, kept_failed=1)


@pytest.mark.parametrize(
    ("options", "reason", "sent"),
    [
        ({}, None, []),
        ({}, Reason.BAD_IMAGE, []),
        ({"retry_failed": "true"}, Reason.BAD_IMAGE, [1]),
        ({}, Reason.BUDGET, [1]),
        ({}, Reason.STOPPED, [1]),
        ({"resume": "false"}, Reason.BAD_IMAGE, [0, 1, 2]),
        ({"aspect_ratio": "1:1"}, Reason.BAD_IMAGE, [0, 1, 2]),
    ],
)
def test_which_rows_a_repeated_upload_queues(
    harness: SplitterHarness, options: dict[str, str], reason: Reason | None, sent: list[int]
) -> None:
    """`reason`: why row 1 failed before."""
    if reason is not None:
        harness.outcome = failing(reason, 1)
    harness.edit_csv(csv_of(3))
    harness.split(harness.upload(csv_of(3), **options))
    assert rows_sent(harness) == sent
    kept_failed = 1 if not sent and reason is not None else 0
    resumed = 3 - len(sent) - kept_failed
    assert harness.run.totals == Totals(3, len(sent), resumed, kept_failed)
    assert all(message.redo == ("resume" in options) for message in harness.queue.sent)
    harness.edit()
    assert harness.is_settled()


def test_rows_that_only_moved_are_not_queued_again(harness: SplitterHarness) -> None:
    header, *rows = csv_of(5).splitlines()
    harness.edit_csv(csv_of(5))
    moved = [header, "new.jpg,red", rows[3], rows[0], "photos/1.jpg,blue", rows[4], rows[4], ""]
    harness.split(harness.upload("\n".join(moved)))
    assert rows_sent(harness) == [0, 3, 5]
    assert harness.run.totals == Totals(rows=6, queued=3, resumed=3)
    harness.edit()
    assert harness.is_settled()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=9), st.data())
def test_no_upload_queues_a_row_that_only_moved(first: list[int], data: st.DataObject) -> None:
    """Rows by their image, each upload in another order, with rows removed and added."""
    harness, edited, before = SplitterHarness(), Counter[int](), list(first)
    for _ in range(3):
        added = data.draw(st.lists(st.integers(0, 5), max_size=3))
        images = data.draw(st.permutations([*before[data.draw(st.integers(0, 2)) :], *added]))
        if not images:
            continue
        text = HEADER + "".join(f"{image}.jpg,red\n" for image in images)
        harness.split(harness.upload(text))
        queued = Counter(int(m.request.images[0][0]) for m in harness.queue.sent)
        assert queued == Counter(images) - edited
        assert harness.run.totals.queued == queued.total()
        edited |= Counter(images)
        harness.edit()
        harness.queue.sent.clear()
        harness.edited, before = 0, images


def test_a_wider_filter_adds_rows_to_those_already_edited(harness: SplitterHarness) -> None:
    harness.edit_csv(csv_of(5), filter_rows=":2")
    harness.split(harness.upload(csv_of(5)))
    assert rows_sent(harness) == [2, 3, 4]
    assert harness.run.totals == Totals(rows=5, queued=3, resumed=2)


def test_a_job_stopped_during_its_split_stays_stopped(harness: SplitterHarness) -> None:
    harness.outcome = lambda _: RowResult(RowState.FAILED, Reason.STOPPED)
    stopped = list[object]()

    def remaining() -> float:
        if not stopped and harness.ledger.current(JOB):
            stopped.append(harness.ledger.stop(JOB))
        return 900.0

    harness.split(harness.upload(csv_of(300)), remaining)
    harness.edit()
    assert harness.run.state is RunState.STOPPED
    assert harness.is_settled()


SUCCEEDED, FAILED, DEAD = RowState.SUCCEEDED, RowState.FAILED, RowState.DEAD
QUEUED, QUEUED_BEFORE = ResumeDecision.QUEUED, ResumeDecision.QUEUED_BEFORE
RESUMED, KEPT_FAILED = ResumeDecision.RESUMED, ResumeDecision.KEPT_FAILED
RUN = running()
NO_RESUME, RETRY_FAILED = {"resume": False}, {"retry_failed": True}


def record(state: RowState, reason: Reason | None = None, run: str = "run-0") -> RowRecord:
    result = RowResult(state, reason) if state.terminal else None
    return RowRecord("000000", 0, state, "fingerprint", run, result=result)


@pytest.mark.parametrize(
    ("known", "changed", "options", "decision"),
    [
        *((None, False, options, QUEUED) for options in ({}, NO_RESUME, RETRY_FAILED)),
        *((record(SUCCEEDED), False, options, RESUMED) for options in ({}, RETRY_FAILED)),
        (record(SUCCEEDED), True, {}, QUEUED),
        (record(SUCCEEDED), False, NO_RESUME, QUEUED),
        *((record(s, Reason.REFUSED), False, {}, KEPT_FAILED) for s in (FAILED, DEAD)),
        *((record(s, Reason.REFUSED), True, {}, QUEUED) for s in (FAILED, DEAD)),
        *((record(s, Reason.REFUSED), False, RETRY_FAILED, QUEUED) for s in (FAILED, DEAD)),
        *((record(s, Reason.REFUSED), False, NO_RESUME, QUEUED) for s in (FAILED, DEAD)),
        *((record(s), False, {}, QUEUED) for s in (RowState.CLAIMED, RowState.SENT)),
    ],
)
def test_what_an_upload_does_with_a_row_of_an_earlier_one(
    known: RowRecord | None, changed: bool, options: dict[str, bool], decision: ResumeDecision
) -> None:
    run = running(options=JobOptions.model_validate(options))
    assert resume_decision(known, "changed" if changed else "fingerprint", run) is decision


@pytest.mark.parametrize("reason", list(Reason))
def test_only_rows_that_failed_for_a_cause_outside_are_retried_by_any_upload(
    reason: Reason,
) -> None:
    outside = (Reason.BUDGET, Reason.STOPPED, Reason.SUPERSEDED)
    expected = QUEUED if reason in outside else KEPT_FAILED
    assert resume_decision(record(FAILED, reason), "fingerprint", RUN) is expected


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED, DEAD])
def test_a_row_settled_for_an_earlier_upload_during_the_split_is_queued(state: RowState) -> None:
    before = replace(record(state, Reason.REFUSED), updated_at=RUN.started_at - 1)
    since = replace(before, updated_at=RUN.started_at + 1)
    assert resume_decision(before, "fingerprint", RUN) is not QUEUED
    assert resume_decision(since, "fingerprint", RUN) is QUEUED


@pytest.mark.parametrize("state", list(RowState))
@pytest.mark.parametrize("options", [{}, NO_RESUME, RETRY_FAILED])
def test_a_row_settled_in_this_run_is_not_queued_again(
    state: RowState, options: dict[str, bool]
) -> None:
    run = running(options=JobOptions.model_validate(options))
    known = record(state, run=run.run)
    expected = QUEUED_BEFORE if state.terminal else QUEUED
    assert resume_decision(known, "fingerprint", run) is expected


def calls_of_a_whole_split(text: str) -> int:
    harness = SplitterHarness()
    harness.split(harness.upload(text))
    return harness.faults.calls


TEXT = csv_of(1_130) + "bad.jpg,\n"
CALLS = calls_of_a_whole_split(TEXT)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, CALLS + 2),
    st.booleans(),
    st.sampled_from([Crash, lambda: ServiceUnavailable("no answer")]),
    st.sampled_from([0, 1, 250, None]),
    st.booleans(),
)
def test_after_a_crash_anywhere_every_row_is_queued_and_the_totals_are_right(
    at: int, after: bool, error: type[BaseException], edited: int | None, again: bool
) -> None:
    """`edited`: rows settled between crash and retry; `again`: an earlier upload edited row 0."""
    harness = SplitterHarness()
    if again:
        harness.edit_csv(csv_of(1))
    upload = harness.upload(TEXT)
    harness.faults = FaultInjector(at, after, error)
    try:
        harness.split(upload)
    except (Crash, ServiceUnavailable):
        if edited != 0 and harness.ledger.current(JOB) is not None:
            harness.edit(edited)
        harness.clock.time += 60
    crashes = harness.split_with_retries(upload)
    assert crashes <= 1
    assert set(rows_sent(harness)) == set(range(1 if again else 0, 1_130))
    assert harness.run.totals == Totals(
        rows=1_131, queued=1_130 - again, resumed=int(again), invalid=1
    )
    assert JOB in harness.checks
    harness.edit()
    assert harness.is_settled()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(0, 60), max_size=4), st.integers(0, 200))
def test_crashes_and_continuations_together_lose_no_row(
    batches: int, crashes: list[int], edited: int
) -> None:
    harness = SplitterHarness()
    upload = harness.upload(TEXT)
    for at in [*crashes, -1]:
        harness.faults = FaultInjector(at, after=at % 2 == 0)
        try:
            harness.split_with_continuations(upload, batches)
        except Crash:
            harness.edit(edited or 1)
            harness.invoked.clear()
            harness.clock.time += 60
    assert set(rows_sent(harness)) == set(range(1_130))
    assert harness.run.totals == Totals(rows=1_131, queued=1_130, invalid=1)
    harness.edit()
    assert harness.is_settled()
