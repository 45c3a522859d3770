"""The gallery's HTML: escaping, links, pages. How it looks is tests/browser's matter."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.report.gallery import (
    ROWS_PER_PAGE,
    Gallery,
    Safe,
    Thumbs,
    card,
    cost_text,
    data_uri,
    failure_page,
    raw_text,
    relative,
    stylesheet,
    tag,
)
from darkroom.report.rows import ReportRow, RowStatus
from darkroom.report.summary import JobSummary, Results, Tally, source_of, utc
from tests.report_world import JOB, a_run

WEBP = b"RIFF\x00\x00\x00\x00WEBPVP8 "
LINE = ReportRow(
    row=3,
    key="000003",
    status=RowStatus.SUCCEEDED,
    instruction="make it blue",
    images=("https://x.test/a.jpg",),
    outputs=(f"{JOB}/images/my cup #1.png",),
    provider="gemini",
    endpoint="gemini-main",
    model="gemini-3-pro-image",
    attempts=2,
    latency_ms=8_123,
    cost_micro_usd=134_000,
    settled_at=1.79e9,
)
FAILED = replace(
    LINE, status=RowStatus.FAILED, reason="refused", detail="blocked for safety", outputs=()
)


def summary(*lines: ReportRow, **changes: object) -> JobSummary:
    tally, run = Tally(), a_run()
    for line in lines:
        tally.add(line)
    made = JobSummary(
        job=JOB,
        run=run.run,
        state="done",
        source=source_of(run),
        options=run.options,
        started_at=utc(0),
        finished_at=utc(60),
        duration_seconds=60,
        counts=tally.counts(),
        endpoints=tally.endpoints(),
        errors=tally.errors(),
        timeline=tally.timeline_summary(),
        results=Results(report="r", images="i"),
    )
    return made.model_copy(update=changes)


def pages(*lines: ReportRow, note: str | None = None, **changes: object) -> list[str]:
    gallery = Gallery(summary(*lines, **changes), lines, note)
    return [p.decode() for p in gallery.pages(lambda chunk: [Thumbs(WEBP, WEBP)] * len(chunk))]


class Structure(HTMLParser):
    """Tags that open and close in order, ids, links, and the elements met."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.met: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.met.append(tag)
        self.attributes += attrs
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_well_formed_and_its_ids_are_unique() -> None:
    found = Structure(pages(LINE, replace(FAILED, row=4))[0])
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))


hostile = st.text(st.sampled_from("<>&\"'/ =sSc`\u202e\u2028-!")) | st.sampled_from(
    ["<script>alert(1)</script>", "</style><script>", '" onload="x', "javascript:alert(1)", "-->"]
)


@given(hostile, hostile, hostile, hostile)
def test_nothing_a_row_says_becomes_markup(a: str, b: str, c: str, d: str) -> None:
    line = replace(
        FAILED, instruction=a, detail=b, images=(c,), endpoint=d, model=c, key=d, warnings=(a, d)
    )
    page = pages(line, replace(LINE, row=4, outputs=(f"{JOB}/images/{b}.png",)), reason=a)[0]
    found = Structure(page)
    assert "script" not in found.met
    assert not any(name.startswith("on") for name, _ in found.attributes)
    links = [value or "" for name, value in found.attributes if name in ("href", "src")]
    assert not any(link.strip().lower().startswith("javascript:") for link in links)
    assert found.met.count("style") == 1


def test_the_policy_allows_nothing_but_its_own_style_and_inline_pictures() -> None:
    page = pages(LINE)[0]
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src &#x27;none&#x27;; img-src data:; style-src")
    assert "unsafe" not in policy[1]
    assert 'style="' not in page  # inline styles would be refused by it


def test_the_card_tells_how_the_picture_came_about() -> None:
    text = card(LINE, Thumbs(WEBP, WEBP), JOB)
    for told in ("make it blue", "gemini-main", "gemini-3-pro-image", "$0.134", "8.1 s", "Row 3"):
        assert told in text


def test_a_failed_row_tells_why_and_what_to_do_next() -> None:
    text = card(FAILED, Thumbs(WEBP, None), JOB)
    for told in ("failed", "refused", "blocked for safety", "Next: ", "Reword the instruction"):
        assert told in text


def test_a_row_without_a_picture_names_its_sources() -> None:
    line = replace(FAILED, images=("https://x.test/a.jpg", "s3://b/k.png", "c.png", "d.png"))
    text = card(line, Thumbs(), JOB)
    assert '<a href="https://x.test/a.jpg" rel="noreferrer">https://x.test/a.jpg</a>' in text
    assert "<code>s3://b/k.png</code>" in text
    assert "and 1 more" in text


