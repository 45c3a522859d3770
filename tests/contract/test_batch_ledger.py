"""The ledger's batches, and the rows in them: the fake and DynamoDB behave alike."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from darkroom.aws.batch_table import BatchTable
from darkroom.aws.ledger_table import LedgerTable
from darkroom.errors import Reason
from darkroom.jobs import Counters, JobOptions, Run, Totals
from darkroom.ledger import batches
from darkroom.ledger.batches import BatchRecord, BatchState
from darkroom.ports import BatchLedger, RowLedger, RunLedger
from darkroom.rows import Claim, NotClaimed, NotSent, RowMessage, RowResult, RowState, Submission
from tests.conftest import ClientFactory
from tests.fakes.editing import row_message
from tests.fakes.ledger import FakeBatchLedger, FakeLedger, running
from tests.fakes.services import FakeClock

LEASE = 90.0
_jobs = itertools.count()


@dataclass
class Harness:
    rows: RowLedger
    runs: RunLedger
    batches: BatchLedger
    clock: FakeClock
    committed: Callable[[str], int]
    job: str = field(default_factory=lambda: f"jobs/batched-{next(_jobs)}")

    def begin(self, number: int = 1, **options: Any) -> Run:
        run = running(
            self.job,
            run=f"run-{number}",
            sequencer=f"{number:04d}",
            options=JobOptions(mode="batch", **options),
        )
        started = self.runs.start(run, LEASE)
        assert started is not None
        self.runs.finish_split(started, Totals(rows=1, queued=1), ())
        found = self.runs.current(self.job)
        assert found is not None
        return found

    @property
    def name(self) -> str:
        return f"batch-of-{self.job.replace('/', '-')}"

    def create(self, **changes: Any) -> BatchRecord:
        batch = BatchRecord(
            name=self.name,
            job=self.job,
            run="run-1",
            endpoint="gemini-main",
            key_id="k1",
            model="gemini-3-pro-image",
            created_at=self.clock.now(),
            owner="submitter",
            lease_until=self.clock.now() + 900,
        )
        batch = replace(batch, **changes)
        self.batches.create(batch, ["000000", "000001"])
        return batch

    def open(self) -> list[BatchRecord]:
        """The job's own: the table is shared by the tests."""
        return [batch for batch in self.batches.open() if batch.job == self.job]

    def message(self, run: Run, instruction: str = "a red hat") -> RowMessage:
        return row_message(run.run, "000000", job=self.job, instruction=instruction)

    def submit(self, run: Run, **money: Any) -> Claim:
        message = self.message(run)
        claim = self.rows.claim(message, run, "submitter", LEASE)
        assert isinstance(claim, Claim)
        submission = Submission(message, "gemini-3-pro-image", size="1024x1024", warnings=("slow",))
        submitted = self.rows.mark_submitted(claim, self.name, submission, "gemini-main", **money)
        assert isinstance(submitted, Claim)
        return submitted


@pytest.fixture(params=["memory", "dynamodb"])
def harness(request: pytest.FixtureRequest) -> Harness:
    clock = FakeClock()
    if request.param == "memory":
        memory = FakeLedger(clock)
        return Harness(
            memory, memory, FakeBatchLedger(memory), clock, lambda job: memory.committed.get(job, 0)
        )
    client: Any = request.getfixturevalue("aws_client")("dynamodb")
    name: str = request.getfixturevalue("ledger_table")
    ledger = LedgerTable(client, name, now=clock.now, sleep=clock.sleep)
    found = BatchTable(client, name, now=clock.now, sleep=clock.sleep)
    return Harness(ledger, ledger, found, clock, ledger.committed)


# Batches


def test_batch_is_open_until_it_is_closed(harness: Harness) -> None:
    batch = harness.create()
    assert harness.batches.read(batch.name) == batch
    assert harness.batches.read("other") is None
    assert list(harness.batches.candidates(batch.name)) == ["000000", "000001"]
    assert harness.open() == [batch]
    close = partial(batches.closed, owner="submitter")
    closed = harness.batches.update(batch.name, close)
    assert closed is not None
    assert closed.state is BatchState.CLOSED
    assert harness.open() == []
    assert harness.batches.read(batch.name) == closed
    assert harness.batches.update(batch.name, close) is None


