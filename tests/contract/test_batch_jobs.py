"""Jobs with mode=batch through the real batch adapters and the simulated providers."""

import random
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from pydantic import SecretStr

from darkroom.batches.endpoints import BatchEndpoints
from darkroom.bootstrap import batch_provider
from darkroom.dispatch.state_cache import StateCache
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.errors import Reason
from darkroom.ledger.batches import BatchState
from darkroom.ports import BatchProvider
from darkroom.providers.registry import Provider
from darkroom_local.providers import Simulator, running
from tests.contract.provider_harness import BOTH, KEY, NAME
from tests.fakes.batching import BatchHarness, FixedSecret
from tests.fakes.editing import JOB
from tests.fakes.lockstep import Stepped, Worker

HOUR = 3600.0
TIMEOUT = 30.0


class JobHarness(BatchHarness):
    """The submitter and the collector on fakes of AWS, with one endpoint of a real adapter."""

    def __init__(self, simulator: Simulator, provider: Provider) -> None:
        super().__init__()
        self.simulator = simulator
        endpoint = Endpoint.model_validate(
            {
                "name": "e",
                "provider": provider,
                "api_keys": [KEY],
                "base_url": simulator.base_url(NAME),
            }
        )
        self.secret = FixedSecret(EndpointsSecret(endpoints=(endpoint,)))
        self.port = batch_provider(endpoint, SecretStr(KEY))

    def endpoints(self) -> BatchEndpoints:
        return BatchEndpoints(
            secret_source=self.secret,
            states=StateCache(self.states, self.clock, self.telemetry),
            provider_of=lambda endpoint, key: cast("BatchProvider", _Stepped(self.port)),
            clock=self.clock,
            telemetry=self.telemetry,
            rng=random.Random(1),
        )

    def configure(self, *faults: dict[str, Any], row_faults: Any = (), **batches: Any) -> None:
        settings = {"seconds": 0, "faults": faults, **batches}
        endpoint = {"mode": "fast", "faults": row_faults, "batches": settings}
        self.simulator.configure({"endpoints": {NAME: endpoint}})

    def wait_for_the_provider(self) -> None:
        for batch in list(self.batches.open()):
            while batch.batch_id and not self.port.status(batch.batch_id, TIMEOUT).status.ended:
                pass

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.simulator.stats()[NAME]
        return stats

    def by_state(self) -> dict[str, int]:
        states = [record.state.value for record in self.ledger.all(JOB)]
        return {state: states.count(state) for state in states}

    def cost(self) -> int:
        return self.ledger.counters(JOB, self.run.run).cost_micro_usd


class _Stepped:
    """Requests are steps; what makes none is passed on."""

    def __init__(self, provider: BatchProvider) -> None:
        self._provider = provider
        self._stepped = Stepped(provider, "provider")

    def __getattr__(self, name: str) -> Any:
        local = name in ("limits", "group", "request_line")
        return getattr(self._provider if local else self._stepped, name)


@pytest.fixture(params=BOTH, ids=lambda provider: provider.value)
def harness(request: pytest.FixtureRequest) -> Iterator[JobHarness]:
    with running() as simulator:
        job = JobHarness(simulator, request.param)
        job.configure()
        yield job


def instructions(count: int) -> list[str]:
    return [f"make it warm [row:{row:03d}]" for row in range(count)]


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


def kill_at_random(work: Callable[[], object], rng: random.Random, rate: float) -> Worker:
    """A process that dies before any call of an outside service with this probability."""
    worker = Worker("process", work)
    while not worker.over:
        if rng.random() < rate:
            worker.kill()
        else:
            worker.go()
    return worker


TENTHS: tuple[dict[str, Any], ...] = tuple(
    {"kind": kind, "rate": 0.1, "seconds": 0.2}
    for kind in (
        "slow",
        "expired",
        "failed_validation",
        "enqueued_limit",
        "lost_answer",
        "not_created",
        "cut_download",
        "error_lines",
        "duplicate_lines",
        "shuffled",
    )
)


def run_to_the_end(harness: JobHarness, rng: random.Random, rate: float) -> None:
    for _ in range(80):
        while batch := harness.batch_queue.receive(30, hide_seconds=960, wait_seconds=0):
            work = kill_at_random(lambda batch=batch: harness.submit(batch), rng, rate)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            if not work.killed:
                assert isinstance(work.result, list), work.error
                harness.delete(batch, work.result)
        harness.wait_for_the_provider()
        kill_at_random(harness.collect, rng, rate)
        harness.clock.time += HOUR / 2
        if harness.ledger.counters(JOB, harness.run.run).settled == harness.run.totals.queued:
            return
    raise AssertionError(f"not done: {harness.by_state()}")


def test_with_a_tenth_of_each_fault_and_dying_processes_nothing_is_lost_or_paid_twice(
    harness: JobHarness,
) -> None:
    count, budget = 150, 30.0
    harness.configure(*TENTHS, seconds=0.01)
    options: dict[str, Any] = {"batch_fallback": "batch", "max_attempts": 20, "budget_usd": budget}
    harness.upload_rows(*instructions(count), **options)
    run_to_the_end(harness, random.Random(7), rate=0.004)
    assert harness.by_state() == {"succeeded": count}
    stats = harness.stats()
    assert stats["batches"] > 10, "most faults happened"
    assert stats["paid_by_marker"] == {f"{row:03d}": 1 for row in range(count)}
    costs = {record.result.cost_micro_usd for record in harness.ledger.all(JOB) if record.result}
    assert len(costs) == 1
    assert harness.cost() == count * (costs.pop() or 0) <= budget * 1e6
    assert harness.ledger.committed[JOB] == harness.cost()
    assert harness.ledger.reserved[JOB] == 0
