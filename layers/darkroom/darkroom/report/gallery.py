"""report.html and its further pages: static, self-contained, readable without a script."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched

from darkroom.jobs import ResultPaths
from darkroom.report.cards import Thumbs, card, provider_class
from darkroom.report.header import error_item, heading, panels, tiles
from darkroom.report.html import Child, Safe, tag
from darkroom.report.lines import ReportLine, RowStatus
from darkroom.report.page import PROVIDERS, STATUSES, page
from darkroom.report.summary import JobSummary

ROWS_PER_PAGE = 100
_MOST_LINKS = 200  # links to rows under one kind of error
_PAGER_REACH = 2  # pages named on either side of the current one

type LoadThumbs = Callable[[Sequence[ReportLine]], Sequence[Thumbs]]


@dataclass(frozen=True, slots=True)
class Gallery:
    """All pages of one job. `rows` in the order they are shown; `note` says what is left out."""

    summary: JobSummary
    rows: Sequence[ReportLine]
    note: str | None = None

    @property
    def page_count(self) -> int:
        return pages_for(len(self.rows))

    def pages(self, load: LoadThumbs) -> Iterator[bytes]:
        """Pages one at a time, each with its rows' small pictures, which `load` gives."""
        chunks = batched(self.rows, ROWS_PER_PAGE, strict=False) if self.rows else iter([()])
        for number, chunk in enumerate(chunks, 1):
            yield self._page(number, chunk, load(chunk))

    def _page(self, number: int, lines: Sequence[ReportLine], thumbs: Sequence[Thumbs]) -> bytes:
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

    def _row_link(self, index: int, line: ReportLine) -> Safe:
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


def _filters(lines: Sequence[ReportLine], pager: Safe | None) -> Safe:
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


def _none_class(lines: Sequence[ReportLine]) -> str:
    there = {(s, p) for x in lines for s in ("all", x.status.value) for p in _both(x)}
    absent = (
        f"x-{s}-{p}" for s in ("all", *STATUSES) for p in ("all", *PROVIDERS) if (s, p) not in there
    )
    return " ".join(("none", *absent))


def _both(line: ReportLine) -> tuple[str, str]:
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
