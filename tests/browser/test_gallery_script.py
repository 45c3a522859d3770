"""The gallery's detail view and search, in a real Chromium."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import pytest

from tests.browser.chromium import DESKTOP, SHOTS, Tab
from tests.browser.sample import (
    HOSTILE,
    LONG,
    RESHAPED,
    WITH_COPIES,
    download,
    hostile_job,
    large_job,
)
from tests.fakes.reporting import JOB

VISIBLE = "[...document.querySelectorAll('.card')].filter(c => c.checkVisibility())"
TITLE = "document.querySelector('#detail-title').textContent"
LARGE = "[...document.querySelectorAll('.stage img')].filter(i => !i.src.startsWith('data:'))"
MISSING_FILE = "Failed to load resource: net::ERR_FILE_NOT_FOUND"
IS_OPEN = "document.querySelector('dialog').open"


def open_row(page: Tab, row: int) -> None:
    page.click(f"#r-{row} .before-after")


def search(page: Tab, text: str = "", **facets: str) -> None:
    page.evaluate(
        f"(values => {{ const form = document.querySelector('.search');"
        " for (const [name, value] of Object.entries(values)) form.elements[name].value = value;"
        " form.requestSubmit(); })"
        f"({json.dumps({'q': text} | facets)})"
    )


def open_alone(tab: Tab, folder: Path, to: Path, query: str = "") -> None:
    """Open a copy of the report that has none of the job's other files beside it."""
    alone = to / "report.html"
    alone.write_bytes((folder / "report.html").read_bytes())
    tab.emulate(width=DESKTOP)
    tab.open(alone.as_uri() + query)


def assert_only_embedded_images_are_shown(tab: Tab) -> None:
    for row in (0, RESHAPED):
        open_row(tab, row)
        images = "[...document.querySelectorAll('.stage img')]"
        tab.wait_until(f"{images}.length === 2 && {images}.every(i => i.naturalWidth)")
        assert tab.evaluate(f"{LARGE}.length") == 0
        tab.press("Escape")


def test_a_click_on_a_card_compares_before_and_after_with_a_slider(page: Tab) -> None:
    open_row(page, 0)
    page.wait_until(f"{LARGE}.length === 2")
    assert page.evaluate(f"{LARGE}.map(image => image.naturalWidth)") == [1_024, 1_280]
    clip = "getComputedStyle(document.querySelector('.slider img + img')).clipPath"
    assert page.evaluate(clip) == "inset(0px 50% 0px 0px)"
    page.screenshot(SHOTS / "detail-slider.png")
    page.evaluate("document.querySelector('.slider input').focus()")
    for _ in range(10):
        page.press("ArrowRight")
    assert page.evaluate(clip) == "inset(0px 40% 0px 0px)"
    assert page.evaluate(TITLE) == "Row 0"
    left, right = page.evaluate(
        "[...document.querySelectorAll('.slider img')].map(i => i.getBoundingClientRect().toJSON())"
    )
    assert left == right
    assert page.console == []


def test_images_of_different_shapes_are_side_by_side(page: Tab) -> None:
    open_row(page, RESHAPED)
    page.wait_until(f"{LARGE}.length === 2")
    assert page.evaluate("document.querySelectorAll('.side-by-side img').length") == 2
    assert not page.evaluate("!!document.querySelector('.slider')")
    page.screenshot(SHOTS / "detail-side-by-side.png")


def test_previews_are_loaded_only_in_the_detail_view(page: Tab) -> None:
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert not [url for url in page.requests if "/thumbs/" in url]
    open_row(page, 0)
    page.wait_until(f"{LARGE}.length === 2")
    (loaded,) = [url for url in page.requests if "/thumbs/" in url]
    assert loaded.endswith(".png-before.webp")


@pytest.mark.parametrize("signature", ["X-Amz-Signature", "Signature"])
def test_a_presigned_page_compares_what_is_embedded_in_it(
    tab: Tab, folder: Path, tmp_path: Path, signature: str
) -> None:
    """Nothing else opens from such a link, as in a folder that holds the page alone."""
    open_alone(tab, folder, tmp_path, f"?X-Amz-Expires=60&{signature}=5ec2e7")
    assert_only_embedded_images_are_shown(tab)
    assert tab.requests[1:] == [url for url in tab.requests[1:] if url.startswith("data:")]
    assert tab.console == []


def test_a_file_that_was_removed_leaves_the_embedded_preview(
    tab: Tab, folder: Path, tmp_path: Path
) -> None:
    open_alone(tab, folder, tmp_path)
    assert_only_embedded_images_are_shown(tab)
    # The browser's own message for each file; only it knows that a file is missing.
    assert {text.split(": ", 1)[1] for text in tab.console} <= {MISSING_FILE}


