"""The editor with all its ports in memory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from PIL import Image

from darkroom.calls import CallFailed, EditResult
from darkroom.editor.batch import Completion, EditorBatch, ReturnRow, RowHandler
from darkroom.editor.image_storage import ImageStorage
from darkroom.editor.leases import Leases
from darkroom.editor.row_editor import RowEditor
from darkroom.editor.waiting import CurrentRuns, JobWaits
from darkroom.endpoints import Endpoint
from darkroom.errors import RetryRow, RowRejected, Waiting
from darkroom.jobs import JobOptions, Run, Totals
from darkroom.ports import CallContext, DispatchResult, Readiness
from darkroom.rows import (
    Claim,
    Received,
    RowMessage,
    RowRecord,
    RowRequest,
    RowResult,
    RowState,
)
from tests.corpus.images import saved
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.services import FakeClock, FakeQueue, FakeStore, FakeTelemetry
from tests.fakes.virtual_time import ThreadsClock

JOB = "jobs/products"
KEY = "000000"

type Outcome = EditResult | CallFailed | Exception


def png(colour: str = "red", side: int = 8) -> bytes:
    return saved(Image.new("RGB", (side, side), colour), "PNG")


def endpoint(provider: str = "openai") -> Endpoint:
    model = "gpt-image-1.5" if provider == "openai" else "gemini-3-pro-image"
    name = f"{provider}-main"
    return Endpoint.model_validate(
        {"name": name, "provider": provider, "api_keys": ["k"], "model": model}
    )


def row_message(run: str, key: str = KEY, *, job: str = JOB, **request: Any) -> RowMessage:
    """A row of the job; `request` as for RowRequest."""
    return RowMessage(
        job=job,
        run=run,
        row=int(key),
        key=key,
        base="s3://in/",
        request=RowRequest(**({"instruction": "a red hat"} | request)),
    )


@dataclass
class ScriptedDispatcher:
    """Makes the scripted calls of each attempt on one endpoint, with its fallback's results."""

    attempts: list[list[Outcome]] = field(default_factory=list)
    contexts: list[CallContext] = field(default_factory=list)
    during_call: Callable[[], object] = lambda: None
    ready: Readiness | Exception = field(default_factory=lambda: Readiness(0.0))

    before_slot: Callable[[], object] = lambda: None  # while the row waits for its slot
    on_readiness: Callable[[], object] = lambda: None

    def readiness(self) -> Readiness:
        self.on_readiness()
        if isinstance(self.ready, Exception):
            raise self.ready
        return self.ready

    def dispatch(self, context: CallContext, deadline: float) -> DispatchResult:
        self.contexts.append(context)
        last: Outcome | None = None
        for outcome in self.attempts.pop(0):
            last = outcome
            if not isinstance(outcome, EditResult | CallFailed):
                raise outcome
            called = endpoint()
            plan = context.plan(called)
            self.before_slot()
            context.before_call(called, plan)
            self.make_call(context, outcome)
            context.after_call(outcome)
            if isinstance(outcome, EditResult):
                return DispatchResult(outcome, plan, called, True, 1234, 0, 1, ("slow down",))
        assert isinstance(last, CallFailed)
        if last.outcome.row_at_fault:
            raise RowRejected(last.reason, last.detail)
        raise RetryRow(last.reason, last.detail, endpoint="openai-main", provider="openai")

    def make_call(self, context: CallContext, outcome: EditResult | CallFailed) -> None:
        self.during_call()


@dataclass
class FakeFetcher:
    """ImageFetcher with files, or the errors that loading them raises."""

    files: dict[str, bytes | Exception] = field(default_factory=dict)

    def fetch(self, reference: str, base: str) -> bytes:
        found = self.files[reference]
        if isinstance(found, Exception):
            raise found
        return found


