"""Both batch adapters against the simulated providers: submitting, finding, collecting."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from darkroom.batches.provider_batch import BatchAnswer, BatchStatus
from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.errors import Ineligible
from darkroom.models.catalog import model_at
from tests.contract.batch_harness import TIMEOUT, Batches, running_batches
from tests.contract.provider_harness import BOTH, GEMINI, KEY, OPENAI, left_half_mask, opened, photo


@pytest.fixture(params=BOTH, ids=lambda provider: provider.value)
def batches(request: pytest.FixtureRequest) -> Iterator[Batches]:
    with running_batches(request.param) as harness:
        yield harness


@pytest.fixture
def openai() -> Iterator[Batches]:
    with running_batches(OPENAI) as harness:
        yield harness


@pytest.fixture
def gemini() -> Iterator[Batches]:
    with running_batches(GEMINI) as harness:
        yield harness


def results(answers: list[BatchAnswer]) -> dict[str | None, EditResult]:
    return {a.custom_id: a.outcome for a in answers if isinstance(a.outcome, EditResult)}


def failures(answers: list[BatchAnswer]) -> dict[str | None, CallFailed]:
    return {a.custom_id: a.outcome for a in answers if isinstance(a.outcome, CallFailed)}


def failure_of(call: Any, *arguments: Any, **named: Any) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        call(*arguments, **named)
    return caught.value


# --- the way of a batch ---------------------------------------------------------------------------


def test_every_request_of_a_batch_is_answered_with_its_image(batches: Batches) -> None:
    batches.set_up(mode="effects")
    batch = batches.ended(batches.submit(3))
    assert batch.status is BatchStatus.SUCCEEDED
    assert (batch.requests, batch.succeeded, batch.failed) == (3, 3, 0)
    answers = results(batches.answers(batch))
    assert set(answers) == {"r0", "r1", "r2"}
    for result in answers.values():
        assert max(opened(result.images[0]).size) >= 1024
    assert batches.stats()["paid_by_marker"] == {"r0": 1, "r1": 1, "r2": 1}


def test_a_batch_costs_half_of_the_same_live_call(batches: Batches) -> None:
    batches.set_up(mode="effects")
    instruction = "make it warm [row:r0]"
    live = batches.harness.call(batches.provider, photo(), instruction=instruction)
    answers = results(batches.answers(batches.ended(batches.submit(1))))
    assert live.cost_micro_usd
    assert answers["r0"].cost_micro_usd == pytest.approx(live.cost_micro_usd / 2, abs=1)
    assert batches.stats()["half_price_images"] == 1


def test_the_provider_keeps_the_name_of_a_batch(batches: Batches) -> None:
    created = batches.submit(1, name="darkroom-abc_7")
    assert created.name == "darkroom-abc_7"
    assert batches.port.status(created.id, TIMEOUT).name == "darkroom-abc_7"


def test_a_reference_image_and_a_generated_one_need_two_batches_at_openai(
    openai: Batches,
) -> None:
    edit = openai.plan("r0")
    generated = replace(edit, images=())
    assert openai.port.group(edit).operation == "/v1/images/edits"
    assert openai.port.group(generated).operation == "/v1/images/generations"
    batch = openai.ended(openai.create("darkroom-2", {"r0": generated}))
    assert set(results(openai.answers(batch))) == {"r0"}


def test_a_mask_is_in_the_request(openai: Batches) -> None:
    plan = replace(openai.plan("r0"), mask=left_half_mask())
    line = json.loads(openai.port.request_line("r0", plan))
    assert line["body"]["mask"]["image_url"].startswith("data:image/png;base64,")
    openai.set_up(mode="effects")
    batch = openai.ended(openai.create("darkroom-3", {"r0": plan}))
    assert set(results(openai.answers(batch))) == {"r0"}


def test_a_request_line_is_one_line_whatever_the_instruction_contains(batches: Batches) -> None:
    plan = batches.plan("r0", instruction='two\nlines\u2028and \u0085 more\r\n"quotes"')
    line = batches.port.request_line("r0", plan)
    assert line.endswith(b"\n")
    assert len(line.decode().splitlines()) == 1
    batch = batches.ended(batches.create("darkroom-4", {"r0": plan}))
    assert set(results(batches.answers(batch))) == {"r0"}


def test_a_request_contains_no_key(batches: Batches) -> None:
    assert KEY.encode() not in batches.port.request_line("r0", batches.plan("r0"))


def test_settings_of_a_row_are_in_its_request(gemini: Batches) -> None:
    plan = gemini.plan("r0", aspect_ratio="16:9", resolution="2K", seed=7)
    request = json.loads(gemini.port.request_line("r0", plan))["request"]
    config = request["generationConfig"]
    assert config["imageConfig"] == {"aspectRatio": "16:9", "imageSize": "2K"}
    assert config["seed"] == 7
    assert "serviceTier" not in request


def test_a_flex_endpoint_sends_no_tier_in_a_batch(gemini: Batches) -> None:
    gemini.fields = {"service_tier": "flex"}
    request = json.loads(gemini.port.request_line("r0", gemini.plan("r0")))["request"]
    assert "serviceTier" not in request
    batch = gemini.ended(gemini.submit(1))
    assert set(results(gemini.answers(batch))) == {"r0"}


# --- what cannot be batched -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "fields", "sentence"),
    [
        (GEMINI, {"location": "global"}, "enterprise platform"),
        (OPENAI, {"api_version": "2025-04-01-preview"}, "Azure"),
        (OPENAI, {"model": "dall-e-2"}, "dall-e-2 is not offered in batches"),
    ],
)
def test_an_endpoint_without_batches_says_so(
    provider: Any, fields: dict[str, str], sentence: str
) -> None:
    with running_batches(provider) as batches:
        plan = replace(batches.plan("r0"), model=fields.get("model", batches.endpoint.model))
        batches.fields = fields
        with pytest.raises(Ineligible, match=sentence):
            batches.port.group(plan)


def test_an_image_over_the_limit_of_a_data_url_is_not_batched(openai: Batches) -> None:
    plan = openai.plan("r0")
    large = replace(plan.images[0], data=bytes(16_000_000), name="large.png")
    with pytest.raises(Ineligible, match=r"large\.png is larger than the 15 MB"):
        openai.port.group(replace(plan, images=(large,)))


def test_too_many_images_of_one_request_are_not_batched(batches: Batches) -> None:
    with pytest.raises(Ineligible, match="at most 4 images"):
        batches.port.group(replace(batches.plan("r0"), n=5))


# --- exactly once ---------------------------------------------------------------------------------


def test_a_batch_whose_answer_was_lost_is_found_by_its_name(batches: Batches) -> None:
    batches.set_up({"kind": "lost_answer", "count": 1})
    plans = {"r0": batches.plan("r0")}
    failure = failure_of(batches.create, "darkroom-lost", plans)
    assert failure.outcome is Outcome.UNAVAILABLE
    assert failure.maybe_charged
    found = batches.port.find("darkroom-lost", TIMEOUT, created_after=0)
    assert found is not None
    assert set(results(batches.answers(batches.ended(found)))) == {"r0"}
    assert batches.stats()["batches"] == 1


def test_a_batch_that_was_not_created_is_not_found(batches: Batches) -> None:
    batches.set_up({"kind": "not_created", "count": 1})
    failure = failure_of(batches.create, "darkroom-5", {"r0": batches.plan("r0")})
    assert (failure.outcome, failure.maybe_charged) == (Outcome.UNAVAILABLE, True)
    assert batches.port.find("darkroom-5", TIMEOUT, created_after=0) is None


def test_a_batch_is_found_behind_pages_of_others(batches: Batches) -> None:
    wanted = batches.submit(1, name="darkroom-first")
    for number in range(101):
        batches.submit(1, name=f"darkroom-{number}")
    found = batches.port.find("darkroom-first", TIMEOUT, created_after=0)
    assert found is not None
    assert found.id == wanted.id


def test_a_search_ends_at_batches_that_are_too_old(batches: Batches) -> None:
    batch = batches.submit(1, name="darkroom-old")
    later = batch.created_at + 3600
    assert batches.port.find("darkroom-old", TIMEOUT, created_after=later) is None


def test_a_rejected_batch_leaves_no_file_at_the_provider(batches: Batches) -> None:
    group = batches.port.group(batches.plan("r0"))
    unknown = replace(group, model="nothing-9", operation="/v1/images/edits")
    requests = batches.file_of({"r0": replace(batches.plan("r0"), model="nothing-9")})
    if batches.provider is GEMINI:
        failure = failure_of(batches.port.create, "darkroom-6", unknown, requests, TIMEOUT)
        assert failure.outcome is Outcome.BAD_REQUEST  # a row named the model
        assert not failure.maybe_charged
        assert batches.stats()["files"] == 0
    else:  # validated later
        batch = batches.ended(batches.port.create("darkroom-6", unknown, requests, TIMEOUT))
        assert batch.failure is not None
        assert batch.failure.outcome is Outcome.MODEL_UNAVAILABLE


# --- results --------------------------------------------------------------------------------------


def test_files_are_deleted_at_the_provider(batches: Batches) -> None:
    batch = batches.ended(batches.submit(2))
    assert batches.stats()["files"] == 2
    batches.port.delete_files(batch, TIMEOUT)
    assert batches.stats()["files"] == 0
    batches.port.delete_files(batch, TIMEOUT)  # again: they are gone


def test_collecting_continues_after_any_answer(batches: Batches) -> None:
    batches.set_up({"kind": "error_lines", "rate": 0.4})
    batch = batches.ended(batches.submit(20))
    everything = batches.answers(batch)
    assert len(everything) == 20
    for index, answer in enumerate(everything):
        rest = batches.answers(batch, answer.position)
        ids = [a.custom_id for a in everything[index + 1 :]]
        assert [a.custom_id for a in rest] == ids


def test_collecting_continues_where_the_provider_ignores_ranges(batches: Batches) -> None:
    batches.set_up(ignores_ranges=True)
    batch = batches.ended(batches.submit(5))
    everything = batches.answers(batch)
    rest = batches.answers(batch, everything[2].position)
    assert [a.custom_id for a in rest] == [a.custom_id for a in everything[3:]]


def test_a_broken_download_keeps_what_was_read_and_continues(batches: Batches) -> None:
    batches.set_up({"kind": "cut_download", "count": 1})
    batch = batches.ended(batches.submit(10))
    read: list[BatchAnswer] = []
    stream = batches.port.results(batch, batches.plans.get, TIMEOUT)
    with pytest.raises(CallFailed) as caught:
        read.extend(stream)
    assert caught.value.outcome is Outcome.UNAVAILABLE
    assert 0 < len(read) < 10
    rest = batches.answers(batch, read[-1].position)
    assert sorted(str(a.custom_id) for a in (*read, *rest)) == [f"r{i}" for i in range(10)]


def test_duplicate_answers_are_passed_on(batches: Batches) -> None:
    batches.set_up({"kind": "duplicate_lines"}, {"kind": "shuffled"})
    answers = batches.answers(batches.ended(batches.submit(4)))
    assert sorted(str(a.custom_id) for a in answers) == sorted(["r0", "r1", "r2", "r3"] * 2)


def test_a_broken_line_does_not_end_the_others(batches: Batches) -> None:
    batches.set_up({"kind": "broken_lines", "rate": 0.5})
    answers = batches.answers(batches.ended(batches.submit(20)))
    assert len(answers) == 20
    broken = [a for a in answers if a.custom_id is None]
    assert 0 < len(broken) < 20
    assert all(isinstance(a.outcome, CallFailed) for a in broken)


def test_unanswered_requests_are_missing(batches: Batches) -> None:
    batches.set_up({"kind": "unanswered", "rate": 0.5})
    answers = batches.answers(batches.ended(batches.submit(20)))
    assert 0 < len(answers) < 20


def test_a_transient_failure_of_a_request_is_one(batches: Batches) -> None:
    batches.set_up({"kind": "error_lines"})
    failed = failures(batches.answers(batches.ended(batches.submit(2))))
    assert {f.outcome for f in failed.values()} == {Outcome.UNAVAILABLE}
    assert batches.stats()["paid_images"] == 0


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("refused", Outcome.REFUSED),
        ("text_only", Outcome.NO_IMAGE),
        ("bad_request", Outcome.BAD_REQUEST),
        ("bad_image", Outcome.BAD_IMAGE),
        ("rate_limited", Outcome.RATE_LIMITED),
        ("overloaded", Outcome.UNAVAILABLE),
        ("broken_image", Outcome.UNAVAILABLE),
        ("empty", None),
    ],
)
def test_requests_fail_in_a_batch_as_they_do_live(
    batches: Batches, kind: str, outcome: Outcome | None
) -> None:
    batches.harness.set_up(faults=[{"kind": kind}], batches={"seconds": 0})
    live = batches.harness.failure(batches.provider, photo())
    failed = failures(batches.answers(batches.ended(batches.submit(1))))["r0"]
    assert failed.outcome is live.outcome
    assert outcome in (None, failed.outcome)
    assert failed.detail == live.detail


def test_an_answer_of_no_row_is_counted_at_its_price(batches: Batches) -> None:
    batch = batches.ended(batches.submit(1))
    batches.plans.clear()
    (answer,) = batches.answers(batch)
    assert answer.custom_id == "r0"
    assert isinstance(answer.outcome, EditResult)
    assert answer.outcome.cost_micro_usd


# --- how batches end ------------------------------------------------------------------------------


def test_an_expired_batch_gives_what_openai_had_done(openai: Batches) -> None:
    openai.set_up({"kind": "expired", "done": 0.5})
    batch = openai.ended(openai.submit(4))
    assert batch.status is BatchStatus.EXPIRED
    answers = openai.answers(batch)
    assert len(results(answers)) == 2
    expired = failures(answers)
    assert len(expired) == 2
    for failure in expired.values():
        assert failure.outcome is Outcome.UNAVAILABLE
        assert not failure.maybe_charged
        assert "completion window" in failure.detail


def test_an_expired_batch_of_gemini_has_no_answers(gemini: Batches) -> None:
    gemini.set_up({"kind": "expired"})
    batch = gemini.ended(gemini.submit(2))
    assert batch.status is BatchStatus.EXPIRED
    assert gemini.answers(batch) == []
    assert gemini.stats()["paid_images"] == 0


def test_a_batch_that_fails_validation_says_why(batches: Batches) -> None:
    batches.set_up({"kind": "failed_validation"})
    batch = batches.ended(batches.submit(2))
    assert batch.status is BatchStatus.FAILED
    assert batch.failure is not None
    assert batch.failure.outcome is Outcome.BAD_REQUEST
    assert "parse" in batch.failure.detail
    assert batches.answers(batch) == []


def test_a_file_that_the_validation_cannot_find_is_an_outage(openai: Batches) -> None:
    message = "Cannot find file file-1, or organization org-1 does not have access to it."
    openai.set_up({"kind": "failed_validation", "message": message})
    failure = openai.ended(openai.submit(1)).failure
    assert failure is not None
    assert failure.outcome is Outcome.UNAVAILABLE


def test_more_than_the_account_may_have_enqueued_is_a_rate_limit(batches: Batches) -> None:
    batches.set_up({"kind": "enqueued_limit"})
    if batches.provider is GEMINI:
        failure = failure_of(batches.submit, 2)
        assert not failure.maybe_charged
        assert batches.stats()["files"] == 0
    else:
        batch = batches.ended(batches.submit(2))
        assert batch.failure is not None
        failure = batch.failure
    assert failure.outcome is Outcome.RATE_LIMITED


def test_a_cancelled_batch_ends(batches: Batches) -> None:
    batches.set_up(seconds=600)
    batch = batches.submit(2)
    batches.port.cancel(batch.id, TIMEOUT)
    batch = batches.ended(batch)
    assert batch.status is BatchStatus.CANCELLED
    assert results(batches.answers(batch)) == {}
    batches.port.cancel(batch.id, TIMEOUT)  # has ended: not an error


def test_a_batch_that_is_done_can_be_cancelled_without_an_error(batches: Batches) -> None:
    batch = batches.ended(batches.submit(1))
    batches.port.cancel(batch.id, TIMEOUT)
    assert batches.port.status(batch.id, TIMEOUT).status is BatchStatus.SUCCEEDED


def test_a_running_batch_has_not_ended(batches: Batches) -> None:
    batches.set_up(seconds=600, validation_seconds=600)
    batch = batches.submit(1)
    assert batch.status is BatchStatus.VALIDATING
    assert not batch.status.ended


# --- errors ---------------------------------------------------------------------------------------


def test_a_rejected_key_is_one_in_every_step(batches: Batches) -> None:
    batch = batches.ended(batches.submit(1))
    batches.harness.set_up(keys=["another"], batches={"seconds": 0})
    port = batches.port
    group, requests = port.group(batches.plan("r0")), batches.file_of(batches.plans)
    for call in (
        lambda: port.create("darkroom-7", group, requests, TIMEOUT),
        lambda: port.status(batch.id, TIMEOUT),
        lambda: port.find("darkroom-7", TIMEOUT, created_after=0),
        lambda: port.cancel(batch.id, TIMEOUT),
        lambda: list(port.results(batch, batches.plans.get, TIMEOUT)),
    ):
        failure = failure_of(call)
        assert failure.outcome is Outcome.KEY_REJECTED
        assert KEY not in f"{failure!r} {failure.detail}"


def test_a_batch_that_does_not_exist_is_a_bad_request(batches: Batches) -> None:
    batch = batches.submit(1)
    unknown = batch.id[:-3] + "999"
    assert failure_of(batches.port.status, unknown, TIMEOUT).outcome is Outcome.BAD_REQUEST


def test_an_outage_is_one(batches: Batches) -> None:
    batches.fields = {"base_url": "http://127.0.0.1:1"}
    plans = {"r0": batches.plan("r0")}
    failure = failure_of(batches.create, "darkroom-8", plans)
    assert failure.outcome is Outcome.UNAVAILABLE
    assert not failure.maybe_charged  # no connection: no batch
    assert failure_of(batches.port.status, "batches/b1", TIMEOUT).outcome is Outcome.UNAVAILABLE


# --- the simulated providers are as strict as the real ones ---------------------------------------


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"url": "/v1/images/generations"}, "URL"),
        ({"method": "GET"}, "field"),
        ({"extra": 1}, "field"),
        ({"custom_id": "r0"}, "duplicate"),
        ({"model": "gpt-image-2"}, "same model"),
    ],
)
def test_the_simulator_validates_the_lines_of_openai(
    openai: Batches, change: dict[str, Any], code: str
) -> None:
    plans = {"r0": openai.plan("r0"), "r1": openai.plan("r1")}
    first, second = openai.file_of(plans).getvalue().splitlines()
    line = json.loads(second)
    if "model" in change:
        line["body"] |= change
    else:
        line |= change
    requests = io.BytesIO(first + b"\n" + json.dumps(line).encode() + b"\n")
    batch = openai.port.create("darkroom-9", openai.port.group(plans["r0"]), requests, TIMEOUT)
    failure = openai.ended(batch).failure
    assert failure is not None
    assert code in failure.detail
    assert "line 2" in failure.detail


def test_an_unknown_field_of_a_request_fails_that_request(batches: Batches) -> None:
    line = json.loads(batches.port.request_line("r0", batches.plan("r0")))
    line["body" if batches.provider is OPENAI else "request"]["unknown_field"] = 1
    requests = io.BytesIO(json.dumps(line).encode() + b"\n")
    group = batches.port.group(batches.plans["r0"])
    batch = batches.ended(batches.port.create("darkroom-10", group, requests, TIMEOUT))
    failed = failures(batches.answers(batch))
    assert failed["r0"].outcome is Outcome.BAD_REQUEST


def test_the_simulator_limits_what_is_enqueued(batches: Batches) -> None:
    batches.set_up(seconds=600, max_enqueued_requests=3)
    batches.submit(2)
    if batches.provider is GEMINI:
        assert failure_of(batches.submit, 2).outcome is Outcome.RATE_LIMITED
    else:
        second = batches.ended(batches.submit(2, name="darkroom-second"))
        assert second.failure is not None
        assert second.failure.outcome is Outcome.RATE_LIMITED


def test_catalogue_prices_of_a_batch_are_those_of_the_answers(batches: Batches) -> None:
    endpoint = batches.endpoint
    live, batched = (model_at(endpoint, endpoint.model, batch=b) for b in (False, True))
    assert live.token_prices is not None
    assert batched.token_prices is not None
    assert batched.token_prices.image_out == live.token_prices.image_out / 2
