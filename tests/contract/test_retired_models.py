"""A job whose model has been shut down waits, says what to do, and loses no row."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from darkroom.editor.row_editor import RowEditor
from darkroom.errors import Reason
from darkroom.rows import RowState
from tests.contract.provider_harness import OPENAI, Harness, running_harness
from tests.fakes.dispatching import DispatchHarness, openai, secret
from tests.fakes.editing import EditorHarness

ENDS, SUCCESSOR = "gpt-image-1.5", "gpt-image-2.6-sunburst"


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with running_harness() as harness:
        yield harness


class Job:
    """One row, the real dispatcher and adapters, and OpenAI on a given day."""

    def __init__(self, harness: Harness, day: str, *, retired: bool) -> None:
        self.harness = harness
        harness.set_up(retired_models=[ENDS] if retired else [])
        self.dispatch = DispatchHarness(self.endpoint(ENDS))
        self.editing = EditorHarness.with_job()
        self.pass_time_until(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())

    def endpoint(self, model: str) -> dict[str, Any]:
        base_url = self.harness.endpoint(OPENAI).base_url
        return openai(model=model, base_url=base_url, timeout_seconds=30)

    def pass_time_until(self, time: float) -> None:
        self.dispatch.clock.time = self.editing.clock.time = time

    def editor(self) -> RowEditor:
        worker = self.dispatch.worker({OPENAI: self.harness.openai}.__getitem__)
        return self.editing.editor(dispatcher=worker)

    def deliver(self, owner: str) -> None:
        """The message as the queue delivers it, again and again."""
        run, leases = self.editing.run, self.editing.leases()
        deadline = self.editing.clock.now() + 800
        self.editor().handle(self.editing.message(), run, owner, deadline, leases)


def test_until_its_end_the_model_is_called_and_its_end_is_a_warning_of_the_row(
    harness: Harness,
) -> None:
    job = Job(harness, "2026-11-30", retired=False)
    job.deliver("worker")
    result = job.editing.row.result
    assert result is not None
    assert result.status is RowState.SUCCEEDED
    assert result.model == ENDS
    (warning,) = [w for w in result.warnings if "shut down" in w]
    assert warning.startswith(f"{ENDS} will be shut down by OpenAI on 2026-12-01: use {SUCCESSOR}")


def test_after_its_end_rows_wait_for_a_new_model_without_spending_attempts(
    harness: Harness,
) -> None:
    job = Job(harness, "2026-12-02", retired=True)
    for delivery in range(8):  # more than the five attempts of a row
        job.deliver(f"worker-{delivery}")
        job.pass_time_until(job.editing.clock.now() + 700)
    row, waiting = job.editing.row, job.editing.run.waiting
    assert not row.state.terminal
    assert row.attempts == 0
    assert harness.stats()["paid_images"] == 0
    assert waiting is not None
    assert waiting.reason is Reason.MODEL_UNAVAILABLE
    assert ENDS in waiting.detail
    assert f"name its successor {SUCCESSOR} in openai and push the endpoints again" in (
        waiting.detail
    )

    job.dispatch.secret_source.current = secret(job.endpoint(SUCCESSOR))
    job.pass_time_until(job.editing.clock.now() + 700)
    job.deliver("last")
    result = job.editing.row.result
    assert result is not None
    assert (result.status, result.model) == (RowState.SUCCEEDED, SUCCESSOR)
    assert job.editing.run.waiting is None


def test_a_row_that_names_the_model_itself_gets_that_as_its_detail(harness: Harness) -> None:
    job = Job(harness, "2026-12-02", retired=True)
    job.dispatch.secret_source.current = secret(job.endpoint(SUCCESSOR))
    message = job.editing.message(model=ENDS)
    deadline = job.editing.clock.now() + 800
    job.editor().handle(message, job.editing.run, "w", deadline, job.editing.leases())
    result = job.editing.row.result
    assert result is not None
    assert (result.status, result.reason) == (RowState.FAILED, Reason.BAD_REQUEST)
    assert ENDS in result.detail
    assert f"name its successor {SUCCESSOR} in the column or option model" in result.detail
