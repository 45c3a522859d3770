"""The limits a provider enforces, as strictly as it can be done."""

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class SlidingWindow:
    """At most `most` allowed arrivals in any `seconds`; a refused one does not count."""

    most: int
    seconds: float
    _allowed: deque[float] = field(default_factory=deque)

    def take(self, now: float) -> float:
        """0 when the arrival is allowed, else the seconds until the next one would be."""
        if not self.most:
            return 0.0
        while self._allowed and self._allowed[0] <= now - self.seconds:
            self._allowed.popleft()
        if len(self._allowed) < self.most:
            self._allowed.append(now)
            return 0.0
        return max(1e-6, self._allowed[0] + self.seconds - now)


def densest(arrivals: list[float], seconds: float) -> int:
    """The most arrivals in any half-open window of `seconds`. `arrivals` must be sorted."""
    return max(
        (bisect_right(arrivals, t) - bisect_right(arrivals, t - seconds) for t in arrivals),
        default=0,
    )
