"""The endpoints table in memory: an ordinary implementation of ports.EndpointStates."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.endpoint_state import (
    EndpointState,
    GoodAnswers,
    Rejection,
    Reservation,
    ReservationRequest,
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
        self._count("reserve")
        with self._lock:
            state = self.items[endpoint]
            planned = rate_limiter.plan_reservation(state, request)
            if isinstance(planned, Rejection):
                return planned, state
            return planned, self._store(endpoint, reserved(state, request, planned))

    def settle(
        self, endpoint: str, lease: str, counted_as: GoodAnswers | None = None
    ) -> EndpointState:
        self._count("settle")
        with self._lock:
            state = circuit_breaker.without_lease(self.items[endpoint], lease)
            if counted_as:
                state = replace(state, **{counted_as: getattr(state, counted_as) + 1})
            return self._store(endpoint, state)

    def report(
        self, endpoint: str, transition: Callable[[EndpointState], EndpointState]
    ) -> tuple[EndpointState, EndpointState]:
        self._count("report")
        with self._lock:
            before = self.items[endpoint]
            after = transition(before)
            return before, before if after == before else self._store(endpoint, after)

    def _store(self, endpoint: str, state: EndpointState) -> EndpointState:
        revision = self.items[endpoint].revision + 1
        self.items[endpoint] = replace(state, revision=revision)
        return self.items[endpoint]

    def _count(self, request: str) -> None:
        self.requests[request] += 1
        if request in self.unavailable:
            raise StatesUnavailable("the endpoints table did not answer")


def reserved(
    state: EndpointState, request: ReservationRequest, planned: Reservation
) -> EndpointState:
    """The state after the update that `planned` describes."""
    leases = {i: until for i, until in state.leases.items() if i not in planned.expired_leases}
    base = planned.earliest if planned.idle else state.next_slot + planned.extra
    lease_end = base - (0 if planned.idle else planned.extra) + request.lease_duration
    if request.limits.max_in_flight:
        leases[request.lease] = lease_end
    after = replace(
        state,
        next_slot=base + planned.interval,
        last_interval=planned.interval,
        calls=state.calls + 1,
        leases=leases,
        breaker_until=lease_end if planned.probe else state.breaker_until,
        probe=request.lease if planned.probe else state.probe,
    )
    if request.day is None:
        return after
    day_calls = 1 if planned.new_day else state.day_calls + 1
    return replace(after, day=max(state.day, request.day.number), day_calls=day_calls)
