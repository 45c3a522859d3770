"""One contract suite for the ledger in memory and the one in DynamoDB (on MiniStack)."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from darkroom.aws.ledger_table import LedgerTable
from darkroom.errors import Reason, Waiting
from darkroom.jobs import Checkpoint, Counters, JobOptions, Run, RunState, Totals
from darkroom.ledger.runs import UnfinishedJob
from darkroom.ports import RowLedger, RunLedger
from darkroom.rows import Claim, NotClaimed, NotSent, RowMessage, RowResult, RowState
from tests.conftest import ClientFactory
from tests.fakes.editing import row_message
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.services import FakeClock

LEASE = 90.0
SUCCESS = RowResult(
    RowState.SUCCEEDED,
    outputs=("jobs/products/images/a.png",),
    provider="gemini",
    endpoint="gemini-main",
    model="gemini-3-pro-image",
    fallback=True,
    latency_ms=1234,
    cost_micro_usd=40_000,
    warnings=("skipped one",),
)
FAILURE = RowResult(
    RowState.FAILED, Reason.REFUSED, "the provider refused: größer", cost_micro_usd=0
)
DEATH = RowResult(RowState.DEAD, Reason.UNAVAILABLE, "HTTP 503", cost_micro_usd=7)

_jobs = itertools.count()


class Ledger(RowLedger, RunLedger, Protocol):
    pass


@dataclass
class Harness:
    """A ledger with a job of the test's own: the table is shared."""

    ledger: Ledger
    clock: FakeClock
    committed: Callable[[str], int]  # of a job's budget, in micro-USD
    job: str = field(default_factory=lambda: f"jobs/products-{next(_jobs)}")

    def begin(self, name: str = "run-1", queued: int = 1, **options: Any) -> Run:
        """A run of `queued` rows, split."""
        run = running(self.job, run=name, sequencer=f"00{name[-1]}", options=JobOptions(**options))
        started = self.ledger.start(run, LEASE)
        assert started is not None
        self.ledger.finish_split(started, Totals(rows=queued, queued=queued), ())
        return self.current

    @property
    def current(self) -> Run:
        run = self.ledger.current(self.job)
        assert run is not None
        return run

    def deliver(
        self, delivered: RowMessage, owner: str = "worker-1", run: Run | None = None
    ) -> Claim | NotClaimed:
        """Request a claim; `run` is the worker's copy of the current run, which may be outdated."""
        return self.ledger.claim(delivered, run or self.current, owner, LEASE)

    def claim(self, delivered: RowMessage, owner: str = "worker-1") -> Claim:
        claim = self.deliver(delivered, owner)
        assert isinstance(claim, Claim), claim
        return claim

    def send(self, claim: Claim, **money: Any) -> Claim:
        sent = self.ledger.mark_sent(claim, "gemini-main", **money)
        assert isinstance(sent, Claim), sent
        return sent

    def settle(self, delivered: RowMessage, result: RowResult) -> None:
        assert self.ledger.settle(self.claim(delivered), result)

    def settle_paid(self, delivered: RowMessage, *, reserve: int, limit: int) -> None:
        sent = self.send(self.claim(delivered), reserve=reserve, limit=limit)
        assert self.ledger.settle(sent, SUCCESS)

    def report(self, run: Run, finished_at: float) -> None:
        assert self.ledger.begin_report(run, LEASE)
        assert self.ledger.finish_report(run, finished_at)

    def counters(self, run: str = "run-1") -> Counters:
        return self.ledger.counters(self.job, run)

    def report_due(self) -> bool:
        return self.ledger.report_due(self.job)


def message(
    run: Run, key: str = "000000", instruction: str = "a red hat", **changes: Any
) -> RowMessage:
    unchanged = row_message(run.run, key, job=run.job, instruction=instruction)
    return unchanged.model_copy(update=changes)


@pytest.fixture(params=["memory", "dynamodb"])
def harness(request: pytest.FixtureRequest) -> Harness:
    clock = FakeClock()
    if request.param == "memory":
        memory = FakeLedger(clock)
        return Harness(memory, clock, lambda job: memory.committed.get(job, 0))
    client: Any = request.getfixturevalue("aws_client")("dynamodb")
    name: str = request.getfixturevalue("ledger_table")

    ledger = LedgerTable(client, name, now=clock.now, sleep=clock.sleep)
    return Harness(ledger, clock, ledger.committed)


def test_a_row_is_claimed_settled_and_counted_once(harness: Harness) -> None:
    run, ledger = harness.begin(), harness.ledger
    claimed = harness.send(harness.claim(message(run)))
    assert ledger.settle(claimed, SUCCESS)
    assert not ledger.settle(replace(claimed, owner="other"), FAILURE)
    record = ledger.get_many(run.job, ["000000", "000001"])["000000"]
    assert (record.state, record.result, record.attempts) == (RowState.SUCCEEDED, SUCCESS, 1)
    assert list(ledger.all(run.job)) == [record]
    assert harness.counters() == Counters(
        succeeded=1, fallback=1, attempts=1, cost_micro_usd=40_000, transitions=1
    )


