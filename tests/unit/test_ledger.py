"""Whatever happens to messages and workers, every row ends once, and is counted and paid for once.

A random world around the real RowEditor: deliveries doubled, reordered and lost, workers killed at
every step or cut off from AWS, several uploads, redrives, stops and reporters. At its end what is
left over is worked off, and what must be true is checked.
"""

import io
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from PIL import Image

from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.editor.batch import Leases
from darkroom.editor.image_storage import ImageStorage
from darkroom.editor.row_editor import RowCallContext, RowEditor
from darkroom.endpoints import Endpoint
from darkroom.errors import DeferRow, RetryRow, RowRejected
from darkroom.jobs import Counters, JobOptions, Run, Totals
from darkroom.ledger.rows import Change, contribution
from darkroom.ports import (
    CallContext,
    DispatchResult,
    ImageFetcher,
    ObjectStore,
    RowLedger,
    RowQueue,
)
from darkroom.rows import RowMessage, RowRequest, RowState
from darkroom.splitter import ResumeDecision, resume_decision
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.lockstep import Fault, Stepped, Worker, step
from tests.fakes.services import FakeClock, FakeQueue, FakeStore, FakeTelemetry

JOB = "jobs/products"
KEYS = ("000000", "000001")
PRICE = 40_000  # below what the plan reserves
LIMIT = 1_000_000


def _picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(out, "PNG")
    return out.getvalue()


PICTURE = _picture()
ENDPOINT = Endpoint.model_validate(
    {"name": "openai-main", "provider": "openai", "api_keys": ["k"], "model": "gpt-image-1.5"}
)


@dataclass
class Provider:
    """Stands for the dispatcher: one call for each attempt, with an outcome that was drawn."""

    billed: int = 0
    lost: int = 0  # billed, and the answer never came
    calls: Counter[tuple[str, str, str, int]] = field(default_factory=Counter)
    next_outcome: str = "image"

    def dispatch(self, context: CallContext, deadline: float) -> DispatchResult:
        outcome = self.next_outcome
        if outcome == "busy":
            raise DeferRow("no slot", delay_seconds=60)
        plan = context.plan(ENDPOINT)
        context.before_call(ENDPOINT, plan)
        record = cast("RowCallContext", context).claim.record
        self.calls[record.run, record.key, record.fingerprint, record.generation] += 1
        answer = step("provider.edit", lambda: self._call(outcome))
        context.after_call(ENDPOINT, plan, answer)
        if isinstance(answer, CallFailed):
            if answer.outcome.blames_row:
                raise RowRejected(answer.reason, answer.detail) from answer
            raise RetryRow(answer.reason, answer.detail, endpoint=ENDPOINT.name) from answer
        return DispatchResult(answer, plan, ENDPOINT, False, 10, 0, 1)

    def _call(self, outcome: str) -> EditResult | CallFailed:
        match outcome:
            case "image":
                self.billed += 1
                return EditResult((PICTURE,), "gpt-image-1.5", cost_micro_usd=PRICE)
            case "refused":
                return CallFailed(Outcome.REFUSED, "not this")
            case "billed but lost":
                self.billed += 1
                self.lost += 1
                return CallFailed(Outcome.UNAVAILABLE, "timed out", maybe_charged=True)
        return CallFailed(Outcome.UNAVAILABLE, "503")


@dataclass
class WatchedLedger(FakeLedger):
    """Counts images that nobody wanted any more: redriven, and the new upload asks otherwise."""

    discarded: int = 0

    def _write(self, job: str, change: Change) -> None:
        before = self.rows.get((job, change.record.key))
        if before and before.state is RowState.SUCCEEDED and before.redriven:
            self.discarded += not change.record.state.terminal
        super()._write(job, change)


