"""The contract of ports.ImageEditor, for both real editors and for the fake of the tests."""

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
from tests.contract.provider_harness import BOTH, KEY, Harness, photo, running_harness
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
    """An editor, with functions to make its next call fail and to list the keys it used."""

    editor: ImageEditor
    provider: Provider
    harness: Harness
    fail_with: Callable[[Outcome], None]
    keys_used: Callable[[], list[str]]

    def edit(self, key: str = KEY) -> EditResult:
        endpoint = self.harness.endpoint(self.provider)
        request = RowRequest(instruction="make it warm")
        plan = plan_call(request, (photo(),), None, self.provider, endpoint.model)
        return self.editor.edit(plan, endpoint, SecretStr(key), 20)


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with running_harness() as harness:
        yield harness


@pytest.fixture(params=["fake", *BOTH])
def subject(request: pytest.FixtureRequest, harness: Harness) -> Subject:
    if request.param == "fake":
        fake = ScriptedEditor(FakeClock())
        return Subject(
            fake,
            Provider.GEMINI,
            harness,
            fake.scripts["e"].append,
            lambda: [call.key for call in fake.calls],
        )
    harness.set_up()
    real: Any = harness.gemini if request.param is Provider.GEMINI else harness.openai
    return Subject(
        real,
        request.param,
        harness,
        lambda outcome: harness.fault(**FAULT_OF[outcome], when={"count": 1}),
        lambda: [key for key, n in harness.stats()["keys"].items() for _ in range(n)],
    )


def test_a_successful_call_returns_images(subject: Subject) -> None:
    result = subject.edit()
    assert result.images
    assert all(isinstance(image, bytes) and image for image in result.images)
    assert result.model


@pytest.mark.parametrize("outcome", FAULT_OF)
def test_a_failed_call_raises_its_outcome_and_the_next_works(
    subject: Subject, outcome: Outcome
) -> None:
    subject.fail_with(outcome)
    with pytest.raises(CallFailed) as caught:
        subject.edit()
    assert caught.value.outcome is outcome
    assert caught.value.detail
    assert subject.edit().images


def test_every_outcome_except_success_has_a_fault_here() -> None:
    assert set(FAULT_OF) == set(Outcome) - {Outcome.SUCCEEDED}


def test_each_call_uses_the_key_it_is_given(subject: Subject) -> None:
    subject.edit("key-a-123456")
    subject.edit("key-b-123456")
    assert subject.keys_used() == ["key-a-123456", "key-b-123456"]
