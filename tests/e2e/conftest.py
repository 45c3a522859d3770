"""The real template, deployed once per session with IAM enforced and providers simulated."""

from collections.abc import Iterator

import pytest

from darkroom_local import stack
from darkroom_local.providers import Config, Fault, FaultKind, SimulatedEndpoint, Simulator, When
from tests.e2e.jobs import Jobs

SCRIPT = Config(
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
def deployed() -> Iterator[stack.StackInfo]:
    with stack.running(stack="darkroom-e2e", config=SCRIPT, overrides=OVERRIDES) as info:
        yield info


@pytest.fixture(scope="session")
def jobs(deployed: stack.StackInfo) -> Jobs:
    return Jobs(deployed)


@pytest.fixture(scope="session")
def simulator(deployed: stack.StackInfo) -> Simulator:
    return Simulator(int(str(deployed.providers_url).rpartition(":")[2]))
