"""One row through the editor: what each outcome leads to, and what is recorded of it."""

import json
from typing import Any

import pytest

from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.editor.batch import TIMINGS
from darkroom.errors import DeferRow, Reason, RetryRow, RowRejected, ServiceUnavailable
from darkroom.jobs import RunState
from darkroom.models.planner import model_for
from darkroom.rows import RowMessage, RowState
from tests.fakes.editing import JOB, EditorHarness, endpoint, png
from tests.fakes.services import fail_once

IMAGE_KEY = f"{JOB}/images/000000.png"

EDITED = EditResult((png(),), "gpt-image-1.5-2025", cost_micro_usd=40_000)
REFUSED = CallFailed(Outcome.REFUSED, "not this")
DOWN = CallFailed(Outcome.UNAVAILABLE, "503")
TIMED_OUT = CallFailed(Outcome.UNAVAILABLE, "timed out", maybe_charged=True)
MISSING = RowRejected(Reason.BAD_IMAGE, "there is no such object")
AWAY = RetryRow(Reason.IMAGE_UNAVAILABLE, "its host is down")
BLUE = EditResult((png("blue"),), "m", cost_micro_usd=1)


@pytest.fixture
def harness() -> EditorHarness:
    """A job of one row, with default options."""
    return EditorHarness.with_job()


def test_an_edited_image_is_stored_with_its_provenance(harness: EditorHarness) -> None:
    assert harness.handle(EDITED) is None
    result = harness.result
    assert (harness.row.state, result.outputs) == (RowState.SUCCEEDED, (IMAGE_KEY,))
    assert (result.provider, result.endpoint) == ("openai", "openai-main")
    assert (result.model, result.fallback) == ("gpt-image-1.5-2025", True)
    assert (result.latency_ms, result.cost_micro_usd) == (1234, 40_000)
    assert result.warnings[-1] == "slow down"
    body, kind, metadata = harness.store.objects[IMAGE_KEY]
    assert (body, kind) == (png(), "image/png")
    assert metadata["row"] == "000000"
    assert metadata["fingerprint"] == harness.row.fingerprint
    assert f"{JOB}/thumbs/000000-after.webp" in harness.store.objects
    metrics = harness.telemetry.metrics
    assert (metrics["RowsSucceeded"], metrics["FallbackUsed"], metrics["CostUSD"]) == (1, 1, 0.04)


def test_several_images_are_stored_in_the_requested_format(harness: EditorHarness) -> None:
    edited = EditResult((png(), png("blue")), "m", cost_micro_usd=None)
    assert harness.handle(edited, message=harness.message(output_name="a/hat.webp", n=2)) is None
    result = harness.result
    assert result.outputs == (f"{JOB}/images/a/hat.webp", f"{JOB}/images/a/hat-1.webp")
    assert result.cost_micro_usd is None
    assert harness.store.objects[result.outputs[1]][1] == "image/webp"
    assert harness.ledger.counters(JOB, harness.run.run).unpriced == 1


def test_a_settled_row_is_not_called_for_again(harness: EditorHarness) -> None:
    harness.handle(EDITED)
    assert harness.handle() is None
    assert len(harness.dispatcher.contexts) == 1
    assert harness.telemetry.metrics["DuplicateSuppressed"] == 1