def test_a_repeated_write_after_a_lost_response_changes_nothing(harness: Harness) -> None:
    run, ledger = harness.begin(), harness.ledger
    claimed = harness.claim(message(run))
    assert harness.claim(message(run)) == claimed  # by the same owner
    after = harness.send(claimed)
    assert harness.send(claimed) == after
    assert ledger.settle(after, FAILURE)
    assert ledger.settle(after, FAILURE)
    assert harness.counters().failed == 1


def test_a_row_in_work_is_held_until_its_lease_ends(harness: Harness) -> None:
    run, ledger, clock = harness.begin(), harness.ledger, harness.clock
    first = harness.claim(message(run))
    assert harness.deliver(message(run), "worker-2") is NotClaimed.HELD
    clock.time += 80
    ledger.renew([first], LEASE)
    clock.time += 80
    assert harness.deliver(message(run), "worker-2") is NotClaimed.HELD
    clock.time += 11
    second = harness.claim(message(run), "worker-2")
    assert second.record.version > first.record.version
    assert ledger.mark_sent(first, "gemini-main") is NotSent.LEASE_LOST
    assert not ledger.settle(first, FAILURE)
    ledger.renew([first], 1000)
    clock.time += 91
    assert harness.claim(message(run), "worker-3").record.crashes == 2


def test_a_deferral_refunds_the_attempt(harness: Harness) -> None:
    run, ledger = harness.begin(), harness.ledger
    for number in range(3):
        claimed = harness.claim(message(run), f"worker-{number}")
        assert claimed.attempt == 1
        ledger.release(claimed, refund_attempt=True)
    ledger.release(harness.claim(message(run)), refund_attempt=False)
    assert harness.claim(message(run)).attempt == 2


def test_the_first_crash_costs_no_attempt_and_further_ones_do(harness: Harness) -> None:
    run = harness.begin(max_attempts=2)
    for number, (attempt, after_crash) in enumerate([(1, False), (1, True), (2, True)]):
        claim = harness.claim(message(run), f"worker-{number}")
        assert (claim.attempt, claim.after_crash) == (attempt, after_crash)
        assert not claim.attempts_spent
        harness.clock.time += LEASE + 1
    last = harness.claim(message(run), "worker-4")
    assert (last.attempts_spent, last.attempt) == (True, 2)
    assert harness.ledger.settle(last, DEATH)
    assert harness.deliver(message(run), "worker-5") is NotClaimed.SETTLED


def test_a_released_row_is_not_taken_for_one_whose_worker_died(harness: Harness) -> None:
    run = harness.begin()
    harness.ledger.release(harness.claim(message(run)), refund_attempt=False)
    harness.clock.time += LEASE + 1
    second = harness.claim(message(run), "worker-2")
    assert (second.attempt, second.after_crash) == (2, False)


def test_what_a_run_waits_for_is_recorded_once_and_its_beginning_is_kept(harness: Harness) -> None:
    run, ledger = harness.begin(), harness.ledger
    since = harness.clock.now()
    assert ledger.clear_waiting(run) is None
    waiting = ledger.set_waiting(run, Reason.KEY_REJECTED, "every key was rejected")
    assert waiting is not None
    assert waiting.waiting == Waiting(Reason.KEY_REJECTED, "every key was rejected", since)
    harness.clock.time += 60
    for known in (run, waiting):
        assert ledger.set_waiting(known, Reason.KEY_REJECTED, "every key was rejected") is None
    other = ledger.set_waiting(waiting, Reason.QUOTA_SPENT, "the day's quota is spent")
    assert other is not None
    assert other.waiting == Waiting(Reason.QUOTA_SPENT, "the day's quota is spent", since)
    assert harness.current == other
    cleared = ledger.clear_waiting(other)
    assert cleared is not None
    assert cleared.waiting is None


def test_the_next_claim_counts_a_call_with_unknown_outcome(harness: Harness) -> None:
    run = harness.begin()
    harness.send(harness.claim(message(run)))
    harness.clock.time += LEASE + 1
    second = harness.claim(message(run), "worker-2")
    assert second.sent_before
    assert second.record.sent_run == run.run
    failed = harness.ledger.mark_failed_call(second, maybe_charged=True)
    assert failed is not None
    assert not failed.sent_before
    assert harness.ledger.settle(harness.send(failed), SUCCESS)
    assert harness.counters().possible_duplicate_charges == 1


def test_a_restarted_row_counts_the_call_that_was_sent_before(harness: Harness) -> None:
    harness.send(harness.claim(message(harness.begin())))
    new = harness.begin("run-2")
    harness.clock.time += LEASE + 1
    restarted = harness.claim(message(new, instruction="a blue hat"), "worker-2")
    assert not restarted.sent_before
    assert harness.ledger.settle(restarted, SUCCESS)
    assert harness.counters("run-2").possible_duplicate_charges == 1


