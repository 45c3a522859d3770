"""The state that all workers share about one endpoint, and the requests that change it.

All times are Unix microseconds: integers, so that DynamoDB's arithmetic is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from darkroom.calls import Outcome
from darkroom.errors import DarkroomError

SECOND = 1_000_000

type GoodAnswers = Literal["good", "earlier_good"]  # the fields of EndpointState that count them


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
    """A key that the provider rejected: not used before `until`. `detail` is for users."""

    until: int
    reason: Outcome  # one whose `key_at_fault` holds
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint's item in the table. The defaults are those of an endpoint never used."""

    next_slot: int = 0  # the earliest slot by the rate (with a burst: theoretical arrival time)
    last_interval: int = 0  # between the last slot reserved and `next_slot`
    epoch: int = 0  # reservations of an earlier epoch are void
    paused_until: int = 0  # no slot is earlier; set by a 429
    calls: int = 0  # reservations ever made
    day: int = 0  # the provider's day that `day_calls` counts
    day_calls: int = 0
    breaker_open: bool = False  # until `breaker_until`, then half open: one probe at a time
    breaker_until: int = 0
    probe: str = ""  # the lease of the probe in flight
    opens: int = 0  # times the breaker opened since it last closed
    cause: str = ""  # why the endpoint is out of service, for users
    failures: int = 0  # transient ones, less the good answers in between to calls sent meanwhile
    failed_at: int = 0  # the last one
    failing_since: int = 0  # the first of `failures`
    failing_calls: int = 0  # `calls` at that time
    good: int = 0  # good answers since `failed_at` to calls sent since `failing_since`
    earlier_good: int = 0  # good answers since `failing_since` to calls sent before
    volume: float = 0.0  # recent calls at `counted_at`, decaying
    counted_span: float = 0.0  # the time in which `volume` calls were made, decaying
    limited: float = 0.0  # recent 429s at `counted_at`, decaying
    counted_at: int = 0
    counted_calls: int = 0  # `calls` at `counted_at`
    slowdown: float = 0.0  # the share of the rate withheld since `slowed_at`; decays
    slowdowns: int = 0  # in a row
    slowed_at: int = 0
    slowed_base: int = 0  # the full rate's interval at an endpoint without a configured one
    leases: Mapping[str, int] = field(default_factory=dict)  # calls in flight: id -> expiry
    key_cooldowns: Mapping[str, KeyCooldown] = field(default_factory=dict)  # by Endpoint.key_ids
    revision: int = 0  # one up per write: orders two copies of the state


@dataclass(frozen=True, slots=True)
class Day:
    """A provider's day; `number` counts days since 1970 in the provider's time zone."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Limits:
    """An endpoint's limits as the rate limiter needs them, for one request; 0 means no limit."""

    interval: int = 0  # what the request takes of the rate
    tolerance: int = 0  # how far `next_slot` may lie ahead of a call: the burst
    per_day: int = 0
    max_in_flight: int = 0


@dataclass(frozen=True, slots=True)
class ReservationRequest:
    """A request for a slot from `now` to `latest_slot`, leased for `lease_duration` from it on.

    `now` is the earliest time at which the call can be sent.
    """

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
    epoch: int
    earliest: int
    idle: bool  # no backlog: `next_slot` restarts from `earliest`
    probe: bool
    new_day: bool
    interval: int  # from the slot to `next_slot`
    extra: int  # added to `next_slot` before: this request takes more than the last one
    tolerance: int
    horizon: int  # the latest `next_slot` that leaves a slot in time
    expired_leases: tuple[str, ...] = ()  # of workers that died; removed by the same update