@pytest.mark.parametrize(
    ("options", "request_fields", "outcome", "reason", "detail"),
    [
        ({}, {}, REFUSED, Reason.REFUSED, "not this"),
        ({"budget_usd": 0.000001}, {}, EDITED, Reason.BUDGET, "larger budget-usd"),
        ({"budget_usd": 5}, {"model": "custom-model"}, EDITED, Reason.BUDGET, "custom-model"),
        ({}, {"images": ("gone.png",)}, EDITED, Reason.BAD_IMAGE, "there is no such object"),
        ({}, {"mask": "gone.png"}, EDITED, Reason.BAD_IMAGE, "mask: there is no such object"),
    ],
)
def test_a_row_that_cannot_be_edited_fails_at_once_with_its_reason(
    options: dict[str, Any],
    request_fields: dict[str, Any],
    outcome: EditResult | CallFailed,
    reason: Reason,
    detail: str,
) -> None:
    harness = EditorHarness.with_job(**options)
    harness.fetcher.files = {"a.png": png(), "gone.png": MISSING}
    message = harness.message(**({"images": ("a.png",)} | request_fields))
    assert harness.handle(outcome, message=message) is None
    assert (harness.row.state, harness.result.reason) == (RowState.FAILED, reason)
    assert detail in harness.result.detail
    assert harness.store.objects == {}
    assert harness.queue.dead == []
    assert harness.telemetry.metrics["RowsFailed"] == 1


def test_failed_attempts_are_retried_with_backoff_until_the_row_is_dead() -> None:
    harness = EditorHarness.with_job(max_attempts=3)
    assert [harness.handle(DOWN), harness.handle(DOWN)] == [10.0, 20.0]
    assert harness.handle(DOWN) is None
    assert harness.row.state is RowState.DEAD
    ((body, attributes),) = harness.queue.dead
    assert RowMessage.model_validate_json(body) == harness.message().model_copy(
        update={"generation": 1}
    )
    assert attributes == {
        "reason": "unavailable",
        "detail": "503",
        "endpoint": "openai-main",
        "attempts": "3",
        "job": JOB,
        "row": "000000",
    }
    assert harness.telemetry.metrics["RowsDead"] == 1


def test_a_longer_delay_is_obeyed_and_deferring_costs_no_attempt() -> None:
    harness = EditorHarness.with_job(max_attempts=2)
    assert harness.handle(RetryRow(Reason.RATE_LIMITED, "429", delay_seconds=120)) == 120
    for _ in range(5):
        assert harness.handle(DeferRow("no slot", delay_seconds=77)) == 77
    assert harness.handle(EDITED) is None
    assert (harness.row.state, harness.row.attempts) == (RowState.SUCCEEDED, 2)


def test_a_row_held_by_another_worker_is_delivered_again_later(harness: EditorHarness) -> None:
    harness.ledger.claim(harness.message(), harness.run, "other", 90)
    assert harness.handle() == TIMINGS.held_delay_seconds
    assert harness.dispatcher.contexts == []


def test_a_worker_that_lost_its_lease_neither_calls_nor_settles(harness: EditorHarness) -> None:
    def another_worker_claims_it() -> None:
        harness.clock.time += 1000
        harness.ledger.claim(harness.message(), harness.run, "other", 90)

    harness.dispatcher.during_call = another_worker_claims_it
    assert harness.handle(DOWN) == TIMINGS.held_delay_seconds
    assert harness.row.lease_owner == "other"
    assert harness.row.state is RowState.SENT  # the other worker resolves it


def test_after_a_crash_the_row_is_settled_from_its_stored_image(harness: EditorHarness) -> None:
    fail_once(harness.ledger, "settle")
    assert harness.handle(EDITED) == TIMINGS.aws_delay_seconds
    harness.clock.time += 100
    assert harness.handle() is None
    assert len(harness.dispatcher.contexts) == 1
    result = harness.result
    assert (result.status, result.endpoint) == (RowState.SUCCEEDED, "openai-main")
    assert (result.cost_micro_usd, result.fallback, result.latency_ms) == (40_000, True, 1234)
    assert result.warnings[-1] == "slow down"
    assert harness.row.possible_duplicate_charges == 0


