"""Whatever happens to messages and workers, every row ends once, and is counted and paid for once.

A state machine around the real RowEditor, Splitter and Sweep: deliveries and upload events
duplicated, reordered, late and lost, workers and splitters killed at every step or cut off from
AWS, several uploads, broken ones too, redrives, stops and reporters. At the end the sweep and the
workers do what is left, and the ledger is checked.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.editor.leases import Leases
from darkroom.editor.row_editor import RowCallContext
from darkroom.errors import DeferRow, ServiceUnavailable
from darkroom.jobs import Counters, Run, RunState
from darkroom.ledger.rows import contribution
from darkroom.ports import CallContext, DispatchResult, RowLedger, RowQueue, RunLedger
from darkroom.rows import RowMessage, RowState
from darkroom.splitter import CsvUploaded, Splitter
from darkroom.sweep import Sweep
from tests.conftest import run_state_machine
from tests.fakes.csv_files import rows_of
from tests.fakes.editing import JOB, EditorHarness, ScriptedDispatcher, png
from tests.fakes.ledger import FakeBatchLedger
from tests.fakes.lockstep import Fault, Stepped, Worker, step
from tests.fakes.splitting import CsvBucket

PRICE = 40_000  # below what the plan reserves
LIMIT = 1_000_000
OUTCOMES: dict[str, EditResult | CallFailed] = {
    "image": EditResult((png(side=2),), "gpt-image-1.5", cost_micro_usd=PRICE),
    "refused": CallFailed(Outcome.REFUSED, "not this"),
    "billed but lost": CallFailed(Outcome.UNAVAILABLE, "timed out", maybe_charged=True),
    "down": CallFailed(Outcome.UNAVAILABLE, "503"),
}


@dataclass
class CountingDispatcher(ScriptedDispatcher):
    """Makes one call for each attempt, with `next_outcome`."""

    billed: int = 0
    lost: int = 0  # billed, but the response was lost
    calls: Counter[tuple[str, str, str, int]] = field(default_factory=Counter)
    next_outcome: str = "image"

    def dispatch(self, context: CallContext, deadline: float) -> DispatchResult:
        if self.next_outcome == "busy":
            raise DeferRow("no slot", delay_seconds=60)
        self.attempts.append([OUTCOMES[self.next_outcome]])
        return super().dispatch(context, deadline)

    def make_call(self, context: CallContext, outcome: EditResult | CallFailed) -> None:
        record = cast("RowCallContext", context).claim.record
        self.calls[record.run, record.key, record.fingerprint, record.generation] += 1
        step("provider.edit", lambda: self._bill(outcome))

    def _bill(self, outcome: EditResult | CallFailed) -> None:
        lost = isinstance(outcome, CallFailed) and outcome.maybe_charged
        self.lost += lost
        self.billed += lost or isinstance(outcome, EditResult)


OUTCOME = st.sampled_from(["image", "image", "down", "down", "billed but lost", "refused", "busy"])
FAULTS = st.sampled_from([Fault.NONE, Fault.NONE, Fault.LOST_REQUEST, Fault.LOST_RESPONSE])
PICK = st.integers(0, 5)  # which of several, modulo their number
STEPS = st.sampled_from(
    [
        *("the end", "the end", "ledger.claim", "ledger.mark_sent", "provider.edit"),
        *("ledger.mark_failed_call", "store.put", "queue.dead_letter"),
        *("ledger.settle", "ledger.settle"),
    ]
)


SPLITTER_STEPS = st.sampled_from(
    [
        *("the end", "the end", "the end", "ledger.start", "ledger.get_many"),
        *("queue.send", "queue.send", "ledger.finish_split", "ledger.finish_split"),
    ]
)


@dataclass
class Backlog:
    """What the sweep knows of the queue."""

    machine: "LedgerMachine"

    def backlog(self) -> int:
        hidden = [d for d in self.machine.deliveries if not d.is_duplicate]
        return len(self.machine.visible) + len(hidden)

    def restart_uploads(self) -> int:
        return 0


@dataclass
class Split:
    """An upload event that a splitter is processing."""

    worker: Worker
    event: CsvUploaded


@dataclass
class Delivery:
    """A message that a worker is processing."""

    worker: Worker
    message: RowMessage
    leases: Leases
    is_duplicate: bool  # else the queue hides the message meanwhile


class LedgerMachine(RuleBasedStateMachine):
    on_unknown = "retry"

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = CountingDispatcher()
        self.harness = EditorHarness()
        self.harness.on_unknown_outcome = self.on_unknown
        self.clock, self.queue = self.harness.clock, self.harness.queue
        self.ledger = self.harness.ledger
        self.bucket = CsvBucket()
        self.editor = self.harness.editor(
            rows=Stepped(self.ledger, "ledger"),
            store=Stepped(self.harness.store, "store"),
            queue=Stepped(self.queue, "queue"),
            dispatcher=self.dispatcher,
        )
        self.splitter = Splitter(
            runs=cast("RunLedger", Stepped(self.ledger, "ledger")),
            rows=cast("RowLedger", Stepped(self.ledger, "ledger")),
            queue=cast("RowQueue", Stepped(self.queue, "queue")),
            batch_queue=self.harness.batch_queue,
            store=self.bucket,
            clock=self.clock,
            telemetry=self.harness.telemetry,
            continue_later=lambda _: None,
            request_report=lambda _: None,
            show_progress=lambda _: None,
            check_complete=lambda _: None,
        )
        self.sweep = Sweep(
            lost_events=Backlog(self),
            runs=self.ledger,
            rows=self.ledger,
            queue=cast("RowQueue", Backlog(self)),
            batch_queue=self.harness.batch_queue,
            batches=FakeBatchLedger(self.ledger),
            clock=self.clock,
            telemetry=self.harness.telemetry,
            start_splitter=lambda event: self._start_split(event, "the end"),
            request_report=lambda _: self.begin_report(),
        )
        self.events: list[CsvUploaded] = []
        self.unfinished_events: list[CsvUploaded] = []
        self.splits: list[Split] = []
        self.deliveries: list[Delivery] = []
        self.visible: list[RowMessage] = []
        self.numbers = itertools.count(1)
        self.reporting: tuple[Run, dict[str, Any]] | None = None
        self.reported: tuple[str, dict[str, Any]] | None = None
        self.budget: float | None = None
        self.max_attempts = 1
        self.lost_letters: set[tuple[str, int]] = set()  # keys and generations
        self.csv_lost = False
        self.disturbances = 0  # each may hide one response, and so explain one unknown charge

    # -- events

    @initialize(budgeted=st.booleans(), max_attempts=st.integers(1, 2))
    def first_upload(self, budgeted: bool, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self.budget = LIMIT / 1e6 if budgeted else None
        self._upload(("a red hat", "a red hat"), resume=True, retry_failed=False)
        self._start_split(self.events[0], "the end")

    @precondition(lambda self: len(self.events) < 4)
    @rule(
        instructions=st.lists(
            st.sampled_from(["a red hat", "a red hat", "a blue hat"]), min_size=1, max_size=2
        ),
        resume=st.sampled_from([True, True, False]),
        retry_failed=st.booleans(),
        until=SPLITTER_STEPS,
        busy=st.sampled_from(["nobody", "until the split ends", "for longer"]),
    )
    def upload_again(
        self, instructions: list[str], resume: bool, retry_failed: bool, until: str, busy: str
    ) -> None:
        """A worker may be about to settle a row of the earlier upload meanwhile."""
        if busy != "nobody" and self.visible:
            delivery = self._start(self.visible.pop(0), is_duplicate=False)
            self._work(delivery, "ledger.settle", "image")
        self._upload(instructions, resume=resume, retry_failed=retry_failed)
        self._start_split(self.events[-1], until)
        if busy == "until the split ends":
            for delivery in list(self.deliveries):
                self._work(delivery, "the end", "image")

    @precondition(lambda self: self._is_under_way())
    @rule()
    def upload_a_broken_file(self) -> None:
        self._receive_upload(b"", {})
        self._start_split(self.events[-1], "the end")

    @rule(pick=PICK, until=SPLITTER_STEPS)
    def deliver_event(self, pick: int, until: str) -> None:
        """An upload event may come twice, and late."""
        self._start_split(self.events[pick % len(self.events)], until)

    @precondition(lambda self: self.splits)
    @rule(pick=PICK, until=SPLITTER_STEPS, fault=FAULTS)
    def split(self, pick: int, until: str, fault: Fault) -> None:
        self._split(self.splits[pick % len(self.splits)], until, fault)

    @precondition(lambda self: self.splits)
    @rule(pick=PICK)
    def kill_splitter(self, pick: int) -> None:
        split = self.splits.pop(pick % len(self.splits))
        split.worker.kill()

    @precondition(lambda self: self.visible)
    @rule(pick=PICK, outcome=OUTCOME, until=STEPS, duplicate=st.booleans())
    def deliver(self, pick: int, outcome: str, until: str, duplicate: bool) -> None:
        """A worker receives the message and works until it reaches that step, or is done."""
        message = self.visible[pick % len(self.visible)]
        if not duplicate:
            self.visible.remove(message)
        self._work(self._start(message, is_duplicate=duplicate), until, outcome)

    @precondition(lambda self: self.deliveries)
    @rule(pick=PICK, outcome=OUTCOME, until=STEPS, fault=FAULTS)
    def work(self, pick: int, outcome: str, until: str, fault: Fault) -> None:
        """AWS may fail at the next step; the worker continues as it can."""
        delivery = self.deliveries[pick % len(self.deliveries)]
        if fault is not Fault.NONE and delivery.worker.at != "provider.edit":
            self.disturbances += 1
            self.dispatcher.next_outcome = outcome
            delivery.worker.go(fault)
        self._work(delivery, until, outcome)

    @precondition(lambda self: self.deliveries)
    @rule(pick=PICK, seconds=st.sampled_from([0, 100, 100]))
    def kill(self, pick: int, seconds: int) -> None:
        self._kill(self.deliveries[pick % len(self.deliveries)])
        self.clock.time += seconds

    @precondition(lambda self: self.visible)
    @rule(pick=PICK)
    def lose_message(self, pick: int) -> None:
        """SQS deletes a message after 14 days, a redriven letter too."""
        message = self.visible.pop(pick % len(self.visible))
        self.lost_letters.add((message.key, message.generation))

    @precondition(lambda self: self.ledger.jobs and not self.csv_lost)
    @rule()
    def lose_csv(self) -> None:
        """The bucket's rules, or a user, delete the version that the job was made from."""
        self.csv_lost = True
        self.bucket.versions[self.harness.run.source.version_id] = (b"", {})

    @rule()
    def run_sweep(self) -> None:
        self.sweep.sweep(lambda: 900.0)

    @rule(seconds=st.sampled_from([1, 40, 100, 4_000]), heartbeat=st.booleans())
    def time_passes(self, seconds: int, heartbeat: bool) -> None:
        """Without a heartbeat, workers lose their leases without noticing."""
        self.clock.time += seconds
        if not heartbeat:
            self.disturbances += len(self.deliveries)
        else:
            for delivery in self.deliveries:
                delivery.leases.renew()

    @precondition(lambda self: self.queue.dead)
    @rule(pick=PICK, twice=st.booleans())
    def redrive(self, pick: int, twice: bool) -> None:
        dead = self.queue.dead[pick % len(self.queue.dead)]
        copy = RowMessage.model_validate_json(dead[0])
        if not twice:
            self.queue.dead.remove(dead)
        self.visible.append(copy)

    @precondition(lambda self: len(self.events) == 1)
    @rule()
    def stop(self) -> None:
        self.ledger.stop(JOB)

    @precondition(lambda self: self.ledger.jobs)
    @rule()
    def begin_report(self) -> None:
        run = self.harness.run
        if run.state is RunState.FAILED:
            self.ledger.finish_report(run, self.clock.now())
        elif self.ledger.begin_report(run, 915.0):
            self.reporting = (run, self._results(run))

    @precondition(lambda self: self.reporting is not None)
    @rule()
    def finish_report(self) -> None:
        assert self.reporting is not None
        run, results = self.reporting
        if self.ledger.finish_report(run, self.clock.now()) and run.run == self.harness.run.run:
            self.reported = (run.run, results)
        self.reporting = None

    # -- invariants

    @invariant()
    def counters_are_the_sum_of_the_current_runs_rows(self) -> None:
        if self.ledger.jobs:
            run = self.harness.run.run
            rows = [r for r in self.ledger.all(JOB) if r.run == run and r.state.terminal]
            sums = self.ledger.counters(JOB, run)
            assert replace(sums, transitions=0) == sum(map(contribution, rows), Counters())

    @invariant()
    def every_image_is_counted_in_one_run(self) -> None:
        counted = sum(self.ledger.counters(JOB, run).succeeded for _, run in self.ledger.runs)
        assert counted <= self.dispatcher.billed

    @invariant()
    def every_billed_call_is_an_image_or_counted(self) -> None:
        """A call whose outcome is pending belongs to a row that is `sent`."""
        sums = [self.ledger.counters(JOB, run) for _, run in self.ledger.runs]
        open_rows = [r for r in self.ledger.all(JOB) if not r.state.terminal]
        images = sum(s.succeeded for s in sums)
        counted = sum(s.possible_duplicate_charges for s in sums)
        counted += sum(r.possible_duplicate_charges for r in open_rows)
        pending = sum(r.state is RowState.SENT for r in open_rows)
        assert self.dispatcher.billed <= images + counted + pending
        assert counted <= self.disturbances + self.dispatcher.lost

    @invariant()
    def no_row_is_called_more_often_than_its_attempts(self) -> None:
        """The first worker that dies with a row costs no attempt, even if it had called."""
        allowed = self.max_attempts + int(self.disturbances > 0)
        assert all(n <= allowed for n in self.dispatcher.calls.values())

    @invariant()
    def the_budget_holds(self) -> None:
        if self.budget is None:
            return
        committed = self.ledger.committed.get(JOB, 0)
        assert self.dispatcher.billed * PRICE <= committed <= LIMIT

    # -- the end

    def teardown(self) -> None:
        while self.deliveries:
            self._kill(self.deliveries[0])
        self._finish_splits()
        self._finish_jobs()
        run = self.harness.run
        if run.state is not RunState.FAILED:
            assert run.split_done
            assert run.lost == 0 or run.state is RunState.STOPPED or self.csv_lost
            missing = run.totals.queued - self.ledger.counters(JOB, run.run).settled
            assert 0 <= missing <= run.lost
            assert not self.ledger.report_due(JOB)
            assert self.reported == (run.run, self._results(run))
            if not self.csv_lost:
                uploaded = self.bucket.versions[run.source.version_id][0]
                keys = [row.key for row in rows_of(uploaded)]
                assert [(JOB, key) in self.ledger.rows for key in keys].count(False) <= missing
        assert list(self.ledger.unsettled(JOB)) == []
        for record in self.ledger.all(JOB):
            if record.state is RowState.SUCCEEDED and record.result is not None:
                assert all(output in self.harness.store.objects for output in record.result.outputs)
        self._check_dead_letters()
        self.counters_are_the_sum_of_the_current_runs_rows()
        self.every_billed_call_is_an_image_or_counted()
        self.the_budget_holds()

    def _finish_splits(self) -> None:
        """Splitters die. Lambda delivers events again; of runs that began, the sweep takes care."""
        for split in self.splits:
            split.worker.kill()
        self.splits.clear()
        for event in list(self.unfinished_events):
            if (JOB, event.run) not in self.ledger.runs:
                self._start_split(event, "the end")

    def _finish_jobs(self) -> None:
        """Without further faults, the sweep and the workers end every run in a few hours."""
        for _ in range(8):
            self._drain()
            if self.reporting is not None:
                self.finish_report()
            if not self.ledger.marks:
                return
            self.clock.time += 3_700
            self.sweep.sweep(lambda: 900.0)
        pytest.fail("the job is never finished")

    def _drain(self) -> None:
        """Process the remaining messages without further faults."""
        outcomes = ["down", "image", "image"]
        for turn in range(200):
            if not self.visible:
                return
            self.clock.time += 100
            self.dispatcher.next_outcome = outcomes[turn % 3]
            delivery = self._start(self.visible.pop(0), is_duplicate=False)
            delivery.worker.finish()
            self._finish(delivery)
        pytest.fail("the messages are delivered forever")

    def _check_dead_letters(self) -> None:
        """A dead row can be redriven, unless its letter was lost: the next generation exists."""
        copies = [RowMessage.model_validate_json(body) for body, _ in self.queue.dead]
        known = {(c.key, c.generation) for c in copies}
        for record in self.ledger.all(JOB):
            if record.state is RowState.DEAD:
                letter = record.key, record.generation + 1
                assert letter in known | self.lost_letters

    # -- helpers

    def _upload(self, instructions: Sequence[str], *, resume: bool, retry_failed: bool) -> None:
        options = {
            "resume": str(resume).lower(),
            "retry-failed": str(retry_failed).lower(),
            "max-attempts": str(self.max_attempts),
        }
        if self.budget is not None:
            options["budget-usd"] = str(self.budget)
        self._receive_upload("\n".join(("instruction", *instructions, "")).encode(), options)

    def _receive_upload(self, data: bytes, options: dict[str, str]) -> None:
        number = len(self.events) + 1
        self.bucket.versions[f"v{number}"] = (data, options)
        event = CsvUploaded("in", f"{JOB}.csv", f"v{number}", f"{number:04d}", len(data))
        self.events.append(event)
        self.unfinished_events.append(event)

    def _start_split(self, event: CsvUploaded, until: str) -> None:
        worker = Worker("splitter", lambda: self.splitter.split(event, lambda: 900.0))
        split = Split(worker, event)
        self.splits.append(split)
        self._split(split, until)

    def _split(self, split: Split, until: str, fault: Fault = Fault.NONE) -> None:
        """Until that step, or to the end; AWS may fail first."""
        worker, began_at = split.worker, self.clock.time
        try:
            if worker.at != "start":
                worker.go(fault)
            while not worker.over:
                worker.go()
                if worker.at == until:
                    break
        except ServiceUnavailable:  # Lambda delivers the event again
            self.splits.remove(split)
        else:
            if worker.over:
                self.splits.remove(split)
                if split.event in self.unfinished_events:
                    self.unfinished_events.remove(split.event)
        if self.clock.time > began_at:  # it waited for a lease, and nobody renewed the workers'
            self.disturbances += len(self.deliveries)
        self.visible += self.queue.sent
        self.queue.sent.clear()

    def _is_under_way(self) -> bool:
        return bool(self.ledger.jobs) and self.harness.run.finished_at is None

    def _work(self, delivery: Delivery, until: str, outcome: str) -> None:
        self.dispatcher.next_outcome = outcome
        worker = delivery.worker
        while not worker.over:
            worker.go()
            if worker.at == until:
                break
        if worker.over:
            self._finish(delivery)

    def _start(self, message: RowMessage, *, is_duplicate: bool) -> Delivery:
        leases, run = self.harness.leases(), self.harness.run
        owner = f"worker-{next(self.numbers)}"
        deadline = self.clock.now() + 800

        def work() -> object:
            return self.editor.handle(message, run, owner, deadline, leases)

        delivery = Delivery(Worker(owner, work), message, leases, is_duplicate)
        self.deliveries.append(delivery)
        return delivery

    def _kill(self, delivery: Delivery) -> None:
        self.disturbances += 1
        delivery.worker.kill()
        self._finish(delivery)

    def _finish(self, delivery: Delivery) -> None:
        """The queue deletes the message, or makes it visible again."""
        self.deliveries.remove(delivery)
        done = not delivery.worker.killed and delivery.worker.result is None
        if not delivery.is_duplicate and not done:
            self.visible.append(delivery.message)

    def _results(self, run: Run) -> dict[str, Any]:
        return {r.key: r.result for r in self.ledger.all(JOB) if r.run == run.run}


class FailOnUnknownMachine(LedgerMachine):
    on_unknown = "fail"


@pytest.mark.parametrize("machine", [LedgerMachine, FailOnUnknownMachine])
def test_every_row_ends_once_and_every_charge_is_counted(machine: type[LedgerMachine]) -> None:
    run_state_machine(machine, max_examples=250)
