"""A row's way through the editor: claim, load, call, store, settle."""

from dataclasses import dataclass, field

from darkroom.calls import CallFailed, CallPlan, EditAnswer, SourceImage
from darkroom.dispatch import Dispatcher, LeaseLost
from darkroom.endpoints import Endpoint
from darkroom.errors import Reason, RowRejected
from darkroom.jobs import Run
from darkroom.ledger import Claim, NotClaimed
from darkroom.planning import plan_call
from darkroom.ports import Budget, Clock, ImageFetcher, ObjectStore, RowLedger, RowQueue, Telemetry
from darkroom.rows import RowMessage, RowRequest

LEASE_SECONDS = 90.0
HELD_DELAY_SECONDS = 30.0


@dataclass(slots=True)
class _RowErrand:
    """What the dispatcher is told about one claimed row; books the money around each call."""

    claim: Claim
    run: Run
    request: RowRequest
    images: tuple[SourceImage, ...]
    mask: SourceImage | None
    rows: RowLedger
    budget: Budget
    reserved: int = 0
    spent: int = 0
    unpriced: bool = False

    def plan(self, endpoint: Endpoint) -> CallPlan:
        model = self.request.model or endpoint.model
        return plan_call(self.request, self.images, self.mask, endpoint.provider, model)

    def before_call(self, endpoint: Endpoint, plan: CallPlan) -> None:
        limit = self.run.options.budget_micro_usd
        if limit is not None:
            self._reserve(plan, limit)
        if not self.rows.mark_sent(self.claim, endpoint.name):
            self._settle_reservation(0)
            raise LeaseLost(f"row {self.claim.key} is another worker's now")

    def after_call(
        self, endpoint: Endpoint, plan: CallPlan, outcome: EditAnswer | CallFailed
    ) -> None:
        cost = outcome.cost_micro_usd
        if isinstance(outcome, CallFailed):
            self.rows.mark_failed_call(self.claim)
            if cost is None and not outcome.maybe_charged:
                cost = 0
        elif cost is None:
            self.unpriced = True
        # An unknown cost keeps what was reserved: a hard budget errs on the safe side.
        actual = self.reserved if cost is None else cost
        self.spent += actual
        self._settle_reservation(actual)

    def _reserve(self, plan: CallPlan, limit: int) -> None:
        worst = plan.worst_cost_micro_usd
        if worst is None:
            raise RowRejected(
                Reason.BUDGET,
                f"the price of model {plan.model} is not known, so a budget cannot be kept: "
                "name a model with a known price, or upload without budget-usd",
            )
        if not self.budget.reserve(self.claim.job, worst, limit):
            raise RowRejected(
                Reason.BUDGET,
                f"the job's budget of ${limit / 1e6:.2f} has no room for this row (up to "
                f"${worst / 1e6:.4f}): upload again with a larger budget-usd to go on",
            )
        self.reserved = worst

    def _settle_reservation(self, actual: int) -> None:
        if self.reserved and actual != self.reserved:
            self.budget.adjust(self.claim.job, actual - self.reserved)
        self.reserved = 0


@dataclass(frozen=True, slots=True)
class RowEditor:
    """Takes one row from its message to its outcome. Thread-safe."""

    rows: RowLedger
    budget: Budget
    store: ObjectStore
    queue: RowQueue
    fetcher: ImageFetcher
    dispatcher: Dispatcher
    clock: Clock
    telemetry: Telemetry
    on_unknown_outcome: str = "retry"
    held_delay_seconds: float = field(default=HELD_DELAY_SECONDS)

    def handle(self, message: RowMessage, run: Run, owner: str, deadline: float) -> float | None:
        """Work on one row until `deadline` (Unix seconds).

        Returns None when the message is settled and can go, else the seconds after which it should
        come back.
        """
        claim = self.rows.claim(message, owner, run.options.max_attempts, LEASE_SECONDS)
        match claim:
            case NotClaimed.SETTLED | NotClaimed.SUPERSEDED:
                self.telemetry.metric("DuplicateSuppressed")
                return None
            case NotClaimed.HELD:
                return self.held_delay_seconds
            case NotClaimed.ATTEMPTS_SPENT:
                return None
        raise NotImplementedError