def test_creation_may_be_repeated(harness: Harness) -> None:
    batch = harness.create()
    harness.batches.create(batch, ["000000", "000001"])
    assert harness.open() == [batch]


def test_every_field_is_stored(harness: Harness) -> None:
    batch = harness.create()
    submit = partial(batches.submitted, owner="submitter", batch_id="b1", rows=2, now=5.5)
    harness.batches.update(batch.name, submit)
    lease = partial(batches.take_lease, owner="collector", now=harness.clock.now(), seconds=900)
    harness.batches.update(batch.name, lease)
    change = partial(
        batches.changed,
        owner="collector",
        status="succeeded",
        cancelled_at=7.25,
        position="0:123",
        collected=True,
        answered={"row-1": ("aa", "bb")},
        unreadable=3,
        crashes=2,
        unclaimed_micro_usd=20_000,
    )
    changed = harness.batches.update(batch.name, change)
    assert changed is not None
    assert (changed.batch_id, changed.rows, changed.owner) == ("b1", 2, "collector")
    assert (changed.answered, changed.unreadable) == ({"row-1": ("aa", "bb")}, 3)
    assert changed.crashes == 2
    assert changed.unclaimed_micro_usd == 20_000
    assert harness.batches.read(batch.name) == changed
    assert harness.open() == [changed]


def test_unclaimed_answers_are_counted_in_the_run_when_the_batch_is_closed(
    harness: Harness,
) -> None:
    run, batch = harness.begin(), harness.create()
    change = partial(batches.changed, owner="submitter", unclaimed_micro_usd=30_000)
    harness.batches.update(batch.name, change)
    assert harness.runs.counters(run.job, run.run) == Counters()
    for _ in range(2):
        harness.batches.update(batch.name, partial(batches.closed, owner="submitter"))
        counters = harness.runs.counters(run.job, run.run)
        assert counters == Counters(cost_micro_usd=30_000, transitions=1)


def test_one_collector_at_a_time_gets_the_lease(harness: Harness) -> None:
    batch = harness.create(lease_until=0.0)

    def lease(owner: str) -> bool:
        take = partial(batches.take_lease, owner=owner, now=harness.clock.now(), seconds=900)
        return harness.batches.update(batch.name, take) is not None

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lease, "abcd")) == 1