def test_the_detail_view_shows_all_of_a_row(page: Tab) -> None:
    open_row(page, 5)
    shown = "document.querySelector('dialog').innerText"
    assert LONG in page.evaluate(shown)
    assert "SKU-00005" in page.evaluate(shown)
    page.press("Escape")
    open_row(page, WITH_COPIES)
    for reference in ("item-0012.jpg", "products/side.png", "products/top.png"):
        assert reference in page.evaluate(shown)
    page.wait_until(
        "[...document.querySelectorAll('dialog .copies img')].every(i => i.naturalWidth)"
    )
    page.screenshot(SHOTS / "detail-copies.png")
    ids = "[...document.querySelectorAll('[id]')].map(e => e.id)"
    assert page.evaluate(f"{ids}.length === new Set({ids}).size")


def test_arrows_step_through_the_filtered_rows_and_escape_returns_the_focus(page: Tab) -> None:
    search(page, status="failed")
    failed = page.evaluate(f"{VISIBLE}.map(c => c.querySelector('.number').textContent)")
    assert failed[:3] == ["Row 4", "Row 10", "Row 29"]
    page.evaluate("document.querySelector('#r-4 .number a').focus()")
    page.press("Enter")
    assert page.evaluate(IS_OPEN)
    shown = []
    for _ in range(3):
        shown.append(page.evaluate(TITLE))
        page.press("ArrowRight")
    assert shown == failed[:3]
    page.press("ArrowLeft")
    page.press("Escape")
    # The close event, which moves the focus, is dispatched after the dialog has closed.
    page.wait_until("document.activeElement.textContent === 'Row 29'")
    assert not page.evaluate(IS_OPEN)


def test_a_search_on_page_1_leads_to_a_row_of_page_5(page: Tab, folder: Path) -> None:
    search(page, "item-0444")
    assert page.evaluate(f"{VISIBLE}.map(c => c.querySelector('.number').textContent)") == [
        "Row 444"
    ]
    assert "1 of 500 rows" in page.evaluate("document.querySelector('.search output').textContent")
    page.screenshot(SHOTS / "search.png")
    href = page.evaluate("document.querySelector('.elsewhere .links a').href")
    assert href == f"{(folder / 'report-005.html').as_uri()}#r-444"
    page.open(href)
    assert "Row 444" in page.evaluate("document.querySelector('.card:target').innerText")


def test_a_linked_row_shows_although_the_search_hides_it(page: Tab) -> None:
    search(page, "item-0444")
    assert not page.evaluate("document.querySelector('#r-7').checkVisibility()")
    page.evaluate("location.hash = '#r-7'")
    assert page.evaluate("document.querySelector('#r-7').checkVisibility()")


def test_a_row_of_another_page_opens_there_and_not_in_the_detail_view(
    page: Tab, folder: Path
) -> None:
    search(page, "item-0444")
    page.click(".elsewhere .instruction")
    assert not page.evaluate(IS_OPEN)
    page.click(".elsewhere .number a")
    page.wait_until("document.querySelector('#r-444:target')")
    assert page.evaluate("location.href") == f"{(folder / 'report-005.html').as_uri()}#r-444"


def test_the_address_keeps_the_search(tab: Tab, folder: Path) -> None:
    tab.emulate(width=DESKTOP)
    tab.open("about:blank")
    tab.open(f"{(folder / 'report.html').as_uri()}#q=vase+sku&provider=openai&remark=fallback")
    assert tab.evaluate("document.querySelector('.search').q.value") == "vase sku"
    search(tab, status="dead")
    assert "status=dead" in tab.evaluate("location.hash")
    address = tab.evaluate("location.href")
    tab.open("about:blank")
    tab.open(address)
    assert tab.evaluate("document.querySelector('.search').status.value") == "dead"
    search(tab, status="", provider="", remark="possible double charge")
    assert tab.evaluate(f"{VISIBLE}.map(c => c.id)") == ["r-44"]
    search(tab, remark="")
    assert tab.evaluate("location.hash") == "#all"
    assert tab.evaluate(f"{VISIBLE}.length") == 100


def test_facets_count_the_whole_job(page: Tab) -> None:
    options = page.evaluate(
        "[...document.querySelectorAll('.search option')].map(o => o.textContent)"
    )
    for expected in ("failed (40)", "dead (5)", "possible double charge (1)"):
        assert expected in options


def test_a_print_of_a_search_names_it(page: Tab) -> None:
    search(page, status="failed")
    page.call("Emulation.setEmulatedMedia", media="print")
    try:
        shown = page.evaluate("document.querySelector('.toolbar').innerText")
        assert shown.startswith("failed: 40 of 500 rows")
    finally:
        page.call("Emulation.setEmulatedMedia", media="")


