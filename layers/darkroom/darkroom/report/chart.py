"""Outcomes over time: a histogram in bounded memory, and its small inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from darkroom.report.html import Safe, tag
from darkroom.report.lines import RowStatus

MOST_BARS = 60
_STACK = (RowStatus.SUCCEEDED, RowStatus.FAILED, RowStatus.DEAD)
_WIDTH, _HEIGHT = 600, 100


@dataclass(frozen=True, slots=True)
class Bar:
    """Rows that settled in one stretch of time; `start` in Unix seconds."""

    start: float
    succeeded: int = 0
    failed: int = 0
    dead: int = 0

    @property
    def total(self) -> int:
        return self.succeeded + self.failed + self.dead


@dataclass(slots=True)
class Timeline:
    """Counts per stretch of time. The stretch doubles whenever the span outgrows MOST_BARS."""

    width_seconds: int = 1
    _counts: dict[int, dict[RowStatus, int]] = field(default_factory=dict)

    def add(self, at: float, status: RowStatus) -> None:
        place = int(at // self.width_seconds)
        counts = self._counts.get(place)
        if counts is None:
            counts = self._counts[place] = dict.fromkeys(_STACK, 0)
            while max(self._counts) - min(self._counts) >= MOST_BARS:
                self._widen()
            counts = self._counts[int(at // self.width_seconds)]
        counts[status] += 1

    def _widen(self) -> None:
        self.width_seconds *= 2
        wider: dict[int, dict[RowStatus, int]] = {}
        for place, counts in self._counts.items():
            into = wider.setdefault(place // 2, dict.fromkeys(_STACK, 0))
            for status, count in counts.items():
                into[status] += count
        self._counts = wider

    def bars(self) -> tuple[Bar, ...]:
        """One bar per stretch from the first outcome to the last, empty ones included."""
        if not self._counts:
            return ()
        empty: dict[RowStatus, int] = {}
        return tuple(
            Bar(
                place * self.width_seconds,
                *(self._counts.get(place, empty).get(status, 0) for status in _STACK),
            )
            for place in range(min(self._counts), max(self._counts) + 1)
        )


def draw(bars: Sequence[Bar], width_seconds: int) -> Safe:
    """Stacked bars as an SVG that stretches to its box; colours come from the page's classes."""
    tallest = max((bar.total for bar in bars), default=0) or 1
    step = _WIDTH / max(len(bars), 12)  # a short job gets bars, not a block
    drawn = [
        _column(bar, index * step, step * 0.82, tallest, width_seconds)
        for index, bar in enumerate(bars)
        if bar.total
    ]
    return tag(
        "svg",
        tag("title", "Rows settled over time"),
        drawn,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        class_="chart",
    )


def _column(bar: Bar, x: float, width: float, tallest: int, seconds: int) -> Safe:
    told = ", ".join(f"{getattr(bar, s.value):,} {s.value}" for s in _STACK)
    parts: list[Safe] = [tag("title", f"{told} in {seconds:,} s")]
    top = float(_HEIGHT)
    for status in _STACK:
        height = getattr(bar, status.value) / tallest * _HEIGHT
        if height:
            top -= height
            parts.append(
                tag(
                    "rect",
                    x=f"{x:.2f}",
                    y=f"{top:.2f}",
                    width=f"{width:.2f}",
                    height=f"{height:.2f}",
                    class_=f"fill-{status.value}",
                )
            )
    return tag("g", parts)
