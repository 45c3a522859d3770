"""Selects the rows of the gallery: all of a small job, a random sample of a large one."""

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from heapq import heappush, heappushpop

from darkroom.formatting import plural
from darkroom.report.rows import ReportRow
from darkroom.rows import RowState

SHOW_ALL_UP_TO = 5_000
MAX_FAILED = 1_000
MAX_OTHERS = 1_000
MAX_TEXT_CHARS = 4_000  # of an instruction or detail kept for the gallery


@dataclass(slots=True)
class Sample:
    """The `size` rows of a stream with the smallest ranks: a uniform sample, if ranks are random.

    It does not depend on the order of the rows, nor on where a stream was interrupted.
    """

    size: int
    total: int = 0
    heap: list[tuple[int, int, ReportRow]] = field(default_factory=list)  # -rank, row number, row

    def add(self, row: ReportRow, rank: int) -> None:
        self.total += 1
        if len(self.heap) < self.size:
            heappush(self.heap, (-rank, row.row, _trimmed(row)))
        elif -rank > self.heap[0][0]:
            heappushpop(self.heap, (-rank, row.row, _trimmed(row)))

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

    def add(self, row: ReportRow) -> None:
        if row.status is RowState.SKIPPED and not row.result.outputs:
            self.left_out += 1
            return
        digest = blake2b(f"{self.job}/{row.row}".encode(), digest_size=7).digest()
        sample = self.failed if row.status.unsuccessful else self.others
        sample.add(row, int.from_bytes(digest))
        if self.first is not None:
            self.first.append(_trimmed(row))
            if len(self.first) > SHOW_ALL_UP_TO:
                self.first = None

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


def _trimmed(row: ReportRow) -> ReportRow:
    """Without cells, and with texts of limited length."""
    return replace(
        row,
        cells=(),
        instruction=_cut(row.instruction),
        result=replace(row.result, detail=_cut(row.result.detail)),
    )


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT_CHARS:
        return text
    cut = f"cut here, after {MAX_TEXT_CHARS:,} of {len(text):,} characters: see manifest.csv"
    return f"{text[:MAX_TEXT_CHARS]} … [{cut}]"
