"""Dispatches one row: which endpoint it is sent to, its retries, and the fallback.

Per endpoint: the first call and `max_retries` more, with backoff; then the next endpoint of the
tier; then the next tier. Only transient failures and rejected keys move on to another endpoint. A
failure that is the row's own ends it at once. An endpoint that is out of service (breaker open, all
keys cooling down, daily limit reached) is skipped without a call; one that is merely busy is waited
for.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome, timeout_of_call
from darkroom.dispatch.outcomes import MAX_PAUSE_SECONDS, OutcomeRecorder
from darkroom.dispatch.selector import Permit, Selector
from darkroom.dispatch.state_cache import StateCache
from darkroom.endpoint_state import SECOND, Rejection, RejectionReason, StatesUnavailable
from darkroom.endpoints import Endpoint, EndpointsSecret
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
from darkroom.retry import backoff, with_jitter

AFTER_CALL_SECONDS = 30.0  # kept after a call's time-out, to store the image and settle the row
RETRY_ROW_SECONDS = 30.0
READINESS_AGE = SECOND  # an older state is read again before a row is started
REJECTED_KEYS_SECONDS = 300.0  # time to correct the keys before another attempt is spent
MAX_DEFER_SECONDS = 900.0
_REASONS = {
    RejectionReason.BREAKER: Reason.UNAVAILABLE,
    RejectionReason.DAY: Reason.RATE_LIMITED,
    RejectionReason.KEYS: Reason.KEY_REJECTED,
}


@dataclass(slots=True)
class _Attempt:
    """The progress of one row's dispatch. Endpoints are given by name."""

    context: CallContext
    deadline: float
    secret: EndpointsSecret
    calls: int = 0
    slot_wait_ms: int = 0
    failures: list[tuple[Endpoint, CallFailed]] = field(default_factory=list)
    exhausted: set[str] = field(default_factory=set)  # no retries left
    empty_answers: dict[str, CallFailed] = field(default_factory=dict)  # each worth one more call
    plans: dict[str, CallPlan] = field(default_factory=dict)
    ineligible: dict[str, str] = field(default_factory=dict)  # and why
    without_editor: set[str] = field(default_factory=set)
    out_of_service: dict[str, Rejection] = field(default_factory=dict)

    def latest_slot(self, endpoint: Endpoint) -> int:
        """The latest slot from which a call still ends before the deadline."""
        timeout = timeout_of_call(self.plans[endpoint.name], endpoint)
        return int((self.deadline - timeout - AFTER_CALL_SECONDS) * SECOND)


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
            tiers = list(self._secret_source.endpoints().tiers())
        except ConfigurationError as error:
            unusable = Waiting(Reason.NO_ENDPOINT, str(error), self._clock.now())
            return Readiness(self._clock.now() + RETRY_ROW_SECONDS, unusable)
        try:
            for endpoint in (e for tier in tiers for e in tier):
                if self._state_cache.age(endpoint.name, now) > READINESS_AGE:
                    self._state_cache.read(endpoint.name)
            available = {
                e.name: self._state_cache.availability(e, now) for tier in tiers for e in tier
            }
        except StatesUnavailable as error:
            raise ServiceUnavailable(str(error)) from error
        in_service = [a.available_at for a in available.values() if not a.out_of_service]
        waiting = None
        if not in_service:
            names = ", ".join(f"{name} ({a.reason})" for name, a in sorted(available.items()))
            first = min(available.values(), key=lambda a: a.available_at).reason
            reason = _REASONS[first] if first else Reason.UNAVAILABLE
            detail = f"every endpoint is out of service: {names}"
            waiting = Waiting(reason, detail, self._clock.now())
        start_at = min(in_service or [a.available_at for a in available.values()])
        longest = sum(max(e.timeout_seconds for e in tier) for tier in tiers)
        return Readiness(
            start_at=start_at / SECOND,
            waiting=waiting,
            rows_per_second=_rows_per_second(tiers),
            row_seconds=longest + AFTER_CALL_SECONDS,
        )

    def dispatch(self, context: CallContext, deadline: float) -> DispatchResult:
        secret = self._secret_source.endpoints()
        if len({e.tier for e in secret.endpoints}) == 1:
            providers = ", ".join(sorted({e.provider.value for e in secret.endpoints}))
            self._warn_once("no_fallback", detail=f"only one tier is configured ({providers})")
        attempt = _Attempt(context, deadline, secret)
        try:
            while True:
                attempt.out_of_service.clear()
                for tier in secret.tiers():
                    result = self._try_tier(attempt, tier)
                    if result is not None:
                        return result
                self._wait_for_service(attempt)
        except StatesUnavailable as error:
            if not attempt.failures:
                raise DeferRow(str(error), delay_seconds=RETRY_ROW_SECONDS) from error
            raise self._failed_attempt(attempt) from error

    # One tier, one endpoint, one call

    def _try_tier(self, attempt: _Attempt, tier: Sequence[Endpoint]) -> DispatchResult | None:
        while candidates := [e for e in tier if self._is_candidate(attempt, e)]:
            permit = self._selector.acquire(candidates, attempt.latest_slot)
            if isinstance(permit, Permit):
                result = self._call_with_retries(attempt, permit)
                if result is not None:
                    return result
            elif permit.out_of_service:
                for name, reason in permit.reasons.items():
                    attempt.out_of_service[name] = Rejection(reason, permit.available_at)
                return None
            elif attempt.calls:
                return None
            else:  # a busy tier does not fall back
                names = ", ".join(e.name for e in candidates)
                detail = f"no slot at {names} within this worker's time"
                raise self._deferral(detail, permit.available_at)
        return None

    def _is_candidate(self, attempt: _Attempt, endpoint: Endpoint) -> bool:
        """The endpoint can honour the row and has retries left for it."""
        name = endpoint.name
        if name in attempt.exhausted | attempt.ineligible.keys() | attempt.without_editor:
            return False
        if name in attempt.plans:
            return True
        try:
            self._editor_of(endpoint.provider)
        except KeyError:
            self._warn_once("provider_missing", provider=endpoint.provider.value)
            attempt.without_editor.add(name)
            return False
        try:
            attempt.plans[name] = attempt.context.plan(endpoint)
        except Ineligible as reason:
            attempt.ineligible[name] = str(reason)
            return False
        return True

    def _call_with_retries(self, attempt: _Attempt, permit: Permit) -> DispatchResult | None:
        """None when the endpoint's retries are used up, or there is no time for more."""
        endpoint, failures, rejected_keys = permit.endpoint, 0, 0

        def latest_retry(endpoint: Endpoint) -> int:
            soon = self._state_cache.now() + int(MAX_PAUSE_SECONDS * SECOND)
            return min(soon, attempt.latest_slot(endpoint))

        while True:
            outcome = self._call(attempt, permit)
            if isinstance(outcome, DispatchResult):
                return outcome
            if endpoint.name in attempt.ineligible:
                return None
            if outcome.outcome.key_at_fault:
                rejected_keys += 1
                endpoint = self._with_newest_keys(endpoint)
                retry = rejected_keys <= len(endpoint.keys)
            else:
                # An empty answer has a call of its own, whatever failed before it.
                failures = 1 if outcome.outcome.row_at_fault else failures + 1
                retry = self._back_off(attempt, endpoint, failures, outcome)
            next_permit = self._selector.acquire([endpoint], latest_retry) if retry else None
            if not isinstance(next_permit, Permit):
                if outcome.outcome.row_at_fault:
                    raise _rejected(endpoint, attempt.plans[endpoint.name], outcome)
                attempt.exhausted.add(endpoint.name)
                return None
            permit = next_permit

    def _back_off(
        self, attempt: _Attempt, endpoint: Endpoint, failures: int, failure: CallFailed
    ) -> bool:
        """Sleep before the next retry; False when there should be none."""
        retries = failure.retries(endpoint.max_retries)
        delay = with_jitter(backoff(failures, endpoint.retry_delay_seconds), self._rng.random)
        until = self._state_cache.now() + int(delay * SECOND)
        if failures > retries or until > attempt.latest_slot(endpoint):
            return False
        return self._selector.wait_until(
            until, lambda: not self._state_cache.out_of_service(endpoint)
        )

    def _with_newest_keys(self, endpoint: Endpoint) -> Endpoint:
        """Read the secret again after a rejected key: it may have been corrected already."""
        self._secret_source.refresh()
        newest = {e.name: e for e in self._secret_source.endpoints().endpoints}
        if endpoint.name not in newest:
            return endpoint
        found = newest[endpoint.name]
        update = {"api_keys": found.api_keys, "credentials": found.credentials}
        return endpoint.model_copy(update=update)

    def _call(self, attempt: _Attempt, permit: Permit) -> DispatchResult | CallFailed:
        """Make one call and record its outcome. Raises RowRejected when the row is to blame."""
        endpoint, plan = permit.endpoint, attempt.plans[permit.endpoint.name]
        attempt.slot_wait_ms += permit.slot_wait_ms
        sent_at, outcome = self._send(attempt, permit, plan)
        latency_ms = round((self._clock.now() - sent_at) * 1000)
        try:
            attempt.context.after_call(outcome)
        finally:
            self._outcomes.record(permit, plan, outcome, int(sent_at * SECOND), latency_ms)
        if isinstance(outcome, CallFailed):
            self._keep_failure(attempt, endpoint, outcome)
            return outcome
        return DispatchResult(
            result=outcome,
            plan=plan,
            endpoint=endpoint,
            fallback=endpoint.tier != min(e.tier for e in attempt.secret.endpoints),
            latency_ms=latency_ms,
            slot_wait_ms=attempt.slot_wait_ms,
            calls=attempt.calls,
            fallback_cause=self._fallback_cause(attempt, endpoint),
            warnings=tuple(
                f"{name} was skipped: {why}" for name, why in attempt.ineligible.items()
            ),
        )

    def _fallback_cause(self, attempt: _Attempt, endpoint: Endpoint) -> str:
        """The endpoints of earlier tiers that rejected their keys; empty for other causes."""
        rejected = {e.name for e, failure in attempt.failures if failure.outcome.key_at_fault}
        rejected |= {
            name
            for name, rejection in attempt.out_of_service.items()
            if rejection.reason is RejectionReason.KEYS
        }
        causes = list[str]()
        for earlier in attempt.secret.endpoints:
            if earlier.name in rejected and earlier.tier < endpoint.tier:
                cooldowns = self._state_cache.state(earlier.name).key_cooldowns
                spent = any(c.reason is Outcome.QUOTA_SPENT for c in cooldowns.values())
                what = "has no credit left for" if spent else "rejected"
                keys = ", ".join(sorted(cooldowns)) or "of the secret"
                causes.append(f"{earlier.name} {what} its key ({keys})")
        return "; ".join(causes)

    @staticmethod
    def _keep_failure(attempt: _Attempt, endpoint: Endpoint, failure: CallFailed) -> None:
        """Raises RowRejected when the row is to blame and no further call makes sense."""
        name = endpoint.name
        if failure.too_large_for_limit:
            attempt.ineligible[name] = failure.detail
        elif not failure.outcome.row_at_fault:
            attempt.failures.append((endpoint, failure))
        elif not failure.retry_once or name in attempt.empty_answers:
            raise _rejected(endpoint, attempt.plans[name], failure) from failure
        else:
            attempt.empty_answers[name] = failure

    def _send(
        self, attempt: _Attempt, permit: Permit, plan: CallPlan
    ) -> tuple[float, EditResult | CallFailed]:
        """(time of sending, outcome). Any other exception releases the reservation."""
        endpoint = permit.endpoint
        try:
            attempt.context.before_call(endpoint, plan)
            attempt.calls += 1
            editor, sent_at = self._editor_of(endpoint.provider), self._clock.now()
            try:
                timeout = timeout_of_call(plan, endpoint)
                return sent_at, editor.edit(plan, endpoint, permit.key, timeout)
            except CallFailed as failure:
                return sent_at, failure
        except BaseException:
            self._state_cache.release_unused(endpoint, permit.lease, probe=permit.probe)
            raise

    # When no tier could take the row

    def _wait_for_service(self, attempt: _Attempt) -> None:
        """Wait for the first endpoint to be back in service, or raise how the row ends."""
        if attempt.failures:
            raise self._failed_attempt(attempt)
        out = attempt.out_of_service
        if not out:
            raise _unplaceable(attempt)
        temporary = {n: r.retry_at for n, r in out.items() if r.reason is not RejectionReason.KEYS}
        if not temporary:
            raise self._keys_rejected(attempt)
        name = min(temporary, key=lambda n: temporary[n])
        endpoint = next(e for e in attempt.secret.endpoints if e.name == name)
        if temporary[name] > attempt.latest_slot(endpoint):
            reasons = ", ".join(f"{n} ({r.reason})" for n, r in sorted(out.items()))
            raise self._deferral(f"every endpoint is out of service: {reasons}", temporary[name])
        self._selector.wait_until(
            temporary[name], lambda: self._state_cache.out_of_service(endpoint)
        )

    def _failed_attempt(self, attempt: _Attempt) -> RetryRow:
        """The first tier's error, even when it was skipped because it was out of service."""
        first_tier = min(e.tier for e, _ in attempt.failures)
        called, failure = [f for f in attempt.failures if f[0].tier == first_tier][-1]
        for endpoint in attempt.secret.endpoints:
            if endpoint.name in attempt.out_of_service and endpoint.tier < first_tier:
                reason = attempt.out_of_service[endpoint.name].reason
                detail = f"out of service ({reason}), and {called.name}: {failure.detail}"
                return self._retry(endpoint, _REASONS[reason], detail, RETRY_ROW_SECONDS)
        wait = REJECTED_KEYS_SECONDS if failure.outcome.key_at_fault else RETRY_ROW_SECONDS
        model = attempt.plans[called.name].model
        return self._retry(called, failure.reason, failure.detail, wait, model)

    def _keys_rejected(self, attempt: _Attempt) -> RetryRow:
        endpoint = next(e for e in attempt.secret.endpoints if e.name in attempt.out_of_service)
        cooldowns = list(self._state_cache.state(endpoint.name).key_cooldowns.values())
        reason = Reason(cooldowns[-1].reason.value) if cooldowns else Reason.KEY_REJECTED
        detail = "every key was rejected recently and is cooling down; correct the endpoints secret"
        return self._retry(endpoint, reason, detail, REJECTED_KEYS_SECONDS)

    def _retry(
        self,
        endpoint: Endpoint,
        reason: Reason,
        detail: str,
        seconds: float,
        model: str | None = None,
    ) -> RetryRow:
        return RetryRow(
            reason,
            f"{endpoint.name}: {detail}",
            delay_seconds=with_jitter(seconds, self._rng.random),
            provider=endpoint.provider.value,
            endpoint=endpoint.name,
            model=model,
        )

    def _deferral(self, detail: str, available_at: int) -> DeferRow:
        wait = available_at / SECOND - self._clock.now()
        return DeferRow(detail, delay_seconds=min(MAX_DEFER_SECONDS, max(1.0, wait)))

    def _warn_once(self, event: str, **fields: object) -> None:
        if event not in self._warned:
            self._warned.add(event)
            self._telemetry.warning(event, **fields)


def _rows_per_second(tiers: Sequence[Sequence[Endpoint]]) -> float:
    """The rate of the fastest tier; 0 when one has no limit of its rate."""
    rates = [sum(e.requests_per_minute or math.inf for e in tier) / 60 for tier in tiers]
    fastest = max(rates)
    return 0.0 if math.isinf(fastest) else fastest


def _rejected(endpoint: Endpoint, plan: CallPlan, failure: CallFailed) -> RowRejected:
    return RowRejected(
        failure.reason,
        f"{endpoint.name}: {failure.detail}",
        provider=endpoint.provider.value,
        endpoint=endpoint.name,
        model=plan.model,
    )


def _unplaceable(attempt: _Attempt) -> RowRejected | RetryRow:
    """No endpoint is eligible."""
    if attempt.without_editor:
        names = ", ".join(sorted(attempt.without_editor))
        return RetryRow(Reason.NO_ENDPOINT, f"this deployment cannot call {names}")
    reasons = "; ".join(f"{name}: {why}" for name, why in sorted(attempt.ineligible.items()))
    return RowRejected(Reason.BAD_REQUEST, f"no endpoint can honour this row: {reasons}")
