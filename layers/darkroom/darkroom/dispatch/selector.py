"""Selects one endpoint of a tier, and waits for a slot there.

An endpoint with a free slot is used before any wait. Among those with a free slot the draw is by
weight, lowered by recent failures; when there is none, the earliest slot is reserved.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.dispatch.state_cache import Availability, StateCache
from darkroom.endpoint_state import SECOND, RejectionReason, Reservation
from darkroom.endpoints import Endpoint, key_fingerprint
from darkroom.ports import Clock

WAIT_STEP_SECONDS = 0.5  # how often a waiting thread checks the state that other threads updated
# Before a slot is used, a state older than a third of the backlog is read again: a busy process
# updates it more often. After recent failures, a second is enough to make it stale.
STALE_AFTER = 3 * SECOND
STALE_AFTER_FAILURES = SECOND
FAILING = 0.5  # recent failures
CLOSE_SLOTS = SECOND // 2  # slots this close to each other count as equally early
MAX_LOST_RACES = 4  # for the better endpoint, before any slot at the chosen one will do


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
    """No endpoint can be called in time: all are out of service, or merely busy."""

    out_of_service: bool
    available_at: int
    reasons: dict[str, RejectionReason]


class Selector:
    """One per process, shared by its threads. The methods may raise StatesUnavailable."""

    def __init__(self, state_cache: StateCache, clock: Clock, rng: random.Random) -> None:
        self._state_cache = state_cache
        self._clock = clock
        self._rng = rng
        self._next_key: dict[str, int] = {}

    def acquire(
        self, endpoints: Sequence[Endpoint], latest_slot: Callable[[Endpoint], int]
    ) -> Permit | NoSlot:
        """Wait for the right to call one of `endpoints`, at its `latest_slot` at the latest."""
        started_at, lost_races = self._state_cache.now(), 0
        while True:
            now = self._state_cache.now()
            available = {e.name: self._state_cache.availability(e, now) for e in endpoints}
            choice = self._choose(endpoints, available, latest_slot, now)
            if isinstance(choice, NoSlot):
                return choice
            endpoint, latest = choice
            availability = available[endpoint.name]
            if availability.reason is RejectionReason.IN_FLIGHT and availability.available_at > now:
                self._clock.sleep(WAIT_STEP_SECONDS)
                continue
            if lost_races >= MAX_LOST_RACES:
                latest = latest_slot(endpoint)
            lease = f"{self._rng.getrandbits(48):012x}"
            reservation = self._state_cache.reserve(endpoint, lease, latest)
            if reservation is None:
                lost_races += 1
                continue
            permit = self._redeem(endpoint, lease, reservation, started_at)
            if permit is not None:
                return permit

    def wait_until(self, until: int, condition: Callable[[], bool]) -> bool:
        """Sleep while `condition` holds; False when it ceased to hold before `until`."""
        while condition():
            left = until - self._state_cache.now()
            if left <= 0:
                return True
            self._clock.sleep(min(WAIT_STEP_SECONDS, left / SECOND))
        return False

    def _choose(
        self,
        endpoints: Sequence[Endpoint],
        available: Mapping[str, Availability],
        latest_slot: Callable[[Endpoint], int],
        now: int,
    ) -> tuple[Endpoint, int] | NoSlot:
        """The endpoint, and the latest slot there that is better than another endpoint's."""

        def available_at(endpoint: Endpoint) -> int:
            return available[endpoint.name].available_at

        reasons = {name: a.reason for name, a in available.items() if a.reason is not None}
        in_service = [e for e in endpoints if not available[e.name].out_of_service]
        if not in_service:
            return NoSlot(True, min(map(available_at, endpoints)), reasons)
        in_time = [e for e in in_service if max(now, available_at(e)) <= latest_slot(e)]
        if not in_time:
            return NoSlot(False, min(map(available_at, in_service)), reasons)
        free = [e for e in in_time if available_at(e) <= now]
        # The time of a slot is known; a place in flight becomes free when some call ends.
        with_slot = [e for e in in_time if reasons.get(e.name) is not RejectionReason.IN_FLIGHT]
        chosen = self._draw(free, now) if free else min(with_slot or in_time, key=available_at)
        others = [max(now, available_at(e)) for e in with_slot if e is not chosen]
        if not others:
            return chosen, latest_slot(chosen)
        # The others' slots are by their last known state, so they are later by now. When every
        # endpoint is busy, which one is used matters little, and another try costs a round trip.
        second = min(others)
        slack = 0 if second <= now else max(CLOSE_SLOTS, second - now)
        return chosen, min(latest_slot(chosen), second + slack)

    def _draw(self, endpoints: list[Endpoint], now: int) -> Endpoint:
        if len(endpoints) == 1:
            return endpoints[0]
        weights = [
            circuit_breaker.effective_weight(e.weight, self._state_cache.state(e.name), now)
            for e in endpoints
        ]
        return self._rng.choices(endpoints, weights)[0]

    def _redeem(
        self, endpoint: Endpoint, lease: str, reservation: Reservation, started_at: int
    ) -> Permit | None:
        """Wait for the slot. None when it cannot be used: the reservation is released then."""
        key = None
        try:
            if self._wait_for_slot(endpoint, reservation):
                key = self._next_usable_key(endpoint)
        finally:
            if key is None:
                self._state_cache.release_unused(endpoint, lease, probe=reservation.probe)
        if key is None:
            return None
        waited_ms = (self._state_cache.now() - started_at) // 1000
        return Permit(endpoint, key, lease, reservation.probe, waited_ms)

    def _wait_for_slot(self, endpoint: Endpoint, reservation: Reservation) -> bool:
        """True at the time of the slot; False when it is void or missed."""
        if not self.wait_until(reservation.slot, lambda: self._is_valid(endpoint, reservation)):
            return False
        name, now = endpoint.name, self._state_cache.now()
        state, age = self._state_cache.state(name), self._state_cache.age(name, now)
        backlog_at_update = state.next_slot - (now - age)
        stale_after = max(STALE_AFTER, backlog_at_update // 3)
        if circuit_breaker.recent_failures(state, now) >= FAILING:
            stale_after = STALE_AFTER_FAILURES
        if age > stale_after:
            self._state_cache.read(name)
            if not self._is_valid(endpoint, reservation):
                return False
        return self._state_cache.now() - reservation.slot <= rate_limiter.MAX_LATENESS

    def _is_valid(self, endpoint: Endpoint, reservation: Reservation) -> bool:
        """The breaker has not opened since the reservation, and no pause covers the slot."""
        if reservation.probe:
            return True
        state = self._state_cache.state(endpoint.name)
        is_open = circuit_breaker.is_open(state, self._state_cache.now())
        return not is_open and state.paused_until <= reservation.slot

    def _next_usable_key(self, endpoint: Endpoint) -> SecretStr | None:
        """The keys in turn, except those that are cooling down."""
        cooldowns = self._state_cache.state(endpoint.name).key_cooldowns
        by_fingerprint = {key_fingerprint(key): key for key in endpoint.keys}
        usable = circuit_breaker.usable_keys(by_fingerprint, cooldowns, self._state_cache.now())
        if not usable:
            return None
        turn = self._next_key.get(endpoint.name, self._rng.randrange(len(by_fingerprint)))
        self._next_key[endpoint.name] = turn + 1
        return by_fingerprint[usable[turn % len(usable)]]
