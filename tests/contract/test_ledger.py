"""One contract suite for the ledger in memory and the one in DynamoDB (on MiniStack)."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import pytest

from darkroom.aws.ledger_table import LedgerTable
from darkroom.errors import Reason
from darkroom.jobs import Checkpoint, Counters, JobOptions, Run, RunState, Totals
from darkroom.ports import RowLedger, RunLedger
from darkroom.rows import Claim, NotClaimed, NotSent, RowMessage, RowRequest, RowResult, RowState
from tests.conftest import ClientFactory
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.services import FakeClock

JOB = "jobs/products"
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


class Ledger(RowLedger, RunLedger, Protocol):
    pass


@pytest.fixture(scope="session")
def table(aws_client: ClientFactory) -> str:
    name = "contract-ledger"
    aws_client("dynamodb").create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": "job", "KeyType": "HASH"},
            {"AttributeName": "item", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": "job", "AttributeType": "S"},
            {"AttributeName": "item", "AttributeType": "S"},
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    return name


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


_jobs = itertools.count()


@pytest.fixture
def job() -> str:
    """A job of the test's own: the table is shared."""
    return f"jobs/products-{next(_jobs)}"


@pytest.fixture(params=["memory", "dynamodb"])
def ledger(request: pytest.FixtureRequest, clock: FakeClock) -> Ledger:
    if request.param == "memory":
        return FakeLedger(clock)
    client: Callable[[str], Any] = request.getfixturevalue("aws_client")
    name: str = request.getfixturevalue("table")
    return LedgerTable(client("dynamodb"), name, now=clock.now, sleep=clock.sleep)


@pytest.fixture
def committed(request: pytest.FixtureRequest, ledger: Ledger, job: str) -> Callable[[], int]:
    """Reads how much of the job's budget is spent or reserved, in micro-USD."""
    if isinstance(ledger, FakeLedger):
        return lambda: ledger.committed.get(job, 0)
    client = request.getfixturevalue("aws_client")("dynamodb")
    name: str = request.getfixturevalue("table")

    def read() -> int:
        key = {"job": {"S": job}, "item": {"S": "budget"}}
        response = client.get_item(TableName=name, Key=key, ConsistentRead=True)
        return int(response["Item"]["committed"]["N"])

    return read


def begin(ledger: Ledger, job: str, name: str = "run-1", queued: int = 1, **options: Any) -> Run:
    """A run of `queued` rows, split."""
    run = running(job, run=name, sequencer=f"00{name[-1]}", options=JobOptions(**options))
    started = ledger.start(run, LEASE)
    assert started is not None
    ledger.finish_split(started, Totals(rows=queued, queued=queued), ())
    current = ledger.current(job)
    assert current is not None
    return current


def message(
    run: Run, key: str = "000000", instruction: str = "a red hat", **changes: Any
) -> RowMessage:
    return RowMessage(
        job=run.job,
        run=run.run,
        row=int(key),
        key=key,
        base="s3://in/",
        request=RowRequest(instruction=instruction),
        **changes,
    )


def claim(ledger: Ledger, delivered: RowMessage, run: Run, owner: str = "worker-1") -> Claim:
    result = ledger.claim(delivered, run, owner, LEASE)
    assert isinstance(result, Claim), result
    return result


def sent(ledger: Ledger, claimed: Claim, **money: Any) -> Claim:
    result = ledger.mark_sent(claimed, "gemini-main", **money)
    assert isinstance(result, Claim), result
    return result


def test_a_row_is_claimed_settled_and_counted_once(ledger: Ledger, job: str) -> None:
    run = begin(ledger, job)
    claimed = sent(ledger, claim(ledger, message(run), run))
    assert ledger.settle(claimed, SUCCESS)
    assert not ledger.settle(replace(claimed, owner="other"), FAILURE)
    record = ledger.get_many(job, ["000000", "000001"])["000000"]
    assert (record.state, record.result, record.attempts) == (RowState.SUCCEEDED, SUCCESS, 1)
    assert list(ledger.all(job)) == [record]
    assert ledger.counters(job, run.run) == Counters(
        succeeded=1, fallback=1, attempts=1, cost_micro_usd=40_000, transitions=1
    )


