"""A row of the CSV: its request, its message in the queue, its record in the ledger, its result."""

import hashlib
import json
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from darkroom.errors import Reason

# fmt: off
AspectRatio = Literal[
    "1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9",
    "1:4", "4:1", "1:8", "8:1",
]
# fmt: on
Resolution = Literal["512", "1K", "2K", "4K"]
Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
Background = Literal["transparent", "opaque", "auto"]
InputFidelity = Literal["low", "high"]
Moderation = Literal["auto", "low"]
ThinkingLevel = Literal["minimal", "low", "medium", "high"]
# How calls are made: each by itself; by itself at a lower price; in a provider's batch.
Mode = Literal["live", "flex", "batch"]


class EditSettings(BaseModel):
    """Settings that a row has in its cells, or takes from its job's options (JobOptions)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    aspect_ratio: AspectRatio | None = None
    resolution: Resolution | None = None
    quality: Quality | None = None
    # Settings that the models of one provider have; which ones is in models/catalog.py.
    background: Background | None = None
    input_fidelity: InputFidelity | None = None
    moderation: Moderation | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)
    thinking_level: ThinkingLevel | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**31)


class RowRequest(EditSettings):
    """What to edit, independent of any provider. Image references are as written in the CSV."""

    instruction: str = Field(min_length=1)
    images: tuple[str, ...] = ()
    mask: str | None = None
    size: str | None = None
    n: int = Field(default=1, ge=1, le=10)
    output_name: str | None = None

    @property
    def references(self) -> tuple[str, ...]:
        """Of the images and of the mask."""
        return (*self.images, self.mask) if self.mask else self.images

    def fingerprint(self) -> str:
        """Hex digest of the request. New settings do not change it unless the row uses them."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


class RowMessage(BaseModel):
    """A row in the queue.

    `generation` counts redrives: the copy in the dead-letter queue carries one more than the row
    died with, which distinguishes a redriven message from an old one delivered twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    job: str
    run: str
    row: int = Field(ge=0)  # position in the CSV, the first data row is 0
    key: str  # identifies the row in the ledger: its index, or "row-…" by its content
    name: str = ""  # of its image, if the request has no output_name; empty: after the key
    base: str  # "s3://bucket/folder/" that relative image paths are resolved against
    request: RowRequest
    redo: bool = False  # resume=false: edit again even if an earlier upload succeeded
    generation: int = 0
    queued_at: float = 0.0  # Unix seconds, when the row was first queued; 0: not known
    retry: bool = False  # the row was called for before: it precedes rows that were not
    live: bool = False  # of a job with mode=batch: its batch gave no answer, so it is called for


@dataclass(frozen=True, slots=True)
class Received:
    """A row's message as the queue delivered it. `sent_at` in Unix seconds."""

    message_id: str
    receipt: str
    body: str
    receive_count: int = 1
    sent_at: float = 0.0


class RowState(StrEnum):
    CLAIMED = "claimed"
    SENT = "sent"
    SUBMITTED = "submitted"  # in a provider's batch: no worker holds it
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEAD = "dead"
    SKIPPED = "skipped"  # outside filter-rows: in reports only, never in the ledger

    @property
    def terminal(self) -> bool:
        return self not in (RowState.CLAIMED, RowState.SENT, RowState.SUBMITTED)

    @property
    def unsuccessful(self) -> bool:
        return self.terminal and self not in (RowState.SUCCEEDED, RowState.SKIPPED)


@dataclass(frozen=True, slots=True)
class StatusCounts:
    """Numbers of settled rows by status."""

    succeeded: int = 0
    failed: int = 0
    dead: int = 0

    @property
    def settled(self) -> int:
        return sum(getattr(self, status) for status in SETTLED_STATUSES)

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


SETTLED_STATUSES = tuple(f.name for f in fields(StatusCounts))
UNSUCCESSFUL_STATUSES = tuple(name for name in SETTLED_STATUSES if RowState(name).unsuccessful)


# Bounds of a row's item: a write unit is 1 KB, and a row with sixteen images may warn of each.
_MAX_WARNINGS = 8
_MAX_WARNING_CHARS = 200


