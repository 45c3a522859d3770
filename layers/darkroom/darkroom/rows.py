"""What a row of the CSV asks for, and the message that carries it."""

import hashlib
import json
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from darkroom.errors import Reason

AspectRatio = Literal["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"]
Resolution = Literal["1K", "2K", "4K"]
Background = Literal["transparent", "opaque", "auto"]


class EditSettings(BaseModel):
    """Settings that a row has in its cells, or takes from its job's options (JobOptions)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    aspect_ratio: AspectRatio | None = None
    resolution: Resolution | None = None
    quality: str | None = None
    background: Background | None = None  # OpenAI's newer models


class RowRequest(EditSettings):
    """What to edit, independent of any provider. Image references are as written in the CSV."""

    instruction: str = Field(min_length=1)
    images: tuple[str, ...] = ()
    mask: str | None = None
    size: str | None = None
    n: int = Field(default=1, ge=1, le=10)
    output_name: str | None = None

    def fingerprint(self) -> str:
        """Hex digest of the request. New settings do not change it unless the row uses them."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


class RowMessage(BaseModel):
    """One row on its way through the queue.

    `generation` counts redrives: the copy in the dead-letter queue carries one more than the row
    died with, so that a redriven message can be told from an old one delivered twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    job: str
    run: str
    row: int = Field(ge=0)  # position in the CSV, the first data row is 0
    key: str  # the row's identity in the ledger and in file names: "000000", or its index column
    base: str  # "s3://bucket/folder/" that relative image paths start from
    request: RowRequest
    redo: bool = False  # resume=false: edit again although an earlier upload succeeded
    generation: int = 0


# The states of a row and the moves between them, as pure values.


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
class StatusCounts:
    """Numbers of settled rows by status."""

    succeeded: int = 0
    failed: int = 0
    dead: int = 0

    @property
    def settled(self) -> int:
        return self.succeeded + self.failed + self.dead

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


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
    redriven: bool = False  # from an earlier upload: this run's splitter did not queue it
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
