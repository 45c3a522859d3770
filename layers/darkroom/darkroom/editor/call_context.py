"""One claimed row as the dispatcher sees it: plans calls, books the money around each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from darkroom.calls import CallFailed, CallPlan, EditResult, SourceImage
from darkroom.endpoints import Endpoint
from darkroom.errors import LeaseLost, Reason, RowRejected
from darkroom.jobs import Run, RunState
from darkroom.metrics import Metric
from darkroom.models.planner import plan_call
from darkroom.ports import RowLedger, Telemetry
from darkroom.providers.registry import likely_provider_of
from darkroom.rows import Claim, NotSent, RowRequest


def model_for(wanted: str | None, endpoint: Endpoint) -> str:
    """The row's model where the endpoint's provider makes it, else the endpoint's own.

    `likely_provider_of` decides which provider that is.
    """
    if wanted is None:
        return endpoint.model
    return wanted if likely_provider_of(wanted) is endpoint.provider else endpoint.model


@dataclass(slots=True)
class RowCallContext:
    """Holds the claim as it is after every move; `calls` counts those made for this attempt."""

    claim: Claim
    run: Run
    request: RowRequest
    rows: RowLedger
    telemetry: Telemetry
    images: Sequence[SourceImage] = ()
    mask: SourceImage | None = None
    calls: int = 0

    def plan(self, endpoint: Endpoint) -> CallPlan:
        """Raises Ineligible, RowRejected."""
        wanted = self.request.model
        model = model_for(wanted, endpoint)
        plan = plan_call(self.request, tuple(self.images), self.mask, endpoint.provider, model)
        if wanted is None or model == wanted:
            return plan
        note = f"model {wanted} is not {endpoint.provider.value}'s: {endpoint.name} used {model}"
        return replace(plan, warnings=(*plan.warnings, note))

    def before_call(self, endpoint: Endpoint, plan: CallPlan) -> None:
        """Raises RowRejected (budget, stopped), LeaseLost, ServiceUnavailable."""
        reject_if_stopped(self.run)
        budget = self.run.options.budget_micro_usd
        worst = plan.worst_cost_micro_usd
        if budget is not None and worst is None:
            raise RowRejected(
                Reason.BUDGET,
                f"the price of model {plan.model} is not known, so a budget cannot be kept: "
                "name a model with a known price, or upload without budget-usd",
            )
        limit = None if budget is None else budget - self.run.spent_before
        sent = self.rows.mark_sent(self.claim, endpoint.name, reserve=worst or 0, limit=limit)
        if sent is NotSent.LEASE_LOST:
            raise LeaseLost(f"row {self.claim.key} is another worker's now")
        if sent is NotSent.NO_BUDGET:
            raise RowRejected(
                Reason.BUDGET,
                f"the job's budget of ${(budget or 0) / 1e6:.2f} has no room for this row (up to "
                f"${(worst or 0) / 1e6:.4f}): upload again with a larger budget-usd to go on",
            )
        self.claim = sent
        self.calls += 1

    def after_call(
        self,
        endpoint: Endpoint,  # noqa: ARG002  # the port's signature
        plan: CallPlan,  # noqa: ARG002
        outcome: EditResult | CallFailed,
    ) -> None:
        """Raises LeaseLost, ServiceUnavailable. An image is booked when the row is settled."""
        if isinstance(outcome, CallFailed):
            self.call_over(outcome.cost_micro_usd or 0, maybe_charged=outcome.maybe_charged)

    def call_over(self, cost_micro_usd: int, *, maybe_charged: bool) -> None:
        claim = self.rows.mark_failed_call(
            self.claim, cost_micro_usd=cost_micro_usd, maybe_charged=maybe_charged
        )
        if claim is None:
            raise LeaseLost(f"row {self.claim.key} is another worker's now")
        self.claim = claim
        if maybe_charged:
            self.telemetry.metric(Metric.POSSIBLE_DUPLICATE_CHARGES)


def reject_if_stopped(run: Run) -> None:
    """Raises RowRejected when the user has stopped the run."""
    if run.state is RunState.STOPPED:
        raise RowRejected(Reason.STOPPED, "the job was stopped: upload the CSV again to go on")
