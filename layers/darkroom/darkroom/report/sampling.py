"""The rows a gallery shows: all of a small job; what failed and a fair sample of a large one."""

from dataclasses import dataclass, field, replace
from random import Random

from darkroom.report.rows import ReportRow, RowStatus

SHOW_ALL_UP_TO = 5_000
MOST_FAILED = 1_000
SAMPLE = 1_000
_LONGEST_TEXT = 4_000  # characters of an instruction or detail kept for the gallery


@dataclass(slots=True)
class Reservoir:
    """A uniform sample of fixed size from a stream of unknown length (Vitter's algorithm R)."""

    size: int
    random: Random
    seen: int = 0
    kept: list[ReportRow] = field(default_factory=list)

    def add(self, line: ReportRow) -> None:
        self.seen += 1
        if len(self.kept) < self.size:
            self.kept.append(line)
            return
        place = self.random.randrange(self.seen)
        if place < self.size:
            self.kept[place] = line


class GallerySelection:
    """Collects rows for the gallery while the report streams by, in bounded memory.

    Rows outside filter-rows are left out unless an earlier upload made a picture of them.
    """

    def __init__(self, job: str) -> None:
        # The job's name as seed: a report made again shows the same rows.
        random = Random(job)  # noqa: S311 - a sample to look at, no secret
        self._all: list[ReportRow] | None = []
        self._failed = Reservoir(MOST_FAILED, random)
        self._others = Reservoir(SAMPLE, random)
        self._left_out = 0

    def add(self, line: ReportRow) -> None:
        if line.status is RowStatus.SKIPPED and not line.outputs:
            self._left_out += 1
            return
        small = _shortened(line)
        self._sample(small)
        if self._all is not None:
            self._all.append(small)
            if len(self._all) > SHOW_ALL_UP_TO:
                self._all = None

    def _sample(self, line: ReportRow) -> None:
        bad = line.status in (RowStatus.FAILED, RowStatus.DEAD)
        (self._failed if bad else self._others).add(line)

    def rows(self) -> list[ReportRow]:
        """What to show, in the order of the CSV."""
        if self._all is not None:
            return self._all
        return sorted((*self._failed.kept, *self._others.kept), key=lambda line: line.row)

    def note(self) -> str | None:
        """What the gallery leaves out, for people; None when it shows every row."""
        notes: list[str] = []
        if self._all is None:
            notes.append(
                f"This job is too large to show whole: here are {_part(self._failed)} that failed "
                f"and {_part(self._others)} that did not."
            )
        if self._left_out:
            notes.append(f"{self._left_out:,} rows outside filter-rows are not shown.")
        if notes:
            notes.append("manifest.csv lists every row.")
        return " ".join(notes) or None


def _part(sample: Reservoir) -> str:
    if sample.seen <= sample.size:
        return f"all {sample.seen:,} rows"
    return f"a random {sample.size:,} of the {sample.seen:,} rows"


def _shortened(line: ReportRow) -> ReportRow:
    return replace(
        line,
        cells=(),
        instruction=line.instruction[:_LONGEST_TEXT],
        detail=line.detail[:_LONGEST_TEXT],
    )
