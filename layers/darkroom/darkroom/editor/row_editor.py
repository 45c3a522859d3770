"""Works on one row: claims it, loads its images, and has it called for or put into a batch.

RowWorker is what both have in common, with everything that can go wrong; RowEditor has the call
dispatched, and stores its images.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import partial
from typing import Protocol

from darkroom.calls import CallFailed, CallPlan, EditResult, SourceImage
from darkroom.editor.batch import ReturnRow
from darkroom.editor.image_loading import LoadedImages, load_images
from darkroom.editor.image_storage import ImageStorage
from darkroom.editor.leases import TIMINGS, Leases, Timings
from darkroom.editor.waiting import CurrentRuns, JobWaits
from darkroom.endpoints import Endpoint
from darkroom.errors import (
    ConfigurationError,
    DeferRow,
    Ineligible,
    LeaseLost,
    Reason,
    RetryRow,
    RowError,
    RowRejected,
    ServiceUnavailable,
    Waiting,
)
from darkroom.formatting import money
from darkroom.images.memory import MemoryBudget
from darkroom.jobs import STOPPED_DETAIL, Run, RunState
from darkroom.metrics import Metric
from darkroom.models.planner import check_mode, endpoint_in_mode, model_for, plan_call
from darkroom.ports import (
    Clock,
    Dispatcher,
    DispatchResult,
    ImageFetcher,
    RowLedger,
    RowQueue,
    Telemetry,
)
from darkroom.retry import backoff, with_jitter
from darkroom.rows import (
    Claim,
    Mode,
    NotClaimed,
    NotSent,
    RowMessage,
    RowResult,
    RowState,
    Submission,
)

_BUDGET_DELAY_SECONDS = 30.0  # about the time of a call
_BATCH_BUDGET_DELAY_SECONDS = 600.0  # a batch keeps its reservations for hours
_MAX_DETAIL_CHARS = 1000  # keeps the row's item near 1 KB, the size of a write unit
_STATUS_METRICS = {
    RowState.SUCCEEDED: Metric.ROWS_SUCCEEDED,
    RowState.FAILED: Metric.ROWS_FAILED,
    RowState.DEAD: Metric.ROWS_DEAD,
}


@dataclass(slots=True)
class RowCallContext:
    """A claimed row during its dispatch: the claim after its last transition, and its images.

    `calls` counts the calls made in this attempt.
    """

    claim: Claim
    run: Run
    message: RowMessage
    rows: RowLedger
    runs: CurrentRuns
    telemetry: Telemetry
    today: date  # in UTC
    images: Sequence[SourceImage] = ()
    mask: SourceImage | None = None
    calls: int = 0
    batch: bool = False  # the request is for a provider's batch, at its price
    tier: int | None = None  # the first that can take the row: endpoints are planned in that order

    @property
    def mode(self) -> Mode:
        return "live" if self.message.live else self.run.options.mode

    @property
    def is_last_attempt(self) -> bool:
        return self.claim.attempt >= self.run.options.max_attempts

    def plan(self, endpoint: Endpoint) -> CallPlan:
        request, images = self.message.request, tuple(self.images)
        check_mode(endpoint, self.run.options.mode)
        plan = plan_call(request, images, self.mask, endpoint, self.today, batch=self.batch)
        self.tier = endpoint.tier if self.tier is None else self.tier
        if not self.run.options.fallback and not self._is_first_choice(endpoint):
            raise Ineligible("the job's option fallback is off")
        return plan

    def _is_first_choice(self, endpoint: Endpoint) -> bool:
        requested = self.message.request.model
        if requested is None:
            return endpoint.tier == self.tier
        return requested in (model_for(requested, endpoint), endpoint.model_is)

    def adapted(self, endpoint: Endpoint) -> Endpoint:
        return endpoint_in_mode(endpoint, self.run.options.mode)

    def before_call(self, endpoint: Endpoint, plan: CallPlan) -> None:
        self._pay(plan, partial(self.rows.mark_sent, self.claim, endpoint.name))
        self.calls += 1

    def submit(
        self, endpoint: Endpoint, plan: CallPlan, batch: str, submission: Submission
    ) -> None:
        """The request becomes part of a batch. Raises like `before_call`."""
        mark = partial(self.rows.mark_submitted, self.claim, batch, submission, endpoint.name)
        self._pay(plan, mark)

    def _pay(self, plan: CallPlan, mark: "_Mark") -> None:
        """Have the row marked, with a reservation of what the plan costs at most."""
        self.reject_if_stopped()
        budget, worst = self.run.options.budget_micro_usd, plan.worst_cost_micro_usd
        if budget is not None and worst is None:
            raise RowRejected(
                Reason.BUDGET,
                f"the price of model {plan.model} is not known, so a budget cannot be kept: "
                "name a model with a known price, or upload without budget-usd",
            )
        limit = None if budget is None else budget - self.run.spent_before
        sent = mark(reserve=worst or 0, limit=limit)
        if sent is NotSent.LEASE_LOST:
            raise self._lease_lost()
        if sent is NotSent.BUDGET_RESERVED:
            batch = self.run.options.mode == "batch"
            raise DeferRow(
                "the rest of the job's budget is reserved for calls under way",
                delay_seconds=_BATCH_BUDGET_DELAY_SECONDS if batch else _BUDGET_DELAY_SECONDS,
            )
        if sent is NotSent.NO_BUDGET:
            raise RowRejected(
                Reason.BUDGET,
                f"the job's budget of {money((budget or 0) / 1e6)} has no room for this row (up to "
                f"{money((worst or 0) / 1e6)}): upload again with a larger budget-usd to continue",
            )
        self.claim = sent

    def cancel_call(self) -> None:
        self.record_failed_call(0, maybe_charged=False)
        self.calls -= 1

    def after_call(self, outcome: EditResult | CallFailed) -> None:
        """Raises LeaseLost, ServiceUnavailable. A success is recorded when the row is settled."""
        if isinstance(outcome, CallFailed):
            self.record_failed_call(
                outcome.cost_micro_usd or 0, maybe_charged=outcome.maybe_charged
            )

    def record_failed_call(self, cost_micro_usd: int, *, maybe_charged: bool) -> None:
        claim = self.rows.mark_failed_call(
            self.claim, cost_micro_usd=cost_micro_usd, maybe_charged=maybe_charged
        )
        if claim is None:
            raise self._lease_lost()
        self.claim = claim
        if maybe_charged:
            self.telemetry.metric(Metric.POSSIBLE_DUPLICATE_CHARGES)

    def reject_if_stopped(self) -> None:
        """Raises RowRejected, also if the job was stopped while the row waited."""
        current = self.runs.get(self.run.job)
        if current is not None and current.run == self.run.run:
            self.run = current
        if self.run.state is RunState.STOPPED:
            raise RowRejected(Reason.STOPPED, STOPPED_DETAIL)

    def _lease_lost(self) -> LeaseLost:
        return LeaseLost(f"row {self.claim.key} was claimed by another worker")


class _Mark(Protocol):
    def __call__(self, *, reserve: int, limit: int | None) -> Claim | NotSent: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWorker(ABC):
    """Implements batch.RowHandler. Thread-safe.

    What is done with a row whose images are loaded is `process`.
    """

    rows: RowLedger
    runs: CurrentRuns
    waits: JobWaits
    images: ImageStorage
    queue: RowQueue
    fetcher: ImageFetcher
    clock: Clock
    telemetry: Telemetry
    memory: MemoryBudget = field(default_factory=MemoryBudget.of_function)
    on_unknown_outcome: str = "retry"
    rng: Callable[[], float] = random.random
    timings: Timings = TIMINGS

    @abstractmethod
    def process(
        self, context: RowCallContext, loaded: LoadedImages, deadline: float
    ) -> RowResult | None:
        """The row's result; None: it is settled later. Raises as Dispatcher.dispatch does."""

    def context(self, claim: Claim, run: Run, message: RowMessage) -> RowCallContext:
        today = datetime.fromtimestamp(self.clock.now(), UTC).date()
        return RowCallContext(claim, run, message, self.rows, self.runs, self.telemetry, today)

    def handle(
        self,
        message: RowMessage,
        run: Run,
        owner: str,
        deadline: float,
        leases: Leases,
        *,
        given_up: Waiting | None = None,
    ) -> ReturnRow | None:
        with self.telemetry.bound(job=message.job, row=message.key):
            try:
                claim = self.rows.claim(message, run, owner, self.timings.lease_seconds)
            except ServiceUnavailable as error:
                self.telemetry.warning("ledger_unavailable", error=str(error))
                return ReturnRow(self.timings.aws_delay_seconds)
            if claim is NotClaimed.HELD:
                return ReturnRow(self.timings.held_delay_seconds)
            if claim is NotClaimed.OUTDATED_LETTER:
                return self._return_letter(message)
            if isinstance(claim, NotClaimed):
                self.telemetry.metric(Metric.DUPLICATE_SUPPRESSED)
                return None
            context = self.context(claim, run, message)
            if claim.after_crash and not leases.alone:
                self._release(context, refund_attempt=True)
                return ReturnRow(0.0, alone=True)
            with leases.claimed(claim):
                return self._run(context, deadline, given_up)

    def _run(
        self, context: RowCallContext, deadline: float, given_up: Waiting | None
    ) -> ReturnRow | None:
        try:
            return self._attempt(context, deadline, given_up)
        except LeaseLost as lost:
            self.telemetry.warning("lease_lost", why=str(lost))
            return ReturnRow(self.timings.held_delay_seconds)
        except ServiceUnavailable as error:
            self.telemetry.warning("service_unavailable", error=str(error))
            refund = context.calls == 0
            return self._defer(context, self.timings.aws_delay_seconds, refund_attempt=refund)

    def _attempt(
        self, context: RowCallContext, deadline: float, given_up: Waiting | None
    ) -> ReturnRow | None:
        """Raises LeaseLost, ServiceUnavailable."""
        try:
            result = self._edit(context, deadline, given_up)
        except RowRejected as error:
            result = failure(RowState.FAILED, error, context)
        except RetryRow as error:
            if given_up is None:
                return self._retry(context, error)
            self.dead_letter(context, error)
            return None
        except DeferRow as error:
            return self._wait(context, error)
        except ConfigurationError as error:
            waiting = Waiting(Reason.NO_ENDPOINT, str(error), self.clock.now())
            delay = self.timings.held_delay_seconds
            return self._wait(context, DeferRow(str(error), delay_seconds=delay, waiting=waiting))
        except (LeaseLost, ServiceUnavailable):
            raise
        except Exception as error:  # noqa: BLE001  # a bug must neither lose a row nor repeat it forever
            self.telemetry.exception("row_crashed")
            detail = f"an unexpected error stopped the work: {type(error).__name__}"
            return self._retry(context, RetryRow(Reason.WORKER_LOST, detail))
        if result is not None:
            self.settle(context, result)
            if result.status is RowState.SUCCEEDED:
                self.clear_waiting(context.run)
        return None

    def _wait(self, context: RowCallContext, error: DeferRow) -> ReturnRow | None:
        """Return the row to the queue, or end it when its job has waited for too long."""
        if error.waiting is not None:
            self.telemetry.metric(Metric.ROWS_WAITING)
            if self.waits.record(context.run, error.waiting):
                self.dead_letter(context, _given_up(error.waiting))
                return None
        # Also after a call: what failed then was the endpoint's, not the row's.
        return self._defer(context, error.delay_seconds, refund_attempt=True)

    def _defer(self, context: RowCallContext, seconds: float, *, refund_attempt: bool) -> ReturnRow:
        self._release(context, refund_attempt=refund_attempt)
        return ReturnRow(with_jitter(seconds, self.rng), called=context.calls > 0)

    def clear_waiting(self, run: Run) -> None:
        try:
            self.waits.clear(run)
        except ServiceUnavailable as error:  # the next row's success clears it
            self.telemetry.warning("waiting_not_cleared", error=str(error))

    def _edit(
        self, context: RowCallContext, deadline: float, given_up: Waiting | None
    ) -> RowResult | None:
        claim, message = context.claim, context.message
        if claim.sent_before:
            found = self._resolve_unknown_outcome(context)
            if found is not None:
                return found
        if claim.attempts_spent:
            raise RetryRow(Reason.WORKER_LOST, "its worker died in every attempt")
        context.reject_if_stopped()
        if given_up is not None:
            raise _given_up(given_up)
        self.images.check_writable(claim.job)
        image_bytes = 0
        while True:
            with self.memory.share(message.request, image_bytes) as share:
                loaded = load_images(
                    message.request,
                    message.base,
                    self.fetcher,
                    last_attempt=context.is_last_attempt,
                )
                if share.images_loaded(loaded.total_bytes):
                    context.images, context.mask = loaded.images, loaded.mask
                    return self.process(context, loaded, deadline)
            # Wait for a larger share without holding one, and load the images again.
            image_bytes = max(image_bytes, loaded.total_bytes)
            del loaded

    def _resolve_unknown_outcome(self, context: RowCallContext) -> RowResult | None:
        """An earlier call was sent, and its worker died before it recorded the outcome."""
        found = self.images.lookup(context.claim, context.message.request)
        if found is not None:
            self.telemetry.info("image_found")
            return found
        context.record_failed_call(0, maybe_charged=True)
        if self.on_unknown_outcome == "fail":
            raise RowRejected(
                Reason.OUTCOME_UNKNOWN,
                "a call was sent and its worker died before the response: it may have been billed; "
                "upload again with retry-failed=true to edit the row",
            )
        return None

    def _retry(self, context: RowCallContext, error: RetryRow) -> ReturnRow | None:
        if context.is_last_attempt:
            self.dead_letter(context, error)
            return None
        self._release(context, refund_attempt=False)
        attempt = context.claim.attempt
        wait = backoff(attempt, self.timings.backoff_seconds, self.timings.backoff_cap_seconds)
        self.telemetry.info("row_retries", attempt=attempt, reason=error.reason)
        seconds = max(with_jitter(wait, self.rng), error.delay_seconds)
        return ReturnRow(seconds, called=context.calls > 0)

    def dead_letter(self, context: RowCallContext, error: RetryRow) -> None:
        """Send the dead letter before the row is settled.

        A crash in between leads to a second copy, which is harmless: only one of equal copies can
        redrive the row.
        """
        record, message = context.claim.record, context.message
        endpoint = error.endpoint or record.endpoint
        copy = message.model_copy(
            update={
                "run": context.claim.run,
                "generation": record.generation + 1,
                "live": False,  # redriven, it goes the way of its job's mode
            }
        )
        attributes = {
            "reason": error.reason.value,
            "detail": error.detail,
            "endpoint": endpoint or "",
            "attempts": str(record.attempts),
            "job": message.job,
            "row": message.key,
        }
        self.queue.dead_letter(copy.model_dump_json(), attributes)
        result = failure(RowState.DEAD, error, context)
        self.settle(context, replace(result, provider=error.provider, endpoint=endpoint))

    def _return_letter(self, message: RowMessage) -> ReturnRow | None:
        """Keep a dead letter of an earlier upload, whose rows the current one does not edit."""
        reason = Reason.SUPERSEDED
        attributes = {"reason": reason.value, "detail": reason.remediation}
        try:
            self.queue.dead_letter(
                message.model_dump_json(), attributes | {"job": message.job, "row": message.key}
            )
        except ServiceUnavailable as error:
            self.telemetry.warning("service_unavailable", error=str(error))
            return ReturnRow(self.timings.aws_delay_seconds)
        self.telemetry.warning("letter_of_an_earlier_upload")
        return None

    def settle(self, context: RowCallContext, result: RowResult) -> None:
        if not self.rows.settle(context.claim, result):
            raise LeaseLost("it was settled by another worker, or is being worked on")
        self.telemetry.metric(_STATUS_METRICS[result.status])
        if result.fallback:
            self.telemetry.metric(Metric.FALLBACK_USED)
        if result.cost_micro_usd:
            cost_usd = result.cost_micro_usd / 1e6
            self.telemetry.metric(Metric.COST_USD, cost_usd, endpoint=result.endpoint)
        self.telemetry.info(
            "row_settled",
            status=result.status.value,
            reason=result.reason.value if result.reason else None,
            endpoint=result.endpoint,
            attempts=context.claim.attempt,
        )

    def _release(self, context: RowCallContext, *, refund_attempt: bool) -> None:
        try:
            self.rows.release(context.claim, refund_attempt=refund_attempt)
        except ServiceUnavailable as error:  # the lease ends by itself
            self.telemetry.warning("release_failed", error=str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowEditor(RowWorker):
    """Has a row's calls dispatched, and stores its images."""

    dispatcher: Dispatcher
    batch_queue: RowQueue

    def handle(
        self,
        message: RowMessage,
        run: Run,
        owner: str,
        deadline: float,
        leases: Leases,
        *,
        given_up: Waiting | None = None,
    ) -> ReturnRow | None:
        """A redriven row of a job with mode=batch returns to the batches."""
        if run.options.mode == "batch" and not message.live:
            self.batch_queue.send([message])
            return None
        return RowWorker.handle(self, message, run, owner, deadline, leases, given_up=given_up)

    def process(self, context: RowCallContext, loaded: LoadedImages, deadline: float) -> RowResult:
        dispatched = self.dispatcher.dispatch(context, deadline)
        claim, images = context.claim, dispatched.result.images
        result = _success(dispatched, claim, loaded.warnings)
        result = self.images.put(claim, context.message.request, images, result, deadline)
        before = loaded.images[0].data if loaded.images else None
        warnings = self.images.put_thumbnails(claim, result.outputs[0], before, images[0])
        return replace(result, warnings=(*result.warnings, *warnings))


def _success(dispatched: DispatchResult, claim: Claim, warnings: Sequence[str]) -> RowResult:
    """The result of a call that gave images; its cost includes the row's earlier calls."""
    plan, cost = dispatched.plan, dispatched.result.cost_micro_usd
    return RowResult(
        RowState.SUCCEEDED,
        provider=plan.provider.value,
        endpoint=dispatched.endpoint.name,
        model=dispatched.result.model or plan.model,
        fallback=dispatched.fallback,
        fallback_cause=dispatched.fallback_cause,
        latency_ms=dispatched.latency_ms,
        cost_micro_usd=None if cost is None else claim.record.spent + cost,
        mode=dispatched.endpoint.service_tier or "live",
        warnings=tuple(dict.fromkeys((*warnings, *plan.warnings, *dispatched.warnings))),
    )


def _given_up(waiting: Waiting) -> RetryRow:
    return RetryRow(waiting.reason, f"the job waited too long: {waiting.detail}")


def failure(status: RowState, error: RowError, context: RowCallContext) -> RowResult:
    detail = error.detail[:_MAX_DETAIL_CHARS]
    return RowResult(
        status,
        error.reason,
        detail,
        provider=error.provider,
        endpoint=error.endpoint,
        model=error.model,
        cost_micro_usd=context.claim.record.spent,
        mode=context.mode,
    )
