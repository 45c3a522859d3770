"""The gallery's HTML: escaping, links, pages. tests/browser checks how it looks."""

import json
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from html.parser import HTMLParser
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import Columns, read_columns
from darkroom.errors import Reason
from darkroom.formatting import in_written_order
from darkroom.jobs import JobOptions
from darkroom.report.gallery import (
    ROWS_PER_PAGE,
    Thumbs,
    gallery_pages,
    page_count,
    problems_page,
    rejected_page,
    script,
    stylesheet,
)
from darkroom.report.rows import ReportRow
from darkroom.report.sampling import GallerySelection
from darkroom.report.summary import Aggregate, JobSummary, RowCounts
from darkroom.rows import RowState
from tests.fakes.reporting import JOB, START, report_row, split_run

WEBP = b"RIFF\x00\x00\x00\x00WEBPVP8 "
BOTH = Thumbs(WEBP, WEBP, f"{JOB}/thumbs/a b-before.webp")
EDITED: dict[str, Any] = {
    "instruction": "make it blue",
    "images": ("https://x.test/a.jpg",),
    "outputs": (f"{JOB}/images/my cup #1.png",),
    "provider": "gemini",
    "endpoint": "gemini-main",
    "model": "gemini-3-pro-image",
    "attempts": 2,
    "latency_ms": 8_123,
    "cost_micro_usd": 134_000,
    "settled_at": 1.79e9,
}
FAILED: dict[str, Any] = EDITED | {
    "status": RowState.FAILED,
    "reason": Reason.REFUSED,
    "detail": "blocked for safety",
    "outputs": (),
}

SOURCES = ("https://x.test/a.jpg", "s3://b/k.png", "c.png", "d.png")
OUTPUTS = tuple(f"{JOB}/images/a{n}.png" for n in ("", "-1", "-2"))
SOURCE_LINK = '<a href="https://x.test/a.jpg" rel="noreferrer">https://x.test/a.jpg</a>'


def summary(*rows: ReportRow, **changes: object) -> JobSummary:
    aggregate = Aggregate()
    for row in rows:
        aggregate.add(row)
    made = aggregate.summary(split_run(), pages=page_count(rows), finished_at=START + 60)
    return made.model_copy(update=changes)


def pages(
    *rows: ReportRow, note: str | None = None, thumbs: Thumbs = BOTH, **changes: object
) -> list[str]:
    made = gallery_pages(summary(*rows, **changes), rows, note, lambda shown: [thumbs] * len(shown))
    return [page.decode() for page in made]


def card(thumbs: Thumbs = BOTH, **values: Any) -> str:
    """The card of row 3; `values` as for `report_row`."""
    (page,) = pages(report_row(3, **values), thumbs=thumbs)
    return page[page.index("<article") : page.index("</article>")]


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Parsed(HTMLParser):
    """A page's elements, with the text directly inside each; fails on tags closed out of order."""

    page: str
    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "input"}:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open:
            self.open[-1].text += data

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def values(self, *names: str) -> list[str]:
        found = (v for e in self.elements for k, v in e.attributes.items() if k in names)
        return [value or "" for value in found]


@pytest.fixture(scope="module")
def page() -> str:
    """A page with a row that was edited and one that failed, of one provider each."""
    (page,) = pages(report_row(3, **EDITED), report_row(4, **FAILED | {"provider": "openai"}))
    return page


def test_a_page_is_well_formed_and_its_ids_are_unique(page: str) -> None:
    assert page.startswith("<!doctype html>\n")
    parsed = Parsed(page)
    assert parsed.open == []
    ids = parsed.values("id")
    assert {"r-3", "r-4", "rows", "s-all", "s-failed"} <= set(ids)
    assert len(ids) == len(set(ids))


MARKUP = (
    *("<script>alert(1)</script>", "</style><script>", '" onload="x', "javascript:alert(1)"),
    *("-->", "{{ summary }}{% endif %}"),
)
hostile = st.text(st.sampled_from("<>&\"'/ =sSc`\u202e\u2028-!{}%#")) | st.sampled_from(MARKUP)


