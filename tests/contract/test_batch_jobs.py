"""Jobs with mode=batch through the real batch adapters and the simulated providers."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from darkroom.errors import Reason
from darkroom.ledger.batches import BatchState
from darkroom_local.providers import running
from tests.contract.batch_jobs import (
    HOUR,
    TENTHS,
    JobHarness,
    RandomKills,
    instructions,
    run_to_the_end,
)
from tests.contract.provider_harness import BOTH
from tests.fakes.editing import JOB


@pytest.fixture(params=BOTH, ids=lambda provider: provider.value)
def harness(request: pytest.FixtureRequest) -> Iterator[JobHarness]:
    with running() as simulator:
        job = JobHarness(simulator, request.param)
        job.configure()
        yield job


def run_once(harness: JobHarness) -> None:
    harness.deliver()
    harness.wait_for_the_provider()
    harness.collect()


def test_every_row_of_a_job_gets_its_image_at_half_price(harness: JobHarness) -> None:
    harness.upload_rows(*instructions(7))
    run_once(harness)
    assert harness.by_state() == {"succeeded": 7}
    stats = harness.stats()
    assert (stats["batches"], stats["paid_images"], stats["half_price_images"]) == (1, 7, 7)
    assert stats["files"] == 0, "the provider's files are deleted"
    assert [batch.state for batch in harness.batches.batches.values()] == [BatchState.CLOSED]
    assert harness.report_requests == [JOB]
    costs = [record.result.cost_micro_usd for record in harness.ledger.all(JOB) if record.result]
    assert len(set(costs)) == 1
    assert harness.cost() == sum(cost or 0 for cost in costs) > 0


def test_rows_that_the_provider_refuses_end_as_they_do_live(harness: JobHarness) -> None:
    faults = [
        {"kind": "refused", "when": {"prompt_contains": "[row:001]"}},
        {"kind": "text_only", "when": {"prompt_contains": "[row:002]"}},
        {"kind": "bad_request", "when": {"prompt_contains": "[row:003]"}},
    ]
    harness.configure(row_faults=faults)
    harness.upload_rows(*instructions(5))
    run_once(harness)
    reasons = [
        record.result.reason if record.result else None for record in harness.ledger.all(JOB)
    ]
    assert reasons == [None, Reason.REFUSED, Reason.NO_IMAGE, Reason.BAD_REQUEST, None]
    assert harness.by_state() == {"succeeded": 2, "failed": 3}


def test_a_stopped_job_cancels_its_batch_and_no_row_is_left(harness: JobHarness) -> None:
    harness.configure(seconds=600)
    harness.upload_rows(*instructions(3)).deliver()
    harness.ledger.stop(JOB)
    harness.clock.time += HOUR
    harness.collect()  # cancels
    harness.wait_for_the_provider()
    harness.collect()
    assert harness.by_state() == {"failed": 3}
    assert harness.stats()["paid_images"] == 0


def test_with_a_tenth_of_each_fault_and_dying_processes_nothing_is_lost_or_paid_twice(
    harness: JobHarness,
) -> None:
    count, budget = 150, 30.0
    harness.configure(*TENTHS, seconds=0.01)
    options: dict[str, Any] = {"batch_fallback": "batch", "max_attempts": 20, "budget_usd": budget}
    harness.upload_rows(*instructions(count), **options)
    run_to_the_end(harness, RandomKills(random.Random(7), rate=0.004))
    assert harness.by_state() == {"succeeded": count}
    stats = harness.stats()
    assert stats["batches"] > 10, "most faults happened"
    assert stats["paid_by_marker"] == {f"{row:03d}": 1 for row in range(count)}
    costs = {record.result.cost_micro_usd for record in harness.ledger.all(JOB) if record.result}
    assert len(costs) == 1
    assert harness.cost() == count * (costs.pop() or 0) <= budget * 1e6
    assert harness.ledger.committed[JOB] == harness.cost()
    assert harness.ledger.reserved[JOB] == 0
