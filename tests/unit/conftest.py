"""Fixtures that several modules of unit tests share."""

from pathlib import Path

import pytest

from tests.fakes.command import CliHarness


@pytest.fixture
def cli(tmp_path: Path) -> CliHarness:
    return CliHarness(tmp_path)