@given(hostile, hostile, hostile, hostile)
def test_text_of_a_row_never_becomes_markup(a: str, b: str, c: str, d: str) -> None:
    row = report_row(
        **FAILED
        | {"instruction": a, "detail": b, "images": (c,), "endpoint": d, "model": c}
        | {"warnings": (a, d)}
    )
    edited = report_row(4, **EDITED | {"outputs": (f"{JOB}/images/{b}.png",)})
    parsed = Parsed(pages(replace(row, key=d), edited, reason=a, note=b)[0])
    assert parsed.open == []
    data, program = parsed.all("script")
    assert data.attributes == {"type": "application/json", "id": "search-index"}
    assert " ".join(in_written_order(a).split()).startswith(
        json.loads(data.text)["instructions"][0]
    )
    assert program.text == script()
    assert not any(name.startswith("on") for e in parsed.elements for name in e.attributes)
    assert not any(
        link.strip().lower().startswith("javascript:") for link in parsed.values("href", "src")
    )
    assert len(parsed.all("style")) == 1
    for text in (a.strip(), b, d):
        assert in_written_order(text) in parsed.text


@pytest.mark.parametrize("text", ["a<b", "a&amp;b", "\"'", "</p><i>x</i>", "<script>x</script>"])
def test_text_and_attributes_read_back_as_they_were(text: str) -> None:
    source = f'https://x.test/"><script>{text}'
    row = report_row(3, **FAILED | {"instruction": text, "images": (source,), "endpoint": text})
    parsed = Parsed(pages(row, report_row(4, **EDITED | {"instruction": text}))[0])
    shown = [e.text for e in parsed.all("p") if e.attributes.get("class") == "instruction"]
    assert shown == [text, text]
    assert [e.text for e in parsed.all("a") if e.attributes["href"] == source] == [source]
    assert f"After: {text}" in parsed.values("alt")


def test_one_choice_of_each_filter_is_checked(page: str) -> None:
    inputs = Parsed(page).all("input")
    assert [e.attributes["id"] for e in inputs if "checked" in e.attributes] == ["s-all", "p-all"]
    assert all(e.attributes.get("checked") is None for e in inputs)
    assert not any("disabled" in e.attributes for e in inputs)


def test_filters_say_what_they_count() -> None:
    (whole,) = pages(report_row(3, **EDITED))
    assert "<legend>Status in the whole job</legend>" in whole
    for page in pages(*(report_row(n, **EDITED) for n in range(ROWS_PER_PAGE + 1))):
        assert "<legend>Status on this page</legend>" in page


def test_the_policy_allows_only_its_own_style_and_images_of_its_job(page: str) -> None:
    parsed = Parsed(page)
    (policy,) = (
        e.attributes["content"]
        for e in parsed.all("meta")
        if e.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    (style,) = parsed.all("style")
    assert style.text == stylesheet()
    assert "</" not in style.text
    assert parsed.all("script")[-1].text == script()
    style_digest, script_digest = (
        b64encode(sha256(text.encode()).digest()).decode() for text in (style.text, script())
    )
    assert policy == (
        f"default-src 'none'; img-src data: 'self'; style-src 'sha256-{style_digest}'; "
        f"script-src 'sha256-{script_digest}'; base-uri 'none'; form-action 'none'"
    )
    assert "style" not in {name for e in parsed.elements for name in e.attributes}


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (EDITED, ("make it blue", "gemini-main", "gemini-3-pro-image", "$0.134", "8.1 s", "Row 3")),
        (EDITED, ('href="images/my%20cup%20%231.png"',)),  # relative and quoted
        (EDITED | {"outputs": OUTPUTS}, [f'href="images/a{n}.png"' for n in ("", "-1", "-2")]),
        (EDITED | {"earlier": True}, ("earlier upload",)),
        (EDITED | {"fallback": True}, ("fallback",)),
        (EDITED | {"warnings": ("size changed",)}, ("size changed",)),
        (EDITED | {"possible_duplicate_charges": 1}, ("billed this row more than once",)),
        (FAILED, ("failed", "refused", "blocked for safety", "Next: ", "Reword the instruction")),
        (
            FAILED | {"images": SOURCES},
            (SOURCE_LINK, "<code>s3://b/k.png</code>", "<code>d.png</code>"),
        ),
        *(
            (EDITED | {"cost_micro_usd": cost}, (f"<dt>Cost</dt><dd>{shown}</dd>",))
            for cost, shown in (
                (0, "$0.00"),
                (39_000, "$0.039"),
                (1_234_500_000, "$1,234.50"),
                (None, "not known"),
            )
        ),
    ],
)
def test_a_card_shows_outcome_and_next_step(values: dict[str, Any], texts: Sequence[str]) -> None:
    assert [text for text in texts if text not in card(**values)] == []


