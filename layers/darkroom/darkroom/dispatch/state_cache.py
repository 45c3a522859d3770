"""Per-process cache of endpoint state; makes and releases reservations."""

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.endpoint_state import (
    SECOND,
    EndpointState,
    Health,
    Rejection,
    RejectionReason,
    Reservation,
    ReservationRequest,
    Settlement,
    StatesUnavailable,
)
from darkroom.endpoints import Endpoint, key_fingerprint
from darkroom.ports import Clock, EndpointStates, Telemetry

OBSERVATION_WINDOW = 60 * SECOND  # over which the interval between calls is observed
MIN_OBSERVED_CALLS = 5
MAX_REORDERING = 5 * SECOND  # a lower revision is an old response; after this, it is a new item
IN_FLIGHT_POLL = 10 * SECOND  # between reads, per process, for a free place in flight
OUT_OF_SERVICE_POLL = 10 * SECOND  # between reads of an endpoint that is out of service
FAR_FUTURE = 1 << 62


@dataclass(frozen=True, slots=True)
class Availability:
    """When an endpoint can be called, by its last known state; `reason` if that is not now."""

    available_at: int
    reason: RejectionReason | None

    @property
    def out_of_service(self) -> bool:
        return self.reason is not None and self.reason.out_of_service


class StateCache:
    """The newest known state of each endpoint, shared by the process's threads.

    Every method may raise StatesUnavailable, except `release`.
    """

    def __init__(self, states: EndpointStates, clock: Clock, telemetry: Telemetry) -> None:
        self._states = states
        self._clock = clock
        self._telemetry = telemetry
        self._known: dict[str, tuple[EndpointState, int]] = {}  # with the time of the update
        self._call_counts: dict[str, deque[tuple[int, int]]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._reserving: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def now(self) -> int:
        return int(self._clock.now() * SECOND)

    def state(self, name: str) -> EndpointState:
        """The last known state; the default one for an endpoint never read."""
        return self._known[name][0] if name in self._known else EndpointState()

    def age(self, name: str, now: int) -> int:
        """Time since the last update."""
        return now - self._known[name][1] if name in self._known else now

    def update(self, name: str, state: EndpointState) -> EndpointState:
        """Keep `state`, unless a newer one is known; returns `state`."""
        now = self.now()
        with self._lock:
            if name in self._known:
                known, updated_at = self._known[name]
                if known.revision > state.revision and now - updated_at < MAX_REORDERING:
                    return state
            self._known[name] = (state, now)
            counts = self._call_counts[name]
            counts.append((now, state.calls))
            while counts[0][0] < now - OBSERVATION_WINDOW:
                counts.popleft()
        return state

    def read(self, name: str) -> EndpointState:
        return self.update(name, self._states.read(name))

    def change(
        self, name: str, transition: Callable[[EndpointState], EndpointState]
    ) -> tuple[EndpointState, EndpointState]:
        """Apply `transition` to the shared state; the states before and after."""
        before, after = self._states.change(name, transition)
        return before, self.update(name, after)

    def observed_interval(self, name: str) -> int:
        """The interval between the recent calls of all workers; 0 when there were too few."""
        with self._lock:
            counts = self._call_counts[name]
            if not counts:
                return 0
            (since, first), (until, last) = counts[0], counts[-1]
            calls = last - first
            return (until - since) // calls if calls >= MIN_OBSERVED_CALLS else 0

    def availability(self, endpoint: Endpoint, now: int) -> Availability:
        availability = self._availability(endpoint, now)
        if availability.out_of_service and self.age(endpoint.name, now) > OUT_OF_SERVICE_POLL:
            self.read(endpoint.name)  # a probe by another process may have succeeded
            availability = self._availability(endpoint, now)
        return availability

    def out_of_service(self, endpoint: Endpoint) -> bool:
        return self.availability(endpoint, self.now()).out_of_service

    def reserve(self, endpoint: Endpoint, lease: str, latest_slot: int) -> Reservation | None:
        """Reserve the earliest slot. None when there is none in time.

        One reservation at a time per endpoint and process: each starts from the newest state.
        """
        name = endpoint.name
        with self._reserving[name]:
            now = self.now()
            request = self._request(endpoint, lease, now, max(now, latest_slot))
            last_known = self.state(name) if name in self._known else None
            if last_known is not None and self.age(name, now) < IN_FLIGHT_POLL:
                planned = rate_limiter.plan_reservation(last_known, request)
                if isinstance(planned, Rejection):
                    return None
            reservation, state = self._states.reserve(name, request, last_known)
            self.update(name, state)
            return reservation if isinstance(reservation, Reservation) else None

    def release(
        self,
        endpoint: Endpoint,
        lease: str,
        health: Health,
        *,
        sent_at: int = 0,
        probe: bool = False,
    ) -> EndpointState | None:
        """End a reservation and report how its call went.

        None when the table does not answer, which is not fatal here: the lease expires by itself.
        """
        name, settlement = endpoint.name, Settlement(lease, self.now(), health, sent_at, probe)
        try:
            return self.update(name, self._states.settle(name, settlement))
        except StatesUnavailable as error:
            self._telemetry.warning("lease_not_released", endpoint=name, detail=str(error))
            return None

    def release_unused(self, endpoint: Endpoint, lease: str, *, probe: bool) -> None:
        """End a reservation that led to no call."""
        if endpoint.max_in_flight or probe:
            self.release(endpoint, lease, Health.NOT_CALLED, probe=probe)

    def _availability(self, endpoint: Endpoint, now: int) -> Availability:
        name = endpoint.name
        state = self.state(name) if name in self._known else self.read(name)
        fingerprints = [key_fingerprint(key) for key in endpoint.keys]
        if not circuit_breaker.usable_keys(fingerprints, state.key_cooldowns, now):
            until = min(state.key_cooldowns[f].until for f in fingerprints)
            return Availability(until, RejectionReason.KEYS)
        request = self._request(endpoint, "", now, FAR_FUTURE)
        planned = rate_limiter.plan_reservation(state, request)
        if isinstance(planned, Reservation):
            busy = RejectionReason.RATE if planned.slot > now else None
            return Availability(planned.slot, busy)
        if planned.reason is RejectionReason.IN_FLIGHT:
            next_poll = now - self.age(name, now) + IN_FLIGHT_POLL
            return Availability(max(now, min(next_poll, planned.retry_at)), planned.reason)
        # Without a latest slot, RATE rejects only what would fall into the next day.
        spent_day = planned.reason is RejectionReason.RATE
        return Availability(planned.retry_at, RejectionReason.DAY if spent_day else planned.reason)

    def _request(
        self, endpoint: Endpoint, lease: str, now: int, latest_slot: int
    ) -> ReservationRequest:
        limits = rate_limiter.limits_of(endpoint)
        day = rate_limiter.provider_day(endpoint.provider, now) if limits.per_day else None
        duration = int(endpoint.timeout_seconds * SECOND) + rate_limiter.LEASE_GRACE
        return ReservationRequest(lease, now, latest_slot, duration, limits, day)
