"""Many workers on one virtual clock: real threads, of which exactly one runs at a time.

A worker that sleeps yields to the one that wakes next, so hours pass in milliseconds, and in the
same order in each run. A worker's clock may deviate by a constant skew.
"""

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tests.fakes.services import FakeClock

START = 1_795_000_000.0


class VirtualTime:
    def __init__(self, start: float = START) -> None:
        self.at = start
        self.errors: list[BaseException] = []
        self._queue: list[tuple[float, int, threading.Event]] = []
        self._order = itertools.count()
        self._idle = threading.Event()

    def start(self, work: Callable[[], None], after: float = 0.0) -> None:
        """Start `work` as a worker, `after` seconds from now."""
        turn = self._enqueue(after)

        def run() -> None:
            turn.wait()
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised by VirtualTime.run
                self.errors.append(error)
            finally:
                self._next()

        threading.Thread(target=run, daemon=True).start()

    def run(self) -> None:
        """Run until every worker has finished; raises the first error of any."""
        self._next()
        self._idle.wait()
        if self.errors:
            raise self.errors[0]

    def sleep(self, seconds: float) -> None:
        turn = self._enqueue(max(0.0, seconds))
        self._next()
        turn.wait()

    def kill(self) -> None:
        """End the calling worker at once: none of its code runs any more, no `finally` either."""
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

    Each sleep lasts `oversleep()` seconds too long.
    """

    time: VirtualTime
    skew: float = 0.0
    kill_at: float = float("inf")
    oversleep: Callable[[], float] = lambda: 0.0

    def now(self) -> float:
        return self.time.at + self.skew

    def sleep(self, seconds: float) -> None:
        seconds += self.oversleep()
        self.time.sleep(min(seconds, max(0.0, self.kill_at - self.time.at)))
        if self.time.at >= self.kill_at:
            self.time.kill()


class ThreadsClock(FakeClock):
    """A FakeClock that `run` turns into virtual time, for work that uses threads."""

    virtual: VirtualTime | None = None

    def now(self) -> float:
        return self.time if self.virtual is None else self.virtual.at

    def sleep(self, seconds: float) -> None:
        if self.virtual is None:
            super().sleep(seconds)
        else:
            self.virtual.sleep(seconds)

    def run[T](self, work: Callable[[], T]) -> T:
        """Run `work` and the threads it starts with `run_all`, to their ends."""
        self.virtual, results = VirtualTime(self.time), list[T]()
        self.virtual.start(lambda: results.append(work()))
        try:
            self.virtual.run()
            return results[0]
        finally:
            self.time, self.virtual = self.virtual.at, None

    def run_all(self, works: Sequence[Callable[[], None]]) -> None:
        assert self.virtual is not None
        run_all(self.virtual, works)


def run_all(time: VirtualTime, works: Sequence[Callable[[], None]]) -> None:
    """Run `works` at once, as workers; returns when all have ended."""
    ended = list[bool]()

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            ended.append(True)

    for work in works:
        time.start(partial(run, work))
    while len(ended) < len(works):
        time.sleep(0.05)
