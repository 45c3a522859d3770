"""The sweep, on virtual time: what stopped is started again, and what goes on is left alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from darkroom.errors import Reason, ServiceUnavailable
from darkroom.jobs import RunState
from darkroom.ledger.batches import BatchRecord
from darkroom.rows import Claim, NotSent, RowMessage, RowRecord, RowResult, RowState, Submission
from darkroom.splitter import CsvUploaded
from darkroom.sweep import Sweep
from tests.fakes.csv_files import HEADER
from tests.fakes.ledger import FakeBatchLedger
from tests.fakes.services import fail_once
from tests.fakes.splitting import JOB, Crash, SplitterHarness

HOUR, DAY = 3600.0, 86_400.0
SCHEDULE = 300.0


@dataclass
class SweepHarness(SplitterHarness):
    """Messages are in the queue until they are edited."""

    others: int = 0  # messages of other jobs
    started: list[CsvUploaded] = field(default_factory=list)
    lost: list[CsvUploaded] = field(default_factory=list)  # whose splitter failed three times

    def restart_uploads(self) -> int:
        restarted = len(self.lost)
        self.started += self.lost
        self.lost.clear()
        return restarted

    def backlog(self) -> int:
        return len(self.queue.sent) - self.edited + self.others

    def sweep(self, seconds: float = 0.0) -> None:
        """After `seconds`; a splitter that it starts runs to its end."""
        self.clock.time += seconds
        Sweep(
            runs=self.ledger,
            rows=self.ledger,
            queue=self,  # type: ignore[arg-type]  # of RowQueue, only the backlog
            batch_queue=self.batch_queue,
            batches=self.batches,
            lost_events=self,
            clock=self.clock,
            telemetry=self.telemetry,
            start_splitter=self.started.append,
            request_report=self.reports.append,
        ).sweep(lambda: 900.0)
        for upload in self.started:
            self.split(upload)
        self.started.clear()

    def lose_all(self) -> None:
        """SQS has deleted all messages."""
        self.edited = len(self.queue.sent)

    def report(self) -> None:
        assert self.ledger.begin_report(self.run, 915.0)
        assert self.ledger.finish_report(self.run, self.clock.now())

    @property
    def unfinished(self) -> list[str]:
        return [unfinished.job for unfinished in self.ledger.unfinished()]


@pytest.fixture
def harness() -> SweepHarness:
    return SweepHarness()


def csv_of(rows: int) -> str:
    return HEADER + "".join(f"photos/{row}.jpg,red\n" for row in range(rows))


def test_a_job_in_progress_is_left_alone_and_a_reported_one_is_forgotten(
    harness: SweepHarness,
) -> None:
    harness.split(harness.upload(csv_of(3)))
    for _ in range(20):
        harness.sweep(SCHEDULE)
    assert (len(harness.queue.sent), harness.reports) == (3, [])
    harness.edit()
    harness.report()
    harness.sweep()
    assert harness.unfinished == []


def test_rows_whose_messages_are_gone_are_queued_again(harness: SweepHarness) -> None:
    harness.split(harness.upload(csv_of(250)))
    harness.edit(100)
    harness.lose_all()
    totals = harness.run.totals
    harness.sweep(HOUR)  # not yet: a worker may be about to send a copy of its message
    assert len(harness.queue.sent) == 250
    harness.sweep(SCHEDULE)
    assert [message.row for message in harness.queue.sent[250:]] == list(range(100, 250))
    assert (harness.run.totals, harness.run.split_done) == (totals, True)
    harness.edit()
    assert harness.is_settled()


def test_rows_that_wait_for_a_batch_do_not_delay_other_jobs(harness: SweepHarness) -> None:
    harness.split(harness.upload(csv_of(1)))
    harness.lose_all()
    harness.batch_queue.send(harness.queue.sent)
    harness.sweep(HOUR + SCHEDULE)
    assert len(harness.queue.sent) == 2


def test_rows_in_a_batch_are_neither_queued_again_nor_ended(harness: SweepHarness) -> None:
    harness.split(harness.upload(csv_of(1)))
    (message,) = harness.queue.sent
    claim = harness.ledger.claim(message, harness.run, "submitter", 90)
    assert isinstance(claim, Claim)
    batch = BatchRecord("b1", JOB, harness.run.run, "e", "k", "gpt-image-1.5", created_at=0.0)
    harness.batches.create(batch, [message.key])
    harness.ledger.mark_submitted(claim, "b1", Submission(message, "gpt-image-1.5"), "e")
    harness.lose_all()
    for _ in range(30):
        harness.sweep(HOUR)
    assert len(harness.queue.sent) == 1
    harness.ledger.stop(JOB)
    harness.sweep(HOUR)
    assert [row.state for row in harness.ledger.all(JOB)] == [RowState.SUBMITTED]


def test_rows_are_queued_again_before_their_messages_are_14_days_old(
    harness: SweepHarness,
) -> None:
    """Whatever else is in the queue, and as often as a job of any length needs."""
    harness.others = 1_000_000
    harness.split(harness.upload(csv_of(40)))
    days = 0.0
    sent_at = dict.fromkeys(range(40), 0.0)
    while not harness.is_settled():
        before = len(harness.queue.sent)
        harness.sweep(DAY)
        days += 1
        sent_at |= {message.row: days for message in harness.queue.sent[before:]}
        waiting = set(range(40)) - {record.row for record in harness.ledger.all(JOB)}
        assert all(days - sent_at[row] < 14 for row in waiting), "SQS deletes their messages"
        harness.edit(1)  # and duplicates of rows that are settled change nothing
        assert days < 400
    assert harness.ledger.counters(JOB, harness.run.run).succeeded == 40


def test_a_splitter_that_died_is_started_again_at_its_checkpoint(harness: SweepHarness) -> None:
    upload = harness.upload(csv_of(1_500))
    harness.faults.at = 22
    with pytest.raises(Crash):
        harness.split(upload)
    sent = len(harness.queue.sent)
    assert 0 < sent < 1_500
    harness.sweep(SCHEDULE)  # Lambda is still retrying
    assert len(harness.queue.sent) == sent
    harness.sweep(SCHEDULE)
    harness.edit()
    assert harness.run.totals.queued == 1_500
    assert harness.is_settled()


def test_a_reporter_that_died_is_started_again_when_its_lease_ends(harness: SweepHarness) -> None:
    harness.split(harness.upload(csv_of(1)))
    harness.edit()
    harness.sweep()
    assert harness.reports == [JOB]
    assert harness.ledger.begin_report(harness.run, 915.0)
    harness.sweep(SCHEDULE)
    assert harness.reports == [JOB]
    harness.sweep(915.0)
    assert harness.reports == [JOB, JOB]


def test_the_report_of_a_rejected_file_is_retried_until_it_is_made(harness: SweepHarness) -> None:
    harness.split(harness.upload(""))
    harness.reports.clear()
    for _ in range(2):
        harness.sweep(SCHEDULE)
    assert harness.reports == [JOB, JOB]
    harness.ledger.finish_report(harness.run, harness.clock.now())
    harness.sweep(SCHEDULE)
    assert (harness.unfinished, harness.reports) == ([], [JOB, JOB])


def test_a_redriven_row_makes_its_finished_job_unfinished_again(harness: SweepHarness) -> None:
    harness.outcome = lambda _: RowResult(RowState.DEAD, Reason.UNAVAILABLE)
    harness.split(harness.upload(csv_of(1)))
    harness.edit()
    harness.report()
    harness.sweep()
    assert harness.unfinished == []
    letter = harness.queue.sent[0].model_copy(update={"generation": 1})
    assert isinstance(harness.ledger.claim(letter, harness.run, "killed", 90), Claim)
    assert harness.unfinished == [JOB]
    harness.sweep(HOUR + SCHEDULE)  # its message is gone with its worker
    assert harness.queue.sent[-1].row == 0


def record_of(harness: SweepHarness, row: int) -> RowRecord:
    (record,) = (record for record in harness.ledger.all(JOB) if record.row == row)
    return record


def leave_sent(harness: SweepHarness, message: RowMessage) -> None:
    """A worker sends the row's call and dies."""
    claim = harness.ledger.claim(message, harness.run, "killed", 90)
    assert isinstance(claim, Claim)
    assert not isinstance(harness.ledger.mark_sent(claim, "gemini-main"), NotSent)


