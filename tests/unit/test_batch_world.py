"""Whatever happens to submitters and collectors, every row ends once and every image is paid once.

A state machine around the real Submitter and Collector: processes killed at every step or cut off
from AWS, creations refused or without an answer, batches that expire, fail, lack answers and repeat
them, later uploads, a stop. At the end the event source and the schedule do what is left.
"""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from darkroom.batches.provider_batch import BatchStatus
from darkroom.calls import CallFailed, Outcome
from darkroom.errors import ServiceUnavailable
from darkroom.ledger.batches import BatchState
from darkroom.rows import Received, RowState
from tests.conftest import run_state_machine
from tests.fakes.batching import PRICE, Answer, BatchHarness, image
from tests.fakes.editing import JOB
from tests.fakes.lockstep import Fault, Worker

LIMIT = 1_000_000
ANSWERS: dict[str, Answer] = {
    "image": image(),
    "refused": CallFailed(Outcome.REFUSED, "not this"),
    "error": CallFailed(Outcome.UNAVAILABLE, "server error"),
    "missing": None,
}
FAILURES = {
    "lost answer": CallFailed(Outcome.UNAVAILABLE, "timed out", maybe_charged=True),
    "down": CallFailed(Outcome.UNAVAILABLE, "503"),
    "full": CallFailed(Outcome.RATE_LIMITED, "enqueued token limit reached"),
    "invalid": CallFailed(Outcome.BAD_REQUEST, "line 1 is invalid"),
}
STATUSES = st.sampled_from(
    [BatchStatus.SUCCEEDED, BatchStatus.SUCCEEDED, BatchStatus.EXPIRED, BatchStatus.FAILED]
)
ANSWER = st.sampled_from(["image", "missing", "refused", "error"])
PICK = st.integers(0, 5)
STEPS = st.sampled_from(
    [
        *["the end"] * 20,  # without it, few batches are ever made
        *("provider.create", "provider.results", "ledger.mark_submitted"),
        *("ledger.settle", "ledger.take_back", "batches.update", "batches.create", "store.put"),
        *("batch_queue.send", "queue.send", "provider.find", "provider.delete_files"),
    ]
)
FAULTS = st.sampled_from([Fault.NONE, Fault.NONE, Fault.LOST_REQUEST, Fault.LOST_RESPONSE])


def reserved_for_a_row() -> int:
    harness = BatchHarness().upload_rows("a", budget_usd=LIMIT / 1e6)
    harness.deliver()
    return harness.row.reserved