def test_a_repeated_write_after_a_lost_response_changes_nothing(ledger: Ledger, job: str) -> None:
    run = begin(ledger, job)
    claimed = claim(ledger, message(run), run)
    after = ledger.mark_sent(claimed, "gemini-main")
    assert ledger.mark_sent(claimed, "gemini-main") == after
    assert isinstance(after, Claim)
    assert ledger.settle(after, FAILURE)
    assert ledger.settle(after, FAILURE)
    assert ledger.counters(job, run.run).failed == 1


def test_a_row_in_work_is_held_until_its_lease_ends(
    ledger: Ledger, job: str, clock: FakeClock
) -> None:
    run = begin(ledger, job)
    first = claim(ledger, message(run), run)
    assert ledger.claim(message(run), run, "worker-2", LEASE) is NotClaimed.HELD
    clock.time += 80
    ledger.renew([first], LEASE)
    clock.time += 80
    assert ledger.claim(message(run), run, "worker-2", LEASE) is NotClaimed.HELD
    clock.time += 11
    second = claim(ledger, message(run), run, "worker-2")
    assert second.attempt == 2
    assert ledger.mark_sent(first, "gemini-main") is NotSent.LEASE_LOST
    assert not ledger.settle(first, FAILURE)
    ledger.renew([first], 1000)
    clock.time += 91
    assert claim(ledger, message(run), run, "worker-3").attempt == 3


def test_a_repeated_claim_by_its_owner_is_the_same_claim(ledger: Ledger, job: str) -> None:
    run = begin(ledger, job)
    assert claim(ledger, message(run), run) == claim(ledger, message(run), run)


def test_a_deferral_refunds_the_attempt(ledger: Ledger, job: str) -> None:
    run = begin(ledger, job)
    for number in range(3):
        claimed = claim(ledger, message(run), run, f"worker-{number}")
        assert claimed.attempt == 1
        ledger.release(claimed, refund_attempt=True)
    ledger.release(claim(ledger, message(run), run), refund_attempt=False)
    assert claim(ledger, message(run), run).attempt == 2


def test_a_row_that_kills_its_workers_is_claimed_with_its_attempts_spent(
    ledger: Ledger, job: str, clock: FakeClock
) -> None:
    run = begin(ledger, job, max_attempts=2)
    for number in (1, 2):
        claimed = claim(ledger, message(run), run, f"worker-{number}")
        assert not claimed.attempts_spent
        clock.time += LEASE + 1
    last = claim(ledger, message(run), run, "worker-3")
    assert last.attempts_spent
    assert last.attempt == 2
    assert ledger.settle(last, DEATH)
    assert ledger.claim(message(run), run, "worker-4", LEASE) is NotClaimed.SETTLED


def test_a_call_with_unknown_outcome_is_found_by_the_next_claim_and_counted(
    ledger: Ledger, job: str, clock: FakeClock
) -> None:
    run = begin(ledger, job)
    sent(ledger, claim(ledger, message(run), run))
    clock.time += LEASE + 1
    second = claim(ledger, message(run), run, "worker-2")
    assert second.sent_before
    assert second.record.sent_run == run.run
    failed = ledger.mark_failed_call(second, maybe_charged=True)
    assert failed is not None
    assert not failed.sent_before
    assert ledger.settle(sent(ledger, failed), SUCCESS)
    assert ledger.counters(job, run.run).possible_duplicate_charges == 1


def test_a_restarted_row_counts_the_call_that_was_sent_before(
    ledger: Ledger, job: str, clock: FakeClock
) -> None:
    old = begin(ledger, job)
    sent(ledger, claim(ledger, message(old), old))
    new = begin(ledger, job, "run-2")
    clock.time += LEASE + 1
    restarted = claim(ledger, message(new, instruction="a blue hat"), new, "worker-2")
    assert not restarted.sent_before
    assert ledger.settle(restarted, SUCCESS)
    assert ledger.counters(job, new.run).possible_duplicate_charges == 1