def test_nothing_outside_the_folder_is_requested(page: Tab, folder: Path) -> None:
    open_row(page, WITH_COPIES)
    page.wait_until("document.querySelector('.stage img[src*=\"/images/\"]')")
    for url in page.requests:
        assert url.startswith((f"{folder.as_uri()}/", "data:"))


def test_30_hostile_texts_stay_text_and_keep_the_policy(tab: Tab, tmp_path: Path) -> None:
    root = download(hostile_job(), tmp_path)
    tab.emulate(width=DESKTOP)
    for page in ("report.html", "report-problems.html"):
        tab.open((root / page).as_uri())
        for card in tab.evaluate(f"{VISIBLE}.map(c => c.id)"):
            tab.evaluate(f"document.querySelector('#{card} .number a').click()")
            tab.press("Escape")
        # The images are not in the folder.
        assert [text for text in tab.console if "ERR_FILE_NOT_FOUND" not in text] == []
        assert tab.evaluate("document.title").startswith(f"{JOB} · Darkroom")
        assert not tab.evaluate("!!document.querySelector('iframe, base, [onload], [onerror]')")
        assert "\u202e" not in tab.evaluate("document.body.textContent")
        assert tab.evaluate("document.scripts.length") == (2 if page == "report.html" else 1)
    tab.open((root / "report.html").as_uri())
    search(tab, HOSTILE[len("<script>") :][:22])
    assert tab.evaluate(f"{VISIBLE}.length") == 3


def test_page_1_of_5000_rows_is_small_and_quickly_usable(tab: Tab, tmp_path: Path) -> None:
    page = download(large_job(5_000), tmp_path) / "report.html"
    assert page.stat().st_size < 3_000_000
    tab.emulate(width=DESKTOP)
    tab.call("Performance.enable", timeDomain="threadTicks")  # whatever else runs on this machine
    tab.open(page.as_uri())
    metrics = tab.call("Performance.getMetrics")["metrics"]
    (busy,) = (metric["value"] for metric in metrics if metric["name"] == "TaskDuration")
    assert 0 < busy < 1  # seconds of the page's thread: parsing, scripts, style, layout
    search(tab, "item-04999")
    assert tab.evaluate(f"{VISIBLE}.length") == 1
    assert tab.evaluate("document.querySelector('.elsewhere a').hash") == "#r-4999"
    index = len(tab.evaluate("document.querySelector('#search-index').textContent").encode())
    assert index / 5_000 < 95


def test_it_works_in_forced_colours(page: Tab) -> None:
    forced = [{"name": "forced-colors", "value": "active"}]
    page.call("Emulation.setEmulatedMedia", features=forced)
    try:
        page.screenshot(SHOTS / "forced-colours.png")
        open_row(page, 0)
        page.wait_until("document.querySelector('.slider')")
        page.screenshot(SHOTS / "forced-colours-detail.png")
        border = "getComputedStyle(document.querySelector('.detail button')).borderTopStyle"
        assert page.evaluate(border) == "solid"
    finally:
        page.call("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize("width", [1400, 1024, 768, 390])
@pytest.mark.parametrize("row", [0, RESHAPED])
def test_the_detail_view_fits_the_window(tab: Tab, folder: Path, row: int, width: int) -> None:
    tab.emulate(width=width, scheme="dark")
    tab.open((folder / "report.html").as_uri())
    open_row(tab, row)
    tab.wait_until(f"{LARGE}.length === 2")
    tab.screenshot(SHOTS / f"detail-{row}-{width}-dark.png")
    outside = "[...document.querySelectorAll('.detail *')].filter(element =>"
    outside += " element.getBoundingClientRect().right > innerWidth)"
    assert tab.evaluate(f"{outside}.map(element => element.outerHTML)") == []


@pytest.mark.parametrize("state", ["gallery", "detail", "problems", "search", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_serious_finding(
    tab: Tab, paths: Mapping[str, Path], scheme: str, state: str
) -> None:
    tab.emulate(width=DESKTOP, scheme=scheme)
    tab.open(paths.get(state, paths["gallery"]).as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    if state == "detail":
        tab.evaluate("document.querySelector('#r-0 .number a').click()")
        tab.wait_until("document.querySelector('.slider')")
    if state == "search":
        search(tab, "item-0444")
    tab.evaluate(files("axe_core_python").joinpath("axe.min.js").read_text("utf-8"))
    found = tab.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations"
        ".filter(v => ['serious', 'critical'].includes(v.impact))"
        ".map(v => `${v.id}: ${v.nodes.length}, ${v.nodes[0].html}`))"
    )
    assert found == []
