"""Chooses the endpoint for a row's request in a batch, by tier and weight as for a call.

A batch takes no slot: providers limit batches apart from calls. Rejected keys and open breakers of
an endpoint count all the same. What only its batches fail for, such as a limit on requests that
wait in batches, is kept beside it, as the state of an endpoint named `<name>#batch`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

from pydantic import SecretStr

from darkroom.batches.provider_batch import BatchGroup
from darkroom.calls import CallFailed, CallPlan
from darkroom.dispatch import circuit_breaker
from darkroom.dispatch.outages import Outage, describe_outages, outage_of
from darkroom.dispatch.state_cache import Availability, StateCache
from darkroom.endpoint_state import (
    SECOND,
    EndpointState,
    KeyCooldown,
    RejectionReason,
    StatesUnavailable,
)
from darkroom.endpoints import Endpoint
from darkroom.errors import (
    ConfigurationError,
    DeferRow,
    Ineligible,
    Reason,
    ServiceUnavailable,
    Waiting,
)
from darkroom.metrics import Metric
from darkroom.ports import BatchProvider, Clock, SecretSource, Telemetry
from darkroom.retry import backoff

PAUSE_SECONDS = 600.0  # of an endpoint's batches after a failure; doubles with each
MAX_PAUSE_SECONDS = 4 * 3600.0
KEY_COOLDOWN_SECONDS = 600.0
STATE_AGE = 15 * SECOND
DEFER_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class BatchAccess:
    """An endpoint's batch interface, with the key that it is used with."""

    endpoint: Endpoint
    key_id: str
    provider: BatchProvider


@dataclass(frozen=True, slots=True)
class Choice:
    """The endpoint for a row, and its request fitted to it."""

    access: BatchAccess
    plan: CallPlan
    group: BatchGroup
    fallback: bool  # an endpoint of an earlier tier was out of service


