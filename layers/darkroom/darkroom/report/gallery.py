"""HTML that escapes by construction: text goes in as str, only `tag` makes markup.

A page of a few elements needs no template engine; a string that did not come from `tag` can only
ever be text.
"""

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from itertools import batched
from urllib.parse import quote

from darkroom.errors import remediation
from darkroom.formatting import duration, money
from darkroom.jobs import ResultPaths
from darkroom.providers.registry import Provider
from darkroom.report.rows import ReportRow, RowStatus
from darkroom.report.summary import BAR_STATUSES, Bar, EndpointSummary, ErrorClass, JobSummary

type Child = Safe | str | Iterable[Child] | None

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Safe(str):
    """Markup that is escaped already."""

    __slots__ = ()


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Safe:
    """One element. `class_` is class, `data_x` is data-x; None and False leave an attribute out."""
    head = name + "".join(_attribute(k, v) for k, v in attributes.items())
    if name in _VOID:
        return Safe(f"<{head}>")
    return Safe(f"<{head}>{render(children)}</{name}>")


def render(children: Child) -> Safe:
    """Children one after the other; text escaped."""
    if children is None:
        return Safe("")
    if isinstance(children, Safe):
        return children
    if isinstance(children, str):
        return Safe(escape(children, quote=False))
    return Safe("".join(render(child) for child in children))


def raw_text(name: str, content: str) -> Safe:
    """A style element: its content is not HTML and is written as it stands.

    Raises ValueError if the content would end the element.
    """
    if "</" in content:
        raise ValueError(f"the content of <{name}> must not contain '</'")
    return Safe(f"<{name}>{content}</{name}>")


