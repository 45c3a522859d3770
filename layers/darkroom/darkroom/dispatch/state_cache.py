"""Per-process cache of endpoint state; makes and releases reservations."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.endpoint_state import (
    SECOND,
    EndpointState,
    GoodAnswers,
    Limits,
    RejectionReason,
    Reservation,
    ReservationRequest,
    StatesUnavailable,
)
from darkroom.endpoints import Endpoint
from darkroom.ports import Clock, EndpointStates, Telemetry

MAX_REORDERING = 5 * SECOND  # a lower revision is an old response; after this, it is a new item
IN_FLIGHT_POLL = 5 * SECOND  # between reads, per process, for a free place in flight
OUT_OF_SERVICE_POLL = 3 * SECOND  # between reads of an endpoint that is out of service
# Of `recent`, for decisions that no limit depends on: a reservation is checked by the table.
MAX_AGE = 30 * SECOND  # of a state that is used when the table does not answer
READ_INTERVAL = SECOND  # between two reads, by all threads of a process together
MAX_DURATION = 2 * SECOND  # assumed for one request
RECENT_REQUESTS = 16
PREPARATIONS = 3  # requests before a call: the reservation, a read of the state, `sent`
FAR_FUTURE = 1 << 62


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint that can take a row, and its limits for that row's call."""

    endpoint: Endpoint
    limits: Limits
    timeout_seconds: float  # of the call

    @property
    def name(self) -> str:
        return self.endpoint.name


@dataclass(frozen=True, slots=True)
class Availability:
    """When an endpoint can be called, by its last known state; `reason` if that is not now."""

    available_at: int
    reason: RejectionReason | None = None

    @property
    def out_of_service(self) -> bool:
        return self.reason is not None and self.reason.out_of_service


