"""Many workers on one virtual clock: real threads, of which exactly one runs at a time.

A worker that sleeps hands over to whoever wakes next, so that hours pass in milliseconds, in the
same order each time. Clocks of single workers may be wrong by a constant skew.
"""

import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

START = 1_795_000_000.0


class VirtualTime:
    def __init__(self, start: float = START) -> None:
        self.at = start
        self._queue: list[tuple[float, int, threading.Event]] = []
        self._order = itertools.count()
        self._threads: list[threading.Thread] = []
        self._killed: set[int | None] = set()
        self._idle = threading.Event()
        self.errors: list[BaseException] = []

    def clock(self, skew: float = 0.0) -> "SkewedClock":
        return SkewedClock(self, skew)

    def start(self, work: Callable[[], None], after: float = 0.0) -> None:
        """Let `work` run as a worker of its own, `after` seconds from now."""
        turn = self._enqueue(after)

        def run() -> None:
            turn.wait()
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - told by run()
                self.errors.append(error)
            finally:
                self._next()

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def run(self) -> None:
        """Run until every worker is done; raises the first error of any."""
        self._next()
        self._idle.wait()
        for thread in self._threads:
            if thread.ident not in self._killed:
                thread.join()
        if self.errors:
            raise self.errors[0]

    def sleep(self, seconds: float) -> None:
        turn = self._enqueue(max(0.0, seconds))
        self._next()
        turn.wait()

    def kill(self) -> None:
        """End the calling worker here and now: nothing of it runs any more, no `finally` either."""
        self._killed.add(threading.get_ident())
        self._next()
        threading.Event().wait()

    def _enqueue(self, after: float) -> threading.Event:
        turn = threading.Event()
        heapq.heappush(self._queue, (self.at + after, next(self._order), turn))
        return turn

    def _next(self) -> None:
        if not self._queue:
            self._idle.set()
            return
        self.at, _, turn = heapq.heappop(self._queue)
        turn.set()


@dataclass
class SkewedClock:
    """A worker's own clock. Implements ports.Clock; `kill_at` ends the worker at that true time.

    `oversleep` tells how much too long a sleep lasts, in seconds.
    """

    time: VirtualTime
    skew: float = 0.0
    kill_at: float = float("inf")
    oversleep: Callable[[], float] = lambda: 0.0

    def now(self) -> float:
        return self.time.at + self.skew

    def sleep(self, seconds: float) -> None:
        lasts = seconds + self.oversleep()
        self.time.sleep(min(lasts, max(0.0, self.kill_at - self.time.at)))
        if self.time.at >= self.kill_at:
            self.time.kill()