@pytest.mark.parametrize(
    "reference",
    ["https://x.test/a.jpg", "http://x.test/a.jpg", "s3://b/a.jpg", "a.jpg", "javascript:alert(1)"],
)
@pytest.mark.parametrize("values", [EDITED, FAILED], ids=["edited", "failed"])
def test_only_https_images_are_linked(values: dict[str, Any], reference: str) -> None:
    text = card(**values | {"images": (reference,)})
    assert (f'href="{reference}"' in text) is reference.startswith("https://")


@pytest.mark.parametrize(
    ("thumb", "mime"),
    [
        (WEBP, "image/webp"),
        (b"\x89PNG\r\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"<svg onload=alert(1)>", None),
        (b"", None),
        (WEBP + bytes(500_000), None),
        (None, None),
    ],
)
def test_only_small_images_are_embedded(thumb: bytes | None, mime: str | None) -> None:
    (page,) = pages(report_row(3, **EDITED), thumbs=replace(BOTH, before=thumb, after=thumb))
    uri = f"data:{mime};base64,{b64encode(thumb or b'').decode()}"
    assert Parsed(page).values("src") == ([uri, uri] if mime else [])
    assert page.count("No preview") == (0 if mime else 2)


def test_a_row_without_images_is_text_only() -> None:
    assert "<figure" not in card(Thumbs(), **FAILED)


def test_rows_are_split_into_pages_that_link_to_each_other_and_to_failed_rows() -> None:
    rows = [report_row(n, **EDITED) for n in range(ROWS_PER_PAGE * 2 + 1)]
    rows[120] = report_row(120, **FAILED)
    first, second, third = pages(*rows)
    assert [p.count("<article") for p in (first, second, third)] == [100, 100, 1]
    assert 'href="report-002.html"' in first
    assert 'href="report.html"' in second
    assert 'href="report-003.html"' in second
    assert "Rows ended in each" in first
    assert "Outcomes over time" not in second
    assert 'href="report-002.html#r-120"' in first
    assert 'id="r-120"' in second


@pytest.mark.parametrize(
    ("statuses", "tiles"),
    [
        ([], {"Failed": "0"}),
        ([RowState.FAILED], {"Failed": "1"}),
        ([RowState.DEAD], {"Dead": "1"}),
        ([RowState.DEAD, RowState.FAILED, RowState.DEAD], {"Failed": "1", "Dead": "2"}),
    ],
)
def test_failed_and_dead_rows_have_tiles(statuses: list[RowState], tiles: dict[str, str]) -> None:
    (page,) = pages(*(report_row(n, status) for n, status in enumerate(statuses)))
    shown = tiles_of(page)
    assert {name: shown[name] for name in ("Failed", "Dead") if name in shown} == tiles


def test_a_job_without_rows_to_show_still_has_its_page_which_names_what_is_left_out() -> None:
    (only,) = pages(note="10 rows are not shown")
    assert "<article" not in only
    assert JOB in only
    assert "10 rows are not shown" in only


def test_the_page_of_a_rejected_file_shows_the_reason() -> None:
    rejected = summary(state="failed", reason="The file has no header <row>.")
    page = rejected_page(rejected).decode()
    assert "The file has no header &lt;row&gt;." in page
    assert Parsed(page).open == []


def test_every_choice_without_a_card_shows_its_text(page: str) -> None:
    (names,) = (value for value in Parsed(page).values("class") if value.startswith("no-rows "))
    absent = set(names.split())
    assert {"x-succeeded-openai", "x-failed-gemini", "x-dead-all"} <= absent
    assert not {"x-succeeded-gemini", "x-failed-openai", "x-all-all"} & absent
    for name in absent - {"no-rows"}:
        assert f".no-rows.{name} " in stylesheet()


@pytest.mark.parametrize("module", ["editor.batch", "splitter", "report.manifest", "bootstrap"])
def test_only_the_reporter_loads_the_template_engine(module: str) -> None:
    program = f"import sys, darkroom.{module}; sys.exit('jinja2' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def table_rows(page: str) -> dict[str, list[str]]:
    """The cells of the endpoint table by the name in the first one."""
    body = page[page.index('<table class="endpoints">') : page.index("</tfoot>")]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("<tr>")[2:]]
    return {name: cells for name, *cells in rows}