def _attribute(name: str, value: str | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    written = name.rstrip("_").replace("_", "-")
    return f" {written}" if value is True else f' {written}="{escape(str(value))}"'


# One row of the gallery: before and after side by side, and how it came about.


MOST_THUMB_BYTES = 400_000
_MOST_SOURCES = 3
_LONG_SOURCE = 120
_LONG_INSTRUCTION = 260  # characters shown before the rest folds away


@dataclass(frozen=True, slots=True)
class Thumbs:
    """The small pictures of a row as the editor stored them; None where there is none."""

    before: bytes | None = None
    after: bytes | None = None


def provider_class(line: ReportRow) -> str:
    return line.provider if line.provider in PROVIDERS else "none"


def card(line: ReportRow, thumbs: Thumbs, job: str) -> Safe:
    """The row as an article with the id `r-<row>`."""
    return tag(
        "article",
        _pair(line, thumbs, job),
        tag(
            "div",
            _chips(line),
            _instruction(line),
            _boxes(line),
            _copies(line, job),
            _sources(line),
            _facts(line),
            class_="body",
        ),
        id=f"r-{line.row}",
        class_=f"card s-{line.status.value} p-{provider_class(line)}",
        aria_label=f"Row {line.row}, {line.status.value}",
    )


def relative(output: str, job: str) -> str:
    """The link from a page to a picture of the same job, in the bucket and in a download."""
    return quote(output.removeprefix(f"{job}/"))


def _pair(line: ReportRow, thumbs: Thumbs, job: str) -> Safe | None:
    if not line.outputs:
        return None  # nothing to look at: the words are the card
    before, after = _before(line, thumbs.before), _after(line, thumbs.after, job)
    return tag("div", before, after, class_="pair")


def _before(line: ReportRow, thumb: bytes | None) -> Safe:
    first = line.images[0] if line.images else None
    source = data_uri(thumb)
    if source is None:
        return _blank("No picture went in: made from text" if first is None else "No preview")
    picture: Safe = tag("img", src=source, alt=f"Before: {_name(first)}", **_LAZY)
    if first is not None and first.startswith("https://"):
        picture = tag("a", picture, href=first, rel="noreferrer", title="Open the source picture")
    more = len(line.images) - 1
    return tag("figure", picture, tag("figcaption", "Before" + (f" + {more}" if more > 0 else "")))


def _after(line: ReportRow, thumb: bytes | None, job: str) -> Safe:
    source = data_uri(thumb)
    if source is None:
        picture: Safe = tag("figcaption", "No preview")
    else:
        picture = tag("img", src=source, alt=f"After: {_told(line)}", **_LAZY)
    link = tag("a", picture, href=relative(line.outputs[0], job), title="Open the full picture")
    return tag("figure", link, tag("figcaption", "After"))


_LAZY = {"loading": "lazy", "decoding": "async"}


def _blank(text: str) -> Safe:
    return tag("figure", tag("span", text), class_="blank")


def _name(reference: str | None) -> str:
    if reference is None or reference.startswith("data:"):
        return "the picture"
    return reference.split("?", 1)[0].rsplit("/", 1)[-1] or "the picture"


def _told(line: ReportRow) -> str:
    return line.instruction[:120] or "the edited picture"


def data_uri(thumb: bytes | None) -> str | None:
    """The picture inline; None if there is none, or it is not one a page should carry."""
    if thumb is None or len(thumb) > MOST_THUMB_BYTES:
        return None
    if thumb[:4] == b"RIFF" and thumb[8:12] == b"WEBP":
        mime = "webp"
    elif thumb.startswith(b"\x89PNG"):
        mime = "png"
    elif thumb.startswith(b"\xff\xd8"):
        mime = "jpeg"
    else:
        return None
    return f"data:image/{mime};base64,{b64encode(thumb).decode()}"


def _chips(line: ReportRow) -> Safe:
    chips: list[Child] = [
        tag("a", f"Row {line.row}", href=f"#r-{line.row}", class_="num"),
        _chip(line.status.value, f"c-{line.status.value}"),
    ]
    if line.reason and line.status is not RowStatus.SKIPPED:
        chips.append(_chip(line.reason.replace("_", " "), f"c-{line.status.value}"))
    if line.provider:
        chips.append(_chip(line.provider))
    if line.fallback:
        chips.append(_chip("fallback", "c-warn"))
    if line.earlier:
        chips.append(_chip("earlier upload"))
    return tag("div", chips, class_="chips")


def _chip(text: str, kind: str = "") -> Safe:
    return tag("span", text, class_=f"chip {kind}".strip())


def _instruction(line: ReportRow) -> Safe | None:
    text = line.instruction.strip()
    if not text:
        return None
    if len(text) <= _LONG_INSTRUCTION:
        return tag("p", text, class_="say", dir="auto")
    start = text[:_LONG_INSTRUCTION].rsplit(None, 1)[0]
    fold = tag(
        "summary",
        tag("span", start, " … ", class_="cut"),
        _fold("all", "show all"),
        _fold("less", "show less"),
    )
    return tag("details", fold, tag("p", text), class_="say", dir="auto")


def _fold(kind: str, words: str) -> Safe:
    return tag("b", words, class_=f"fold-{kind}")


def _copies(line: ReportRow, job: str) -> Safe | None:
    """Links to the further pictures of a row with n > 1."""
    further = line.outputs[1:]
    links = ([tag("a", str(n), href=relative(o, job)), " "] for n, o in enumerate(further, 2))
    return tag("p", "More pictures: ", links, class_="more") if further else None


def _sources(line: ReportRow) -> Safe | None:
    """What went in, for a row without pictures to show."""
    if line.outputs or not line.images:
        return None
    shown = line.images[:_MOST_SOURCES]
    links = ([_source(reference), " "] for reference in shown)
    more = f"and {len(line.images) - len(shown)} more" if len(line.images) > len(shown) else None
    return tag("p", "Source: ", links, more, class_="more")


def _source(reference: str) -> Safe:
    text = reference if len(reference) <= _LONG_SOURCE else f"{reference[:_LONG_SOURCE]}…"
    if not reference.startswith("https://"):
        return tag("code", text)
    return tag("a", text, href=reference, rel="noreferrer")


def _boxes(line: ReportRow) -> list[Safe]:
    boxes: list[Safe] = []
    if line.status in (RowStatus.FAILED, RowStatus.DEAD):
        hint = tag("p", tag("b", "Next: "), remediation(line.reason), class_="next")
        why = tag("p", line.detail) if line.detail else None
        boxes.append(tag("div", why, hint, class_=f"box b-{line.status.value}"))
    elif line.detail:
        boxes.append(tag("div", tag("p", line.detail), class_="box"))
    notes = list(line.warnings)
    if line.possible_duplicate_charges:
        notes.append(
            f"A crash hid {line.possible_duplicate_charges} answer(s) of the provider: "
            "it may have billed this row more than once."
        )
    if notes:
        boxes.append(tag("div", (tag("p", note) for note in notes), class_="box b-warn"))
    return boxes


def _facts(line: ReportRow) -> Safe | None:
    called = bool(line.endpoint or line.attempts)
    facts = {
        "Key": line.key if line.key and not _is_row_number(line) else "",
        "Model": line.model,
        "Endpoint": line.endpoint,
        "Cost": cost_text(line.cost_micro_usd) if called else "",
        "Attempts": str(line.attempts) if called else "",
        "Latency": seconds_text(line.latency_ms) if line.latency_ms else "",
    }
    pairs = [tag("div", tag("dt", k), tag("dd", v)) for k, v in facts.items() if v]
    return tag("dl", pairs, class_="facts") if pairs else None


def _is_row_number(line: ReportRow) -> bool:
    return line.key.isdecimal() and int(line.key) == line.row


def cost_text(micro_usd: int | None) -> str:
    return "not known" if micro_usd is None else money(micro_usd / 1_000_000)


def seconds_text(ms: int) -> str:
    return f"{ms / 1000:.1f} s"


_WIDTH, _HEIGHT = 600, 100  # of the chart, in SVG units


def draw_chart(bars: Sequence[Bar], width_seconds: int) -> Safe:
    """Stacked bars as an SVG that stretches to its box; colours come from the page's classes."""
    tallest = max((bar.total for bar in bars), default=0) or 1
    step = _WIDTH / max(len(bars), 12)  # a short job gets bars, not a block
    drawn = [
        _column(bar, index * step, step * 0.82, tallest, width_seconds)
        for index, bar in enumerate(bars)
        if bar.total
    ]
    return tag(
        "svg",
        tag("title", "Rows settled over time"),
        drawn,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        class_="chart",
    )


def _column(bar: Bar, x: float, width: float, tallest: int, seconds: int) -> Safe:
    told = ", ".join(f"{getattr(bar, s.value):,} {s.value}" for s in BAR_STATUSES)
    parts: list[Safe] = [tag("title", f"{told} in {seconds:,} s")]
    top = float(_HEIGHT)
    for status in BAR_STATUSES:
        height = getattr(bar, status.value) / tallest * _HEIGHT
        if height:
            top -= height
            parts.append(
                tag(
                    "rect",
                    x=f"{x:.2f}",
                    y=f"{top:.2f}",
                    width=f"{width:.2f}",
                    height=f"{height:.2f}",
                    class_=f"fill-{status.value}",
                )
            )
    return tag("g", parts)


# The top of the first page: what became of the job, in figures, a chart and next steps.


def heading(summary: JobSummary, number: int, last: int) -> Safe:
    source = f"s3://{summary.source.bucket}/{summary.source.key}"
    made = f"{summary.state} {when(summary.finished_at)}"
    if summary.revision > 1:
        made += f", report made again ({summary.revision})"
    where = f" · page {number} of {last}" if last > 1 else ""
    return tag(
        "header",
        tag("div", "Darkroom", class_="brand"),
        tag("h1", summary.job),
        tag("p", made[:1].upper() + made[1:], " · ", tag("code", source), where, class_="sub"),
    )


def tiles(summary: JobSummary) -> Safe:
    counts, cost = summary.counts, summary.cost
    shown = [
        _tile("Rows", f"{counts.rows:,}", _of(counts.skipped, "skipped")),
        _tile("Succeeded", f"{counts.succeeded:,}", _of(counts.resumed, "earlier"), "t-succeeded"),
    ]
    if counts.failed or not counts.dead:
        kind = "t-failed" if counts.failed else ""
        shown.append(_tile("Failed", f"{counts.failed:,}", _of(counts.kept_failed, "kept"), kind))
    if counts.dead:
        shown.append(_tile("Dead", f"{counts.dead:,}", "in the dead-letter queue", "t-dead"))
    earlier = f"{money(cost.total_usd)} with earlier uploads" if cost.earlier_runs_usd else ""
    unpriced = f"without {cost.unpriced_rows:,} unpriced rows" if cost.unpriced_rows else ""
    shown.append(_tile("Cost", money(cost.this_run_usd), earlier or unpriced))
    rate = f"{summary.fallback.rate:.1%}"
    shown.append(_tile("Fallback", rate, f"{summary.fallback.rows:,} rows"))
    shown.append(_tile("Took", duration(summary.duration_seconds), _pace(summary)))
    if summary.possible_duplicate_charges:
        twice = f"{summary.possible_duplicate_charges:,}"
        shown.append(_tile("Possible double charges", twice, "see the manifest", "t-failed"))
    return tag("dl", shown, class_="tiles")


def _tile(name: str, value: str, note: str = "", kind: str = "") -> Safe:
    small = tag("small", note) if note else None
    return tag("div", tag("dt", name), tag("dd", value, small), class_=f"tile {kind}".strip())


def _of(count: int, what: str) -> str:
    return f"{count:,} {what}" if count else ""


def _pace(summary: JobSummary) -> str:
    counts = summary.counts
    done = counts.succeeded - counts.resumed
    if not done or summary.duration_seconds <= 0:
        return ""
    return f"{done / summary.duration_seconds * 60:,.1f} a minute"


def panels(summary: JobSummary) -> Safe | None:
    both = [p for p in (_chart_panel(summary), _endpoint_panel(summary.endpoints)) if p]
    return tag("div", both, class_="split" if len(both) > 1 else None) if both else None


def _chart_panel(summary: JobSummary) -> Safe | None:
    timeline = summary.timeline
    if not timeline.bars:
        return None
    bars = [Bar(b.start.timestamp(), b.succeeded, b.failed, b.dead) for b in timeline.bars]
    used = [s for s in ("succeeded", "failed", "dead") if any(getattr(b, s) for b in bars)]
    keys = [tag("span", s, class_=f"key k-{s}") for s in used]
    tallest = max(b.total for b in bars)
    axis = (
        tag("span", when(timeline.bars[0].start)),
        tag("span", f"up to {tallest:,} rows in {duration(timeline.bar_seconds)}"),
        tag("span", when(timeline.bars[-1].start)),
    )
    return tag(
        "section",
        tag("h2", "Outcomes over time", keys),
        draw_chart(bars, timeline.bar_seconds),
        tag("div", axis, class_="axis"),
        class_="panel",
    )


def _endpoint_panel(endpoints: Sequence[EndpointSummary]) -> Safe | None:
    if not endpoints:
        return None
    names = ("Endpoint", "Made", "Fallback", "Failed", "Cost", "Latency p50", "p95")
    head = tag("tr", (tag("th", n, class_="num" if i else None) for i, n in enumerate(names)))
    table = tag("table", tag("thead", head), tag("tbody", map(_endpoint_row, endpoints)))
    title = tag("h2", "Endpoints")
    # A region that scrolls must be reachable by keyboard.
    scroll = tag("div", table, class_="scroll", tabindex="0", role="group", aria_label="Endpoints")
    return tag("section", title, scroll, class_="panel")


def _endpoint_row(endpoint: EndpointSummary) -> Safe:
    p50, p95 = endpoint.latency_ms_p50, endpoint.latency_ms_p95
    cells = (
        f"{endpoint.succeeded:,}",
        f"{endpoint.fallback:,}",
        f"{endpoint.failed + endpoint.dead:,}",
        money(endpoint.cost_usd),
        seconds_text(p50) if p50 else "",
        seconds_text(p95) if p95 else "",
    )
    return tag("tr", tag("td", endpoint.endpoint), (tag("td", c, class_="num") for c in cells))


def error_item(error: ErrorClass, links: Sequence[Safe]) -> Safe:
    title = (
        tag("span", f"{error.rows:,} {error.status}", class_=f"chip c-{error.status}"),
        " ",
        tag("b", error.reason.replace("_", " ")),
    )
    example = tag("p", f"Row {error.example_row}: {error.example_detail}", class_="why")
    listed: Safe | None = None
    if links:
        more = f" (the first {len(links)})" if len(links) < error.rows else ""
        listed = tag(
            "details",
            tag("summary", f"Show the rows{more}"),
            tag("div", ([link, " "] for link in links)),
            class_="rows",
        )
    hint = tag("p", error.what_to_do, class_="next")
    return tag("li", title, hint, example if error.example_detail else None, listed)


def when(moment: datetime) -> str:
    return f"{moment.day} {moment:%b %Y, %H:%M:%S} UTC"


# The frame of every page: head, content security policy, style sheet.


PROVIDERS = (*Provider, "none")  # "none": no provider was called for the row
STATUSES = tuple(s.value for s in RowStatus)


def page(title: str, *content: Child) -> bytes:
    """A whole document. It loads nothing from anywhere and runs no script, and says so."""
    style = stylesheet()
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="robots", content="noindex"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        raw_text("style", style),
    )
    body = tag("body", tag("div", content, class_="page"))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n".encode()


