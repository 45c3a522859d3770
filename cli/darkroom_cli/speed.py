"""How fast the endpoints' limits and the workers let rows through. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from darkroom.dispatch import rate_limiter
from darkroom.endpoint_state import SECOND
from darkroom.endpoints import Endpoint, EndpointsSecret

DAY_SECONDS = 86_400
RETENTION_SECONDS = 14 * DAY_SECONDS  # what SQS keeps a message at most, and the template asks for


@dataclass(frozen=True, slots=True)
class Pace:
    """What bounds the speed beside the endpoints' own limits."""

    call_seconds: float  # how long a call is taken to last
    workers: int | None = None  # rows in work at once, over all processes


def rate(endpoint: Endpoint, pace: Pace) -> float:
    """Calls per second that the endpoint's limits let through, its daily one aside."""
    limits = rate_limiter.limits_of(endpoint)
    bounds = [pace.workers / pace.call_seconds] if pace.workers else []
    if limits.interval:
        bounds.append(SECOND / limits.interval)
    if limits.max_in_flight:
        bounds.append(limits.max_in_flight / pace.call_seconds)
    return min(bounds, default=1_000.0)


def seconds(calls: Mapping[str, int], secret: EndpointsSecret, pace: Pace) -> float:
    """Until the last row is done: the slowest endpoint's share, or what the workers can carry."""
    needed = [_endpoint_seconds(e, calls.get(e.name, 0), pace) for e in secret.endpoints]
    if pace.workers:
        needed.append(sum(calls.values()) * pace.call_seconds / pace.workers)
    return max(needed, default=0.0)


def _endpoint_seconds(endpoint: Endpoint, calls: int, pace: Pace) -> float:
    if not calls:
        return 0.0
    daily = endpoint.requests_per_day
    if daily and calls > daily:
        days = ceil(calls / daily) - 1
        return days * DAY_SECONDS + _until_last(calls - days * daily, endpoint, pace)
    return _until_last(calls, endpoint, pace)


def _until_last(calls: int, endpoint: Endpoint, pace: Pace) -> float:
    """The last call begins after the others' turns, and has to be waited for."""
    limits = rate_limiter.limits_of(endpoint)
    paced = (calls - 1) * limits.interval / SECOND + pace.call_seconds
    at_once = min((n for n in (limits.max_in_flight, pace.workers) if n), default=calls)
    return max(paced, ceil(calls / at_once) * pace.call_seconds)
