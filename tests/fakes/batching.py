"""The batches' submitter and collector on fakes, and a provider of batches in memory."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO, Self, cast

from darkroom.batches.collector import Collector
from darkroom.batches.drafts import Drafts
from darkroom.batches.endpoints import BatchEndpoints
from darkroom.batches.provider_batch import (
    BatchAnswer,
    BatchGroup,
    BatchLimits,
    BatchStatus,
    ProviderBatch,
    passed_over,
)
from darkroom.batches.returns import RowReturns
from darkroom.batches.submitter import RowSubmitter, Submitter
from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.dispatch.state_cache import StateCache
from darkroom.editor.batch import Completion
from darkroom.editor.image_storage import ImageStorage
from darkroom.editor.waiting import CurrentRuns, JobWaits
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.errors import Ineligible
from darkroom.ports import BatchLedger, BatchProvider, RowLedger, RowQueue
from darkroom.rows import Received, RowMessage
from tests.fakes.editing import EditorHarness, png, row_message
from tests.fakes.endpoint_states import InMemoryEndpointStates
from tests.fakes.ledger import FakeBatchLedger
from tests.fakes.lockstep import Stepped

PRICE = 20_000  # micro-USD of an image in a batch, below what a plan reserves
_LOCAL = ("limits", "group", "request_line")  # of BatchProvider: these make no request
type Answer = EditResult | CallFailed | None


def image(cost: int | None = PRICE, side: int = 2) -> EditResult:
    return EditResult((png(side=side),), "gpt-image-1.5", cost_micro_usd=cost)


@dataclass
class _Batch:
    description: ProviderBatch
    lines: list[tuple[str, str]]  # custom id, prompt
    # By custom id; None: a line that cannot be read.
    answers: list[tuple[str | None, EditResult | CallFailed]] = field(default_factory=list)

    @property
    def unanswered(self) -> int:
        """Requests without a line in the results."""
        return len(self.lines) - len({name for name, _ in self.answers} - {None})


@dataclass
class FakeBatchProvider:
    """BatchProvider with an account in memory. `failures` are of the next creates.

    A failure with `maybe_charged` makes the batch all the same. What is billed is counted by
    prompt, when `end` ends a batch.
    """

    now: Callable[[], float]
    batches: dict[str, _Batch] = field(default_factory=dict)
    failures: list[CallFailed] = field(default_factory=list)
    billed: Counter[str] = field(default_factory=Counter)
    cancelled: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    max_requests: int = 50_000
    max_file_bytes: int = 1 << 30
    list_lag_seconds: float = 60.0
    without_batches: str = ""  # why
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def limits(self) -> BatchLimits:
        return BatchLimits(self.max_requests, self.max_file_bytes)

    def group(self, plan: CallPlan) -> BatchGroup:
        if self.without_batches:
            raise Ineligible(self.without_batches)
        return BatchGroup(plan.model, "edits" if plan.images else "generations")

    def request_line(self, custom_id: str, plan: CallPlan) -> bytes:
        return json.dumps({"custom_id": custom_id, "prompt": plan.prompt}).encode() + b"\n"

    def create(
        self, name: str, group: BatchGroup, requests: BinaryIO, timeout_seconds: float
    ) -> ProviderBatch:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None and not failure.maybe_charged:
            raise failure
        batch_id = f"batch-{next(self._numbers)}"
        lines = [json.loads(line) for line in requests]
        assert lines, "a batch has at least one request"
        ids = [line["custom_id"] for line in lines]
        assert len(set(ids)) == len(ids)
        description = ProviderBatch(batch_id, name, BatchStatus.RUNNING, self.now())
        self.batches[batch_id] = _Batch(
            description, [(line["custom_id"], line["prompt"]) for line in lines]
        )
        if failure is not None:
            raise failure
        return description

    def end(
        self,
        batch_id: str,
        answer: Callable[[str], Answer] = lambda _: image(),
        status: BatchStatus = BatchStatus.SUCCEEDED,
        failure: CallFailed | None = None,
    ) -> None:
        """The provider ends the batch, with an answer for each prompt; None: it has none."""
        batch = self.batches[batch_id]
        for custom_id, prompt in reversed(batch.lines):  # in another order
            found = answer(prompt)
            if found is not None:
                batch.answers.append((custom_id, found))
                self.billed[prompt] += isinstance(found, EditResult)
        batch.description = replace(
            batch.description,
            status=status,
            failure=failure,
            requests=len(batch.lines),
            succeeded=sum(isinstance(outcome, EditResult) for _, outcome in batch.answers),
            result_files=("results",) if batch.answers else (),
        )

    def find(
        self, name: str, timeout_seconds: float, *, created_after: float
    ) -> ProviderBatch | None:
        known = [
            batch.description
            for batch in self.batches.values()
            if batch.description.name == name
            and created_after <= batch.description.created_at <= self.now() - self.list_lag_seconds
        ]
        return known[-1] if known else None

    def status(self, batch_id: str, timeout_seconds: float) -> ProviderBatch:
        if batch_id not in self.batches:
            raise CallFailed(Outcome.BAD_REQUEST, "no such batch")
        return self.batches[batch_id].description

    def results(
        self,
        batch: ProviderBatch,
        plan_of: Callable[[str], CallPlan | None],
        timeout_seconds: float,
        *,
        position: str = "",
        pass_over: bool = False,
    ) -> Iterator[BatchAnswer]:
        assert batch.id not in self.deleted
        answers = self.batches[batch.id].answers
        for number in range(int(position or 0), len(answers)):
            custom_id, outcome = answers[number]
            if pass_over:
                pass_over = False
                yield passed_over(str(number + 1))
                continue
            assert custom_id is None or plan_of(custom_id) is not None
            yield BatchAnswer(custom_id, outcome, str(number + 1))

    def cancel(self, batch_id: str, timeout_seconds: float) -> None:
        self.cancelled.append(batch_id)

    def delete_files(self, batch: ProviderBatch, timeout_seconds: float) -> None:
        self.deleted.append(batch.id)


@dataclass
class FixedSecret:
    value: EndpointsSecret
    refreshed: int = 0

    def endpoints(self) -> EndpointsSecret:
        return self.value

    def refresh(self) -> None:
        self.refreshed += 1


def endpoints_secret(*names: str) -> EndpointsSecret:
    """Endpoints of one tier each, in that order."""
    return EndpointsSecret(
        endpoints=tuple(
            Endpoint.model_validate(
                {
                    "name": name,
                    "provider": "openai",
                    "tier": tier,
                    "api_keys": [f"key-of-{name}"],
                    "model": "gpt-image-1.5",
                }
            )
            for tier, name in enumerate(names, 1)
        )
    )


class BatchHarness(EditorHarness):
    """Jobs with mode=batch; every port's call is a step of the worker that makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = FakeBatchLedger(self.ledger)
        self.states = InMemoryEndpointStates()
        self.secret = FixedSecret(endpoints_secret("openai-main"))
        self.providers: dict[str, FakeBatchProvider] = {}
        self.continued: list[str] = []
        self.numbers = itertools.count(1)

    @property
    def provider(self) -> FakeBatchProvider:
        return self.provider_of("openai-main")

    def provider_of(self, name: str) -> FakeBatchProvider:
        return self.providers.setdefault(name, FakeBatchProvider(self.clock.now))

    def port_of(self, name: str) -> BatchProvider:
        return self.provider_of(name)

    def upload_rows(self, *instructions: str, number: int = 1, **options: Any) -> Self:
        """An upload that is split: its rows' messages are in the queue of batches."""
        self.upload(number, queued=len(instructions), **({"mode": "batch"} | options))
        self.batch_queue.send(
            [
                row_message(self.run.run, f"{row:06d}", instruction=instruction)
                for row, instruction in enumerate(instructions)
            ]
        )
        return self

    # -- processes: each call makes a new one, with nothing in memory

    def endpoints(self) -> BatchEndpoints:
        return BatchEndpoints(
            secret_source=self.secret,
            states=StateCache(self.states, self.clock, self.telemetry),
            provider_of=lambda e, _: cast(
                "BatchProvider", Stepped(self.port_of(e.name), "provider", local=_LOCAL)
            ),
            clock=self.clock,
            telemetry=self.telemetry,
            rng=random.Random(1),
        )

    def _parts(self) -> dict[str, Any]:
        rows = cast("RowLedger", Stepped(self.ledger, "ledger"))
        runs = CurrentRuns(self.ledger, self.clock)
        return {
            "rows": rows,
            "runs": runs,
            "waits": JobWaits(
                runs, self.ledger, self.progress_requests.append, self.clock, self.telemetry
            ),
            "images": ImageStorage(
                cast("Any", Stepped(self.store, "store")), rows, self.clock, self.telemetry
            ),
            "clock": self.clock,
            "telemetry": self.telemetry,
        }

    def _worker(self, parts: dict[str, Any], endpoints: BatchEndpoints) -> RowSubmitter:
        batch_queue = cast("RowQueue", Stepped(self.batch_queue, "batch_queue"))
        live_queue = cast("RowQueue", Stepped(self.queue, "queue"))
        common = dict(parts) | {
            "queue": batch_queue,
            "fetcher": self.fetcher,
            "rng": lambda: 0.5,
            "endpoints": endpoints,
            "live_queue": live_queue,
        }
        drafts = Drafts(
            ledger=cast("BatchLedger", Stepped(self.batches, "batches")),
            endpoints=endpoints,
            clock=self.clock,
            telemetry=self.telemetry,
            new_name=lambda: f"darkroom-{next(self.numbers)}",
        )
        return RowSubmitter(**common, drafts=drafts)

    def _returns(self, parts: dict[str, Any], worker: RowSubmitter) -> RowReturns:
        return RowReturns(parts["rows"], parts["runs"], worker, worker.live_queue, worker.queue)

    def _completion(self) -> Completion:
        return Completion(self.ledger, self.report_requests.append, self.telemetry)

    def submit(self, batch: Sequence[Received], deadline_seconds: float = 870.0) -> list[str]:
        """One invocation of the submitter."""
        parts, endpoints = self._parts(), self.endpoints()
        worker = self._worker(parts, endpoints)
        submitter = Submitter(
            worker=worker,
            drafts=worker.drafts,
            endpoints=endpoints,
            returns=self._returns(parts, worker),
            rows=parts["rows"],
            runs=parts["runs"],
            waits=parts["waits"],
            queue=worker.queue,
            completion=self._completion(),
            clock=self.clock,
            telemetry=self.telemetry,
        )
        deadline, number = self.clock.now() + deadline_seconds, next(self.numbers)
        return submitter.submit(batch, deadline, f"submitter-{number}")

    def collect(
        self, remaining_seconds: Callable[[], float] = lambda: 900.0, only: str | None = None
    ) -> None:
        """One invocation of the collector."""
        parts, endpoints = self._parts(), self.endpoints()
        worker = self._worker(parts, endpoints)
        Collector(
            batches=cast("BatchLedger", Stepped(self.batches, "batches")),
            rows=parts["rows"],
            runs=parts["runs"],
            waits=parts["waits"],
            endpoints=endpoints,
            images=parts["images"],
            worker=worker,
            returns=self._returns(parts, worker),
            completion=self._completion(),
            clock=self.clock,
            telemetry=self.telemetry,
            continue_later=self.continued.append,
            on_unknown_outcome=self.on_unknown_outcome,
        ).collect(f"collector-{next(self.numbers)}", remaining_seconds, only)

    # -- the queues and the event sources

    def receive(self, limit: int = 10) -> Sequence[Received]:
        """Messages of the queue of batches, as the submitter's event source delivers them."""
        return self.batch_queue.receive(limit, hide_seconds=960, wait_seconds=0)

    def receive_many(self, limit: int) -> list[Received]:
        """As with a batching window: more messages than a request to the queue returns."""
        received = list[Received]()
        while len(received) < limit and (more := self.receive(limit - len(received))):
            received += more
        return received

    def deliver(self) -> None:
        """Have the submitter process the visible messages, to the end."""
        while batch := self.receive():
            kept = self.submit(batch)
            self.delete(batch, kept)

    def delete(self, batch: Sequence[Received], kept: Sequence[str]) -> None:
        self.batch_queue.delete([r.receipt for r in batch if r.message_id not in kept])

    def edit_live(self) -> list[RowMessage]:
        """Have the editor handle the rows in its queue. The messages of those that it called for.

        Each call gives an image. Rows of a stopped job end without one.
        """
        called = list[RowMessage]()
        while batch := self.queue.receive(10, hide_seconds=90, wait_seconds=0):
            for received in batch:
                message = RowMessage.model_validate_json(received.body)
                self.dispatcher.during_call = partial(called.append, message)
                returned = self.handle(image(2 * PRICE), message=message)
                if returned is None:
                    self.queue.delete([received.receipt])
                else:
                    self.queue.extend([received.receipt], int(returned.seconds))
        return called

    def end_batches(self, answer: Callable[[str], Answer] = lambda _: image()) -> None:
        for provider in self.providers.values():
            for batch in provider.batches.values():
                if not batch.description.status.ended:
                    provider.end(batch.description.id, answer)
