"""What ports.ImageEditor promises, held to by both real editors and by the fake of the tests."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.models.planner import plan_call
from darkroom.ports import ImageEditor
from darkroom.providers.registry import Provider
from darkroom.rows import RowRequest
from darkroom_local.providers import running
from tests.contract.provider_world import BOTH, KEY, World, photo
from tests.fakes.dispatching import ScriptedEditor
from tests.fakes.services import FakeClock

FAULT_OF = {
    Outcome.REFUSED: {"kind": "refused"},
    Outcome.NO_IMAGE: {"kind": "text_only"},
    Outcome.BAD_REQUEST: {"kind": "bad_request"},
    Outcome.RATE_LIMITED: {"kind": "rate_limited"},
    Outcome.QUOTA_SPENT: {"kind": "quota_spent"},
    Outcome.KEY_REJECTED: {"kind": "key_rejected"},
    Outcome.UNAVAILABLE: {"kind": "overloaded"},
}


@dataclass
class Subject:
    """An editor, a way to have its next call fail, and a way to see the calls it made."""

    editor: ImageEditor
    provider: Provider
    world: World
    fail_with: Callable[[Outcome], None]
    keys_used: Callable[[], list[str]]

    def edit(self, key: str = KEY) -> EditResult:
        endpoint = self.world.endpoint(self.provider)
        request = RowRequest(instruction="make it warm")
        plan = plan_call(request, (photo(),), None, self.provider, endpoint.model)
        return self.editor.edit(plan, endpoint, SecretStr(key), 20)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with running() as simulator:
        world = World(simulator)
        yield world
        world.close()


@pytest.fixture(params=["fake", *BOTH])
def subject(request: pytest.FixtureRequest, world: World) -> Subject:
    if request.param == "fake":
        fake = ScriptedEditor(FakeClock())
        return Subject(
            fake,
            Provider.GEMINI,
            world,
            fake.scripts["e"].append,
            lambda: [call.key for call in fake.calls],
        )
    world.set_up()
    real: Any = world.gemini if request.param is Provider.GEMINI else world.openai
    return Subject(
        real,
        request.param,
        world,
        lambda outcome: world.fault(**FAULT_OF[outcome], when={"count": 1}),
        lambda: [key for key, n in world.stats()["keys"].items() for _ in range(n)],
    )


def test_a_good_call_gives_pictures(subject: Subject) -> None:
    answer = subject.edit()
    assert answer.images
    assert all(isinstance(image, bytes) and image for image in answer.images)
    assert answer.model


@pytest.mark.parametrize("outcome", FAULT_OF)
def test_a_bad_call_raises_its_outcome_and_the_next_is_good(
    subject: Subject, outcome: Outcome
) -> None:
    subject.fail_with(outcome)
    with pytest.raises(CallFailed) as caught:
        subject.edit()
    assert caught.value.outcome is outcome
    assert caught.value.detail
    assert subject.edit().images


def test_every_outcome_but_success_can_be_told() -> None:
    assert set(FAULT_OF) == set(Outcome) - {Outcome.SUCCEEDED}


def test_each_call_uses_the_key_it_is_given(subject: Subject) -> None:
    subject.edit("key-a-123456")
    subject.edit("key-b-123456")
    assert subject.keys_used() == ["key-a-123456", "key-b-123456"]
