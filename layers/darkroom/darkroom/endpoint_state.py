"""What all workers know together about one endpoint, and the questions they put to it.

All times are Unix microseconds: whole numbers, so that the table's arithmetic is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from darkroom.calls import Outcome
from darkroom.errors import DarkroomError

SECOND = 1_000_000


class StatesUnavailable(DarkroomError):
    """The endpoints table did not answer: nothing may be called, since no limit could be kept."""


class RejectionReason(StrEnum):
    """What keeps an endpoint from being called now."""

    PACE = "pace"
    IN_FLIGHT = "in_flight"
    DAY = "day"
    BREAKER = "breaker"
    KEYS = "keys"

    @property
    def closed(self) -> bool:
        """The endpoint is out of service: go elsewhere. Otherwise it is busy: wait your turn."""
        return self in (RejectionReason.DAY, RejectionReason.BREAKER, RejectionReason.KEYS)


@dataclass(frozen=True, slots=True)
class KeyCooldown:
    """A key the provider turned away, and until when nobody tries it."""

    until: int
    why: Outcome  # KEY_REJECTED or QUOTA_SPENT


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint's item in the table. The default is that of an endpoint never used."""

    next: int = 0  # where the next call fits the pace (with a burst: its theoretical arrival)
    paused_until: int = 0  # slots before this were booked before a 429: they are void
    gap: int = 0  # interval learned from 429s, as of `slowed_at`; it shrinks with time
    slowed_at: int = 0
    calls: int = 0  # bookings ever
    day: int = 0  # the provider's day that `day_calls` counts
    day_calls: int = 0
    tripped: bool = False  # the breaker is open until `breaker_until`, then one probe at a time
    breaker_until: int = 0
    opens: int = 0  # times it opened since it last closed
    failures: int = 0  # recent: one up per transient failure, one down per answer
    failed_at: int = 0
    leases: Mapping[str, int] = field(default_factory=dict)  # calls in flight: id -> expiry
    keys: Mapping[str, KeyCooldown] = field(default_factory=dict)  # by fingerprint
    rev: int = 0  # one up per write: tells the newer of two answers


@dataclass(frozen=True, slots=True)
class Day:
    """A provider's day, by its number since 1970 in the provider's time zone."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Limits:
    """An endpoint's limits, ready for arithmetic; 0 means none."""

    interval: int = 0
    tolerance: int = 0  # how far `next` may lie ahead of a call: the burst
    per_day: int = 0
    max_in_flight: int = 0
    margin: int = 0  # clock skew and time on the wire, together


@dataclass(frozen=True, slots=True)
class ReservationRequest:
    """A wish for a slot no later than `latest`, held for `hold` from the slot on."""

    lease: str
    now: int
    latest: int
    hold: int
    limits: Limits
    day: Day | None = None  # set when the endpoint has a daily limit


@dataclass(frozen=True, slots=True)
class Rejection:
    gate: RejectionReason
    opens_at: int  # when asking again makes sense


@dataclass(frozen=True, slots=True)
class ReservationUpdate:
    """The one update that books a slot: which of the conditional forms it takes."""

    slot: int
    idle: bool  # the endpoint has no backlog: `next` starts over from now
    probe: bool
    new_day: bool
    interval: int  # what `next` moves on by
    tolerance: int
    expired: tuple[str, ...] = ()  # leases of workers that died


@dataclass(frozen=True, slots=True)
class Reservation:
    """What came of an ask; `state` is the endpoint's newest one."""

    state: EndpointState
    slot: int | None = None
    probe: bool = False
    refused: Rejection | None = None


class Health(StrEnum):
    GOOD = "good"  # the provider answered, whatever it said
    FAILED = "failed"  # a transient failure
    UNTOLD = "untold"  # no call was made


@dataclass(frozen=True, slots=True)
class Report:
    """The end of a booking: its lease goes back, and its endpoint's health is told."""

    lease: str
    now: int
    health: Health
    sent_at: int = 0  # of the call; an answer to an older call than the last failure proves nothing
    probe: bool = False
    reopen_until: int = 0  # a failed probe keeps the breaker open until then