def test_budget_is_reserved_by_the_call_and_corrected_afterwards(harness: Harness) -> None:
    run, ledger = harness.begin(budget_usd=0.1), harness.ledger
    money = {"reserve": 60_000, "limit": 100_000}
    first = harness.send(harness.claim(message(run)), **money)
    assert harness.committed(run.job) == 60_000
    other = harness.claim(message(run, "000001"))
    assert ledger.mark_sent(other, "gemini-main", **money) is NotSent.BUDGET_RESERVED
    assert ledger.settle(first, SUCCESS)
    assert harness.committed(run.job) == 40_000
    failed = ledger.mark_failed_call(harness.send(other, **money), cost_micro_usd=1_000)
    assert failed is not None
    assert harness.committed(run.job) == 41_000
    assert ledger.settle(failed, FAILURE)
    assert harness.committed(run.job) == 41_000


def test_what_a_job_has_spent_in_earlier_uploads_is_known(harness: Harness) -> None:
    first = harness.begin(budget_usd=1)
    harness.settle_paid(message(first), reserve=40_000, limit=1_000_000)
    assert harness.ledger.spent_earlier(harness.ledger.current(first.job) or first) == 0
    second = harness.begin("run-2")
    assert harness.ledger.spent_earlier(second) == 40_000


def test_a_result_whose_image_another_row_replaces_is_discarded(harness: Harness) -> None:
    run, ledger = harness.begin(), harness.ledger
    result = replace(SUCCESS, outputs=("jobs/x/images/a.png",))
    sent = harness.send(harness.claim(message(run)))
    assert ledger.settle(sent, result)
    key = message(run).key
    for image in ("jobs/x/images/b.png", "jobs/x/images/a.png", "jobs/x/images/a.png"):
        ledger.discard_result(run.job, key, image)
        record = ledger.get_many(run.job, [key])[key]
        assert record.state is (SUCCESS.status if image.endswith("b.png") else RowState.FAILED)
    ledger.discard_result(run.job, "unknown", "jobs/x/images/a.png")
    assert record.result is not None
    assert record.result.reason is Reason.SUPERSEDED
    counters = harness.counters()
    assert (counters.succeeded, counters.failed, counters.cost_micro_usd) == (0, 1, 40_000)


def test_a_possible_charge_of_unknown_cost_stays_committed(harness: Harness) -> None:
    run = harness.begin(budget_usd=1)
    claimed = harness.send(harness.claim(message(run)), reserve=60_000, limit=1_000_000)
    assert harness.ledger.mark_failed_call(claimed, maybe_charged=True)
    assert harness.committed(run.job) == 60_000


def test_a_budget_of_zero_allows_only_free_calls(harness: Harness) -> None:
    claimed, ledger = harness.claim(message(harness.begin(budget_usd=0))), harness.ledger
    assert ledger.mark_sent(claimed, "gemini-main", reserve=1, limit=0) is NotSent.NO_BUDGET
    assert isinstance(ledger.mark_sent(claimed, "gemini-main", reserve=0, limit=0), Claim)


def test_a_dead_row_is_redriven_once_by_a_copy_of_the_next_generation(harness: Harness) -> None:
    run = harness.begin(max_attempts=1)
    harness.settle(message(run), DEATH)
    harness.report(run, 5.0)
    assert harness.deliver(message(run), "worker-2") is NotClaimed.SETTLED
    copy = message(run, generation=1)
    alive = harness.claim(copy, "worker-2")
    assert (alive.attempt, alive.attempts_spent) == (1, False)
    assert harness.counters().settled == 0
    assert (harness.current.state, harness.current.finished_at) == (RunState.RUNNING, None)
    assert harness.deliver(copy, "worker-3") is NotClaimed.HELD
    assert harness.ledger.settle(alive, SUCCESS)
    assert harness.deliver(copy, "worker-3") is NotClaimed.SETTLED
    counters = harness.counters()
    assert (counters.succeeded, counters.dead, counters.cost_micro_usd) == (1, 0, 40_000)
    assert harness.report_due()


def test_a_success_of_an_earlier_upload_is_transferred_not_repeated(harness: Harness) -> None:
    old = harness.begin()
    claimed = harness.send(harness.claim(message(old)))
    new = harness.begin("run-2")
    assert (old.number, new.number) == (1, 2)
    assert harness.deliver(message(old), "worker-2") is NotClaimed.SUPERSEDED
    assert harness.deliver(message(new), "worker-2") is NotClaimed.HELD
    assert harness.ledger.settle(claimed, SUCCESS)
    for _ in range(2):
        assert harness.deliver(message(new), "worker-2") is NotClaimed.SETTLED
        assert harness.counters("run-1").settled == 0
        assert harness.counters("run-2").succeeded == 1


@pytest.mark.parametrize("why", ["redo", "changed", "failed"])
def test_a_later_upload_restarts_changed_failed_and_redone_rows(harness: Harness, why: str) -> None:
    harness.settle(message(harness.begin()), FAILURE if why == "failed" else SUCCESS)
    new = harness.begin("run-2")
    instruction = "a blue hat" if why == "changed" else "a red hat"
    second = harness.claim(message(new, instruction=instruction, redo=why == "redo"))
    assert (second.attempt, second.run) == (1, "run-2")
    assert harness.ledger.settle(second, SUCCESS)
    assert harness.counters("run-1").settled == 1
    assert harness.counters("run-2").settled == 1


