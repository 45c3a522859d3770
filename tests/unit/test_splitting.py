"""The splitter: each row with work is queued, whatever comes twice, late, or dies on the way."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.errors import Reason, ServiceUnavailable
from darkroom.jobs import RunState, Totals
from darkroom.rows import RowResult, RowState
from darkroom.splitter import LEASE_SECONDS, MAX_CONTINUATIONS, CsvUploaded
from tests.fakes.csv_files import HEADER
from tests.fakes.splitting import JOB, Crash, Fuse, World, failing


def csv_of(rows: int, instruction: str = "red") -> str:
    return HEADER + "".join(f"photos/{row}.jpg,{instruction}\n" for row in range(rows))


def rows_sent(world: World) -> list[int]:
    return [message.row for message in world.queue.sent]


def test_every_row_becomes_one_message_with_what_it_asks_for() -> None:
    world = World()
    world.split(world.upload(csv_of(3)))
    assert rows_sent(world) == [0, 1, 2]
    message = world.queue.sent[1]
    assert (message.job, message.run, message.key) == (JOB, world.run.run, "000001")
    assert message.base == "s3://in/jobs/"
    assert message.request.images == ("photos/1.jpg",)
    assert world.run.state is RunState.RUNNING
    assert world.run.totals == Totals(rows=3, queued=3)
    assert world.checks == [JOB]


def test_rows_that_are_bad_or_left_out_are_counted_not_queued() -> None:
    world = World()
    world.split(world.upload(csv_of(3) + "a.jpg,\nb.jpg,\n", filter_rows="1:4"))
    assert rows_sent(world) == [1, 2]
    assert world.run.totals == Totals(rows=5, queued=2, invalid=1, skipped=2)


def test_a_csv_of_bad_rows_only_is_done_at_once() -> None:
    world = World()
    world.split(world.upload(HEADER + "a.jpg,\n"))
    assert world.run.totals == Totals(rows=1, invalid=1)
    assert world.settled()


def test_warnings_of_the_header_are_kept() -> None:
    world = World()
    world.split(world.upload("image,image_url,prompt\na,b,c\n"))
    assert len(world.run.warnings) == 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "The file is empty: it needs a header row and at least one row."),
        (b"\x89PNG\r\n", "The file is a PNG image, not a CSV: save or export it as CSV (UTF-8)."),
        (csv_of(500).encode() + b'x,"y', "The file ends in the middle of a quoted field"),
        (csv_of(500).encode() + b"x,\xff\n", "Line 502 is not UTF-8 text (byte 0xFF)"),
    ],
)
def test_a_bad_file_fails_the_job_and_queues_nothing(data: bytes, sentence: str) -> None:
    world = World()
    world.split(world.upload(data))
    assert world.run.state is RunState.FAILED
    assert world.run.reason is not None
    assert world.run.reason.startswith(sentence)
    assert world.queue.sent == []
    assert world.reports == [JOB]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"budget": "5"}, "There is no option 'budget'"), ({"filter_rows": "x"}, "filter-rows")],
)
def test_a_bad_option_fails_the_job_and_is_named(options: dict[str, str], sentence: str) -> None:
    world = World()
    world.split(world.upload(csv_of(2), **options))
    assert sentence in str(world.run.reason)
    assert (world.queue.sent, world.reports) == ([], [JOB])


def test_a_key_too_long_for_its_results_fails_the_job() -> None:
    world = World()
    upload = world.upload(csv_of(1), key="x" * 481 + ".csv")
    world.split(upload)
    run = world.ledger.current("x" * 481)
    assert run is not None
    assert "longer than 480 bytes" in str(run.reason)


@pytest.mark.parametrize("key", [".csv", "jobs/.csv", ".csv.gz"])
def test_a_file_without_a_name_is_left_alone_and_told(key: str) -> None:
    world = World()
    world.split(world.upload(csv_of(1), key=key))
    assert world.ledger.jobs == {}
    assert world.telemetry.logged("warning") == ["csv_without_name"]


def test_the_same_event_twice_queues_nothing_twice() -> None:
    world = World()
    upload = world.upload(csv_of(3))
    world.split(upload)
    world.split(upload)
    assert rows_sent(world) == [0, 1, 2]
    assert world.checks == [JOB, JOB]  # the first may have died before its own


def test_the_event_of_a_bad_file_twice_only_asks_for_its_report_again() -> None:
    world = World()
    upload = world.upload(b"")
    world.split(upload)
    world.split(upload)
    assert world.reports == [JOB, JOB]
    assert world.run.number == 1


def test_an_older_upload_told_of_late_changes_nothing() -> None:
    world = World()
    older, newer = world.upload(csv_of(3, "red")), world.upload(csv_of(2, "blue"))
    world.split(newer)
    world.split(older)
    assert world.run.run == newer.run
    assert [message.run for message in world.queue.sent] == [newer.run] * 2
    assert world.telemetry.logged("info")[-1] == "upload_superseded"


def test_a_newer_upload_ends_the_split_of_the_older_one() -> None:
    world = World()
    older, newer = world.upload(csv_of(5_000)), world.upload(csv_of(2))
    interrupted = list[bool]()

    def remaining() -> float:
        if not interrupted and len(world.queue.sent) >= 300:
            interrupted.append(True)
            world.split(newer)
        return 900.0

    world.split(older, remaining)
    assert world.run.run == newer.run
    assert world.run.totals == Totals(rows=2, queued=2)
    assert Counter(message.run for message in world.queue.sent) == {older.run: 1_000, newer.run: 2}
    assert world.telemetry.logged("info")[-1] == "split_interrupted"


def test_another_upload_of_the_same_bytes_is_another_run() -> None:
    world = World()
    first, second = world.upload(csv_of(1)), world.upload(csv_of(1))
    assert first.run != second.run


def test_an_unversioned_bucket_tells_uploads_apart_by_their_events() -> None:
    one = CsvUploaded("in", "a.csv", "null", "01", 5, "etag")
    assert one.source.version_id is None
    assert one.run == CsvUploaded("in", "a.csv", None, "01", 5, "etag").run
    assert one.run != CsvUploaded("in", "a.csv", None, "02", 5, "etag").run


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("batches", [1, 2, 7])
def test_a_long_file_goes_on_in_new_invocations_where_it_stopped(index: bool, batches: int) -> None:
    world = World()
    text = csv_of(1_250)
    if index:
        lines = text.splitlines()
        text = "\n".join([lines[0] + ",index", *(f"{r},k{i}" for i, r in enumerate(lines[1:]))])
    continuations = world.split_and_go_on(world.upload(text), batches)
    assert continuations == -(-13 // batches) + (13 % batches == 0)
    assert rows_sent(world) == list(range(1_250))
    assert world.run.totals == Totals(rows=1_250, queued=1_250)
    assert world.run.state is RunState.RUNNING


def test_hops_without_end_are_stopped() -> None:
    world = World()
    continuations = world.split_and_go_on(world.upload(csv_of(100 * (MAX_CONTINUATIONS + 5))), 1)
    assert continuations == MAX_CONTINUATIONS + 1
    assert world.run.state is RunState.FAILED
    assert "after 100 invocations the splitter was at row 10,100" in str(world.run.reason)


def test_a_split_at_work_elsewhere_is_waited_for_and_then_left_to_it() -> None:
    world = World()
    upload = world.upload(csv_of(2))
    world.fuse.at = 2  # dies at its first batch, still holding its lease
    with pytest.raises(Crash):
        world.split(upload)
    world.split(upload, lambda: LEASE_SECONDS)  # too little time to wait: Lambda comes again
    assert world.queue.sent == []
    world.split(upload)
    assert world.clock.slept == [LEASE_SECONDS + 1]
    assert rows_sent(world) == [0, 1]


def test_a_long_check_renews_its_lease_and_gives_up_in_time() -> None:
    world = World()
    upload = world.upload(csv_of(30_000))

    class Slow(type(world.clock)):  # type: ignore[misc]
        def now(self) -> float:
            self.time += 1  # every look at the clock costs a second
            return float(self.time)

    world.clock = world.ledger.clock = Slow(world.clock.time)
    start = world.clock.time
    world.split(upload, lambda: 60 - (world.clock.time - start))
    assert "too large to be read in time" in str(world.run.reason)
    assert world.queue.sent == []


def test_the_same_csv_again_queues_nothing_and_is_done() -> None:
    world = World()
    world.split(world.upload(csv_of(3)))
    world.edit()
    world.queue.sent.clear()
    world.split(world.upload(csv_of(3)))
    assert world.queue.sent == []
    assert world.run.totals == Totals(rows=3, resumed=3)
    assert world.settled()


def test_a_corrected_csv_queues_the_changed_and_the_new_rows() -> None:
    world = World(outcome=failing(Reason.REFUSED, 2))
    world.split(world.upload(csv_of(3)))
    world.edit()
    world.queue.sent.clear()
    world.split(world.upload(csv_of(4).replace("photos/0.jpg,red", "photos/0.jpg,blue")))
    assert rows_sent(world) == [0, 3]
    assert world.run.totals == Totals(rows=4, queued=2, resumed=1, kept_failed=1)


@pytest.mark.parametrize(
    ("options", "reason", "sent"),
    [
        ({}, Reason.BAD_IMAGE, []),
        ({"retry_failed": "true"}, Reason.BAD_IMAGE, [1]),
        ({}, Reason.BUDGET, [1]),
        ({}, Reason.STOPPED, [1]),
        ({"resume": "false"}, Reason.BAD_IMAGE, [0, 1, 2]),
        ({"aspect_ratio": "1:1"}, Reason.BAD_IMAGE, [0, 1, 2]),
    ],
)
def test_what_an_upload_again_redoes(
    options: dict[str, str], reason: Reason, sent: list[int]
) -> None:
    world = World(outcome=failing(reason, 1))
    world.split(world.upload(csv_of(3)))
    world.edit()
    world.queue.sent.clear()
    world.split(world.upload(csv_of(3), **options))
    assert rows_sent(world) == sent
    assert all(message.redo == ("resume" in options) for message in world.queue.sent)
    world.edit()
    assert world.settled()


def test_rows_of_a_wider_filter_are_added_to_those_done() -> None:
    world = World()
    world.split(world.upload(csv_of(5), filter_rows=":2"))
    world.edit()
    world.split(world.upload(csv_of(5)))
    assert rows_sent(world) == [0, 1, 2, 3, 4]
    assert world.run.totals == Totals(rows=5, queued=3, resumed=2)


def test_a_job_stopped_while_it_is_split_stays_stopped_and_adds_up() -> None:
    world = World(outcome=lambda _: RowResult(RowState.FAILED, Reason.STOPPED))
    stopped = list[object]()

    def remaining() -> float:
        if not stopped:
            stopped.append(world.ledger.stop(JOB))
        return 900.0

    world.split(world.upload(csv_of(300)), remaining)
    world.edit()
    assert world.run.state is RunState.STOPPED
    assert world.settled()


def calls_of_a_whole_split(text: str) -> int:
    world = World()
    world.split(world.upload(text))
    return world.fuse.calls


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
def test_whatever_the_crash_every_row_is_queued_and_the_totals_are_right(
    at: int, after: bool, error: type[BaseException], edited: int | None, again: bool
) -> None:
    """`edited`: rows settled between crash and retry; `again`: an earlier upload did row 0."""
    world = World()
    if again:
        world.split(world.upload(csv_of(1)))
        world.edit()
        world.queue.sent.clear()
    upload = world.upload(TEXT)
    world.fuse = Fuse(at, after, error)
    try:
        world.split(upload)
    except (Crash, ServiceUnavailable):
        if edited != 0 and world.ledger.current(JOB) is not None:
            world.edit(edited)
        world.clock.time += 60
    crashes = world.split_as_lambda_does(upload)
    assert crashes <= 1
    assert set(rows_sent(world)) == set(range(1 if again else 0, 1_130))
    assert world.run.totals == Totals(
        rows=1_131, queued=1_130 - again, resumed=int(again), invalid=1
    )
    assert JOB in world.checks
    world.edit()
    assert world.settled()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(0, 60), max_size=4), st.integers(0, 200))
def test_crashes_and_hops_together_lose_no_row(
    batches: int, crashes: list[int], edited: int
) -> None:
    world = World()
    upload = world.upload(TEXT)
    for at in [*crashes, -1]:
        world.fuse = Fuse(at, after=at % 2 == 0)
        try:
            world.split_and_go_on(upload, batches)
        except Crash:
            world.edit(edited or 1)
            world.invoked.clear()
            world.clock.time += 60
    assert set(rows_sent(world)) == set(range(1_130))
    assert world.run.totals == Totals(rows=1_131, queued=1_130, invalid=1)
    world.edit()
    assert world.settled()
