"""Protocols of what lies outside the domain, and of what tests replace. Adapters implement them."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from pydantic import SecretStr

from darkroom.batches.provider_batch import BatchAnswer, BatchGroup, BatchLimits, ProviderBatch
from darkroom.calls import CallFailed, CallPlan, EditResult
from darkroom.endpoint_state import (
    EndpointState,
    GoodAnswers,
    Rejection,
    Reservation,
    ReservationRequest,
)
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.errors import Reason, Waiting
from darkroom.jobs import Checkpoint, Counters, Run, Source, Totals
from darkroom.ledger.batches import BatchRecord
from darkroom.ledger.runs import RunRecord, UnfinishedJob
from darkroom.metrics import Metric
from darkroom.rows import (
    Claim,
    NotClaimed,
    NotSent,
    Received,
    RowMessage,
    RowRecord,
    RowResult,
    Submission,
)

MIN_PART_BYTES = 5 * 1024 * 1024  # of an upload's parts, the last one excepted (S3)


class Clock(Protocol):
    """Time passed in, so that no test sleeps."""

    def now(self) -> float:
        """Unix time in seconds."""

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The real Clock."""

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))


class ImageEditor(Protocol):
    """One provider. Thread-safe; built once per process."""

    def edit(
        self, plan: CallPlan, endpoint: Endpoint, key: SecretStr, timeout_seconds: float
    ) -> EditResult:
        """One call without retries, ended after `timeout_seconds` in all. Raises CallFailed."""


class BatchProvider(Protocol):
    """The batch interface of one endpoint, used with one of its keys. Thread-safe, cheap to make.

    Methods with a time-out are network calls, ended after `timeout_seconds` in all. They raise
    CallFailed, with the outcomes of single calls. A key sees the batches and files of its project,
    which the keys of an endpoint have in common.
    """

    @property
    def limits(self) -> BatchLimits: ...

    def group(self, plan: CallPlan) -> BatchGroup:
        """Which requests may share a batch with this one.

        Raises Ineligible, in a sentence, when the endpoint or the model offers no batches, or the
        request is too large for one.
        """

    def request_line(self, custom_id: str, plan: CallPlan) -> bytes:
        """The request as one line of the file, with its line break; the images are in it.

        `custom_id`: 1 to 64 ASCII letters, digits, "-" and "_", unique in its batch.
        """

    def create(
        self, name: str, group: BatchGroup, requests: BinaryIO, timeout_seconds: float
    ) -> ProviderBatch:
        """Upload the file of requests, all of it, and start a batch with it.

        The provider stores `name` (1 to 64 ASCII letters, digits, "-" and "_"). A CallFailed with
        `maybe_charged`: the batch may exist; look for it with `find` before creating it again.
        """

    def find(
        self, name: str, timeout_seconds: float, *, created_after: float
    ) -> ProviderBatch | None:
        """The newest batch with this name created after a Unix time in seconds.

        Raises CallFailed (unavailable) also when there are too many batches to look through.
        No provider promises that a batch is in its list at once: None soon after a failed `create`
        does not prove that there is none.
        """

    def status(self, batch_id: str, timeout_seconds: float) -> ProviderBatch:
        """The batch's current state. CallFailed (bad_request): the provider has no such batch."""

    def results(
        self,
        batch: ProviderBatch,
        plan_of: Callable[[str], CallPlan | None],
        timeout_seconds: float,
        *,
        position: str = "",
        pass_over: bool = False,
    ) -> Iterator[BatchAnswer]:
        """The answers of an ended batch, streamed in any order, one at a time in memory.

        `plan_of` gives the plan of a custom id, of which only model, n, size, resolution and
        quality are read; None for one that no row has. `position`, of an earlier answer, continues
        after that answer. `pass_over`: the first line is not parsed, and has no custom id.
        `timeout_seconds` bounds each line, not the whole.
        """

    def cancel(self, batch_id: str, timeout_seconds: float) -> None:
        """Ask the provider to stop. A batch that has ended is not an error."""

    def delete_files(self, batch: ProviderBatch, timeout_seconds: float) -> None:
        """Delete its files at the provider, as far as it allows.

        Raises CallFailed only where a later try may succeed.
        """


