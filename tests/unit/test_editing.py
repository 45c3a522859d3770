"""One row through the editor: what each outcome leads to, and what is recorded of it."""

import io
import json
from collections import Counter
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.editor.batch import ReturnRow
from darkroom.editor.leases import TIMINGS
from darkroom.errors import (
    ConfigurationError,
    DeferRow,
    Reason,
    RetryRow,
    RowRejected,
    ServiceUnavailable,
    Waiting,
)
from darkroom.images.containers import embedded_thumbnail
from darkroom.images.memory import MemoryBudget
from darkroom.jobs import ResultPaths, RunState
from darkroom.models.planner import model_for
from darkroom.rows import Claim, RowMessage, RowResult, RowState
from tests.fakes.editing import JOB, EditorHarness, FakeFetcher, endpoint, png, row_message
from tests.fakes.services import fail_once

IMAGE_KEY = f"{JOB}/images/000000.png"

EDITED = EditResult((png(),), "gpt-image-1.5-2025", cost_micro_usd=40_000)
REFUSED = CallFailed(Outcome.REFUSED, "not this")
DOWN = CallFailed(Outcome.UNAVAILABLE, "503")
TIMED_OUT = CallFailed(Outcome.UNAVAILABLE, "timed out", maybe_charged=True)
MISSING = RowRejected(Reason.BAD_IMAGE, "there is no such object")
AWAY = RetryRow(Reason.IMAGE_UNAVAILABLE, "its host is down")
HELD = ReturnRow(TIMINGS.held_delay_seconds)
AWS_ERROR = ReturnRow(TIMINGS.aws_delay_seconds)
CALLED_10 = ReturnRow(10.0, called=True)
BLUE = EditResult((png("blue"),), "m", cost_micro_usd=1)


@pytest.fixture
def harness() -> EditorHarness:
    """A job of one row, with default options."""
    return EditorHarness.with_job()


def test_a_large_input_image_is_loaded_again_with_a_share_that_its_call_needs(
    harness: EditorHarness,
) -> None:
    """The share that it was loaded with does not cover the request in base64."""
    large = io.BytesIO()
    Image.new("RGB", (2700, 2700)).save(large, "PNG", compress_level=0)
    fetched = Counter[str]()

    class CountingFetcher(FakeFetcher):
        def fetch(self, reference: str, base: str) -> bytes:
            fetched[reference] += 1
            return super().fetch(reference, base)

    budget = MemoryBudget(400 << 20)
    fetcher = CountingFetcher({"a.png": large.getvalue(), "b.png": png()})
    for name, key in (("a.png", "000000"), ("b.png", "000001")):
        harness.dispatcher.attempts = [[EDITED]]
        message = row_message(harness.run.run, key, images=(name,))
        editor, deadline = harness.editor(fetcher=fetcher, memory=budget), harness.clock.now() + 800
        assert editor.handle(message, harness.run, "w1", deadline, harness.leases()) is None
    assert [row.state for row in harness.ledger.rows.values()] == [RowState.SUCCEEDED] * 2
    assert fetched == {"a.png": 2, "b.png": 1}
    assert budget._used == 0


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
    assert f"{JOB}/thumbs/000000.png-after.webp" in harness.store.objects
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


def row_of(harness: EditorHarness, key: str, name: str, **request: Any) -> RowMessage:
    """A row without an index, as the splitter names its image."""
    return harness.message(key=key, **request).model_copy(update={"key": KEYS[key], "name": name})


KEYS = {"000000": "row-00000000000a", "000001": "row-00000000000b"}


def test_the_image_of_a_corrected_row_replaces_the_one_before(harness: EditorHarness) -> None:
    """Of which the ledger says then that it is gone, in case the old row comes back."""
    harness.fetcher.files = {"a.png": png()}
    before = row_of(harness, "000000", "a.png", images=("a.png",))
    assert harness.handle(EDITED, message=before) is None
    harness.upload(2)
    after = row_of(harness, "000001", "a.png", images=("a.png",), instruction="a blue hat")
    assert harness.handle(EDITED, message=after) is None
    old, new = (harness.ledger.rows[JOB, key] for key in (before.key, after.key))
    assert new.result is not None
    assert new.result.outputs == (f"{JOB}/images/a.png",)
    assert harness.store.objects[f"{JOB}/images/a.png"][2]["row"] == after.key
    assert old.result is not None
    assert (old.state, old.result.reason) == (RowState.FAILED, Reason.SUPERSEDED)
    assert old.result.cost_micro_usd == 40_000
    assert harness.ledger.counters(JOB, "run-1").cost_micro_usd == 40_000