class StateCache:
    """The newest known state of each endpoint, shared by the process's threads.

    Every method may raise StatesUnavailable, except `release`. No lock is held during a request.
    """

    def __init__(self, states: EndpointStates, clock: Clock, telemetry: Telemetry) -> None:
        self._states = states
        self._clock = clock
        self._telemetry = telemetry
        self._known: dict[str, tuple[EndpointState, int]] = {}  # with the time of the update
        self._read_at: dict[str, int] = {}  # when `recent` last asked for it
        self._lock = threading.Lock()
        self._durations: deque[int] = deque([0] * RECENT_REQUESTS, RECENT_REQUESTS)

    def now(self) -> int:
        return int(self._clock.now() * SECOND)

    def state(self, name: str) -> EndpointState:
        """The last known state; the default one for an endpoint never read."""
        return self._known[name][0] if name in self._known else EndpointState()

    def update(self, name: str, state: EndpointState) -> EndpointState:
        """Keep `state`, unless a newer one is known; returns `state`."""
        now = self.now()
        with self._lock:
            if name in self._known:
                known, updated_at = self._known[name]
                if known.revision > state.revision and now - updated_at < MAX_REORDERING:
                    return state
            self._known[name] = (state, now)
        return state

    def fresh(self, name: str, max_age: int) -> EndpointState:
        """The state, read again if the last known one is older than `max_age`."""
        if name in self._known and self.now() - self._known[name][1] <= max_age:
            return self.state(name)
        return self.update(name, self._states.read(name))

    def recent(self, name: str, max_age: int) -> EndpointState:
        """As `fresh`, but with at most one read in READ_INTERVAL for all threads of the process.

        While another thread reads, and after a read that failed, this is the last known state,
        unless that is older than MAX_AGE.
        """
        now = self.now()
        with self._lock:
            known, updated_at = self._known.get(name, (EndpointState(), -FAR_FUTURE))
            usable = now - updated_at <= MAX_AGE
            asked = now - self._read_at.get(name, -FAR_FUTURE) < READ_INTERVAL
            if now - updated_at <= max_age or (usable and asked):
                return known
            self._read_at[name] = now
        try:
            return self.fresh(name, max_age)
        except StatesUnavailable as error:
            if not usable:
                raise
            self._telemetry.warning("state_not_read", endpoint=name, detail=str(error))
            return known

    def lead(self, requests: int = PREPARATIONS) -> int:
        """How long so many requests of a call's preparation take.

        Three quarters of the recent ones took less: a rare stall does not count.
        """
        with self._lock:
            return requests * sorted(self._durations)[RECENT_REQUESTS * 3 // 4]

    def lead_of_reservation(self) -> int:
        """Not 0 when preparation is slow: then a slot that is due at once would be missed."""
        lead = self.lead()
        return lead if lead > rate_limiter.MAX_LATENESS // 2 else 0

    def took(self, since: int) -> None:
        """One request of the preparation took the time since `since`."""
        duration = min(MAX_DURATION, self.now() - since)
        with self._lock:
            self._durations.append(duration)

    def availability(self, candidate: Candidate, now: int) -> Availability:
        availability = self._availability(candidate, now)
        if availability.out_of_service:  # a probe by another process may have succeeded
            self.recent(candidate.name, OUT_OF_SERVICE_POLL)
            availability = self._availability(candidate, now)
        return availability

    def reserve(self, candidate: Candidate, lease: str, latest_slot: int) -> Reservation | None:
        """Reserve the earliest slot. None when there is none in time."""
        name, now = candidate.name, self.now()
        earliest = now + self.lead_of_reservation()
        request = _request(candidate, lease, earliest, max(earliest, latest_slot))
        last_known = self.state(name) if name in self._known else None
        reservation, state = self._states.reserve(name, request, last_known)
        self.took(now)
        self.update(name, state)
        return reservation if isinstance(reservation, Reservation) else None

    def report(
        self, name: str, transition: Callable[[EndpointState], EndpointState]
    ) -> tuple[EndpointState, EndpointState] | None:
        """Apply `transition` to the shared state; the states before and after.

        None when the table does not answer, which is not fatal here: a lease expires by itself.
        """
        try:
            before, after = self._states.report(name, transition)
        except StatesUnavailable as error:
            self._telemetry.warning("outcome_not_shared", endpoint=name, detail=str(error))
            return None
        return before, self.update(name, after)

    def release(
        self, endpoint: Endpoint, lease: str, *, probe: bool, sent_at: int | None = None
    ) -> None:
        """End a reservation: its call had a good answer, or (`sent_at` is None) was not made.

        Does not raise.
        """
        name, now = endpoint.name, self.now()
        if probe:

            def ended(state: EndpointState) -> EndpointState:
                if state.probe == lease:
                    change = circuit_breaker.closed if sent_at else circuit_breaker.probe_not_sent
                    state = change(state, now)
                return circuit_breaker.without_lease(state, lease)

            self.report(name, ended)
        elif sent_at or endpoint.max_in_flight:
            counted_as: GoodAnswers | None = None
            if sent_at:
                before = sent_at < self.state(name).failing_since
                counted_as = "earlier_good" if before else "good"
            try:
                self.update(name, self._states.settle(name, lease, counted_as))
            except StatesUnavailable as error:
                self._telemetry.warning("lease_not_released", endpoint=name, detail=str(error))

    def _availability(self, candidate: Candidate, now: int) -> Availability:
        name, key_ids = candidate.name, candidate.endpoint.key_ids()
        state = self.state(name) if name in self._known else self.fresh(name, 0)
        if not circuit_breaker.usable_keys(key_ids, state.key_cooldowns, now):
            until = min(state.key_cooldowns[i].until for i in key_ids)
            return Availability(until, RejectionReason.KEYS)
        planned = rate_limiter.plan_reservation(state, _request(candidate, "", now, FAR_FUTURE))
        if isinstance(planned, Reservation):
            return Availability(planned.slot, RejectionReason.RATE if planned.slot > now else None)
        if planned.reason is RejectionReason.IN_FLIGHT:
            next_poll = max(now, self._known[name][1] + IN_FLIGHT_POLL)
            return Availability(min(next_poll, planned.retry_at), planned.reason)
        # Without a latest slot, RATE rejects only what would fall into the next day.
        spent_day = planned.reason is RejectionReason.RATE
        return Availability(planned.retry_at, RejectionReason.DAY if spent_day else planned.reason)


def _request(candidate: Candidate, lease: str, now: int, latest_slot: int) -> ReservationRequest:
    limits = candidate.limits
    day = rate_limiter.provider_day(candidate.endpoint.provider, now) if limits.per_day else None
    duration = int(candidate.timeout_seconds * SECOND) + rate_limiter.LEASE_GRACE
    return ReservationRequest(lease, now, latest_slot, duration, limits, day)
