"""Scripted providers, a secret in memory and a plain context, for tests of the dispatcher."""

import json
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.endpoints import Endpoint, EndpointsSecret, parse_endpoints
from darkroom.errors import Ineligible
from darkroom.ports import Clock
from darkroom.providers.registry import Provider

PICTURE = EditResult(images=(b"png",), model="m")


def secret(*endpoints: dict[str, object]) -> EndpointsSecret:
    """Endpoints with the defaults of the tests: one key, no limits, no waiting, no retries."""
    plain = {
        "api_keys": ["key-1"],
        "requests_per_minute": 0,
        "max_in_flight": 0,
        "max_retries": 0,
        "timeout_seconds": 60,
    }
    return parse_endpoints(json.dumps({"endpoints": [plain | e for e in endpoints]}))


def gemini(name: str = "gemini", **fields: Any) -> dict[str, object]:
    return {"name": name, "provider": "gemini", **fields}


def openai(name: str = "openai", **fields: Any) -> dict[str, object]:
    return {"name": name, "provider": "openai", **fields}


@dataclass
class FakeSecretSource:
    """Implements ports.SecretSource. `after_refresh`, when set, is what a refresh finds."""

    current: EndpointsSecret
    after_refresh: EndpointsSecret | None = None
    refreshed: int = 0

    def endpoints(self) -> EndpointsSecret:
        return self.current

    def refresh(self) -> None:
        self.refreshed += 1
        self.current = self.after_refresh or self.current


@dataclass(frozen=True)
class Call:
    endpoint: str
    key: str
    at: float


type Answer = EditResult | CallFailed | Outcome | Callable[[Call], "EditResult | CallFailed"]


@dataclass
class ScriptedEditor:
    """Implements ports.ImageEditor: answers from a script per endpoint, then with a picture."""

    clock: Clock
    latency: float = 0.0
    scripts: dict[str, deque[Answer]] = field(default_factory=lambda: defaultdict(deque))
    always: dict[str, Answer] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def script(self, endpoint: str, *answers: Answer) -> "ScriptedEditor":
        self.scripts[endpoint].extend(answers)
        return self

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
        answer = script.popleft() if script else self.always.get(endpoint.name, PICTURE)
        if isinstance(answer, Outcome):
            answer = CallFailed(answer, f"scripted {answer}")
        if not isinstance(answer, EditResult | CallFailed):
            answer = answer(call)
        if isinstance(answer, CallFailed):
            raise answer
        return answer


@dataclass
class PlainErrand:
    """A CallContext for any endpoint but the `unfit` ones; `refuse` is raised before a call."""

    unfit: dict[str, str] = field(default_factory=dict)
    refuse: BaseException | None = None
    refuse_after: BaseException | None = None
    events: list[tuple[str, str]] = field(default_factory=list)

    def plan(self, endpoint: Endpoint) -> CallPlan:
        self.events.append(("plan", endpoint.name))
        if endpoint.name in self.unfit:
            raise Ineligible(self.unfit[endpoint.name])
        return CallPlan(endpoint.provider, endpoint.model, "make it red")

    def before_call(self, endpoint: Endpoint, plan: CallPlan) -> None:
        self.events.append(("before", endpoint.name))
        if self.refuse is not None:
            raise self.refuse

    def after_call(
        self, endpoint: Endpoint, plan: CallPlan, outcome: EditResult | CallFailed
    ) -> None:
        told = outcome.outcome.value if isinstance(outcome, CallFailed) else "succeeded"
        self.events.append((told, endpoint.name))
        if self.refuse_after is not None:
            raise self.refuse_after


def both(editor: ScriptedEditor) -> dict[Provider, ScriptedEditor]:
    return {Provider.GEMINI: editor, Provider.OPENAI: editor}
