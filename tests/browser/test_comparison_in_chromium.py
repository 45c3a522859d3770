"""The page of `darkroom compare` in a real Chromium."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.browser.chromium import Tab
from tests.fakes.command import CliHarness
from tests.fakes.ledger import running
from tests.unit.test_cli_compare import GOOD, REFUSED, add_results


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    cli, image = CliHarness(tmp_path), io.BytesIO()
    Image.new("RGB", (640, 480), "teal").save(image, "PNG")
    for job, result in (("jobs/p.one", GOOD), ("jobs/p.two", replace(GOOD, model="gpt-image-2"))):
        cli.ledger.start(running(job, run=job), 60)
        add_results(cli, job, [(0, result), (1, REFUSED)])
    for key, stored in cli.results_bucket.objects.items():
        if key.endswith((".png", ".webp")):
            stored.body = image.getvalue()
    cli.succeed("compare", "jobs/p.one", "jobs/p.two", "--to", tmp_path / "out")
    return tmp_path / "out" / "compare.html"


@pytest.mark.parametrize("width", [1400, 768, 390])
def test_images_of_both_jobs_show_side_by_side_and_the_console_stays_empty(
    tab: Tab, comparison: Path, width: int
) -> None:
    tab.emulate(width=width)
    tab.open(comparison.as_uri())
    tab.evaluate("document.images.length && [...document.images].forEach(i => i.loading = 'eager')")
    loaded = "Promise.all([...document.images].map(i => i.decode())).then(() => 'loaded')"
    assert tab.evaluate(loaded) == "loaded"
    assert tab.console == []
    assert {url.split("/")[0] for url in tab.requests} == {"file:"}
    tops = tab.evaluate(
        "[...document.querySelectorAll('#row-0 td')].map(c => c.getBoundingClientRect().top).join()"
    )
    assert len(set(tops.split(","))) == 1
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
