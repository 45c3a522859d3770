"""The endpoints table in memory: an ordinary implementation of ports.EndpointStates."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.endpoint_state import (
    EndpointState,
    Health,
    Rejection,
    Reservation,
    ReservationRequest,
    Settlement,
    StatesUnavailable,
)


class InMemoryEndpointStates:
    """`requests` counts what would be round trips; methods named in `unavailable` fail."""

    def __init__(self) -> None:
        self.items: dict[str, EndpointState] = defaultdict(EndpointState)
        self.requests: Counter[str] = Counter()
        self.unavailable: set[str] = set()
        self._lock = threading.Lock()

    def read(self, endpoint: str) -> EndpointState:
        self._count("read")
        return self.items[endpoint]

    def reserve(
        self, endpoint: str, request: ReservationRequest, last_known: EndpointState | None = None
    ) -> tuple[Reservation | Rejection, EndpointState]:
        with self._lock:
            self._count("reserve")
            state = self.items[endpoint]
            planned = rate_limiter.plan_reservation(state, request)
            if isinstance(planned, Rejection):
                return planned, state
            after = self.items[endpoint] = reserved(state, request, planned)
            return planned, after

    def settle(self, endpoint: str, settlement: Settlement) -> EndpointState:
        with self._lock:
            self._count("settle")
            after = self.items[endpoint] = settled(self.items[endpoint], settlement)
            return after

    def change(
        self, endpoint: str, transition: Callable[[EndpointState], EndpointState]
    ) -> tuple[EndpointState, EndpointState]:
        with self._lock:
            before = self.items[endpoint]
            after = transition(before)
            if after != before:
                after = self.items[endpoint] = replace(after, revision=before.revision + 1)
            return before, after

    def _count(self, request: str) -> None:
        self.requests[request] += 1
        if request in self.unavailable:
            raise StatesUnavailable("the endpoints table did not answer")


def reserved(
    state: EndpointState, request: ReservationRequest, planned: Reservation
) -> EndpointState:
    """The state after the update that `planned` describes."""
    leases = {i: until for i, until in state.leases.items() if i not in planned.expired_leases}
    base = request.now if planned.idle else state.next_slot
    lease_end = base + request.lease_duration
    if request.limits.max_in_flight:
        leases[request.lease] = lease_end
    after = replace(
        state,
        next_slot=base + planned.interval,
        calls=state.calls + 1,
        leases=leases,
        breaker_until=lease_end if planned.probe else state.breaker_until,
        revision=state.revision + 1,
    )
    if request.day is None:
        return after
    day_calls = 1 if planned.new_day else state.day_calls + 1
    return replace(after, day=max(state.day, request.day.number), day_calls=day_calls)


def settled(state: EndpointState, settlement: Settlement) -> EndpointState:
    """The state after a reservation's end."""
    state = replace(state, revision=state.revision + 1)
    if settlement.probe:
        return circuit_breaker.probed(state, settlement)
    leases = {i: until for i, until in state.leases.items() if i != settlement.lease}
    state = replace(state, leases=leases)
    if settlement.health is Health.FAILED:
        return circuit_breaker.failed(state, settlement.now)
    good = settlement.health is Health.GOOD
    recovers = good and state.failures > 0 and settlement.sent_at > state.failed_at
    return replace(state, failures=state.failures - 1) if recovers else state