class ImageFetcher(Protocol):
    """Loads the images that rows name."""

    def fetch(self, reference: str, base: str) -> bytes:
        """The bytes at an https:// or s3:// URL or a path relative to `base` ("s3://bucket/dir/").

        Raises RowRejected (bad_image: missing, forbidden, too large, not an image) or RetryRow
        (image_unavailable: a transient failure of its host).
        """


class SecretSource(Protocol):
    def endpoints(self) -> EndpointsSecret:
        """The current secret, cached. Raises ConfigurationError when there never was a good one."""

    def refresh(self) -> None:
        """Read again at the next use: a key was rejected."""


class CallContext(Protocol):
    """One row during its dispatch: plans the calls, and is notified before and after each.

    The notifications raise ServiceUnavailable when the ledger does not answer.
    """

    def adapted(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint as the row's job uses it."""

    def plan(self, endpoint: Endpoint) -> CallPlan:
        """Fit the row to the endpoint's model. Raises Ineligible, RowRejected."""

    def before_call(self, endpoint: Endpoint, plan: CallPlan) -> None:
        """Just before money is spent. Raises RowRejected (budget, stopped), LeaseLost."""

    def cancel_call(self) -> None:
        """The call that `before_call` announced was not made: its slot had passed. Costs nothing.

        Raises LeaseLost.
        """

    def after_call(self, outcome: EditResult | CallFailed) -> None:
        """Right after each call, whatever its outcome."""


@dataclass(frozen=True, slots=True)
class DispatchResult:
    """A call that returned images, and how the dispatch led to it."""

    result: EditResult
    plan: CallPlan
    endpoint: Endpoint
    fallback: bool  # an endpoint of an earlier tier failed, or was out of service
    latency_ms: int  # of the successful call
    slot_wait_ms: int
    calls: int  # all calls made for this attempt
    warnings: tuple[str, ...] = ()
    fallback_cause: str = ""  # which endpoint of an earlier tier rejected its keys


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the endpoints can take a row, by their last known states. Times in seconds."""

    start_at: float  # Unix time to take a row for the earliest slot of any endpoint; past: now
    waiting: Waiting | None = None  # set when every endpoint is out of service until `start_at`
    rows_per_second: float = 0.0  # what the limits of the fastest tier allow; 0: no limit
    row_seconds: float = 0.0  # the most that a row takes, with one call at every tier
    free_places: float = math.inf  # calls that the limits in flight allow now
    places_in_use: int = 0  # by calls under way or about to be sent, where there is such a limit


class Dispatcher(Protocol):
    def readiness(self) -> Readiness:
        """When a row could be called for, without a row: from cached states, or one read each.

        Raises ServiceUnavailable. A secret that is not usable is a reason for waiting.
        """

    def dispatch(self, context: CallContext, deadline: float) -> DispatchResult:
        """Choose an endpoint, call it, retry and fall back; done by `deadline` (Unix seconds).

        Raises RowRejected (refused, no_image, bad_request; or no endpoint can honour the row),
        RetryRow (all calls failed at endpoints that serve other rows: the first tier's error),
        DeferRow (no slot in time, an endpoint that fails for all rows, rejected keys, no usable
        secret: costs no attempt, even if calls were made), LeaseLost.
        """


class EndpointStates(Protocol):
    """Limits and health of the endpoints, shared by all workers; times in microseconds.

    Every method is atomic, and raises StatesUnavailable when the table does not answer.
    """

    def read(self, endpoint: str) -> EndpointState: ...

    def reserve(
        self, endpoint: str, request: ReservationRequest, last_known: EndpointState | None = None
    ) -> tuple[Reservation | Rejection, EndpointState]:
        """Reserve the earliest slot; also the newest state.

        A `last_known` state saves a round trip.
        """

    def settle(
        self, endpoint: str, lease: str, counted_as: GoodAnswers | None = None
    ) -> EndpointState:
        """Release the lease of a call that was not a probe: a good answer, or a call not made."""

    def report(
        self, endpoint: str, transition: Callable[[EndpointState], EndpointState]
    ) -> tuple[EndpointState, EndpointState]:
        """Apply a pure `transition`, maybe more than once; the states before and after."""


class Telemetry(Protocol):
    """Metrics of the contract (namespace Darkroom) and one structured log line per event."""

    def bound(self, **fields: object) -> AbstractContextManager[None]:
        """Adds fields (job, row, ...) to every line logged inside, in this thread only."""

    def metric(self, metric: Metric, value: float = 1, *, endpoint: str | None = None) -> None: ...

    def info(self, event: str, **fields: object) -> None: ...

    def warning(self, event: str, **fields: object) -> None: ...

    def error(self, event: str, **fields: object) -> None: ...

    def exception(self, event: str, **fields: object) -> None:
        """Like error, with the traceback of the exception being handled."""

    def flush(self) -> None:
        """Print the pending metrics."""


class CsvStore(Protocol):
    """The input bucket, read at one version of an object."""

    def metadata(self, source: Source) -> Mapping[str, str]:
        """User metadata. Raises JobRejected when the object is gone, ServiceUnavailable."""

    def read(self, source: Source, offset: int = 0) -> Iterator[bytes]:
        """Bytes from `offset` to the end. Raises JobRejected, ServiceUnavailable."""


class RunLedger(Protocol):
    """Jobs and their runs."""

    def start(self, run: Run, lease_seconds: float) -> Run | None:
        """Make `run` the job's current run, or take over one whose splitter died.

        Returns the run to split, from its checkpoint, or None when there is nothing to do: the
        event came twice, or a newer upload (by sequencer) is current.
        """

    def reject(self, run: Run, reason: str) -> Run | None:
        """An upload cannot be used, and `reason` says why in a sentence. The job's run, changed.

        A run under way goes on and records the rejection. Otherwise `run` becomes the current one,
        as FAILED. None when there is nothing to do: a newer upload is current, or it was done.
        """

    def checkpoint(self, run: Run, checkpoint: Checkpoint, lease_seconds: float) -> bool:
        """Record the splitter's progress; False when a newer upload superseded the run."""

    def finish_split(self, run: Run, totals: Totals, warnings: Sequence[str]) -> None: ...

    def unfinished(self) -> Iterator[UnfinishedJob]:
        """Jobs whose current run is not known to be reported."""

    def finish(self, job: UnfinishedJob) -> None:
        """Take the job from the unfinished ones, unless it was added again since it was read."""

    def inspect(self, job: str) -> tuple[RunRecord, Counters] | None:
        """The job's current run with its counters."""

    def queue_again(self, run: Run) -> bool:
        """Reset the splitter's progress, so that it queues all unsettled rows again.

        False when a splitter is at work already, or all rows are settled.
        """

    def give_up_lost(self, run: Run) -> Run | None:
        """Let the run end without its unsettled rows, which no worker has; None: it has none."""

    def note_progress(self, run: Run) -> None:
        """Remember that rows were settled, for the sweep to notice when none are any more."""

    def dropped_settled(self, run: Run) -> None:
        """The rows that earlier uploads left unsettled are settled."""

    def set_waiting(self, run: Run, reason: Reason, detail: str) -> Run | None:
        """Record why no endpoint can process rows; the run, or None when nothing has changed.

        `since` is kept while the run keeps waiting, whatever for.
        """

    def clear_waiting(self, run: Run) -> Run | None:
        """Rows can be processed again; the run, or None when it did not wait."""

    def fail(self, run: Run, reason: str) -> None:
        """The file cannot be used: the run ends as FAILED, with `reason` as a sentence."""

    def stop(self, job: str) -> Run | None:
        """The user stops the job: rows not yet sent end as `failed: stopped`."""

    def current(self, job: str) -> Run | None:
        """The job's current run, read consistently."""

    def counters(self, job: str, run: str) -> Counters:
        """Sum of the run's shards, read consistently."""

    def spent_earlier(self, run: Run) -> int:
        """Micro-USD spent by the job's runs before this one."""

    def begin_report(self, run: Run, lease_seconds: float, owner: str = "") -> bool:
        """True for exactly one caller once all rows are settled and the report is not made yet.

        The lease must outlast the caller's own time limit; one of 0 seconds ends the owner's.
        `owner` names an invocation: retried after a crash under the same name, it gets its own
        lease again.
        """

    def finish_report(self, run: Run, finished_at: float) -> bool:
        """Mark the run DONE; False if rows were redriven meanwhile and the report is stale.

        After False, call `begin_report` again: True means that all rows are settled once more.
        """

    def report_due(self, job: str) -> bool:
        """All rows of the current run are settled, and no report covers their outcomes yet."""


class LostEvents(Protocol):
    """The queue of events that their functions failed three times."""

    def restart_uploads(self) -> int:
        """Start the splitter again for lost uploads; how many. Raises ServiceUnavailable."""


class RowLedger(Protocol):
    """Rows: claims, transitions and outcomes. Every write is one conditional put or transaction.

    All methods may raise ServiceUnavailable. Nothing has changed then, or the write was made and
    only its response was lost, which a repeat recognises.
    """

    def get_many(self, job: str, keys: Sequence[str]) -> Mapping[str, RowRecord]:
        """Records of any number of rows; rows never claimed are missing.

        Neighbouring keys ("000100" to "000199") are read by one query, at about a tenth of the
        capacity that single reads take.
        """

    def all(self, job: str) -> Iterator[RowRecord]:
        """All records of a job in key order, streamed."""

    def unsettled(self, job: str) -> Iterator[RowRecord]:
        """All records of a job that have no outcome, streamed in any order."""

    def drop(self, job: str, record: RowRecord, reason: Reason, detail: str) -> bool:
        """End a row that no worker will end, as failed; False: it has changed."""

    def discard_result(self, job: str, key: str, image: str) -> None:
        """Another row's image takes the place of `image` (a key in the results bucket).

        If it is a result of the row `key`, that row has failed as superseded from now on.
        """

    def claim(
        self, message: RowMessage, run: Run, owner: str, lease_seconds: float
    ) -> Claim | NotClaimed:
        """`run` is the job's current run; `owner` is unique to this delivery of the message."""

    def renew(self, claims: Sequence[Claim], lease_seconds: float) -> None:
        """Extend the leases of rows in work; a lost lease is not an error here."""

    def mark_sent(
        self, claim: Claim, endpoint: str, *, reserve: int = 0, limit: int | None = None
    ) -> Claim | NotSent:
        """Record that a paid call is about to be made, in one transaction with its reservation.

        `reserve` and `limit`, the job's hard budget, in micro-USD; no limit, no reservation.
        NotSent: do not call.
        """

    def mark_submitted(
        self,
        claim: Claim,
        batch: str,
        submission: Submission,
        endpoint: str,
        *,
        reserve: int = 0,
        limit: int | None = None,
    ) -> Claim | NotSent:
        """Like `mark_sent`, for a request in a provider's batch. It ends the lease."""

    def take_back(
        self,
        job: str,
        record: RowRecord,
        *,
        cost_micro_usd: int = 0,
        maybe_charged: bool = False,
        refund_attempt: bool = False,
    ) -> Claim | None:
        """The batch gave the row no image: it can be claimed again. None: the row has changed."""

    def mark_failed_call(
        self, claim: Claim, *, cost_micro_usd: int = 0, maybe_charged: bool = False
    ) -> Claim | None:
        """Record that a call gave no image; None when the lease was lost.

        `cost_micro_usd` is what it is known to have cost. `maybe_charged` counts a possible
        duplicate charge; if its cost is not known, what was reserved for it stays committed.
        """

    def release(self, claim: Claim, *, refund_attempt: bool) -> None:
        """End the lease, for another attempt later. A deferral refunds its attempt."""

    def settle(self, claim: Claim, result: RowResult) -> bool:
        """Write outcome, counters and budget in one transaction; False when the lease was lost.

        `result.cost_micro_usd` is the row's whole cost, earlier attempts included.
        """


class BatchLedger(Protocol):
    """The batches that rows were submitted in. The methods raise ServiceUnavailable."""

    def create(self, batch: BatchRecord, candidates: Sequence[str]) -> None:
        """Record a new batch, of which `candidates` (row keys) may become part."""

    def read(self, name: str) -> BatchRecord | None: ...

    def candidates(self, name: str) -> Sequence[str]:
        """As given to `create`."""

    def open(self) -> Iterator[BatchRecord]:
        """The batches that are not closed, of all jobs."""

    def update(
        self, name: str, transition: Callable[[BatchRecord], BatchRecord | None]
    ) -> BatchRecord | None:
        """Apply a pure `transition`, maybe more than once; None when it gives nothing to write.

        A batch that becomes CLOSED adds its `unclaimed_cost` to its run, in one transaction.
        """


class RowQueue(Protocol):
    """The queue of rows. The methods raise ServiceUnavailable."""

    def send(self, messages: Sequence[RowMessage], *, delay_seconds: int = 0) -> None:
        """Send any number, in batches; retries only the entries reported failed.

        They can be received after `delay_seconds`, at most 900.
        """

    def receive(self, limit: int, *, hide_seconds: int, wait_seconds: int) -> Sequence[Received]:
        """Up to `limit` (at most 10) messages, hidden for `hide_seconds`.

        Waits up to `wait_seconds` (at most 20) for a first one.
        """

    def delete(self, receipts: Sequence[str]) -> None:
        """The messages are done. Skips receipts that are no longer valid."""

    def backlog(self) -> int:
        """About how many messages there are, hidden ones included."""

    def dead_letter(self, body: str, attributes: Mapping[str, str]) -> None:
        """Send to the dead-letter queue, with attributes that give the reason."""

    def extend(self, receipts: Sequence[str], seconds: int) -> None:
        """Hide messages for `seconds` from now."""


class ObjectStore(Protocol):
    """The results bucket."""

    def put(
        self,
        key: str,
        body: bytes,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
        *,
        only_if_new: bool = False,
        replaces: str | None = None,
    ) -> bool:
        """False when `only_if_new` and the key exists, or when its etag is not `replaces`."""

    def metadata(self, key: str) -> Mapping[str, str] | None:
        """User metadata and, as `etag`, the object's own; None when there is no such object."""

    def get(self, key: str) -> bytes | None: ...

    def create_upload(
        self, key: str, content_type: str, metadata: Mapping[str, str] | None = None
    ) -> str:
        """The id of a new upload in parts: nothing is visible at `key` until it is completed.

        Any process can continue it. One that is never completed is removed by the bucket's rules.
        """

    def upload_part(self, key: str, upload: str, number: int, body: bytes) -> str:
        """Store part `number` (from 1; the same number again replaces it) and return its etag.

        Every part but the last has MIN_PART_BYTES or more. Raises UploadLost.
        """

    def complete_upload(
        self, key: str, upload: str, etags: Sequence[str], *, replaces: str | None
    ) -> bool:
        """Make the parts the object at `key`, in one small write.

        Only if the object there has the etag `replaces`, or there is none (None); else False, also
        when the upload is gone: completed already, or removed.
        """

    def abort_upload(self, key: str, upload: str) -> None:
        """Remove the parts; one that is gone is not an error."""
