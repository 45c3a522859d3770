"""When a call fits an endpoint's limits: arithmetic on values, no clock and no table.

No sliding minute holds more calls than `requests_per_minute`, however many workers ask, because
every slot is `interval` after the one before, and N intervals last a minute plus a margin. The
margin covers what tears slots and arrivals apart: skew between workers' clocks, a worker that wakes
late (at most LATE, else it books again), and the way to the provider.
"""

from dataclasses import replace
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from darkroom.endpoint_state import (
    SECOND,
    Day,
    EndpointState,
    Limits,
    Rejection,
    RejectionReason,
    ReservationRequest,
    ReservationUpdate,
)
from darkroom.endpoints import Endpoint
from darkroom.providers.registry import PROVIDERS, Provider

MINUTE = 60 * SECOND
MARGIN = 2 * SECOND
LATE = SECOND // 2  # a worker later than this for its slot books again
LEASE_GRACE = 15 * SECOND  # a lease outlives its call's time-out by this
EXPIRED_AT_ONCE = 8  # leases of dead workers that one booking clears away
RECOVERY = 300 * SECOND  # a learned interval halves in this time
UNKNOWN_GAP = SECOND // 2  # the pace taken for known when a 429 meets an endpoint without a limit
_EPOCH = date(1970, 1, 1).toordinal()


def limits_of(endpoint: Endpoint, margin: int = MARGIN) -> Limits:
    """The endpoint's limits as intervals. A burst of B costs B - 1 calls a minute of the rate."""
    interval = tolerance = 0
    if endpoint.requests_per_minute:
        burst = min(endpoint.burst, endpoint.requests_per_minute)
        steady = endpoint.requests_per_minute - burst + 1
        interval = -(-(MINUTE + margin) // steady)
        tolerance = (burst - 1) * interval
    return Limits(
        interval, tolerance, endpoint.requests_per_day, endpoint.max_in_flight, margin=margin
    )


def learned_interval(state: EndpointState, now: int) -> int:
    """The interval that 429s taught, recovering by half every RECOVERY; 0 when forgotten."""
    if not state.gap:
        return 0
    interval = round(state.gap * 0.5 ** (max(0, now - state.slowed_at) / RECOVERY))
    return interval if interval >= SECOND // 1000 else 0


def slowed_gap(state: EndpointState, limits: Limits, observed: int, now: int) -> int:
    """The interval after an unexpected 429: twice the one in force.

    `observed` is the interval at which calls were seen to go out (0: not known), for an endpoint
    without a configured pace.
    """
    in_force = max(limits.interval, learned_interval(state, now))
    return 2 * (in_force or observed or UNKNOWN_GAP)


def pace_in_force(state: EndpointState, limits: Limits, now: int) -> tuple[int, int]:
    """(interval, tolerance). A slowed endpoint gets no bursts."""
    learned = learned_interval(state, now)
    if learned > limits.interval:
        return learned, 0
    return limits.interval, limits.tolerance


def decide(state: EndpointState, ask: ReservationRequest) -> ReservationUpdate | Rejection:
    """The update that books the earliest slot for `ask`, or the gate in its way."""
    if state.tripped and state.breaker_until > ask.now:
        return Rejection(RejectionReason.BREAKER, state.breaker_until)
    new_day = False
    latest = ask.latest
    if ask.day is not None:
        refused = _day_gate(state, ask, ask.day)
        if refused:
            return refused
        new_day = state.day < ask.day.number
        latest = min(latest, ask.day.end - ask.limits.margin)
    expired = tuple(i for i, until in state.leases.items() if until <= ask.now)
    in_flight = len(state.leases) - len(expired)
    if ask.limits.max_in_flight and in_flight >= ask.limits.max_in_flight:
        return Rejection(RejectionReason.IN_FLIGHT, min(state.leases.values()))
    interval, tolerance = pace_in_force(state, ask.limits, ask.now)
    slot = max(ask.now, state.next - tolerance)
    if slot > latest:
        return Rejection(RejectionReason.PACE, slot)
    return ReservationUpdate(
        slot=slot,
        idle=state.next <= ask.now,
        probe=state.tripped,
        new_day=new_day,
        interval=interval,
        tolerance=tolerance,
        expired=expired[:EXPIRED_AT_ONCE],
    )


def booked(state: EndpointState, ask: ReservationRequest, move: ReservationUpdate) -> EndpointState:
    """The state after `move`; the table does the same in one conditional update."""
    leases = {i: until for i, until in state.leases.items() if i not in move.expired}
    base = ask.now if move.idle else state.next
    if ask.limits.max_in_flight:
        leases[ask.lease] = base + ask.hold
    after = replace(
        state,
        next=base + move.interval,
        calls=state.calls + 1,
        leases=leases,
        rev=state.rev + 1,
    )
    if move.probe:
        after = replace(after, breaker_until=base + ask.hold)
    if ask.day is not None:
        used = 1 if move.new_day else state.day_calls + 1
        after = replace(after, day=max(state.day, ask.day.number), day_calls=used)
    return after


def _day_gate(state: EndpointState, ask: ReservationRequest, day: Day) -> Rejection | None:
    """Around the day's turn nothing is sent: nobody can tell which day it would count for."""
    if ask.now < day.start + ask.limits.margin:
        return Rejection(RejectionReason.DAY, day.start + ask.limits.margin)
    if ask.now > day.end - ask.limits.margin:
        return Rejection(RejectionReason.DAY, day.end + ask.limits.margin)
    if state.day >= day.number and state.day_calls >= ask.limits.per_day:
        return Rejection(RejectionReason.DAY, day.end + ask.limits.margin)
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
