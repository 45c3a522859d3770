"""The endpoints of one tier as a pool: who is asked, and waiting for the turn.

Work is conserved: an endpoint with a free slot is used before one waits. Among the free ones the
draw is by weight, less recent failures; when none is free, the earliest slot is booked.
"""

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from darkroom import health, limiter
from darkroom.endpoint_state import (
    SECOND,
    Ask,
    Booking,
    EndpointState,
    Gate,
    Health,
    Move,
    Refused,
    Report,
    StatesUnavailable,
)
from darkroom.endpoints import Endpoint, key_fingerprint
from darkroom.ports import Clock, EndpointStates, Telemetry
from darkroom.view import View

SLICE_SECONDS = 0.5  # how often a waiting thread looks at what the others saw
POLL = 10 * SECOND  # between looks at the table for a free place in flight, per process
RECHECK = 10 * SECOND  # between looks at the table for an endpoint that is out of service
STALE = 30 * SECOND  # a booking this long unseen is checked against the table before it is used
NEAR = SECOND // 2  # slots this close to each other count as equally early
PATIENCE = 4  # lost races for the better endpoint before taking what comes
FAR = 1 << 62


@dataclass(frozen=True, slots=True)
class Held:
    """The right to make one call now."""

    endpoint: Endpoint
    key: SecretStr
    lease: str
    probe: bool
    slot_wait_ms: int


@dataclass(frozen=True, slots=True)
class NoSlot:
    """No endpoint can be called in time. `closed`: all are out of service, not merely busy."""

    closed: bool
    opens_at: int
    gates: dict[str, Gate]


@dataclass(frozen=True, slots=True)
class _Look:
    """What the last state seen says of an endpoint: callable from `opens_at`, held up by `gate`."""

    opens_at: int
    gate: Gate | None

    @property
    def closed(self) -> bool:
        return self.gate is not None and self.gate.closed