def test_a_call_sent_for_a_row_that_the_next_upload_drops_is_counted(harness: SweepHarness) -> None:
    harness.split(harness.upload(csv_of(2)))
    first = harness.run.run
    leave_sent(harness, harness.queue.sent[1])
    harness.queue.sent.clear()
    harness.split(harness.upload(csv_of(1)))
    harness.edit()
    harness.report()
    harness.sweep()  # the lease of the lost worker has not ended
    assert record_of(harness, 1).state is RowState.SENT
    harness.sweep(SCHEDULE)
    dropped = record_of(harness, 1)
    assert (dropped.state, dropped.possible_duplicate_charges) == (RowState.FAILED, 1)
    assert harness.ledger.counters(JOB, first).possible_duplicate_charges == 1
    assert harness.telemetry.metrics["PossibleDuplicateCharges"] == 1
    assert harness.unfinished == []
    assert not harness.ledger.report_due(JOB)


def lose_messages_and_csv(harness: SweepHarness) -> None:
    """Of five rows one is edited, one called for, one claimed and two were never received."""
    harness.split(harness.upload(csv_of(5)))
    harness.edit(1)
    leave_sent(harness, harness.queue.sent[1])
    assert isinstance(harness.ledger.claim(harness.queue.sent[2], harness.run, "k", 90), Claim)
    harness.lose_all()
    harness.bucket.versions["v1"] = (b"", {})