def test_budget_is_reserved_when_the_call_is_sent_and_corrected_when_the_row_is_settled(
    ledger: Ledger, job: str, committed: Callable[[], int]
) -> None:
    run = begin(ledger, job, budget_usd=0.1)
    first = sent(ledger, claim(ledger, message(run), run), reserve=60_000, limit=100_000)
    assert committed() == 60_000
    other = claim(ledger, message(run, "000001"), run)
    assert (
        ledger.mark_sent(other, "gemini-main", reserve=60_000, limit=100_000) is NotSent.NO_BUDGET
    )
    assert ledger.settle(first, SUCCESS)
    assert committed() == 40_000
    other = sent(ledger, other, reserve=60_000, limit=100_000)
    failed = ledger.mark_failed_call(other, cost_micro_usd=1_000)
    assert failed is not None
    assert committed() == 41_000
    assert ledger.settle(failed, FAILURE)
    assert committed() == 41_000


def test_a_possible_charge_of_unknown_cost_stays_committed(
    ledger: Ledger, job: str, committed: Callable[[], int]
) -> None:
    run = begin(ledger, job, budget_usd=1)
    claimed = sent(ledger, claim(ledger, message(run), run), reserve=60_000, limit=1_000_000)
    assert ledger.mark_failed_call(claimed, maybe_charged=True)
    assert committed() == 60_000


def test_a_budget_of_zero_allows_only_free_calls(ledger: Ledger, job: str) -> None:
    run = begin(ledger, job, budget_usd=0)
    claimed = claim(ledger, message(run), run)
    assert ledger.mark_sent(claimed, "gemini-main", reserve=1, limit=0) is NotSent.NO_BUDGET
    assert isinstance(ledger.mark_sent(claimed, "gemini-main", reserve=0, limit=0), Claim)


def test_a_dead_row_is_redriven_once_by_a_copy_of_the_next_generation(
    ledger: Ledger, job: str
) -> None:
    run = begin(ledger, job, max_attempts=1)
    assert ledger.settle(claim(ledger, message(run), run), DEATH)
    assert ledger.begin_report(run, LEASE)
    assert ledger.finish_report(run, 5.0)
    assert ledger.claim(message(run), run, "worker-2", LEASE) is NotClaimed.SETTLED
    alive = claim(ledger, message(run, generation=1), run, "worker-2")
    assert (alive.attempt, alive.attempts_spent) == (1, False)
    assert ledger.counters(job, run.run).settled == 0
    reopened = ledger.current(job)
    assert reopened is not None
    assert (reopened.state, reopened.finished_at) == (RunState.RUNNING, None)
    assert ledger.claim(message(run, generation=1), run, "worker-3", LEASE) is NotClaimed.HELD
    assert ledger.settle(alive, SUCCESS)
    assert ledger.claim(message(run, generation=1), run, "worker-3", LEASE) is NotClaimed.SETTLED
    counters = ledger.counters(job, run.run)
    assert (counters.succeeded, counters.dead, counters.cost_micro_usd) == (1, 0, 40_000)
    assert ledger.report_due(job)


def test_a_success_of_an_earlier_upload_is_transferred_not_repeated(
    ledger: Ledger, job: str
) -> None:
    old = begin(ledger, job)
    claimed = sent(ledger, claim(ledger, message(old), old))
    new = begin(ledger, job, "run-2")
    assert (old.number, new.number) == (1, 2)
    assert ledger.claim(message(old), new, "worker-2", LEASE) is NotClaimed.SUPERSEDED
    assert ledger.claim(message(new), new, "worker-2", LEASE) is NotClaimed.HELD
    assert ledger.settle(claimed, SUCCESS)
    assert ledger.claim(message(new), new, "worker-2", LEASE) is NotClaimed.SETTLED
    assert ledger.counters(job, "run-1").settled == 0
    assert ledger.counters(job, "run-2").succeeded == 1
    assert ledger.claim(message(new), new, "worker-2", LEASE) is NotClaimed.SETTLED
    assert ledger.counters(job, "run-2").succeeded == 1


