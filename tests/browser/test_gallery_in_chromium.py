"""The gallery of 500 rows in a real Chromium; screenshots go to build/screenshots."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.browser.chromium import DESKTOP, SHOTS, Tab
from tests.browser.sample import HOSTILE, LONG, ROWS, WITH_COPIES, download
from tests.fakes.reporting import EDITED, JOB, ReportHarness

PHONE = 390
VISIBLE = "[...document.querySelectorAll('.card')].filter(c => c.checkVisibility())"


def test_500_rows_open_with_an_empty_console(page: Tab, folder: Path) -> None:
    rows = {}
    for path in folder.glob("report*.html"):
        page.open(path.as_uri())
        assert page.console == []
        rows[path.stem] = page.evaluate("document.querySelectorAll('.card').length")
    assert rows.pop("report-problems") == 45
    assert sum(rows.values()) == ROWS


def test_the_tile_of_failed_rows_leads_to_all_of_them(page: Tab) -> None:
    page.open(page.evaluate("document.querySelector('.tile.failed a').href"))
    assert page.evaluate("[...document.querySelectorAll('.card')].every(c => c.checkVisibility())")
    assert page.evaluate("document.querySelector('main h2').innerText") == "45 rows failed"
    page.screenshot(SHOTS / "problems-light.png")


def test_the_endpoints_add_up_to_the_tiles(page: Tab) -> None:
    lines = page.evaluate(
        "[...document.querySelectorAll('.endpoints tbody tr, .endpoints tfoot tr')].map("
        "row => [...row.querySelectorAll('td.number')].map(cell => cell.textContent))"
    )
    *endpoints, total = [[int(made), int(failed)] for made, _, failed, *_ in lines]
    assert [sum(column) for column in zip(*endpoints, strict=True)] == total
    tiles = page.evaluate(
        "['succeeded', 'failed', 'dead'].map(name =>"
        " parseInt(document.querySelector(`.tile.${name} dd`).textContent))"
    )
    assert total == [tiles[0], tiles[1] + tiles[2]]


def test_a_page_requests_nothing_but_itself(page: Tab) -> None:
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert {url.split(":")[0] for url in page.requests[1:]} <= {"data"}
    assert page.requests[0].endswith("report.html")


def test_every_image_on_the_page_decodes(page: Tab) -> None:
    page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    shown = "[...document.images].filter(i => i.checkVisibility())"
    decode = f"Promise.all({shown}.map(i => i.decode())).then(all => all.length)"
    assert page.evaluate(decode) > 150
    assert page.evaluate(f"{shown}.every(i => i.naturalWidth > 0 && i.alt)")


def test_copies_of_a_row_show_when_they_are_opened(page: Tab) -> None:
    copies = f"#r-{WITH_COPIES} .copies"
    assert page.evaluate(f"document.querySelector('{copies}').innerText") == "2 more images"
    page.evaluate(f"document.querySelector('{copies} summary').click()")
    page.evaluate(f"document.querySelector('{copies}').scrollIntoView()")
    decode = f"Promise.all([...document.querySelectorAll('{copies} img')].map(i => i.decode()))"
    assert page.evaluate(f"{decode}.then(all => all.length)") == 2
    assert page.console == []
    page.screenshot(SHOTS / "copies.png")


def test_before_and_after_are_side_by_side(page: Tab) -> None:
    left, right = page.evaluate(
        "[...document.querySelectorAll('#r-0 figure')].map(f => f.getBoundingClientRect().toJSON())"
    )
    assert left["top"] == right["top"]
    assert left["right"] <= right["left"] + 1
    assert page.evaluate("document.querySelector('#r-0').innerText").startswith("Before\nAfter")


def test_filters_work_with_scripts_off(tab: Tab, folder: Path) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.emulate(width=DESKTOP)
        tab.open((folder / "report.html").as_uri())
        tab.click("label[for=s-failed]")
        assert tab.evaluate(f"{VISIBLE}.length") == 8
        assert tab.evaluate(f"{VISIBLE}.every(c => c.innerText.includes('failed'))")
        tab.screenshot(SHOTS / "desktop-light-failed.png")
        tab.click("label[for=p-openai]")
        assert tab.evaluate(f"{VISIBLE}.length") == 0
        assert "No row on this page" in tab.evaluate("document.querySelector('main').innerText")
        tab.click("label[for=s-all]")
        assert tab.evaluate(f"{VISIBLE}.length") == 5
        assert not tab.evaluate("!!document.querySelector('dialog, .search, button, select')")
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.fixture
def second_page(page: Tab, folder: Path) -> Tab:
    """With a script, page 1 has a search of all rows in place of the filters."""
    page.open((folder / "report-002.html").as_uri())
    return page


def test_filters_and_links_are_reachable_by_keyboard(second_page: Tab) -> None:
    page = second_page
    page.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the rows"
    page.evaluate("document.querySelector('#s-all').focus()")
    page.press("ArrowRight")
    assert page.evaluate("document.querySelector('#s-succeeded').checked")
    outline = "getComputedStyle(document.querySelector('label[for=s-succeeded]')).outlineStyle"
    assert page.evaluate(outline) == "solid"


def test_text_of_a_row_is_shown_and_not_run(page: Tab) -> None:
    assert HOSTILE in page.evaluate("document.querySelector('#r-8').innerText")
    assert page.evaluate("document.title") == f"{JOB} · Darkroom"


def test_a_long_instruction_folds_and_opens(page: Tab) -> None:
    text = "document.querySelector('#r-5 .instruction').innerText"
    assert LONG not in page.evaluate(text)
    page.evaluate("document.querySelector('#r-5 summary').click()")
    assert LONG in page.evaluate(text)


def test_links_in_the_failure_list_lead_to_the_row(page: Tab) -> None:
    href = page.evaluate("document.querySelector('.failures a[href^=report-003]').href")
    page.open(href)
    assert "failed" in page.evaluate("document.querySelector('.card:target').innerText")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 1024, 768, PHONE])
@pytest.mark.parametrize("kind", ["gallery", "problems", "comparison"])
def test_it_fits_the_window_and_is_legible(
    tab: Tab, paths: Mapping[str, Path], kind: str, scheme: str, width: int
) -> None:
    tab.emulate(width=width, height=1000, scheme=scheme, zoom=2 if width == PHONE else 1)
    tab.open(paths[kind].as_uri())
    assert tab.console == []
    shown = "[...document.images].filter(image => image.checkVisibility())"
    tab.evaluate(f"{shown}.forEach(image => {{ image.loading = 'eager' }})")
    tab.evaluate(f"Promise.all({shown}.map(image => image.decode())).then(() => 'loaded')")
    tab.screenshot(SHOTS / f"{kind}-{width}-{scheme}.png")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    contrast, where = tab.evaluate(LOWEST_CONTRAST)
    assert contrast >= 4.5, where
    tab.evaluate("document.querySelector('.cards, tbody').scrollIntoView()")
    tab.screenshot(SHOTS / f"{kind}-{width}-{scheme}-rows.png")
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(background.split("(")[1].split(",")[0])
    assert (red < 60) is (scheme == "dark")


def test_it_prints_in_light_colours_with_every_row_and_without_filters(page: Tab) -> None:
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.call("Emulation.setEmulatedMedia", media="print", features=dark)
    try:
        assert page.evaluate(LOWEST_CONTRAST)[0] >= 4.5
        assert "255, 255, 255" in page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert not page.evaluate("document.querySelector('.toolbar').checkVisibility()")
        columns = "getComputedStyle(document.querySelector('.cards')).gridTemplateColumns"
        assert len(page.evaluate(columns).split()) == 3
        assert page.evaluate(f"{VISIBLE}.length") == 100
        page.pdf(SHOTS / "print.pdf")
    finally:
        page.call("Emulation.setEmulatedMedia", media="")
    assert (SHOTS / "print.pdf").stat().st_size > 50_000


def test_a_print_of_a_filtered_page_names_the_filter(second_page: Tab) -> None:
    page = second_page
    page.evaluate("document.querySelector('#s-failed').checked = true")
    page.call("Emulation.setEmulatedMedia", media="print")
    try:
        shown = page.evaluate("document.querySelector('.toolbar').innerText").split()
        assert " ".join(shown) == "Status on this page failed 8"
    finally:
        page.call("Emulation.setEmulatedMedia", media="")


def test_a_linked_row_shows_although_a_filter_hides_it(second_page: Tab) -> None:
    page = second_page
    page.evaluate("document.querySelector('#s-failed').checked = true")
    visible = "document.querySelector('#r-100').checkVisibility()"
    assert not page.evaluate(visible)
    page.evaluate("location.hash = '#r-100'")
    assert page.evaluate(visible)


@pytest.mark.parametrize("width", [1400, PHONE])
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_and_long_words_fit_the_window(
    tab: Tab, tmp_path: Path, rows: int, width: int
) -> None:
    word = "Donaudampfschifffahrtsgesellschaft" * 6
    line = f"https://x.test/{word}.jpg,{word} {word},{word}\n"
    harness = ReportHarness(f"image_url,instruction,{word}\n{line * rows}")
    harness.start(warnings=(word,))
    for row in harness.job_rows:
        harness.settle(row, replace(EDITED, outputs=(), endpoint=word, warnings=(word,)))
    tab.emulate(width=width)
    tab.open((download(harness, tmp_path) / "report.html").as_uri())
    tab.screenshot(SHOTS / f"long-words-{rows}-{width}.png")
    assert tab.console == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    cut_off = (
        "[...document.querySelectorAll('.card *')].filter(e => e.scrollWidth > e.clientWidth + 1"
    )
    cut_off += " && getComputedStyle(e).display !== 'inline')"
    assert tab.evaluate(f"{cut_off}.map(e => e.outerHTML)") == []


@pytest.mark.parametrize("width", [1400, 1024])
def test_the_first_card_is_on_the_first_screen(tab: Tab, folder: Path, width: int) -> None:
    tab.emulate(width=width, height=900)
    tab.open((folder / "report.html").as_uri())
    top = tab.evaluate("document.querySelector('.card').getBoundingClientRect().top")
    assert top < 700


def test_a_tablet_has_two_columns_of_cards(tab: Tab, folder: Path) -> None:
    tab.emulate(width=768)
    tab.open((folder / "report.html").as_uri())
    columns = tab.evaluate("getComputedStyle(document.querySelector('.cards')).gridTemplateColumns")
    assert len(columns.split()) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_differ_in_luminance_for_everybody(tab: Tab, folder: Path, scheme: str) -> None:
    tab.emulate(width=DESKTOP, scheme=scheme)
    tab.open((folder / "report.html").as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    colours = [
        tab.evaluate(f"getComputedStyle(document.querySelector('rect.bar-{status}')).fill")
        for status in ("succeeded", "failed")
    ]
    succeeded, failed = ([int(n) for n in re.findall(r"\d+", colour)] for colour in colours)
    for seen in (NORMAL, PROTANOPIA, DEUTERANOPIA):
        assert contrast_of(seen_by(seen, succeeded), seen_by(seen, failed)) >= 3


NORMAL = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency" (2009), severity 1.0, applied to linear RGB.
PROTANOPIA = (
    (0.152286, 1.052583, -0.204868),
    (0.114503, 0.786281, 0.099216),
    (-0.003882, -0.048116, 1.051998),
)
DEUTERANOPIA = (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
)


def seen_by(matrix: Sequence[Sequence[float]], colour: Sequence[int]) -> list[float]:
    """Linear RGB as a person with this vision sees an sRGB colour."""
    return [sum(a * _linear(b) for a, b in zip(row, colour, strict=True)) for row in matrix]


def _linear(channel: int) -> float:
    c = channel / 255
    return float(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)


def _luminance(linear: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def contrast_of(one: Sequence[float], other: Sequence[float]) -> float:
    """WCAG's ratio of two colours in linear RGB."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


# WCAG contrast of every piece of text that has a plain background of its own or above it.
LOWEST_CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const under = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] > 200) return colour;
    }
    return [255, 255, 255, 255];
  };
  let lowest = [21, ''];
  const texts = 'p, dt, dd, small, span, b, td, th, h1, h2, label, a, code, summary';
  for (const e of document.querySelectorAll(texts)) {
    if (!e.innerText || !e.checkVisibility()) continue;
    if (e.closest('figcaption, figure, .visually-hidden')) continue;
    const style = getComputedStyle(e);
    const ink = rgba(style.color), ground = under(e);
    const alpha = parseFloat(style.opacity);
    const mixed = [0, 1, 2].map(i => ink[i] * alpha + ground[i] * (1 - alpha));
    const [a, b] = [light(mixed), light(ground)].sort((x, y) => y - x);
    const contrast = (a + .05) / (b + .05);
    if (contrast < lowest[0]) lowest = [contrast, e.innerText];
  }
  return lowest;
})()
"""
