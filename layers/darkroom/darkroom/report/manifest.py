"""manifest.csv: one line for every data row of the input, the input's columns first.

UTF-8 without a byte order mark, comma, LF. docs/results.md describes every column.
"""

import csv
import re
from collections.abc import Sequence

from darkroom.report.rows import ReportRow

OWN_COLUMNS = (
    "row",
    "status",
    "reason",
    "detail",
    "output",
    "provider",
    "endpoint",
    "model",
    "fallback",
    "attempts",
    "latency_ms",
    "cost_usd",
    "possible_duplicate_charges",
)
OUTPUT_SEPARATOR = "|"

# A spreadsheet takes a cell that starts with one of these for a formula (OWASP, "CSV Injection",
# full-width forms included). A leading ' is guarded too, so that the guard can be undone.
_STARTS = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20'")
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d+)*|[.,]\d+)([eE][+-]?\d+)?%?", re.ASCII)


def guard(cell: str) -> str:
    """The cell with a ' before it if a spreadsheet would run it as a formula.

    A plain number such as -5 or +1.5e3 is no formula and stays as it is.
    """
    if not cell or cell[0] not in _STARTS or not _FORMULA.match(cell) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"


def unguard(cell: str) -> str:
    """The cell as it was before `guard`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def header(columns: Sequence[str]) -> tuple[str, ...]:
    """The input's columns, renamed to `input_…` where one is called like ours, then ours."""
    taken = {*columns, *OWN_COLUMNS}
    names: list[str] = []
    for column in columns:
        name = column
        if column.strip() in OWN_COLUMNS:
            name = _free(f"input_{column.strip()}", taken)
            taken.add(name)
        names.append(name)
    return (*names, *OWN_COLUMNS)


def _free(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate


class ManifestFormat:
    """Turns report lines into bytes of CSV; knows how many columns the input has."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._header = header(columns)
        self._width = len(columns)
        # csv.writer returns what write() returns: the finished line.
        self._line = csv.writer(_Echo(), lineterminator="\n").writerow

    def header(self) -> bytes:
        return self._encoded(self._header)

    def line(self, line: ReportRow) -> bytes:
        cells = line.cells[: self._width]
        padding = ("",) * (self._width - len(cells))
        return self._encoded((*cells, *padding, *_own_cells(line)))

    def _encoded(self, cells: Sequence[str]) -> bytes:
        text: object = self._line([guard(c) for c in cells])
        return str(text).encode()


class _Echo:
    def write(self, text: str) -> str:
        return text


def _own_cells(line: ReportRow) -> tuple[str, ...]:
    return (
        str(line.row),
        line.status.value,
        line.reason,
        " ".join(line.detail.split()),
        OUTPUT_SEPARATOR.join(line.outputs),
        line.provider,
        line.endpoint,
        line.model,
        "true" if line.fallback else "false",
        str(line.attempts),
        str(line.latency_ms or ""),
        format_usd(line.cost_micro_usd),
        str(line.possible_duplicate_charges),
    )


def format_usd(micro_usd: int | None) -> str:
    """`39000` -> `0.039000`; empty where the cost is not known."""
    return "" if micro_usd is None else f"{micro_usd / 1_000_000:.6f}"