@pytest.mark.parametrize(
    ("configured", "reason", "calls"), [("retry", None, 2), ("fail", Reason.OUTCOME_UNKNOWN, 1)]
)
def test_a_call_with_unknown_outcome_is_counted_and_repeated_if_so_configured(
    harness: EditorHarness, configured: str, reason: Reason | None, calls: int
) -> None:
    fail_once(harness.ledger, "mark_failed_call")
    assert harness.handle(DOWN) == TIMINGS.aws_delay_seconds
    assert harness.row.state is RowState.SENT
    harness.clock.time += 100
    harness.on_unknown_outcome = configured
    assert harness.handle(EDITED) is None
    state = RowState.FAILED if reason else RowState.SUCCEEDED
    assert (harness.row.state, harness.result.reason) == (state, reason)
    assert len(harness.dispatcher.contexts) == calls
    assert harness.row.possible_duplicate_charges == 1
    assert harness.telemetry.metrics["PossibleDuplicateCharges"] == 1


def test_a_call_that_may_have_been_billed_is_counted(harness: EditorHarness) -> None:
    assert harness.handle(TIMED_OUT, DOWN, EDITED) is None
    assert harness.row.possible_duplicate_charges == 1


@pytest.mark.parametrize(("maybe_charged", "cost"), [(False, 500), (True, 30_000)])
def test_a_failed_call_with_a_cost_is_committed_and_the_rest_released(
    maybe_charged: bool, cost: int
) -> None:
    harness = EditorHarness.with_job(budget_usd=5)
    failed = CallFailed(
        Outcome.UNAVAILABLE, "503", maybe_charged=maybe_charged, cost_micro_usd=cost
    )
    assert harness.handle(failed, EDITED) is None
    assert harness.row.possible_duplicate_charges == int(maybe_charged)
    assert harness.result.cost_micro_usd == 40_000 + cost
    assert harness.ledger.committed[JOB] == 40_000 + cost


def test_a_failed_upload_of_an_image_is_repeated(harness: EditorHarness) -> None:
    fail_once(harness.store, "put")
    assert harness.handle(EDITED) is None
    assert harness.row.state is RowState.SUCCEEDED
    assert IMAGE_KEY in harness.store.objects


def test_a_redo_replaces_the_image_of_the_earlier_upload(harness: EditorHarness) -> None:
    harness.handle(EDITED)
    harness.upload(2, resume=False)
    assert harness.handle(BLUE, message=harness.message().model_copy(update={"redo": True})) is None
    assert harness.store.objects[IMAGE_KEY][0] == png("blue")


def test_a_worker_of_an_old_upload_does_not_overwrite_the_new_image(harness: EditorHarness) -> None:
    old = harness.message()

    def the_new_upload_is_edited_first() -> None:
        harness.dispatcher.during_call = lambda: None
        harness.clock.time += 1000
        harness.upload(2)
        assert harness.handle(BLUE, message=harness.message(instruction="a blue hat")) is None

    harness.dispatcher.during_call = the_new_upload_is_edited_first
    assert harness.handle(EDITED, message=old) == TIMINGS.held_delay_seconds
    assert harness.store.objects[IMAGE_KEY][0] == png("blue")
    assert harness.handle(message=old) is None


def test_a_slower_worker_keeps_the_image_of_the_faster_one(harness: EditorHarness) -> None:
    def another_worker_is_faster() -> None:
        harness.dispatcher.during_call = lambda: None
        harness.clock.time += 1000
        assert harness.handle(BLUE) is None

    harness.dispatcher.during_call = another_worker_is_faster
    assert harness.handle(EDITED) == TIMINGS.held_delay_seconds
    assert harness.store.objects[IMAGE_KEY][0] == png("blue")
    assert harness.row.possible_duplicate_charges == 1


def test_rows_of_a_stopped_job_fail_without_a_call(harness: EditorHarness) -> None:
    harness.ledger.stop(JOB)
    assert harness.handle(EDITED) is None
    assert harness.result.reason is Reason.STOPPED
    assert harness.dispatcher.contexts == []


def test_messages_of_a_rejected_file_are_deleted(harness: EditorHarness) -> None:
    harness.ledger.fail(harness.run, "cut off")
    assert harness.run.state is RunState.FAILED
    assert harness.handle(EDITED) is None
    assert harness.ledger.rows == {}


