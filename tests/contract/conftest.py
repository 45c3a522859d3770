"""A table that contract suites share: each test has a job of its own in it."""

import pytest

from tests.conftest import ClientFactory
from tests.tables import create_table


@pytest.fixture(scope="session")
def ledger_table(aws_client: ClientFactory) -> str:
    name = "contract-ledger"
    create_table(aws_client("dynamodb"), "ledger", name)
    return name
