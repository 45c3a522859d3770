"""Decides what the outcome of a call leads to, for all workers.

Every call releases its reservation and reports the endpoint's health; enough failures open the
breaker. A 429 also slows the endpoint down and pauses it, or takes it out of service if the wait is
long. A rejected key cools down.
"""

from dataclasses import replace

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.dispatch.selector import Permit
from darkroom.dispatch.state_cache import StateCache
from darkroom.endpoint_state import SECOND, EndpointState, Health, Limits, StatesUnavailable
from darkroom.endpoints import Endpoint, key_fingerprint
from darkroom.metrics import Metric
from darkroom.ports import Telemetry
from darkroom.retry import backoff

# After a 429 that was not for the quota of a day:
SLOWDOWN_FACTOR = 2
ASSUMED_INTERVAL = SECOND // 2  # without a configured limit or an observed rate
MIN_PAUSE_SECONDS = 1.0  # the first, unless the provider says how long to wait
MAX_PAUSE_SECONDS = 60.0  # for a longer wait, the endpoint is out of service


def slower_interval(state: EndpointState, limits: Limits, observed: int, now: int) -> int:
    """The interval between calls after an unexpected 429.

    For an endpoint without a configured rate, `observed` is the interval between the calls of all
    workers (0: not known).
    """
    in_force, _ = rate_limiter.rate_in_force(state, limits, now)
    return SLOWDOWN_FACTOR * (in_force or observed or ASSUMED_INTERVAL)


class OutcomeRecorder:
    """Records the outcome of each call in the shared endpoint state, and emits metrics."""

    def __init__(self, state_cache: StateCache, telemetry: Telemetry) -> None:
        self._state_cache = state_cache
        self._telemetry = telemetry

    def record(
        self,
        permit: Permit,
        plan: CallPlan,
        outcome: EditResult | CallFailed,
        sent_at: int,
        latency_ms: int,
    ) -> None:
        """`sent_at` in microseconds. Does not raise StatesUnavailable."""
        failure = outcome if isinstance(outcome, CallFailed) else None
        transient = failure is not None and failure.outcome.transient
        health = Health.FAILED if transient else Health.GOOD
        state = self._state_cache.release(
            permit.endpoint, permit.lease, health, sent_at=sent_at, probe=permit.probe
        )
        if failure is not None and state is not None:
            try:
                self._share(permit, failure, state, sent_at)
            except StatesUnavailable as error:
                self._telemetry.warning(
                    "outcome_not_shared", endpoint=permit.endpoint.name, detail=str(error)
                )
        self._emit(permit, plan, failure, latency_ms)

    def _share(
        self, permit: Permit, failure: CallFailed, state: EndpointState, sent_at: int
    ) -> None:
        if failure.outcome is Outcome.RATE_LIMITED:
            state = self._rate_limited(permit.endpoint, failure, sent_at)
        elif failure.outcome.key_at_fault:
            self._cool_down_key(permit, failure)
        if failure.outcome.transient and circuit_breaker.should_open(state):
            name, now = permit.endpoint.name, self._state_cache.now()
            before, after = self._state_cache.change(name, lambda s: circuit_breaker.opened(s, now))
            if before != after:  # one worker only
                self._telemetry.metric(Metric.BREAKER_OPENED, endpoint=name)
                self._telemetry.warning("breaker_opened", endpoint=name)

    def _rate_limited(self, endpoint: Endpoint, failure: CallFailed, sent_at: int) -> EndpointState:
        self._telemetry.metric(Metric.RATE_LIMITED, endpoint=endpoint.name)
        name, now, limits = endpoint.name, self._state_cache.now(), rate_limiter.limits_of(endpoint)
        wait = failure.retry_after_seconds
        if failure.daily or (wait or 0) > MAX_PAUSE_SECONDS:
            until = now + int((wait or 0) * SECOND)
            if failure.daily and wait is None:
                until = rate_limiter.provider_day(endpoint.provider, now).end + rate_limiter.MARGIN
            return self._state_cache.change(name, lambda s: circuit_breaker.suspended(s, until))[1]
        observed = self._state_cache.observed_interval(name)

        def slowed_and_paused(state: EndpointState) -> EndpointState:
            interval = slower_interval(state, limits, observed, now)
            # For a minute after a slowdown, calls made before it still count against the limit.
            state = rate_limiter.slowed_down(state, interval, now, sent_at - rate_limiter.MINUTE)
            base = max(endpoint.retry_delay_seconds, MIN_PAUSE_SECONDS)
            pause = backoff(max(1, state.failures), base, MAX_PAUSE_SECONDS)
            seconds = pause if wait is None else wait
            return rate_limiter.paused(state, now + int(seconds * SECOND))

        return self._state_cache.change(name, slowed_and_paused)[1]

    def _cool_down_key(self, permit: Permit, failure: CallFailed) -> None:
        name, fingerprint = permit.endpoint.name, key_fingerprint(permit.key)
        cooldown = circuit_breaker.key_cooldown(
            failure.outcome, failure.retry_after_seconds, self._state_cache.now()
        )
        self._state_cache.change(
            name, lambda s: replace(s, key_cooldowns={**s.key_cooldowns, fingerprint: cooldown})
        )
        self._telemetry.metric(Metric.KEY_REJECTED, endpoint=name)
        self._telemetry.error(
            "key_rejected",
            endpoint=name,
            key=fingerprint,
            outcome=failure.outcome.value,
            detail=failure.detail,
        )

    def _emit(
        self, permit: Permit, plan: CallPlan, failure: CallFailed | None, latency_ms: int
    ) -> None:
        """The call's metrics and its log line."""
        name = permit.endpoint.name
        outcome = failure.outcome if failure else Outcome.SUCCEEDED
        self._telemetry.metric(Metric.PROVIDER_CALLS, endpoint=name)
        if outcome.transient or outcome.key_at_fault:
            self._telemetry.metric(Metric.PROVIDER_ERRORS, endpoint=name)
        self._telemetry.metric(Metric.PROVIDER_LATENCY, latency_ms, endpoint=name)
        self._telemetry.metric(Metric.SLOT_WAIT, permit.slot_wait_ms, endpoint=name)
        self._telemetry.info(
            "attempt",
            endpoint=name,
            provider=permit.endpoint.provider.value,
            model=plan.model,
            outcome=outcome.value,
            latency_ms=latency_ms,
            slot_wait_ms=permit.slot_wait_ms,
            detail=failure.detail if failure else "",
        )