def test_a_csv_deleted_meanwhile_leaves_its_run_as_it_was(harness: SweepHarness) -> None:
    """Its messages may still be there: the queue's numbers are approximate."""
    lose_messages_and_csv(harness)
    totals = harness.run.totals
    harness.sweep(HOUR + SCHEDULE)
    assert (harness.run.state, harness.run.totals) == (RunState.RUNNING, totals)
    assert harness.ledger.counters(JOB, harness.run.run).settled == 1


def test_a_run_whose_messages_and_csv_are_gone_ends_and_says_why(harness: SweepHarness) -> None:
    lose_messages_and_csv(harness)
    for _ in range(2):
        harness.sweep(HOUR + SCHEDULE)
    reasons = {
        record.row: record.result.reason
        for record in harness.ledger.all(JOB)
        if record.result is not None
    }
    assert reasons == {
        0: None,
        1: Reason.OUTCOME_UNKNOWN,
        2: Reason.STOPPED,
    }
    (warning,) = harness.run.warnings
    assert warning.startswith("2 of 5 rows were not edited: their messages are gone")
    harness.reports.clear()
    harness.sweep(SCHEDULE)
    assert harness.reports == [JOB]
    harness.report()
    harness.sweep(SCHEDULE)
    assert (harness.unfinished, harness.run.state) == ([], RunState.DONE)
    assert harness.ledger.counters(JOB, harness.run.run).possible_duplicate_charges == 1


def test_a_row_that_was_given_up_and_arrives_late_is_reported(harness: SweepHarness) -> None:
    lose_messages_and_csv(harness)
    for _ in range(2):
        harness.sweep(HOUR + SCHEDULE)
    harness.report()
    harness.edited = 4
    harness.edit()
    assert harness.is_settled()
    harness.report()
    assert not harness.is_settled()


def test_a_call_of_an_upload_that_became_unreadable_is_counted(harness: SweepHarness) -> None:
    upload = harness.upload(csv_of(150))
    harness.faults.at = 4  # the second batch is not sent
    with pytest.raises(Crash):
        harness.split(upload)
    leave_sent(harness, harness.queue.sent[0])
    harness.bucket.versions["v1"] = (b"", {})
    harness.sweep(2 * SCHEDULE)
    assert harness.run.state is RunState.FAILED
    harness.ledger.finish_report(harness.run, harness.clock.now())
    harness.sweep(SCHEDULE)
    record = record_of(harness, 0)
    assert (record.state, record.possible_duplicate_charges) == (RowState.FAILED, 1)


def test_a_redriven_row_whose_message_is_gone_is_edited(harness: SweepHarness) -> None:
    harness.outcome = lambda _: RowResult(RowState.DEAD, Reason.UNAVAILABLE)
    harness.split(harness.upload(csv_of(1)))
    harness.edit()
    harness.report()
    letter = harness.queue.sent[0].model_copy(update={"generation": 1})
    assert isinstance(harness.ledger.claim(letter, harness.run, "killed", 90), Claim)
    harness.sweep(HOUR + SCHEDULE)
    harness.outcome = lambda _: RowResult(RowState.SUCCEEDED)
    harness.edit()
    assert harness.is_settled()
    assert record_of(harness, 0).state is RowState.SUCCEEDED


def test_an_upload_whose_splitter_failed_three_times_is_started_again(
    harness: SweepHarness,
) -> None:
    harness.lost.append(harness.upload(csv_of(2)))
    harness.sweep(SCHEDULE)
    assert len(harness.queue.sent) == 2
    assert "lost_uploads_restarted" in harness.telemetry.logged("warning")


