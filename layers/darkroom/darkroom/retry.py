"""Backoff and jitter: how long to wait before a retry, in seconds."""

from collections.abc import Callable

JITTER = 0.3  # up to 30 % shorter or longer
BACKOFF_CAP_SECONDS = 60.0


def backoff(attempt: int, base_seconds: float, cap_seconds: float = BACKOFF_CAP_SECONDS) -> float:
    """The wait after the `attempt`-th failure (1 for the first): doubled each time, up to a cap."""
    return min(cap_seconds, base_seconds * 2.0 ** min(attempt - 1, 60))


def with_jitter(seconds: float, random: Callable[[], float]) -> float:
    """`seconds`, made up to JITTER shorter or longer; `random` returns a float in [0, 1)."""
    return seconds * (1 - JITTER + 2 * JITTER * random())