def _bounded(warnings: tuple[str, ...]) -> tuple[str, ...]:
    """The first warnings, cut to a length, and how many there are more."""
    kept = warnings if len(warnings) <= _MAX_WARNINGS else warnings[: _MAX_WARNINGS - 1]
    short = tuple(
        text if len(text) <= _MAX_WARNING_CHARS else f"{text[: _MAX_WARNING_CHARS - 1]}…"
        for text in kept
    )
    left = len(warnings) - len(kept)
    return (*short, f"and {left} more warnings") if left else short


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """Which call a row's images come from. Stored as their metadata, in the ledger and manifest."""

    provider: str | None = None
    endpoint: str | None = None
    model: str | None = None
    fallback: bool = False  # another tier than the first one configured
    fallback_cause: str = ""  # which endpoint of an earlier tier rejected its keys, if that is why
    latency_ms: int = 0
    cost_micro_usd: int | None = 0  # of all the row's calls; None: not known
    mode: Mode = "live"
    warnings: tuple[str, ...] = ()  # bounded in number and length

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", _bounded(self.warnings))


@dataclass(frozen=True, slots=True)
class RowResult(CallResult):
    """The outcome of a row."""

    status: RowState  # terminal
    reason: Reason | None = None
    detail: str = ""
    outputs: tuple[str, ...] = ()  # keys in the results bucket


@dataclass(frozen=True, slots=True)
class Submission:
    """What a row in a provider's batch is to be settled with when the batch has ended.

    `model` to `quality` are those of its CallPlan: they determine the price.
    """

    message: RowMessage  # to queue the row again
    model: str
    n: int = 1
    size: str | None = None
    resolution: str | None = None
    quality: str | None = None
    fallback: bool = False
    warnings: tuple[str, ...] = ()
    at: float = 0.0  # Unix seconds


@dataclass(frozen=True, slots=True)
class RowRecord:
    """A row in the ledger. Times in Unix seconds, money in micro-USD."""

    key: str
    row: int
    state: RowState
    fingerprint: str
    run: str
    name: str = ""  # as in RowMessage
    run_number: int = 0
    generation: int = 0  # of the last redrive; 0: none
    attempts: int = 0  # in this run and generation
    crashes: int = 0  # workers that died while they held the row, in this run and generation
    possible_duplicate_charges: int = 0
    lease_owner: str | None = None
    lease_until: float = 0.0
    updated_at: float = 0.0
    result: RowResult | None = None  # set when the state is terminal
    endpoint: str | None = None  # of the last call
    sent_run: str | None = None  # SENT: the run of the call
    reserved: int = 0  # SENT: reserved in the job's budget for the call
    spent: int = 0  # known cost of earlier calls that gave no image
    # The last batch the row was in, also when it was settled by it or taken back from it; a claim
    # clears both. SUBMITTED, and taken back: `submission` too.
    batch: str = ""
    submission: Submission | None = None
    left: tuple[str, ...] = ()  # batches that it was in when a later upload had it edited anew
    version: int = 0  # incremented by every write except a renewal of the lease


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's lease of a row, with the record it last wrote."""

    job: str
    owner: str
    record: RowRecord
    attempts_spent: bool = False  # its workers died in every attempt: settle it without a call

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
    def after_crash(self) -> bool:
        """A worker died while it held the row: process it alone, in case the row was the cause.

        The first crash costs no attempt, because any row of the batch may have been its cause.
        """
        return self.record.crashes > 0

    @property
    def sent_before(self) -> bool:
        """An earlier call was sent, and its outcome is not known."""
        return self.record.state is RowState.SENT


class NotClaimed(StrEnum):
    """Why a message gets no claim, and what to do with the message."""

    SETTLED = "settled"  # done already: delete it
    SUPERSEDED = "superseded"  # a later upload replaced this run: delete it
    OUTDATED_LETTER = "outdated_letter"  # the same, of a dead letter: dead-letter it again
    SUBMITTED = "submitted"  # in a provider's batch, which settles it: delete it
    HELD = "held"  # another worker holds the lease: return it to the queue


class NotSent(StrEnum):
    """Why a call may not be made."""

    LEASE_LOST = "lease_lost"
    NO_BUDGET = "no_budget"
    BUDGET_RESERVED = "budget_reserved"  # calls under way may leave room: try again later
