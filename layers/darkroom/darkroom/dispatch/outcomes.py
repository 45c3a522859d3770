"""Records the outcome of each call in the shared endpoint state, and emits metrics."""

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome, timeout_of_call
from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.dispatch.selector import Permit
from darkroom.dispatch.state_cache import StateCache
from darkroom.endpoint_state import SECOND
from darkroom.endpoints import key_fingerprint
from darkroom.metrics import Metric
from darkroom.ports import Telemetry


class OutcomeRecorder:
    """One per process, shared by its threads."""

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
        if failure is not None and (failure.outcome.transient or failure.outcome.key_at_fault):
            self._report(permit, plan, failure, sent_at)
        else:
            probe = permit.reservation.probe
            self._state_cache.release(permit.endpoint, permit.lease, probe=probe, sent_at=sent_at)
        self._emit(permit, plan, failure, latency_ms)

    def _report(self, permit: Permit, plan: CallPlan, failure: CallFailed, sent_at: int) -> None:
        endpoint, now = permit.endpoint, self._state_cache.now()
        timeout = int(timeout_of_call(plan, endpoint) * SECOND)
        quota_until = None
        if failure.daily:
            day_end = rate_limiter.provider_day(endpoint.provider, now).end
            quota_until = day_end + rate_limiter.MARGIN
        facts = circuit_breaker.Failure(
            lease=permit.lease,
            now=now,
            sent_at=sent_at,
            outcome=failure.outcome,
            detail=failure.detail,
            key_id=permit.key_id,
            window=max(circuit_breaker.MIN_WINDOW, 2 * timeout),
            retry_after_seconds=failure.retry_after_seconds,
            quota_until=quota_until,
            pause_seconds=max(1.0, endpoint.retry_delay_seconds),
            interval=rate_limiter.limits_of(endpoint).interval,
        )
        states = self._state_cache.report(
            endpoint.name, lambda state: circuit_breaker.after_failure(state, facts)
        )
        if states is not None and states[1].breaker_open and not states[0].breaker_open:
            name, after = endpoint.name, states[1]
            self._telemetry.metric(Metric.BREAKER_OPENED, endpoint=name)
            self._telemetry.warning(
                "breaker_opened", endpoint=name, failures=after.failures, cause=after.cause
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
        if outcome is Outcome.RATE_LIMITED:
            self._telemetry.metric(Metric.RATE_LIMITED, endpoint=name)
        if failure is not None and outcome.key_at_fault:
            self._telemetry.metric(Metric.KEY_REJECTED, endpoint=name)
            self._telemetry.error(
                "key_rejected",
                endpoint=name,
                key=key_fingerprint(permit.key),
                outcome=outcome.value,
                detail=failure.detail,
            )
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
