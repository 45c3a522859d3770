"""report.html and its further pages: static, self-contained, readable without their script.

The HTML is in templates/, with automatic escaping. This module selects the rows of each page and
computes the values that the templates show.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from itertools import batched, product

from jinja2 import Environment

from darkroom.errors import remediation
from darkroom.formatting import in_written_order
from darkroom.jobs import ResultPaths
from darkroom.providers.registry import Provider
from darkroom.report.html import TEMPLATES, image_name, page_environment
from darkroom.report.rows import ReportRow
from darkroom.report.summary import JobSummary, unsuccessful
from darkroom.rows import SETTLED_STATUSES, RowState

ROWS_PER_PAGE = 100
_MAX_LINKS = 200  # to the rows of one group of failures
_PAGER_REACH = 2  # pages linked on either side of the current one

# Of the search's index, which page 1 carries once for all rows: about 90 bytes a row.
_INDEX_TEXT_BYTES = 36  # of a row's key, file name and own columns
_INDEX_INSTRUCTION_BYTES = 40  # on average; instructions that many rows share are stored once
_REMARKS = ("fallback", "warnings", "possible double charge")

_INDENTATION = re.compile(rb"\n[ \t]+<")  # without line breaks: rows may contain thousands
_STATUSES = [state.value for state in RowState if state.terminal]
_PROVIDERS = [*(provider.value for provider in Provider), "none"]  # none: no provider was called


@dataclass(frozen=True, slots=True)
class Thumbs:
    """The thumbnails of a row as the editor stored them; None if there is none.

    `preview` is the key of the file that "before" is from, a larger one, which pages link to.
    """

    before: bytes | None = None
    after: bytes | None = None
    preview: str | None = None


type LoadThumbs = Callable[[Sequence[ReportRow]], Sequence[Thumbs]]
type _Link = tuple[int, str]  # row, href


def gallery_pages(
    summary: JobSummary, rows: Sequence[ReportRow], note: str | None, load: LoadThumbs
) -> Iterator[bytes]:
    """Pages one at a time, each with its rows' thumbnails, from `load`.

    `rows` in the order shown; `note` names what is left out.
    """
    last_page = page_count(rows)
    chunks = batched(rows, ROWS_PER_PAGE, strict=False) if rows else iter([()])
    for number, shown in enumerate(chunks, 1):
        yield _render(
            "report.html",
            summary=summary,
            note=note,
            number=number,
            last_page=last_page,
            pager_numbers=_pager_numbers(number, last_page),
            page_file=partial(_page_file, summary.job),
            failure_links=_failure_links(summary.job, rows) if number == 1 else {},
            shown=len(rows),
            total=max(len(rows), summary.counts.rows - summary.counts.skipped),
            scope="in the whole job" if len(shown) == summary.counts.rows else "on this page",
            search_index=_search_index(summary.job, rows) if number == 1 else "",
            filters=_filters(shown),
            choices_without_card=_choices_without_card(shown),
            rows=zip(shown, load(shown), strict=True),
            is_grouped=False,
        )


def problems_page(summary: JobSummary, rows: Sequence[ReportRow]) -> bytes:
    """Every row of the gallery that failed, on one page without previews."""
    groups: defaultdict[tuple[str, str], list[ReportRow]] = defaultdict(list)
    for row in rows:
        if row.status.unsuccessful:
            groups[row.status.value, row.reason].append(row)
    largest_first = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return _render(
        "problems.html",
        summary=summary,
        groups=largest_first,
        shown=sum(map(len, groups.values())),
        total=unsuccessful(summary.counts),
        last_page=1,
        is_grouped=True,
    )


def _failure_links(job: str, rows: Sequence[ReportRow]) -> Mapping[tuple[str, str], list[_Link]]:
    """By status and reason: row numbers and links to their cards."""
    links: defaultdict[tuple[str, str], list[_Link]] = defaultdict(list)
    for index, row in enumerate(rows):
        group = links[row.status.value, row.reason]
        if row.status.unsuccessful and len(group) < _MAX_LINKS:
            page = index // ROWS_PER_PAGE + 1
            file = "" if page == 1 else _page_file(job, page)
            group.append((row.row, f"{file}#r-{row.row}"))
    return links


def _search_index(job: str, rows: Sequence[ReportRow]) -> str:
    """JSON with one entry a row, for the script's search over all pages.

    An entry is the row's number, the positions of its status and provider, its remarks as bits, the
    position of its instruction, and its other text.
    """
    instructions = {row.instruction: None for row in rows}
    limit = max(
        _INDEX_INSTRUCTION_BYTES, _INDEX_INSTRUCTION_BYTES * len(rows) // (len(instructions) or 1)
    )
    position = {text: number for number, text in enumerate(instructions)}
    index = {
        "statuses": _STATUSES,
        "providers": ["no call" if name == "none" else name for name in _PROVIDERS],
        "remarks": _REMARKS,
        "instructions": [_beginning(text, limit) for text in instructions],
        "files": [_page_file(job, page) for page in range(1, page_count(rows) + 1)],
        "per_page": ROWS_PER_PAGE,
        "rows": [
            (
                row.row,
                _STATUSES.index(row.status.value),
                _PROVIDERS.index(_provider_class(row)),
                sum(
                    bool(value) << bit
                    for bit, value in enumerate(
                        (row.result.fallback, row.result.warnings, row.possible_duplicate_charges)
                    )
                ),
                position[row.instruction],
                _own_text(row),
            )
            for row in rows
        ],
    }
    text = in_written_order(json.dumps(index, ensure_ascii=False, separators=(",", ":")))
    # Without "<" no text can end the element that contains the index.
    return text.replace("<", "\\u003c")


def _own_text(row: ReportRow) -> str:
    key = "" if row.index.isdecimal() else row.index
    file = image_name(row.images[0]) if row.images else ""
    return _beginning(
        " ".join((key, *(value for _, value in row.shown_cells), file)), _INDEX_TEXT_BYTES
    )


def _beginning(text: str, size: int) -> str:
    """The text with single spaces, cut after `size` bytes of UTF-8."""
    return " ".join(text.split()).encode()[:size].decode(errors="ignore")


def page_count(rows: Sequence[ReportRow]) -> int:
    return max(1, -(-len(rows) // ROWS_PER_PAGE))


def rejected_page(summary: JobSummary) -> bytes:
    """The report of a job whose file could not be used."""
    return _render("rejected.html", summary=summary, last_page=1)


def replaced_page(job: str) -> bytes:
    """Replaces a surplus page of an earlier, longer report."""
    return _render("replaced.html", job=job, report_file=_page_file(job, 1))


@cache
def stylesheet() -> str:
    """gallery.css, with the rules that make the filters work without a script."""
    rules = _environment().get_template("filters.css")
    return (TEMPLATES / "gallery.css").read_text("utf-8") + rules.render(
        statuses=_STATUSES, providers=_PROVIDERS
    )


@cache
def script() -> str:
    return (TEMPLATES / "gallery.js").read_text("utf-8")


def _render(template: str, **values: object) -> bytes:
    """A whole page, encoded piece by piece: with its thumbnails it may be many megabytes."""
    page = _environment().get_template(template)
    pieces = page.generate(**values, stylesheet=stylesheet(), script=script())
    # Indentation is a fifth of a page without previews. No text of a row contains a "<".
    return _INDENTATION.sub(b"\n<", b"".join(piece.encode() for piece in pieces))


@cache
def _environment() -> Environment:
    environment = page_environment()
    environment.globals.update(settled_statuses=SETTLED_STATUSES)
    environment.filters.update(
        iso="{:%Y-%m-%dT%H:%M:%SZ}".format,
        later=lambda start, seconds: start + timedelta(seconds=seconds),
        provider_class=_provider_class,
        remediation=remediation,
        unsuccessful=unsuccessful,
    )
    return environment


def _provider_class(row: ReportRow) -> str:
    return row.result.provider if row.result.provider in _PROVIDERS else "none"


def _page_file(job: str, number: int) -> str:
    return ResultPaths(job).report_page(number).rsplit("/", 1)[-1]


def _pager_numbers(current: int, last: int) -> list[int | None]:
    """The pages to link; None for a gap."""
    near = range(max(1, current - _PAGER_REACH), min(last, current + _PAGER_REACH) + 1)
    shown = sorted({1, *near, last})
    numbers: list[int | None] = []
    for previous, number in zip([0, *shown], shown, strict=False):
        numbers += [None, number] if number - previous > 1 else [number]
    return numbers


def _filters(rows: Sequence[ReportRow]) -> list[tuple[str, str, list[tuple[str, int]]]]:
    """Legend, group, and the choices with the number of their rows."""
    statuses = Counter(row.status.value for row in rows)
    providers = Counter(_provider_class(row) for row in rows)
    groups = [("Status", "s", _STATUSES, statuses), ("Provider", "p", _PROVIDERS, providers)]
    return [
        (legend, name, [("all", len(rows)), *((v, counts[v]) for v in values if counts[v])])
        for legend, name, values, counts in groups
        if name == "s" or len(counts) > 1
    ]


def _choices_without_card(rows: Sequence[ReportRow]) -> list[str]:
    """A class for every pair of choices in the two filters that leaves no card on the page."""
    choices = set(product(("all", *_STATUSES), ("all", *_PROVIDERS)))
    for row in rows:
        choices -= set(product(("all", row.status.value), ("all", _provider_class(row))))
    return [f"x-{status}-{provider}" for status, provider in sorted(choices)]
