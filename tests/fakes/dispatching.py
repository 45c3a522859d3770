"""The dispatch harness: scripted providers, a secret and endpoint state in memory."""

import json
import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.dispatch.dispatcher import TieredDispatcher
from darkroom.endpoint_state import EndpointState
from darkroom.endpoints import Endpoint, EndpointsSecret, parse_endpoints
from darkroom.errors import Ineligible
from darkroom.ports import Clock, DispatchResult, ImageEditor
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
    return parse_endpoints(json.dumps({"endpoints": [defaults | e for e in endpoints]}))


def gemini(name: str = "gemini", **fields: Any) -> dict[str, object]:
    return {"name": name, "provider": "gemini", **fields}


def openai(name: str = "openai", **fields: Any) -> dict[str, object]:
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


type Response = EditResult | CallFailed | Outcome | Callable[[Call], "EditResult | CallFailed"]


@dataclass
class ScriptedEditor:
    """Implements ports.ImageEditor: responds from a script per endpoint, then with an image."""

    clock: Clock
    latency: float = 0.0
    scripts: dict[str, deque[Response]] = field(default_factory=lambda: defaultdict(deque))
    always: dict[str, Response] = field(default_factory=dict)
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
        response = script.popleft() if script else self.always.get(endpoint.name, IMAGE)
        if isinstance(response, Outcome):
            response = CallFailed(response, f"scripted {response}")
        if not isinstance(response, EditResult | CallFailed):
            response = response(call)
        if isinstance(response, CallFailed):
            raise response
        return response


@dataclass
class FakeCallContext:
    """A CallContext for any endpoint except the `ineligible` ones; records the events in order."""

    ineligible: dict[str, str] = field(default_factory=dict)  # endpoint: why
    raises_before: BaseException | None = None
    raises_after: BaseException | None = None
    events: list[tuple[str, str]] = field(default_factory=list)

    def plan(self, endpoint: Endpoint) -> CallPlan:
        self.events.append(("plan", endpoint.name))
        if endpoint.name in self.ineligible:
            raise Ineligible(self.ineligible[endpoint.name])
        return CallPlan(endpoint.provider, endpoint.model, "make it red")

    def before_call(self, endpoint: Endpoint, plan: CallPlan) -> None:
        self.events.append(("before", endpoint.name))
        if self.raises_before is not None:
            raise self.raises_before

    def after_call(
        self, endpoint: Endpoint, plan: CallPlan, outcome: EditResult | CallFailed
    ) -> None:
        result = outcome.outcome.value if isinstance(outcome, CallFailed) else "succeeded"
        self.events.append((result, endpoint.name))
        if self.raises_after is not None:
            raise self.raises_after


class DispatchHarness:
    """Workers that share a secret, endpoint state and telemetry; one worker exists already."""

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
    ) -> TieredDispatcher:
        """Another worker, whose cache of endpoint state is empty."""
        return TieredDispatcher(
            self.secret_source,
            self.states,
            editor_of or (lambda _: self.editor),
            clock or self.clock,
            rng or random.Random(7),
            self.telemetry,
        )

    def dispatch(
        self,
        context: FakeCallContext | None = None,
        *,
        worker: TieredDispatcher | None = None,
        seconds: float = 900.0,
    ) -> DispatchResult:
        deadline = self.clock.now() + seconds
        return (worker or self.first_worker).dispatch(context or FakeCallContext(), deadline)

    def failure[E: BaseException](
        self, error: type[E], context: FakeCallContext | None = None, *, seconds: float = 900.0
    ) -> E:
        """The error that a dispatch raises."""
        with pytest.raises(error) as caught:
            self.dispatch(context, seconds=seconds)
        return caught.value

    def state(self, endpoint: str) -> EndpointState:
        return self.states.items[endpoint]