def tiles_of(page: str) -> dict[str, str]:
    tile = r"<dt>(\w+)</dt><dd>(?:<a [^>]*>)?([^<\s]+)"
    return dict(re.findall(tile, page[: page.index("</dl>")]))


def test_the_endpoint_table_adds_up_to_the_tiles() -> None:
    not_called: dict[str, Any] = {
        "status": RowState.FAILED,
        "reason": Reason.BAD_INPUT,
        "cost_micro_usd": 0,
    }
    openai = EDITED | {"provider": "openai", "endpoint": "openai-main", "fallback": True}
    made = pages(
        report_row(0, **EDITED),
        report_row(1, **FAILED),
        report_row(2, **openai),
        report_row(3, **FAILED | {"status": RowState.DEAD, "provider": "openai", "endpoint": "o2"}),
        report_row(4, **not_called),
        report_row(5, **EDITED, earlier=True),
        report_row(6, **FAILED, earlier=True),
        report_row(7, status=RowState.SKIPPED),
    )
    rows, figures = table_rows(made[0]), tiles_of(made[0])
    assert rows == {
        "gemini-main": ["1", "0", "1", "$0.268", "8.3 s", "8.3 s"],
        "o2": ["0", "0", "1", "$0.134", "8.3 s", "8.3 s"],
        "openai-main": ["1", "1", "0", "$0.134", "8.3 s", "8.3 s"],
        "No provider called": ["0", "0", "1", "$0.00", "", ""],
        "Earlier uploads": ["1", "0", "1", "", "", ""],
        "Total": ["3", "1", "4", "$0.536", "", ""],
    }
    total = rows.pop("Total")
    for column in range(3):
        assert int(total[column]) == sum(int(cells[column]) for cells in rows.values())
    assert total[0] == figures["Succeeded"]
    assert int(total[2]) == int(figures["Failed"]) + int(figures["Dead"])
    assert total[3] == figures["Cost"]


def test_a_failed_row_shows_the_endpoint_and_model_that_refused_it() -> None:
    text = Parsed(card(**FAILED)).text
    for expected in ("gemini", "gemini-main", "gemini-3-pro-image"):
        assert expected in text
    assert "p-gemini" in card(**FAILED)


def test_every_page_of_a_sample_says_which_rows_it_covers() -> None:
    rows = [report_row(n, **EDITED) for n in range(150)]
    counts = RowCounts(rows=20_000, succeeded=19_000, skipped=1_000)
    for page in pages(*rows, counts=counts):
        assert "150 of the job's 19,000 rows are in this gallery and its search; " in page
        assert '<a href="manifest.csv">manifest.csv</a> has all.' in page
    assert "rows are in this gallery" not in pages(*rows)[0]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (RowCounts(), "The CSV has a header and no rows."),
        (RowCounts(rows=5, skipped=5), "No row is to be shown: all are outside filter-rows."),
    ],
)
def test_a_gallery_without_rows_says_why_and_offers_no_search(
    counts: RowCounts, expected: str
) -> None:
    (page,) = pages(counts=counts)
    assert f'<p class="empty">{expected}</p>' in page
    assert 'class="toolbar"' not in page
    assert 'id="search-index"' not in page


def test_an_upload_that_edited_nothing_says_so() -> None:
    said = "This upload edited no row: every result is of an earlier one."
    rows = (report_row(0, **EDITED), report_row(1, **FAILED))
    earlier = RowCounts(rows=3, succeeded=1, resumed=1, failed=1, kept_failed=1, skipped=1)
    assert said in pages(*rows, counts=earlier)[0]
    for counts in (earlier.model_copy(update={"rows": 4}), RowCounts(rows=3, skipped=3)):
        assert said not in pages(*rows, counts=counts)[0]