@pytest.mark.parametrize("n", [1, 2])
def test_a_row_named_by_its_number_spares_the_image_of_a_row_that_moved(
    harness: EditorHarness, n: int
) -> None:
    edited = EditResult((png(),) * n, "m", cost_micro_usd=1)
    moved = row_of(harness, "000000", "000000.png", n=n)
    assert harness.handle(edited, message=moved) is None
    harness.upload(2)
    inserted = row_of(harness, "000001", "000000.png", instruction="a blue hat", n=n)
    assert harness.handle(edited, message=inserted) is None
    names = [
        [output.rpartition("/")[2] for output in record.result.outputs]
        for record in harness.ledger.all(JOB)
        if record.result is not None
    ]
    own = ["000000.png", "000000-1.png"]
    other = ["000000-00000000000b.png", "000000-00000000000b-1.png"]
    assert names == [own[:n], other[:n]]
    for output in own[:n]:
        assert harness.store.objects[f"{JOB}/images/{output}"][2]["row"] == moved.key


def sizes_of_thumbnails(harness: EditorHarness) -> dict[str, int]:
    """Longest sides in pixels, by what follows the row's key."""
    return {
        key.removeprefix(f"{JOB}/thumbs/000000.png-"): max(Image.open(BytesIO(body)).size)
        for key, (body, _, _) in harness.store.objects.items()
        if key.endswith(".webp")
    }


def test_the_preview_of_the_input_contains_the_thumbnail_for_the_gallery(
    harness: EditorHarness,
) -> None:
    harness.fetcher.files = {"a.png": png(side=2_000)}
    assert harness.handle(EDITED, message=harness.message(images=("a.png",))) is None
    assert sizes_of_thumbnails(harness) == {"before.webp": 1_280, "after.webp": 8}
    preview, kind, _ = harness.store.objects[f"{JOB}/thumbs/000000.png-before.webp"]
    assert kind == "image/webp"
    assert Image.open(BytesIO(embedded_thumbnail(preview) or b"")).size == (320, 320)


@pytest.mark.parametrize(("images", "writes"), [(("a.png",), 3), ((), 2)])
def test_a_row_takes_a_write_for_its_image_and_one_for_each_side_of_its_card(
    harness: EditorHarness, images: tuple[str, ...], writes: int
) -> None:
    """Writes are the largest part of what S3 costs: docs/cost.md."""
    harness.fetcher.files = {"a.png": png(side=2_000)}
    assert harness.handle(EDITED, message=harness.message(images=images)) is None
    harness.store.puts.remove(ResultPaths(JOB).write_check)  # once in five minutes
    assert len(harness.store.puts) == writes


def test_a_preview_that_cannot_be_stored_leaves_the_other_thumbnail(
    harness: EditorHarness,
) -> None:
    put = harness.store.put

    def fail_on_preview(key: str, *args: Any, **options: Any) -> bool:
        if key.endswith("-before.webp"):
            raise ServiceUnavailable("throttled")
        return put(key, *args, **options)

    harness.store.put = fail_on_preview  # type: ignore[method-assign]
    harness.fetcher.files = {"a.png": png(side=2_000)}
    assert harness.handle(EDITED, message=harness.message(images=("a.png",))) is None
    assert harness.row.state is RowState.SUCCEEDED
    assert sizes_of_thumbnails(harness) == {"after.webp": 8}
    expected = "the gallery has no thumbnail 'before': throttled"
    assert harness.result.warnings[-1] == expected
    assert sum("thumbnail" in warning for warning in harness.result.warnings) == 1


@pytest.mark.parametrize("output_name", ["hat.jpg", "hat.png"])
def test_an_answer_that_cannot_be_processed_is_stored_as_it_came(
    harness: EditorHarness, output_name: str
) -> None:
    """It was paid for. Its decoder may fail where the one that checked the answer did not."""
    damaged = png()[:40]
    message = harness.message(output_name=output_name)
    assert harness.handle(EditResult((damaged,), "m", cost_micro_usd=1), message=message) is None
    assert harness.row.state is RowState.SUCCEEDED
    assert len(harness.dispatcher.contexts) == 1
    body, kind, _ = harness.store.objects[f"{JOB}/images/{output_name}"]
    assert (body, kind) == (damaged, "image/png")
    warnings = " ".join(harness.result.warnings)
    assert "the gallery has no thumbnail 'after': the image is damaged or cut off" in warnings
    assert ("hat.jpg is stored as it came (image/png)" in warnings) == (output_name == "hat.jpg")