class EditorHarness:
    """The editor on fakes. Start with `with_job`, or with uploads of your own."""

    def __init__(self, ledger: Callable[[FakeClock], FakeLedger] = FakeLedger) -> None:
        self.clock = ThreadsClock()
        self.ledger = ledger(self.clock)
        self.store = FakeStore()
        self.queue = FakeQueue(self.clock)
        self.batch_queue = FakeQueue(self.clock)
        self.telemetry = FakeTelemetry()
        self.dispatcher = ScriptedDispatcher()
        self.fetcher = FakeFetcher()
        self.on_unknown_outcome = "retry"
        self.rng: Callable[[], float] = lambda: 0.5
        self.deliveries = 0
        self.report_requests: list[str] = []
        self.progress_requests: list[str] = []
        self.runs = CurrentRuns(self.ledger, self.clock)
        self.waits = JobWaits(
            self.runs, self.ledger, self.progress_requests.append, self.clock, self.telemetry
        )

    @classmethod
    def with_job(cls, *, queued: int = 1, **options: Any) -> Self:
        """One upload, split into `queued` rows; `options` as for JobOptions."""
        harness = cls()
        harness.upload(queued=queued, **options)
        return harness

    def start_run(self, number: int = 1, **options: Any) -> Run:
        run = running(
            JOB,
            run=f"run-{number}",
            sequencer=f"{number:04d}",
            options=JobOptions(**options),
            started_at=self.clock.now(),
        )
        started = self.ledger.start(run, 90.0)
        assert started is not None
        return started

    def upload(self, number: int = 1, *, queued: int = 1, **options: Any) -> None:
        run = self.start_run(number, **options)
        self.ledger.finish_split(run, Totals(rows=queued, queued=queued), ())

    def editor(self, **ports: Any) -> RowEditor:
        """`ports` replace the harness's own."""
        store = ports.pop("store", self.store)
        given: dict[str, Any] = {
            "rows": self.ledger,
            "runs": self.runs,
            "waits": self.waits,
            "images": ImageStorage(store, self.ledger, self.clock, self.telemetry),
            "queue": self.queue,
            "fetcher": self.fetcher,
            "dispatcher": self.dispatcher,
            "batch_queue": self.batch_queue,
            "clock": self.clock,
            "telemetry": self.telemetry,
            "on_unknown_outcome": self.on_unknown_outcome,
            "rng": lambda: 0.5,
        }
        return RowEditor(**(given | ports))

    def handle(
        self,
        *outcomes: Outcome,
        message: RowMessage | None = None,
        given_up: Waiting | None = None,
    ) -> ReturnRow | None:
        """Deliver the row's message; the dispatcher makes one call for each outcome."""
        self.dispatcher.attempts = [list(outcomes)]
        self.deliveries += 1
        delivered, owner = message or self.message(), f"w{self.deliveries}"
        deadline = self.clock.now() + 800
        return self.editor().handle(
            delivered, self.run, owner, deadline, self.leases(), given_up=given_up
        )

    def handle_batch(self, handler: RowHandler, *batch: Received) -> list[str]:
        """One invocation with `handler` in place of the editor; ids of the messages to keep."""
        editor = EditorBatch(
            editor=handler,
            dispatcher=self.dispatcher,
            rows=self.ledger,
            runs=self.runs,
            waits=self.waits,
            queue=self.queue,
            completion=Completion(self.ledger, self.report_requests.append, self.telemetry),
            clock=self.clock,
            telemetry=self.telemetry,
            threads=4,
            rng=self.rng,
            run_all=self.clock.run_all,
        )
        deadline = self.clock.now() + 800
        return self.clock.run(lambda: editor.handle(batch, deadline, "invocation-1"))

    def leases(self) -> Leases:
        return Leases(self.queue, self.ledger, self.telemetry)

    def message(self, *, key: str = KEY, **request: Any) -> RowMessage:
        return row_message(self.run.run, key, **request)

    def claim(self, owner: str, key: str = KEY) -> Claim:
        claim = self.ledger.claim(self.message(key=key), self.run, owner, 90)
        assert isinstance(claim, Claim)
        return claim

    def settle(self, message: RowMessage, owner: str) -> None:
        """The row succeeds."""
        claim = self.ledger.claim(message, self.run, owner, 90)
        assert isinstance(claim, Claim)
        assert self.ledger.settle(claim, RowResult(RowState.SUCCEEDED))

    @property
    def run(self) -> Run:
        return self.ledger.current_run(JOB)

    @property
    def row(self) -> RowRecord:
        return self.ledger.rows[JOB, KEY]

    @property
    def result(self) -> RowResult:
        assert self.row.result is not None
        return self.row.result
