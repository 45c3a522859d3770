"""The states of a row and the moves between them, as pure values."""

from dataclasses import dataclass
from enum import StrEnum

from darkroom.errors import Reason


class RowState(StrEnum):
    CLAIMED = "claimed"
    SENT = "sent"
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
    """A row as the ledger holds it. Times in Unix seconds, money in millionths of a US dollar."""

    key: str
    row: int
    state: RowState
    fingerprint: str
    run: str
    run_number: int = 0
    generation: int = 0  # the redrive it was last brought back by; 0: none
    attempts: int = 0  # of this run, and of this generation
    possible_duplicate_charges: int = 0
    lease_owner: str | None = None
    lease_until: float = 0.0
    updated_at: float = 0.0
    result: RowResult | None = None  # set when the state is terminal
    endpoint: str | None = None  # where it was last sent
    sent_run: str | None = None  # SENT: the run it was sent in
    reserved: int = 0  # SENT: held in the job's budget for this call
    spent: int = 0  # known cost of earlier calls that gave no image
    extra: bool = False  # redriven from an earlier upload: this run's splitter did not queue it
    version: int = 0  # one more with every change except the lease's renewal


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a row until the lease ends, with the row as this worker knows it."""

    job: str
    owner: str
    record: RowRecord
    attempts_spent: bool = False  # its workers keep dying: settle it, do not call again

    @property
    def key(self) -> str:
        return self.record.key

    @property
    def run(self) -> str:
        return self.record.run

    @property
    def attempt(self) -> int:
        """1 for the first."""
        return self.record.attempts

    @property
    def sent_before(self) -> bool:
        """An earlier call was sent and what came of it is not known."""
        return self.record.state is RowState.SENT


class NotClaimed(StrEnum):
    """Why a message gets no claim, and so what becomes of the message."""

    SETTLED = "settled"  # done already: delete the message
    SUPERSEDED = "superseded"  # a later upload replaced this run: delete the message
    HELD = "held"  # another worker holds the lease: come back later


class NotSent(StrEnum):
    """Why a call may not be made."""

    LEASE_LOST = "lease_lost"
    NO_BUDGET = "no_budget"
