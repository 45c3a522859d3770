"""Selects one endpoint of a tier, and waits for a slot there.

An endpoint with a free slot is used before any wait. Among those with a free slot the draw is by
weight, lowered by recent failures; when there is none, the earliest slot is reserved.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.dispatch.state_cache import Availability, Candidate, StateCache
from darkroom.endpoint_state import SECOND, RejectionReason, Reservation
from darkroom.endpoints import Endpoint
from darkroom.ports import Clock

WAIT_STEP_SECONDS = 0.5  # how often a waiting thread checks the state that other threads updated
# Before a slot is used, an older state is read again. A worker may go on for this long after an
# epoch began, and for its lead and lateness: circuit_breaker.EPOCH_GUARD is more.
STALE_AFTER = SECOND
AFTER_RESERVATION = 2  # requests of a call's preparation: a read of the state, `sent`
CLOSE_SLOTS = SECOND // 2  # slots this close to each other count as equally early
MAX_LOST_RACES = 4  # for the better endpoint, before any slot at the chosen one will do


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to make one call, at its slot. `key` is one of the endpoint's, with its id."""

    endpoint: Endpoint
    key: SecretStr
    key_id: str
    lease: str
    reservation: Reservation
    slot_wait_ms: int


@dataclass(frozen=True, slots=True)
class NoSlot:
    """No endpoint can be called in time: all are out of service, or merely busy."""

    out_of_service: bool
    available: dict[str, Availability]

    @property
    def available_at(self) -> int:
        """Of the first that is in service, if any is."""
        all_of_them = self.available.values()
        in_service = [a.available_at for a in all_of_them if not a.out_of_service]
        return min(in_service or [a.available_at for a in all_of_them])


class Selector:
    """One per process, shared by its threads. The methods may raise StatesUnavailable."""

    def __init__(self, state_cache: StateCache, clock: Clock, rng: random.Random) -> None:
        self._state_cache = state_cache
        self._clock = clock
        self._rng = rng
        self._next_key: dict[str, int] = {}

    def acquire(
        self, candidates: Sequence[Candidate], latest_slots: Mapping[str, int]
    ) -> Permit | NoSlot:
        """Wait for the right to call one of `candidates`, not later than its latest slot."""
        started_at, lost_races = self._state_cache.now(), 0
        while True:
            now = self._state_cache.now()
            available = {c.name: self._state_cache.availability(c, now) for c in candidates}
            choice = self._choose(candidates, available, latest_slots, now)
            if isinstance(choice, NoSlot):
                return choice
            candidate, latest = choice
            availability = available[candidate.name]
            if availability.reason is RejectionReason.IN_FLIGHT and availability.available_at > now:
                self._clock.sleep(WAIT_STEP_SECONDS)
                continue
            if lost_races >= MAX_LOST_RACES:
                latest = latest_slots[candidate.name]
            lease = f"{self._rng.getrandbits(48):012x}"
            reservation = self._state_cache.reserve(candidate, lease, latest)
            if reservation is None:
                lost_races += 1
                continue
            permit = self._redeem(candidate.endpoint, lease, reservation, started_at)
            if permit is not None:
                return permit

    def confirm(self, permit: Permit) -> bool:
        """Wait for the slot; False when it is void or missed: the call must not be sent."""
        endpoint, reservation = permit.endpoint, permit.reservation
        if not self.wait_until(reservation.slot, lambda: self._is_valid(endpoint, reservation)):
            return False
        return self._state_cache.now() - reservation.slot <= rate_limiter.MAX_LATENESS

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
        candidates: Sequence[Candidate],
        available: dict[str, Availability],
        latest_slots: Mapping[str, int],
        now: int,
    ) -> tuple[Candidate, int] | NoSlot:
        """The endpoint, and the latest slot there that is better than another endpoint's."""

        def available_at(candidate: Candidate) -> int:
            return available[candidate.name].available_at

        in_service = [c for c in candidates if not available[c.name].out_of_service]
        in_time = [c for c in in_service if max(now, available_at(c)) <= latest_slots[c.name]]
        if not in_time:
            return NoSlot(not in_service, available)
        free = [c for c in in_time if available_at(c) <= now]
        # The time of a slot is known; a place in flight becomes free when some call ends.
        in_flight = RejectionReason.IN_FLIGHT
        with_slot = [c for c in in_time if available[c.name].reason is not in_flight]
        chosen = self._draw(free, now) if free else min(with_slot or in_time, key=available_at)
        latest = latest_slots[chosen.name]
        others = [max(now, available_at(c)) for c in with_slot if c is not chosen]
        if not others:
            return chosen, latest
        # The others' slots are by their last known state, so they are later by now. When every
        # endpoint is busy, which one is used matters little, and another try costs a round trip.
        second = min(others)
        slack = 0 if second <= now else max(CLOSE_SLOTS, second - now)
        return chosen, min(latest, second + slack)

    def _draw(self, candidates: list[Candidate], now: int) -> Candidate:
        if len(candidates) == 1:
            return candidates[0]
        weights = [
            circuit_breaker.effective_weight(
                c.endpoint.weight, self._state_cache.state(c.name), now
            )
            for c in candidates
        ]
        return self._rng.choices(candidates, weights)[0]

    def _redeem(
        self, endpoint: Endpoint, lease: str, reservation: Reservation, started_at: int
    ) -> Permit | None:
        """Wait until the call is to be prepared. None when the slot cannot be used: released."""
        key_id = None
        try:
            key_id = self._usable_key(endpoint, reservation)
        finally:
            if key_id is None:
                probe = reservation.probe
                self._state_cache.release(endpoint, lease, probe=probe)
        if key_id is None:
            return None
        waited_ms = (max(self._state_cache.now(), reservation.slot) - started_at) // 1000
        key = endpoint.key_ids()[key_id]
        return Permit(endpoint, key, key_id, lease, reservation, waited_ms)

    def _usable_key(self, endpoint: Endpoint, reservation: Reservation) -> str | None:
        """The id of the key for the call, shortly before the slot; None when the slot is void."""
        prepare_at = reservation.slot - self._state_cache.lead(AFTER_RESERVATION)
        if not self.wait_until(prepare_at, lambda: self._is_valid(endpoint, reservation)):
            return None
        self._state_cache.fresh(endpoint.name, STALE_AFTER)
        late = self._state_cache.now() - reservation.slot > rate_limiter.MAX_LATENESS
        if late or not self._is_valid(endpoint, reservation):
            return None
        return self._next_usable_key(endpoint)

    def _is_valid(self, endpoint: Endpoint, reservation: Reservation) -> bool:
        """No epoch has begun since the reservation: the breaker did not open, there is no pause."""
        return self._state_cache.state(endpoint.name).epoch == reservation.epoch

    def _next_usable_key(self, endpoint: Endpoint) -> str | None:
        """The keys in turn, except those that are cooling down."""
        cooldowns = self._state_cache.state(endpoint.name).key_cooldowns
        key_ids = list(endpoint.key_ids())
        usable = circuit_breaker.usable_keys(key_ids, cooldowns, self._state_cache.now())
        if not usable:
            return None
        turn = self._next_key.get(endpoint.name, self._rng.randrange(len(key_ids)))
        self._next_key[endpoint.name] = turn + 1
        return usable[turn % len(usable)]
