"""The rows of a job: what splitter, reporter and quote all read from the pinned CSV.

For the same bytes and the same options every pass gives the same rows, so that the manifest can
tell of rows (bad input, skipped) that the ledger never heard of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from darkroom.errors import JobRejected, Reason, RowRejected
from darkroom.intake.columns import Columns, read_columns
from darkroom.intake.csv_input import CsvInput
from darkroom.intake.csv_text import OpenBytes
from darkroom.intake.names import UsedNames, copies, default_key
from darkroom.intake.row_filter import RowFilter, parse_row_filter
from darkroom.intake.row_parsing import parse_row, row_key
from darkroom.jobs import JobOptions
from darkroom.rows import RowRequest
from darkroom.texts import shown

MAX_ROWS = 5_000_000  # bounds the time of the check and the memory for names (UsedNames)


@dataclass(frozen=True, slots=True)
class JobRow:
    """One data row. `asked` is what it wants, or why it ends as `failed: bad_input`.

    `skipped` (outside filter-rows) comes before both: such a row is not done whatever `asked` says.
    The ledger knows a row by `key`; rows skipped or rejected have no record of this run there.
    """

    row: int  # position in the CSV, the first data row is 0
    key: str
    cells: tuple[str, ...]  # as in the CSV, one for each name of the header
    asked: RowRequest | RowRejected
    skipped: bool
    end: int  # byte offset in the decompressed text where the next row begins


@dataclass(frozen=True, slots=True)
class JobRows:
    """A CSV opened with its options. Iterate for its rows; every iteration reads anew."""

    csv: CsvInput
    columns: Columns
    options: JobOptions
    wanted: RowFilter

    @property
    def header(self) -> tuple[str, ...]:
        return self.columns.header

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.columns.warnings

    def __iter__(self) -> Iterator[JobRow]:
        return self.from_row(0, None)

    def from_row(self, row: int, offset: int | None) -> Iterator[JobRow]:
        """Rows from number `row` on, which begins at byte `offset` (the `end` of the row before).

        Raises JobRejected where the file cannot be read as CSV.
        """
        has_names = self.columns.has("index") or self.columns.has("output_name")
        used = UsedNames() if has_names else None
        if used is not None or offset is None:
            # Which name was used first only the rows before can tell: read, not given out.
            start, records = 0, self.csv.records()
        else:
            start, records = row, self.csv.records(offset)
        for number, record in enumerate(records, start):
            if number >= MAX_ROWS:
                raise JobRejected(f"The file has more than {MAX_ROWS:,} rows: split it.")
            job_row = self._row(number, record.cells, record.end, used)
            if number >= row:
                yield job_row

    def check(self) -> Iterator[int]:
        """Read the whole file as the splitter's first pass, giving each row's number as it goes.

        Raises JobRejected: not CSV to its end, no rows, or none that filter-rows wants.
        """
        number, wanted = -1, 0
        for number, _ in enumerate(self.csv.records()):
            if number >= MAX_ROWS:
                raise JobRejected(f"The file has more than {MAX_ROWS:,} rows: split it.")
            wanted += number in self.wanted
            yield number
        if number < 0:
            raise JobRejected("The file has a header row but no rows.")
        if not wanted:
            raise JobRejected(
                f"The option filter-rows {shown(self.options.filter_rows or '')} selects none of "
                f"the file's {number + 1:,} rows (the first row is 0)."
            )

    def _row(self, number: int, cells: Sequence[str], end: int, used: UsedNames | None) -> JobRow:
        key = default_key(number)
        asked: RowRequest | RowRejected
        try:
            key = row_key(self.columns, cells, number)
            asked = parse_row(self.columns, cells, self.options)
            if used is not None:
                self._claim_names(asked, key, number, used)
        except RowRejected as rejected:
            asked = rejected
        return JobRow(number, key, self.columns.align(cells), asked, number not in self.wanted, end)

    def _claim_names(self, asked: RowRequest, key: str, number: int, used: UsedNames) -> None:
        """A second row of the same name would overwrite the first one's record or pictures."""
        names = copies(asked.output_name or f"{key}.png", asked.n)
        for name in (f"key {key}", *(f"picture {name}" for name in names)):
            first = used.first_user(name, number)
            if first is not None and first != number:
                raise RowRejected(Reason.BAD_INPUT, self._taken(name, first))

    def _taken(self, name: str, first: int) -> str:
        kind, _, value = name.partition(" ")
        field = "output_name" if kind == "picture" and self.columns.has("output_name") else "index"
        column = self.columns.name(field)
        return (
            f"column {column}: row {first} uses the name {shown(value)} already, give each its own"
        )


def read_job_rows(open_bytes: OpenBytes, options: JobOptions) -> JobRows:
    """Open a CSV. Raises JobRejected: no CSV, no header, no instruction column, bad filter-rows."""
    wanted = parse_row_filter(options.filter_rows)
    csv = CsvInput.open(open_bytes)
    return JobRows(csv, read_columns(csv.header, options), options, wanted)
