"""A job in a folder and a tab of Chromium, for all tests of the gallery."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import DESKTOP, Tab, browser, installed
from tests.browser.sample import download, sample_job


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job as `darkroom download` stores it."""
    return download(sample_job(), tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def tab() -> Iterator[Tab]:
    program = installed()
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with browser(program) as opened:
        yield opened


@pytest.fixture
def page(tab: Tab, folder: Path) -> Tab:
    tab.emulate(width=DESKTOP)
    tab.open((folder / "report.html").as_uri())
    return tab
