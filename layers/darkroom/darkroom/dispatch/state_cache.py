"""What this process last saw of the endpoints: every answer of the table passes through here."""

import threading
from collections import defaultdict, deque
from dataclasses import dataclass

from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.endpoint_state import (
    SECOND,
    EndpointState,
    Health,
    Rejection,
    RejectionReason,
    Report,
    Reservation,
    ReservationRequest,
    ReservationUpdate,
    StatesUnavailable,
)
from darkroom.endpoints import Endpoint, key_fingerprint
from darkroom.ports import Clock, EndpointStates, Telemetry

MEMORY = 60 * SECOND  # over which the rate of calls is observed
FEW_CALLS = 5
OVERTAKEN = 5 * SECOND  # answers may overtake each other by this; an older one is a new item's


class SeenStates:
    """The newest state seen of each endpoint, shared by the process's threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[EndpointState, int]] = {}
        self._counts: dict[str, deque[tuple[int, int]]] = {}

    def state(self, endpoint: str) -> EndpointState | None:
        seen = self._seen.get(endpoint)
        return seen[0] if seen else None

    def age(self, endpoint: str, now: int) -> int:
        seen = self._seen.get(endpoint)
        return now - seen[1] if seen else now

    def saw(self, endpoint: str, state: EndpointState, now: int) -> None:
        with self._lock:
            known = self._seen.get(endpoint)
            if known is not None and known[0].rev > state.rev and now - known[1] < OVERTAKEN:
                return
            self._seen[endpoint] = (state, now)
            counts = self._counts.setdefault(endpoint, deque())
            counts.append((now, state.calls))
            while counts[0][0] < now - MEMORY:
                counts.popleft()

    def observed_interval(self, endpoint: str) -> int:
        """Time between calls of all workers, lately; 0 when too few were seen to tell."""
        with self._lock:
            counts = self._counts.get(endpoint)
            if not counts:
                return 0
            (since, first), (until, last) = counts[0], counts[-1]
            return (until - since) // (last - first) if last - first >= FEW_CALLS else 0


# One process at the endpoints table: what it last saw, what it books and gives back.


SLICE_SECONDS = 0.5  # how often a waiting thread looks at what the others saw
POLL = 10 * SECOND  # between looks at the table for a free place in flight, per process
RECHECK = 10 * SECOND  # between looks at the table for an endpoint that is out of service
FAR = 1 << 62


@dataclass(frozen=True, slots=True)
class Availability:
    """What the last state seen says of an endpoint: callable from `opens_at`, held up by `gate`."""

    opens_at: int
    gate: RejectionReason | None

    @property
    def closed(self) -> bool:
        return self.gate is not None and self.gate.closed


class StateCache:
    """Shared by a process's threads. Every method may raise StatesUnavailable, but `give_back`."""

    def __init__(
        self, states: EndpointStates, clock: Clock, telemetry: Telemetry, margin: int
    ) -> None:
        self.states = states
        self.view = SeenStates()
        self._clock = clock
        self._telemetry = telemetry
        self._margin = margin
        self._turns: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def now(self) -> int:
        return int(self._clock.now() * SECOND)

    def look(self, endpoint: Endpoint, now: int) -> Availability:
        look = self._judge(endpoint, now)
        if look.closed and self.view.age(endpoint.name, now) > RECHECK:
            self.read(endpoint)  # another process may have found it well again
            look = self._judge(endpoint, now)
        return look

    def closed(self, endpoint: Endpoint) -> RejectionReason | None:
        """The gate that keeps the endpoint out of service, as last seen."""
        look = self.look(endpoint, self.now())
        return look.gate if look.closed else None

    def book(self, endpoint: Endpoint, lease: str, cap: int) -> Reservation | None:
        """One booking at a time per endpoint and process: each starts from the newest state.

        None when the newest state leaves nothing to try.
        """
        with self._turns[endpoint.name]:
            now = self.now()
            ask = self._ask(endpoint, lease, now, max(now, cap))
            guess = self.view.state(endpoint.name)
            in_time = guess is None or not isinstance(rate_limiter.decide(guess, ask), Rejection)
            if not in_time and self.view.age(endpoint.name, now) < POLL:
                return None
            booking = self.states.book(endpoint.name, ask, guess)
            self.saw(endpoint, booking.state)
            return booking

    def give_back(
        self, endpoint: Endpoint, lease: str, how: Health, *, sent_at: int = 0, probe: bool = False
    ) -> EndpointState | None:
        """End a booking and tell how its call went. A table that does not answer is not fatal here:
        the lease runs out by itself. None then."""
        now = self.now()
        state = self.view.state(endpoint.name)
        opens = (state.opens if state else 0) + 1
        reopen_until = now + circuit_breaker.cool_down(opens)
        report = Report(lease, now, how, sent_at, probe, reopen_until)
        try:
            return self.saw(endpoint, self.states.settle(endpoint.name, report))
        except StatesUnavailable as error:
            self._telemetry.warning(
                "lease_not_given_back", endpoint=endpoint.name, detail=str(error)
            )
            return None

    def return_unused(self, endpoint: Endpoint, lease: str, probe: bool) -> None:
        if endpoint.max_in_flight or probe:
            self.give_back(endpoint, lease, Health.UNTOLD, probe=probe)

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

    def read(self, endpoint: Endpoint) -> EndpointState:
        return self.saw(endpoint, self.states.read(endpoint.name))

    def saw(self, endpoint: Endpoint, state: EndpointState) -> EndpointState:
        self.view.saw(endpoint.name, state, self.now())
        return state

    def _judge(self, endpoint: Endpoint, now: int) -> Availability:
        state = self.view.state(endpoint.name) or self.read(endpoint)
        fingerprints = [key_fingerprint(k) for k in endpoint.api_keys]
        if not circuit_breaker.usable(fingerprints, state.keys, now):
            return Availability(
                min(state.keys[f].until for f in fingerprints), RejectionReason.KEYS
            )
        verdict = rate_limiter.decide(state, self._ask(endpoint, "", now, FAR))
        if isinstance(verdict, ReservationUpdate):
            return Availability(verdict.slot, RejectionReason.PACE if verdict.slot > now else None)
        if verdict.gate is RejectionReason.IN_FLIGHT:
            polled = now - self.view.age(endpoint.name, now) + POLL
            return Availability(max(now, min(polled, verdict.opens_at)), RejectionReason.IN_FLIGHT)
        # However late a slot may be, PACE refuses only what would fall into the next day.
        gate = RejectionReason.DAY if verdict.gate is RejectionReason.PACE else verdict.gate
        return Availability(verdict.opens_at, gate)

    def _ask(self, endpoint: Endpoint, lease: str, now: int, latest: int) -> ReservationRequest:
        day = (
            rate_limiter.provider_day(endpoint.provider, now) if endpoint.requests_per_day else None
        )
        hold = int(endpoint.timeout_seconds * SECOND) + rate_limiter.LEASE_GRACE
        limits = rate_limiter.limits_of(endpoint, self._margin)
        return ReservationRequest(lease, now, latest, hold, limits, day)
