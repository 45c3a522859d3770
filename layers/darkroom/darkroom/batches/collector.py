"""The collector: looks at the open batches, and settles their rows when they have ended.

Each answer is stored and settled as that of a call. What was read of the results is saved in the
batch's item, so that a collection continues in another invocation, and one that dies is repeated:
rows that are settled already are skipped. Two collectors cannot work on one batch at a time.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any

from darkroom.batches.endpoints import BatchAccess, BatchEndpoints
from darkroom.batches.provider_batch import BatchAnswer, BatchStatus, ProviderBatch
from darkroom.batches.returns import Answerless, RowReturns
from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.editor.batch import Completion
from darkroom.editor.image_storage import ImageStorage
from darkroom.editor.row_editor import RowCallContext, RowWorker, failure
from darkroom.editor.waiting import HOUR, CurrentRuns, JobWaits
from darkroom.errors import (
    ConfigurationError,
    DeferRow,
    LeaseLost,
    Reason,
    RowRejected,
    ServiceUnavailable,
    Waiting,
)
from darkroom.jobs import Run, RunState
from darkroom.ledger import batches
from darkroom.ledger.batches import BatchRecord, BatchState, custom_id, is_in
from darkroom.metrics import Metric
from darkroom.ports import BatchLedger, Clock, RowLedger, Telemetry
from darkroom.providers.registry import Provider
from darkroom.rows import Claim, RowRecord, RowResult, RowState, Submission

LEASE_SECONDS = 915.0  # longer than an invocation can last
# After the submitter's lease: by then a batch whose submitter died is in its provider's list.
FIND_AFTER_SECONDS = 600.0
CREATED_MARGIN_SECONDS = 300.0  # clocks differ
CALL_SECONDS = 60.0  # of a request about a batch, and of one line of its results
STOP_BEFORE_SECONDS = 60.0
SAVE_ANSWERS = 20  # between two saves of the progress
TRIES = 3  # to settle the row of an answer, if an unexpected error stops it or the process dies
STORE_SECONDS = 120.0  # for the images of one answer, tries included
_MAX_DIGESTS = 4  # of different answers to one request: bounds the batch's item
# Providers end a batch after a day, or two. One that stays open is cancelled, then given up.
OVERDUE_SECONDS = 72 * HOUR
GIVE_UP_SECONDS = 96 * HOUR


class _OutOfTime(Exception):
    """The collection continues in another invocation."""


class _NotStored(Exception):
    """These images cannot be stored, though others can."""


@dataclass(frozen=True, slots=True)
class Collector:
    """`continue_later` invokes the collector again for one batch, given by its name."""

    batches: BatchLedger
    rows: RowLedger
    runs: CurrentRuns
    waits: JobWaits
    endpoints: BatchEndpoints
    images: ImageStorage
    worker: RowWorker
    returns: RowReturns
    completion: Completion
    clock: Clock
    telemetry: Telemetry
    continue_later: Callable[[str], None]
    on_unknown_outcome: str = "retry"

    def collect(
        self, owner: str, remaining_seconds: Callable[[], float], only: str | None = None
    ) -> None:
        """Look at all open batches, or at that one. `owner` names this invocation.

        Raises ServiceUnavailable when the list of batches cannot be read.
        """
        found = list(self.batches.open())
        if found:
            oldest = min(batch.created_at for batch in found)
            self.telemetry.metric(Metric.BATCH_AGE, self.clock.now() - oldest)
        for batch in found:
            if only is not None and batch.name != only:
                continue
            if remaining_seconds() < STOP_BEFORE_SECONDS:
                self.telemetry.warning("collection_incomplete", next_batch=batch.name)
                return
            try:
                self._collect(batch, owner, remaining_seconds)
            except ServiceUnavailable as error:
                self.telemetry.warning("batch_not_collected", batch=batch.name, error=str(error))
            except Exception:  # noqa: BLE001  # one batch must not keep the others waiting
                self.telemetry.exception("collection_crashed", batch=batch.name)

    def _collect(
        self, batch: BatchRecord, owner: str, remaining_seconds: Callable[[], float]
    ) -> None:
        now = self.clock.now()
        preparing = batch.state is BatchState.PREPARING
        if preparing and now < batch.lease_until + FIND_AFTER_SECONDS:
            return
        leased = self.batches.update(
            batch.name, lambda r: batches.take_lease(r, owner, now, LEASE_SECONDS)
        )
        run = self.runs.get(batch.job)
        if leased is None or run is None:
            return
        work, out_of_time = _Collection(self, leased, owner, run, remaining_seconds), False
        with self.telemetry.bound(job=batch.job, batch=batch.name):
            try:
                work.run_to_end()
            except _OutOfTime:
                out_of_time = True
            except LeaseLost as lost:
                self.telemetry.warning("lease_lost", why=str(lost))
            finally:
                work.end_lease()
            if out_of_time:
                self.continue_later(batch.name)
        if work.changed_rows:
            self.completion.check(batch.job)


@dataclass(slots=True)
class _Collection:
    """The work of one invocation on one batch, which it has leased."""

    collector: Collector
    batch: BatchRecord
    owner: str
    run: Run
    remaining_seconds: Callable[[], float]
    changed_rows: bool = False  # the job may be complete
    _provider: str = ""
    _candidates: dict[str, str] = field(default_factory=dict)  # row keys by custom id
    _records: dict[str, RowRecord] = field(default_factory=dict)  # by row key
    _returned: set[str] = field(default_factory=set)  # keys of rows that were queued again
    _answered: dict[str, tuple[str, ...]] = field(default_factory=dict)  # as in BatchRecord
    _unsaved: int = 0

    def run_to_end(self) -> None:
        """Raises ServiceUnavailable, LeaseLost, _OutOfTime."""
        access = self._access()
        if access is None:
            return
        self._provider = access.endpoint.provider
        try:
            self._advance(access)
        except CallFailed as failed:
            self._request_failed(access, failed)

    def _request_failed(self, access: BatchAccess, failed: CallFailed) -> None:
        detail = f"{self.batch.endpoint}: {failed.detail}"
        self.collector.telemetry.warning("batch_request_failed", detail=detail)
        no_such_batch = failed.outcome is Outcome.BAD_REQUEST
        if failed.outcome.key_at_fault:
            self.collector.endpoints.failed(access, failed)
            self._wait(failed.reason, detail)
        if self._age() > (HOUR if no_such_batch else GIVE_UP_SECONDS):
            self._give_up(failed)

    def end_lease(self) -> None:
        with suppress(ServiceUnavailable, LeaseLost):  # it ends by itself
            self._update(batches.end_lease)

    # Steps

    def _access(self) -> BatchAccess | None:
        batch = self.batch
        try:
            return self.collector.endpoints.of_batch(batch.endpoint, batch.key_id)
        except ConfigurationError as error:
            self._wait(Reason.NO_ENDPOINT, str(error))
            if self._age() > GIVE_UP_SECONDS:
                self._give_up(CallFailed(Outcome.UNAVAILABLE, str(error)))
            return None

    def _advance(self, access: BatchAccess) -> None:
        """Raises CallFailed of a request about the batch."""
        if self.batch.state is BatchState.PREPARING and not self._find(access):
            return
        found = access.provider.status(self.batch.batch_id, CALL_SECONDS)
        if self.batch.status != found.status:
            # Collectors that died while the batch was not ended had no answer to die of.
            self._update(batches.changed, status=found.status.value, crashes=0)
        if not found.status.ended:
            self._cancel_if_not_wanted(access)
            return
        if not self.batch.collected:
            if found.status is not BatchStatus.FAILED:
                self._read_results(access, found)
            self._update(batches.changed, collected=True)
        self._return_rows(self._why(found))
        self._delete_files(access, found)
        self._close()

    def _find(self, access: BatchAccess) -> bool:
        """The submitter died, or had no answer: the provider has the batch, or its rows return."""
        batch, now = self.batch, self.collector.clock.now()
        created_after = batch.created_at - CREATED_MARGIN_SECONDS
        found = access.provider.find(batch.name, CALL_SECONDS, created_after=created_after)
        if found is not None:
            submit = partial(
                batches.submitted, batch_id=found.id, rows=len(self._rows_in()), now=now
            )
            self._update(submit)
            self.collector.telemetry.warning("batch_found", batch_id=found.id)
            return True
        cause = CallFailed(Outcome.UNAVAILABLE, "the batch was not submitted")
        self._return_rows(self._answerless(cause, refund_attempt=True))
        self._close()
        return False

    def _cancel_if_not_wanted(self, access: BatchAccess) -> None:
        stopped = self.run.state is RunState.STOPPED
        if (stopped or self._age() > OVERDUE_SECONDS) and not self.batch.cancelled_at:
            access.provider.cancel(self.batch.batch_id, CALL_SECONDS)
            self._update(batches.changed, cancelled_at=self.collector.clock.now())
            self.collector.telemetry.warning("batch_cancelled", stopped=stopped)
        if self._age() > GIVE_UP_SECONDS:
            self._give_up(CallFailed(Outcome.UNAVAILABLE, "the provider never ended the batch"))

    def _read_results(self, access: BatchAccess, found: ProviderBatch) -> None:
        self._load_rows()
        self._answered = dict(self.batch.answered)
        crashes = self.batch.crashes
        answers = access.provider.results(
            found,
            self._plan_of,
            CALL_SECONDS,
            position=self.batch.position,
            pass_over=crashes >= TRIES,
        )
        save_answers = 1 if crashes else SAVE_ANSWERS  # to know which answer it was
        for answer in answers:
            if self.remaining_seconds() < STOP_BEFORE_SECONDS:
                self._save()
                raise _OutOfTime
            self._take(answer)
            self.batch = replace(self.batch, position=answer.position)
            self._unsaved += 1
            if self._unsaved >= save_answers:
                self._save()
        self._save()

    def _return_rows(self, why: Answerless) -> None:
        """Rows without an answer, and those that a collector took back before it died."""
        self.changed_rows = True
        if why.cause.maybe_charged and self.collector.on_unknown_outcome == "fail":
            for record in self._rows_in():
                self._fail_unknown(record, why.cause)
        rows = [row for row in self._fresh_rows() if row.key not in self._returned]
        self.collector.returns.give_back(self.batch.job, rows, why)

    def _delete_files(self, access: BatchAccess, found: ProviderBatch) -> None:
        try:
            access.provider.delete_files(found, CALL_SECONDS)
        except CallFailed as error:  # they expire at the provider
            self.collector.telemetry.warning("files_not_deleted", error=error.detail)

    def _close(self) -> None:
        self._update(batches.closed)
        cost = self.batch.unclaimed_cost.cost_micro_usd
        self.collector.telemetry.info("batch_closed", unclaimed_cost_micro_usd=cost)

    def _give_up(self, cause: CallFailed) -> None:
        """The answers cannot be had, and may have been billed."""
        lost = CallFailed(cause.outcome, f"its batch is lost: {cause.detail}", maybe_charged=True)
        self._return_rows(self._answerless(lost))
        self._close()

    def _fail_unknown(self, record: RowRecord, cause: CallFailed) -> None:
        """In one write: a row that was taken back would be called for after a crash."""
        reason, detail = Reason.OUTCOME_UNKNOWN, f"it may have been billed: {cause.detail}"
        if self.collector.rows.drop(self.batch.job, record, reason, detail):
            self.collector.telemetry.metric(Metric.POSSIBLE_DUPLICATE_CHARGES)
            self.collector.telemetry.metric(Metric.ROWS_FAILED)

    def _why(self, found: ProviderBatch) -> Answerless:
        cause = found.failure or CallFailed(
            Outcome.UNAVAILABLE,
            f"the batch has {found.status.value}, with no answer for the row",
            maybe_charged=self._missing_may_be_billed(found),
        )
        # Too much in the queue of the account, or its key: nothing that a row is to blame for.
        refund = cause.outcome is Outcome.RATE_LIMITED or cause.outcome.key_at_fault
        if found.status is BatchStatus.FAILED and refund:
            access = self._access()
            if access is not None:
                self.collector.endpoints.failed(access, cause)
        return self._answerless(cause, refund_attempt=refund)

    def _missing_may_be_billed(self, found: ProviderBatch) -> bool:
        """The provider may have made an image for a row of which no answer could be read.

        Completed requests are billed, also those of a batch that has expired or was cancelled;
        the others are not: https://help.openai.com/en/articles/9197833-batch-api-faq and
        https://community.openai.com/t/1385608. Google documents neither. A batch that has
        succeeded has processed all its requests.
        """
        if len(self.batch.answered) >= (found.requests or self.batch.rows):
            return False  # the row's request was left out of the file, see docs/batch.md
        without_file = found.succeeded > 0 and not found.result_files
        succeeded = found.status is BatchStatus.SUCCEEDED
        return succeeded or without_file or self.batch.unreadable > 0

    def _answerless(self, cause: CallFailed, *, refund_attempt: bool = False) -> Answerless:
        name, endpoint = self.batch.name, self.batch.endpoint
        return Answerless(name, endpoint, cause, refund_attempt=refund_attempt)

    # Answers

    def _take(self, answer: BatchAnswer) -> None:
        """Process one line of the results. Raises ServiceUnavailable, LeaseLost, _OutOfTime."""
        name = answer.custom_id
        key = self._candidates.get(name or "")
        if name is None:
            self.batch = replace(self.batch, unreadable=self.batch.unreadable + 1)
            self.collector.telemetry.warning("answer_unreadable", error=str(answer.outcome))
        elif key is not None:
            self._take_of_row(name, key, answer.outcome)

    def _take_of_row(self, name: str, key: str, outcome: EditResult | CallFailed) -> None:
        digests, digest = self._answered.get(name, ()), _digest(outcome)
        if digest in digests:
            return
        if digests:
            self._count_unclaimed(name, outcome)
        elif not self._settle_in_tries(name, key, outcome):
            self.batch = replace(self.batch, unreadable=self.batch.unreadable + 1)
            return
        self._answered[name] = (*digests, digest)[:_MAX_DIGESTS]

    def _settle_in_tries(self, name: str, key: str, outcome: EditResult | CallFailed) -> bool:
        """An answer that nothing can be done with must not keep the others from their rows.

        False when even its row could not be returned, and its charge is not counted anywhere.
        """
        error: Exception | None = None
        for tries in range(1, TRIES + 1):
            try:
                self._process(name, key, outcome)
            except (ServiceUnavailable, LeaseLost, _OutOfTime):
                raise
            except Exception as caught:  # noqa: BLE001  # a bug, or what a library chokes on
                error = caught
                self.collector.telemetry.exception("answer_crashed", custom_id=name, tries=tries)
            else:
                return True
            if isinstance(error, _NotStored):
                break
        return self._return_unprocessed(name, key, outcome, error)

    def _return_unprocessed(
        self, name: str, key: str, outcome: EditResult | CallFailed, error: Exception | None
    ) -> bool:
        """Queue the row again. False when that fails, so that a charge is not counted anywhere."""
        cause = CallFailed(
            Outcome.UNAVAILABLE,
            f"its answer cannot be processed: {type(error).__name__}",
            maybe_charged=isinstance(outcome, EditResult) or outcome.maybe_charged,
            cost_micro_usd=outcome.cost_micro_usd,
        )
        record = self._refreshed(key)
        if record is None or not is_in(record, self.batch.name):
            self._process(name, key, outcome)  # a later upload has changed the row
            return True
        try:
            self._give_back(record, cause)
        except (ServiceUnavailable, LeaseLost):
            raise
        except Exception:  # noqa: BLE001  # again with the rows that have no answer
            self.collector.telemetry.exception("row_not_returned", custom_id=name)
            return not cause.maybe_charged
        return True

    def _process(self, name: str, key: str, outcome: EditResult | CallFailed) -> None:
        """Settle the row of an answer, if it still waits for it. Raises ServiceUnavailable."""
        record = self._records.get(key)
        if record is None or not is_in(record, self.batch.name):
            if record is not None and self.batch.name in record.left:
                self._count_unclaimed(name, outcome)
            return  # else it is settled already, by this answer
        try:
            done = self._settle(record, outcome)
        except LeaseLost as lost:
            self.collector.telemetry.warning("lease_lost", why=str(lost))
            done = False
        fresh = self._refreshed(key)
        if done:
            return
        if is_in(fresh, self.batch.name) and fresh is not None and fresh.version == record.version:
            raise ServiceUnavailable(f"row {key} could not be settled")
        self._process(name, key, outcome)  # a later upload has changed the row

    def _refreshed(self, key: str) -> RowRecord | None:
        fresh = self.collector.rows.get_many(self.batch.job, [key]).get(key)
        if fresh is not None:
            self._records[key] = fresh
        return fresh

    def _give_back(self, record: RowRecord, cause: CallFailed) -> None:
        self.collector.returns.give_back(self.batch.job, [record], self._answerless(cause))
        self._returned.add(record.key)

    def _settle(self, record: RowRecord, outcome: EditResult | CallFailed) -> bool:
        """Raises LeaseLost, ServiceUnavailable."""
        submission, collector = record.submission, self.collector
        if submission is None:
            return True
        if isinstance(outcome, CallFailed) and not outcome.outcome.row_at_fault:
            self._give_back(record, outcome)
            return True
        self.changed_rows = True
        claim = Claim(self.batch.job, f"batch/{self.batch.name}", record)
        context = collector.worker.context(claim, self.run, submission.message)
        if isinstance(outcome, CallFailed):
            result = self._failed(context, submission, outcome)
        else:
            try:
                result = self._stored(claim, submission, outcome)
            except LeaseLost as lost:  # no later call can store it either
                paid = outcome.cost_micro_usd
                result = self._ended(context, submission, Reason.SUPERSEDED, str(lost), paid)
        collector.worker.settle(context, result)
        if result.status is RowState.SUCCEEDED:
            collector.worker.clear_waiting(self.run)
        return True

    def _failed(
        self, context: RowCallContext, submission: Submission, outcome: CallFailed
    ) -> RowResult:
        detail = f"{self.batch.endpoint}: {outcome.detail}"
        return self._ended(context, submission, outcome.reason, detail, outcome.cost_micro_usd or 0)

    def _ended(
        self,
        context: RowCallContext,
        submission: Submission,
        reason: Reason,
        detail: str,
        cost: int | None,
    ) -> RowResult:
        rejected = RowRejected(reason, detail, endpoint=self.batch.endpoint, model=submission.model)
        result = failure(RowState.FAILED, rejected, context)
        paid = None if cost is None else context.claim.record.spent + cost
        return replace(result, cost_micro_usd=paid, mode="batch")

    def _stored(self, claim: Claim, submission: Submission, outcome: EditResult) -> RowResult:
        collector, cost = self.collector, outcome.cost_micro_usd
        result = RowResult(
            RowState.SUCCEEDED,
            provider=self._provider,
            endpoint=self.batch.endpoint,
            model=outcome.model or submission.model,
            fallback=submission.fallback,
            cost_micro_usd=None if cost is None else claim.record.spent + cost,
            mode="batch",
            warnings=submission.warnings,
        )
        result = self._put_images(claim, submission, outcome.images, result)
        warnings = collector.images.put_thumbnails(
            claim, result.outputs[0], None, outcome.images[0]
        )
        return replace(result, warnings=(*result.warnings, *warnings))

    def _put_images(
        self, claim: Claim, submission: Submission, images: Sequence[bytes], result: RowResult
    ) -> RowResult:
        """Raises LeaseLost, ServiceUnavailable, and _NotStored if S3 accepts other objects.

        Raises _OutOfTime where these images had less than STORE_SECONDS.
        """
        storage, request = self.collector.images, submission.message.request
        seconds = min(STORE_SECONDS, self.remaining_seconds() - STOP_BEFORE_SECONDS / 2)
        try:
            return storage.put(claim, request, images, result, self.collector.clock.now() + seconds)
        except ServiceUnavailable as error:
            if seconds < STORE_SECONDS:
                raise _OutOfTime from error
            try:
                storage.check_writable(claim.job)
            except DeferRow as nothing:
                raise ServiceUnavailable(str(nothing)) from error
            raise _NotStored(str(error)) from error

    def _count_unclaimed(self, name: str, outcome: EditResult | CallFailed) -> None:
        """An answer that no row waits for is paid all the same."""
        if not outcome.cost_micro_usd:
            return
        cost = self.batch.unclaimed_micro_usd + outcome.cost_micro_usd
        self.batch = replace(self.batch, unclaimed_micro_usd=cost)
        self.collector.telemetry.warning("answer_unclaimed", custom_id=name)

    # What is known of the batch

    def _load_rows(self) -> None:
        keys = self.collector.batches.candidates(self.batch.name)
        self._candidates = {custom_id(n): key for n, key in enumerate(keys)}
        self._records = dict(self.collector.rows.get_many(self.batch.job, keys))

    def _fresh_rows(self) -> list[RowRecord]:
        self._load_rows()
        return list(self._records.values())

    def _rows_in(self) -> list[RowRecord]:
        return [record for record in self._fresh_rows() if is_in(record, self.batch.name)]

    def _plan_of(self, name: str) -> CallPlan | None:
        """As much of the row's plan as its price depends on."""
        record = self._records.get(self._candidates.get(name, ""))
        submission, provider = record.submission if record else None, Provider(self._provider)
        if submission is None:  # settled, or edited anew: at least the model is known
            return CallPlan(provider, self.batch.model, "")
        return CallPlan(
            provider,
            submission.model,
            submission.message.request.instruction,
            n=submission.n,
            size=submission.size,
            resolution=submission.resolution,
            quality=submission.quality,
        )

    def _age(self) -> float:
        return self.collector.clock.now() - self.batch.created_at

    def _wait(self, reason: Reason, detail: str) -> None:
        """Show in the job what its rows wait for."""
        waiting = Waiting(reason, detail, self.collector.clock.now())
        self.collector.waits.record(self.run, waiting)

    def _save(self) -> None:
        batch, self._unsaved = self.batch, 0
        self._update(
            batches.changed,
            position=batch.position,
            answered=dict(self._answered),
            unreadable=batch.unreadable,
            unclaimed_micro_usd=batch.unclaimed_micro_usd,
            crashes=0,
        )

    def _update(self, transition: Callable[..., BatchRecord | None], **changes: Any) -> None:
        """Raises LeaseLost when another collector has taken the batch."""
        updated = self.collector.batches.update(
            self.batch.name, lambda record: transition(record, self.owner, **changes)
        )
        if updated is not None:
            self.batch = updated
        elif self.batch.state is not BatchState.CLOSED:
            raise LeaseLost(f"batch {self.batch.name} was taken by another collector")


def _digest(outcome: EditResult | CallFailed) -> str:
    """Tells an answer that was written twice from one that was made twice."""
    made = blake2b(digest_size=4)
    parts = outcome.images if isinstance(outcome, EditResult) else (outcome.detail.encode(),)
    for part in parts:
        made.update(part)
    return made.hexdigest()