def test_a_worker_with_an_outdated_run_claims_no_row_of_the_new_run(harness: Harness) -> None:
    old = harness.begin()
    harness.settle(message(harness.begin("run-2")), SUCCESS)
    assert harness.deliver(message(old), "late", run=old) is NotClaimed.HELD
    assert harness.deliver(message(old), "late") is NotClaimed.SUPERSEDED


def test_a_worker_with_an_outdated_run_claims_by_the_newer_runs_message(harness: Harness) -> None:
    old = harness.begin()
    new = harness.begin("run-2", max_attempts=7)
    claim = harness.deliver(message(new), run=old)
    assert isinstance(claim, Claim)
    assert claim.run == "run-2"


@pytest.mark.parametrize(
    ("outcome", "answer"),
    [
        (None, NotClaimed.OUTDATED_LETTER),
        (DEATH, NotClaimed.OUTDATED_LETTER),
        (SUCCESS, NotClaimed.SETTLED),
    ],
)
def test_a_dead_letter_of_an_earlier_upload_is_kept_unless_its_row_succeeded(
    harness: Harness, outcome: RowResult | None, answer: NotClaimed
) -> None:
    old = harness.begin(max_attempts=1)
    if outcome is not None:
        harness.settle(message(old), outcome)
    harness.report(harness.begin("run-2", queued=0), 1.0)
    assert harness.deliver(message(old, generation=1)) is answer
    assert harness.deliver(message(old)) is NotClaimed.SUPERSEDED
    assert harness.current.state is RunState.DONE


def test_a_dead_letter_is_not_needed_once_its_row_is_queued_again(harness: Harness) -> None:
    old = harness.begin(max_attempts=1)
    harness.settle(message(old), DEATH)
    new = harness.begin("run-2")
    assert harness.deliver(message(old, generation=1)) is NotClaimed.OUTDATED_LETTER  # not yet
    harness.settle(message(new), FAILURE)
    assert harness.deliver(message(old, generation=1)) is NotClaimed.SETTLED
    assert harness.report_due()


def test_dead_letters_of_a_failed_run_are_kept_and_other_messages_are_not(
    harness: Harness,
) -> None:
    run = harness.begin()
    harness.ledger.fail(run, "the file was deleted")
    assert harness.deliver(message(run)) is NotClaimed.SUPERSEDED
    assert harness.deliver(message(run, generation=1)) is NotClaimed.OUTDATED_LETTER


def test_a_rejected_upload_does_not_replace_a_run_under_way(harness: Harness) -> None:
    run, ledger = harness.begin(), harness.ledger
    broken = running(harness.job, run="run-2", sequencer="002")
    for _ in range(2):  # the event may come twice
        current = ledger.reject(broken, "The file is empty.")
        assert current is not None
        assert current == harness.current
        (rejected,) = current.rejected_uploads
        assert (rejected.run, rejected.version_id) == ("run-2", "v1")
        assert (rejected.reason, rejected.rejected_at) == ("The file is empty.", 1_000_000.0)
    for number in range(12):
        ledger.reject(replace(broken, run=f"run-{number + 3}"), "The file is empty.")
    assert len(harness.current.rejected_uploads) == 10
    harness.settle(message(run), SUCCESS)
    harness.report(run, 5.0)
    assert harness.current.state is RunState.DONE


def test_a_rejected_upload_fails_the_job_when_no_run_is_under_way(harness: Harness) -> None:
    broken = running(harness.job, run="run-1", sequencer="001")
    failed = harness.ledger.reject(broken, "The file is empty.")
    assert failed is not None
    assert (failed.state, failed.reason) == (RunState.FAILED, "The file is empty.")
    assert harness.current == failed
    assert harness.ledger.reject(broken, "The file is empty.") is None
    harness.report(harness.begin("run-3", queued=0), 5.0)
    late = running(harness.job, run="run-2", sequencer="002")
    assert harness.ledger.reject(late, "The file is empty.") is None
    assert harness.current.state is RunState.DONE


def test_an_upload_starts_one_run_and_an_older_upload_none(harness: Harness) -> None:
    job, ledger = harness.job, harness.ledger
    second = running(job, run="run-2", sequencer="0066")
    assert ledger.start(second, LEASE) is not None
    assert ledger.start(second, LEASE) is None  # the same event twice
    assert ledger.start(running(job, run="run-1", sequencer="0055"), LEASE) is None
    third = ledger.start(running(job, run="run-3", sequencer="006601"), LEASE)
    assert third is not None
    assert third.number == 2
    assert harness.current == third
    assert ledger.start(second, LEASE) is None  # superseded
    assert not ledger.checkpoint(second, Checkpoint(row=5), LEASE)