def test_lost_events_that_cannot_be_read_keep_no_job_from_being_swept(
    harness: SweepHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: SweepHarness) -> int:
        raise ServiceUnavailable("no answer")

    monkeypatch.setattr(SweepHarness, "restart_uploads", fail)
    harness.split(harness.upload(csv_of(1)))
    harness.edit()
    harness.sweep()
    assert harness.reports == [JOB]


def test_an_error_of_one_job_does_not_keep_the_others_from_being_swept(
    harness: SweepHarness,
) -> None:
    for key in ("jobs/a.csv", "jobs/b.csv"):
        harness.split(harness.upload("", key=key))
    harness.reports.clear()
    fail_once(harness.ledger, "inspect")
    harness.sweep(SCHEDULE)
    assert harness.reports == ["jobs/b"]
    assert harness.telemetry.logged("warning")[-2:] == ["job_not_swept", "job_resumed"]


@pytest.mark.parametrize(("mode", "queued_again"), [("live", 1), ("batch", 0)])
def test_batches_that_cannot_be_read_keep_no_job_from_being_swept(
    harness: SweepHarness, monkeypatch: pytest.MonkeyPatch, mode: str, queued_again: int
) -> None:
    """The rows of a job with mode=batch may all be in batches: they wait for the next sweep."""

    def fail(_: object) -> Iterator[BatchRecord]:
        raise PermissionError("the ledger's key is disabled")

    harness.split(harness.upload(csv_of(1), mode=mode))
    harness.lose_all()
    lost = harness.batch_queue.receive(10, hide_seconds=60, wait_seconds=0)
    harness.batch_queue.delete([message.receipt for message in lost])
    monkeypatch.setattr(FakeBatchLedger, "open", fail)
    harness.sweep(HOUR + SCHEDULE)
    assert harness.telemetry.logged("exception") == ["batches_not_read"]
    sent = len(harness.queue.sent) + len(harness.batch_queue.sent)
    assert sent == 1 + queued_again
    monkeypatch.undo()
    harness.sweep(HOUR + SCHEDULE)
    assert len(harness.queue.sent) + len(harness.batch_queue.sent) > 1


def test_a_queue_that_does_not_answer_is_not_taken_for_an_empty_one(
    harness: SweepHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: SweepHarness) -> int:
        raise ServiceUnavailable("no answer")

    monkeypatch.setattr(SweepHarness, "backlog", fail)
    harness.split(harness.upload(csv_of(1)))
    harness.lose_all()
    harness.sweep(2 * HOUR)
    assert len(harness.queue.sent) == 1


def redriven(harness: SweepHarness) -> RowMessage:
    """A job of one dead row is reported; returns the copy that a redrive sends."""
    harness.outcome = lambda _: RowResult(RowState.DEAD, Reason.UNAVAILABLE)
    harness.split(harness.upload(csv_of(1)))
    harness.edit()
    harness.report()
    harness.sweep()
    harness.outcome = lambda _: RowResult(RowState.SUCCEEDED)
    return harness.queue.sent[0].model_copy(update={"generation": 1})


def test_a_redriven_row_is_edited_although_its_run_was_not_reopened_and_its_message_is_lost(
    harness: SweepHarness,
) -> None:
    letter = redriven(harness)
    fail_once(harness.ledger, "_update")  # the write that reopens the run, after the claim
    assert isinstance(harness.ledger.claim(letter, harness.run, "killed", 90), Claim)
    assert harness.run.finished_at is not None
    harness.lose_all()
    harness.sweep(HOUR + SCHEDULE)
    harness.edit()
    assert record_of(harness, 0).state is RowState.SUCCEEDED
    harness.report()
    harness.sweep()
    assert (harness.unfinished, harness.run.state) == ([], RunState.DONE)


def test_a_dead_row_whose_redriven_letter_is_lost_stays_reported_and_is_edited_by_an_upload(
    harness: SweepHarness,
) -> None:
    redriven(harness)  # and SQS deletes the copy before a worker claims its row
    harness.sweep(15 * DAY)
    assert record_of(harness, 0).state is RowState.DEAD
    assert (harness.unfinished, harness.run.state) == ([], RunState.DONE)
    harness.edited = len(harness.queue.sent)
    harness.split(harness.upload(csv_of(1), retry_failed="true"))
    harness.edit()
    assert record_of(harness, 0).state is RowState.SUCCEEDED


