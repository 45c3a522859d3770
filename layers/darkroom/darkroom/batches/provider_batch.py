"""A batch at a provider: requests in one file, answered within a day at a lower price."""

from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum

from darkroom.calls import CallFailed, EditResult, Outcome

# A line of answers is held in memory while it is read; the images of a request count too.
MAX_LINE_BYTES = 128 * 1024 * 1024
MAX_IMAGES_OF_A_REQUEST = 4  # a 4K image is up to about 30 MB in base64


class BatchStatus(StrEnum):
    """Where a batch is at its provider."""

    VALIDATING = "validating"  # accepted, not started
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # processed; single requests may have failed all the same
    FAILED = "failed"  # rejected as a whole, see `ProviderBatch.failure`
    EXPIRED = "expired"  # the provider's time ended first; what it has done can be collected
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"  # what it has done can be collected

    @property
    def ended(self) -> bool:
        """The provider does nothing more with it: collect the answers."""
        return self not in (BatchStatus.VALIDATING, BatchStatus.RUNNING, BatchStatus.CANCELLING)


@dataclass(frozen=True, slots=True)
class BatchGroup:
    """What all requests of one batch have in common; requests of two groups need two batches."""

    model: str
    operation: str  # the path or method that each request is for


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The provider's limits for one file of requests."""

    max_requests: int
    max_file_bytes: int


@dataclass(frozen=True, slots=True)
class ProviderBatch:
    """A batch as its provider describes it. Counts are of requests, 0 where it gives none."""

    id: str
    name: str  # the one given to `create`; empty for a batch that Darkroom did not make
    status: BatchStatus
    created_at: float  # Unix seconds
    _: KW_ONLY
    requests: int = 0
    succeeded: int = 0
    failed: int = 0
    request_file: str = ""  # empty where the provider does not state it
    result_files: tuple[str, ...] = ()
    # Why no request was processed. A RATE_LIMITED one: more is enqueued than the account may have.
    failure: CallFailed | None = None


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """One line of the results. A provider may repeat an answer, and omit one."""

    custom_id: str | None  # None for a line that cannot be read: it is of an unknown row
    outcome: EditResult | CallFailed = field(repr=False)  # costs are at the price of a batch
    position: str  # where the next line begins, for `BatchProvider.results`


def passed_over(position: str) -> BatchAnswer:
    """In place of a line that was not even parsed, because collectors died of it."""
    cause = CallFailed(Outcome.UNAVAILABLE, "collectors died of it", maybe_charged=True)
    return BatchAnswer(None, cause, position)