def test_the_run_of_a_dead_splitter_is_taken_over_at_its_checkpoint(harness: Harness) -> None:
    run, ledger = running(harness.job), harness.ledger
    assert ledger.start(run, 50.0)
    reached = Checkpoint(row=10, continuations=1, totals=Totals(rows=10, queued=10))
    assert ledger.checkpoint(run, reached, 50.0)
    assert ledger.start(run, 50.0) is None
    harness.clock.time += 51
    taken = ledger.start(run, 50.0)
    assert taken is not None
    assert taken.checkpoint == reached
    ledger.checkpoint(run, reached, 0.0)
    assert ledger.start(run, 50.0) is not None  # handed over at once
    ledger.finish_split(run, reached.totals, ("a warning",))
    harness.clock.time += 51
    assert ledger.start(run, 50.0) is None
    current = harness.current
    assert (current.state, current.split_done) == (RunState.RUNNING, True)
    assert (current.totals, current.warnings) == (reached.totals, ("a warning",))


def test_a_failed_run_has_a_reason_and_its_report_is_never_due(harness: Harness) -> None:
    run = running(harness.job)
    harness.ledger.start(run, LEASE)
    harness.ledger.fail(run, "the file has no header")
    current = harness.current
    assert (current.state, current.reason) == (RunState.FAILED, "the file has no header")
    assert current.finished_at is not None
    assert not harness.report_due()


def test_a_stopped_run_stays_stopped_after_its_report(harness: Harness) -> None:
    harness.begin()
    stopped = harness.ledger.stop(harness.job)
    assert stopped is not None
    assert stopped.state is RunState.STOPPED
    assert harness.ledger.stop(harness.job) is None
    assert harness.ledger.stop("jobs/none") is None
    harness.settle(message(stopped), RowResult(RowState.FAILED, Reason.STOPPED))
    harness.report(stopped, 9.0)
    assert (harness.current.state, harness.current.finished_at) == (RunState.STOPPED, 9.0)


def test_a_report_is_due_only_when_split_and_settled(harness: Harness) -> None:
    run, ledger = running(harness.job), harness.ledger
    assert ledger.start(run, LEASE)
    harness.settle(message(run), SUCCESS)
    assert not harness.report_due()
    ledger.finish_split(run, Totals(rows=2, queued=2), ())
    assert not harness.report_due()
    assert not ledger.begin_report(run, LEASE)
    harness.settle(message(run, "000001"), FAILURE)
    assert harness.report_due()


def test_one_reporter_works_at_a_time_until_its_lease_ends(harness: Harness) -> None:
    run, ledger = harness.begin(queued=0), harness.ledger
    assert ledger.begin_report(run, 60.0, "invocation-1")
    assert not ledger.begin_report(run, 60.0, "invocation-2")
    assert ledger.begin_report(run, 60.0, "invocation-1")  # retried after a crash
    harness.clock.time += 61
    assert ledger.begin_report(run, 60.0, "invocation-3")
    assert not ledger.begin_report(run, 0.0, "invocation-4")
    assert ledger.begin_report(run, 0.0, "invocation-3")  # ends its lease
    assert ledger.begin_report(run, 60.0, "invocation-4")
    assert ledger.finish_report(run, 7.0)
    assert not ledger.begin_report(run, 60.0, "invocation-5")
    assert (harness.current.state, harness.current.finished_at) == (RunState.DONE, 7.0)


def test_a_redrive_while_the_report_is_made_makes_it_stale(harness: Harness) -> None:
    run, ledger = harness.begin(max_attempts=1), harness.ledger
    harness.settle(message(run), DEATH)
    assert ledger.begin_report(run, LEASE)
    alive = harness.claim(message(run, generation=1))
    assert not ledger.finish_report(run, 1.0)
    assert not ledger.begin_report(run, LEASE)  # the row is in work
    assert ledger.settle(alive, SUCCESS)
    harness.report(run, 2.0)
    assert not harness.report_due()


def test_a_run_starts_with_the_cost_of_earlier_runs_without_a_budget(harness: Harness) -> None:
    harness.settle(message(harness.begin()), SUCCESS)
    assert harness.begin("run-2", budget_usd=1).spent_before == 40_000


def test_neighbouring_and_scattered_rows_are_read_together(harness: Harness) -> None:
    run = harness.begin()
    keys = [*(f"{n:06d}" for n in range(90, 120)), "sku-17", "sku-18", "7", "1000000", "a"]
    for name in keys:
        harness.claim(message(run).model_copy(update={"key": name}))
    wanted = [*keys[:25], *keys[30:], "missing", "000500"]
    found = harness.ledger.get_many(run.job, [*wanted, *wanted])
    assert set(found) == {*keys[:25], *keys[30:]}
    assert all(record.key == name for name, record in found.items())


def test_all_rows_of_a_job_are_streamed_in_key_order(harness: Harness) -> None:
    run = harness.begin()
    for number in (11, 3, 7):
        harness.claim(message(run, f"{number:06d}"))
    assert [record.row for record in harness.ledger.all(run.job)] == [3, 7, 11]
    assert harness.ledger.get_many(run.job, []) == {}


def test_concurrent_workers_settle_each_row_once(harness: Harness) -> None:
    run = harness.begin(queued=12)
    messages = [message(run, f"{n:06d}") for n in range(12)]
    settled: list[str] = []

    def work(worker: int) -> None:
        for delivered in messages[worker:] + messages[:worker]:
            result = harness.deliver(delivered, f"worker-{worker}", run)
            if isinstance(result, Claim) and harness.ledger.settle(result, SUCCESS):
                settled.append(delivered.key)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert sorted(settled) == [m.key for m in messages]
    assert harness.counters().succeeded == 12
    assert harness.report_due()