def count_a_row_as_resumed_and_queue_it(harness: SweepHarness) -> None:
    """Of three rows: a worker settles one for the first upload while the second is split.

    The clocks of the two differ, so that it seems to be settled before the second upload, whose
    splitter has queued it, crashed and started again.
    """
    harness.split(harness.upload(csv_of(3)))
    claim = harness.ledger.claim(harness.queue.sent[0], harness.run, "editor", 900)
    assert isinstance(claim, Claim)
    sent = harness.ledger.mark_sent(claim, "gemini-main")
    assert not isinstance(sent, NotSent)
    harness.edited = 3
    upload = harness.upload(csv_of(3))
    harness.faults.at = harness.faults.calls + 4  # its end is not recorded
    with pytest.raises(Crash):
        harness.split(upload)
    assert len(harness.queue.sent) == 6
    assert harness.ledger.settle(sent, RowResult(RowState.SUCCEEDED))
    harness.clock.time += 60
    harness.split(upload)
    assert harness.run.totals.resumed == 1


def test_a_run_with_more_rows_settled_than_queued_ends_even_without_its_csv(
    harness: SweepHarness,
) -> None:
    count_a_row_as_resumed_and_queue_it(harness)
    harness.edit()
    assert harness.ledger.counters(JOB, harness.run.run).settled == harness.run.totals.queued + 1
    harness.bucket.versions["v2"] = (b"", {})
    for _ in range(3):
        harness.sweep(HOUR + SCHEDULE)
    assert harness.is_settled()
    totals = harness.run.totals
    assert (totals.queued, totals.resumed, harness.run.lost, harness.run.warnings) == (3, 0, 0, ())
    harness.report()
    harness.sweep()
    assert (harness.unfinished, harness.run.state) == ([], RunState.DONE)


def test_lost_messages_are_noticed_within_hours_although_other_jobs_keep_the_queue_busy(
    harness: SweepHarness,
) -> None:
    harness.others = 1_000_000
    harness.split(harness.upload(csv_of(10)))
    for _ in range(5):  # as long as rows are settled, the job is left alone
        harness.edit(1)
        harness.sweep(7 * HOUR)
    assert len(harness.queue.sent) == 10
    harness.lose_all()
    harness.sweep(7 * HOUR)
    assert [message.row for message in harness.queue.sent[10:]] == [5, 6, 7, 8, 9]
    harness.edit()
    assert harness.is_settled()


def test_a_job_that_waits_for_its_endpoints_is_not_queued_again_before_its_rows_give_up(
    harness: SweepHarness,
) -> None:
    harness.others = 1_000_000
    harness.split(harness.upload(csv_of(2), give_up_after_hours="24"))
    harness.ledger.set_waiting(harness.run, Reason.UNAVAILABLE, "both providers are down")
    for _ in range(29):
        harness.sweep(HOUR)
    assert len(harness.queue.sent) == 2
    harness.sweep(2 * HOUR)
    assert len(harness.queue.sent) == 4


def test_rows_that_wait_in_the_queue_are_ended_soon_after_their_job_was_stopped(
    harness: SweepHarness,
) -> None:
    """Their messages may be hidden for hours."""
    harness.split(harness.upload(csv_of(6)))
    harness.edit(2)
    in_work = harness.ledger.claim(harness.queue.sent[2], harness.run, "editor", 90)
    assert isinstance(in_work, Claim)
    waits = harness.ledger.claim(harness.queue.sent[3], harness.run, "editor", 90)
    assert isinstance(waits, Claim)
    harness.ledger.release(waits, refund_attempt=True)
    harness.ledger.stop(JOB)
    harness.sweep(10)
    assert not harness.is_settled()  # a call is under way
    assert harness.ledger.settle(in_work, RowResult(RowState.SUCCEEDED))
    harness.sweep(SCHEDULE)
    assert harness.is_settled()
    harness.report()
    harness.sweep(SCHEDULE)
    assert (harness.unfinished, harness.run.state) == ([], RunState.STOPPED)
    assert (harness.run.lost, harness.run.warnings) == (2, ())
    harness.edited = 4
    harness.edit()  # the messages return at last, and change nothing
    assert not harness.is_settled()
    assert harness.ledger.counters(JOB, harness.run.run).settled == 4
    harness.split(harness.upload(csv_of(6)))
    assert [message.row for message in harness.queue.sent[6:]] == [3, 4, 5]
