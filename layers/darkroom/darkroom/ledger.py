"""The states of a row and the moves between them, as pure values."""

from dataclasses import dataclass
from enum import StrEnum

from darkroom.errors import Reason


class RowState(StrEnum):
    CLAIMED = "claimed"
    SENT = "sent"
    STORED = "stored"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEAD = "dead"

    @property
    def terminal(self) -> bool:
        return self in (RowState.SUCCEEDED, RowState.FAILED, RowState.DEAD)


@dataclass(frozen=True, slots=True)
class RowResult:
    """How a row ended, as the manifest tells it. Costs in millionths of a US dollar."""

    status: RowState  # terminal
    reason: Reason | None = None
    detail: str = ""
    outputs: tuple[str, ...] = ()  # keys in the results bucket
    provider: str | None = None
    endpoint: str | None = None
    model: str | None = None
    fallback: bool = False
    latency_ms: int = 0
    cost_micro_usd: int | None = 0  # None: not known
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RowRecord:
    """A row as the ledger holds it."""

    key: str
    row: int
    state: RowState
    fingerprint: str
    run: str
    generation: int = 0
    attempts: int = 0
    possible_duplicate_charges: int = 0
    lease_owner: str | None = None
    lease_until: float = 0.0
    updated_at: float = 0.0
    result: RowResult | None = None  # set when the state is terminal


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a row until the lease ends; shown to the ledger with every move."""

    job: str
    run: str
    key: str
    row: int
    fingerprint: str
    owner: str
    attempt: int  # 1 for the first
    sent_before: bool = False  # an earlier attempt was sent and its outcome is not known
    possible_duplicate_charges: int = 0


class NotClaimed(StrEnum):
    """Why a message gets no claim, and so what becomes of the message."""

    SETTLED = "settled"  # done already: delete the message
    SUPERSEDED = "superseded"  # a later upload replaced this run: delete the message
    HELD = "held"  # another worker holds the lease: come back later
    ATTEMPTS_SPENT = "attempts_spent"  # its workers keep dying: dead-letter it
