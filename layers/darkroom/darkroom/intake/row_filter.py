"""The option filter-rows: `0:50`, `:10`, `5,7,20:30`."""

import re
from bisect import bisect_right
from dataclasses import dataclass

from darkroom.errors import JobRejected
from darkroom.texts import shown

_PART = re.compile(r"(?P<first>\d{1,12})?(?P<colon>\s*:\s*)?(?P<last>\d{1,12})?", re.ASCII)
_SEPARATOR = re.compile(r"[,;]")
_END = 10**15


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Data rows by position, the first is 0. Ranges are sorted and do not touch."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]  # exclusive

    def __contains__(self, row: int) -> bool:
        place = bisect_right(self.starts, row) - 1
        return place >= 0 and row < self.ends[place]


ALL_ROWS = RowFilter((0,), (_END,))


def parse_row_filter(text: str | None) -> RowFilter:
    """Ranges `a:b` (b excluded, like Python's), `a:`, `:b`, and single rows, joined by commas.

    Raises JobRejected that names the part which cannot be read.
    """
    if text is None:
        return ALL_ROWS
    ranges = sorted(_parse_part(part.strip()) for part in _SEPARATOR.split(text))
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return RowFilter(tuple(start for start, _ in merged), tuple(end for _, end in merged))


def _parse_part(part: str) -> tuple[int, int]:
    match = _PART.fullmatch(part)
    if match is None or not part:
        raise JobRejected(
            f"The option filter-rows cannot be read at {shown(part)}: write rows and ranges such "
            "as 5,7,20:30 (the first row is 0, a range's end is excluded)."
        )
    first, last = match["first"], match["last"]
    if match["colon"] is None:
        return int(first), int(first) + 1
    start = int(first) if first else 0
    end = int(last) if last else _END
    if end <= start:
        raise JobRejected(
            f"The option filter-rows holds the range {shown(part)}, which is empty: its end must "
            "be larger than its beginning."
        )
    return start, end
