"""manifest.csv: one line for every data row of the input, the input's columns first.

UTF-8 without a byte order mark, comma, LF. docs/results.md describes every column.
"""

import csv
import re
from collections.abc import Callable, Sequence

from darkroom.csv_input.fields import Columns
from darkroom.report.rows import ReportRow

_CELLS: dict[str, Callable[[ReportRow], str]] = {
    "row": lambda row: str(row.row),
    "status": lambda row: row.status.value,
    "reason": lambda row: row.reason,
    "detail": lambda row: " ".join(row.result.detail.split()),
    "output": lambda row: "|".join(row.result.outputs),
    "provider": lambda row: row.result.provider or "",
    "endpoint": lambda row: row.result.endpoint or "",
    "model": lambda row: row.result.model or "",
    "fallback": lambda row: "true" if row.result.fallback else "false",
    "attempts": lambda row: str(row.attempts),
    "latency_ms": lambda row: str(row.result.latency_ms or ""),
    "cost_usd": lambda row: _usd(row.result.cost_micro_usd),
    "possible_duplicate_charges": lambda row: str(row.possible_duplicate_charges),
    "mode": lambda row: row.result.mode if row.result.endpoint else "",
}
OWN_COLUMNS = tuple(_CELLS)
INSTRUCTION_SENT = "instruction_sent"

# A spreadsheet runs a cell that starts with one of these as a formula (OWASP, "CSV Injection",
# full-width forms included). A leading ' is guarded too, so that the guard can be undone. One that
# separates by semicolons or tabs, as in many countries, begins cells in the middle of ours.
_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
_FORMULA = re.compile(rf"'*[{_SIGNS}\t\r\n]")
_INNER_FORMULA = re.compile(rf"([;\t\r\n])('*[{_SIGNS}][^;\t\r\n]*)")
_GUARDED_INNER_FORMULA = re.compile(rf"([;\t\r\n])'('*[{_SIGNS}])")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d+)*|[.,]\d+)([eE][+-]?\d+)?%?", re.ASCII)


def guard(cell: str) -> str:
    """The cell, with a ' before what a spreadsheet would run as a formula.

    A plain number such as -5 or +1.5e3 is not a formula and stays unchanged.
    """
    is_formula = _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return ("'" if is_formula else "") + _INNER_FORMULA.sub(_guard_inner, cell)


def _guard_inner(found: re.Match[str]) -> str:
    separator, text = found.groups()
    return found[0] if _NUMBER.fullmatch(text) else f"{separator}'{text}"


def unguard(cell: str) -> str:
    """The cell as it was before `guard`."""
    if cell.startswith("'") and _FORMULA.match(cell):
        cell = cell[1:]
    return _GUARDED_INNER_FORMULA.sub(r"\1\2", cell)


def own_columns(header: Sequence[str]) -> Sequence[str]:
    """Ours of a manifest, which come last; one of an earlier version has fewer."""
    return header[header.index(OWN_COLUMNS[0]) :]


def header(columns: Sequence[str]) -> tuple[str, ...]:
    """The input's columns, renamed to `input_…` where the name is one of ours, then ours."""
    taken = {*columns, *OWN_COLUMNS}
    names: list[str] = []
    for column in columns:
        name = column
        if column.strip() in OWN_COLUMNS:
            name, number = f"input_{column.strip()}", 2
            while name in taken:
                name, number = f"input_{column.strip()}_{number}", number + 1
            taken.add(name)
        names.append(name)
    return (*names, *OWN_COLUMNS)


class ManifestFormat:
    """Formats the header and report rows as lines of CSV. `columns` are the input's.

    With `instructions`, for a job with one instruction for all rows, each row's follows them.
    """

    def __init__(self, columns: Sequence[str], *, instructions: bool = False) -> None:
        self._header = header((*columns, INSTRUCTION_SENT) if instructions else columns)
        self._width = len(columns)
        self._instructions = instructions
        # csv.writer returns what write() returns: the finished line.
        self._format = csv.writer(_Echo(), lineterminator="\n").writerow

    def header(self) -> bytes:
        return self._line(self._header)

    def line(self, row: ReportRow) -> bytes:
        cells = row.cells[: self._width]
        padding = ("",) * (self._width - len(cells))
        sent = (row.instruction,) if self._instructions else ()
        return self._line((*cells, *padding, *sent, *(cell(row) for cell in _CELLS.values())))

    def _line(self, cells: Sequence[str]) -> bytes:
        text: object = self._format([guard(c) for c in cells])
        return str(text).encode()


class FailedRowsFormat:
    """Formats the rows that failed as a CSV to correct and upload again.

    The input's columns, with the values as they were uploaded, and in `index` each row's key: so a
    row keeps its place in the ledger, and the name of its images, although its position changes.
    """

    def __init__(self, columns: Columns) -> None:
        self._header, self._index = columns.header, columns.positions.get("index")
        self._format = csv.writer(_Echo(), lineterminator="\n").writerow

    def header(self) -> bytes:
        return self._line(self._header if self._index is not None else ("index", *self._header))

    def line(self, row: ReportRow) -> bytes:
        if self._index is None:
            return self._line((row.key, *row.cells))
        cells = list(row.cells)
        cells[self._index] = cells[self._index].strip() or row.key
        return self._line(cells)

    def _line(self, cells: Sequence[str]) -> bytes:
        text: object = self._format(cells)
        return str(text).encode()


class _Echo:
    def write(self, text: str) -> str:
        return text


def _usd(micro_usd: int | None) -> str:
    """`39000` -> `0.039000`; empty if the cost is not known."""
    return "" if micro_usd is None else f"{micro_usd / 1_000_000:.6f}"