def test_a_row_that_kills_its_workers_is_dead_without_another_call() -> None:
    harness = EditorHarness.with_job(max_attempts=1)
    for worker in ("killed", "killed too"):  # the first crash costs no attempt
        harness.ledger.claim(harness.message(), harness.run, worker, 90)
        harness.clock.time += 100
    assert harness.handle(EDITED) is None
    assert (harness.row.state, harness.result.reason) == (RowState.DEAD, Reason.WORKER_LOST)
    assert harness.dispatcher.contexts == []


def test_a_bug_costs_attempts_and_shows_its_type_but_not_its_text() -> None:
    harness = EditorHarness.with_job(max_attempts=2)
    assert harness.handle(ZeroDivisionError("secret")) == 10.0
    assert harness.handle(ZeroDivisionError("secret")) is None
    assert harness.result.reason is Reason.WORKER_LOST
    assert "ZeroDivisionError" in harness.result.detail
    assert "secret" not in json.dumps(harness.queue.dead)


def test_a_bug_after_the_call_was_sent_leaves_its_charge_counted_and_committed() -> None:
    harness = EditorHarness.with_job(max_attempts=1, budget_usd=5)

    def crash() -> None:
        raise ZeroDivisionError

    harness.dispatcher.during_call = crash
    assert harness.handle(EDITED) is None
    assert (harness.row.state, harness.row.possible_duplicate_charges) == (RowState.DEAD, 1)
    assert harness.ledger.committed[JOB] > 0


def test_an_aws_error_before_the_call_costs_no_attempt(harness: EditorHarness) -> None:
    fail_once(harness.ledger, "claim")
    assert harness.handle(EDITED) == TIMINGS.aws_delay_seconds
    assert harness.handle(ServiceUnavailable("throttled")) == TIMINGS.aws_delay_seconds
    assert harness.row.attempts == 0
    assert harness.handle(EDITED) is None


def test_a_broken_reference_is_skipped_if_another_loads(harness: EditorHarness) -> None:
    harness.fetcher.files = {"a.png": MISSING, "b.png": png()}
    assert harness.handle(EDITED, message=harness.message(images=("a.png", "b.png"))) is None
    assert harness.result.warnings[0] == "skipped a.png: there is no such object"
    assert f"{JOB}/thumbs/000000-before.webp" in harness.store.objects


def test_an_unavailable_reference_is_retried_and_skipped_in_the_last_attempt() -> None:
    harness = EditorHarness.with_job(max_attempts=2)
    harness.fetcher.files = {"a.png": AWAY, "b.png": png()}
    message = harness.message(images=("a.png", "b.png"))
    assert harness.handle(message=message) == 10.0
    assert harness.handle(EDITED, message=message) is None
    assert harness.row.state is RowState.SUCCEEDED
    assert harness.result.warnings[0] == "skipped a.png: its host is down"


@pytest.mark.parametrize(
    ("requested", "provider", "model"),
    [
        (None, "openai", "gpt-image-1.5"),
        ("gpt-image-2", "openai", "gpt-image-2"),
        ("gpt-image-2", "gemini", "gemini-3-pro-image"),
        ("gemini-2.5-flash-image", "openai", "gpt-image-1.5"),
        ("gemini-2.5-flash-image", "gemini", "gemini-2.5-flash-image"),
        ("my-imagen-tuning", "gemini", "my-imagen-tuning"),
        ("my-imagen-tuning", "openai", "gpt-image-1.5"),
        ("flux", "openai", "flux"),
        ("flux", "gemini", "gemini-3-pro-image"),
    ],
)
def test_a_requested_model_needs_its_provider(
    requested: str | None, provider: str, model: str
) -> None:
    assert model_for(requested, endpoint(provider)) == model


def test_a_warning_names_the_requested_model_if_it_is_not_used(harness: EditorHarness) -> None:
    message = harness.message(model="gemini-2.5-flash-image")
    assert harness.handle(EDITED, message=message) is None
    assert any("gemini-2.5-flash-image is not openai's" in w for w in harness.result.warnings)
