"""Selects the rows of the gallery: all of a small job, a random sample of a large one."""

from dataclasses import dataclass, field, replace
from random import Random

from darkroom.report.rows import ReportRow
from darkroom.rows import RowState

SHOW_ALL_UP_TO = 5_000
MAX_FAILED = 1_000
MAX_OTHERS = 1_000
_MAX_TEXT_CHARS = 4_000  # of an instruction or detail kept for the gallery


@dataclass(slots=True)
class Reservoir:
    """A uniform sample of fixed size from a stream of unknown length (Vitter's algorithm R)."""

    size: int
    random: Random
    total: int = 0
    rows: list[ReportRow] = field(default_factory=list)

    def add(self, row: ReportRow) -> None:
        self.total += 1
        if len(self.rows) < self.size:
            self.rows.append(row)
            return
        index = self.random.randrange(self.total)
        if index < self.size:
            self.rows[index] = row

    def describe(self) -> str:
        if self.total <= self.size:
            return f"all {self.total:,} rows"
        return f"a random {self.size:,} of the {self.total:,} rows"


class GallerySelection:
    """Collects rows for the gallery from the stream of report rows, in bounded memory.

    Rows outside filter-rows are left out unless an earlier upload edited them.
    """

    def __init__(self, job: str) -> None:
        # Seeded with the job's name: a repeated report shows the same rows.
        random = Random(job)  # noqa: S311 - a sample, not a secret
        self._all: list[ReportRow] | None = []
        self._failed = Reservoir(MAX_FAILED, random)
        self._others = Reservoir(MAX_OTHERS, random)
        self._left_out = 0

    def add(self, row: ReportRow) -> None:
        if row.status is RowState.SKIPPED and not row.result.outputs:
            self._left_out += 1
            return
        row = replace(
            row,
            cells=(),
            instruction=row.instruction[:_MAX_TEXT_CHARS],
            result=replace(row.result, detail=row.result.detail[:_MAX_TEXT_CHARS]),
        )
        (self._failed if row.status.unsuccessful else self._others).add(row)
        if self._all is not None:
            self._all.append(row)
            if len(self._all) > SHOW_ALL_UP_TO:
                self._all = None

    def rows(self) -> list[ReportRow]:
        """The selected rows, in the order of the CSV."""
        if self._all is not None:
            return self._all
        return sorted((*self._failed.rows, *self._others.rows), key=lambda row: row.row)

    def note(self) -> str | None:
        """A sentence for the user on what the gallery leaves out; None if it shows every row."""
        notes: list[str] = []
        if self._all is None:
            notes.append(
                "This job is too large to show every row. This gallery shows "
                f"{self._failed.describe()} that failed and {self._others.describe()} that did not."
            )
        if self._left_out:
            notes.append(f"{self._left_out:,} rows outside filter-rows are not shown.")
        if notes:
            notes.append("manifest.csv lists every row.")
        return " ".join(notes) or None
