"""Selects the rows of the gallery: all of a small job, a random sample of a large one."""

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from heapq import heappush, heappushpop
from itertools import islice

from darkroom.csv_input.fields import Columns
from darkroom.errors import Reason
from darkroom.formatting import plural, redact_url, redact_urls
from darkroom.report.rows import ReportRow
from darkroom.rows import RowState

SHOW_ALL_UP_TO = 5_000
MAX_FAILED = 1_000
MAX_OTHERS = 1_000
MAX_TEXT_CHARS = 4_000  # of an instruction or detail kept for the gallery
_MAX_CELL_CHARS = 120
_MAX_OWN_COLUMNS = 3
_MAX_BAD_CELLS = 20  # of a row that could not be read, its cells are shown
_MAX_REFERENCES = 20


@dataclass(slots=True)
class Sample:
    """The `size` rows of a stream with the smallest ranks: a uniform sample, if ranks are random.

    It does not depend on the order of the rows, nor on where a stream was interrupted.
    """

    size: int
    total: int = 0
    heap: list[tuple[int, int, ReportRow]] = field(default_factory=list)  # -rank, row number, row

    def accepts(self, rank: int) -> bool:
        return len(self.heap) < self.size or -rank > self.heap[0][0]

    def add(self, row: ReportRow, rank: int) -> None:
        """Add a row whose rank was accepted."""
        push = heappush if len(self.heap) < self.size else heappushpop
        push(self.heap, (-rank, row.row, row))

    def rows(self) -> list[ReportRow]:
        return [row for _, _, row in self.heap]

    def describe(self) -> str:
        if self.total <= self.size:
            return f"all {self.total:,} rows"
        return f"a random {self.size:,} of the {self.total:,} rows"


@dataclass(slots=True)
class GallerySelection:
    """Collects rows for the gallery from the stream of report rows, in bounded memory.

    Rows outside filter-rows are left out unless an earlier upload edited them.
    """

    job: str  # seeds the sample: a repeated report shows the same rows
    first: list[ReportRow] | None = field(default_factory=list)  # None: there were too many
    failed: Sample = field(default_factory=lambda: Sample(MAX_FAILED))
    others: Sample = field(default_factory=lambda: Sample(MAX_OTHERS))
    left_out: int = 0
    header: tuple[str, ...] = ()
    own_columns: tuple[int, ...] = ()  # positions of those that are not Darkroom's

    def describe_columns(self, columns: Columns) -> None:
        known = set(columns.positions.values())
        self.header = columns.header
        own = (n for n in range(len(columns.header)) if n not in known)
        self.own_columns = tuple(islice(own, _MAX_OWN_COLUMNS))

    def add(self, row: ReportRow) -> None:
        if row.status is RowState.SKIPPED and not row.result.outputs:
            self.left_out += 1
            return
        digest = blake2b(f"{self.job}/{row.row}".encode(), digest_size=7).digest()
        sample, rank = (
            self.failed if row.status.unsuccessful else self.others,
            int.from_bytes(digest),
        )
        sample.total += 1
        is_sampled = sample.accepts(rank)
        if self.first is None and not is_sampled:
            return
        trimmed = self._trimmed(row)
        if is_sampled:
            sample.add(trimmed, rank)
        if self.first is not None:
            self.first.append(trimmed)
            if len(self.first) > SHOW_ALL_UP_TO:
                self.first = None

    def _trimmed(self, row: ReportRow) -> ReportRow:
        """With the cells to show, and with texts of limited length."""
        could_not_be_read = row.result.reason is Reason.BAD_INPUT
        shown = range(len(self.header))[:_MAX_BAD_CELLS] if could_not_be_read else self.own_columns
        return replace(
            row,
            cells=(),
            shown_cells=tuple(
                (self.header[n][:_MAX_CELL_CHARS], _cell(row.cells[n]))
                for n in shown
                if n < len(row.cells) and row.cells[n].strip()
            ),
            images=row.images[:_MAX_REFERENCES],
            instruction=_cut(redact_urls(row.instruction)),
            result=replace(row.result, detail=_cut(row.result.detail)),
        )

    def rows(self) -> list[ReportRow]:
        """The selected rows, in the order of the CSV."""
        if self.first is not None:
            return self.first
        return sorted((*self.failed.rows(), *self.others.rows()), key=lambda row: row.row)

    def note(self) -> str | None:
        """A sentence for the user on what the gallery leaves out; None if it shows every row."""
        notes: list[str] = []
        if self.first is None:
            notes.append(
                "This job is too large to show every row. This gallery shows "
                f"{self.failed.describe()} that failed and {self.others.describe()} that did not."
            )
        if self.left_out:
            verb = "is" if self.left_out == 1 else "are"
            rows = plural(self.left_out, "row")
            notes.append(f"{rows} outside filter-rows {verb} not shown.")
        if notes:
            notes.append("manifest.csv lists every row.")
        return " ".join(notes) or None


def _cell(text: str) -> str:
    text = redact_url(text.strip())
    return text if len(text) <= _MAX_CELL_CHARS else f"{text[:_MAX_CELL_CHARS]}…"


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT_CHARS:
        return text
    cut = f"cut here, after {MAX_TEXT_CHARS:,} of {len(text):,} characters: see manifest.csv"
    return f"{text[:MAX_TEXT_CHARS]} … [{cut}]"
