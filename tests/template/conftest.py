"""The template as CloudFormation gets it, with the parameters' defaults."""

from typing import Any

import pytest

from tests.template.transform import transformed


@pytest.fixture(scope="session")
def template() -> dict[str, Any]:
    return transformed()


@pytest.fixture(scope="session")
def resources(template: dict[str, Any]) -> Any:
    return template["Resources"]
