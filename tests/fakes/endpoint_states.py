"""The endpoints table in memory: an ordinary implementation of ports.EndpointStates."""

import threading
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.endpoint_state import (
    EndpointState,
    Health,
    KeyCooldown,
    Rejection,
    Reservation,
    ReservationRequest,
    ReservationUpdate,
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
    ) -> Reservation:
        with self._lock:
            self._count("reserve")
            state = self.items[endpoint]
            planned = rate_limiter.plan_reservation(state, request)
            if isinstance(planned, Rejection):
                return Reservation(state, rejection=planned)
            after = self.items[endpoint] = reserved(state, request, planned)
            return Reservation(after, slot=planned.slot, probe=planned.probe)

    def settle(self, endpoint: str, settlement: Settlement) -> EndpointState:
        with self._lock:
            self._count("settle")
            after = self.items[endpoint] = settled(self.items[endpoint], settlement)
            return after

    def pause_until(self, endpoint: str, until: int) -> EndpointState:
        with self._lock:
            applies = self.items[endpoint].next_slot < until
            return self._write(endpoint, applies, next_slot=until, paused_until=until)

    def slow_down(self, endpoint: str, interval: int, now: int, unless_since: int) -> EndpointState:
        with self._lock:
            applies = self.items[endpoint].slowed_at < unless_since
            return self._write(endpoint, applies, slowed_interval=interval, slowed_at=now)

    def open_breaker(self, endpoint: str, until: int) -> tuple[bool, EndpointState]:
        with self._lock:
            before = self.items[endpoint]
            opens = not before.breaker_open
            after = self._write(
                endpoint, opens, breaker_open=True, breaker_until=until, opens=before.opens + 1
            )
            return opens, after

    def suspend_until(self, endpoint: str, until: int) -> EndpointState:
        with self._lock:
            applies = self.items[endpoint].breaker_until < until
            return self._write(endpoint, applies, breaker_open=True, breaker_until=until)

    def cool_down_key(
        self, endpoint: str, fingerprint: str, cooldown: KeyCooldown
    ) -> EndpointState:
        with self._lock:
            cooldowns = {**self.items[endpoint].key_cooldowns, fingerprint: cooldown}
            return self._write(endpoint, applies=True, key_cooldowns=cooldowns)

    def _count(self, request: str) -> None:
        self.requests[request] += 1
        if request in self.unavailable:
            raise StatesUnavailable("the endpoints table did not answer")

    def _write(self, endpoint: str, applies: bool, **changes: Any) -> EndpointState:
        state = self.items[endpoint]
        if applies:
            state = self.items[endpoint] = replace(state, **changes, revision=state.revision + 1)
        return state


def reserved(
    state: EndpointState, request: ReservationRequest, planned: ReservationUpdate
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
    leases = {i: until for i, until in state.leases.items() if i != settlement.lease}
    after = replace(state, leases=leases, revision=state.revision + 1)
    if settlement.health is Health.NOT_CALLED:
        # A probe that was never sent leaves its turn to the next one.
        return replace(after, breaker_until=settlement.now) if settlement.probe else after
    if settlement.health is Health.GOOD:
        if settlement.probe:
            return replace(after, breaker_open=False, breaker_until=0, opens=0, failures=0)
        recovers = after.failures > 0 and settlement.sent_at > state.failed_at
        return replace(after, failures=after.failures - 1) if recovers else after
    recent = state.failed_at >= settlement.now - circuit_breaker.FAILURES_EXPIRE_AFTER
    failures = state.failures + 1 if recent else 1
    after = replace(after, failures=failures, failed_at=settlement.now)
    if settlement.probe:
        after = replace(after, breaker_until=settlement.reopen_until, opens=state.opens + 1)
    return after