def test_concurrent_workers_never_exceed_the_budget(harness: Harness) -> None:
    run = harness.begin(queued=12, budget_usd=0.05)

    def work(number: int) -> Claim | NotSent:
        claimed = harness.claim(message(run, f"{number:06d}"), f"worker-{number}")
        return harness.ledger.mark_sent(claimed, "gemini-main", reserve=10_000, limit=50_000)

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(work, range(12)))
    assert sum(isinstance(outcome, Claim) for outcome in outcomes) == 5
    assert outcomes.count(NotSent.BUDGET_RESERVED) == 7
    assert harness.committed(run.job) == 50_000
    for outcome in outcomes:
        if isinstance(outcome, Claim):
            assert harness.ledger.settle(outcome, replace(SUCCESS, cost_micro_usd=10_000))
    late = harness.claim(message(run, "000099"))
    sent = harness.ledger.mark_sent(late, "gemini-main", reserve=1, limit=50_000)
    assert sent is NotSent.NO_BUDGET
    assert harness.committed(run.job) == 50_000


def test_unused_room_is_found_wherever_it_is_until_the_budget_is_spent(harness: Harness) -> None:
    """Rows cost a quarter of their reservation: all of the budget is used, and never more."""
    run, ledger, limit = harness.begin(queued=99, budget_usd=0.1), harness.ledger, 100_000
    spent = 0
    for number in range(99):
        claimed = harness.claim(message(run, f"{number:06d}"))
        sent = ledger.mark_sent(claimed, "gemini-main", reserve=12_000, limit=limit)
        if not isinstance(sent, Claim):
            assert sent is NotSent.NO_BUDGET
            assert limit - spent < 12_000
            break
        assert ledger.settle(sent, replace(SUCCESS, cost_micro_usd=3_000))
        spent += 3_000
        assert harness.committed(run.job) == spent
    else:
        pytest.fail("the budget was never spent")


def test_another_limit_of_a_later_upload_takes_effect(harness: Harness) -> None:
    ledger = harness.ledger
    old = harness.begin(budget_usd=1)
    harness.settle_paid(message(old), reserve=40_000, limit=1_000_000)
    smaller = harness.begin("run-2", queued=2, budget_usd=0.05)
    claimed = harness.claim(message(smaller, "000001"))
    money = {"reserve": 40_000, "limit": 50_000}
    assert ledger.mark_sent(claimed, "gemini-main", **money) is NotSent.NO_BUDGET
    assert harness.committed(old.job) == 40_000
    larger = harness.begin("run-3", budget_usd=2)
    harness.clock.time += LEASE + 1
    harness.settle_paid(message(larger, "000001"), reserve=40_000, limit=2_000_000)
    assert harness.committed(old.job) == 80_000


def test_a_dropped_call_keeps_its_commitment_but_nothing_waits_for_it(harness: Harness) -> None:
    run, ledger = harness.begin(queued=2, budget_usd=0.1), harness.ledger
    money = {"reserve": 60_000, "limit": 100_000}
    sent = harness.send(harness.claim(message(run)), **money)
    other = harness.claim(message(run, "000001"))
    assert ledger.mark_sent(other, "gemini-main", **money) is NotSent.BUDGET_RESERVED
    assert ledger.drop(run.job, sent.record, Reason.SUPERSEDED, "gone")
    assert ledger.mark_sent(other, "gemini-main", **money) is NotSent.NO_BUDGET
    assert harness.committed(run.job) == 60_000


@pytest.fixture
def remove_row(harness: Harness, request: pytest.FixtureRequest) -> Callable[[Claim], None]:
    """Deletes a row's item, as a person or a restored backup may."""
    if isinstance(harness.ledger, FakeLedger):
        memory = harness.ledger.rows
        return lambda claim: memory.__delitem__((claim.job, claim.key))
    client: Any = request.getfixturevalue("aws_client")("dynamodb")
    name: str = request.getfixturevalue("ledger_table")

    def remove(claim: Claim) -> None:
        for n in range(64):
            key = {"job": {"S": f"{claim.job}#rows#{n}"}, "item": {"S": f"row#{claim.key}"}}
            client.delete_item(TableName=name, Key=key)

    return remove


@pytest.fixture
def faulty(
    aws_client: ClientFactory, ledger_table: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[..., Any]], Harness]:
    """Builds a harness on DynamoDB whose puts and transactions are made by the given function."""

    def build(write: Callable[..., Any]) -> Harness:
        clock, client = FakeClock(), aws_client("dynamodb")
        for name in ("put_item", "transact_write_items"):
            monkeypatch.setattr(client, name, partial(write, getattr(client, name)))
        ledger = LedgerTable(
            client, ledger_table, now=clock.now, sleep=clock.sleep, patience_seconds=10.0
        )
        return Harness(ledger, clock, lambda _: 0)

    return build


