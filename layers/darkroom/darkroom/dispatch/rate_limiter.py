"""Computes when a call fits an endpoint's limits. Pure functions: no clock and no table.

No sliding minute holds more calls than `requests_per_minute`, whatever the number of workers: each
slot is one `interval` after the slot before, and N intervals last a minute plus a margin. The
margin covers skew between the workers' clocks, a worker that wakes late (at most MAX_LATENESS, or
it makes a new reservation), and the network delay to the provider.
Functions named by a participle (`paused`) return the state after that change.
"""

from dataclasses import replace
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from darkroom.dispatch.circuit_breaker import is_open
from darkroom.endpoint_state import (
    SECOND,
    Day,
    EndpointState,
    Limits,
    Rejection,
    RejectionReason,
    Reservation,
    ReservationRequest,
)
from darkroom.endpoints import Endpoint
from darkroom.providers.registry import PROVIDERS, Provider

MINUTE = 60 * SECOND
MARGIN = 2 * SECOND
MAX_LATENESS = SECOND // 2  # a worker later than this for its slot makes a new reservation
LEASE_GRACE = 15 * SECOND  # a lease outlives its call's time-out by this
MAX_EXPIRED_LEASES = 8  # leases of dead workers that one reservation removes
SLOWDOWN_HALF_LIFE = 300 * SECOND
MIN_SLOWED_INTERVAL = SECOND // 1000  # below this, a slowdown is over
_EPOCH = date(1970, 1, 1).toordinal()


def limits_of(endpoint: Endpoint) -> Limits:
    """The endpoint's limits as intervals. A burst of B costs B - 1 calls a minute of the rate."""
    interval = tolerance = 0
    if endpoint.requests_per_minute:
        burst = min(endpoint.burst, endpoint.requests_per_minute)
        steady = endpoint.requests_per_minute - burst + 1
        interval = -(-(MINUTE + MARGIN) // steady)
        tolerance = (burst - 1) * interval
    return Limits(interval, tolerance, endpoint.requests_per_day, endpoint.max_in_flight)


def slowed_interval(state: EndpointState, now: int) -> int:
    """The interval that 429s imposed, halved every SLOWDOWN_HALF_LIFE; 0 when it is over."""
    age = max(0, now - state.slowed_at)
    interval = round(state.slowed_interval * 0.5 ** (age / SLOWDOWN_HALF_LIFE))
    return interval if interval >= MIN_SLOWED_INTERVAL else 0


def slowed_down(state: EndpointState, interval: int, now: int, unless_since: int) -> EndpointState:
    """Sets the interval after a 429, unless one was set at `unless_since` or later."""
    if state.slowed_at >= unless_since:
        return state
    return replace(state, slowed_interval=interval, slowed_at=now)


def paused(state: EndpointState, until: int) -> EndpointState:
    """Allows no slot before `until`, not even one reserved already; never shortens a pause."""
    if state.next_slot >= until:
        return state
    return replace(state, next_slot=until, paused_until=until)


def rate_in_force(state: EndpointState, limits: Limits, now: int) -> tuple[int, int]:
    """(interval, tolerance). A slowed endpoint gets no bursts."""
    slowed = slowed_interval(state, now)
    return (slowed, 0) if slowed > limits.interval else (limits.interval, limits.tolerance)


def plan_reservation(state: EndpointState, request: ReservationRequest) -> Reservation | Rejection:
    """The reservation of the earliest slot for `request`, or why there is none."""
    if is_open(state, request.now):
        return Rejection(RejectionReason.BREAKER, state.breaker_until)
    new_day = False
    latest_slot = request.latest_slot
    if request.day is not None:
        rejection = _check_day(state, request, request.day)
        if rejection:
            return rejection
        new_day = state.day < request.day.number
        latest_slot = min(latest_slot, request.day.end - MARGIN)
    expired = tuple(i for i, until in state.leases.items() if until <= request.now)
    in_flight = len(state.leases) - len(expired)
    if request.limits.max_in_flight and in_flight >= request.limits.max_in_flight:
        return Rejection(RejectionReason.IN_FLIGHT, min(state.leases.values()))
    interval, tolerance = rate_in_force(state, request.limits, request.now)
    slot = max(request.now, state.next_slot - tolerance)
    if slot > latest_slot:
        return Rejection(RejectionReason.RATE, slot)
    return Reservation(
        slot=slot,
        idle=state.next_slot <= request.now,
        probe=state.breaker_open,
        new_day=new_day,
        interval=interval,
        tolerance=tolerance,
        horizon=latest_slot + tolerance,
        expired_leases=expired[:MAX_EXPIRED_LEASES],
    )


def _check_day(state: EndpointState, request: ReservationRequest, day: Day) -> Rejection | None:
    """Nothing is sent around midnight: the provider may count it for either day."""
    if request.now < day.start + MARGIN:
        return Rejection(RejectionReason.DAY, day.start + MARGIN)
    spent = state.day >= day.number and state.day_calls >= request.limits.per_day
    if spent or request.now > day.end - MARGIN:
        return Rejection(RejectionReason.DAY, day.end + MARGIN)
    return None


def provider_day(provider: Provider, now: int) -> Day:
    """The day that `requests_per_day` counts, in the time zone of the provider's quotas."""
    zone = ZoneInfo(PROVIDERS[provider].time_zone)
    moment = datetime.fromtimestamp(now / SECOND, zone)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    return Day(
        number=midnight.toordinal() - _EPOCH,
        start=int(midnight.timestamp()) * SECOND,
        end=int((midnight + timedelta(days=1)).timestamp()) * SECOND,
    )
