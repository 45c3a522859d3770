"""Many workers on one virtual clock: processes that dispatch row after row, each with a dispatcher.

What a process knows of the endpoints, it knows from the shared states alone. A row that is deferred
or fails returns to the queue, with its attempts counted as the editor counts them.
"""

import functools
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from darkroom.dispatch.dispatcher import TieredDispatcher
from darkroom.endpoint_state import (
    EndpointState,
    GoodAnswers,
    Rejection,
    Reservation,
    ReservationRequest,
)
from darkroom.errors import DarkroomError, DeferRow, RetryRow, ServiceUnavailable
from darkroom.ports import Clock, DispatchResult, EndpointStates, SecretSource
from darkroom.providers.registry import Provider
from darkroom.retry import backoff, with_jitter
from tests.fakes.dispatching import DispatchHarness, FakeCallContext
from tests.fakes.strict_provider import NetworkEditor, StrictProvider
from tests.fakes.virtual_time import START, SkewedClock, VirtualTime

ABOUT_NOW_SECONDS = 1.0
RETRY_SECONDS = 15.0
LIVE_STEP_SECONDS = 1.0
IDLE_STEP_SECONDS = 2.0
SUPPLY_FACTOR = 1.25
CHECK_SECONDS = 0.3  # what an invocation is billed that finds no slot


@dataclass
class SlowStates:
    """The endpoints table at a distance: each request takes `seconds`."""

    states: EndpointStates
    clock: Clock
    seconds: float

    def read(self, endpoint: str) -> EndpointState:
        self.clock.sleep(self.seconds)
        return self.states.read(endpoint)

    def reserve(
        self, endpoint: str, request: ReservationRequest, last_known: EndpointState | None = None
    ) -> tuple[Reservation | Rejection, EndpointState]:
        self.clock.sleep(self.seconds / 2)
        answer = self.states.reserve(endpoint, request, last_known)
        self.clock.sleep(self.seconds / 2)
        return answer

    def settle(
        self, endpoint: str, lease: str, counted_as: GoodAnswers | None = None
    ) -> EndpointState:
        self.clock.sleep(self.seconds)
        return self.states.settle(endpoint, lease, counted_as)

    def report(
        self, endpoint: str, transition: Callable[[EndpointState], EndpointState]
    ) -> tuple[EndpointState, EndpointState]:
        self.clock.sleep(2 * self.seconds)
        return self.states.report(endpoint, transition)


@dataclass
class Row:
    """A row of the fleet's job, and what became of it."""

    number: int
    attempts: int = 0
    deferrals: int = 0
    result: DispatchResult | None = None
    ended_at: float | None = None  # true time
    dead: bool = False


@dataclass
class Process:
    """A worker process. Its invocation is billed while any of its threads has a row in work."""

    dispatcher: TieredDispatcher
    clock: SkewedClock
    rng: random.Random
    threads: int
    in_work: int = 0
    looks_at: float = 0.0  # true time, while it is idle: its next message arrives
    live_since: float = 0.0
    billed: float = 0.0
    checks: int = 0  # invocations that found no slot

    def start_row(self) -> None:
        if not self.in_work:
            self.live_since = self.clock.time.at
        self.in_work += 1

    def end_row(self) -> None:
        self.in_work -= 1
        if not self.in_work:
            self.billed += self.clock.time.at - self.live_since