def test_a_row_whose_item_is_gone_is_neither_called_for_nor_settled(
    harness: Harness, remove_row: Callable[[Claim], None]
) -> None:
    claimed = harness.claim(message(harness.begin(budget_usd=1)))
    remove_row(claimed)
    sent = harness.ledger.mark_sent(claimed, "gemini-main", reserve=1, limit=1_000_000)
    assert sent is NotSent.LEASE_LOST
    assert harness.ledger.mark_failed_call(claimed) is None
    assert not harness.ledger.settle(claimed, SUCCESS)
    harness.ledger.renew([claimed], LEASE)
    harness.ledger.release(claimed, refund_attempt=True)
    assert list(harness.ledger.all(harness.job)) == []
    assert harness.counters().settled == 0


def test_every_write_may_be_repeated_by_the_sdk(faulty: Callable[..., Harness]) -> None:
    def twice(write: Callable[..., Any], **request: Any) -> Any:
        write(**request)
        return write(**request)

    harness = faulty(twice)
    run = harness.begin(budget_usd=1)
    claimed = harness.send(harness.claim(message(run)), reserve=60_000, limit=1_000_000)
    assert harness.ledger.settle(claimed, SUCCESS)
    assert harness.counters().succeeded == 1
    harness.report(run, 5.0)
    assert (harness.current.state, harness.current.finished_at) == (RunState.DONE, 5.0)
    assert harness.clock.slept == []


@pytest.mark.parametrize("done", [True, False])
def test_a_rows_write_without_an_answer_is_repeated_and_leaves_no_lease_behind(
    faulty: Callable[..., Harness],
    done: bool,
) -> None:
    """The next claim would take the lease for a worker's death."""
    answered = itertools.cycle([False] * 4 + [True])

    def fail(write: Callable[..., Any], **request: Any) -> Any:
        is_row = request.get("Item", {}).get("item", {}).get("S", "").startswith("row#")
        if not is_row or next(answered):
            return write(**request)
        if done:
            with suppress(ClientError):  # its condition fails when it was done before
                write(**request)
        raise EndpointConnectionError(endpoint_url="https://dynamodb")

    harness = faulty(fail)
    run = harness.begin()
    released = harness.send(harness.claim(message(run)))
    harness.ledger.release(released, refund_attempt=True)
    harness.clock.time += 2 * LEASE
    claimed = harness.claim(message(run), "worker-2")
    assert (claimed.record.crashes, claimed.attempt) == (0, 1)
    assert 0 < max(harness.clock.slept) <= 8.0


def test_a_redriven_row_is_claimed_even_if_its_run_stays_closed(
    faulty: Callable[..., Harness],
) -> None:
    failing: list[str] = []

    def fail(write: Callable[..., Any], **request: Any) -> Any:
        if request.get("Item", {}).get("item", {}).get("S") in failing:
            raise EndpointConnectionError(endpoint_url="https://dynamodb")
        return write(**request)

    harness = faulty(fail)
    run = harness.begin(max_attempts=1)
    harness.settle(message(run), DEATH)
    harness.report(run, 5.0)
    failing.append(f"run#{run.run}")
    assert harness.claim(message(run, generation=1)).attempt == 1
    assert harness.current.state is RunState.DONE


@pytest.mark.parametrize("conflicts", [0, 1])
def test_a_redriven_rows_claim_that_is_not_answered_reopens_its_run(
    faulty: Callable[..., Harness], conflicts: int
) -> None:
    failures: list[Exception] = []
    reasons = {"CancellationReasons": [{"Code": "TransactionConflict"}]}
    conflict = {"Error": {"Code": "TransactionCanceledException"}} | reasons

    def fail(write: Callable[..., Any], **request: Any) -> Any:
        if len(failures) == 1 + conflicts:
            write(**request)
        if failures:
            raise failures.pop(0)
        return write(**request)

    harness = faulty(fail)
    run = harness.begin(max_attempts=1)
    harness.settle(message(run), DEATH)
    harness.report(run, 5.0)
    failures.append(EndpointConnectionError(endpoint_url="https://dynamodb"))
    failures += [ClientError(conflict, "TransactWriteItems")] * conflicts  # type: ignore[arg-type]  # a part of a response
    assert harness.claim(message(run, generation=1)).attempt == 1
    assert (harness.current.state, harness.current.finished_at) == (RunState.RUNNING, None)
    assert harness.counters() == Counters(transitions=2)


def test_a_claim_answered_after_its_lease_is_no_crash_of_another_worker(
    faulty: Callable[..., Harness],
) -> None:
    unanswered: list[FakeClock] = []

    def fail(write: Callable[..., Any], **request: Any) -> Any:
        response = write(**request)
        if unanswered:
            unanswered.pop().time += LEASE + 1
            raise EndpointConnectionError(endpoint_url="https://dynamodb")
        return response

    harness = faulty(fail)
    run = harness.begin()
    unanswered.append(harness.clock)
    claimed = harness.claim(message(run))
    assert (claimed.record.crashes, claimed.attempt) == (0, 1)


def unfinished(harness: Harness) -> list[UnfinishedJob]:
    return [found for found in harness.ledger.unfinished() if found.job == harness.job]


