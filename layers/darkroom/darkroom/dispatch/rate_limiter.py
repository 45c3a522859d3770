"""Computes when a call fits an endpoint's limits. Pure functions: no clock and no table.

No sliding minute holds more than the limit, of calls or images, whatever the number of workers.
With calls alone, each slot is one `interval` after the slot before, and N intervals last a minute
plus a margin. The margin covers skew between the workers' clocks, a worker that wakes late (at most
MAX_LATENESS, or its call is not sent), and the network delay to the provider.

A request that counts c against a limit of N takes (minute + margin) · c / (N + 1 - c), and two
slots are apart by what the larger of the two requests takes. So requests that add up to more than
N, all within one minute, cannot be: leave out the smallest of them, s. Each of the others is
charged to the gap between it and its neighbour in the direction of s, and takes at least
(minute + margin) · c / (N + 1 - s). Their counts add up to N + 1 - s or more, so that the gaps add
up to more than the minute.
"""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from darkroom.calls import CallPlan
from darkroom.dispatch.circuit_breaker import is_open, slowdown
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
from darkroom.errors import Ineligible
from darkroom.providers.registry import PROVIDERS, Provider

MINUTE = 60 * SECOND
MARGIN = 2 * SECOND
MAX_LATENESS = SECOND // 2  # a call later than this for its slot is not sent
LEASE_GRACE = 15 * SECOND  # a lease outlives its call's time-out by this
PROBE_POLL = 10 * SECOND  # when to look for the outcome of a probe in flight
_EPOCH = date(1970, 1, 1).toordinal()


def limits_of(endpoint: Endpoint, plan: CallPlan | None = None) -> Limits:
    """The endpoint's limits for a call; without a plan, for one image in and one out.

    A burst of B costs B - 1 calls a minute of the rate; there is none where images are limited.
    Raises Ineligible for a plan that is larger than a limit.
    """
    counts = (
        ("images", endpoint.images_per_minute, plan.n if plan else 1),
        ("input images", endpoint.input_images_per_minute, len(plan.images) if plan else 1),
    )
    interval = tolerance = 0
    if endpoint.requests_per_minute:
        by_images = endpoint.images_per_minute or endpoint.input_images_per_minute
        burst = 1 if by_images else min(endpoint.burst, endpoint.requests_per_minute)
        interval = _interval(endpoint.requests_per_minute - burst + 1, 1)
        tolerance = (burst - 1) * interval
    for name, limit, count in counts:
        if limit and count > limit:
            raise Ineligible(f"the row has {count} {name}, and its limit is {limit} a minute")
        if limit and count:
            interval = max(interval, _interval(limit, count))
    return Limits(interval, tolerance, endpoint.requests_per_day, endpoint.max_in_flight)


def _interval(limit: int, count: int) -> int:
    return -(-(MINUTE + MARGIN) * count // (limit + 1 - count))


def rate_in_force(state: EndpointState, limits: Limits, now: int) -> tuple[int, int]:
    """(interval, tolerance). A slowed endpoint gets no bursts."""
    withheld = slowdown(state, now)
    if not withheld:
        return limits.interval, limits.tolerance
    return round((limits.interval or state.slowed_base) / (1 - withheld)), 0


def plan_reservation(state: EndpointState, request: ReservationRequest) -> Reservation | Rejection:
    """The reservation of the earliest slot for `request`, or why there is none."""
    if is_open(state, request.now):
        poll = request.now + PROBE_POLL if state.probe else state.breaker_until
        return Rejection(RejectionReason.BREAKER, min(poll, state.breaker_until))
    new_day = False
    latest_slot = request.latest_slot
    if request.day is not None:
        rejection = _check_day(state, request, request.day)
        if rejection:
            return rejection
        new_day = state.day < request.day.number
        latest_slot = min(latest_slot, request.day.end - MARGIN)
    live = [until for until in state.leases.values() if until > request.now]
    if request.limits.max_in_flight and len(live) >= request.limits.max_in_flight:
        return Rejection(RejectionReason.IN_FLIGHT, min(live))
    interval, tolerance = rate_in_force(state, request.limits, request.now)
    extra = max(0, interval - state.last_interval)
    earliest = max(request.now, state.paused_until)
    slot = max(earliest, state.next_slot + extra - tolerance)
    if slot > latest_slot:
        return Rejection(RejectionReason.RATE, slot)
    return Reservation(
        slot=slot,
        epoch=state.epoch,
        earliest=earliest,
        idle=state.next_slot + extra <= earliest,
        probe=state.breaker_open,
        new_day=new_day,
        interval=interval,
        extra=extra,
        tolerance=tolerance,
        horizon=latest_slot + tolerance - extra,
        expired_leases=tuple(i for i, until in state.leases.items() if until <= request.now),
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
