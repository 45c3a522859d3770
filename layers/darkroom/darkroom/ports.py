"""The outside services, as small Protocols in our own words. Adapters implement them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import IO, Protocol

from pydantic import SecretStr

from darkroom.calls import CallPlan, EditAnswer
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.jobs import Checkpoint, Counters, Run, Totals
from darkroom.ledger import Claim, NotClaimed, RowRecord, RowResult
from darkroom.rows import RowMessage


class Clock(Protocol):
    """Time passed in, so that no test sleeps."""

    def now(self) -> float:
        """Unix time in seconds."""

    def sleep(self, seconds: float) -> None: ...


class ImageEditor(Protocol):
    """One provider. Thread-safe; built once per process."""

    def edit(
        self, plan: CallPlan, endpoint: Endpoint, key: SecretStr, timeout_seconds: float
    ) -> EditAnswer:
        """Make one call, no retries, given up after `timeout_seconds` in all.

        Raises CallFailed.
        """


class ImageFetcher(Protocol):
    """Loads the images that rows name."""

    def fetch(self, reference: str, base: str) -> bytes:
        """Bytes behind an https:// or s3:// URL or a path relative to `base` ("s3://bucket/dir/").

        Raises RowRejected (bad_image: missing, forbidden, too large, not an image) or RetryRow
        (image_unavailable: its host failed for the moment).
        """


class SecretSource(Protocol):
    def endpoints(self) -> EndpointsSecret:
        """The current secret, cached. Raises ConfigurationError when there never was a good one."""

    def refresh(self) -> None:
        """Read again at the next use: a key was rejected."""


class Telemetry(Protocol):
    """Metrics of the contract (namespace Darkroom) and one structured log line per event."""

    def bound(self, **fields: object) -> AbstractContextManager[None]:
        """Adds fields (job, row, ...) to every line logged inside, in this thread only."""

    def metric(
        self, name: str, value: float = 1, *, endpoint: str | None = None, unit: str = "Count"
    ) -> None: ...

    def info(self, event: str, **fields: object) -> None: ...

    def warning(self, event: str, **fields: object) -> None: ...

    def error(self, event: str, **fields: object) -> None: ...

    def exception(self, event: str, **fields: object) -> None:
        """Like error, with the traceback of the exception being handled."""


class RunLedger(Protocol):
    """Jobs and their runs."""

    def start(self, run: Run, lease_seconds: float) -> Run | None:
        """Make `run` the job's current run, or take over one whose splitter died.

        Returns the run to split (its checkpoint tells from where), or None when there is nothing
        to do: the event came twice, or a newer upload (by sequencer) is current.
        """

    def checkpoint(self, run: Run, checkpoint: Checkpoint, lease_seconds: float) -> bool:
        """Remember how far the splitter is; False when a newer upload superseded the run."""

    def finish_split(self, run: Run, totals: Totals, warnings: Sequence[str]) -> None: ...

    def fail(self, run: Run, reason: str) -> None:
        """The file cannot be used: the run ends as FAILED with this sentence."""

    def stop(self, job: str) -> Run | None:
        """The user stops the job: rows not yet sent end as `failed: stopped`."""

    def current(self, job: str) -> Run | None:
        """The job's current run, read consistently."""

    def counters(self, job: str, run: str) -> Counters:
        """Sum of the run's shards, read consistently."""

    def begin_report(self, run: Run, lease_seconds: float) -> bool:
        """True for exactly one caller once all rows are settled and the report is not yet made."""

    def finish_report(self, run: Run, finished_at: float) -> bool:
        """Mark DONE; False if rows were redriven meanwhile and the report is stale."""


class RowLedger(Protocol):
    """Rows: claims, moves and outcomes. Every write is one conditional update or transaction."""

    def get_many(self, job: str, keys: Sequence[str]) -> Mapping[str, RowRecord]:
        """Records of up to 100 rows; rows never claimed are missing."""

    def all(self, job: str) -> Iterator[RowRecord]:
        """All records of a job in key order, streamed."""

    def claim(
        self, message: RowMessage, owner: str, max_attempts: int, lease_seconds: float
    ) -> Claim | NotClaimed: ...

    def renew(self, claims: Sequence[Claim], lease_seconds: float) -> None:
        """Extend the leases while the work goes on; a lost lease is not an error here."""

    def mark_sent(self, claim: Claim, endpoint: str) -> bool:
        """Written before the paid call; False when the lease was lost: do not call."""

    def mark_failed_call(self, claim: Claim) -> None:
        """The provider answered and it was not an image: `sent` is known to be over."""

    def release(self, claim: Claim, *, refund_attempt: bool) -> None:
        """Give the row back for another attempt. A deferral refunds its attempt."""

    def settle(self, claim: Claim, result: RowResult) -> bool:
        """Outcome and counter shard in one transaction; False when the lease was lost."""


class Budget(Protocol):
    """A job's hard budget over all its runs, in millionths of a US dollar."""

    def reserve(self, job: str, amount: int, limit: int) -> bool:
        """Add `amount` unless the total would pass `limit`; atomic over all workers."""

    def adjust(self, job: str, difference: int) -> None:
        """Settle a reservation: actual cost minus what was reserved."""

    def committed(self, job: str) -> int: ...


class RowQueue(Protocol):
    def send(self, messages: Sequence[RowMessage]) -> None:
        """Send any number, in batches; retries only the entries reported failed."""

    def dead_letter(self, body: str, attributes: Mapping[str, str]) -> None:
        """To the dead-letter queue, with reason attributes."""

    def extend(self, receipts: Sequence[str], seconds: int) -> None:
        """Set the visibility of messages in work."""


class ObjectStore(Protocol):
    """The results bucket."""

    def put(
        self,
        key: str,
        body: bytes | IO[bytes],
        content_type: str,
        metadata: Mapping[str, str] | None = None,
        *,
        only_if_new: bool = False,
    ) -> bool:
        """False when `only_if_new` and the key exists."""

    def metadata(self, key: str) -> Mapping[str, str] | None:
        """User metadata, or None when there is no such object."""

    def get(self, key: str) -> bytes | None: ...