OUTCOMES = st.sampled_from(["image", "image", "down", "down", "billed but lost", "refused", "busy"])
FAULTS = st.sampled_from([Fault.NONE, Fault.NONE, Fault.LOST_REQUEST, Fault.LOST_RESPONSE])
PICK = st.integers(0, 5)  # which of several, modulo their number
STEPS = st.sampled_from(
    [
        "the end",
        "the end",
        "ledger.claim",
        "ledger.mark_sent",
        "provider.edit",
        "ledger.mark_failed_call",
        "store.put",
        "queue.dead_letter",
        "ledger.settle",
        "ledger.settle",
    ]
)


@dataclass
class Flight:
    """A delivery in a worker's hands."""

    worker: Worker
    message: RowMessage
    leases: Leases
    own_message: bool  # the queue hides it meanwhile; else this is a duplicate


class World(RuleBasedStateMachine):
    on_unknown = "retry"

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.ledger = WatchedLedger(self.clock)
        self.store = FakeStore()
        self.queue = FakeQueue()
        self.telemetry = FakeTelemetry()
        self.provider = Provider()
        self.flights: list[Flight] = []
        self.visible: list[RowMessage] = []
        self.sequence = 0
        self.delivery = 0
        self.reporting: tuple[Run, dict[str, Any]] | None = None
        self.reported: dict[str, Any] | None = None
        self.budget: float | None = None
        self.max_attempts = 1
        self.disturbances = 0  # what may hide an answer: each explains one unknown charge
        self.taken_out: set[tuple[str, int]] = set()
        self.queued_keys: list[str] = []
        self.editor = RowEditor(
            rows=cast("RowLedger", Stepped(self.ledger, "ledger")),
            images=ImageStorage(
                cast("ObjectStore", Stepped(self.store, "store")), self.clock, self.telemetry
            ),
            queue=cast("RowQueue", Stepped(self.queue, "queue")),
            fetcher=cast("ImageFetcher", None),  # the rows have no images
            dispatcher=self.provider,
            clock=self.clock,
            telemetry=self.telemetry,
            on_unknown_outcome=self.on_unknown,
            rng=lambda: 0.5,
        )

    # -- what happens

    @initialize(budgeted=st.booleans(), max_attempts=st.integers(1, 2))
    def first_upload(self, budgeted: bool, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self.budget = LIMIT / 1e6 if budgeted else None
        self._upload(dict.fromkeys(KEYS, "a red hat"), resume=True, retry_failed=False)

    @precondition(lambda self: self.sequence < 3)
    @rule(
        wishes=st.fixed_dictionaries(
            {KEYS[0]: st.sampled_from(["a red hat", "a red hat", "a blue hat"])},
            optional={KEYS[1]: st.just("a red hat")},
        ),
        resume=st.sampled_from([True, True, False]),
        retry_failed=st.booleans(),
    )
    def upload_again(self, wishes: dict[str, str], resume: bool, retry_failed: bool) -> None:
        self._upload(wishes, resume=resume, retry_failed=retry_failed)

    @precondition(lambda self: self.visible)
    @rule(pick=PICK, outcome=OUTCOMES, until=STEPS, duplicate=st.booleans())
    def deliver(self, pick: int, outcome: str, until: str, duplicate: bool) -> None:
        """A worker gets the message and works until it stands before that step, or is done."""
        message = self.visible[pick % len(self.visible)]
        if not duplicate:
            self.visible.remove(message)
        self._work(self._start(message, own=not duplicate), until, outcome)

    @precondition(lambda self: self.flights)
    @rule(pick=PICK, outcome=OUTCOMES, until=STEPS, fault=FAULTS)
    def work(self, pick: int, outcome: str, until: str, fault: Fault) -> None:
        """AWS may fail at the next step; the worker goes on as it can."""
        flight = self.flights[pick % len(self.flights)]
        if fault is not Fault.NONE and flight.worker.at != "provider.edit":
            self.disturbances += 1
            self.provider.next_outcome = outcome
            flight.worker.go(fault)
        self._work(flight, until, outcome)

    @precondition(lambda self: self.flights)
    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        self.disturbances += 1
        flight = self.flights[pick % len(self.flights)]
        flight.worker.kill()
        self._land(flight)

    @rule(seconds=st.sampled_from([1, 40, 100]), beat=st.booleans())
    def time_passes(self, seconds: int, beat: bool) -> None:
        """Without a beat, workers in flight lose their leases and do not know it."""
        self.clock.time += seconds
        if not beat:
            self.disturbances += len(self.flights)
        else:
            for flight in self.flights:
                flight.leases.renew(self.queue, self.ledger, 90.0)

    @precondition(lambda self: self.queue.dead)
    @rule(pick=PICK, twice=st.booleans())
    def redrive(self, pick: int, twice: bool) -> None:
        dead = self.queue.dead[pick % len(self.queue.dead)]
        copy = RowMessage.model_validate_json(dead[0])
        if not twice:
            self.queue.dead.remove(dead)
            self.taken_out.add((copy.key, copy.generation))
        self.visible.append(copy)

    @precondition(lambda self: self.sequence == 1)
    @rule()
    def stop(self) -> None:
        self.ledger.stop(JOB)

    @rule()
    def begin_report(self) -> None:
        run = self._current()
        if self.ledger.begin_report(run, 1e9):
            self.reporting = (run, self._results(run))

    @precondition(lambda self: self.reporting is not None)
    @rule()
    def finish_report(self) -> None:
        assert self.reporting is not None
        run, told = self.reporting
        if self.ledger.finish_report(run, self.clock.now()) and run.run == self._current().run:
            self.reported = told
        self.reporting = None

    # -- what is always true

    @invariant()
    def counters_are_the_sum_of_the_current_runs_rows(self) -> None:
        if not self.ledger.jobs:
            return
        run = self._current().run
        total = Counters()
        for record in self.ledger.all(JOB):
            if record.run == run and record.state.terminal:
                total += contribution(record)
        sums = self.ledger.counters(JOB, run)
        assert _without_transitions(sums) == _without_transitions(total)

    @invariant()
    def every_billed_call_is_an_image_or_counted(self) -> None:
        """While a call's outcome is still in the air, it is one of the rows that are `sent`."""
        sums = [self.ledger.counters(JOB, run) for _, run in self.ledger.runs]
        open_rows = [r for r in self.ledger.all(JOB) if not r.state.terminal]
        images = sum(s.succeeded for s in sums)
        counted = sum(s.possible_duplicate_charges for s in sums)
        counted += sum(r.possible_duplicate_charges for r in open_rows)
        in_the_air = sum(r.state is RowState.SENT for r in open_rows)
        images += self.ledger.discarded
        assert self.provider.billed <= images + counted + in_the_air
        assert counted <= self.disturbances + self.provider.lost

    @invariant()
    def no_row_is_called_more_often_than_its_attempts(self) -> None:
        assert all(n <= self.max_attempts for n in self.provider.calls.values())

    @invariant()
    def the_budget_holds(self) -> None:
        if self.budget is None:
            return
        committed = self.ledger.committed.get(JOB, 0)
        assert self.provider.billed * PRICE <= committed <= LIMIT

    # -- the end

    def teardown(self) -> None:
        if not self.ledger.jobs:
            return
        while self.flights:
            self.disturbances += 1
            self.flights[0].worker.kill()
            self._land(self.flights[0])
        self._drain()
        run = self._current()
        counters = self.ledger.counters(JOB, run.run)
        assert counters.settled == run.totals.queued + counters.redriven
        self._report()
        assert not self.ledger.report_due(JOB)
        assert self.reported == self._results(run)
        for key in self.queued_keys:
            assert self.ledger.rows[JOB, key].state.terminal
        for record in self.ledger.all(JOB):
            if record.state is RowState.SUCCEEDED and record.result is not None:
                assert all(output in self.store.objects for output in record.result.outputs)
        self._check_dead_letters()
        self.counters_are_the_sum_of_the_current_runs_rows()
        self.every_billed_call_is_an_image_or_counted()
        self.the_budget_holds()

    def _drain(self) -> None:
        """Let the world calm down: everything that is left comes to its end."""
        outcomes = ["down", "image", "image"]
        for turn in range(200):
            if not self.visible:
                return
            self.clock.time += 100
            self.provider.next_outcome = outcomes[turn % 3]
            flight = self._start(self.visible.pop(0), own=True)
            flight.worker.finish()
            self._land(flight)
        pytest.fail("messages go round in circles")

    def _report(self) -> None:
        if self.reporting is not None:
            self.finish_report()
        for _ in range(3):
            if self.ledger.report_due(JOB):
                self.begin_report()
                if self.reporting is not None:
                    self.finish_report()

    def _check_dead_letters(self) -> None:
        """A row that is dead can be brought back: a copy with the next generation exists."""
        copies = [RowMessage.model_validate_json(body) for body, _ in self.queue.dead]
        ever = {(c.key, c.generation) for c in copies} | self.taken_out
        for record in self.ledger.all(JOB):
            if record.state is RowState.DEAD:
                assert (record.key, record.generation + 1) in ever

    # -- helpers

    def _current(self) -> Run:
        run = self.ledger.current(JOB)
        assert run is not None
        return run

    def _upload(self, wishes: dict[str, str], *, resume: bool, retry_failed: bool) -> None:
        self.sequence += 1
        options = JobOptions(
            resume=resume,
            retry_failed=retry_failed,
            max_attempts=self.max_attempts,
            budget_usd=self.budget,
        )
        wanted = running(
            JOB,
            run=f"run-{self.sequence}",
            sequencer=f"{self.sequence:04d}",
            options=options,
            started_at=self.clock.now(),
        )
        run = self.ledger.start(wanted, 90.0)
        assert run is not None
        self.queued_keys = []
        known = self.ledger.get_many(JOB, KEYS)
        for key, wish in wishes.items():
            message = RowMessage(
                job=JOB,
                run=run.run,
                row=int(key),
                key=key,
                base="s3://in/",
                request=RowRequest(instruction=wish),
                redo=not resume,
            )
            if (
                resume_decision(known.get(key), message.request.fingerprint(), run)
                is ResumeDecision.QUEUED
            ):
                self.queued_keys.append(key)
                self.visible.append(message)
        count = len(self.queued_keys)
        self.ledger.finish_split(run, Totals(rows=len(wishes), queued=count), ())
        self.reported = None

    def _work(self, flight: Flight, until: str, outcome: str) -> None:
        self.provider.next_outcome = outcome
        worker = flight.worker
        while not worker.over:
            worker.go()
            if worker.at == until:
                break
        if worker.over:
            self._land(flight)

    def _start(self, message: RowMessage, *, own: bool) -> Flight:
        self.delivery += 1
        leases, run = Leases(), self._current()
        owner = f"worker-{self.delivery}"
        deadline = self.clock.now() + 800

        def work() -> object:
            return self.editor.handle(message, run, owner, deadline, leases)

        flight = Flight(Worker(owner, work), message, leases, own)
        self.flights.append(flight)
        return flight

    def _land(self, flight: Flight) -> None:
        """What the queue does with the message: gone, or visible again."""
        self.flights.remove(flight)
        done = not flight.worker.killed and flight.worker.result is None
        if flight.own_message and not done:
            self.visible.append(flight.message)

    def _results(self, run: Run) -> dict[str, Any]:
        return {r.key: r.result for r in self.ledger.all(JOB) if r.run == run.run}


def _without_transitions(counters: Counters) -> Counters:
    return counters + Counters(transitions=-counters.transitions, redriven=-counters.redriven)


EXAMPLES = 250


class FailingWorld(World):
    on_unknown = "fail"


@pytest.mark.parametrize("world", [World, FailingWorld])
def test_every_row_ends_once_and_every_charge_is_accounted_for(world: type[World]) -> None:
    fuzzing = settings.get_current_profile_name() == "fuzz"
    run_state_machine_as_test(
        world,
        settings=settings(
            max_examples=settings().max_examples if fuzzing else EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=not fuzzing,
            report_multiple_bugs=False,
        ),
    )
