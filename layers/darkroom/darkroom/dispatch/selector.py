"""The endpoints of one tier as a pool: who is asked, and waiting for the turn.

Work is conserved: an endpoint with a free slot is used before one waits. Among the free ones the
draw is by weight, less recent failures; when none is free, the earliest slot is booked.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.dispatch.state_cache import SLICE_SECONDS, Availability, StateCache
from darkroom.endpoint_state import SECOND, EndpointState, RejectionReason, Reservation
from darkroom.endpoints import Endpoint, key_fingerprint
from darkroom.ports import Clock

# A slot whose endpoint was not heard of for a third of its backlog is checked against the table
# before it is used: a busy process hears of it more often. If the last that was heard was bad, a
# second is enough.
STALE = 3 * SECOND
STALE_IN_TROUBLE = SECOND
TROUBLE = 0.5  # recent failures
NEAR = SECOND // 2  # slots this close to each other count as equally early
PATIENCE = 4  # lost races for the better endpoint before taking what comes


@dataclass(frozen=True, slots=True)
class Permit:
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
    gates: dict[str, RejectionReason]


class Pool:
    """Chooses, books and waits. One per process, shared by its threads."""

    def __init__(self, state_cache: StateCache, clock: Clock, rng: random.Random) -> None:
        self._state_cache = state_cache
        self._clock = clock
        self._rng = rng
        self._next_key: dict[str, int] = {}

    def acquire(
        self, endpoints: Sequence[Endpoint], latest: Callable[[Endpoint], int]
    ) -> Permit | NoSlot:
        """Wait for the right to call one of `endpoints`, with a slot no later than `latest` says.

        Raises StatesUnavailable.
        """
        asked_at, lost = self._state_cache.now(), 0
        while True:
            now = self._state_cache.now()
            looks = {e.name: self._state_cache.look(e, now) for e in endpoints}
            choice = self._choose(endpoints, looks, latest, now)
            if isinstance(choice, NoSlot):
                return choice
            endpoint, cap = choice
            look = looks[endpoint.name]
            if look.gate is RejectionReason.IN_FLIGHT and look.opens_at > now:
                self._clock.sleep(SLICE_SECONDS)
                continue
            lease = f"{self._rng.getrandbits(48):012x}"
            booking = self._state_cache.book(
                endpoint, lease, latest(endpoint) if lost >= PATIENCE else cap
            )
            if booking is None or booking.slot is None:
                lost += 1
                continue
            held = self._take(endpoint, lease, booking, asked_at)
            if held is not None:
                return held

    def abandon(self, held: Permit) -> None:
        """Give back a booking that led to no call."""
        self._state_cache.return_unused(held.endpoint, held.lease, held.probe)

    def _choose(
        self,
        endpoints: Sequence[Endpoint],
        looks: Mapping[str, Availability],
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
        # A slot is sure; a place in flight is free when somebody's call ends, nobody knows when.
        paced = [e for e in timely if looks[e.name].gate is not RejectionReason.IN_FLIGHT]
        if free:
            chosen = self._draw(free, now)
        else:
            chosen = min(paced or timely, key=lambda e: looks[e.name].opens_at)
        others = [max(now, looks[e.name].opens_at) for e in paced if e is not chosen]
        if not others:
            return chosen, latest(chosen)
        # The others' slots are where they were last seen, and surely later by now. With every
        # endpoint busy it matters little which one is asked, and asking again costs a round trip.
        second = min(others)
        slack = 0 if second <= now else max(NEAR, second - now)
        return chosen, min(latest(chosen), second + slack)

    def _draw(self, endpoints: list[Endpoint], now: int) -> Endpoint:
        if len(endpoints) == 1:
            return endpoints[0]
        weights = []
        for endpoint in endpoints:
            state = self._state_cache.view.state(endpoint.name) or EndpointState()
            weights.append(circuit_breaker.effective_weight(endpoint.weight, state, now))
        return self._rng.choices(endpoints, weights)[0]

    def _take(
        self, endpoint: Endpoint, lease: str, booking: Reservation, asked_at: int
    ) -> Permit | None:
        """Wait for the slot. None when it came to nothing: the booking is given back then."""
        try:
            key = self._key(endpoint) if self._wait_for(endpoint, booking) else None
        except BaseException:
            self._state_cache.return_unused(endpoint, lease, booking.probe)
            raise
        if key is None:
            self._state_cache.return_unused(endpoint, lease, booking.probe)
            return None
        waited = (self._state_cache.now() - asked_at) // 1000
        return Permit(endpoint, key, lease, booking.probe, waited)

    def _wait_for(self, endpoint: Endpoint, booking: Reservation) -> bool:
        """True at the slot's time; False when it is void or missed or the endpoint out."""
        slot = booking.slot or 0
        while (left := slot - self._state_cache.now()) > 0:
            self._clock.sleep(min(SLICE_SECONDS, left / SECOND))
            if not self._still_good(endpoint, booking):
                return False
        now = self._state_cache.now()
        state = self._state_cache.view.state(endpoint.name) or booking.state
        age = self._state_cache.view.age(endpoint.name, now)
        backlog = state.next - now + age  # when it was last heard of
        stale = max(STALE, backlog // 3)
        if circuit_breaker.recent_failures(state, now) >= TROUBLE:
            stale = STALE_IN_TROUBLE
        if age > stale:
            self._state_cache.read(endpoint)
            if not self._still_good(endpoint, booking):
                return False
        return self._state_cache.now() - slot <= rate_limiter.LATE

    def _still_good(self, endpoint: Endpoint, booking: Reservation) -> bool:
        state = self._state_cache.view.state(endpoint.name) or booking.state
        if booking.probe:
            return True
        out = state.tripped and state.breaker_until > self._state_cache.now()
        return not out and state.paused_until <= (booking.slot or 0)

    def _key(self, endpoint: Endpoint) -> SecretStr | None:
        """The keys in turn, but those that rest."""
        state = self._state_cache.view.state(endpoint.name) or EndpointState()
        by_fingerprint = {key_fingerprint(k): k for k in endpoint.api_keys}
        usable = circuit_breaker.usable(by_fingerprint, state.keys, self._state_cache.now())
        if not usable:
            return None
        turn = self._next_key.get(endpoint.name, self._rng.randrange(len(by_fingerprint)))
        self._next_key[endpoint.name] = turn + 1
        return by_fingerprint[usable[turn % len(usable)]]
