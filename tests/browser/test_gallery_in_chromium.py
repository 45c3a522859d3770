"""The gallery of 500 rows in a real Chromium; screenshots go to build/screenshots."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.browser.chromium import Tab, browser, installed
from tests.browser.sample import HOSTILE, LONG, ROWS, WITH_COPIES, sample_job
from tests.fakes.reporting import JOB

SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
PHONE, DESKTOP = 390, 1360
VISIBLE = "[...document.querySelectorAll('.card')].filter(c => c.checkVisibility())"

pytestmark = pytest.mark.skipif(
    installed() is None, reason="needs Chromium: apt-get install chromium"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job as `darkroom download` stores it."""
    harness = sample_job()
    harness.report()
    root = tmp_path_factory.mktemp("job")
    for key, (body, _, _) in harness.store.objects.items():
        path = root / key.removeprefix(f"{JOB}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return root


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    program = installed()
    assert program is not None
    with browser(program) as opened:
        yield opened


@pytest.fixture
def page(tab: Tab, folder: Path) -> Tab:
    tab.emulate(width=DESKTOP)
    tab.open((folder / "report.html").as_uri())
    return tab


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


def choose(tab: Tab, identity: str) -> None:
    """Clicks the middle of the choice's label, as a person does."""
    point = tab.evaluate(
        f"(l => {{ l.scrollIntoView(); const r = l.getBoundingClientRect();"
        f" return {{x: r.x + r.width / 2, y: r.y + r.height / 2}} }})"
        f"(document.querySelector('label[for={identity}]'))"
    )
    for kind in ("mousePressed", "mouseReleased"):
        tab.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point)


def test_filters_work_with_scripts_off(tab: Tab, folder: Path) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.emulate(width=DESKTOP)
        tab.open((folder / "report.html").as_uri())
        choose(tab, "s-failed")
        assert tab.evaluate(f"{VISIBLE}.length") == 8
        assert tab.evaluate(f"{VISIBLE}.every(c => c.innerText.includes('failed'))")
        tab.screenshot(SHOTS / "desktop-light-failed.png")
        choose(tab, "p-openai")
        assert tab.evaluate(f"{VISIBLE}.length") == 0
        assert "No row on this page" in tab.evaluate("document.querySelector('main').innerText")
        choose(tab, "s-all")
        assert tab.evaluate(f"{VISIBLE}.length") == 5
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_filters_and_links_are_reachable_by_keyboard(page: Tab) -> None:
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
def test_it_fits_the_window_and_is_legible(tab: Tab, folder: Path, scheme: str, width: int) -> None:
    tab.emulate(width=width, height=1000, scheme=scheme, zoom=2 if width == PHONE else 1)
    tab.open((folder / "report.html").as_uri())
    tab.screenshot(SHOTS / f"{width}-{scheme}-top.png")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    contrast, where = tab.evaluate(LOWEST_CONTRAST)
    assert contrast >= 4.5, where
    tab.evaluate("document.querySelector('.toolbar').scrollIntoView()")
    tab.screenshot(SHOTS / f"{width}-{scheme}-rows.png")
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


def test_a_print_of_a_filtered_page_names_the_filter(page: Tab) -> None:
    page.evaluate("document.querySelector('#s-failed').checked = true")
    page.call("Emulation.setEmulatedMedia", media="print")
    try:
        shown = page.evaluate("document.querySelector('.toolbar').innerText").split()
        assert " ".join(shown) == "Status on this page failed 8"
    finally:
        page.call("Emulation.setEmulatedMedia", media="")


def test_a_linked_row_shows_although_a_filter_hides_it(page: Tab) -> None:
    page.evaluate("document.querySelector('#s-failed').checked = true")
    visible = "document.querySelector('#r-0').checkVisibility()"
    assert not page.evaluate(visible)
    page.evaluate("location.hash = '#r-0'")
    assert page.evaluate(visible)


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