def test_an_answer_in_another_format_is_stored_before_it_is_converted(
    harness: EditorHarness,
) -> None:
    """A worker that dies during the conversion loses no image that was paid for."""
    bodies: list[tuple[str, bytes]] = []
    put = harness.store.put

    def record(key: str, body: bytes, content_type: str, *args: Any, **options: Any) -> bool:
        if key != ResultPaths(JOB).write_check:
            bodies.append((content_type, body))
        return put(key, body, content_type, *args, **options)

    harness.store.put = record  # type: ignore[method-assign]
    harness.handle(EDITED, message=harness.message(output_name="hat.webp"))
    assert bodies[0] == ("image/png", png())
    assert [kind for kind, _ in bodies] == ["image/png", "image/webp", "image/webp"]
    assert harness.store.objects[f"{JOB}/images/hat.webp"][1] == "image/webp"


@pytest.mark.parametrize("failing", ["thumbs/", "images/"])
def test_a_store_that_fails_after_the_answer_is_stored_costs_no_call(
    harness: EditorHarness, failing: str
) -> None:
    put = harness.store.put
    done: list[str] = []

    def fail_later(key: str, *args: Any, **options: Any) -> bool:
        if failing in key and done:
            raise ServiceUnavailable("throttled")
        if key != ResultPaths(JOB).write_check:
            done.append(key)
        return put(key, *args, **options)

    harness.store.put = fail_later  # type: ignore[method-assign]
    harness.handle(EDITED, message=harness.message(output_name="hat.webp"))
    assert harness.row.state is RowState.SUCCEEDED
    assert harness.result.warnings[-1].endswith("throttled")


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
    assert set(harness.store.objects) <= {ResultPaths(JOB).write_check}
    assert harness.queue.dead == []
    assert harness.telemetry.metrics["RowsFailed"] == 1


@pytest.mark.parametrize("error", [RowRejected, RetryRow])
def test_a_row_that_failed_names_the_provider_endpoint_and_model_of_its_call(
    error: type[RowRejected | RetryRow],
) -> None:
    harness = EditorHarness.with_job(max_attempts=1)
    called = {"provider": "openai", "endpoint": "openai-main", "model": "gpt-image-2"}
    assert harness.handle(error(Reason.UNAVAILABLE, "503", **called)) is None  # type: ignore[arg-type]
    result = harness.result
    assert {name: getattr(result, name) for name in called} == called


def test_failed_attempts_are_retried_with_backoff_until_the_row_is_dead() -> None:
    harness = EditorHarness.with_job(max_attempts=3)
    assert [harness.handle(DOWN), harness.handle(DOWN)] == [CALLED_10, ReturnRow(20.0, called=True)]
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
    assert harness.handle(RetryRow(Reason.RATE_LIMITED, "429", delay_seconds=120)) == ReturnRow(120)
    for _ in range(5):
        assert harness.handle(DeferRow("no slot", delay_seconds=77)) == ReturnRow(77)
    assert harness.handle(EDITED) is None
    assert (harness.row.state, harness.row.attempts) == (RowState.SUCCEEDED, 2)


def test_a_call_that_failed_for_all_rows_costs_no_attempt() -> None:
    harness = EditorHarness.with_job(max_attempts=2)
    rejected = CallFailed(Outcome.KEY_REJECTED, "401")
    for _ in range(5):
        waited = harness.handle(rejected, DeferRow("every key was rejected", delay_seconds=77))
        assert waited == ReturnRow(77, called=True)
    assert harness.row.attempts == 0
    assert harness.handle(EDITED) is None


def test_a_row_held_by_another_worker_is_delivered_again_later(harness: EditorHarness) -> None:
    harness.ledger.claim(harness.message(), harness.run, "other", 90)
    assert harness.handle() == HELD
    assert harness.dispatcher.contexts == []


def test_a_worker_that_lost_its_lease_neither_calls_nor_settles(harness: EditorHarness) -> None:
    def another_worker_claims_it() -> None:
        harness.clock.time += 1000
        harness.ledger.claim(harness.message(), harness.run, "other", 90)

    harness.dispatcher.during_call = another_worker_claims_it
    assert harness.handle(DOWN) == HELD
    assert harness.row.lease_owner == "other"
    assert harness.row.state is RowState.SENT  # the other worker resolves it


def test_after_a_crash_the_row_is_settled_from_its_stored_image(harness: EditorHarness) -> None:
    fail_once(harness.ledger, "settle")
    assert harness.handle(EDITED) == ReturnRow(TIMINGS.aws_delay_seconds, called=True)
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
    assert harness.handle(DOWN) == ReturnRow(TIMINGS.aws_delay_seconds, called=True)
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


