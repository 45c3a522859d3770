"""One row through the editor: what each outcome leads to, and what is told of it."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image

from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.editor.batch import TIMINGS, Leases
from darkroom.editor.image_storage import ImageStorage
from darkroom.editor.row_editor import RowEditor, model_for
from darkroom.endpoints import Endpoint
from darkroom.errors import DeferRow, Reason, RetryRow, RowRejected, ServiceUnavailable
from darkroom.jobs import JobOptions, Run, RunState, Totals
from darkroom.ports import CallContext, DispatchResult
from darkroom.providers.registry import Provider
from darkroom.rows import RowMessage, RowRecord, RowRequest, RowState
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.services import FakeClock, FakeQueue, FakeStore, FakeTelemetry

JOB = "jobs/products"
IMAGE = f"{JOB}/images/000000.png"


def picture(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def endpoint(provider: str = "openai", **fields: Any) -> Endpoint:
    model = "gpt-image-1.5" if provider == "openai" else "gemini-3-pro-image"
    given = {"name": f"{provider}-main", "provider": provider, "api_keys": ["k"], "model": model}
    return Endpoint.model_validate(given | fields)


type Answer = EditResult | CallFailed | Exception


@dataclass
class ScriptedDispatcher:
    """Makes the scripted calls of one attempt, each as the real one would tell of it."""

    attempts: list[list[Answer]] = field(default_factory=list)
    errands: list[CallContext] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None

    def dispatch(self, context: CallContext, deadline: float) -> DispatchResult:
        self.errands.append(context)
        last: Answer | None = None
        for answer in self.attempts.pop(0):
            last = answer
            if not isinstance(answer, EditResult | CallFailed):
                raise answer
            where = endpoint()
            plan = context.plan(where)
            context.before_call(where, plan)
            self.meanwhile()
            context.after_call(where, plan, answer)
            if isinstance(answer, EditResult):
                return DispatchResult(answer, plan, where, True, 1234, 0, 1, ("slow down",))
        assert isinstance(last, CallFailed)
        if last.outcome.blames_row:
            raise RowRejected(last.reason, last.detail)
        raise RetryRow(last.reason, last.detail, endpoint="openai-main", provider="openai")


@dataclass
class Fetcher:
    files: dict[str, bytes | Exception] = field(default_factory=dict)

    def fetch(self, reference: str, base: str) -> bytes:
        found = self.files[reference]
        if isinstance(found, Exception):
            raise found
        return found


class Desk:
    """An editor with all its fakes, and one job in it."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.ledger = FakeLedger(self.clock)
        self.store = FakeStore()
        self.queue = FakeQueue()
        self.telemetry = FakeTelemetry()
        self.dispatcher = ScriptedDispatcher()
        self.fetcher = Fetcher()
        run = self.ledger.start(running(JOB, options=JobOptions(**options)), 90)
        assert run is not None
        self.ledger.finish_split(run, Totals(rows=1, queued=1), ())
        self.on_unknown = "retry"
        self.deliveries = 0

    def editor(self) -> RowEditor:
        return RowEditor(
            rows=self.ledger,
            images=ImageStorage(self.store, self.clock, self.telemetry),
            queue=self.queue,
            fetcher=self.fetcher,
            dispatcher=self.dispatcher,
            clock=self.clock,
            telemetry=self.telemetry,
            on_unknown_outcome=self.on_unknown,
            rng=lambda: 0.5,
        )

    @property
    def run(self) -> Run:
        run = self.ledger.current(JOB)
        assert run is not None
        return run

    def message(self, **wish: Any) -> RowMessage:
        request = RowRequest(**({"instruction": "a red hat"} | wish))
        return RowMessage(
            job=JOB, run=self.run.run, row=0, key="000000", base="s3://in/", request=request
        )

    def handle(self, *answers: Answer, message: RowMessage | None = None) -> float | None:
        self.dispatcher.attempts.append(list(answers))
        self.deliveries += 1
        wanted = message or self.message()
        deadline = self.clock.now() + 800
        return self.editor().handle(wanted, self.run, f"w{self.deliveries}", deadline, Leases())

    @property
    def row(self) -> RowRecord:
        return self.ledger.rows[JOB, "000000"]