class Pool:
    """Books, waits and gives back. One per process, shared by its threads."""

    def __init__(
        self,
        states: EndpointStates,
        clock: Clock,
        rng: random.Random,
        telemetry: Telemetry,
        margin: int = limiter.MARGIN,
    ) -> None:
        self.view = View()
        self._states = states
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._margin = margin
        self._turns: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._next_key: dict[str, int] = {}

    def now(self) -> int:
        return int(self._clock.now() * SECOND)

    def acquire(
        self, endpoints: Sequence[Endpoint], latest: Callable[[Endpoint], int]
    ) -> Held | NoSlot:
        """Wait for the right to call one of `endpoints`, with a slot no later than `latest` says.

        Raises StatesUnavailable.
        """
        asked_at, lost = self.now(), 0
        while True:
            now = self.now()
            looks = {e.name: self._look(e, now) for e in endpoints}
            choice = self._choose(endpoints, looks, latest, now)
            if isinstance(choice, NoSlot):
                return choice
            endpoint, cap = choice
            look = looks[endpoint.name]
            if look.gate is Gate.IN_FLIGHT and look.opens_at > now:
                self._clock.sleep(SLICE_SECONDS)
                continue
            lease = f"{self._rng.getrandbits(48):012x}"
            booking = self._book(endpoint, lease, latest(endpoint) if lost >= PATIENCE else cap)
            if booking is None or booking.slot is None:
                lost += 1
                continue
            held = self._take(endpoint, lease, booking, asked_at)
            if held is not None:
                return held

    def closed(self, endpoint: Endpoint) -> Gate | None:
        """The gate that keeps the endpoint out of service, as last seen."""
        look = self._look(endpoint, self.now())
        return look.gate if look.closed else None

    def wait(self, endpoint: Endpoint, seconds: float) -> bool:
        """Sleep, but no longer than the endpoint is in service. False when it went out of it."""
        until = self.now() + int(seconds * SECOND)
        while (left := until - self.now()) > 0:
            self._clock.sleep(min(SLICE_SECONDS, left / SECOND))
            if self.closed(endpoint):
                return False
        return True

    def wait_until_open(self, endpoint: Endpoint, until: int) -> None:
        """Sleep until the endpoint is back in service, at the latest `until`."""
        while (left := until - self.now()) > 0 and self.closed(endpoint):
            self._clock.sleep(min(SLICE_SECONDS, left / SECOND))

    def abandon(self, held: Held) -> None:
        """Give back a booking that led to no call."""
        self._return_unused(held.endpoint, held.lease, held.probe)

    def give_back(
        self, endpoint: Endpoint, lease: str, how: Health, *, probe: bool = False
    ) -> EndpointState | None:
        """End a booking and tell how its call went. A table that does not answer is not fatal here:
        the lease runs out by itself. None then."""
        now = self.now()
        state = self.view.state(endpoint.name)
        opens = (state.opens if state else 0) + 1
        report = Report(lease, now, how, probe, now + health.cool_down(opens))
        try:
            return self._saw(endpoint, self._states.settle(endpoint.name, report))
        except StatesUnavailable as error:
            self._telemetry.warning(
                "lease_not_given_back", endpoint=endpoint.name, detail=str(error)
            )
            return None

    def read(self, endpoint: Endpoint) -> EndpointState:
        return self._saw(endpoint, self._states.read(endpoint.name))

    def _saw(self, endpoint: Endpoint, state: EndpointState) -> EndpointState:
        self.view.saw(endpoint.name, state, self.now())
        return state

    def _look(self, endpoint: Endpoint, now: int) -> _Look:
        look = self._judge(endpoint, now)
        if look.closed and self.view.age(endpoint.name, now) > RECHECK:
            self.read(endpoint)  # another process may have found it well again
            look = self._judge(endpoint, now)
        return look

    def _judge(self, endpoint: Endpoint, now: int) -> _Look:
        state = self.view.state(endpoint.name) or self.read(endpoint)
        fingerprints = [key_fingerprint(k) for k in endpoint.api_keys]
        if not health.usable(fingerprints, state.keys, now):
            return _Look(min(state.keys[f].until for f in fingerprints), Gate.KEYS)
        verdict = limiter.decide(state, self._ask(endpoint, "", now, FAR))
        if isinstance(verdict, Move):
            return _Look(verdict.slot, Gate.PACE if verdict.slot > now else None)
        if verdict.gate is Gate.IN_FLIGHT:
            polled = now - self.view.age(endpoint.name, now) + POLL
            return _Look(max(now, min(polled, verdict.opens_at)), Gate.IN_FLIGHT)
        # However late a slot may be, PACE refuses only what would fall into the next day.
        gate = Gate.DAY if verdict.gate is Gate.PACE else verdict.gate
        return _Look(verdict.opens_at, gate)

    def _ask(self, endpoint: Endpoint, lease: str, now: int, latest: int) -> Ask:
        day = limiter.provider_day(endpoint.provider, now) if endpoint.requests_per_day else None
        hold = int(endpoint.timeout_seconds * SECOND) + limiter.LEASE_GRACE
        limits = limiter.limits_of(endpoint, self._margin)
        return Ask(lease, now, latest, hold, limits, day)

    def _choose(
        self,
        endpoints: Sequence[Endpoint],
        looks: dict[str, _Look],
        latest: Callable[[Endpoint], int],
        now: int,
    ) -> tuple[Endpoint, int] | NoSlot:
        """Whom to ask, and the latest slot that makes asking it better than asking another."""
        gates = {name: look.gate for name, look in looks.items() if look.gate is not None}
        serving = [e for e in endpoints if not looks[e.name].closed]
        if not serving:
            return NoSlot(True, min(looks[e.name].opens_at for e in endpoints), gates)
        timely = [e for e in serving if max(now, looks[e.name].opens_at) <= latest(e)]
        if not timely:
            return NoSlot(False, min(looks[e.name].opens_at for e in serving), gates)
        free = [e for e in timely if looks[e.name].opens_at <= now]
        if free:
            chosen = self._draw(free, now)
        else:
            chosen = min(timely, key=lambda e: looks[e.name].opens_at)
        others = [
            max(now, looks[e.name].opens_at)
            for e in timely
            if e is not chosen and looks[e.name].gate is not Gate.IN_FLIGHT
        ]
        if not others:
            return chosen, latest(chosen)
        second = min(others)
        return chosen, min(latest(chosen), second if second <= now else second + NEAR)

    def _draw(self, endpoints: list[Endpoint], now: int) -> Endpoint:
        if len(endpoints) == 1:
            return endpoints[0]
        weights = []
        for endpoint in endpoints:
            state = self.view.state(endpoint.name) or EndpointState()
            weights.append(health.effective_weight(endpoint.weight, state, now))
        return self._rng.choices(endpoints, weights)[0]

    def _book(self, endpoint: Endpoint, lease: str, cap: int) -> Booking | None:
        """One booking at a time per endpoint and process: each starts from the newest state.

        None when the newest state leaves nothing to try.
        """
        with self._turns[endpoint.name]:
            now = self.now()
            ask = self._ask(endpoint, lease, now, max(now, cap))
            guess = self.view.state(endpoint.name)
            in_time = guess is None or not isinstance(limiter.decide(guess, ask), Refused)
            if not in_time and self.view.age(endpoint.name, now) < POLL:
                return None
            booking = self._states.book(endpoint.name, ask, guess)
            self._saw(endpoint, booking.state)
            return booking

    def _take(self, endpoint: Endpoint, lease: str, booking: Booking, asked_at: int) -> Held | None:
        """Wait for the slot. None when it came to nothing: the booking is given back then."""
        try:
            key = self._key(endpoint) if self._wait_for(endpoint, booking) else None
        except BaseException:
            self._return_unused(endpoint, lease, booking.probe)
            raise
        if key is None:
            self._return_unused(endpoint, lease, booking.probe)
            return None
        waited = (self.now() - asked_at) // 1000
        return Held(endpoint, key, lease, booking.probe, waited)

    def _return_unused(self, endpoint: Endpoint, lease: str, probe: bool) -> None:
        if endpoint.max_in_flight or probe:
            self.give_back(endpoint, lease, Health.UNTOLD, probe=probe)

    def _wait_for(self, endpoint: Endpoint, booking: Booking) -> bool:
        """True at the slot's time; False when it is void or missed or the endpoint out."""
        slot = booking.slot or 0
        while (left := slot - self.now()) > 0:
            self._clock.sleep(min(SLICE_SECONDS, left / SECOND))
            if not self._still_good(endpoint, booking):
                return False
        if self.view.age(endpoint.name, self.now()) > STALE:
            self.read(endpoint)
            if not self._still_good(endpoint, booking):
                return False
        return self.now() - slot <= limiter.LATE

    def _still_good(self, endpoint: Endpoint, booking: Booking) -> bool:
        state = self.view.state(endpoint.name) or booking.state
        if booking.probe:
            return True
        out = state.tripped and state.breaker_until > self.now()
        return not out and state.paused_until <= (booking.slot or 0)

    def _key(self, endpoint: Endpoint) -> SecretStr | None:
        """The keys in turn, but those that rest."""
        state = self.view.state(endpoint.name) or EndpointState()
        by_fingerprint = {key_fingerprint(k): k for k in endpoint.api_keys}
        usable = health.usable(by_fingerprint, state.keys, self.now())
        if not usable:
            return None
        turn = self._next_key.get(endpoint.name, self._rng.randrange(len(by_fingerprint)))
        self._next_key[endpoint.name] = turn + 1
        return by_fingerprint[usable[turn % len(usable)]]