@pytest.mark.parametrize("error", [ServiceUnavailable("throttled"), PermissionError("denied")])
def test_an_image_that_is_paid_for_is_stored_until_the_deadline(
    harness: EditorHarness, error: Exception
) -> None:
    harness.dispatcher.during_call = lambda: harness.store.fail(error, times=12)
    assert harness.handle(EDITED) is None
    assert harness.row.state is RowState.SUCCEEDED
    assert IMAGE_KEY in harness.store.objects
    assert len(harness.dispatcher.contexts) == 1


def test_nothing_is_called_for_while_the_results_bucket_cannot_be_written() -> None:
    harness = EditorHarness.with_job(max_attempts=1)
    harness.store.fail(PermissionError("AccessDenied"), times=3)
    for _ in range(3):
        assert harness.handle() == ReturnRow(60.0)
    assert (harness.row.attempts, harness.dispatcher.contexts) == (0, [])
    waiting = harness.run.waiting
    assert waiting is not None
    assert waiting.reason is Reason.NOT_STORED
    assert "the results bucket cannot be written (AccessDenied)" in waiting.detail
    assert harness.progress_requests == [JOB]
    assert harness.handle(EDITED) is None
    assert harness.run.waiting is None
    assert harness.progress_requests == [JOB, JOB]


def test_the_results_bucket_is_checked_once_for_the_rows_of_some_minutes() -> None:
    harness = EditorHarness.with_job(queued=2)
    editor = harness.editor()
    for key in ("000000", "000001"):
        harness.dispatcher.attempts = [[EDITED]]
        leases, deadline = harness.leases(), harness.clock.now() + 800
        assert editor.handle(harness.message(key=key), harness.run, key, deadline, leases) is None
    checks = [key for key in harness.store.puts if key == ResultPaths(JOB).write_check]
    assert len(checks) == 1


# What is not the row's fault


def test_rows_wait_for_a_usable_secret_without_spending_attempts() -> None:
    harness = EditorHarness.with_job(max_attempts=1)
    unusable = ConfigurationError("no endpoints are configured: run `darkroom endpoints push`")
    assert harness.handle(unusable) == HELD
    assert harness.row.attempts == 0
    waiting = harness.run.waiting
    assert waiting is not None
    assert (waiting.reason, "endpoints push" in waiting.detail) == (Reason.NO_ENDPOINT, True)
    assert harness.handle(EDITED) is None


def test_a_job_that_waits_for_longer_than_its_option_says_ends_its_rows_as_dead() -> None:
    harness = EditorHarness.with_job(give_up_after_hours=2)
    waiting = Waiting(Reason.KEY_REJECTED, "every key of gemini-main was rejected", 0.0)
    rejected = DeferRow("no key", delay_seconds=60, waiting=waiting)
    for _ in range(12):
        assert harness.handle(rejected) == ReturnRow(60.0)
        harness.clock.time += 599
    assert harness.row.attempts == 0
    harness.clock.time += 20
    assert harness.handle(rejected) is None
    assert (harness.row.state, harness.result.reason) == (RowState.DEAD, Reason.KEY_REJECTED)
    ((_, attributes),) = harness.queue.dead
    assert attributes["reason"] == "key_rejected"
    assert "every key of gemini-main was rejected" in attributes["detail"]


def test_a_row_given_up_is_not_called_for(harness: EditorHarness) -> None:
    waiting = Waiting(Reason.QUOTA_SPENT, "every endpoint's quota is spent", 0.0)
    assert harness.handle(given_up=waiting) is None
    assert (harness.row.state, harness.result.reason) == (RowState.DEAD, Reason.QUOTA_SPENT)
    assert harness.dispatcher.contexts == []


@pytest.mark.parametrize(("waited", "called"), [(14, True), (30, False)])
def test_no_call_starts_later_than_30_seconds_after_a_stop(waited: int, called: bool) -> None:
    """The row waits for its slot while the job is stopped."""
    harness = EditorHarness.with_job()

    def stop_while_the_row_waits() -> None:
        harness.ledger.stop(JOB)
        harness.clock.time += waited

    harness.dispatcher.before_slot = stop_while_the_row_waits
    assert harness.handle(EDITED) is None
    calls = 1 if called else 0
    assert (harness.row.endpoint is not None) == called
    assert harness.ledger.counters(JOB, harness.run.run).succeeded == calls
    assert called or harness.result.reason is Reason.STOPPED