ANSWER = EditResult((picture(),), "gpt-image-1.5-2025", cost_micro_usd=40_000)
REFUSED = CallFailed(Outcome.REFUSED, "not this")
DOWN = CallFailed(Outcome.UNAVAILABLE, "503")
TIMED_OUT = CallFailed(Outcome.UNAVAILABLE, "timed out", maybe_charged=True)


def test_an_image_is_stored_with_its_provenance_and_the_row_succeeds() -> None:
    desk = Desk()
    assert desk.handle(ANSWER) is None
    result = desk.row.result
    assert result is not None
    assert (desk.row.state, result.outputs) == (RowState.SUCCEEDED, (IMAGE,))
    assert (result.provider, result.endpoint) == ("openai", "openai-main")
    assert (result.model, result.fallback) == ("gpt-image-1.5-2025", True)
    assert (result.latency_ms, result.cost_micro_usd) == (1234, 40_000)
    assert result.warnings[-1] == "slow down"
    body, kind, metadata = desk.store.objects[IMAGE]
    assert (body, kind) == (picture(), "image/png")
    assert metadata["row"] == "000000"
    assert metadata["fingerprint"] == desk.row.fingerprint
    assert f"{JOB}/thumbs/000000-after.webp" in desk.store.objects
    metrics = desk.telemetry.metrics
    assert (metrics["RowsSucceeded"], metrics["FallbackUsed"], metrics["CostUSD"]) == (1, 1, 0.04)


def test_several_images_lie_beside_each_other_in_the_format_asked_for() -> None:
    desk = Desk()
    answer = EditResult((picture(), picture("blue")), "m", cost_micro_usd=None)
    assert desk.handle(answer, message=desk.message(output_name="a/hat.webp", n=2)) is None
    result = desk.row.result
    assert result is not None
    assert result.outputs == (f"{JOB}/images/a/hat.webp", f"{JOB}/images/a/hat-1.webp")
    assert result.cost_micro_usd is None
    assert desk.store.objects[result.outputs[1]][1] == "image/webp"
    assert desk.ledger.counters(JOB, desk.run.run).unpriced == 1


def test_a_row_done_already_is_not_called_again() -> None:
    desk = Desk()
    desk.handle(ANSWER)
    assert desk.handle() is None
    assert len(desk.dispatcher.errands) == 1
    assert desk.telemetry.metrics["DuplicateSuppressed"] == 1


def test_a_refusal_ends_the_row_as_failed_with_its_reason() -> None:
    desk = Desk()
    assert desk.handle(REFUSED) is None
    assert desk.row.result is not None
    assert (desk.row.state, desk.row.result.reason) == (RowState.FAILED, Reason.REFUSED)
    assert desk.queue.dead == []
    assert desk.telemetry.metrics["RowsFailed"] == 1


