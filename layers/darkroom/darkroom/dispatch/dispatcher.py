"""Dispatches one row: which endpoint it is sent to, its retries, and the fallback.

Per endpoint: the first call and `max_retries` more, with backoff; then the next endpoint of the
tier; then the next tier. Only transient failures and rejected keys move on to another endpoint. A
failure that is the row's own ends it at once. An endpoint that is out of service (breaker open, all
keys cooling down, daily limit reached) is skipped without a call; one that is merely busy is waited
for, a short time in the worker and otherwise in the queue.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome, timeout_of_call
from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.dispatch.outages import (
    cooldown_outcome,
    describe_outages,
    fallback_cause,
    outage_of,
)
from darkroom.dispatch.outcomes import OutcomeRecorder
from darkroom.dispatch.selector import NoSlot, Permit, Selector
from darkroom.dispatch.state_cache import Availability, Candidate, StateCache
from darkroom.endpoint_state import SECOND, RejectionReason, StatesUnavailable
from darkroom.endpoints import (
    AFTER_CALL_SECONDS,
    BEFORE_CALL_SECONDS,
    SLOT_WAIT_SECONDS,
    WORKER_SECONDS,
    Endpoint,
)
from darkroom.errors import (
    ConfigurationError,
    DeferRow,
    Ineligible,
    Reason,
    RetryRow,
    RowRejected,
    ServiceUnavailable,
    Waiting,
)
from darkroom.ports import (
    CallContext,
    Clock,
    DispatchResult,
    EndpointStates,
    ImageEditor,
    Readiness,
    SecretSource,
    Telemetry,
)
from darkroom.providers.registry import Provider
from darkroom.retry import JITTER, backoff, with_jitter

RETRY_ROW_SECONDS = 30.0
MAX_DEFER_SECONDS = 60.0  # so that a corrected secret is used by then
# For the slot of a first call. Rows are taken when a slot is near, so only one that lost the race
# for it waits for long; to return it would waste its claim and its loaded images.
FIRST_CALL_WAIT_SECONDS = 120.0
READINESS_AGE = 2 * SECOND  # of the states that readiness is judged by


@dataclass(slots=True)
class _Attempt:
    """The progress of one row's dispatch. Endpoints are given by name."""

    context: CallContext
    deadline: float
    first_latest: int  # the latest slot of the row's first call, unless there is less time
    calls: int = 0
    slot_wait_ms: int = 0
    failures: list[tuple[Endpoint, CallFailed]] = field(default_factory=list)
    transient: Counter[str] = field(default_factory=Counter)
    rejected_keys: Counter[str] = field(default_factory=Counter)
    retrying: str | None = None  # the endpoint that the next call goes to
    exhausted: set[str] = field(default_factory=set)  # no retries left
    plans: dict[str, tuple[Endpoint, CallPlan, Candidate]] = field(default_factory=dict)
    ineligible: dict[str, str] = field(default_factory=dict)  # and why
    repeated: set[str] = field(default_factory=set)  # after a failure that may be by chance
    without_editor: set[str] = field(default_factory=set)
    out_of_service: dict[str, Availability] = field(default_factory=dict)