def test_fallback_warnings_and_possible_double_charges_show() -> None:
    line = replace(LINE, fallback=True, warnings=("size changed",), possible_duplicate_charges=1)
    text = card(line, Thumbs(WEBP, WEBP), JOB)
    for told in ("fallback", "size changed", "billed this row more than once"):
        assert told in text


def test_an_earlier_upload_shows() -> None:
    assert "earlier upload" in card(replace(LINE, earlier=True), Thumbs(WEBP, WEBP), JOB)


def test_links_to_full_pictures_are_relative_and_quoted() -> None:
    assert relative(f"{JOB}/images/my cup #1.png", JOB) == "images/my%20cup%20%231.png"


@pytest.mark.parametrize(
    ("reference", "linked"),
    [
        ("https://x.test/a.jpg", True),
        ("http://x.test/a.jpg", False),
        ("s3://bucket/a.jpg", False),
        ("a.jpg", False),
        ("javascript:alert(1)", False),
    ],
)
def test_only_https_sources_are_linked(reference: str, linked: bool) -> None:
    for line in (LINE, FAILED):
        text = card(replace(line, images=(reference,)), Thumbs(WEBP, WEBP), JOB)
        assert (f'href="{reference}"' in text) is linked


def test_every_further_picture_of_a_row_is_linked() -> None:
    outputs = (f"{JOB}/images/a.png", f"{JOB}/images/a-1.png", f"{JOB}/images/a-2.png")
    text = card(replace(LINE, outputs=outputs), Thumbs(WEBP, WEBP), JOB)
    for name in ("images/a.png", "images/a-1.png", "images/a-2.png"):
        assert f'href="{name}"' in text


@pytest.mark.parametrize(
    ("data", "mime"),
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
def test_only_small_pictures_are_embedded(data: bytes | None, mime: str | None) -> None:
    found = data_uri(data)
    assert (found or "").startswith(f"data:{mime};base64," if mime else "")
    assert (found is None) is (mime is None)


def test_a_row_with_nothing_to_look_at_is_words_only() -> None:
    assert "<figure" not in card(FAILED, Thumbs(), JOB)


def test_rows_are_split_into_pages_that_lead_to_each_other() -> None:
    lines = [replace(LINE, row=n) for n in range(ROWS_PER_PAGE * 2 + 1)]
    first, second, third = pages(*lines)
    assert [p.count("<article") for p in (first, second, third)] == [100, 100, 1]
    assert 'href="report-002.html"' in first
    assert 'href="report.html"' in second
    assert 'href="report-003.html"' in second
    assert "Outcomes over time" in first
    assert "Outcomes over time" not in second


def test_failed_rows_are_linked_from_the_first_page_to_their_own() -> None:
    lines = [replace(LINE, row=n) for n in range(150)]
    lines[120] = replace(FAILED, row=120)
    first, second = pages(*lines)
    assert 'href="report-002.html#r-120"' in first
    assert 'id="r-120"' in second


def test_a_job_without_a_row_to_show_still_has_its_page() -> None:
    (only,) = pages()
    assert "<article" not in only
    assert JOB in only


def test_what_is_left_out_is_said() -> None:
    assert "a random 1,000" in pages(LINE, note="a random 1,000 rows")[0]


def test_a_rejected_file_shows_its_sentence() -> None:
    told = summary(state="failed", reason="The file has no header <row>.")
    page = failure_page(told).decode()
    assert "The file has no header &lt;row&gt;." in page
    assert Structure(page).open == []


def test_every_choice_without_a_card_has_its_words() -> None:
    page = pages(LINE, replace(FAILED, row=4, provider="openai"))[0]
    found = re.search(r'class="(none [^"]+)"', page)
    assert found is not None
    absent = set(found[1].split())
    assert {"x-succeeded-openai", "x-failed-gemini", "x-dead-all"} <= absent
    assert not {"x-succeeded-gemini", "x-failed-openai", "x-all-all"} & absent
    for name in absent - {"none"}:
        assert f".none.{name} " in stylesheet()


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a<b", Safe("<i>x</i>")) == "<p>a&lt;b<i>x</i></p>"
    assert tag("a", "x", href='"><script>') == '<a href="&quot;&gt;&lt;script&gt;">x</a>'
    assert tag("input", checked=True, disabled=False, value=None) == "<input checked>"


def test_a_style_sheet_cannot_end_its_element() -> None:
    with pytest.raises(ValueError, match="must not contain"):
        raw_text("style", "</style><script>")


@pytest.mark.parametrize(
    ("micro", "text"),
    [(0, "$0.00"), (39_000, "$0.039"), (1_234_500_000, "$1,234.50"), (None, "not known")],
)
def test_costs_read_well(micro: int | None, text: str) -> None:
    assert cost_text(micro) == text