def test_a_job_is_unfinished_until_the_sweep_ends_it_and_again_after_a_redrive(
    harness: Harness,
) -> None:
    run, ledger = harness.begin(max_attempts=1), harness.ledger
    harness.settle(message(run), DEATH)
    harness.report(run, 5.0)
    (found,) = unfinished(harness)
    inspected = ledger.inspect(harness.job)
    assert inspected is not None
    record, counters = inspected
    assert (record.run, counters.dead) == (harness.current, 1)
    ledger.finish(found)
    assert unfinished(harness) == []
    harness.claim(message(run, generation=1))
    (again,) = unfinished(harness)
    harness.begin("run-2")
    ledger.finish(again)  # a newer upload has come meanwhile
    (newest,) = unfinished(harness)
    ledger.finish(newest)
    assert unfinished(harness) == []
    assert ledger.inspect("jobs/none") is None


def test_rows_are_queued_again_by_another_pass_of_the_splitter(harness: Harness) -> None:
    run, ledger = harness.begin(queued=2), harness.ledger
    ledger.stop(harness.job)
    assert ledger.queue_again(run)
    assert not ledger.queue_again(run)
    assert (harness.current.split_done, harness.current.checkpoint) == (False, Checkpoint())
    taken = ledger.start(running(harness.job, sequencer="001"), LEASE)
    assert taken is not None
    ledger.fail(run, "the CSV was deleted")  # since the run began: its queued rows are edited
    assert (harness.current.state, harness.current.totals.queued) == (RunState.STOPPED, 2)
    harness.settle(message(run), SUCCESS)
    assert not harness.report_due()
    harness.settle(message(run, "000001"), SUCCESS)
    harness.report(run, 1.0)
    assert not ledger.queue_again(run)


def test_a_row_that_a_later_upload_dropped_is_ended_with_its_possible_charge(
    harness: Harness,
) -> None:
    old, ledger = harness.begin(queued=3), harness.ledger
    harness.send(harness.claim(message(old)))
    claimed = harness.claim(message(old, "000001"))
    harness.settle(message(old, "000002"), SUCCESS)
    ledger.dropped_settled(harness.begin("run-2", queued=0))
    records = {record.key: record for record in ledger.unsettled(harness.job)}
    assert sorted(records) == ["000000", "000001"]
    assert ledger.drop(harness.job, records["000000"], Reason.SUPERSEDED, "gone")
    harness.send(claimed)
    # It has changed since it was read.
    assert not ledger.drop(harness.job, records["000001"], Reason.SUPERSEDED, "gone")
    (left,) = ledger.unsettled(harness.job)
    assert left.key == "000001"
    counters = harness.counters("run-1")
    assert (counters.failed, counters.possible_duplicate_charges) == (1, 1)
    ended = ledger.get_many(harness.job, ["000000"])["000000"]
    assert ended.result is not None
    assert ended.result.reason is Reason.OUTCOME_UNKNOWN


def test_a_run_ends_without_rows_that_are_gone_and_takes_one_that_arrives_late(
    harness: Harness,
) -> None:
    run, ledger = harness.begin(queued=3), harness.ledger
    harness.settle(message(run), SUCCESS)
    claimed = harness.claim(message(run, "000001"))
    assert ledger.drop(run.job, claimed.record, Reason.STOPPED, "gone")
    assert ledger.queue_again(run)
    assert ledger.give_up_lost(run) is None  # they may be queued again
    ledger.fail(run, "The file is no longer in the bucket.")
    inspected = ledger.inspect(run.job)
    assert inspected is not None
    assert inspected[0].not_queued == "The file is no longer in the bucket."
    assert not harness.report_due()
    given_up = ledger.give_up_lost(run)
    assert given_up is not None
    assert (given_up.lost, given_up.totals.queued) == (1, 3)
    harness.report(run, 1.0)
    harness.settle(message(run, "000002"), SUCCESS)
    assert harness.report_due()


def test_progress_is_noted_once_for_each_change_of_the_counters(harness: Harness) -> None:
    run, ledger = harness.begin(queued=2), harness.ledger
    harness.settle(message(run), SUCCESS)

    def noted() -> tuple[int, int]:
        ledger.note_progress(run)
        inspected = ledger.inspect(run.job)
        assert inspected is not None
        return inspected[0].progress, inspected[0].version

    before = noted()
    assert before[0] == harness.counters().transitions
    assert noted() == before
    harness.settle(message(run, "000001"), SUCCESS)
    assert noted() == (harness.counters().transitions, before[1] + 1)


def test_a_stopped_run_ends_without_the_rows_that_no_worker_has_claimed(harness: Harness) -> None:
    run, ledger = harness.begin(queued=3), harness.ledger
    claimed = harness.claim(message(run))
    ledger.stop(run.job)
    assert ledger.drop(run.job, claimed.record, Reason.STOPPED, "stopped")
    ended = ledger.give_up_lost(run)
    assert ended is not None
    assert (ended.state, ended.lost, ended.warnings) == (RunState.STOPPED, 2, ())
    assert harness.report_due()
    late = ledger.claim(message(run, "000001"), ended, "late", LEASE)
    assert late is NotClaimed.SETTLED
    harness.report(run, 1.0)
    assert not harness.report_due()