class TieredDispatcher:
    """Implements ports.Dispatcher. One per process, shared by its threads.

    `editor_of` returns a cached editor. It is a function so that an SDK is imported only when its
    provider is first needed. A provider for which it raises KeyError is skipped with one warning.
    """

    def __init__(  # noqa: PLR0917 - wiring, made in one place
        self,
        secret_source: SecretSource,
        states: EndpointStates,
        editor_of: Callable[[Provider], ImageEditor],
        clock: Clock,
        rng: random.Random,
        telemetry: Telemetry,
    ) -> None:
        self._secret_source = secret_source
        self._editor_of = editor_of
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._state_cache = StateCache(states, clock, telemetry)
        self._selector = Selector(self._state_cache, clock, rng)
        self._outcomes = OutcomeRecorder(self._state_cache, telemetry)
        self._warned: set[str] = set()

    def readiness(self) -> Readiness:
        now = self._state_cache.now()
        try:
            tiers = self._tiers()
            available: dict[str, Availability] = {}
            for tier in tiers:
                for endpoint in tier:
                    self._state_cache.recent(endpoint.name, READINESS_AGE)
                    limits = rate_limiter.limits_of(endpoint)
                    candidate = Candidate(endpoint, limits, endpoint.timeout_seconds)
                    available[endpoint.name] = self._state_cache.availability(candidate, now)
                serving = [e for e in tier if not available[e.name].out_of_service]
                if serving:
                    soonest = min(available[e.name].available_at for e in serving)
                    in_use = [self._places_in_use(e) for e in serving]
                    free = sum(
                        max(0, e.max_in_flight - n) if e.max_in_flight else math.inf
                        for e, n in zip(serving, in_use, strict=True)
                    )
                    lead = self._state_cache.lead_of_reservation()
                    readiness = _readiness(tiers, soonest - lead)
                    return replace(readiness, free_places=free, places_in_use=sum(in_use))
        except ConfigurationError as error:
            return Readiness(self._clock.now() + MAX_DEFER_SECONDS, self._unusable(str(error)))
        except StatesUnavailable as error:
            raise ServiceUnavailable(str(error)) from error
        soonest = min(a.available_at for a in available.values())
        start_at = min(soonest, now + int(MAX_DEFER_SECONDS * SECOND))
        return _readiness(tiers, start_at, self._waiting(available))

    def _places_in_use(self, endpoint: Endpoint) -> int:
        leases, now = self._state_cache.state(endpoint.name).leases, self._state_cache.now()
        return sum(until > now for until in leases.values())

    def dispatch(self, context: CallContext, deadline: float) -> DispatchResult:
        soon = self._state_cache.now() + int(FIRST_CALL_WAIT_SECONDS * SECOND)
        attempt = _Attempt(context, deadline, soon)
        try:
            tiers = self._tiers()
            if len(tiers) == 1:
                providers = ", ".join(sorted({e.provider.value for e in tiers[0]}))
                self._warn_once("no_fallback", detail=f"only one tier is configured ({providers})")
            for tier in tiers:
                result = self._try_tier(attempt, tier[0].tier)
                if result is not None:
                    return result
            raise self._conclusion(attempt)
        except ConfigurationError as error:
            waiting = self._unusable(str(error))
            raise self._deferral(waiting.detail, MAX_DEFER_SECONDS, waiting) from error
        except StatesUnavailable as error:
            raise self._deferral(str(error), RETRY_ROW_SECONDS) from error

    def _tiers(self) -> list[tuple[Endpoint, ...]]:
        """The endpoints in use. Raises ConfigurationError if there are none."""
        tiers = [
            tuple(e for e in tier if e.weight) for tier in self._secret_source.endpoints().tiers()
        ]
        in_use = [tier for tier in tiers if tier]
        if not in_use:
            raise ConfigurationError("every endpoint is drained: it has weight 0")
        return in_use

    # One tier, one endpoint, one call

    def _try_tier(self, attempt: _Attempt, number: int) -> DispatchResult | None:
        """None when no endpoint of the tier can take the row now."""
        while candidates := self._candidates(attempt, number):
            retrying = [c for c in candidates if c.name == attempt.retrying]
            latest = {c.name: self._latest_slot(attempt, c.endpoint) for c in candidates}
            permit = self._selector.acquire(retrying or candidates, latest)
            if isinstance(permit, NoSlot):
                out = {n: a for n, a in permit.available.items() if a.out_of_service}
                attempt.out_of_service |= out
                if not permit.out_of_service:
                    raise self._busy(permit)
                if not retrying:
                    return None
                attempt.exhausted.add(retrying[0].name)
                continue
            outcome = self._call(attempt, permit)
            if isinstance(outcome, DispatchResult):
                return outcome
            if outcome is not None:
                name = permit.endpoint.name
                again = self._retry_here(attempt, permit.endpoint, outcome)
                attempt.retrying = name if again else None
                if not again:
                    attempt.exhausted.add(name)
        return None

    def _candidates(self, attempt: _Attempt, number: int) -> list[Candidate]:
        """Of the tier as the secret is now: a row may have waited while it was changed."""
        in_use = [e for tier in self._tiers() for e in tier if e.tier == number]
        tier = [attempt.context.adapted(endpoint) for endpoint in in_use]
        found = (self._candidate(attempt, e) for e in tier if e.name not in attempt.exhausted)
        return [candidate for candidate in found if candidate is not None]

    def _candidate(self, attempt: _Attempt, endpoint: Endpoint) -> Candidate | None:
        """None when the endpoint cannot honour the row."""
        name = endpoint.name
        if name in attempt.without_editor or name in attempt.ineligible:
            return None
        if name in attempt.plans and attempt.plans[name][0] == endpoint:
            return attempt.plans[name][2]
        try:
            self._editor_of(endpoint.provider)
        except KeyError:
            self._warn_once("provider_missing", provider=endpoint.provider.value)
            attempt.without_editor.add(name)
            return None
        try:
            plan = attempt.context.plan(endpoint)
            limits = rate_limiter.limits_of(endpoint, plan)
            candidate = Candidate(endpoint, limits, timeout_of_call(plan, endpoint))
        except Ineligible as reason:
            attempt.ineligible[name] = str(reason)
            return None
        attempt.plans[name] = endpoint, plan, candidate
        return candidate

    def _latest_slot(self, attempt: _Attempt, endpoint: Endpoint) -> int:
        """The latest slot that leaves time for the call, and for one at each later tier.

        Retries wait for longer than first calls, so they are not displaced by these.
        """
        later = [tier for tier in self._tiers() if tier[0].tier > endpoint.tier]
        kept = sum(max(e.timeout_seconds for e in tier) + SLOT_WAIT_SECONDS for tier in later)
        needed = attempt.plans[endpoint.name][2].timeout_seconds + AFTER_CALL_SECONDS
        if needed + kept > WORKER_SECONDS - BEFORE_CALL_SECONDS:
            kept = 0.0  # a call that may take longer than the endpoint's own time-out
        in_time = int((attempt.deadline - needed - kept) * SECOND)
        return in_time if attempt.calls else min(in_time, attempt.first_latest)

    def _retry_here(self, attempt: _Attempt, endpoint: Endpoint, failure: CallFailed) -> bool:
        """After the wait before it; False when there should be no retry at this endpoint."""
        name = endpoint.name
        if failure.too_large_for_limit:
            attempt.ineligible[name] = failure.detail
            return False
        if failure.outcome.key_at_fault:
            attempt.rejected_keys[name] += 1
            self._secret_source.refresh()  # it may have been corrected already
            return attempt.rejected_keys[name] <= len(endpoint.keys)
        if failure.outcome.row_at_fault:
            attempt.repeated.add(name)
            return True
        attempt.transient[name] += 1
        failures = attempt.transient[name]
        delay = with_jitter(backoff(failures, endpoint.retry_delay_seconds), self._rng.random)
        until = self._state_cache.now() + int(delay * SECOND)
        if failures > failure.retries(endpoint.max_retries):
            return False
        if until > self._latest_slot(attempt, endpoint):
            return False
        return self._selector.wait_until(until, lambda: self._in_service(attempt, endpoint))

    def _in_service(self, attempt: _Attempt, endpoint: Endpoint) -> bool:
        candidate, now = attempt.plans[endpoint.name][2], self._state_cache.now()
        return not self._state_cache.availability(candidate, now).out_of_service

    def _call(self, attempt: _Attempt, permit: Permit) -> DispatchResult | CallFailed | None:
        """Make one call and record its outcome; None when its slot passed before it was sent.

        Raises RowRejected when the row is to blame.
        """
        endpoint, plan = permit.endpoint, attempt.plans[permit.endpoint.name][1]
        sent = self._send(attempt, permit, plan)
        if sent is None:
            return None
        sent_at, outcome = sent
        latency_ms = round((self._clock.now() - sent_at) * 1000)
        attempt.slot_wait_ms += permit.slot_wait_ms
        try:
            attempt.context.after_call(outcome)
        finally:
            self._outcomes.record(permit, plan, outcome, int(sent_at * SECOND), latency_ms)
        if isinstance(outcome, CallFailed):
            again = outcome.retry_once and endpoint.name not in attempt.repeated
            if again or outcome.too_large_for_limit:
                return outcome
            if outcome.outcome.row_at_fault:
                raise RowRejected(
                    outcome.reason,
                    f"{endpoint.name}: {outcome.detail}",
                    provider=endpoint.provider.value,
                    endpoint=endpoint.name,
                    model=plan.model,
                ) from outcome
            attempt.failures.append((endpoint, outcome))
            return outcome
        failed = {e.tier for e, _ in attempt.failures}
        skipped = {attempt.plans[name][0].tier for name in attempt.out_of_service}
        return DispatchResult(
            result=outcome,
            plan=plan,
            endpoint=endpoint,
            fallback=any(tier < endpoint.tier for tier in failed | skipped),
            fallback_cause=self._fallback_cause(attempt, endpoint.tier),
            latency_ms=latency_ms,
            slot_wait_ms=attempt.slot_wait_ms,
            calls=attempt.calls,
            warnings=tuple(
                f"{name} was skipped: {why}" for name, why in attempt.ineligible.items()
            ),
        )

    def _send(
        self, attempt: _Attempt, permit: Permit, plan: CallPlan
    ) -> tuple[float, EditResult | CallFailed] | None:
        """(time of sending, outcome). Any other exception releases the reservation."""
        endpoint, probe = permit.endpoint, permit.reservation.probe
        try:
            since = self._state_cache.now()
            attempt.context.before_call(endpoint, plan)
            self._state_cache.took(since)
            # Only now: the ledger may have been slow, and the slot may have passed meanwhile.
            if not self._selector.confirm(permit):
                self._state_cache.release(endpoint, permit.lease, probe=probe)
                attempt.context.cancel_call()
                return None
            attempt.calls += 1
            editor, sent_at = self._editor_of(endpoint.provider), self._clock.now()
            try:
                timeout = attempt.plans[endpoint.name][2].timeout_seconds
                return sent_at, editor.edit(plan, endpoint, permit.key, timeout)
            except CallFailed as failure:
                return sent_at, _with_own_model(failure, plan)
        except BaseException:
            self._state_cache.release(endpoint, permit.lease, probe=probe)
            raise

    # When no tier could take the row

    def _conclusion(self, attempt: _Attempt) -> DeferRow | RetryRow | RowRejected:
        """An attempt is spent only on failures at endpoints that serve other rows."""
        own = [e for e, f in attempt.failures if f.outcome.transient and self._serves(attempt, e)]
        if own:
            return self._failed_attempt(attempt)
        if not attempt.failures and not attempt.out_of_service:
            return self._unplaceable(attempt)
        now = self._state_cache.now()
        available = {
            name: self._state_cache.availability(candidate, now)
            for name, (_, _, candidate) in attempt.plans.items()
            if name not in attempt.ineligible
        }
        if not all(a.out_of_service for a in available.values()):
            causes = "; ".join(f"{e.name}: {f.detail}" for e, f in attempt.failures)
            return self._deferral(causes, RETRY_ROW_SECONDS)
        waiting = self._waiting(available)
        wait = (min(a.available_at for a in available.values()) - now) / SECOND
        return self._deferral(waiting.detail, wait, waiting)

    def _serves(self, attempt: _Attempt, endpoint: Endpoint) -> bool:
        """The endpoint is in service, and only this row's calls failed there recently."""
        state = self._state_cache.state(endpoint.name)
        others = circuit_breaker.net_failures(state) - attempt.transient[endpoint.name]
        return others <= 0 and self._in_service(attempt, endpoint)

    def _failed_attempt(self, attempt: _Attempt) -> RetryRow:
        """The first tier's error, even when it was skipped because it was out of service."""
        first_tier = min(e.tier for e, _ in attempt.failures)
        called, failure = [f for f in attempt.failures if f[0].tier == first_tier][-1]
        reason, detail, reported = failure.reason, f"{called.name}: {failure.detail}", called
        for name, availability in attempt.out_of_service.items():
            skipped = attempt.plans[name][0]
            if skipped.tier < reported.tier:
                state = self._state_cache.state(name)
                outage = outage_of(skipped, state, availability, self._state_cache.now())
                reported, reason = skipped, outage.reason
                detail = f"{describe_outages([outage])}; {detail}"
        return RetryRow(
            reason,
            detail,
            delay_seconds=with_jitter(RETRY_ROW_SECONDS, self._rng.random),
            provider=reported.provider.value,
            endpoint=reported.name,
            model=attempt.plans[reported.name][1].model,
        )

    def _unplaceable(self, attempt: _Attempt) -> DeferRow | RowRejected:
        """No endpoint is eligible."""
        if attempt.without_editor:
            names = ", ".join(sorted(attempt.without_editor))
            waiting = self._unusable(f"this deployment cannot call {names}")
            return self._deferral(waiting.detail, MAX_DEFER_SECONDS, waiting)
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(attempt.ineligible.items()))
        return RowRejected(Reason.BAD_REQUEST, f"no endpoint can honour this row: {reasons}")

    def _busy(self, no_slot: NoSlot) -> DeferRow:
        names = ", ".join(n for n, a in no_slot.available.items() if not a.out_of_service)
        wait = (no_slot.available_at - self._state_cache.now()) / SECOND
        return self._deferral(f"no slot at {names} within this worker's time", wait)

    def _waiting(self, available: dict[str, Availability]) -> Waiting:
        """Why all of these endpoints are out of service."""
        now = self._state_cache.now()
        endpoints = {e.name: e for e in self._secret_source.endpoints().endpoints}
        outages = [
            outage_of(endpoints[name], self._state_cache.state(name), availability, now)
            for name, availability in available.items()
            if name in endpoints
        ]
        reason = outages[0].reason if outages else Reason.NO_ENDPOINT
        return Waiting(reason, describe_outages(outages), self._clock.now())

    def _unusable(self, detail: str) -> Waiting:
        return Waiting(Reason.NO_ENDPOINT, detail, self._clock.now())

    def _fallback_cause(self, attempt: _Attempt, tier: int) -> str:
        """Why no key of an endpoint of an earlier tier can be used; empty for other causes."""
        outcomes = dict[str, Outcome]()
        for name, availability in attempt.out_of_service.items():
            if availability.reason is RejectionReason.KEYS:
                state = self._state_cache.state(name)
                outcomes[name] = cooldown_outcome(attempt.plans[name][0], state)
        for failed, failure in attempt.failures:
            if failure.outcome.key_at_fault:
                outcomes[failed.name] = failure.outcome
        causes = ((attempt.plans[name][0], outcome) for name, outcome in outcomes.items())
        return "; ".join(fallback_cause(e, outcome) for e, outcome in causes if e.tier < tier)

    def _deferral(self, detail: str, seconds: float, waiting: Waiting | None = None) -> DeferRow:
        shortest = min(MAX_DEFER_SECONDS, max(1.0, seconds))
        delay = with_jitter(shortest / (1 - JITTER), self._rng.random)
        return DeferRow(detail, delay_seconds=delay, waiting=waiting)

    def _warn_once(self, event: str, **fields: object) -> None:
        if event not in self._warned:
            self._warned.add(event)
            self._telemetry.warning(event, **fields)


def _with_own_model(failure: CallFailed, plan: CallPlan) -> CallFailed:
    """A model that the row names itself, and that the provider lacks, is the row's fault."""
    if failure.outcome is Outcome.MODEL_UNAVAILABLE and plan.model_of_row:
        return CallFailed(Outcome.BAD_REQUEST, failure.detail)
    return failure


def _readiness(
    tiers: Sequence[Sequence[Endpoint]], start_at: int, waiting: Waiting | None = None
) -> Readiness:
    rates = [sum(_calls_per_second(e) for e in tier) for tier in tiers]
    return Readiness(
        start_at=start_at / SECOND,
        waiting=waiting,
        rows_per_second=0.0 if math.isinf(max(rates)) else max(rates),
        row_seconds=AFTER_CALL_SECONDS
        + sum(max(e.timeout_seconds for e in tier) + SLOT_WAIT_SECONDS for tier in tiers),
    )


def _calls_per_second(endpoint: Endpoint) -> float:
    interval = rate_limiter.limits_of(endpoint).interval
    return SECOND / interval if interval else math.inf
