"""One row as the dispatcher sees it, and what it gets back."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from darkroom.calls import CallFailed, CallPlan, EditResult
from darkroom.dispatch import rate_limiter
from darkroom.dispatch.outcomes import LONG_WAIT_SECONDS, OutcomeRecorder
from darkroom.dispatch.selector import NoSlot, Permit, Pool
from darkroom.dispatch.state_cache import StateCache
from darkroom.endpoint_state import SECOND, RejectionReason, StatesUnavailable
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.errors import DeferRow, Ineligible, Reason, RetryRow, RowRejected
from darkroom.ports import (
    CallContext,
    Clock,
    DispatchResult,
    EndpointStates,
    ImageEditor,
    SecretSource,
    Telemetry,
)
from darkroom.providers.registry import Provider
from darkroom.retry import backoff, with_jitter

# Retry and fallback: which endpoint a row is sent to, and what an outcome leads to.
#
# Per endpoint: the first call and `max_retries` more, with backoff; then the next endpoint of the
# tier; then the next tier. Only transient outcomes and rejected keys move on. What blames the row
# ends it at once. An endpoint that is out of service (breaker open, keys resting, day spent) is
# passed over without a call; one that is merely busy is waited for.


type Editors = Mapping[Provider, ImageEditor] | Callable[[Provider], ImageEditor]


class TieredDispatcher:
    """One per process, shared by its threads.

    `editors` may be a function of the provider, so that an SDK is imported only when it is needed;
    a provider it has not (KeyError) is a warning. `margin` is the limiter's, in microseconds.
    """

    def __init__(  # noqa: PLR0917 - wiring, made in one place
        self,
        secret_source: SecretSource,
        states: EndpointStates,
        editors: Editors,
        clock: Clock,
        rng: random.Random,
        telemetry: Telemetry,
        margin: int = rate_limiter.MARGIN,
    ) -> None:
        self.source = secret_source
        self.clock = clock
        self.rng = rng
        self.telemetry = telemetry
        self.state_cache = StateCache(states, clock, telemetry, margin)
        self.pool = Pool(self.state_cache, clock, rng)
        self.outcome_recorder = OutcomeRecorder(self.state_cache, telemetry, margin)
        self._editors = editors
        self._warned: set[str] = set()

    def dispatch(self, context: CallContext, deadline: float) -> DispatchResult:
        """Find an endpoint, wait for its slot, call, retry, fall back; done by `deadline` (Unix s).

        Raises RowRejected (refused, no_image, bad_request; or no endpoint can honour the row),
        RetryRow (all calls failed: the first tier's error; or every key rests), DeferRow (no slot
        in time, or every endpoint is out of service; nothing was called), LeaseLost, and
        ConfigurationError when there never was a good secret.
        """
        secret = self.source.endpoints()
        self._warn_of_missing_fallback(secret)
        journey = RowDispatch(self, context, deadline, secret)
        try:
            return journey.run()
        except StatesUnavailable as error:
            raise journey.given_up(str(error)) from error

    def editor(self, provider: Provider) -> ImageEditor | None:
        """None, with one warning, when this process has no way to call the provider."""
        try:
            return self._editors(provider) if callable(self._editors) else self._editors[provider]
        except KeyError:
            self._warn_once("provider_missing", provider=provider.value)
            return None

    def _warn_of_missing_fallback(self, secret: EndpointsSecret) -> None:
        if len({e.tier for e in secret.endpoints}) == 1:
            only = ", ".join(sorted({e.provider.value for e in secret.endpoints}))
            self._warn_once("no_fallback", detail=f"only one tier is configured ({only})")

    def _warn_once(self, event: str, **fields: object) -> None:
        if event not in self._warned:
            self._warned.add(event)
            self.telemetry.warning(event, **fields)


# One row's way from endpoint to endpoint: the policy of limits/dispatch.py, step by step.


AFTER_CALL_SECONDS = 30.0  # kept after a call's time-out, to store the image and settle the row
RETRY_ROW_SECONDS = 30.0
KEYS_RESTING_SECONDS = 300.0  # for somebody to mend the keys, before another attempt is spent
MAX_DEFER_SECONDS = 900.0
_REASONS = {
    RejectionReason.BREAKER: Reason.UNAVAILABLE,
    RejectionReason.DAY: Reason.RATE_LIMITED,
    RejectionReason.KEYS: Reason.KEY_REJECTED,
}


@dataclass(slots=True)
class RowDispatch:
    home: "TieredDispatcher"
    context: CallContext
    deadline: float
    secret: EndpointsSecret
    calls: int = 0
    slot_wait_ms: int = 0
    failures: list[tuple[Endpoint, CallFailed]] = field(default_factory=list)
    exhausted: set[str] = field(default_factory=set)
    editors: dict[Provider, ImageEditor] = field(default_factory=dict)
    plans: dict[str, CallPlan] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)  # cannot honour this row, and why
    missing: set[str] = field(default_factory=set)  # this process cannot call their provider
    out: dict[str, tuple[RejectionReason, int]] = field(
        default_factory=dict
    )  # out of service, until when

    def run(self) -> DispatchResult:
        while True:
            self.out = {}
            for tier in sorted({e.tier for e in self.secret.endpoints}):
                delivery = self._try_tier(tier)
                if delivery is not None:
                    return delivery
            self._wait_for_service()

    def given_up(self, detail: str) -> RetryRow | DeferRow:
        """How the row comes back: with the first tier's error, or free when nothing was called."""
        if not self.failures:
            return DeferRow(detail, delay_seconds=RETRY_ROW_SECONDS)
        first = min(e.tier for e, _ in self.failures)
        endpoint, failure = [f for f in self.failures if f[0].tier == first][-1]
        passed_over = [e for e in self.secret.endpoints if e.name in self.out and e.tier < first]
        if passed_over:
            return self._earlier_tier_was_out(passed_over[0], endpoint, failure)
        wait = KEYS_RESTING_SECONDS if failure.outcome.blames_key else RETRY_ROW_SECONDS
        return _retry(endpoint, failure.reason, failure.detail, self._jittered(wait))

    def _earlier_tier_was_out(
        self, endpoint: Endpoint, called: Endpoint, failure: CallFailed
    ) -> RetryRow:
        """The first tier's error also when this row was spared it."""
        gate = self.out[endpoint.name][0]
        detail = f"out of service ({gate}), and {called.name}: {failure.detail}"
        return _retry(endpoint, _REASONS[gate], detail, self._jittered(RETRY_ROW_SECONDS))

    def _try_tier(self, tier: int) -> DispatchResult | None:
        while candidates := self._candidates(tier):
            got = self.home.pool.acquire(candidates, self._latest)
            if isinstance(got, NoSlot):
                self._note(candidates, got)
                return None
            delivery = self._stay(got)
            if delivery is not None:
                return delivery
        return None

    def _candidates(self, tier: int) -> list[Endpoint]:
        """The tier's endpoints that this row has not given up on and that can honour it."""
        hopeful = [
            e for e in self.secret.endpoints if e.tier == tier and e.name not in self.exhausted
        ]
        return [e for e in hopeful if self._fits(e)]

    def _fits(self, endpoint: Endpoint) -> bool:
        name = endpoint.name
        if name in self.plans:
            return True
        if name in self.unfit or name in self.missing:
            return False
        editor = self.home.editor(endpoint.provider)
        if editor is None:
            self.missing.add(name)
            return False
        self.editors[endpoint.provider] = editor
        try:
            self.plans[name] = self.context.plan(endpoint)
        except Ineligible as reason:
            self.unfit[name] = str(reason)
            return False
        return True

    def _note(self, candidates: list[Endpoint], refused: NoSlot) -> None:
        """Remember why the tier has no slot. A tier that is merely busy does not fall back."""
        if refused.closed:
            self.out |= {name: (gate, refused.opens_at) for name, gate in refused.gates.items()}
        elif not self.calls:
            names = ", ".join(e.name for e in candidates)
            raise self._deferral(f"no slot at {names} within this worker's time", refused.opens_at)

    def _stay(self, held: Permit) -> DispatchResult | None:
        """Call the endpoint, and again as its retries allow. None: this row has done with it."""
        endpoint, tries, keys_tried = held.endpoint, 0, 0
        while True:
            outcome = self._call(held)
            if isinstance(outcome, DispatchResult):
                return outcome
            if outcome.outcome.blames_key:
                keys_tried += 1
                endpoint = self._with_newest_keys(endpoint)
                if keys_tried > len(endpoint.api_keys):
                    break
            else:
                tries += 1
                if not self._back_off(endpoint, tries, outcome):
                    break
            got = self.home.pool.acquire([endpoint], self._latest_retry)
            if isinstance(got, NoSlot):
                break
            held = got
        self.exhausted.add(endpoint.name)
        return None

    def _back_off(self, endpoint: Endpoint, tries: int, failure: CallFailed) -> bool:
        """Sleep before the next try; False when there should be none."""
        retries = min(endpoint.max_retries, 1) if failure.unknown else endpoint.max_retries
        if tries > retries or self.home.state_cache.closed(endpoint):
            return False
        delay = self._jittered(backoff(tries, endpoint.retry_delay_seconds))
        if self.home.state_cache.now() + int(delay * SECOND) > self._latest(endpoint):
            return False
        return self.home.state_cache.wait(endpoint, delay)

    def _with_newest_keys(self, endpoint: Endpoint) -> Endpoint:
        """A rejected key has the secret read again: the mended keys may be there already."""
        self.home.source.refresh()
        newest = {e.name: e for e in self.home.source.endpoints().endpoints}
        if endpoint.name not in newest:
            return endpoint
        return endpoint.model_copy(update={"api_keys": newest[endpoint.name].api_keys})

    def _call(self, held: Permit) -> DispatchResult | CallFailed:
        """One call, accounted for whatever happens. Raises RowRejected when it blames the row."""
        endpoint, plan = held.endpoint, self.plans[held.endpoint.name]
        self.slot_wait_ms += held.slot_wait_ms
        sent_at, outcome = self._send(held, plan)
        latency_ms = round((self.home.clock.now() - sent_at) * 1000)
        failure = outcome if isinstance(outcome, CallFailed) else None
        try:
            self.context.after_call(endpoint, plan, outcome)
        finally:
            self.home.outcome_recorder.learn(held, failure, int(sent_at * SECOND))
            self.home.outcome_recorder.tell(held, plan, failure, latency_ms)
        if isinstance(outcome, CallFailed):
            if outcome.outcome.blames_row:
                raise RowRejected(outcome.reason, f"{endpoint.name}: {outcome.detail}") from outcome
            self.failures.append((endpoint, outcome))
            return outcome
        return DispatchResult(
            result=outcome,
            plan=plan,
            endpoint=endpoint,
            fallback=endpoint.tier != min(e.tier for e in self.secret.endpoints),
            latency_ms=latency_ms,
            slot_wait_ms=self.slot_wait_ms,
            calls=self.calls,
            warnings=tuple(f"{name} was passed over: {why}" for name, why in self.unfit.items()),
        )

    def _send(self, held: Permit, plan: CallPlan) -> tuple[float, EditResult | CallFailed]:
        """(when it was sent, what came). Anything but an outcome gives the booking back."""
        endpoint = held.endpoint
        try:
            editor = self.editors[endpoint.provider]
            self.context.before_call(endpoint, plan)
            self.calls += 1
            sent_at = self.home.clock.now()
            try:
                return sent_at, editor.edit(plan, endpoint, held.key, endpoint.timeout_seconds)
            except CallFailed as failure:
                return sent_at, failure
        except BaseException:
            self.home.pool.abandon(held)
            raise

    def _wait_for_service(self) -> None:
        """No tier could take the row. Wait here for the first to reopen, or send the row away."""
        if self.failures:
            raise self.given_up("")
        if not self.out:
            raise self._unplaceable()
        lasting = {
            n: until for n, (gate, until) in self.out.items() if gate is not RejectionReason.KEYS
        }
        if not lasting:
            raise self._keys_rest()
        name = min(lasting, key=lambda n: lasting[n])
        endpoint = next(e for e in self.secret.endpoints if e.name == name)
        if lasting[name] > self._latest(endpoint):
            why = ", ".join(f"{n} ({gate})" for n, (gate, _) in sorted(self.out.items()))
            raise self._deferral(f"every endpoint is out of service: {why}", lasting[name])
        self.home.state_cache.wait_until_open(endpoint, lasting[name])

    def _unplaceable(self) -> RowRejected | RetryRow:
        if self.missing:
            names = ", ".join(sorted(self.missing))
            return RetryRow(Reason.NO_ENDPOINT, f"this deployment cannot call {names}")
        why = "; ".join(f"{name}: {why}" for name, why in sorted(self.unfit.items()))
        return RowRejected(Reason.BAD_REQUEST, f"no endpoint can honour this row: {why}")

    def _keys_rest(self) -> RetryRow:
        endpoint = next(e for e in self.secret.endpoints if e.name in self.out)
        state = self.home.state_cache.view.state(endpoint.name)
        resting = list(state.keys.values()) if state else []
        reason = Reason(resting[-1].why.value) if resting else Reason.KEY_REJECTED
        detail = "every key was turned away lately and rests; mend the endpoints secret"
        return _retry(endpoint, reason, detail, self._jittered(KEYS_RESTING_SECONDS))

    def _deferral(self, detail: str, opens_at: int) -> DeferRow:
        wait = opens_at / SECOND - self.home.clock.now()
        return DeferRow(detail, delay_seconds=min(MAX_DEFER_SECONDS, max(1.0, wait)))

    def _latest(self, endpoint: Endpoint) -> int:
        """The latest slot from which a call still ends before the deadline."""
        return int((self.deadline - endpoint.timeout_seconds - AFTER_CALL_SECONDS) * SECOND)

    def _latest_retry(self, endpoint: Endpoint) -> int:
        soon = self.home.state_cache.now() + int(LONG_WAIT_SECONDS * SECOND)
        return min(soon, self._latest(endpoint))

    def _jittered(self, seconds: float) -> float:
        return with_jitter(seconds, self.home.rng.random)


def _retry(endpoint: Endpoint, reason: Reason, detail: str, delay: float) -> RetryRow:
    return RetryRow(
        reason,
        f"{endpoint.name}: {detail}",
        delay_seconds=delay,
        provider=endpoint.provider.value,
        endpoint=endpoint.name,
    )
