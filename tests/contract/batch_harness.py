"""The real batch adapters with the simulated providers, over HTTP."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from darkroom.batches.provider_batch import BatchAnswer, ProviderBatch
from darkroom.bootstrap import batch_provider
from darkroom.calls import CallPlan
from darkroom.endpoints import Endpoint
from darkroom.models.planner import plan_call
from darkroom.ports import BatchProvider
from darkroom.providers.registry import Provider
from darkroom.rows import RowRequest
from darkroom_local.providers import running
from tests.contract.provider_harness import KEY, TODAY, Harness, photo

TIMEOUT = 30.0


@dataclass
class Batches:
    """One endpoint of a provider, its batch interface, and the plans of what was submitted."""

    harness: Harness
    provider: Provider
    fields: dict[str, Any] = field(default_factory=dict)
    plans: dict[str, CallPlan] = field(default_factory=dict)
    ports: dict[str, BatchProvider] = field(default_factory=dict)  # by `fields`

    def set_up(self, *faults: Mapping[str, Any], mode: str = "fast", **batches: Any) -> None:
        settings = {"seconds": 0, "faults": faults, **batches}
        self.harness.set_up(mode=mode, batches=settings)

    @property
    def endpoint(self) -> Endpoint:
        return self.harness.endpoint(self.provider, **self.fields)

    @property
    def port(self) -> BatchProvider:
        key = str(self.fields)
        if key not in self.ports:
            self.ports[key] = batch_provider(self.endpoint, SecretStr(KEY))
        return self.ports[key]

    def plan(self, custom_id: str, *images: Any, **fields: Any) -> CallPlan:
        """`fields` as for RowRequest."""
        request = RowRequest.model_validate(
            {"instruction": f"make it warm [row:{custom_id}]", **fields}
        )
        plan = plan_call(request, images or (photo(),), None, self.endpoint, TODAY, batch=True)
        self.plans[custom_id] = plan
        return plan

    def file_of(self, plans: Mapping[str, CallPlan]) -> io.BytesIO:
        lines = [self.port.request_line(custom_id, plan) for custom_id, plan in plans.items()]
        return io.BytesIO(b"".join(lines))

    def submit(self, count: int = 3, *, name: str = "darkroom-1", **fields: Any) -> ProviderBatch:
        """A batch with the rows r0, r1, …"""
        plans = {f"r{i}": self.plan(f"r{i}", **fields) for i in range(count)}
        return self.create(name, plans)

    def create(self, name: str, plans: Mapping[str, CallPlan]) -> ProviderBatch:
        group = self.port.group(next(iter(plans.values())))
        return self.port.create(name, group, self.file_of(plans), TIMEOUT)

    def ended(self, batch: ProviderBatch) -> ProviderBatch:
        for _ in range(20_000):
            if batch.status.ended:
                return batch
            batch = self.port.status(batch.id, TIMEOUT)
        raise AssertionError(f"still {batch.status}")

    def answers(self, batch: ProviderBatch, position: str = "") -> list[BatchAnswer]:
        answers = self.port.results(batch, self.plans.get, TIMEOUT, position=position)
        return list(answers)

    def stats(self) -> dict[str, Any]:
        return self.harness.stats()


@contextmanager
def running_batches(provider: Provider) -> Iterator[Batches]:
    with running() as simulator:
        harness = Harness(simulator)
        batches = Batches(harness, provider)
        batches.set_up()
        yield batches
        harness.close()
