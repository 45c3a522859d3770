"""Jobs with mode=batch: rows are submitted in batches, and settled when these have ended."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from darkroom.batches.collector import FIND_AFTER_SECONDS, GIVE_UP_SECONDS, TRIES
from darkroom.batches.provider_batch import BatchStatus
from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.errors import Reason
from darkroom.jobs import RunState
from darkroom.ledger.batches import BatchState
from darkroom.metrics import Metric
from darkroom.rows import Claim, RowMessage, RowRecord, RowState
from tests.fakes.batching import PRICE, BatchHarness, FixedSecret, endpoints_secret, image
from tests.fakes.editing import JOB, row_message
from tests.fakes.lockstep import Fault, Worker

HOUR = 3600.0
REFUSED = CallFailed(Outcome.REFUSED, "not this")
ERROR = CallFailed(Outcome.UNAVAILABLE, "server error")
LOST = CallFailed(Outcome.UNAVAILABLE, "timed out", maybe_charged=True)
FULL = CallFailed(Outcome.RATE_LIMITED, "enqueued token limit reached")


@pytest.fixture
def harness() -> BatchHarness:
    return BatchHarness()


def states(harness: BatchHarness) -> list[str]:
    return [record.state.value for record in harness.ledger.all(JOB)]


def reasons(harness: BatchHarness) -> list[Reason | None]:
    return [r.result.reason if r.result else None for r in harness.ledger.all(JOB)]


def batch_states(harness: BatchHarness) -> list[BatchState]:
    return [batch.state for batch in harness.batches.batches.values()]


# The way of a row


def test_rows_of_a_job_are_one_batch_and_wait_for_it_without_a_lease(
    harness: BatchHarness,
) -> None:
    harness.upload_rows("red", "blue").deliver()
    (batch,) = harness.batches.open()
    assert (batch.state, batch.rows, batch.job) == (BatchState.SUBMITTED, 2, JOB)
    assert [r.batch for r in harness.ledger.all(JOB)] == [batch.name] * 2
    assert all(r.lease_owner is None for r in harness.ledger.all(JOB))
    assert harness.provider.batches[batch.batch_id].description.name == batch.name
    assert not harness.batch_queue.messages


def test_images_of_an_ended_batch_are_stored_and_settled_as_those_of_calls(
    harness: BatchHarness,
) -> None:
    harness.upload_rows("red", "blue").deliver()
    harness.end_batches()
    harness.collect()
    assert states(harness) == ["succeeded", "succeeded"]
    result = harness.result
    assert (result.mode, result.cost_micro_usd, result.endpoint, result.provider) == (
        "batch",
        PRICE,
        "openai-main",
        "openai",
    )
    assert all(output in harness.store.objects for output in result.outputs)
    assert harness.store.objects[result.outputs[0]][2]["mode"] == "batch"
    counters = harness.ledger.counters(JOB, harness.run.run)
    assert (counters.succeeded, counters.cost_micro_usd) == (2, 2 * PRICE)
    assert harness.report_requests == [JOB]
    assert batch_states(harness) == [BatchState.CLOSED]
    assert harness.provider.deleted == ["batch-0"]


def test_nothing_is_done_for_a_batch_that_has_not_ended(harness: BatchHarness) -> None:
    harness.upload_rows("red").deliver()
    harness.clock.time += HOUR
    harness.collect()
    assert states(harness) == ["submitted"]
    assert harness.report_requests == []
    assert harness.telemetry.metrics[Metric.BATCH_AGE] == HOUR


def test_refusals_empty_answers_and_bad_requests_end_their_rows(harness: BatchHarness) -> None:
    harness.upload_rows("a", "b", "c").deliver()
    answers = {
        "a": CallFailed(Outcome.REFUSED, "not this", cost_micro_usd=7),
        "b": CallFailed(Outcome.NO_IMAGE, "only text", retry_once=True),
        "c": CallFailed(Outcome.BAD_REQUEST, "a size it does not have"),
    }
    harness.end_batches(lambda prompt: answers[prompt])
    harness.collect()
    assert states(harness) == ["failed"] * 3
    assert reasons(harness) == [Reason.REFUSED, Reason.NO_IMAGE, Reason.BAD_REQUEST]
    assert harness.ledger.counters(JOB, harness.run.run).cost_micro_usd == 7
    assert not harness.queue.messages
    assert not harness.batch_queue.messages


@pytest.mark.parametrize("answer", [ERROR, None])
def test_row_without_an_image_is_called_for_by_default(
    harness: BatchHarness, answer: CallFailed | None
) -> None:
    harness.upload_rows("red").deliver()
    harness.end_batches(lambda _: answer)
    harness.collect()
    (message,) = harness.edit_live()
    assert message.live
    assert states(harness) == ["succeeded"]
    assert (harness.result.mode, harness.result.cost_micro_usd) == ("live", 2 * PRICE)
    assert harness.row.attempts == 2


def test_row_without_an_image_joins_the_next_batch_if_the_job_says_so(
    harness: BatchHarness,
) -> None:
    harness.upload_rows("red", batch_fallback="batch").deliver()
    harness.end_batches(lambda _: ERROR)
    harness.collect()
    assert not harness.queue.messages
    harness.clock.time += 60
    harness.deliver()
    harness.end_batches()
    harness.collect()
    assert states(harness) == ["succeeded"]
    assert harness.row.attempts == 2


def test_row_is_dead_when_its_attempts_are_spent_in_batches(harness: BatchHarness) -> None:
    harness.upload_rows("red", batch_fallback="batch", max_attempts=2)
    for _ in range(2):
        harness.deliver()
        harness.end_batches(lambda _: ERROR)
        harness.collect()
        harness.clock.time += 60
    assert (harness.row.state, harness.result.reason) == (RowState.DEAD, Reason.UNAVAILABLE)
    assert harness.result.mode == "batch"
    ((body, attributes),) = harness.batch_queue.dead
    assert RowMessage.model_validate_json(body).generation == 1
    assert attributes["reason"] == "unavailable"


def test_redriven_row_of_a_batch_job_returns_to_the_batches(harness: BatchHarness) -> None:
    harness.upload_rows("red", max_attempts=1).deliver()
    harness.end_batches(lambda _: ERROR)
    harness.collect()
    letter = RowMessage.model_validate_json(harness.batch_queue.dead[0][0])
    assert harness.handle(message=letter) is None  # the editor's queue: where redrives go
    harness.deliver()
    harness.end_batches()
    harness.collect()
    assert (harness.row.state, harness.result.mode) == (RowState.SUCCEEDED, "batch")


@pytest.mark.parametrize("status", [BatchStatus.EXPIRED, BatchStatus.CANCELLED])
def test_batch_that_expires_settles_what_was_done_and_strands_no_row(
    harness: BatchHarness, status: BatchStatus
) -> None:
    harness.upload_rows("red", "blue").deliver()
    harness.provider.end("batch-0", lambda p: image() if p == "red" else None, status)
    harness.collect()
    assert states(harness) == ["succeeded", "claimed"]
    assert [m.request.instruction for m in harness.edit_live()] == ["blue"]
    assert states(harness) == ["succeeded", "succeeded"]


def test_batch_whose_validation_failed_follows_the_fallback(harness: BatchHarness) -> None:
    harness.upload_rows("red").deliver()
    failure = CallFailed(Outcome.BAD_REQUEST, "line 1 is invalid")
    harness.provider.end("batch-0", status=BatchStatus.FAILED, failure=failure)
    harness.provider.batches["batch-0"].answers.clear()
    harness.provider.billed.clear()
    harness.collect()
    assert len(harness.edit_live()) == 1
    assert states(harness) == ["succeeded"]


# Choosing the endpoint


def test_full_account_pauses_its_batches_and_the_next_tier_takes_them(
    harness: BatchHarness,
) -> None:
    harness.secret = FixedSecret(endpoints_secret("first", "second"))
    harness.provider_of("first").failures = [FULL]
    harness.upload_rows("red").deliver()
    assert harness.row.attempts == 0
    harness.clock.time += 60
    harness.deliver()
    assert len(harness.provider_of("second").batches) == 1
    harness.end_batches()
    harness.collect()
    assert (harness.result.endpoint, harness.result.fallback) == ("second", True)
    assert harness.row.attempts == 1


def test_rows_wait_unclaimed_while_no_endpoint_takes_batches(harness: BatchHarness) -> None:
    harness.provider.failures = [FULL]
    harness.upload_rows("red").deliver()
    harness.clock.time += 60
    harness.ledger.rows.clear()
    harness.deliver()
    assert harness.ledger.rows == {}
    assert harness.telemetry.metrics[Metric.ROWS_WAITING] == 1
    assert harness.telemetry.metrics[Metric.ROW_AGE] == 60
    waiting = harness.run.waiting
    assert waiting is not None
    assert "enqueued token limit reached" in waiting.detail
    harness.clock.time += HOUR
    harness.deliver()
    assert states(harness) == ["submitted"]
    assert harness.run.waiting is None, "it waits for its batch, not for an endpoint"


def test_row_that_waited_for_batches_for_too_long_is_dead(harness: BatchHarness) -> None:
    harness.provider.failures = [FULL] * 50
    harness.upload_rows("red", give_up_after_hours=2).deliver()
    for _ in range(20):
        harness.clock.time += HOUR / 4
        harness.deliver()
    assert states(harness) == ["dead"]
    assert "the job waited too long" in harness.result.detail


def test_failure_on_creation_that_is_the_rows_fault_costs_an_attempt(
    harness: BatchHarness,
) -> None:
    harness.provider.failures = [CallFailed(Outcome.BAD_REQUEST, "not a batch")]
    harness.upload_rows("red").deliver()
    assert len(harness.edit_live()) == 1
    assert harness.row.attempts == 2


def test_row_that_no_batch_can_take_is_called_for(harness: BatchHarness) -> None:
    harness.provider.without_batches = "it offers no batches"
    harness.upload_rows("red").deliver()
    assert len(harness.edit_live()) == 1
    assert states(harness) == ["succeeded"]


def test_row_that_no_batch_can_take_fails_where_the_job_allows_batches_only(
    harness: BatchHarness,
) -> None:
    harness.provider.without_batches = "it offers no batches"
    harness.upload_rows("red", batch_fallback="batch").deliver()
    assert harness.result.reason is Reason.BAD_REQUEST
    assert "openai-main: it offers no batches" in harness.result.detail
    assert harness.report_requests == [JOB]


def test_bad_image_ends_its_row_and_the_others_are_submitted(harness: BatchHarness) -> None:
    harness.fetcher.files["broken.png"] = b"not an image"
    harness.upload_rows("red", "blue")
    broken = harness.message(key="000002", instruction="x", images=("broken.png",))
    harness.batch_queue.send([broken])
    harness.deliver()
    assert states(harness) == ["submitted", "submitted", "failed"]
    assert reasons(harness)[2] is Reason.BAD_IMAGE


def test_batch_is_split_at_the_providers_limits(harness: BatchHarness) -> None:
    harness.provider.max_requests = 2
    harness.upload_rows("a", "b", "c", "d", "e").deliver()
    assert [len(b.lines) for b in harness.provider.batches.values()] == [2, 2, 1]
    harness = BatchHarness()
    harness.provider.max_file_bytes = 100
    harness.upload_rows("a", "b", "c").deliver()
    assert [len(b.lines) for b in harness.provider.batches.values()] == [2, 1]


# Budget


def test_budget_is_reserved_at_the_price_of_a_batch(harness: BatchHarness) -> None:
    harness.upload_rows("red", budget_usd=1.0).deliver()
    reserved_in_batch = harness.row.reserved
    live = BatchHarness.with_job(budget_usd=1.0)
    reserved = list[int]()
    live.dispatcher.during_call = lambda: reserved.append(live.row.reserved)
    live.handle(image())
    assert reserved_in_batch == pytest.approx(reserved[0] / 2, rel=0.01)
    harness.end_batches()
    harness.collect()
    assert harness.ledger.committed[JOB] == PRICE
    assert harness.ledger.reserved[JOB] == 0


def test_rows_beyond_the_budget_are_not_in_the_batch(harness: BatchHarness) -> None:
    harness.upload_rows("a", "b", "c", budget_usd=0.25).deliver()
    (batch,) = harness.provider.batches.values()
    in_batch = [r for r in harness.ledger.all(JOB) if r.state is RowState.SUBMITTED]
    assert 0 < len(batch.lines) == len(in_batch) < 3
    harness.clock.time += 120
    assert not harness.receive(), "the budget is reserved for hours"


# Twice, late and superseded


def test_second_delivery_of_a_submitted_row_is_dropped(harness: BatchHarness) -> None:
    harness.upload_rows("red").deliver()
    harness.batch_queue.send([harness.message(instruction="red")])
    harness.deliver()
    assert len(harness.provider.batches) == 1
    assert not harness.batch_queue.messages


def test_later_upload_of_the_same_row_waits_for_its_batch(harness: BatchHarness) -> None:
    harness.upload_rows("red").deliver()
    harness.upload_rows("red", number=2).deliver()
    harness.end_batches()
    harness.collect()
    assert len(harness.provider.batches) == 1
    assert harness.ledger.counters(JOB, "run-2").succeeded == 1


def test_answer_that_no_row_waits_for_is_counted_as_paid(harness: BatchHarness) -> None:
    harness.upload_rows("red").deliver()
    harness.upload_rows("blue", number=2).deliver()
    harness.end_batches()
    harness.collect()
    assert harness.row.state is RowState.SUCCEEDED
    sums = [harness.ledger.counters(JOB, run) for run in ("run-1", "run-2")]
    assert [s.succeeded for s in sums] == [0, 1]
    assert sum(s.cost_micro_usd for s in sums) == 2 * PRICE


def test_repeated_answers_settle_a_row_once(harness: BatchHarness) -> None:
    harness.upload_rows("red").deliver()
    harness.end_batches()
    batch = harness.provider.batches["batch-0"]
    batch.answers += [*batch.answers, ("row-7", REFUSED), ("row-0", REFUSED)]
    harness.collect()
    counters = harness.ledger.counters(JOB, harness.run.run)
    assert (counters.succeeded, counters.failed, counters.cost_micro_usd) == (1, 0, PRICE)


MADE_AGAIN = image(side=3)


def test_images_that_were_made_twice_for_a_row_are_counted_as_paid_twice(
    harness: BatchHarness,
) -> None:
    harness.upload_rows("red").deliver()
    harness.end_batches()
    batch = harness.provider.batches["batch-0"]
    batch.answers += [("row-0", MADE_AGAIN), ("row-0", MADE_AGAIN), *batch.answers]
    harness.collect()
    assert (states(harness), harness.result.cost_micro_usd) == (["succeeded"], PRICE)
    assert harness.ledger.counters(JOB, harness.run.run).cost_micro_usd == 2 * PRICE


def test_image_that_comes_after_an_error_is_paid(harness: BatchHarness) -> None:
    harness.upload_rows("red").deliver()
    harness.end_batches(lambda _: ERROR)
    harness.provider.batches["batch-0"].answers.append(("row-0", image()))
    harness.collect()
    harness.edit_live()
    assert harness.ledger.counters(JOB, harness.run.run).cost_micro_usd == PRICE + 2 * PRICE


def test_collection_that_is_repeated_counts_an_image_that_was_made_twice_once(
    harness: BatchHarness,
) -> None:
    harness.upload_rows("red").deliver()
    harness.end_batches()
    harness.provider.batches["batch-0"].answers.append(("row-0", MADE_AGAIN))
    collector = Worker("collector", harness.collect)
    go_until(collector, lambda: states(harness) == ["succeeded"])
    collector.kill()
    harness.clock.time += HOUR
    harness.collect()
    assert harness.ledger.counters(JOB, harness.run.run).cost_micro_usd == 2 * PRICE


# Answers that are missing or cannot be read


@pytest.mark.parametrize("on_unknown", ["retry", "fail"])
def test_row_without_an_answer_in_a_batch_that_succeeded_may_have_been_charged(
    harness: BatchHarness, on_unknown: str
) -> None:
    harness.on_unknown_outcome = on_unknown
    harness.upload_rows("red", "blue", budget_usd=1.0).deliver()
    reserved = harness.row.reserved
    harness.end_batches(lambda prompt: image() if prompt == "blue" else None)
    harness.collect()
    assert harness.row.possible_duplicate_charges == 1
    assert harness.ledger.committed[JOB] == PRICE + reserved, "it may cost that much"
    assert harness.telemetry.metrics[Metric.POSSIBLE_DUPLICATE_CHARGES] == 1
    if on_unknown == "fail":
        assert states(harness) == ["failed", "succeeded"]
        assert reasons(harness)[0] is Reason.OUTCOME_UNKNOWN
    else:
        assert len(harness.edit_live()) == 1
    assert harness.ledger.counters(JOB, harness.run.run).possible_duplicate_charges == 1


@pytest.mark.parametrize("status", [BatchStatus.EXPIRED, BatchStatus.CANCELLED])
def test_row_that_an_ended_batch_did_not_process_was_not_charged(
    harness: BatchHarness, status: BatchStatus
) -> None:
    harness.upload_rows("red", "blue", budget_usd=1.0).deliver()
    harness.provider.end("batch-0", lambda p: image() if p == "blue" else None, status)
    harness.collect()
    assert harness.row.possible_duplicate_charges == 0
    assert harness.ledger.committed[JOB] == PRICE


def test_line_of_an_unknown_row_may_be_the_charge_of_one_without_an_answer(
    harness: BatchHarness,
) -> None:
    harness.upload_rows("red", "blue").deliver()
    expired = BatchStatus.EXPIRED
    harness.provider.end("batch-0", lambda p: image() if p == "blue" else None, expired)
    harness.provider.batches["batch-0"].answers.append((None, LOST))
    harness.collect()
    assert harness.row.possible_duplicate_charges == 1
    assert "answer_unreadable" in harness.telemetry.logged("warning")


def test_images_that_a_batch_made_and_gives_no_file_of_may_have_been_charged(
    harness: BatchHarness,
) -> None:
    harness.upload_rows("red").deliver()
    harness.provider.end("batch-0", lambda _: None, BatchStatus.EXPIRED)
    batch = harness.provider.batches["batch-0"]
    batch.description = replace(batch.description, succeeded=1)
    harness.collect()
    assert harness.row.possible_duplicate_charges == 1


def test_answer_that_crashes_the_collector_costs_only_its_own_row(harness: BatchHarness) -> None:
    harness.upload_rows("red", "blue", "green").deliver()
    unexpected = EditResult((), cost_micro_usd=PRICE)  # no adapter returns one
    harness.end_batches(lambda prompt: unexpected if prompt == "blue" else image())
    harness.collect()
    assert states(harness) == ["succeeded", "claimed", "succeeded"]
    assert batch_states(harness) == [BatchState.CLOSED]
    assert harness.telemetry.logged("exception") == ["answer_crashed"] * TRIES
    (message,) = harness.edit_live()
    assert message.request.instruction == "blue"
    assert states(harness) == ["succeeded"] * 3
    counters = harness.ledger.counters(JOB, harness.run.run)
    assert counters.cost_micro_usd == 3 * PRICE + 2 * PRICE
    assert counters.possible_duplicate_charges == 1


def test_answers_that_crash_the_collector_spend_the_attempts_of_their_row(
    harness: BatchHarness,
) -> None:
    harness.upload_rows("red", batch_fallback="batch", max_attempts=2)
    for _ in range(2):
        harness.deliver()
        harness.end_batches(lambda _: EditResult((), cost_micro_usd=PRICE))
        harness.collect()
        harness.clock.time += 60
    assert (harness.row.state, harness.result.cost_micro_usd) == (RowState.DEAD, 2 * PRICE)
    assert "cannot be processed: IndexError" in harness.result.detail


def test_answer_that_kills_its_collector_costs_only_its_own_row(harness: BatchHarness) -> None:
    harness.upload_rows("red", "blue", "green").deliver()
    harness.end_batches()
    poisonous, deaths = f"{JOB}/images/000001.png", 0
    while list(harness.batches.open()):
        harness.store.puts.clear()
        collector = Worker("collector", harness.collect)
        go_until(collector, lambda: poisonous in harness.store.puts)
        if not collector.over:
            collector.kill()
            deaths += 1
            assert deaths <= 1 + TRIES, "the first one only shows about where it is"
        harness.clock.time += HOUR
    assert deaths == 1 + TRIES
    assert states(harness) == ["succeeded", "claimed", "succeeded"]
    assert [r.possible_duplicate_charges for r in harness.ledger.all(JOB)] == [0, 1, 0]


def test_collections_that_end_early_are_no_deaths(harness: BatchHarness) -> None:
    harness.upload_rows("red", "blue").deliver()
    harness.end_batches()
    harness.store.fail(OSError("S3 is down"), times=1_000_000)
    for _ in range(2 * TRIES):
        harness.collect()
        harness.clock.time += HOUR
    harness.store.failures.clear()
    harness.collect()
    assert states(harness) == ["succeeded"] * 2


def test_collectors_that_die_while_a_batch_runs_leave_its_answers_alone(
    harness: BatchHarness,
) -> None:
    """No answer was read then, so none can be the cause."""
    harness.upload_rows("red").deliver()
    for _ in range(TRIES + 1):
        collector = Worker("collector", harness.collect)
        while collector.at != "provider.status":
            collector.go()
        collector.kill()
        harness.clock.time += HOUR
    harness.end_batches()
    harness.collect()
    assert states(harness) == ["succeeded"]


def test_image_is_not_given_up_because_its_collector_is_out_of_time(harness: BatchHarness) -> None:
    harness.upload_rows("red", "blue").deliver()
    harness.store.refused = {f"{JOB}/images/000001.png"}
    harness.end_batches()
    harness.collect(lambda: 61.0)
    assert states(harness) == ["submitted"] * 2
    (name,) = harness.continued
    harness.store.refused = set()
    harness.collect(only=name)
    assert states(harness) == ["succeeded"] * 2


def test_row_that_is_to_fail_for_a_possible_charge_is_not_called_for_after_a_crash(
    harness: BatchHarness,
) -> None:
    harness.on_unknown_outcome = "fail"
    harness.upload_rows("red").deliver()
    harness.end_batches(lambda _: None)
    collector = Worker("collector", harness.collect)
    go_until(collector, lambda: harness.row.state is not RowState.SUBMITTED)
    collector.kill()
    harness.clock.time += HOUR
    harness.collect()
    assert harness.edit_live() == []
    assert reasons(harness) == [Reason.OUTCOME_UNKNOWN]
    assert harness.row.possible_duplicate_charges == 1


def test_image_that_cannot_be_stored_costs_only_its_own_row(harness: BatchHarness) -> None:
    harness.upload_rows("red", "blue").deliver()
    harness.store.refused = {f"{JOB}/images/000001.png"}
    harness.end_batches()
    harness.collect()
    assert states(harness) == ["succeeded", "claimed"]
    assert batch_states(harness) == [BatchState.CLOSED]
    assert [record.spent for record in harness.ledger.all(JOB)] == [0, PRICE]


def test_images_wait_in_their_batch_while_nothing_can_be_stored(harness: BatchHarness) -> None:
    harness.upload_rows("red").deliver()
    harness.end_batches()
    harness.store.fail(OSError("S3 is down"), times=1_000)
    harness.collect()
    assert states(harness) == ["submitted"]
    harness.store.failures.clear()
    harness.collect()
    assert states(harness) == ["succeeded"]


@pytest.mark.parametrize("answer", [None, ERROR])
def test_row_that_crashes_as_it_returns_keeps_no_other_row(
    harness: BatchHarness, monkeypatch: pytest.MonkeyPatch, answer: CallFailed | None
) -> None:
    harness.upload_rows("blue", "red")
    harness.deliver()
    harness.end_batches(lambda _: answer)
    harness.provider.batches["batch-0"].answers.reverse()  # that of the first row comes first
    take_back = harness.ledger.take_back

    def crashing(job: str, record: RowRecord, **money: Any) -> Claim | None:
        if record.key == "000000":
            raise KeyError(record.key)
        return take_back(job, record, **money)

    monkeypatch.setattr(harness.ledger, "take_back", crashing)
    harness.collect()
    assert [m.request.instruction for m in harness.edit_live()] == ["red"]
    assert states(harness) == ["submitted", "succeeded"]
    monkeypatch.undo()
    harness.collect()
    assert len(harness.edit_live()) == 1
    assert states(harness) == ["succeeded"] * 2


def test_charge_of_an_answer_whose_row_could_not_return_is_not_lost(
    harness: BatchHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.upload_rows("red").deliver()
    harness.end_batches(lambda _: EditResult((), cost_micro_usd=PRICE))  # cannot be processed

    def crashing(*_: object, **__: object) -> None:
        raise KeyError

    with monkeypatch.context() as broken:
        broken.setattr(harness.ledger, "take_back", crashing)
        harness.collect()
    assert states(harness) == ["submitted"]
    harness.collect()
    assert (harness.row.spent, harness.row.possible_duplicate_charges) == (0, 1)


def test_charge_of_an_answer_whose_row_left_while_it_crashed_is_not_lost(
    harness: BatchHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.upload_rows("red").deliver()
    harness.end_batches(lambda _: EditResult((), cost_micro_usd=PRICE))  # cannot be processed
    old, warn = harness.run.run, harness.telemetry.exception

    def upload_again(event: str, **fields: Any) -> None:
        if fields["tries"] == TRIES:
            harness.upload_rows("blue", number=2).deliver()
        warn(event, **fields)

    monkeypatch.setattr(harness.telemetry, "exception", upload_again)
    harness.collect()
    harness.collect()
    assert harness.ledger.counters(JOB, old).cost_micro_usd == PRICE


# Stop


def test_stop_cancels_at_the_provider_settles_what_was_done_and_ends_the_rest(
    harness: BatchHarness,
) -> None:
    harness.upload_rows("red", "blue").deliver()
    harness.batch_queue.send([harness.message(key="000002", instruction="late")])
    harness.ledger.stop(JOB)
    harness.clock.time += 20
    harness.collect()
    assert harness.provider.cancelled == ["batch-0"]
    harness.collect()
    assert harness.provider.cancelled == ["batch-0"]
    done = BatchStatus.CANCELLED
    harness.provider.end("batch-0", lambda p: image() if p == "red" else None, done)
    harness.collect()
    harness.deliver()
    assert states(harness) == ["succeeded", "failed", "failed"]
    assert reasons(harness)[1:] == [Reason.STOPPED, Reason.STOPPED]
    assert harness.run.state is RunState.STOPPED


# Long collections, and batches that cannot be collected


def test_collection_continues_where_its_time_ended(harness: BatchHarness) -> None:
    harness.upload_rows("a", "b", "c").deliver()
    harness.end_batches()
    left = iter([900.0, 900.0, 900.0, 10.0])
    harness.collect(lambda: next(left, 10.0))
    assert states(harness).count("succeeded") == 1
    (name,) = harness.continued
    harness.collect(only=name)
    assert states(harness) == ["succeeded"] * 3


def test_two_collectors_do_not_work_on_one_batch(harness: BatchHarness) -> None:
    harness.upload_rows("a").deliver()
    harness.end_batches()
    first = Worker("first", harness.collect)
    go_until(first, lambda: first.at == "provider.results")
    harness.collect()
    assert states(harness) == ["submitted"]
    first.finish()
    assert states(harness) == ["succeeded"]


def test_batch_of_an_endpoint_that_left_the_secret_waits_for_it(harness: BatchHarness) -> None:
    harness.upload_rows("a").deliver()
    harness.end_batches()
    harness.secret = FixedSecret(endpoints_secret("other"))
    harness.collect()
    assert harness.run.waiting is not None
    assert "endpoint openai-main has a batch under way" in harness.run.waiting.detail
    harness.secret = FixedSecret(endpoints_secret("openai-main"))
    harness.collect()
    assert states(harness) == ["succeeded"]


@pytest.mark.parametrize("on_unknown", ["retry", "fail"])
def test_rows_of_a_batch_that_is_lost_count_as_possibly_charged(
    harness: BatchHarness, on_unknown: str
) -> None:
    harness.on_unknown_outcome = on_unknown
    harness.upload_rows("a").deliver()
    harness.provider.batches.clear()
    harness.collect()
    assert states(harness) == ["submitted"]
    harness.clock.time += GIVE_UP_SECONDS
    harness.collect()
    assert harness.row.possible_duplicate_charges == 1
    if on_unknown == "fail":
        assert harness.result.reason is Reason.OUTCOME_UNKNOWN
    else:
        assert len(harness.edit_live()) == 1


# Crashes


def test_batch_whose_creation_had_no_answer_is_found_by_its_name(harness: BatchHarness) -> None:
    harness.provider.failures = [LOST]
    harness.upload_rows("red").deliver()
    harness.collect()
    assert batch_states(harness) == [BatchState.PREPARING]
    harness.clock.time += FIND_AFTER_SECONDS
    harness.end_batches()
    harness.collect()
    assert states(harness) == ["succeeded"]
    assert harness.provider.billed == {"red": 1}


def test_batch_that_was_never_created_returns_its_rows_unpaid(harness: BatchHarness) -> None:
    harness.upload_rows("red")
    worker = Worker("submitter", lambda: harness.submit(harness.receive()))
    go_until(worker, lambda: worker.at == "provider.create")
    worker.kill()
    harness.clock.time += 2 * HOUR
    harness.collect()
    harness.clock.time += 60
    harness.deliver()
    harness.end_batches()
    harness.collect()
    assert states(harness) == ["succeeded"]
    assert harness.provider.billed == {"red": 1}
    assert harness.row.attempts == 1


def go_until(worker: Worker, condition: Callable[[], bool]) -> None:
    while not worker.over and not condition():
        worker.go()


RESERVED = 100_018  # micro-USD: kept for the row without an answer, whose charge is not known
ANSWERS: dict[str, EditResult | CallFailed | None] = {
    "image": image(),
    "refused": REFUSED,
    "error": ERROR,
    "missing": None,
}


def run_job_to_its_end(harness: BatchHarness, kill_at: int) -> int:
    """Kill a process at the step of that number; the number of steps made.

    Later processes, started by the event source and the schedule, do what was left.
    """
    steps = 0

    def process(work: Callable[[], object]) -> Worker:
        nonlocal steps
        worker = Worker("process", work)
        while not worker.over:
            steps += 1
            if steps == kill_at:
                worker.kill()
            else:
                worker.go()
        return worker

    for _ in range(12):
        while batch := harness.receive():
            submitter = process(lambda batch=batch: harness.submit(batch))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            if not submitter.killed:
                kept = submitter.result
                assert isinstance(kept, list)
                harness.delete(batch, kept)
        harness.end_batches(lambda prompt: ANSWERS[prompt])
        process(harness.collect)
        harness.edit_live()
        harness.clock.time += HOUR
    return steps


def check_job(harness: BatchHarness, budget: int) -> None:
    assert states(harness) == ["succeeded", "failed", "succeeded", "succeeded"]
    assert reasons(harness) == [None, Reason.REFUSED, None, None]
    assert batch_states(harness) == [BatchState.CLOSED] * len(harness.batches.batches)
    assert harness.provider.billed.total() == 1, "the image is paid for once"
    counters = harness.ledger.counters(JOB, harness.run.run)
    assert counters.settled == 4
    assert counters.cost_micro_usd == PRICE + 2 * 2 * PRICE
    assert counters.possible_duplicate_charges == 1, "the row without an answer"
    assert harness.ledger.committed[JOB] == counters.cost_micro_usd + RESERVED <= budget
    assert harness.ledger.reserved[JOB] == 0
    assert harness.report_requests or harness.ledger.report_due(JOB)


def test_job_survives_a_process_killed_at_any_step() -> None:
    """Nothing is lost, nothing is paid for twice, and the budget is kept, wherever it happens."""
    whole = BatchHarness().upload_rows(*ANSWERS, budget_usd=2.0)
    steps = run_job_to_its_end(whole, kill_at=0)
    check_job(whole, 2_000_000)
    assert steps > 40
    for kill_at in range(1, steps + 1):
        harness = BatchHarness().upload_rows(*ANSWERS, budget_usd=2.0)
        run_job_to_its_end(harness, kill_at)
        check_job(harness, 2_000_000)
    assert replace(whole.run).run == "run-1"


# A later upload changes rows while their batch is collected


@pytest.mark.parametrize("answer", [ERROR, None])
def test_row_that_a_later_upload_takes_over_while_it_returns_from_its_batch_is_queued_again(
    harness: BatchHarness, answer: CallFailed | None
) -> None:
    harness.upload_rows("red").deliver()
    harness.end_batches(lambda _: answer)
    collector = Worker("collector", harness.collect)
    go_until(collector, lambda: collector.at == "ledger.take_back")
    harness.upload_rows("red", number=2).deliver()
    collector.finish()
    (message,) = harness.edit_live()
    assert message.run == "run-2"
    assert harness.ledger.counters(JOB, "run-2").succeeded == 1


def test_row_whose_image_a_later_upload_has_replaced_does_not_keep_its_batch_open(
    harness: BatchHarness,
) -> None:
    harness.upload(1, queued=2, mode="batch")
    named = [
        row_message("run-1", "000000", output_name="x.png", instruction="red"),
        row_message("run-1", "000001", instruction="blue"),
    ]
    harness.batch_queue.send(named)
    harness.deliver()
    harness.upload(2, queued=1, mode="batch")
    harness.batch_queue.send([row_message("run-2", "000009", output_name="x.png")])
    harness.deliver()
    first, second = (batch.name for batch in harness.batches.open())
    harness.end_batches()
    harness.collect(only=second)
    harness.collect(only=first)
    assert states(harness) == ["failed", "succeeded", "succeeded"]
    assert reasons(harness) == [Reason.SUPERSEDED, None, None]
    assert batch_states(harness) == [BatchState.CLOSED] * 2
    assert harness.ledger.counters(JOB, "run-1").cost_micro_usd == 2 * PRICE


def test_row_marked_without_our_knowing_leaves_no_closed_batch(harness: BatchHarness) -> None:
    harness.upload_rows("red")
    batch = harness.receive()
    submitter = Worker("submitter", lambda: harness.submit(batch))
    go_until(submitter, lambda: submitter.at == "ledger.mark_submitted")
    submitter.go(Fault.LOST_RESPONSE)
    submitter.finish()
    harness.delete(batch, [])
    harness.clock.time += HOUR
    harness.collect()
    harness.deliver()
    harness.end_batches()
    harness.collect()
    assert states(harness) == ["succeeded"]
    assert harness.provider.billed == {"red": 1}


def test_rows_of_a_batch_that_could_not_be_made_are_called_for_if_a_later_upload_is_live(
    harness: BatchHarness,
) -> None:
    harness.provider.failures = [FULL]
    harness.upload_rows("red")
    batch = harness.receive()
    submitter = Worker("submitter", lambda: harness.submit(batch))
    go_until(submitter, lambda: submitter.at == "provider.create")
    harness.upload(2, queued=1, mode="live")
    harness.clock.time += 60
    harness.queue.send([row_message("run-2", "000000", instruction="red")])
    harness.edit_live()
    submitter.finish()
    (message,) = harness.edit_live()
    assert message.run == "run-2"
    assert states(harness) == ["succeeded"]


def test_row_that_another_worker_claims_as_it_returns_does_not_fail_the_invocation(
    harness: BatchHarness,
) -> None:
    harness.provider.failures = [REFUSED]
    harness.upload_rows("red", max_attempts=1)
    batch = harness.receive()
    submitter = Worker("submitter", lambda: harness.submit(batch))
    go_until(submitter, lambda: submitter.at == "ledger.settle")
    again = harness.message(instruction="red")
    harness.ledger.claim(again, harness.run, "other", 90)
    submitter.finish()
    assert submitter.result == []