@cache
def stylesheet() -> str:
    """The style sheet with the rules that make the filters work without a script."""
    written = files("darkroom.report").joinpath("gallery.css").read_text("utf-8")
    return written + "\n" + "\n".join(_filter_rules()) + "\n"


def _filter_rules() -> Iterable[str]:
    for status in STATUSES:
        yield f"body:has(#s-{status}:checked) .card:not(.s-{status}) {{ display: none; }}"
    for provider in PROVIDERS:
        yield f"body:has(#p-{provider}:checked) .card:not(.p-{provider}) {{ display: none; }}"
    # Said when no card is left: the element carries a class for every choice without a card.
    for status in ("all", *STATUSES):
        for provider in ("all", *PROVIDERS):
            chosen = f"body:has(#s-{status}:checked):has(#p-{provider}:checked)"
            yield f"{chosen} .none.x-{status}-{provider} {{ display: block; }}"


# report.html and its further pages: static, self-contained, readable without a script.


ROWS_PER_PAGE = 100
_MOST_LINKS = 200  # links to rows under one kind of error
_PAGER_REACH = 2  # pages named on either side of the current one

type LoadThumbs = Callable[[Sequence[ReportRow]], Sequence[Thumbs]]


@dataclass(frozen=True, slots=True)
class Gallery:
    """All pages of one job. `rows` in the order they are shown; `note` says what is left out."""

    summary: JobSummary
    rows: Sequence[ReportRow]
    note: str | None = None

    @property
    def page_count(self) -> int:
        return pages_for(len(self.rows))

    def pages(self, load: LoadThumbs) -> Iterator[bytes]:
        """Pages one at a time, each with its rows' small pictures, which `load` gives."""
        chunks = batched(self.rows, ROWS_PER_PAGE, strict=False) if self.rows else iter([()])
        for number, chunk in enumerate(chunks, 1):
            yield self._page(number, chunk, load(chunk))

    def _page(self, number: int, lines: Sequence[ReportRow], thumbs: Sequence[Thumbs]) -> bytes:
        summary = self.summary
        head: list[Child] = [tag("a", "Skip to the rows", href="#rows", class_="away jump")]
        head.append(heading(summary, number, self.page_count))
        if number == 1:
            head += [tiles(summary), self._notes(), panels(summary), self._trouble()]
        cards = [card(line, t, summary.job) for line, t in zip(lines, thumbs, strict=True)]
        pager = self._pager(number)
        rows = tag(
            "main",
            tag("h2", "Rows", class_="away"),
            tag("div", cards, class_="grid"),
            tag("p", "No row on this page matches both filters.", class_=_none_class(lines)),
            id="rows",
            tabindex="-1",
        )
        title = f"{summary.job} · Darkroom" + (f" · page {number}" if number > 1 else "")
        foot = _foot(self._pager(number), linked=self.page_count > 1)
        return page(title, head, _filters(lines, pager), rows, foot)

    def _notes(self) -> list[Safe]:
        notes = [self.note] if self.note else []
        notes += [w.text + (f" ({w.rows:,} rows)" if w.rows else "") for w in self.summary.warnings]
        if not notes:
            return []
        title = tag("h2", "Worth knowing")
        return [tag("section", title, (tag("p", n) for n in notes), class_="panel notice")]

    def _trouble(self) -> Safe | None:
        if not self.summary.errors:
            return None
        places: dict[tuple[str, str], list[Safe]] = {}
        for index, line in enumerate(self.rows):
            if line.status in (RowStatus.FAILED, RowStatus.DEAD):
                links = places.setdefault((line.status.value, line.reason), [])
                if len(links) < _MOST_LINKS:
                    links.append(self._row_link(index, line))
        items = [error_item(e, places.get((e.status, e.reason), [])) for e in self.summary.errors]
        title = tag("h2", "What did not work, and what to do")
        return tag("section", title, tag("ul", items, class_="trouble"), class_="panel")

    def _row_link(self, index: int, line: ReportRow) -> Safe:
        number = index // ROWS_PER_PAGE + 1
        name = "" if number == 1 else _file_name(self.summary.job, number)
        return tag("a", str(line.row), href=f"{name}#r-{line.row}")

    def _pager(self, current: int) -> Safe | None:
        last = self.page_count
        if last == 1:
            return None
        near = range(current - _PAGER_REACH, current + _PAGER_REACH + 1)
        shown = sorted({1, last, *(n for n in near if 1 <= n <= last)})
        items: list[Child] = []
        if current > 1:
            items.append(
                _page_link(self.summary.job, current - 1, "\u2190", "Previous page", "prev")
            )
        for before, number in zip([0, *shown], shown, strict=False):
            if number - before > 1:
                items.append(tag("span", "…"))
            if number == current:
                items.append(tag("span", str(number), aria_current="page"))
            else:
                items.append(_page_link(self.summary.job, number, str(number), f"Page {number}"))
        if current < last:
            items.append(_page_link(self.summary.job, current + 1, "\u2192", "Next page", "next"))
        return tag("nav", items, class_="pager", aria_label="Pages")


