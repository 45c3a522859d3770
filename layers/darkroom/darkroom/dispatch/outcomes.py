"""What a call's outcome teaches all workers: the endpoint's health, its pace, its keys."""

from darkroom.calls import CallFailed, CallPlan, Outcome
from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.dispatch.selector import Permit
from darkroom.dispatch.state_cache import StateCache
from darkroom.endpoint_state import SECOND, EndpointState, Health, StatesUnavailable
from darkroom.endpoints import Endpoint, key_fingerprint
from darkroom.metrics import Metric
from darkroom.ports import Telemetry

LONG_WAIT_SECONDS = 60.0  # asked to wait longer, an endpoint is out of service, not just slow


class OutcomeRecorder:
    """Writes outcomes down where every worker sees them."""

    def __init__(
        self, state_cache: StateCache, telemetry: Telemetry, margin: int = rate_limiter.MARGIN
    ) -> None:
        self._state_cache = state_cache
        self._states = state_cache.states
        self._telemetry = telemetry
        self._margin = margin

    def learn(self, held: Permit, failure: CallFailed | None, sent_at: int) -> None:
        """Give the booking back with what the call showed; `failure` None means an image came."""
        transient = failure is not None and failure.outcome.transient
        how = Health.FAILED if transient else Health.GOOD
        endpoint = held.endpoint
        state = self._state_cache.give_back(
            endpoint, held.lease, how, sent_at=sent_at, probe=held.probe
        )
        if failure is None or state is None:
            return
        try:
            if failure.outcome is Outcome.RATE_LIMITED:
                state = self._slow_down(endpoint, state, failure, sent_at)
            elif failure.outcome.blames_key:
                self._rest_key(held, failure)
            if transient and circuit_breaker.should_trip(state):
                self._trip(endpoint, state)
        except StatesUnavailable as error:
            self._telemetry.warning("outcome_not_shared", endpoint=endpoint.name, detail=str(error))

    def tell(
        self, held: Permit, plan: CallPlan, failure: CallFailed | None, latency_ms: int
    ) -> None:
        """The attempt's log line and metrics."""
        name = held.endpoint.name
        outcome = failure.outcome if failure else Outcome.SUCCEEDED
        self._telemetry.metric(Metric.PROVIDER_CALLS, endpoint=name)
        if outcome.transient or outcome.blames_key:
            self._telemetry.metric(Metric.PROVIDER_ERRORS, endpoint=name)
        self._telemetry.metric(Metric.PROVIDER_LATENCY, latency_ms, endpoint=name)
        self._telemetry.metric(Metric.SLOT_WAIT, held.slot_wait_ms, endpoint=name)
        self._telemetry.info(
            "attempt",
            endpoint=name,
            provider=held.endpoint.provider.value,
            model=plan.model,
            outcome=outcome.value,
            latency_ms=latency_ms,
            slot_wait_ms=held.slot_wait_ms,
            detail=failure.detail if failure else "",
        )

    def _slow_down(
        self, endpoint: Endpoint, state: EndpointState, failure: CallFailed, sent_at: int
    ) -> EndpointState:
        self._telemetry.metric(Metric.RATE_LIMITED, endpoint=endpoint.name)
        now = self._state_cache.now()
        limits = rate_limiter.limits_of(endpoint, self._margin)
        asked = failure.retry_after_seconds
        if failure.daily or (asked or 0) > LONG_WAIT_SECONDS:
            until = now + int((asked or 0) * SECOND)
            if failure.daily and asked is None:
                until = rate_limiter.provider_day(endpoint.provider, now).end + limits.margin
            return self._state_cache.saw(endpoint, self._states.rest(endpoint.name, until))
        observed = self._state_cache.view.observed_interval(endpoint.name)
        gap = rate_limiter.slowed_gap(state, limits, observed, now)
        # For a minute after slowing down, the calls made before it still count against us.
        state = self._state_cache.saw(
            endpoint, self._states.slow(endpoint.name, gap, now, sent_at - rate_limiter.MINUTE)
        )
        if asked is None:
            again = min(max(0, state.failures - 1), 6)
            asked = min(LONG_WAIT_SECONDS, max(endpoint.retry_delay_seconds, 1.0) * 2**again)
        return self._state_cache.saw(
            endpoint, self._states.pause(endpoint.name, now + int(asked * SECOND))
        )

    def _rest_key(self, held: Permit, failure: CallFailed) -> None:
        endpoint, fingerprint = held.endpoint, key_fingerprint(held.key)
        rest = circuit_breaker.rest_of(
            failure.outcome, failure.retry_after_seconds, self._state_cache.now()
        )
        self._state_cache.saw(endpoint, self._states.rest_key(endpoint.name, fingerprint, rest))
        self._telemetry.metric(Metric.KEY_REJECTED, endpoint=endpoint.name)
        self._telemetry.error(
            "key_rejected",
            endpoint=endpoint.name,
            key=fingerprint,
            outcome=failure.outcome.value,
            detail=failure.detail,
        )

    def _trip(self, endpoint: Endpoint, state: EndpointState) -> None:
        until = self._state_cache.now() + circuit_breaker.cool_down(state.opens + 1)
        opened, state = self._states.trip(endpoint.name, until)
        self._state_cache.saw(endpoint, state)
        if opened:
            self._telemetry.metric(Metric.BREAKER_OPENED, endpoint=endpoint.name)
            self._telemetry.warning("breaker_opened", endpoint=endpoint.name)
