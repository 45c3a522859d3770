"""The dispatch harness: scripted providers, a secret and endpoint state in memory."""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.dispatch.dispatcher import TieredDispatcher
from darkroom.endpoint_state import EndpointState
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.errors import DeferRow, Ineligible
from darkroom.ports import Clock, DispatchResult, EndpointStates, ImageEditor, SecretSource
from darkroom.providers.registry import Provider
from tests.fakes.endpoint_states import InMemoryEndpointStates
from tests.fakes.services import FakeClock, FakeTelemetry
from tests.fakes.virtual_time import START

IMAGE = EditResult(images=(b"png",), model="m")


def secret(*endpoints: dict[str, object]) -> EndpointsSecret:
    """Endpoints with the tests' defaults: one key, no limits, no retries."""
    defaults = {
        "api_keys": ["key-1"],
        "requests_per_minute": 0,
        "max_in_flight": 0,
        "max_retries": 0,
        "timeout_seconds": 60,
    }
    return EndpointsSecret.model_validate({"endpoints": [defaults | e for e in endpoints]})


def gemini(name: str = "gemini", **fields: object) -> dict[str, object]:
    return {"name": name, "provider": "gemini", **fields}


def openai(name: str = "openai", **fields: object) -> dict[str, object]:
    return {"name": name, "provider": "openai", **fields}


@dataclass
class FakeSecretSource:
    """Implements ports.SecretSource. `after_refresh`, when set, is the secret after a refresh."""

    current: EndpointsSecret
    after_refresh: EndpointsSecret | None = None

    def endpoints(self) -> EndpointsSecret:
        return self.current

    def refresh(self) -> None:
        self.current = self.after_refresh or self.current


@dataclass(frozen=True)
class Call:
    endpoint: str
    key: str
    at: float


type Response = EditResult | BaseException | Outcome


@dataclass
class ScriptedEditor:
    """Implements ports.ImageEditor: responds from a script per endpoint, then with an image."""

    clock: Clock
    latency: float = 0.0
    scripts: dict[str, list[Response]] = field(default_factory=lambda: defaultdict(list))
    always: dict[str, Response | Callable[[Call], Response]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def script(self, endpoint: str, *responses: Response) -> None:
        self.scripts[endpoint].extend(responses)

    def called(self) -> list[str]:
        return [call.endpoint for call in self.calls]

    def edit(
        self, plan: CallPlan, endpoint: Endpoint, key: SecretStr, timeout_seconds: float
    ) -> EditResult:
        call = Call(endpoint.name, key.get_secret_value(), self.clock.now())
        self.calls.append(call)
        if self.latency:
            self.clock.sleep(self.latency)
        script = self.scripts[endpoint.name]
        response = script.pop(0) if script else self.always.get(endpoint.name, IMAGE)
        if callable(response):
            response = response(call)
        if isinstance(response, Outcome):
            response = CallFailed(response, f"scripted {response}")
        if isinstance(response, BaseException):
            raise response
        return response


@dataclass
class FakeCallContext:
    """A CallContext that records its events in order, and `raises` "before" or "after" a call."""

    ineligible: dict[str, str] = field(default_factory=dict)  # endpoint: why
    raises: dict[str, BaseException] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    model: str | None = None  # that the row names
    n: int = 1
    during_before_call: Callable[[], object] = lambda: None

    def adapted(self, endpoint: Endpoint) -> Endpoint:
        return endpoint

    def plan(self, endpoint: Endpoint) -> CallPlan:
        self.events.append(f"plan {endpoint.name}")
        if endpoint.name in self.ineligible:
            raise Ineligible(self.ineligible[endpoint.name])
        return CallPlan(
            endpoint.provider,
            self.model or endpoint.model,
            "make it red",
            n=self.n,
            model_of_row=self.model is not None,
        )

    def before_call(self, endpoint: Endpoint, plan: CallPlan) -> None:
        self.events.append(f"before {endpoint.name}")
        self.during_before_call()
        if "before" in self.raises:
            raise self.raises["before"]

    def cancel_call(self) -> None:
        self.events.append("cancelled")

    def after_call(self, outcome: EditResult | CallFailed) -> None:
        self.events.append(outcome.outcome if isinstance(outcome, CallFailed) else "succeeded")
        if "after" in self.raises:
            raise self.raises["after"]


class DispatchHarness:
    """Workers that share a secret, endpoint state and telemetry."""

    def __init__(self, *endpoints: dict[str, object]) -> None:
        self.clock = FakeClock(START)
        self.telemetry = FakeTelemetry()
        self.states = InMemoryEndpointStates()
        self.secret_source = FakeSecretSource(secret(*endpoints))
        self.editor = ScriptedEditor(self.clock, latency=2.0)
        self.first_worker = self.worker()

    def worker(
        self,
        editor_of: Callable[[Provider], ImageEditor] | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        states: EndpointStates | None = None,
        secret_source: SecretSource | None = None,
    ) -> TieredDispatcher:
        """A new worker, whose cache of endpoint state is empty."""
        return TieredDispatcher(
            secret_source or self.secret_source,
            states or self.states,
            editor_of or (lambda _: self.editor),
            clock or self.clock,
            rng or random.Random(7),
            self.telemetry,
        )

    def workers(self, count: int) -> list[TieredDispatcher]:
        return [self.worker() for _ in range(count)]

    def dispatch(
        self,
        context: FakeCallContext | None = None,
        *,
        worker: TieredDispatcher | None = None,
        seconds: float = 900.0,
    ) -> DispatchResult:
        deadline = self.clock.now() + seconds
        return (worker or self.first_worker).dispatch(context or FakeCallContext(), deadline)

    def dispatch_until_done(
        self, context: FakeCallContext | None = None, *, worker: TieredDispatcher | None = None
    ) -> DispatchResult:
        """Dispatch again after each deferral, as the queue does."""
        while True:
            try:
                return self.dispatch(context, worker=worker)
            except DeferRow as deferred:
                self.clock.sleep(deferred.delay_seconds)

    def endpoints_used(self, rows: int, *workers: TieredDispatcher) -> list[str]:
        """The endpoints that edited so many rows, dispatched by the workers in turn."""
        turns = itertools.islice(itertools.cycle(workers or [self.first_worker]), rows)
        return [self.dispatch(worker=worker).endpoint.name for worker in turns]

    def failure[E: BaseException](
        self, error: type[E], context: FakeCallContext | None = None, *, seconds: float = 900.0
    ) -> E:
        """The error that a dispatch raises."""
        with pytest.raises(error) as caught:
            self.dispatch(context, seconds=seconds)
        return caught.value

    def state(self, endpoint: str) -> EndpointState:
        return self.states.items[endpoint]
