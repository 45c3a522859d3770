"""The real template, deployed once per session with IAM enforced and simulated providers."""

from collections.abc import Iterator

import pytest

from darkroom_local import stack
from darkroom_local.providers import Config, Fault, FaultKind, SimulatedEndpoint, When
from tests.e2e.harness import StackHarness

CONFIG = Config(
    endpoints={
        "gemini-main": SimulatedEndpoint(
            faults=(
                Fault(kind=FaultKind.OVERLOADED, when=When(prompt_contains="gemini is down")),
                Fault(kind=FaultKind.REFUSED, when=When(prompt_contains="not allowed")),
            )
        ),
        "openai-main": SimulatedEndpoint(),
    }
)
OVERRIDES = {"gemini-main": {"max_retries": 1, "retry_delay_seconds": 0.1}}


@pytest.fixture(scope="session")
def harness() -> Iterator[StackHarness]:
    with stack.running(stack="darkroom-e2e", config=CONFIG, overrides=OVERRIDES) as info:
        yield StackHarness(info)
