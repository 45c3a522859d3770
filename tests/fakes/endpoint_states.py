"""The endpoints table in memory: an ordinary implementation of ports.EndpointStates."""

import threading
from collections import Counter, defaultdict
from dataclasses import replace

from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.endpoint_state import (
    EndpointState,
    KeyCooldown,
    Rejection,
    Report,
    Reservation,
    ReservationRequest,
)


class InMemoryEndpointStates:
    """One lock is the table; `requests` counts what would be round trips."""

    def __init__(self) -> None:
        self.items: dict[str, EndpointState] = defaultdict(EndpointState)
        self.requests: Counter[str] = Counter()
        self._lock = threading.Lock()

    def read(self, endpoint: str) -> EndpointState:
        self.requests["read"] += 1
        return self.items[endpoint]

    def book(
        self, endpoint: str, ask: ReservationRequest, guess: EndpointState | None = None
    ) -> Reservation:
        with self._lock:
            self.requests["book"] += 1
            state = self.items[endpoint]
            move = rate_limiter.decide(state, ask)
            if isinstance(move, Rejection):
                return Reservation(state, refused=move)
            after = self._keep(endpoint, rate_limiter.booked(state, ask, move))
            return Reservation(after, slot=move.slot, probe=move.probe)

    def settle(self, endpoint: str, report: Report) -> EndpointState:
        with self._lock:
            self.requests["settle"] += 1
            return self._keep(endpoint, circuit_breaker.settled(self.items[endpoint], report))

    def pause(self, endpoint: str, until: int) -> EndpointState:
        with self._lock:
            state = self.items[endpoint]
            if state.next >= until:
                return state
            after = replace(state, next=until, paused_until=until, rev=state.rev + 1)
            return self._keep(endpoint, after)

    def slow(self, endpoint: str, gap: int, now: int, before: int) -> EndpointState:
        with self._lock:
            state = self.items[endpoint]
            if state.slowed_at >= before:
                return state
            return self._keep(endpoint, replace(state, gap=gap, slowed_at=now, rev=state.rev + 1))

    def trip(self, endpoint: str, until: int) -> tuple[bool, EndpointState]:
        with self._lock:
            state = self.items[endpoint]
            if state.tripped:
                return False, state
            return True, self._keep(endpoint, circuit_breaker.tripped(state, until))

    def rest(self, endpoint: str, until: int) -> EndpointState:
        with self._lock:
            state = self.items[endpoint]
            if state.breaker_until >= until:
                return state
            return self._keep(endpoint, circuit_breaker.resting(state, until))

    def rest_key(self, endpoint: str, fingerprint: str, rest: KeyCooldown) -> EndpointState:
        with self._lock:
            state = self.items[endpoint]
            keys = {**state.keys, fingerprint: rest}
            return self._keep(endpoint, replace(state, keys=keys, rev=state.rev + 1))

    def _keep(self, endpoint: str, state: EndpointState) -> EndpointState:
        self.items[endpoint] = state
        return state