def test_lease_of_a_batch_is_ended_although_writes_are_not_answered(
    aws_client: ClientFactory, ledger_table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is left behind counts as a collector's death."""
    clock, client = FakeClock(), aws_client("dynamodb")
    table = BatchTable(
        client, ledger_table, now=clock.now, sleep=clock.sleep, patience_seconds=10.0
    )
    ledger = LedgerTable(client, ledger_table, now=clock.now, sleep=clock.sleep)
    harness = Harness(ledger, ledger, table, clock, ledger.committed)
    batch, put, failures = harness.create(), client.put_item, [True, False, False, False]

    def fail(**request: Any) -> Any:
        if not failures:
            return put(**request)
        if failures.pop():  # done, and not answered
            put(**request)
        raise EndpointConnectionError(endpoint_url="https://dynamodb")

    monkeypatch.setattr(client, "put_item", fail)
    ended = harness.batches.update(batch.name, partial(batches.end_lease, owner="submitter"))
    assert ended is not None
    assert (ended.lease_until, harness.batches.read(batch.name)) == (0.0, ended)


# Rows


def test_submitted_row_has_no_lease_and_drops_further_messages(harness: Harness) -> None:
    run = harness.begin()
    submitted = harness.submit(run)
    (record,) = harness.rows.get_many(run.job, ["000000"]).values()
    assert record == submitted.record
    assert (record.state, record.lease_owner, record.batch) == (
        RowState.SUBMITTED,
        None,
        harness.name,
    )
    assert record.submission is not None
    assert record.submission.message == harness.message(run)
    again = harness.rows.claim(harness.message(run), run, "other", LEASE)
    assert again is NotClaimed.SUBMITTED
    assert list(harness.rows.unsettled(run.job)) == [record]


def test_submitted_row_is_settled_without_a_worker_and_once(harness: Harness) -> None:
    run = harness.begin(budget_usd=1.0)
    submitted = harness.submit(run, reserve=50_000, limit=1_000_000)
    assert harness.committed(run.job) == 50_000
    (record,) = harness.rows.get_many(run.job, ["000000"]).values()
    result = RowResult(RowState.SUCCEEDED, cost_micro_usd=20_000, mode="batch")
    assert harness.rows.settle(Claim(run.job, "collector", record), result)
    late = RowResult(RowState.FAILED, Reason.REFUSED)
    assert not harness.rows.settle(Claim(run.job, "collector-2", submitted.record), late)
    (settled,) = harness.rows.get_many(run.job, ["000000"]).values()
    assert (settled.result, settled.batch, settled.submission) == (result, harness.name, None)
    assert harness.committed(run.job) == 20_000
    assert harness.runs.counters(run.job, run.run).succeeded == 1


def test_no_row_is_submitted_beyond_the_budget(harness: Harness) -> None:
    run = harness.begin(budget_usd=0.01)
    claim = harness.rows.claim(harness.message(run), run, "submitter", LEASE)
    assert isinstance(claim, Claim)
    submission = Submission(harness.message(run), "gemini-3-pro-image")
    submitted = harness.rows.mark_submitted(
        claim, harness.name, submission, "gemini-main", reserve=20_000, limit=10_000
    )
    assert submitted is NotSent.NO_BUDGET
    assert harness.committed(run.job) == 0


@pytest.mark.parametrize(
    ("changes", "attempts", "charges", "committed"),
    [
        ({"refund_attempt": True}, 0, 0, 0),
        ({"cost_micro_usd": 7}, 1, 0, 7),
        ({"maybe_charged": True}, 1, 1, 50_000),
    ],
)
def test_row_that_is_taken_back_can_be_claimed_again(
    harness: Harness, changes: dict[str, Any], attempts: int, charges: int, committed: int
) -> None:
    run = harness.begin(budget_usd=1.0)
    record = harness.submit(run, reserve=50_000, limit=1_000_000).record
    taken = harness.rows.take_back(run.job, record, **changes)
    assert taken is not None
    assert harness.rows.take_back(run.job, record, **changes) == taken, "a repeat after a crash"
    assert (taken.attempt, taken.record.possible_duplicate_charges) == (attempts, charges)
    assert batches.is_taken_back(taken.record, harness.name)
    assert harness.committed(run.job) == committed
    claim = harness.rows.claim(harness.message(run), run, "worker", LEASE)
    assert isinstance(claim, Claim)
    assert (claim.attempt, claim.record.batch, claim.record.submission) == (attempts + 1, "", None)
    assert not claim.after_crash
    assert harness.rows.take_back(run.job, record) is None


def test_later_upload_of_the_same_row_takes_over_what_is_submitted(harness: Harness) -> None:
    harness.submit(harness.begin())
    later = harness.begin(2)
    assert harness.rows.claim(harness.message(later), later, "w", LEASE) is NotClaimed.SUBMITTED
    (record,) = harness.rows.get_many(later.job, ["000000"]).values()
    assert (record.run, record.state) == ("run-2", RowState.SUBMITTED)


def test_later_upload_of_a_changed_row_leaves_the_batch(harness: Harness) -> None:
    first = harness.submit(harness.begin(budget_usd=1.0), reserve=50_000, limit=1_000_000)
    later = harness.begin(2, budget_usd=1.0)
    claim = harness.rows.claim(harness.message(later, "a blue hat"), later, "w", LEASE)
    assert isinstance(claim, Claim)
    assert (claim.record.batch, claim.record.submission) == ("", None)
    assert not harness.rows.settle(first, RowResult(RowState.SUCCEEDED))
    assert harness.committed(later.job) == 50_000, "what the batch may still cost"
