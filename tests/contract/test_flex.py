"""Jobs with mode=flex: editor and dispatcher, through the real SDK, to the simulated API."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from darkroom.metrics import Metric
from darkroom.rows import Mode, RowResult
from tests.contract.provider_harness import GEMINI, NAME, OPENAI, Harness, running_harness
from tests.fakes.dispatching import DispatchHarness, gemini, openai
from tests.fakes.editing import EditorHarness
from tests.fakes.endpoint_states import InMemoryEndpointStates

# What a tier without capacity answers: 429 and no quota's name, or 503.
# https://ai.google.dev/gemini-api/docs/flex-inference
SHED = [{"kind": "rate_limited", "hint": "none"}, {"kind": "overloaded"}]
LIMIT = {"kind": "rate_limited", "hint": "body", "retry_after": 1}


@dataclass
class FlexJob:
    """A job of one row, with a Gemini endpoint in the first tier and OpenAI in the second."""

    providers: Harness
    states: InMemoryEndpointStates = field(default_factory=InMemoryEndpointStates)

    def set_up(self, *faults: dict[str, Any]) -> None:
        self.providers.set_up(faults=faults)

    def run(self, mode: Mode, **options: Any) -> EditorHarness:
        """One delivery of the row."""
        base_url = self.providers.simulator.base_url(NAME)
        dispatch = DispatchHarness(
            gemini(base_url=base_url, max_retries=1), openai(base_url=base_url, tier=2)
        )
        harness = EditorHarness.with_job(mode=mode, **options)
        dispatch.telemetry = harness.telemetry
        editors: dict[Any, Any] = {GEMINI: self.providers.gemini, OPENAI: self.providers.openai}
        worker = dispatch.worker(editors.__getitem__, clock=harness.clock, states=self.states)
        deadline = harness.clock.now() + 5_000.0
        harness.editor(dispatcher=worker).handle(
            harness.message(instruction="a red hat"), harness.run, "w1", deadline, harness.leases()
        )
        return harness

    def result(self, mode: Mode, **options: Any) -> RowResult:
        return self.run(mode, **options).result


@pytest.fixture
def job() -> Iterator[FlexJob]:
    with running_harness() as providers:
        yield FlexJob(providers)


def test_flex_row_is_called_for_in_that_tier_and_costs_half(job: FlexJob) -> None:
    job.set_up()
    live = job.result("live")
    assert job.providers.stats()["service_tiers"] == {"standard": 1}
    job.set_up()
    flex = job.result("flex")
    stats = job.providers.stats()
    assert stats["service_tiers"] == {"flex": 1}
    assert (stats["paid_images"], stats["half_price_images"]) == (1, 1)
    assert (live.mode, flex.mode) == ("live", "flex")
    assert live.cost_micro_usd
    assert flex.cost_micro_usd == pytest.approx(live.cost_micro_usd / 2, abs=1)


@pytest.mark.parametrize("fault", SHED, ids=lambda fault: str(fault["kind"]))
def test_flex_call_that_is_shed_is_retried_as_in_an_outage(
    job: FlexJob, fault: dict[str, Any]
) -> None:
    job.set_up({**fault, "when": {"count": 1}})
    harness = job.run("flex")
    assert (harness.result.mode, harness.result.endpoint) == ("flex", "gemini")
    stats = job.providers.stats()
    assert stats["service_tiers"] == {"flex": 2}
    assert harness.telemetry.metrics[Metric.RATE_LIMITED] == 0, "no limit of the account"
    assert harness.telemetry.metrics[Metric.PROVIDER_ERRORS] == 1


@pytest.mark.parametrize("mode", ["live", "flex"])
def test_limit_of_the_account_is_one_in_every_tier(job: FlexJob, mode: Mode) -> None:
    job.set_up({**LIMIT, "when": {"count": 1}})
    harness = job.run(mode)
    assert harness.telemetry.metrics[Metric.RATE_LIMITED] == 1


def test_row_that_the_flex_tier_keeps_shedding_takes_no_call_at_the_full_price(
    job: FlexJob,
) -> None:
    job.set_up(SHED[0])
    harness = job.run("flex")
    stats = job.providers.stats()
    assert set(stats["service_tiers"]) == {"flex"}
    assert stats["paid_images"] == 0
    assert harness.row.result is None
