"""One row's way from endpoint to endpoint: the policy of limits/dispatch.py, step by step."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from darkroom.calls import CallFailed, CallPlan, EditAnswer, Provider
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.errors import DeferRow, Reason, RetryRow, RowRejected
from darkroom.limits.aftermath import LONG_WAIT_SECONDS
from darkroom.limits.endpoint_state import SECOND, Gate
from darkroom.limits.errand import Delivery, Errand, Ineligible
from darkroom.limits.pool import Held, NoSlot
from darkroom.ports import ImageEditor

if TYPE_CHECKING:
    from darkroom.limits.dispatch import Dispatcher

AFTER_CALL_SECONDS = 30.0  # kept after a call's time-out, to store the image and settle the row
BACKOFF_CAP_SECONDS = 60.0
JITTER = 0.3
RETRY_ROW_SECONDS = 30.0
KEYS_RESTING_SECONDS = 300.0  # for somebody to mend the keys, before another attempt is spent
MAX_DEFER_SECONDS = 900.0
_REASONS = {
    Gate.BREAKER: Reason.UNAVAILABLE,
    Gate.DAY: Reason.RATE_LIMITED,
    Gate.KEYS: Reason.KEY_REJECTED,
}


@dataclass(slots=True)
class Journey:
    home: "Dispatcher"
    errand: Errand
    deadline: float
    secret: EndpointsSecret
    calls: int = 0
    slot_wait_ms: int = 0
    failures: list[tuple[Endpoint, CallFailed]] = field(default_factory=list)
    given_up_on: set[str] = field(default_factory=set)
    editors: dict[Provider, ImageEditor] = field(default_factory=dict)
    plans: dict[str, CallPlan] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)  # cannot honour this row, and why
    missing: set[str] = field(default_factory=set)  # this process cannot call their provider
    out: dict[str, tuple[Gate, int]] = field(default_factory=dict)  # out of service, until when

    def run(self) -> Delivery:
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

    def _try_tier(self, tier: int) -> Delivery | None:
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
            e for e in self.secret.endpoints if e.tier == tier and e.name not in self.given_up_on
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
            self.plans[name] = self.errand.plan(endpoint)
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

    def _stay(self, held: Held) -> Delivery | None:
        """Call the endpoint, and again as its retries allow. None: this row has done with it."""
        endpoint, tries, keys_tried = held.endpoint, 0, 0
        while True:
            outcome = self._call(held)
            if isinstance(outcome, Delivery):
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
        self.given_up_on.add(endpoint.name)
        return None

    def _back_off(self, endpoint: Endpoint, tries: int, failure: CallFailed) -> bool:
        """Sleep before the next try; False when there should be none."""
        retries = min(endpoint.max_retries, 1) if failure.unknown else endpoint.max_retries
        if tries > retries or self.home.desk.closed(endpoint):
            return False
        delay = min(BACKOFF_CAP_SECONDS, endpoint.retry_delay_seconds * 2 ** (tries - 1))
        delay = self._jittered(delay)
        if self.home.desk.now() + int(delay * SECOND) > self._latest(endpoint):
            return False
        return self.home.desk.wait(endpoint, delay)

    def _with_newest_keys(self, endpoint: Endpoint) -> Endpoint:
        """A rejected key has the secret read again: the mended keys may be there already."""
        self.home.source.refresh()
        newest = {e.name: e for e in self.home.source.endpoints().endpoints}
        if endpoint.name not in newest:
            return endpoint
        return endpoint.model_copy(update={"api_keys": newest[endpoint.name].api_keys})

    def _call(self, held: Held) -> Delivery | CallFailed:
        """One call, accounted for whatever happens. Raises RowRejected when it blames the row."""
        endpoint, plan = held.endpoint, self.plans[held.endpoint.name]
        self.slot_wait_ms += held.slot_wait_ms
        sent_at, outcome = self._send(held, plan)
        latency_ms = round((self.home.clock.now() - sent_at) * 1000)
        failure = outcome if isinstance(outcome, CallFailed) else None
        try:
            self.errand.after_call(endpoint, plan, outcome)
        finally:
            self.home.aftermath.learn(held, failure, int(sent_at * SECOND))
            self.home.aftermath.tell(held, plan, failure, latency_ms)
        if isinstance(outcome, CallFailed):
            if outcome.outcome.blames_row:
                raise RowRejected(outcome.reason, f"{endpoint.name}: {outcome.detail}") from outcome
            self.failures.append((endpoint, outcome))
            return outcome
        return Delivery(
            answer=outcome,
            plan=plan,
            endpoint=endpoint,
            fallback=endpoint.tier != min(e.tier for e in self.secret.endpoints),
            latency_ms=latency_ms,
            slot_wait_ms=self.slot_wait_ms,
            calls=self.calls,
            warnings=tuple(f"{name} was passed over: {why}" for name, why in self.unfit.items()),
        )

    def _send(self, held: Held, plan: CallPlan) -> tuple[float, EditAnswer | CallFailed]:
        """(when it was sent, what came). Anything but an outcome gives the booking back."""
        endpoint = held.endpoint
        try:
            editor = self.editors[endpoint.provider]
            self.errand.before_call(endpoint, plan)
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
        lasting = {n: until for n, (gate, until) in self.out.items() if gate is not Gate.KEYS}
        if not lasting:
            raise self._keys_rest()
        name = min(lasting, key=lambda n: lasting[n])
        endpoint = next(e for e in self.secret.endpoints if e.name == name)
        if lasting[name] > self._latest(endpoint):
            why = ", ".join(f"{n} ({gate})" for n, (gate, _) in sorted(self.out.items()))
            raise self._deferral(f"every endpoint is out of service: {why}", lasting[name])
        self.home.desk.wait_until_open(endpoint, lasting[name])

    def _unplaceable(self) -> RowRejected | RetryRow:
        if self.missing:
            names = ", ".join(sorted(self.missing))
            return RetryRow(Reason.NO_ENDPOINT, f"this deployment cannot call {names}")
        why = "; ".join(f"{name}: {why}" for name, why in sorted(self.unfit.items()))
        return RowRejected(Reason.BAD_REQUEST, f"no endpoint can honour this row: {why}")

    def _keys_rest(self) -> RetryRow:
        endpoint = next(e for e in self.secret.endpoints if e.name in self.out)
        state = self.home.desk.view.state(endpoint.name)
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
        soon = self.home.desk.now() + int(LONG_WAIT_SECONDS * SECOND)
        return min(soon, self._latest(endpoint))

    def _jittered(self, seconds: float) -> float:
        return seconds * self.home.rng.uniform(1 - JITTER, 1 + JITTER)


def _retry(endpoint: Endpoint, reason: Reason, detail: str, delay: float) -> RetryRow:
    return RetryRow(
        reason,
        f"{endpoint.name}: {detail}",
        delay_seconds=delay,
        provider=endpoint.provider.value,
        endpoint=endpoint.name,
    )
