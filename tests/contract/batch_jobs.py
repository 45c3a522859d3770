"""Jobs with mode=batch on fakes of AWS, with the real adapters and the simulated providers."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from darkroom.bootstrap import batch_provider
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.ports import BatchProvider
from darkroom.providers.registry import Provider
from darkroom_local.providers import Simulator
from tests.contract.provider_harness import KEY, NAME
from tests.fakes.batching import BatchHarness, FixedSecret
from tests.fakes.editing import JOB
from tests.fakes.lockstep import Worker

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

    def port_of(self, name: str) -> BatchProvider:
        return self.port

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
        return dict(Counter(record.state.value for record in self.ledger.all(JOB)))

    def cost(self) -> int:
        return self.ledger.counters(JOB, self.run.run).cost_micro_usd


def instructions(count: int) -> list[str]:
    return [f"make it warm [row:{row:03d}]" for row in range(count)]


@dataclass
class RandomKills:
    """Processes that die before a call of an outside service, with a probability of `rate`.

    `first_rate` is that of the kinds of calls at which none has died yet, so that rare ones have
    their turn.
    """

    rng: random.Random
    rate: float
    first_rate: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)  # by the name of the call
    kills: Counter[str] = field(default_factory=Counter)

    def run(self, work: Callable[[], object]) -> Worker:
        """Run a process to its end, or to its death."""
        worker = Worker("process", work)
        while not worker.over:
            call = worker.at
            self.calls[call] += 1
            rate = self.rate if self.kills[call] else max(self.rate, self.first_rate)
            if self.rng.random() < rate:
                self.kills[call] += 1
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


def run_to_the_end(harness: JobHarness, kills: RandomKills, *, messages: int = 10) -> None:
    """Submit and collect until each row is settled; `messages` for each submitter."""
    for _ in range(400):
        while batch := harness.receive_many(messages):
            work = kills.run(lambda batch=batch: harness.submit(batch))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            if not work.killed:
                assert isinstance(work.result, list), work.error
                harness.delete(batch, work.result)
        harness.wait_for_the_provider()
        kills.run(harness.collect)
        harness.clock.time += HOUR / 2
        counters = harness.ledger.counters(JOB, harness.run.run)
        if counters.settled == harness.run.totals.queued and not list(harness.batches.open()):
            return
    raise AssertionError(f"not done: {harness.by_state()}")
