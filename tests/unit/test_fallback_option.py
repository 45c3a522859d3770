"""The job options `fallback` and `mode`: which endpoints may serve a row, and how."""

from datetime import date

import pytest

from darkroom.editor.row_editor import RowCallContext
from darkroom.editor.waiting import CurrentRuns
from darkroom.endpoints import Endpoint
from darkroom.errors import Ineligible
from darkroom.jobs import JobOptions
from darkroom.rows import Claim, Mode
from tests.fakes.editing import row_message
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.services import FakeClock, FakeTelemetry


def context(
    model: str | None = None, *, fallback: bool = True, mode: Mode = "live"
) -> RowCallContext:
    clock = FakeClock()
    ledger = FakeLedger(clock)
    run = ledger.start(running("jobs/p", options=JobOptions(fallback=fallback, mode=mode)), 60)
    assert run is not None
    message = row_message(run.run, job="jobs/p", model=model)
    claim = ledger.claim(message, run, "worker", 60)
    assert isinstance(claim, Claim)
    runs = CurrentRuns(ledger, clock)
    return RowCallContext(claim, run, message, ledger, runs, FakeTelemetry(), date(2026, 11, 21))


def endpoint(provider: str, model: str, tier: int) -> Endpoint:
    return Endpoint.model_validate(
        {"name": f"{provider}-{tier}", "provider": provider, "tier": tier, "model": model}
        | {"api_keys": ["k"]}
    )


GEMINI = endpoint("gemini", "gemini-3-pro-image", 1)
OPENAI = endpoint("openai", "gpt-image-2", 2)


@pytest.mark.parametrize(
    ("model", "eligible"),
    [
        (None, [GEMINI]),
        ("gemini-3-pro-image", [GEMINI]),
        ("gpt-image-2", [OPENAI]),  # its own model, although in a later tier
    ],
)
def test_without_fallback_a_row_gets_its_first_choice_or_waits(
    model: str | None, eligible: list[Endpoint]
) -> None:
    row = context(model, fallback=False)
    for each in (GEMINI, OPENAI):
        if each in eligible:
            assert row.plan(each).model == each.model
        else:
            with pytest.raises(Ineligible, match="option fallback is off"):
                row.plan(each)


def test_without_fallback_a_deployment_serves_rows_of_its_model() -> None:
    deployment = OPENAI.model_copy(update={"model": "our-images", "model_is": "gpt-image-2"})
    assert context("gpt-image-2", fallback=False).plan(deployment).model == "our-images"


def test_with_fallback_every_endpoint_may_serve_a_row() -> None:
    row = context("gemini-3-pro-image", fallback=True)
    assert [row.plan(each).model for each in (GEMINI, OPENAI)] == [GEMINI.model, OPENAI.model]


def test_flex_is_asked_for_where_the_model_has_it_at_half_the_price() -> None:
    row = context(mode="flex")
    flex = row.adapted(GEMINI)
    assert flex.service_tier == "flex"
    full, half = (c.plan(e).worst_cost_micro_usd for c, e in ((context(), GEMINI), (row, flex)))
    assert full is not None
    assert half == pytest.approx(full / 2, rel=0.01)


def test_with_mode_flex_an_endpoint_without_it_serves_no_row() -> None:
    row = context(mode="flex")
    with pytest.raises(Ineligible, match="the job's mode is flex"):
        row.plan(row.adapted(OPENAI))


def test_in_other_modes_an_endpoint_is_used_as_it_is_configured() -> None:
    configured = GEMINI.model_copy(update={"service_tier": "flex"})
    for endpoint_ in (GEMINI, configured):
        assert context().adapted(endpoint_) == endpoint_
