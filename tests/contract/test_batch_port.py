"""ports.BatchProvider: the tests' fake, and both adapters with the simulated providers."""

import itertools
from collections.abc import Iterator
from typing import Protocol, cast

import pytest

from darkroom.batches.provider_batch import BatchAnswer, BatchStatus, ProviderBatch
from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.ports import BatchProvider
from darkroom.providers.registry import Provider
from tests.contract.batch_harness import TIMEOUT, Batches, running_batches
from tests.fakes.batching import FakeBatchProvider


class Account(Protocol):
    """What a provider's account does by itself, beside the port to it."""

    @property
    def port(self) -> BatchProvider: ...

    def plan(self, custom_id: str) -> CallPlan: ...

    def create(self, name: str, plans: dict[str, CallPlan]) -> ProviderBatch: ...

    def loses_the_next_answer(self) -> None: ...

    def ended(self, batch: ProviderBatch) -> ProviderBatch:
        """Wait until the provider has ended the batch."""


class FakeAccount:
    def __init__(self) -> None:
        clock = itertools.count(1_000)
        self.provider = FakeBatchProvider(lambda: float(next(clock)), list_lag_seconds=0)

    @property
    def port(self) -> BatchProvider:
        return self.provider

    def plan(self, custom_id: str) -> CallPlan:
        return CallPlan(Provider.OPENAI, "gpt-image-1.5", custom_id)

    def create(self, name: str, plans: dict[str, CallPlan]) -> ProviderBatch:
        return Batches.create(cast("Batches", self), name, plans)

    def file_of(self, plans: dict[str, CallPlan]) -> object:
        return Batches.file_of(cast("Batches", self), plans)

    def loses_the_next_answer(self) -> None:
        lost = CallFailed(Outcome.UNAVAILABLE, "no response", maybe_charged=True)
        self.provider.failures.append(lost)

    def ended(self, batch: ProviderBatch) -> ProviderBatch:
        if batch.id in self.provider.cancelled:
            self.provider.end(batch.id, lambda _: None, BatchStatus.CANCELLED)
        elif not self.provider.status(batch.id, TIMEOUT).status.ended:
            self.provider.end(batch.id)
        return self.provider.status(batch.id, TIMEOUT)


class SimulatedAccount(Batches):
    def loses_the_next_answer(self) -> None:
        self.set_up({"kind": "lost_answer", "count": 1})


@pytest.fixture(params=["fake", *Provider])
def account(request: pytest.FixtureRequest) -> Iterator[Account]:
    if request.param == "fake":
        yield FakeAccount()
        return
    with running_batches(request.param) as batches:
        yield SimulatedAccount(batches.harness, batches.provider)


def submitted(account: Account, count: int = 3, name: str = "darkroom-1") -> ProviderBatch:
    return account.create(name, {f"r{i}": account.plan(f"r{i}") for i in range(count)})


def answers(account: Account, batch: ProviderBatch, position: str = "") -> list[BatchAnswer]:
    return list(account.port.results(batch, account.plan, TIMEOUT, position=position))


def test_each_request_is_answered_once_under_its_id(account: Account) -> None:
    batch = account.ended(submitted(account))
    assert batch.status is BatchStatus.SUCCEEDED
    found = answers(account, batch)
    assert sorted(str(answer.custom_id) for answer in found) == ["r0", "r1", "r2"]
    assert all(isinstance(answer.outcome, EditResult) for answer in found)


def test_results_continue_after_an_answer(account: Account) -> None:
    batch = account.ended(submitted(account, 5))
    found = answers(account, batch)
    for number, answer in enumerate(found, 1):
        rest = answers(account, batch, answer.position)
        assert [a.custom_id for a in rest] == [a.custom_id for a in found[number:]]


def test_an_answer_can_be_passed_over(account: Account) -> None:
    batch = account.ended(submitted(account, 4))
    found = answers(account, batch)
    port, after = account.port, found[0].position
    passed, *rest = port.results(batch, account.plan, TIMEOUT, position=after, pass_over=True)
    assert passed.custom_id is None
    assert isinstance(passed.outcome, CallFailed)
    assert passed.outcome.maybe_charged
    assert passed.position == found[1].position
    assert [answer.custom_id for answer in rest] == [answer.custom_id for answer in found[2:]]


def test_a_batch_has_its_name_and_its_id(account: Account) -> None:
    batch = submitted(account, name="darkroom-7")
    assert batch.name == "darkroom-7"
    known = account.port.status(batch.id, TIMEOUT)
    assert (known.id, known.name) == (batch.id, "darkroom-7")
    found = account.port.find("darkroom-7", TIMEOUT, created_after=0)
    assert found is not None
    assert found.id == batch.id
    assert account.port.find("darkroom-8", TIMEOUT, created_after=0) is None


def test_a_batch_whose_answer_was_lost_exists(account: Account) -> None:
    account.loses_the_next_answer()
    with pytest.raises(CallFailed) as caught:
        submitted(account, name="darkroom-9")
    assert caught.value.maybe_charged
    assert account.port.find("darkroom-9", TIMEOUT, created_after=0) is not None


def test_no_such_batch_is_a_bad_request(account: Account) -> None:
    batch = submitted(account)
    with pytest.raises(CallFailed) as caught:
        account.port.status(batch.id + "9", TIMEOUT)
    assert caught.value.outcome is Outcome.BAD_REQUEST


def test_a_batch_can_be_cancelled_and_its_files_deleted_more_than_once(account: Account) -> None:
    batch = submitted(account)
    account.port.cancel(batch.id, TIMEOUT)
    batch = account.ended(batch)
    account.port.cancel(batch.id, TIMEOUT)
    account.port.delete_files(batch, TIMEOUT)
    account.port.delete_files(batch, TIMEOUT)
    assert batch.status.ended


def test_requests_of_one_model_are_one_group(account: Account) -> None:
    first, second = account.plan("r0"), account.plan("r1")
    assert account.port.group(first) == account.port.group(second)
    assert account.port.limits.max_requests > 0
    line = account.port.request_line("r0", first)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