@pytest.mark.parametrize("why", ["redo", "changed", "failed"])
def test_a_later_upload_restarts_changed_failed_and_redone_rows(
    ledger: Ledger, job: str, why: str
) -> None:
    old = begin(ledger, job)
    outcome = FAILURE if why == "failed" else SUCCESS
    assert ledger.settle(claim(ledger, message(old), old), outcome)
    new = begin(ledger, job, "run-2")
    instruction = "a blue hat" if why == "changed" else "a red hat"
    second = claim(ledger, message(new, instruction=instruction, redo=why == "redo"), new)
    assert (second.attempt, second.run) == (1, "run-2")
    assert ledger.settle(second, SUCCESS)
    assert ledger.counters(job, "run-1").settled == 1
    assert ledger.counters(job, "run-2").settled == 1


def test_a_worker_with_an_outdated_run_does_not_claim_a_row_of_the_new_run(
    ledger: Ledger, job: str
) -> None:
    old = begin(ledger, job)
    new = begin(ledger, job, "run-2")
    assert ledger.settle(claim(ledger, message(new), new), SUCCESS)
    assert ledger.claim(message(old), old, "late", LEASE) is NotClaimed.HELD
    assert ledger.claim(message(old), new, "late", LEASE) is NotClaimed.SETTLED
    other = message(old, instruction="a blue hat")
    assert ledger.claim(other, new, "late", LEASE) is NotClaimed.SUPERSEDED


def test_a_row_redriven_from_an_earlier_upload_counts_beyond_what_was_queued(
    ledger: Ledger, job: str
) -> None:
    old = begin(ledger, job, max_attempts=1)
    assert ledger.settle(claim(ledger, message(old), old), DEATH)
    new = begin(ledger, job, "run-2", queued=0)  # kept as failed
    assert ledger.begin_report(new, LEASE)
    assert ledger.finish_report(new, 1.0)
    alive = claim(ledger, message(old, generation=1), new)
    assert not ledger.report_due(job)
    assert ledger.settle(alive, SUCCESS)
    assert ledger.report_due(job)
    assert ledger.counters(job, "run-1").settled == 0
    counters = ledger.counters(job, "run-2")
    assert (counters.redriven, counters.succeeded) == (1, 1)


def test_a_redriven_row_that_the_new_upload_also_queued_counts_once(
    ledger: Ledger, job: str
) -> None:
    old = begin(ledger, job, max_attempts=1)
    assert ledger.settle(claim(ledger, message(old), old), DEATH)
    new = begin(ledger, job, "run-2", queued=1)
    assert ledger.settle(claim(ledger, message(old, generation=1), new), SUCCESS)
    assert not ledger.report_due(job)  # the splitter's own message is still on its way
    assert ledger.claim(message(new), new, "worker-2", LEASE) is NotClaimed.SETTLED
    assert ledger.report_due(job)
    assert ledger.counters(job, "run-2").redriven == 0


def test_an_upload_starts_one_run_and_an_older_upload_none(ledger: Ledger, job: str) -> None:
    second = running(job, run="run-2", sequencer="0066")
    assert ledger.start(second, LEASE) is not None
    assert ledger.start(second, LEASE) is None  # the same event twice
    assert ledger.start(running(job, run="run-1", sequencer="0055"), LEASE) is None
    third = ledger.start(running(job, run="run-3", sequencer="006601"), LEASE)
    assert third is not None
    assert third.number == 2
    current = ledger.current(job)
    assert current == third
    assert ledger.start(second, LEASE) is None  # superseded
    assert not ledger.checkpoint(second, Checkpoint(row=5), LEASE)


def test_the_run_of_a_dead_splitter_is_taken_over_at_its_checkpoint(
    ledger: Ledger, job: str, clock: FakeClock
) -> None:
    run = running(job)
    assert ledger.start(run, 50.0)
    reached = Checkpoint(offset=1000, row=10, continuations=1, totals=Totals(rows=10, queued=10))
    assert ledger.checkpoint(run, reached, 50.0)
    assert ledger.start(run, 50.0) is None
    clock.time += 51
    taken = ledger.start(run, 50.0)
    assert taken is not None
    assert taken.checkpoint == reached
    ledger.checkpoint(run, reached, 0.0)
    assert ledger.start(run, 50.0) is not None  # handed over at once
    ledger.finish_split(run, reached.totals, ("a warning",))
    clock.time += 51
    assert ledger.start(run, 50.0) is None
    current = ledger.current(job)
    assert current is not None
    assert (current.state, current.split_done) == (RunState.RUNNING, True)
    assert (current.totals, current.warnings) == (reached.totals, ("a warning",))