def pages_for(rows: int) -> int:
    return max(1, -(-rows // ROWS_PER_PAGE))


def failure_page(summary: JobSummary) -> bytes:
    """The report of a job whose file could not be used."""
    why = tag(
        "div",
        tag("h2", "The file could not be used, and no row of it was done"),
        tag("p", summary.reason or "The reason was not recorded."),
        class_="panel notice bad",
    )
    return page(f"{summary.job} · Darkroom", heading(summary, 1, 1), why)


def stale_page(job: str) -> bytes:
    """Takes the place of a page that a longer, earlier report left behind."""
    link = tag("a", "the report of this job", href=_file_name(job, 1))
    text = tag("p", "This page belonged to an earlier report. Go to ", link, ".")
    return page(f"{job} · Darkroom", tag("div", text, class_="panel"))


def _file_name(job: str, number: int) -> str:
    return ResultPaths(job).report_page(number).rsplit("/", 1)[-1]


def _page_link(job: str, number: int, text: str, label: str, rel: str | None = None) -> Safe:
    return tag("a", text, href=_file_name(job, number), aria_label=label, rel=rel)


def _filters(lines: Sequence[ReportRow], pager: Safe | None) -> Safe:
    statuses = Counter(line.status.value for line in lines)
    providers = Counter(provider_class(line) for line in lines)
    return tag(
        "div",
        _choice("Status", "s", STATUSES, statuses),
        _choice("Provider", "p", PROVIDERS, providers) if len(providers) > 1 else None,
        pager,
        class_="bar",
    )


def _choice(legend: str, group: str, values: Iterable[str], counts: Counter[str]) -> Safe:
    choices: list[Safe] = []
    for value in ("all", *(v for v in values if counts[v])):
        count = counts.total() if value == "all" else counts[value]
        text = "no call" if value == "none" else value
        identity = f"{group}-{value}"
        choices.append(tag("input", type="radio", name=group, id=identity, checked=value == "all"))
        choices.append(tag("label", text, " ", tag("b", f"{count:,}"), for_=identity))
    return tag("fieldset", tag("legend", legend), choices)


def _none_class(lines: Sequence[ReportRow]) -> str:
    there = {(s, p) for x in lines for s in ("all", x.status.value) for p in _both(x)}
    absent = (
        f"x-{s}-{p}" for s in ("all", *STATUSES) for p in ("all", *PROVIDERS) if (s, p) not in there
    )
    return " ".join(("none", *absent))


def _both(line: ReportRow) -> tuple[str, str]:
    return "all", provider_class(line)


def _foot(pager: Safe | None, *, linked: bool) -> Safe:
    pages = "other pages and to " if linked else ""
    return tag(
        "footer",
        tag(
            "p",
            f"Previews are part of this page. Links to {pages}full-size pictures work in a "
            "downloaded folder: ",
            tag("code", "darkroom download JOB DIR"),
            ". Rows count from 0. Every row is in manifest.csv, the figures are in job.json.",
        ),
        pager,
        class_="foot",
    )