class Fleet(DispatchHarness):
    """`rows` is the size of the job; by default it does not end before the run does."""

    def __init__(self, *endpoints: dict[str, object], rows: int = 1_000_000_000) -> None:
        super().__init__(*endpoints)
        self.time = VirtualTime()
        self.done: list[Row] = []
        self._succeeded: list[tuple[float, float, DispatchResult]] = []
        self.errors: list[DarkroomError] = []  # of attempts that were spent
        self.deferred: list[tuple[float, DeferRow]] = []
        self.processes: list[Process] = []
        self.max_attempts = 5
        self.secret_source_of: Callable[[Clock], SecretSource] = lambda _: self.secret_source
        self._returned: list[tuple[float, int, Row]] = []  # hidden in the queue until a time
        self._new = iter(range(rows))

    @property
    def rows(self) -> list[tuple[float, float, DispatchResult]]:
        """(start, duration, result) of the rows that succeeded."""
        return self._succeeded

    def provider(self, **fields: Any) -> StrictProvider:
        return StrictProvider(self.time, **fields)

    def run(
        self,
        first: StrictProvider,
        fallback: StrictProvider | None = None,
        *,
        processes: int = 4,
        threads: int = 4,
        seconds: float = 240.0,
        skew: float = 0.0,
        oversleep: float = 0.0,
        network_delay: float = 0.0,
        table_seconds: float = 0.0,
        ledger_delay: Callable[[random.Random], float] | None = None,
        kill_at: Callable[[int], float] = lambda _: float("inf"),
    ) -> None:
        """Seconds too: the clocks' `skew` either way, the most by which a sleep is too long.

        `table_seconds` is how long a request to the endpoints table takes, `ledger_delay` how long
        the ledger takes to record that a call is about to be sent. `kill_at` gives the time at
        which a process dies, by its number.
        """
        self._ledger_delay = ledger_delay
        for number in range(processes):
            rng = random.Random(number)
            clock = SkewedClock(
                self.time,
                rng.uniform(-skew, skew),
                kill_at(number),
                lambda rng=rng: rng.uniform(0, oversleep),  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            )
            editors = {Provider.GEMINI: NetworkEditor(first, clock, rng, network_delay)}
            if fallback is not None:
                editors[Provider.OPENAI] = NetworkEditor(fallback, clock, rng, network_delay)
            states = SlowStates(self.states, clock, table_seconds) if table_seconds else None
            source = self.secret_source_of(clock)
            dispatcher = self.worker(editors.__getitem__, clock, rng, states, source)
            process = Process(dispatcher, clock, rng, threads)
            self.processes.append(process)
            for _ in range(threads):
                work = functools.partial(self._work, process, START + seconds)
                self.time.start(work, after=rng.uniform(0, 2))
        self.time.run()

    def _work(self, process: Process, until: float) -> None:
        clock = process.clock
        while self.time.at < until:
            if wait := self._wait_before_row(process):
                clock.sleep(min(wait, max(0.0, until - self.time.at) + 0.1))
                continue
            row = self._next_row()
            if row is None:
                if self._returned:
                    clock.sleep(max(0.1, self._returned[0][0] - self.time.at))
                    continue
                if not any(p.in_work for p in self.processes):
                    return
                clock.sleep(1.0)
                continue
            process.start_row()
            self._dispatch(process, row)
            process.end_row()

    def _wait_before_row(self, process: Process) -> float:
        """As in the editor: an idle process starts when it is sent messages and a slot is free."""
        if not process.in_work and self.time.at < process.looks_at:
            return IDLE_STEP_SECONDS
        now = process.clock.now()
        try:
            ready = process.dispatcher.readiness()
        except ServiceUnavailable:
            return RETRY_SECONDS
        wait = ready.start_at - now
        interval = 1 / ready.rows_per_second if ready.rows_per_second else 0.0
        longest = min(15.0, max(5.0, 2 * interval)) * process.in_work / process.threads
        ahead = 0.0 if ready.waiting else max(ABOUT_NOW_SECONDS, longest)
        if wait <= ahead:
            return 0.0
        if process.in_work:
            return LIVE_STEP_SECONDS
        process.checks += 1
        hidden = with_jitter(min(wait, 60.0), process.rng.random)
        if not ready.waiting:  # hidden messages return somewhat faster than the limits allow
            together = len(self.processes) * process.threads * interval / SUPPLY_FACTOR
            hidden += process.rng.expovariate(1 / together) if together else 0.0
        process.looks_at = self.time.at + hidden
        return min(hidden, IDLE_STEP_SECONDS)

    def _next_row(self) -> Row | None:
        if self._returned and self._returned[0][0] <= self.time.at:
            return heapq.heappop(self._returned)[2]
        number = next(self._new, None)
        return None if number is None else Row(number)

    def _dispatch(self, process: Process, row: Row) -> None:
        clock, started = process.clock, self.time.at
        context = FakeCallContext()
        delay = self._ledger_delay
        if delay is not None:
            context.during_before_call = lambda: clock.sleep(delay(process.rng))
        try:
            row.result = process.dispatcher.dispatch(context, clock.now() + 900)
        except DeferRow as deferred:
            row.deferrals += 1
            self.deferred.append((started, deferred))
            self._return(row, deferred.delay_seconds)
        except RetryRow as error:
            self.errors.append(error)
            row.attempts += 1
            if row.attempts < self.max_attempts:
                backed_off = with_jitter(backoff(row.attempts, 10.0, 900.0), process.rng.random)
                self._return(row, max(backed_off, error.delay_seconds))
            else:
                row.dead = True
                self._end(row)
        else:
            self._succeeded.append((started, self.time.at - started, row.result))
            self._end(row)

    def _return(self, row: Row, seconds: float) -> None:
        heapq.heappush(self._returned, (self.time.at + seconds, row.number, row))

    def _end(self, row: Row) -> None:
        row.ended_at = self.time.at
        self.done.append(row)

    def assert_few_writes_per_row(self) -> None:
        """Reads depend on how often idle workers look whether a slot is free."""
        requests = self.states.requests
        assert requests["reserve"] / len(self.rows) <= 1.3
        assert (requests["reserve"] + requests["settle"] + requests["report"]) / len(
            self.rows
        ) <= 2.4
