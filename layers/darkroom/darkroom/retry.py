"""Retries: how long to wait before each, in seconds, and for how long to go on."""

import time
from collections.abc import Callable

from darkroom.errors import ServiceUnavailable

JITTER = 0.3  # up to 30 % shorter or longer
BACKOFF_CAP_SECONDS = 60.0


def backoff(attempt: int, base_seconds: float, cap_seconds: float = BACKOFF_CAP_SECONDS) -> float:
    """The wait after the `attempt`-th failure (1 for the first): doubled each time, up to a cap."""
    return min(cap_seconds, base_seconds * 2.0 ** min(attempt - 1, 60))


def with_jitter(seconds: float, random: Callable[[], float]) -> float:
    """`seconds`, made up to JITTER shorter or longer; `random` returns a float in [0, 1)."""
    return seconds * (1 - JITTER + 2 * JITTER * random())


def _short_pause(tries: int) -> float:
    """0.1 s after the first try, doubled after each further one, up to 3 s."""
    return backoff(tries, 0.1, 3.0)


def while_unavailable[T](
    request: Callable[[], T],
    *,
    tries: int,
    patience_seconds: float,
    sleep: Callable[[float], None],
    pause: Callable[[int], float] = _short_pause,
) -> T:
    """Repeat `request` while it raises ServiceUnavailable: `tries` in all, within the patience.

    The SDK repeats requests too, but its retry quota is spent soon when every second one fails
    (botocore/retries/quota.py), and then it repeats none. `pause` is the wait after the n-th try.
    """
    give_up_at = time.monotonic() + patience_seconds
    for failures in range(1, tries):
        try:
            return request()
        except ServiceUnavailable:
            seconds = pause(failures)
            if time.monotonic() + seconds > give_up_at:
                raise
        sleep(seconds)
    return request()