def test_before_links_to_its_larger_preview() -> None:
    made = Parsed(card(**EDITED | {"images": ("https://x.test/a.jpg",)}))
    link = next(e for e in made.elements if e.tag == "a")
    assert link.attributes["href"] == "thumbs/a%20b-before.webp"
    assert link.attributes["class"] == "large"


@pytest.mark.parametrize(
    "reference",
    [
        "https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Credential=AKIASECRET&X-Amz-Signature=5ec2e7",
        "https://storage.test/a.jpg?token=5ec2e7",
        "https://storage.test/a.jpg#5ec2e7",
        "https://user:5ec2e7@storage.test/a.jpg",
        "https://user:5ec2e7@storage.test",
        "s3://user:5ec2e7@bucket/a.jpg",
    ],
)
@pytest.mark.parametrize("row", [EDITED, FAILED])
def test_what_gives_access_to_an_image_is_not_in_the_page(row: Any, reference: str) -> None:
    for thumbs in (BOTH, Thumbs()):
        shown = card(thumbs, **row | {"images": (reference,)})
        assert "5ec2e7" not in shown
        assert "SECRET" not in shown
    assert "a.jpg" in card(**FAILED | {"images": ("https://storage.test/a.jpg?token=5ec2e7",)})


@pytest.mark.parametrize(
    "character", list("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)
def test_a_character_that_reorders_text_shows_as_a_placeholder(character: str) -> None:
    """Without it, photo[U+202E]gpj.exe shows as photoexe.jpg."""
    name = f"photo{character}gpj.exe"
    texts: dict[str, Any] = {"instruction": name, "warnings": (name,), "model": name}
    texts |= {"images": (f"https://x.test/{name}",), "shown_cells": ((name, name),)}
    failed = report_row(1, **FAILED | texts | {"detail": name, "endpoint": name})
    rows = tuple(replace(row, key=name) for row in (report_row(0, **EDITED | texts), failed))
    for page in (*pages(*rows), problems_page(summary(*rows), rows).decode()):
        assert character not in page
        assert page.count("photo\N{REPLACEMENT CHARACTER}gpj.exe") > 5
        assert 'href="https://x.test/' not in page  # it would lead elsewhere


def test_marks_of_text_from_right_to_left_stay() -> None:
    instruction = "\u200fكلب\u200e 1:1"
    assert f'dir="auto">{instruction}</p>' in card(**EDITED | {"instruction": instruction})


def test_the_axis_of_a_short_job_ends_where_the_chart_ends() -> None:
    """Two bars of 1 s on an axis of twelve: it ends 12 s after its start."""
    made = pages(*(report_row(n, **EDITED | {"settled_at": START + n}) for n in range(2)))[0]
    axis = re.search(r'class="axis"><span>(.*?)</span><span>(.*?)</span></div>', made)
    assert axis is not None
    start, end = (datetime.strptime(at, "%d %b %Y, %H:%M:%S %Z") for at in axis.groups())  # noqa: DTZ007  # UTC
    assert (end - start).total_seconds() == 12
    assert 'viewBox="0 0 12 1"' in made


@pytest.mark.parametrize(
    ("rows", "seconds", "expected"),
    [(60, 60, "60.0 a minute"), (1, 120, "30.0 an hour"), (1, 86_400, "1.0 a day")],
)
def test_a_slow_job_has_a_rate_too(rows: int, seconds: int, expected: str) -> None:
    made = pages(*[report_row(n, **EDITED) for n in range(rows)], duration_seconds=seconds)
    assert f"<small>{expected}</small>" in made[0]


def test_one_row_is_one_row() -> None:
    page = Parsed(pages(report_row(0, **EDITED | {"warnings": ("cut",), "fallback": True}))[0])
    assert "1 row" in page.text
    assert "1 rows" not in page.text


def test_rows_of_a_sample_are_not_called_the_first_ones() -> None:
    failed = [report_row(n, **FAILED) for n in range(300)]
    all_shown = pages(*failed)[0]
    assert "Show the first 200 rows" in all_shown
    whole = summary(*failed)
    sampled = next(gallery_pages(whole, failed[:122], None, lambda rows: [BOTH] * len(rows)))
    assert b"Show 122 of the rows: those in this gallery" in sampled


def test_a_page_of_texts_of_line_breaks_is_made_at_once() -> None:
    instruction = "a" + "\n" * 30_000 + "b"
    before = process_time()
    (page,) = pages(report_row(3, **EDITED | {"instruction": instruction}))
    assert process_time() - before < 0.5
    assert instruction in page


def test_urls_in_an_instruction_do_not_give_access() -> None:
    selection = GallerySelection(JOB)
    selection.add(report_row(instruction="Add https://me:5ecret@h/l.png?sig=5ecret at the top"))
    (row,) = selection.rows()
    assert row.instruction == "Add https://…@h/l.png?… at the top"


def test_a_text_that_is_cut_says_so() -> None:
    selection = GallerySelection("j")
    selection.add(report_row(0, **EDITED | {"instruction": "x" * 5_000}))
    (row,) = selection.rows()
    assert row.instruction.endswith(
        "x … [cut here, after 4,000 of 5,000 characters: see manifest.csv]"
    )


def test_all_rows_that_failed_are_on_one_page_linked_from_the_tiles() -> None:
    rows = [report_row(n, **(FAILED if n % 2 else EDITED)) for n in range(500)]
    first = pages(*rows)[0]
    assert '<dd><a href="report-problems.html">250</a>' in first
    page = problems_page(summary(*rows), rows).decode()
    assert page.count("<article") == 250
    assert page.count("Reword the instruction") == 1
    assert "250 rows failed" in page
    assert 'href="report.html"' in page
    assert "report-problems.html" not in pages(report_row(0, **EDITED))[0]


def test_a_thousand_failed_rows_fit_into_a_page_of_a_megabyte() -> None:
    detail = "gemini-main: blocked by a safety filter of the provider (IMAGE_SAFETY)"
    values = FAILED | {"detail": detail, "instruction": "Replace the background with grey. " * 6}
    rows = [report_row(n, **values) for n in range(1_000)]
    page = problems_page(summary(*rows), rows)
    assert page.count(b"<article") == 1_000
    assert len(page) < 1_000_000


def columns(*header: str) -> Columns:
    return read_columns(header, JobOptions())


def test_a_card_shows_three_of_the_users_columns_and_the_name_of_the_file() -> None:
    selection = GallerySelection("j")
    selection.describe_columns(columns("sku", "image_url", "instruction", "shop", "note", "more"))
    cells = ("A-1", "a.jpg", "make it blue", "Basel", "https://x.test/?sig=5ec2e7", "unseen")
    selection.add(report_row(3, **EDITED, cells=cells))
    (page,) = pages(*selection.rows())
    for name, value in (
        *(("sku", "A-1"), ("shop", "Basel")),
        *(("note", "https://x.test/?…"), ("File", "a.jpg")),
    ):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page
    assert "unseen" not in page
    assert "5ec2e7" not in page


def test_a_row_that_could_not_be_read_shows_its_cells() -> None:
    selection = GallerySelection("j")
    selection.describe_columns(columns("image_url", "instruction", "n"))
    bad: dict[str, Any] = {"reason": Reason.BAD_INPUT, "detail": "column n: 'x' is not a number"}
    selection.add(report_row(3, RowState.FAILED, cells=("a.jpg", "make it blue", "x"), **bad))
    (page,) = pages(*selection.rows())
    for name, value in (("image_url", "a.jpg"), ("instruction", "make it blue"), ("n", "x")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page


def test_the_mode_is_shown_in_jobs_that_have_one() -> None:
    mode = "<dt>Mode</dt><dd>{}</dd>"
    assert mode.format("batch") in card(**EDITED, mode="batch")
    (live,) = pages(report_row(0, **EDITED))
    assert "<dt>Mode</dt>" not in live
    assert "<dt>In batches</dt>" not in live
    options = JobOptions(mode="batch")
    (batch,) = pages(report_row(0, **EDITED), options=options)
    assert mode.format("live") in batch  # called for, because its batch gave no answer
