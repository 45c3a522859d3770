"""What all suites share: Hypothesis's settings, and MiniStack without our stack on it."""

from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from botocore.config import Config
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from darkroom_local import ministack

# No example fails for the time it takes: the machine may be busy.
settings.register_profile(
    "fuzz",
    max_examples=20_000,
    derandomize=False,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# `make test` must not fail by chance, so it tries the same examples in every run; `make fuzz` tries
# many more at random. A new profile inherits from "default": define it last.
settings.register_profile(
    "default", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def run_state_machine(machine: type[RuleBasedStateMachine], max_examples: int) -> None:
    """Try `max_examples` sequences of up to 30 rules; `make fuzz` tries as many as its profile."""
    fuzzing = settings.get_current_profile_name() == "fuzz"
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=settings().max_examples if fuzzing else max_examples,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )


class ClientFactory(Protocol):
    def __call__(self, service: str) -> Any: ...


@pytest.fixture(scope="session")
def aws_endpoint() -> Iterator[str]:
    """URL of a MiniStack where tests create what they need under unique names.

    Root credentials: the end-to-end tests check the permissions.
    """
    with ministack.running(auth=False) as stack:
        yield stack.url


@pytest.fixture(scope="session")
def aws_client(aws_endpoint: str) -> Iterator[ClientFactory]:
    """`aws_client("sqs")`: a boto3 client for that MiniStack, one per service and session."""
    session = ministack.session()
    clients: dict[str, Any] = {}

    def client(service: str) -> Any:
        if service not in clients:
            clients[service] = session.client(  # type: ignore[call-overload]
                service,
                endpoint_url=aws_endpoint,
                config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
            )
        return clients[service]

    yield client
    for open_client in clients.values():
        open_client.close()