def test_a_failed_run_has_a_reason_and_its_report_is_never_due(ledger: Ledger, job: str) -> None:
    run = running(job)
    ledger.start(run, LEASE)
    ledger.fail(run, "the file has no header")
    current = ledger.current(job)
    assert current is not None
    assert (current.state, current.reason) == (RunState.FAILED, "the file has no header")
    assert current.finished_at is not None
    assert not ledger.report_due(job)


def test_a_stopped_run_stays_stopped_after_its_report(ledger: Ledger, job: str) -> None:
    begin(ledger, job)
    stopped = ledger.stop(job)
    assert stopped is not None
    assert stopped.state is RunState.STOPPED
    assert ledger.stop(job) is None
    assert ledger.stop("jobs/none") is None
    stop = RowResult(RowState.FAILED, Reason.STOPPED)
    assert ledger.settle(claim(ledger, message(stopped), stopped), stop)
    assert ledger.begin_report(stopped, LEASE)
    assert ledger.finish_report(stopped, 9.0)
    current = ledger.current(job)
    assert current is not None
    assert (current.state, current.finished_at) == (RunState.STOPPED, 9.0)


def test_a_report_is_due_only_when_split_and_settled(ledger: Ledger, job: str) -> None:
    run = running(job)
    assert ledger.start(run, LEASE)
    assert ledger.settle(claim(ledger, message(run), replace(run, number=1)), SUCCESS)
    assert not ledger.report_due(job)
    ledger.finish_split(run, Totals(rows=2, queued=2), ())
    assert not ledger.report_due(job)
    assert not ledger.begin_report(run, LEASE)
    other = message(run, "000001")
    assert ledger.settle(claim(ledger, other, replace(run, number=1)), FAILURE)
    assert ledger.report_due(job)


def test_one_reporter_works_at_a_time_until_its_lease_ends(
    ledger: Ledger, job: str, clock: FakeClock
) -> None:
    run = begin(ledger, job, queued=0)
    assert ledger.begin_report(run, 60.0, "invocation-1")
    assert not ledger.begin_report(run, 60.0, "invocation-2")
    assert ledger.begin_report(run, 60.0, "invocation-1")  # retried after a crash
    clock.time += 61
    assert ledger.begin_report(run, 60.0, "invocation-3")
    assert ledger.finish_report(run, 7.0)
    assert not ledger.begin_report(run, 60.0, "invocation-4")
    current = ledger.current(job)
    assert current is not None
    assert (current.state, current.finished_at) == (RunState.DONE, 7.0)


def test_a_redrive_while_the_report_is_made_makes_it_stale(ledger: Ledger, job: str) -> None:
    run = begin(ledger, job, max_attempts=1)
    assert ledger.settle(claim(ledger, message(run), run), DEATH)
    assert ledger.begin_report(run, LEASE)
    alive = claim(ledger, message(run, generation=1), run)
    assert not ledger.finish_report(run, 1.0)
    assert not ledger.begin_report(run, LEASE)  # the row is in work
    assert ledger.settle(alive, SUCCESS)
    assert ledger.begin_report(run, LEASE)
    assert ledger.finish_report(run, 2.0)
    assert not ledger.report_due(job)


def test_a_run_starts_with_the_cost_of_earlier_runs_without_a_budget(
    ledger: Ledger, job: str
) -> None:
    first = begin(ledger, job)
    assert ledger.settle(claim(ledger, message(first), first), SUCCESS)
    second = begin(ledger, job, "run-2", budget_usd=1)
    assert second.spent_before == 40_000


