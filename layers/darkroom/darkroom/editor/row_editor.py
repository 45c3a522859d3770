"""A row's way through the editor: claim, load, call, store, settle."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from darkroom.editor.call_context import RowCallContext, reject_if_stopped
from darkroom.editor.heartbeat import TIMINGS, Leases, Timings
from darkroom.editor.image_loading import load_images
from darkroom.editor.image_storage import ImageStorage
from darkroom.errors import DeferRow, LeaseLost, Reason, RetryRow, RowRejected, ServiceUnavailable
from darkroom.jobs import Run, RunState
from darkroom.metrics import Metric
from darkroom.ports import Clock, Dispatcher, ImageFetcher, RowLedger, RowQueue, Telemetry
from darkroom.retry import backoff, with_jitter
from darkroom.rows import Claim, NotClaimed, RowMessage, RowResult, RowState

LONGEST_DETAIL = 1000  # characters: the row's item stays near 1 KB, what a write unit holds


@dataclass(frozen=True, slots=True)
class RowEditor:
    """Takes one row from its message to its outcome. Thread-safe."""

    rows: RowLedger
    images: ImageStorage
    queue: RowQueue
    fetcher: ImageFetcher
    dispatcher: Dispatcher
    clock: Clock
    telemetry: Telemetry
    on_unknown_outcome: str = "retry"
    rng: Callable[[], float] = random.random
    timings: Timings = TIMINGS

    def handle(
        self, message: RowMessage, run: Run, owner: str, deadline: float, leases: Leases
    ) -> float | None:
        """Work on one row until `deadline` (Unix seconds); `run` is its job's current run.

        `owner` is unique to this delivery; `leases` keeps the claim alive. Returns None when the
        message can go, else the seconds after which it should come back.
        """
        if run.state is RunState.FAILED:
            return None
        try:
            claim = self.rows.claim(message, run, owner, self.timings.lease)
        except ServiceUnavailable as error:
            self.telemetry.warning("ledger_unavailable", row=message.key, error=str(error))
            return self.timings.trouble
        match claim:
            case NotClaimed.SETTLED | NotClaimed.SUPERSEDED:
                self.telemetry.metric(Metric.DUPLICATE_SUPPRESSED)
                return None
            case NotClaimed.HELD:
                return self.timings.held
        context = RowCallContext(claim, run, message.request, self.rows, self.telemetry)
        with leases.held(claim), self.telemetry.bound(job=message.job, row=message.key):
            return self._carry_out(context, message, deadline)

    def _carry_out(
        self, context: RowCallContext, message: RowMessage, deadline: float
    ) -> float | None:
        try:
            return self._attempt(context, message, deadline)
        except LeaseLost as lost:
            self.telemetry.warning("lease_lost", job=message.job, row=message.key, why=str(lost))
            return self.timings.held
        except ServiceUnavailable as error:
            self.telemetry.warning("service_unavailable", row=message.key, error=str(error))
            self._give_back(context, refund_attempt=context.calls == 0)
            return self.timings.trouble

    def _attempt(
        self, context: RowCallContext, message: RowMessage, deadline: float
    ) -> float | None:
        """One attempt. Raises LeaseLost, ServiceUnavailable."""
        try:
            result = self._edit(context, message, deadline)
        except RowRejected as error:
            result = _unsuccessful(RowState.FAILED, error.reason, error.detail, context.claim)
        except RetryRow as error:
            return self._again(context, message, error)
        except DeferRow as error:
            self._give_back(context, refund_attempt=context.calls == 0)
            return error.delay_seconds
        except (LeaseLost, ServiceUnavailable):
            raise
        except Exception as error:  # noqa: BLE001  # a bug must not lose a row, nor repeat for ever
            self.telemetry.exception("row_crashed", job=message.job, row=message.key)
            detail = f"an unexpected error stopped the work: {type(error).__name__}"
            return self._again(context, message, RetryRow(Reason.WORKER_LOST, detail))
        return self._settle(context, result)

    def _edit(self, context: RowCallContext, message: RowMessage, deadline: float) -> RowResult:
        if context.claim.sent_before:
            found = self._solve_unknown(context)
            if found is not None:
                return found
        if context.claim.attempts_spent:
            raise RetryRow(Reason.WORKER_LOST, "its worker died in every attempt")
        reject_if_stopped(context.run)
        loaded = load_images(
            message.request, message.base, self.fetcher, last_attempt=self._is_last(context)
        )
        context.images, context.mask = loaded.images, loaded.mask
        delivery = self.dispatcher.dispatch(context, deadline)
        warnings = (*loaded.warnings, *delivery.plan.warnings, *delivery.warnings)
        return self.images.keep(context, delivery, tuple(dict.fromkeys(warnings)), deadline)

    def _solve_unknown(self, context: RowCallContext) -> RowResult | None:
        """An earlier call was sent, and its worker died before it could tell what came of it."""
        found = self.images.find(context)
        if found is not None:
            self.telemetry.info("image_found", job=context.claim.job, row=context.claim.key)
            return found
        context.call_over(0, maybe_charged=True)
        if self.on_unknown_outcome == "fail":
            raise RowRejected(
                Reason.OUTCOME_UNKNOWN,
                "a call was sent and its worker died before the answer: it may have been billed; "
                "upload again with retry-failed=true to edit the row",
            )
        return None

    def _is_last(self, context: RowCallContext) -> bool:
        return context.claim.attempt >= context.run.options.max_attempts

    def _again(self, context: RowCallContext, message: RowMessage, error: RetryRow) -> float | None:
        attempt = context.claim.attempt
        if self._is_last(context):
            return self._bury(context, message, error)
        self._give_back(context, refund_attempt=False)
        wait = backoff(attempt, self.timings.backoff, self.timings.longest_backoff)
        wait = with_jitter(wait, self.rng)
        self.telemetry.info(
            "row_retries", job=message.job, row=message.key, attempt=attempt, reason=error.reason
        )
        return max(wait, error.delay_seconds)

    def _bury(self, context: RowCallContext, message: RowMessage, error: RetryRow) -> float | None:
        """To the dead-letter queue first: a crash in between makes a second copy, which does no
        harm, because only one of equal copies can ever bring the row back.
        """
        record = context.claim.record
        copy = message.model_copy(
            update={"run": context.claim.run, "generation": record.generation + 1}
        )
        attributes = {
            "reason": error.reason.value,
            "detail": error.detail,
            "endpoint": error.endpoint or record.endpoint or "",
            "attempts": str(record.attempts),
            "job": message.job,
            "row": message.key,
        }
        self.queue.dead_letter(copy.model_dump_json(), attributes)
        result = _unsuccessful(
            RowState.DEAD,
            error.reason,
            error.detail,
            context.claim,
            provider=error.provider,
            endpoint=error.endpoint or record.endpoint,
        )
        return self._settle(context, result)

    def _settle(self, context: RowCallContext, result: RowResult) -> float | None:
        if not self.rows.settle(context.claim, result):
            raise LeaseLost("it was settled by another worker, or is being worked on")
        self._tell(context.claim, result)
        return None

    def _tell(self, claim: Claim, result: RowResult) -> None:
        self.telemetry.metric(_STATUS_METRICS[result.status])
        if result.fallback:
            self.telemetry.metric(Metric.FALLBACK_USED)
        if result.cost_micro_usd:
            cost = result.cost_micro_usd / 1e6
            self.telemetry.metric(Metric.COST_USD, cost, endpoint=result.endpoint)
        self.telemetry.info(
            "row_settled",
            job=claim.job,
            row=claim.key,
            status=result.status.value,
            reason=result.reason.value if result.reason else None,
            endpoint=result.endpoint,
            attempts=claim.attempt,
        )

    def _give_back(self, context: RowCallContext, *, refund_attempt: bool) -> None:
        try:
            self.rows.release(context.claim, refund_attempt=refund_attempt)
        except ServiceUnavailable as error:  # the lease will end by itself
            self.telemetry.warning("release_failed", row=context.claim.key, error=str(error))


_STATUS_METRICS = {
    RowState.SUCCEEDED: Metric.ROWS_SUCCEEDED,
    RowState.FAILED: Metric.ROWS_FAILED,
    RowState.DEAD: Metric.ROWS_DEAD,
}


def _unsuccessful(
    status: RowState,
    reason: Reason,
    detail: str,
    claim: Claim,
    *,
    provider: str | None = None,
    endpoint: str | None = None,
) -> RowResult:
    return RowResult(
        status=status,
        reason=reason,
        detail=detail[:LONGEST_DETAIL],
        provider=provider,
        endpoint=endpoint,
        cost_micro_usd=claim.record.spent,
    )