def test_a_failed_attempt_comes_back_later_each_time_and_at_last_is_dead() -> None:
    desk = Desk(max_attempts=3)
    assert [desk.handle(DOWN), desk.handle(DOWN)] == [10.0, 20.0]
    assert desk.handle(DOWN) is None
    assert desk.row.state is RowState.DEAD
    ((body, attributes),) = desk.queue.dead
    assert RowMessage.model_validate_json(body) == desk.message().model_copy(
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
    assert desk.telemetry.metrics["RowsDead"] == 1


def test_the_providers_own_delay_is_kept_if_it_is_longer() -> None:
    desk = Desk()
    assert desk.handle(RetryRow(Reason.RATE_LIMITED, "429", delay_seconds=120)) == 120


def test_deferring_costs_no_attempt() -> None:
    desk = Desk(max_attempts=1)
    for _ in range(5):
        assert desk.handle(DeferRow("no slot", delay_seconds=77)) == 77
    assert desk.handle(ANSWER) is None
    assert (desk.row.state, desk.row.attempts) == (RowState.SUCCEEDED, 1)


def test_a_row_in_another_workers_hands_is_left_alone() -> None:
    desk = Desk()
    desk.ledger.claim(desk.message(), desk.run, "other", 90)
    assert desk.handle() == TIMINGS.held_delay_seconds
    assert desk.dispatcher.errands == []


def test_a_worker_that_lost_its_lease_neither_calls_nor_settles() -> None:
    desk = Desk()

    def another_takes_it() -> None:
        desk.clock.time += 1000
        desk.ledger.claim(desk.message(), desk.run, "other", 90)

    desk.dispatcher.meanwhile = another_takes_it
    assert desk.handle(DOWN) == TIMINGS.held_delay_seconds
    assert desk.row.lease_owner == "other"
    assert desk.row.state is RowState.SENT  # the other one's to find out


def test_a_crash_after_storing_is_found_again_by_the_stored_image() -> None:
    desk = Desk()
    desk.ledger.settle = _fail_once(desk.ledger.settle)  # type: ignore[method-assign]
    assert desk.handle(ANSWER) == TIMINGS.aws_delay_seconds
    desk.clock.time += 100
    assert desk.handle() is None
    assert len(desk.dispatcher.errands) == 1
    result = desk.row.result
    assert result is not None
    assert (result.status, result.endpoint) == (RowState.SUCCEEDED, "openai-main")
    assert (result.cost_micro_usd, result.fallback, result.latency_ms) == (40_000, True, 1234)
    assert result.warnings[-1] == "slow down"
    assert desk.row.possible_duplicate_charges == 0


def _fail_once[**P, R](method: Callable[P, R]) -> Callable[P, R]:
    failed = False

    def failing(*args: P.args, **named: P.kwargs) -> R:
        nonlocal failed
        if not failed:
            failed = True
            raise ServiceUnavailable("throttled")
        return method(*args, **named)

    return failing


def _lost_in_flight(desk: Desk) -> None:
    desk.ledger.mark_failed_call = _fail_once(desk.ledger.mark_failed_call)  # type: ignore[method-assign]
    assert desk.handle(DOWN) == TIMINGS.aws_delay_seconds
    assert desk.row.state is RowState.SENT
    desk.clock.time += 100


def test_an_unknown_outcome_is_retried_and_counted() -> None:
    desk = Desk()
    _lost_in_flight(desk)
    assert desk.handle(ANSWER) is None
    assert (desk.row.state, desk.row.possible_duplicate_charges) == (RowState.SUCCEEDED, 1)
    assert desk.telemetry.metrics["PossibleDuplicateCharges"] == 1


def test_an_unknown_outcome_fails_the_row_where_the_operator_wants_that() -> None:
    desk = Desk()
    _lost_in_flight(desk)
    desk.on_unknown = "fail"
    assert desk.handle(ANSWER) is None
    assert desk.row.result is not None
    assert desk.row.result.reason is Reason.OUTCOME_UNKNOWN
    assert desk.row.possible_duplicate_charges == 1
    assert len(desk.dispatcher.errands) == 1


def test_a_call_that_may_have_been_billed_is_counted_when_it_is_made_again() -> None:
    desk = Desk()
    assert desk.handle(TIMED_OUT, DOWN, ANSWER) is None
    assert desk.row.possible_duplicate_charges == 1


def test_a_billed_answer_without_a_usable_image_is_counted_and_costs_what_it_cost() -> None:
    desk = Desk(budget_usd=5)
    broken = CallFailed(Outcome.UNAVAILABLE, "broken", maybe_charged=True, cost_micro_usd=30_000)
    assert desk.handle(broken, ANSWER) is None
    assert desk.row.possible_duplicate_charges == 1
    assert desk.row.result is not None
    assert desk.row.result.cost_micro_usd == 70_000
    assert desk.ledger.committed[JOB] == 70_000


def test_an_image_that_cannot_be_stored_for_the_moment_is_not_given_up() -> None:
    desk = Desk()
    desk.store.put = _fail_once(desk.store.put)  # type: ignore[method-assign]
    assert desk.handle(ANSWER) is None
    assert desk.row.state is RowState.SUCCEEDED
    assert IMAGE in desk.store.objects


def test_a_redo_takes_the_place_of_the_earlier_image() -> None:
    desk = Desk()
    desk.handle(ANSWER)
    _upload_again(desk, resume=False)
    blue = EditResult((picture("blue"),), "m", cost_micro_usd=1)
    assert desk.handle(blue, message=desk.message().model_copy(update={"redo": True})) is None
    assert desk.store.objects[IMAGE][0] == picture("blue")


def _upload_again(desk: Desk, **options: Any) -> None:
    again = running(JOB, run="run-2", sequencer="02", options=JobOptions(**options))
    run = desk.ledger.start(again, 90)
    assert run is not None
    desk.ledger.finish_split(run, Totals(rows=1, queued=1), ())


def test_a_worker_of_an_old_upload_does_not_overwrite_the_new_ones_image() -> None:
    desk = Desk()
    old = desk.message()

    def the_new_upload_is_faster() -> None:
        desk.dispatcher.meanwhile = lambda: None
        desk.clock.time += 1000
        _upload_again(desk)
        blue = EditResult((picture("blue"),), "m", cost_micro_usd=1)
        assert desk.handle(blue, message=desk.message(instruction="a blue hat")) is None

    desk.dispatcher.meanwhile = the_new_upload_is_faster
    assert desk.handle(ANSWER, message=old) == TIMINGS.held_delay_seconds
    assert desk.store.objects[IMAGE][0] == picture("blue")
    assert desk.handle(message=old) is None


def test_a_slower_worker_takes_the_image_of_the_faster_one() -> None:
    desk = Desk()

    def another_is_faster() -> None:
        desk.dispatcher.meanwhile = lambda: None
        desk.clock.time += 1000
        blue = EditResult((picture("blue"),), "m", cost_micro_usd=1)
        assert desk.handle(blue) is None

    desk.dispatcher.meanwhile = another_is_faster
    assert desk.handle(ANSWER) == TIMINGS.held_delay_seconds
    assert desk.store.objects[IMAGE][0] == picture("blue")
    assert desk.row.possible_duplicate_charges == 1


def test_a_row_beyond_the_budget_fails_and_nothing_is_called() -> None:
    desk = Desk(budget_usd=0.000001)
    assert desk.handle(ANSWER) is None
    assert desk.row.result is not None
    assert desk.row.result.reason is Reason.BUDGET
    assert "larger budget-usd" in desk.row.result.detail
    assert desk.row.state is RowState.FAILED
    assert desk.store.objects == {}


def test_the_budget_keeps_what_was_spent_and_gives_back_the_rest() -> None:
    desk = Desk(budget_usd=5)
    desk.handle(CallFailed(Outcome.UNAVAILABLE, "503", cost_micro_usd=500), ANSWER)
    assert desk.ledger.committed[JOB] == 40_500
    assert desk.row.result is not None
    assert desk.row.result.cost_micro_usd == 40_500


def test_a_model_without_a_price_cannot_be_used_under_a_budget() -> None:
    desk = Desk(budget_usd=5)
    assert desk.handle(ANSWER, message=desk.message(model="somebodys-own-model")) is None
    assert desk.row.result is not None
    assert desk.row.result.reason is Reason.BUDGET
    assert "somebodys-own-model" in desk.row.result.detail


def test_a_stopped_job_ends_rows_that_were_not_sent() -> None:
    desk = Desk()
    desk.ledger.stop(JOB)
    assert desk.handle(ANSWER) is None
    assert desk.row.result is not None
    assert desk.row.result.reason is Reason.STOPPED
    assert desk.dispatcher.errands == []


def test_messages_of_a_file_that_was_refused_go_away() -> None:
    desk = Desk()
    desk.ledger.fail(desk.run, "cut off")
    assert desk.run.state is RunState.FAILED
    assert desk.handle(ANSWER) is None
    assert desk.ledger.rows == {}


def test_a_row_that_kills_its_workers_is_buried_without_another_call() -> None:
    desk = Desk(max_attempts=1)
    desk.ledger.claim(desk.message(), desk.run, "killed", 90)
    desk.clock.time += 100
    assert desk.handle(ANSWER) is None
    assert desk.row.result is not None
    assert (desk.row.state, desk.row.result.reason) == (RowState.DEAD, Reason.WORKER_LOST)
    assert desk.dispatcher.errands == []


def test_a_bug_costs_attempts_and_tells_its_name_not_its_text() -> None:
    desk = Desk(max_attempts=2)
    assert desk.handle(ZeroDivisionError("secret")) == 10.0
    assert desk.handle(ZeroDivisionError("secret")) is None
    assert desk.row.result is not None
    assert desk.row.result.reason is Reason.WORKER_LOST
    assert "ZeroDivisionError" in desk.row.result.detail
    assert "secret" not in json.dumps(desk.queue.dead)


def test_a_bug_after_the_call_was_sent_leaves_its_charge_counted_and_committed() -> None:
    desk = Desk(max_attempts=1, budget_usd=5)

    def crash() -> None:
        raise ZeroDivisionError

    desk.dispatcher.meanwhile = crash
    assert desk.handle(ANSWER) is None
    assert (desk.row.state, desk.row.possible_duplicate_charges) == (RowState.DEAD, 1)
    assert desk.ledger.committed[JOB] > 0


def test_aws_failing_at_the_claim_brings_the_message_back() -> None:
    desk = Desk()
    desk.ledger.claim = _fail_once(desk.ledger.claim)  # type: ignore[method-assign]
    assert desk.handle(ANSWER) == TIMINGS.aws_delay_seconds
    desk.dispatcher.attempts.clear()
    assert desk.handle(ANSWER) is None


def test_aws_failing_before_the_call_costs_no_attempt() -> None:
    desk = Desk()
    assert desk.handle(ServiceUnavailable("throttled")) == TIMINGS.aws_delay_seconds
    assert desk.row.attempts == 0


MISSING = RowRejected(Reason.BAD_IMAGE, "there is no such object")
AWAY = RetryRow(Reason.IMAGE_UNAVAILABLE, "its host is down")


def test_a_broken_reference_is_skipped_with_a_warning_if_another_loads() -> None:
    desk = Desk()
    desk.fetcher.files = {"a.png": MISSING, "b.png": picture()}
    assert desk.handle(ANSWER, message=desk.message(images=("a.png", "b.png"))) is None
    assert desk.row.result is not None
    assert desk.row.result.warnings[0] == "skipped a.png: there is no such object"
    assert f"{JOB}/thumbs/000000-before.webp" in desk.store.objects


def test_a_row_of_which_no_reference_loads_fails() -> None:
    desk = Desk()
    desk.fetcher.files = {"a.png": MISSING}
    assert desk.handle(ANSWER, message=desk.message(images=("a.png",))) is None
    assert desk.row.result is not None
    assert desk.row.result.reason is Reason.BAD_IMAGE


def test_a_reference_that_may_load_later_is_waited_for_but_not_for_ever() -> None:
    desk = Desk(max_attempts=2)
    desk.fetcher.files = {"a.png": AWAY, "b.png": picture()}
    wanted = desk.message(images=("a.png", "b.png"))
    assert desk.handle(message=wanted) == 10.0
    desk.dispatcher.attempts.clear()
    assert desk.handle(ANSWER, message=wanted) is None
    assert desk.row.state is RowState.SUCCEEDED
    assert desk.row.result is not None
    assert desk.row.result.warnings[0] == "skipped a.png: its host is down"


def test_a_broken_mask_fails_the_row() -> None:
    desk = Desk()
    desk.fetcher.files = {"a.png": picture(), "m.png": MISSING}
    assert desk.handle(ANSWER, message=desk.message(images=("a.png",), mask="m.png")) is None
    assert desk.row.result is not None
    assert desk.row.result.reason is Reason.BAD_IMAGE
    assert desk.row.result.detail.startswith("mask: ")


@pytest.mark.parametrize(
    ("wanted", "provider", "model"),
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
def test_a_rows_model_is_used_where_its_provider_is(
    wanted: str | None, provider: str, model: str
) -> None:
    assert model_for(wanted, endpoint(Provider(provider).value)) == model


def test_an_endpoint_that_uses_another_model_than_asked_says_so() -> None:
    desk = Desk()
    wanted = desk.message(model="gemini-2.5-flash-image")
    assert desk.handle(ANSWER, message=wanted) is None
    assert desk.row.result is not None
    assert any("gemini-2.5-flash-image is not openai's" in w for w in desk.row.result.warnings)