def test_concurrent_workers_settle_each_row_once(ledger: Ledger, job: str) -> None:
    run = begin(ledger, job, queued=12)
    messages = [message(run, f"{n:06d}") for n in range(12)]
    settled: list[str] = []

    def work(worker: int) -> None:
        for delivered in messages[worker:] + messages[:worker]:
            result = ledger.claim(delivered, run, f"worker-{worker}", LEASE)
            if isinstance(result, Claim) and ledger.settle(result, SUCCESS):
                settled.append(delivered.key)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(settled) == [m.key for m in messages]
    assert ledger.counters(job, run.run).succeeded == 12
    assert ledger.report_due(job)


def test_all_rows_of_a_job_are_streamed_in_key_order(ledger: Ledger, job: str) -> None:
    run = begin(ledger, job)
    for number in (11, 3, 7):
        claim(ledger, message(run, f"{number:06d}"), run)
    assert [record.row for record in ledger.all(job)] == [3, 7, 11]
    assert ledger.get_many(job, []) == {}


def test_concurrent_workers_never_exceed_the_budget(
    ledger: Ledger, job: str, committed: Callable[[], int]
) -> None:
    run = begin(ledger, job, queued=12, budget_usd=0.05)
    outcomes: list[object] = []

    def work(number: int) -> None:
        claimed = claim(ledger, message(run, f"{number:06d}"), run, f"worker-{number}")
        outcomes.append(ledger.mark_sent(claimed, "gemini-main", reserve=10_000, limit=50_000))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, Claim) for outcome in outcomes) == 5
    assert outcomes.count(NotSent.NO_BUDGET) == 7
    assert committed() == 50_000


def test_the_splitters_message_for_a_redriven_row_counts_it_as_queued(
    ledger: Ledger, job: str, clock: FakeClock
) -> None:
    old = begin(ledger, job, max_attempts=1)
    assert ledger.settle(claim(ledger, message(old), old), DEATH)
    new = begin(ledger, job, "run-2", queued=1, max_attempts=3)
    claim(ledger, message(old, generation=1), new, "killed")
    assert ledger.counters(job, "run-2").redriven == 1
    clock.time += LEASE + 1
    claimed = claim(ledger, message(new), new, "worker-2")
    assert ledger.counters(job, "run-2").redriven == 0
    assert ledger.settle(claimed, SUCCESS)
    assert ledger.report_due(job)


def test_an_old_dead_letter_does_not_override_a_changed_request(
    ledger: Ledger, job: str, clock: FakeClock
) -> None:
    old = begin(ledger, job, max_attempts=1)
    assert ledger.settle(claim(ledger, message(old), old), DEATH)
    new = begin(ledger, job, "run-2", max_attempts=3)
    redriven = claim(ledger, message(old, generation=1), new, "killed")
    assert ledger.settle(redriven, SUCCESS)
    blue = claim(ledger, message(new, instruction="a blue hat"), new, "killed too")
    clock.time += LEASE + 1
    late = message(new, generation=1)  # the red hat's dead letter
    assert ledger.claim(late, new, "worker-3", LEASE) is NotClaimed.SUPERSEDED
    second = claim(ledger, message(new, instruction="a blue hat"), new, "worker-4")
    assert second.record.fingerprint == blue.record.fingerprint
    assert ledger.settle(second, SUCCESS)
    assert ledger.report_due(job)


class RepeatingClient:
    """Makes every write twice, as the SDK does when a response is lost."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name not in ("put_item", "transact_write_items"):
            return method

        def twice(**request: Any) -> Any:
            method(**request)
            return method(**request)

        return twice


def test_every_write_recognises_itself_when_the_sdk_repeats_it(
    aws_client: ClientFactory, table: str, clock: FakeClock, job: str
) -> None:
    client: Any = RepeatingClient(aws_client("dynamodb"))
    ledger = LedgerTable(client, table, now=clock.now, sleep=clock.sleep)
    run = begin(ledger, job, budget_usd=1)
    claimed = sent(ledger, claim(ledger, message(run), run), reserve=60_000, limit=1_000_000)
    assert ledger.settle(claimed, SUCCESS)
    assert ledger.counters(job, run.run).succeeded == 1
    assert ledger.begin_report(run, LEASE)
    assert ledger.finish_report(run, 5.0)
    current = ledger.current(job)
    assert current is not None
    assert (current.state, current.finished_at) == (RunState.DONE, 5.0)
    assert clock.slept == []
