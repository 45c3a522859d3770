"""A row's way through the editor: claim, load, call, store, settle."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from darkroom.editing.heartbeat import Leases
from darkroom.editing.loading import load
from darkroom.editing.pace import PACE, Pace
from darkroom.editing.row_errand import RowErrand, refuse_if_stopped
from darkroom.editing.storing import ImageStorage
from darkroom.errors import DeferRow, Reason, RetryRow, RowRejected, ServiceUnavailable
from darkroom.jobs import Run, RunState
from darkroom.ledger.values import Claim, NotClaimed, RowResult, RowState
from darkroom.limits.dispatch import Dispatcher
from darkroom.limits.errand import LeaseLost
from darkroom.ports import Clock, ImageFetcher, RowLedger, RowQueue, Telemetry
from darkroom.rows import RowMessage

JITTER = 0.3
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
    pace: Pace = PACE

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
            claim = self.rows.claim(message, run, owner, self.pace.lease)
        except ServiceUnavailable as error:
            self.telemetry.warning("ledger_unavailable", row=message.key, error=str(error))
            return self.pace.trouble
        match claim:
            case NotClaimed.SETTLED | NotClaimed.SUPERSEDED:
                self.telemetry.metric("DuplicateSuppressed")
                return None
            case NotClaimed.HELD:
                return self.pace.held
        errand = RowErrand(claim, run, message.request, self.rows, self.telemetry)
        with leases.held(claim), self.telemetry.bound(job=message.job, row=message.key):
            return self._carry_out(errand, message, deadline)

    def _carry_out(self, errand: RowErrand, message: RowMessage, deadline: float) -> float | None:
        try:
            return self._attempt(errand, message, deadline)
        except LeaseLost as lost:
            self.telemetry.warning("lease_lost", job=message.job, row=message.key, why=str(lost))
            return self.pace.held
        except ServiceUnavailable as error:
            self.telemetry.warning("service_unavailable", row=message.key, error=str(error))
            self._give_back(errand, refund_attempt=errand.calls == 0)
            return self.pace.trouble

    def _attempt(self, errand: RowErrand, message: RowMessage, deadline: float) -> float | None:
        """One attempt. Raises LeaseLost, ServiceUnavailable."""
        try:
            result = self._edit(errand, message, deadline)
        except RowRejected as error:
            result = _unsuccessful(RowState.FAILED, error.reason, error.detail, errand.claim)
        except RetryRow as error:
            return self._again(errand, message, error)
        except DeferRow as error:
            self._give_back(errand, refund_attempt=errand.calls == 0)
            return error.delay_seconds
        except (LeaseLost, ServiceUnavailable):
            raise
        except Exception as error:  # noqa: BLE001  # a bug must not lose a row, nor repeat for ever
            self.telemetry.exception("row_crashed", job=message.job, row=message.key)
            detail = f"an unexpected error stopped the work: {type(error).__name__}"
            return self._again(errand, message, RetryRow(Reason.WORKER_LOST, detail))
        return self._settle(errand, result)

    def _edit(self, errand: RowErrand, message: RowMessage, deadline: float) -> RowResult:
        if errand.claim.sent_before:
            found = self._solve_unknown(errand)
            if found is not None:
                return found
        if errand.claim.attempts_spent:
            raise RetryRow(Reason.WORKER_LOST, "its worker died in every attempt")
        refuse_if_stopped(errand.run)
        loaded = load(
            message.request, message.base, self.fetcher, last_attempt=self._is_last(errand)
        )
        errand.images, errand.mask = loaded.images, loaded.mask
        delivery = self.dispatcher.dispatch(errand, deadline)
        warnings = (*loaded.warnings, *delivery.plan.warnings, *delivery.warnings)
        return self.images.keep(errand, delivery, tuple(dict.fromkeys(warnings)), deadline)

    def _solve_unknown(self, errand: RowErrand) -> RowResult | None:
        """An earlier call was sent, and its worker died before it could tell what came of it."""
        found = self.images.find(errand)
        if found is not None:
            self.telemetry.info("image_found", job=errand.claim.job, row=errand.claim.key)
            return found
        errand.call_over(0, maybe_charged=True)
        if self.on_unknown_outcome == "fail":
            raise RowRejected(
                Reason.OUTCOME_UNKNOWN,
                "a call was sent and its worker died before the answer: it may have been billed; "
                "upload again with retry-failed=true to edit the row",
            )
        return None

    def _is_last(self, errand: RowErrand) -> bool:
        return errand.claim.attempt >= errand.run.options.max_attempts

    def _again(self, errand: RowErrand, message: RowMessage, error: RetryRow) -> float | None:
        attempt = errand.claim.attempt
        if self._is_last(errand):
            return self._bury(errand, message, error)
        self._give_back(errand, refund_attempt=False)
        backoff = min(self.pace.backoff * 2.0 ** (attempt - 1), self.pace.longest_backoff)
        backoff *= 1 + JITTER * (2 * self.rng() - 1)
        self.telemetry.info(
            "row_retries", job=message.job, row=message.key, attempt=attempt, reason=error.reason
        )
        return max(backoff, error.delay_seconds)

    def _bury(self, errand: RowErrand, message: RowMessage, error: RetryRow) -> float | None:
        """To the dead-letter queue first: a crash in between makes a second copy, which does no
        harm, because only one of equal copies can ever bring the row back.
        """
        record = errand.claim.record
        copy = message.model_copy(
            update={"run": errand.claim.run, "generation": record.generation + 1}
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
            errand.claim,
            provider=error.provider,
            endpoint=error.endpoint or record.endpoint,
        )
        return self._settle(errand, result)

    def _settle(self, errand: RowErrand, result: RowResult) -> float | None:
        if not self.rows.settle(errand.claim, result):
            raise LeaseLost("it was settled by another worker, or is being worked on")
        self._tell(errand.claim, result)
        return None

    def _tell(self, claim: Claim, result: RowResult) -> None:
        names = {RowState.SUCCEEDED: "RowsSucceeded", RowState.FAILED: "RowsFailed"}
        self.telemetry.metric(names.get(result.status, "RowsDead"))
        if result.fallback:
            self.telemetry.metric("FallbackUsed")
        if result.cost_micro_usd:
            cost = result.cost_micro_usd / 1e6
            self.telemetry.metric("CostUSD", cost, endpoint=result.endpoint, unit="None")
        self.telemetry.info(
            "row_settled",
            job=claim.job,
            row=claim.key,
            status=result.status.value,
            reason=result.reason.value if result.reason else None,
            endpoint=result.endpoint,
            attempts=claim.attempt,
        )

    def _give_back(self, errand: RowErrand, *, refund_attempt: bool) -> None:
        try:
            self.rows.release(errand.claim, refund_attempt=refund_attempt)
        except ServiceUnavailable as error:  # the lease will end by itself
            self.telemetry.warning("release_failed", row=errand.claim.key, error=str(error))


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