@dataclass(frozen=True, slots=True)
class BatchEndpoints:
    """One per process. `provider_of` gives an endpoint's batch interface for one of its keys."""

    secret_source: SecretSource
    states: StateCache
    provider_of: Callable[[Endpoint, SecretStr], BatchProvider]
    clock: Clock
    telemetry: Telemetry
    rng: random.Random
    _order: dict[str, float] = field(default_factory=dict)
    _known: dict[tuple[str, str], BatchAccess] = field(default_factory=dict)

    def draw(self) -> None:
        """Draw which endpoint of a tier comes first, for the rows of one invocation.

        They go to one endpoint then, instead of many small batches.
        """
        self._order.clear()

    def choose(self, plan_for: Callable[[Endpoint], CallPlan]) -> Choice:
        """The first endpoint that takes the row.

        Raises Ineligible (no endpoint can take it in a batch), DeferRow (none of those that can
        takes batches now), ServiceUnavailable, and what `plan_for` raises.
        """
        why, outages = dict[str, str](), list[Outage]()
        for endpoint in self._in_order():
            try:
                plan = plan_for(endpoint)  # also if it is out of service: a later one is a fallback
                access = self._access(endpoint)
                if not isinstance(access, BatchAccess):
                    outages.append(access)
                    continue
                group = access.provider.group(plan)
            except Ineligible as reason:
                why[endpoint.name] = str(reason)
            else:
                return Choice(access, plan, group, fallback=bool(outages))
        if outages:
            raise self._deferral(outages)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(why.items()))
        raise Ineligible(f"no endpoint can take this row in a batch: {reasons}")

    def check_in_service(self) -> None:
        """Raises DeferRow when no endpoint takes batches now, whatever the row; ServiceUnavailable.

        So no row is claimed and no image loaded in vain.
        """
        found = [self._access(endpoint) for endpoint in self._in_order()]
        outages = [outage for outage in found if not isinstance(outage, BatchAccess)]
        if len(outages) == len(found):
            raise self._deferral(outages)

    def _deferral(self, outages: Sequence[Outage]) -> DeferRow:
        detail = describe_outages(outages)
        waiting = Waiting(outages[0].reason, detail, self.clock.now())
        return DeferRow(detail, delay_seconds=DEFER_SECONDS, waiting=waiting)

    def of_batch(self, name: str, key_id: str) -> BatchAccess:
        """Access to a batch that was made with that key, or with another one of the endpoint.

        Raises ConfigurationError when the endpoint is not in the secret any more.
        """
        found = next((e for e in self.secret_source.endpoints().endpoints if e.name == name), None)
        if found is None:
            raise ConfigurationError(
                f"endpoint {name} has a batch under way, and is not in the endpoints secret any "
                "more: put it back with `darkroom endpoints push`; weight 0 keeps new rows from it"
            )
        keys = found.key_ids()
        try:
            usable = self._usable_keys(found) or list(keys)
        except StatesUnavailable as error:
            raise ServiceUnavailable(str(error)) from error
        chosen = key_id if key_id in usable else usable[0]
        return self._with_key(found, chosen)

    def succeeded(self, endpoint: str) -> None:
        """A batch was accepted."""
        name, now = _batch_state(endpoint), self.states.now()
        if self.states.state(name).breaker_open:
            self.states.report(name, lambda state: circuit_breaker.closed(state, now))

    def failed(self, access: BatchAccess, failure: CallFailed) -> None:
        """A request about batches failed: pause the endpoint's batches, or put the key aside."""
        endpoint, now = access.endpoint, self.states.now()
        fields = {"endpoint": endpoint.name, "outcome": failure.outcome.value}
        self.telemetry.warning("batch_request_failed", detail=failure.detail, **fields)
        rejected = failure.reason in (Reason.KEY_REJECTED, Reason.QUOTA_SPENT)
        if not rejected:
            self.states.report(_batch_state(endpoint.name), partial(_paused, failure, now))
            return
        seconds = max(failure.retry_after_seconds or 0.0, KEY_COOLDOWN_SECONDS)
        cooldown = KeyCooldown(now + int(seconds * SECOND), failure.outcome, failure.detail[:300])
        self.telemetry.metric(Metric.KEY_REJECTED, endpoint=endpoint.name)
        self.secret_source.refresh()  # it may have been corrected already

        def cooled(state: EndpointState) -> EndpointState:
            cooldowns = {i: c for i, c in state.key_cooldowns.items() if c.until > now}
            return replace(state, key_cooldowns=cooldowns | {access.key_id: cooldown})

        self.states.report(endpoint.name, cooled)

    def _in_order(self) -> Sequence[Endpoint]:
        """By tier; within one, as drawn by weight. Raises DeferRow if the secret is unusable."""
        try:
            in_use = [e for e in self.secret_source.endpoints().endpoints if e.weight]
        except ConfigurationError as error:
            raise self._deferral([Outage(Reason.NO_ENDPOINT, str(error))]) from error
        if not in_use:
            detail = "every endpoint is drained: it has weight 0"
            raise self._deferral([Outage(Reason.NO_ENDPOINT, detail)])
        for endpoint in in_use:  # a weighted order without replacement
            if endpoint.name not in self._order:
                self._order[endpoint.name] = self.rng.random() ** (1 / endpoint.weight)
        tiers = groupby(sorted(in_use, key=lambda e: e.tier), key=lambda e: e.tier)
        return [
            endpoint
            for _, tier in tiers
            for endpoint in sorted(tier, key=lambda e: -self._order[e.name])
        ]

    def _access(self, endpoint: Endpoint) -> BatchAccess | Outage:
        """Access, or why there is none now."""
        now = self.states.now()
        try:
            own = self.states.fresh(endpoint.name, STATE_AGE)
            batches = self.states.fresh(_batch_state(endpoint.name), STATE_AGE)
            usable = self._usable_keys(endpoint)
        except StatesUnavailable as error:
            raise ServiceUnavailable(str(error)) from error
        if not usable:
            until = min(own.key_cooldowns[i].until for i in endpoint.key_ids())
            keys = Availability(until, RejectionReason.KEYS)
            return outage_of(endpoint, own, keys, now)
        for state in (own, batches):
            if circuit_breaker.is_open(state, now):
                closed = Availability(state.breaker_until, RejectionReason.BREAKER)
                return outage_of(endpoint, state, closed, now)
        return self._with_key(endpoint, usable[0])

    def _with_key(self, endpoint: Endpoint, key_id: str) -> BatchAccess:
        known = self._known.get((endpoint.name, key_id))
        if known is None or known.endpoint != endpoint:
            provider = self.provider_of(endpoint, endpoint.key_ids()[key_id])
            known = BatchAccess(endpoint, key_id, provider)
            self._known[endpoint.name, key_id] = known
        return known

    def _usable_keys(self, endpoint: Endpoint) -> list[str]:
        cooldowns = self.states.fresh(endpoint.name, STATE_AGE).key_cooldowns
        return circuit_breaker.usable_keys(endpoint.key_ids(), cooldowns, self.states.now())


def _batch_state(endpoint: str) -> str:
    """No endpoint has such a name."""
    return f"{endpoint}#batch"


def _paused(failure: CallFailed, now: int, state: EndpointState) -> EndpointState:
    if state.breaker_open and state.breaker_until > now:
        return state
    pause = backoff(state.opens + 1, PAUSE_SECONDS, MAX_PAUSE_SECONDS)
    until = now + int(max(pause, failure.retry_after_seconds or 0.0) * SECOND)
    return replace(
        state,
        breaker_open=True,
        breaker_until=until,
        opens=state.opens + 1,
        cause=f"its batches: {failure.detail}"[:300],
    )
