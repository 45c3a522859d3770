"""The page of `darkroom compare` in a real Chromium."""

from pathlib import Path

import pytest

from tests.browser.chromium import Tab


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
