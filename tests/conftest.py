"""Fixtures every suite shares: an AWS of one machine, without our stack on it."""

from collections.abc import Iterator
from typing import Any, Protocol

import boto3
import pytest
from botocore.config import Config
from hypothesis import settings

from darkroom_local import ministack

# A busy machine is slow, not wrong: no example fails for its time.
settings.register_profile("default", deadline=None)
settings.register_profile("fuzz", max_examples=20_000, deadline=None)  # `make fuzz`


class ClientFactory(Protocol):
    def __call__(self, service: str) -> Any: ...


@pytest.fixture(scope="session")
def aws_endpoint() -> Iterator[str]:
    """URL of a MiniStack where tests create what they need under names of their own.

    Root credentials: permissions are the business of the end-to-end tests.
    """
    with ministack.running(auth=False) as stack:
        yield stack.url


@pytest.fixture(scope="session")
def aws_client(aws_endpoint: str) -> Iterator[ClientFactory]:
    """`aws_client("sqs")`: a boto3 client for that MiniStack; one per service and session."""
    session = boto3.Session(
        ministack.ACCESS_KEY, ministack.SECRET_KEY, region_name=ministack.REGION
    )
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
    for made in clients.values():
        made.close()