def test_a_row_whose_worker_died_waits_until_it_is_alone(harness: EditorHarness) -> None:
    harness.claim("killed")
    harness.clock.time += 100
    leases = harness.leases()
    leases.alone = False
    editor, deadline = harness.editor(), harness.clock.now() + 800
    message = harness.message()
    returned = editor.handle(message, harness.run, "w1", deadline, leases)
    assert returned == ReturnRow(0.0, alone=True)
    assert (harness.row.lease_owner, harness.row.attempts) == (None, 0)
    leases.alone = True
    harness.dispatcher.attempts = [[EDITED]]
    assert editor.handle(message, harness.run, "w1", deadline, leases) is None
    assert harness.row.state is RowState.SUCCEEDED


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
    assert harness.handle(EDITED, message=old) == HELD
    assert harness.store.objects[IMAGE_KEY][0] == png("blue")
    assert harness.handle(message=old) is None


def test_a_slower_worker_keeps_the_image_of_the_faster_one(harness: EditorHarness) -> None:
    def another_worker_is_faster() -> None:
        harness.dispatcher.during_call = lambda: None
        harness.clock.time += 1000
        assert harness.handle(BLUE) is None

    harness.dispatcher.during_call = another_worker_is_faster
    assert harness.handle(EDITED) == HELD
    assert harness.store.objects[IMAGE_KEY][0] == png("blue")
    assert harness.row.possible_duplicate_charges == 1


def test_the_warnings_of_a_row_are_bounded() -> None:
    many = RowResult(RowState.SUCCEEDED, warnings=tuple(f"{n}: {'x' * 30_000}" for n in range(16)))
    assert len(many.warnings) == 8
    assert many.warnings[-1] == "and 9 more warnings"
    assert max(map(len, many.warnings)) == 200
    assert replace(many, warnings=many.warnings) == many


def test_a_row_waits_while_calls_under_way_may_leave_room_in_the_budget() -> None:
    harness = EditorHarness.with_job(queued=2, budget_usd=0.3)
    other = harness.message().model_copy(update={"key": "000001", "row": 1})
    claim = harness.ledger.claim(other, harness.run, "another worker", 90)
    assert isinstance(claim, Claim)
    sent = harness.ledger.mark_sent(claim, "openai-main", reserve=290_000, limit=300_000)
    assert isinstance(sent, Claim)
    returned = harness.handle(EDITED)
    assert returned is not None
    assert (returned.seconds, harness.row.attempts) == (30.0, 0)
    assert harness.ledger.settle(sent, RowResult(RowState.SUCCEEDED, cost_micro_usd=1_000))
    assert harness.handle(EDITED) is None
    assert harness.row.state is RowState.SUCCEEDED


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


def test_a_dead_letter_of_an_earlier_upload_goes_back_to_the_dead_letter_queue() -> None:
    harness = EditorHarness.with_job(max_attempts=1)
    assert harness.handle(DOWN) is None
    (letter,) = harness.queue.dead
    harness.queue.dead.clear()
    harness.upload(2, queued=0)
    redriven = RowMessage.model_validate_json(letter[0])
    fail_once(harness.queue, "dead_letter")
    assert harness.handle(message=redriven) == AWS_ERROR
    assert harness.handle(message=redriven) is None
    (returned,) = harness.queue.dead
    assert RowMessage.model_validate_json(returned[0]) == redriven
    assert returned[1]["reason"] == "superseded"
    assert "retry-failed=true" in returned[1]["detail"]
    assert len(harness.dispatcher.contexts) == 1


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
    assert harness.handle(ZeroDivisionError("secret")) == ReturnRow(10.0)
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
    assert harness.handle(EDITED) == AWS_ERROR
    assert harness.handle(ServiceUnavailable("throttled")) == AWS_ERROR
    assert harness.row.attempts == 0
    assert harness.handle(EDITED) is None


def test_a_broken_reference_is_skipped_if_another_loads(harness: EditorHarness) -> None:
    harness.fetcher.files = {"a.png": MISSING, "b.png": png()}
    assert harness.handle(EDITED, message=harness.message(images=("a.png", "b.png"))) is None
    assert harness.result.warnings[0] == "skipped a.png: there is no such object"
    assert f"{JOB}/thumbs/000000.png-before.webp" in harness.store.objects


def test_an_unavailable_reference_is_retried_and_skipped_in_the_last_attempt() -> None:
    harness = EditorHarness.with_job(max_attempts=2)
    harness.fetcher.files = {"a.png": AWAY, "b.png": png()}
    message = harness.message(images=("a.png", "b.png"))
    assert harness.handle(message=message) == ReturnRow(10.0)
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
