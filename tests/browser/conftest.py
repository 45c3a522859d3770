"""A job in a folder, a comparison and a tab of Chromium, for all tests of the pages."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.browser.chromium import DESKTOP, Tab, browser, installed
from tests.browser.sample import INSTRUCTIONS, download, draw, sample_job
from tests.fakes.command import CliHarness
from tests.fakes.ledger import running
from tests.unit.test_cli_compare import GOOD, REFUSED, add_results


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job as `darkroom download` stores it."""
    return download(sample_job(), tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `darkroom compare` for two jobs of three rows."""
    cli = CliHarness(tmp_path_factory.mktemp("comparison"))
    for job, model in (("jobs/p.one", "gemini-3-pro-image"), ("jobs/p.two", "gpt-image-2")):
        cli.ledger.start(running(job, run=job), 60)
        edited = replace(GOOD, model=model, fallback=model == "gpt-image-2")
        cells = (f"photos/{'long-name-' * 12}.jpg", INSTRUCTIONS[0])
        add_results(cli, job, [(0, edited), (1, edited), (2, REFUSED)], cells)
    for key, stored in cli.results_bucket.objects.items():
        if key.endswith((".png", ".webp")):
            stored.body = draw(len(key), edited="/images/" in key, longest_side=640)
    cli.succeed("compare", "jobs/p.one", "jobs/p.two", "--to", cli.folder / "out")
    return cli.folder / "out" / "compare.html"


@pytest.fixture(scope="session")
def paths(folder: Path, comparison: Path) -> Mapping[str, Path]:
    """The kinds of page."""
    return {
        "gallery": folder / "report.html",
        "problems": folder / "report-problems.html",
        "comparison": comparison,
    }


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