class BatchMachine(RuleBasedStateMachine):
    max_uploads = 1

    def __init__(self) -> None:
        super().__init__()
        self.harness = BatchHarness()
        self.processes: list[tuple[Worker, list[Received]]] = []
        self.uploads = 0
        self.live: Counter[str] = Counter()  # images of calls, by instruction

    @initialize(fallback=st.sampled_from(["live", "batch"]), max_attempts=st.integers(1, 3))
    def first_upload(self, fallback: str, max_attempts: int) -> None:
        self.options = {
            "batch_fallback": fallback,
            "max_attempts": max_attempts,
            "budget_usd": LIMIT / 1e6,
        }
        self._upload(["a", "b", "c"])

    def _upload(self, instructions: list[str]) -> None:
        self.uploads += 1
        self.harness.upload_rows(*instructions, number=self.uploads, **self.options)

    @precondition(lambda self: self.uploads < self.max_uploads)
    @rule(instructions=st.lists(st.sampled_from(["a", "b", "x"]), min_size=3, max_size=3))
    def upload_again(self, instructions: list[str]) -> None:
        self._upload(instructions)

    # -- processes

    @rule(limit=st.integers(1, 4), until=STEPS)
    def submit(self, limit: int, until: str) -> None:
        batch = list(self.harness.receive(limit))
        if batch:
            self._start(lambda: self.harness.submit(batch), batch, until)

    @rule()
    def submit_all(self) -> None:
        self.harness.deliver()

    @rule(until=STEPS)
    def collect(self, until: str) -> None:
        self._start(self.harness.collect, [], until)

    @precondition(lambda self: self.processes)
    @rule(pick=PICK, until=STEPS, fault=FAULTS)
    def work(self, pick: int, until: str, fault: Fault) -> None:
        """AWS may fail at the next step. A provider's failures are its own."""
        worker, batch = self.processes[pick % len(self.processes)]
        if fault is not Fault.NONE and not worker.at.startswith(("provider.", "start")):
            try:
                worker.go(fault)
            except ServiceUnavailable:  # the invocation failed
                self.processes.remove((worker, batch))
                return
        self._work(worker, batch, until)

    @precondition(lambda self: self.processes)
    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        worker, batch = self.processes[pick % len(self.processes)]
        worker.kill()
        self.processes.remove((worker, batch))

    @rule()
    def call_for_rows(self) -> None:
        for message in self.harness.edit_live():
            self.live[message.request.instruction] += 1

    # -- the provider

    @rule(failure=st.sampled_from(sorted(FAILURES)))
    def fail_next_creation(self, failure: str) -> None:
        self.harness.provider.failures = [FAILURES[failure]]

    @precondition(lambda self: self._running())
    @rule(pick=PICK, answers=st.lists(ANSWER, min_size=3, max_size=3), status=STATUSES)
    def end_batch(self, pick: int, answers: list[str], status: BatchStatus) -> None:
        running = self._running()
        chosen = iter(answers * 10)
        failed = status is BatchStatus.FAILED

        def answer(_: str) -> Answer:
            return None if failed else ANSWERS[next(chosen)]

        batch_id = running[pick % len(running)]
        failure = FAILURES["full"] if failed else None
        self.harness.provider.end(batch_id, answer, status, failure)

    @precondition(lambda self: any(b.answers for b in self.harness.provider.batches.values()))
    @rule(pick=PICK)
    def repeat_answers(self, pick: int) -> None:
        ended = [b for b in self.harness.provider.batches.values() if b.answers]
        batch = ended[pick % len(ended)]
        batch.answers.append(batch.answers[0])

    def _running(self) -> list[str]:
        batches = self.harness.provider.batches
        return [name for name, b in batches.items() if not b.description.status.ended]

    # -- time, and the user

    @rule(seconds=st.sampled_from([60, 700, 2_000, 4_000]))
    def time_passes(self, seconds: int) -> None:
        """Processes end with their time limit."""
        if seconds >= 700:
            while self.processes:
                self.kill(0)
        self.harness.clock.time += seconds

    @precondition(lambda self: self.uploads == self.max_uploads)
    @rule(really=st.sampled_from([False, False, False, True]))
    def stop(self, really: bool) -> None:
        if really:
            self.harness.ledger.stop(JOB)

    # -- invariants

    @invariant()
    def the_budget_is_kept(self) -> None:
        committed = self.harness.ledger.committed.get(JOB, 0)
        assert self.paid() <= committed <= LIMIT

    @invariant()
    def nothing_is_counted_that_was_not_paid(self) -> None:
        assert self.counted() <= self.paid()

    @invariant()
    def no_image_is_paid_twice(self) -> None:
        if self.max_uploads == 1:
            billed = self.harness.provider.billed + self.live
            assert all(n <= 1 for n in billed.values()), billed

    def paid(self) -> int:
        return self.harness.provider.billed.total() * PRICE + self.live.total() * 2 * PRICE

    def counted(self) -> int:
        runs = [run for _, run in self.harness.ledger.runs]
        return sum(self.harness.ledger.counters(JOB, run).cost_micro_usd for run in runs)

    # -- the end

    def teardown(self) -> None:
        while self.processes:
            self.kill(0)
        self.harness.provider.failures.clear()
        for _ in range(60):
            self.harness.clock.time += 3_600
            self.harness.deliver()
            self.harness.end_batches(lambda _: image())
            self.harness.collect()
            self.call_for_rows()
            if self._is_over():
                break
        else:
            pytest.fail("the job is never finished")
        assert self.counted() == self.paid(), "every charge is counted"
        self.no_image_is_paid_twice()
        self.the_budget_is_kept()
        if self.max_uploads == 1:
            self._check_unknown_charges()
        assert self.harness.ledger.reserved.get(JOB, 0) == 0
        for record in self.harness.ledger.all(JOB):
            if record.state is RowState.SUCCEEDED and record.result is not None:
                assert all(output in self.harness.store.objects for output in record.result.outputs)

    def _check_unknown_charges(self) -> None:
        """Exactly the rows without an answer may have been charged: their reservations are kept."""
        batches = self.harness.provider.batches.values()
        ended = [b for b in batches if b.description.status is BatchStatus.SUCCEEDED]
        unknown = sum(batch.unanswered for batch in ended)
        ledger = self.harness.ledger
        counters = ledger.counters(JOB, self.harness.run.run)
        assert counters.possible_duplicate_charges == unknown
        assert ledger.committed.get(JOB, 0) == self.paid() + unknown * reserved_for_a_row()

    def _is_over(self) -> bool:
        harness = self.harness
        settled = harness.ledger.counters(JOB, harness.run.run).settled
        closed = all(b.state is BatchState.CLOSED for b in harness.batches.batches.values())
        return settled == harness.run.totals.queued and closed and not harness.queue.messages

    # -- helpers

    def _start(self, work: Callable[[], object], batch: list[Received], until: str) -> None:
        worker = Worker("process", work)
        self.processes.append((worker, batch))
        self._work(worker, batch, until)

    def _work(self, worker: Worker, batch: list[Received], until: str) -> None:
        while not worker.over:
            worker.go()
            if worker.at == until:
                return
        self.processes.remove((worker, batch))
        if batch:
            kept = worker.result
            assert isinstance(kept, list)
            self.harness.delete(batch, kept)


class UploadsMachine(BatchMachine):
    max_uploads = 3


@pytest.mark.parametrize("machine", [BatchMachine, UploadsMachine])
def test_every_row_ends_once_and_every_image_is_paid_once(machine: type[BatchMachine]) -> None:
    run_state_machine(machine, max_examples=150)
