"""One row as the dispatcher sees it, and what it gets back."""

from dataclasses import dataclass
from typing import Protocol

from darkroom.calls import CallFailed, CallPlan, EditAnswer
from darkroom.endpoints import Endpoint
from darkroom.errors import DarkroomError


class Ineligible(DarkroomError):
    """This endpoint's model cannot honour the row (a mask, say); another may. Says why."""


class LeaseLost(DarkroomError):
    """Another worker owns the row now: stop without calling and without settling."""


class Errand(Protocol):
    """One row, as the dispatcher sees it: how to plan a call, and what to do around each."""

    def plan(self, endpoint: Endpoint) -> CallPlan:
        """Fit the row to the endpoint's model. Raises Ineligible."""

    def before_call(self, endpoint: Endpoint, plan: CallPlan) -> None:
        """Just before money is spent. Raises RowRejected (budget, stopped) or LeaseLost."""

    def after_call(
        self, endpoint: Endpoint, plan: CallPlan, outcome: EditAnswer | CallFailed
    ) -> None:
        """Right after each call, whatever it came to."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A call that gave an image, and how it came about."""

    answer: EditAnswer
    plan: CallPlan
    endpoint: Endpoint
    fallback: bool  # another tier than the first one configured
    latency_ms: int  # of the successful call
    slot_wait_ms: int
    calls: int  # all calls made for this attempt
    warnings: tuple[str, ...] = ()
