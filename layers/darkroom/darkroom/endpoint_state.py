"""The state that all workers share about one endpoint, and the requests that change it.

All times are Unix microseconds: integers, so that DynamoDB's arithmetic is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from darkroom.calls import Outcome
from darkroom.errors import DarkroomError

SECOND = 1_000_000


class StatesUnavailable(DarkroomError):
    """The endpoints table did not answer. No call may be made: no limit could be enforced."""


class RejectionReason(StrEnum):
    """Why an endpoint cannot be called now."""

    RATE = "rate"
    IN_FLIGHT = "in_flight"
    DAY = "day"
    BREAKER = "breaker"
    KEYS = "keys"

    @property
    def out_of_service(self) -> bool:
        """True: use another endpoint. False: the endpoint is merely busy, wait for a slot."""
        return self in (RejectionReason.DAY, RejectionReason.BREAKER, RejectionReason.KEYS)


@dataclass(frozen=True, slots=True)
class KeyCooldown:
    """A key that the provider rejected: not used before `until`."""

    until: int
    reason: Outcome  # KEY_REJECTED or QUOTA_SPENT


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint's item in the table. The defaults are those of an endpoint never used."""

    next_slot: int = 0  # the earliest slot by the rate (with a burst: theoretical arrival time)
    paused_until: int = 0  # earlier slots were reserved before a 429: they are void
    slowed_interval: int = 0  # interval set by a 429 at `slowed_at`; decays with time
    slowed_at: int = 0
    calls: int = 0  # reservations ever made
    day: int = 0  # the provider's day that `day_calls` counts
    day_calls: int = 0
    breaker_open: bool = False  # until `breaker_until`, then half open: one probe at a time
    breaker_until: int = 0
    opens: int = 0  # times the breaker opened since it last closed
    failures: int = 0  # recent: one up per transient failure, one down per good call
    failed_at: int = 0
    leases: Mapping[str, int] = field(default_factory=dict)  # calls in flight: id -> expiry
    key_cooldowns: Mapping[str, KeyCooldown] = field(default_factory=dict)  # by fingerprint
    revision: int = 0  # one up per write: orders two copies of the state


@dataclass(frozen=True, slots=True)
class Day:
    """A provider's day; `number` counts days since 1970 in the provider's time zone."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Limits:
    """An endpoint's limits as the rate limiter needs them; 0 means no limit."""

    interval: int = 0
    tolerance: int = 0  # how far `next_slot` may lie ahead of a call: the burst
    per_day: int = 0
    max_in_flight: int = 0


@dataclass(frozen=True, slots=True)
class ReservationRequest:
    """A request for a slot no later than `latest_slot`, leased for `lease_duration` from it on."""

    lease: str
    now: int
    latest_slot: int
    lease_duration: int
    limits: Limits
    day: Day | None = None  # set when the endpoint has a daily limit


@dataclass(frozen=True, slots=True)
class Rejection:
    reason: RejectionReason
    retry_at: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """A slot, and the update that reserves it: which of its conditional forms applies."""

    slot: int
    idle: bool  # no backlog: `next_slot` restarts from now
    probe: bool
    new_day: bool
    interval: int  # added to `next_slot`
    tolerance: int
    horizon: int  # the latest `next_slot` that leaves a slot in time
    expired_leases: tuple[str, ...] = ()  # of workers that died; removed by the same update


class Health(StrEnum):
    """What a reservation's call shows about its endpoint."""

    GOOD = "good"  # the provider answered, even if it refused the row
    FAILED = "failed"  # a transient failure
    NOT_CALLED = "not_called"


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of a reservation: its lease to release, and the endpoint's health."""

    lease: str
    now: int
    health: Health
    sent_at: int = 0  # a good call sent before the last failure does not count as recovery
    probe: bool = False
