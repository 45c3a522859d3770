"""A job on Lambda's event source, the real editor's invocations and dispatcher, on a virtual clock.

Counts what AWS would bill. Loading and storing take a fixed time each; a call about `call_seconds`.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from math import inf

from darkroom.calls import EditResult
from darkroom.editor.batch import Completion, EditorBatch, ReturnRow
from darkroom.editor.leases import Leases
from darkroom.editor.waiting import CurrentRuns, JobWaits
from darkroom.errors import DeferRow, RetryRow, Waiting
from darkroom.jobs import Run, Totals
from darkroom.ports import Clock, Dispatcher
from darkroom.providers.registry import Provider
from darkroom.rows import RowMessage
from tests.fakes.dispatching import DispatchHarness, FakeCallContext, gemini
from tests.fakes.editing import JOB, row_message
from tests.fakes.event_source import EventSource
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.services import FakeQueue
from tests.fakes.strict_provider import NetworkEditor, StrictProvider
from tests.fakes.virtual_time import START, SkewedClock, VirtualTime, run_all

LOAD_SECONDS = 0.5
STORE_SECONDS = 0.7
MEAN_NETWORK_SECONDS = 0.1


@dataclass
class SimulatedRows:
    """A RowHandler that dispatches each row, with the time that its images take."""

    dispatcher: Dispatcher
    clock: SkewedClock
    counts: Counter[str]

    def handle(
        self,
        message: RowMessage,
        run: Run,
        owner: str,
        deadline: float,
        leases: Leases,
        *,
        given_up: Waiting | None = None,
    ) -> ReturnRow | None:
        self.clock.sleep(LOAD_SECONDS)
        try:
            self.dispatcher.dispatch(FakeCallContext(), deadline)
        except DeferRow as deferred:
            self.counts["deferred_with_images"] += 1
            return ReturnRow(deferred.delay_seconds)
        except RetryRow as failed:
            self.counts["attempts_spent"] += 1
            return ReturnRow(failed.delay_seconds)
        self.clock.sleep(STORE_SECONDS)
        self.counts["done"] += 1
        return None


@dataclass
class VariedProvider(StrictProvider):
    """Calls take up to 10 % more or less than `typical_seconds`."""

    typical_seconds: float = 20.0
    rng: random.Random = field(default_factory=lambda: random.Random(3))

    def serve(self, clock: Clock, timeout: float) -> EditResult:
        self.latency = self.typical_seconds * self.rng.uniform(0.9, 1.1)
        return super().serve(clock, timeout)


@dataclass
class CostFleet:
    """`rows` of one job, with `processes` of `threads` at most, against one endpoint."""

    rows: int
    processes: int
    threads: int
    rate: int  # requests per minute; 0: no limit
    call_seconds: float = 20.0
    max_in_flight: int = 0
    outage: tuple[float, float] = (0.0, 0.0)  # seconds since the start
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.time = VirtualTime()
        self.clock = SkewedClock(self.time)
        self.harness = DispatchHarness(
            gemini(requests_per_minute=self.rate, max_in_flight=self.max_in_flight)
        )
        self.provider = VariedProvider(
            self.time,
            per_minute=self.rate,
            typical_seconds=self.call_seconds,
            outage=self.outage,
        )
        self.ledger = FakeLedger(self.clock)
        self.queue = FakeQueue(self.clock, poll_seconds=0.2, request_seconds=0.015)
        self.source = EventSource(
            self.time,
            self.queue,
            self._environment,
            self.threads,
            self.processes,
            lambda: self.counts["done"] >= self.rows,
        )

    def run(self) -> None:
        run = self.ledger.start(running(JOB, run="run-1", started_at=START), 90.0)
        assert run is not None
        self.ledger.finish_split(run, Totals(rows=self.rows, queued=self.rows), ())
        self.time.start(self._split)
        self.source.start()
        self.time.run()
        self.seconds = self.time.at - START

    def _split(self) -> None:
        """Queue the rows as the splitter does, about a thousand a second."""
        for first in range(0, self.rows, 100):
            numbers = range(first, min(first + 100, self.rows))
            self.queue.send([row_message("run-1", f"{n:06d}") for n in numbers])
            self.time.sleep(0.1)

    def _environment(self, number: int) -> EditorBatch:
        rng = random.Random(number)
        delay = 2 * MEAN_NETWORK_SECONDS
        editors = {Provider.GEMINI: NetworkEditor(self.provider, self.clock, rng, delay)}
        dispatcher = self.harness.worker(editors.__getitem__, self.clock, rng)
        runs, telemetry = CurrentRuns(self.ledger, self.clock), self.harness.telemetry
        return EditorBatch(
            editor=SimulatedRows(dispatcher, self.clock, self.counts),
            dispatcher=dispatcher,
            rows=self.ledger,
            runs=runs,
            waits=JobWaits(runs, self.ledger, lambda job: None, self.clock, telemetry),
            queue=self.queue,
            completion=Completion(self.ledger, lambda job: None, telemetry),
            clock=self.clock,
            telemetry=telemetry,
            threads=self.threads,
            rng=rng.random,
            run_all=lambda works: run_all(self.time, works),
        )

    # Results

    @property
    def deferrals_per_row(self) -> float:
        """How often a message returned to the queue, nearly always unclaimed."""
        receives = [int(receipt.rpartition("/")[2]) for receipt in set(self.queue.deleted)]
        return sum(receives) / self.rows - 1

    @property
    def billed_per_row(self) -> float:
        return self.source.billed_seconds / self.rows

    @property
    def floor_per_row(self) -> float:
        """Of threads that always work on a row, in at least one worker.

        A row keeps its thread busy from the loading of its images until they are stored.
        """
        if not self.limit_binds:
            return self._work_seconds / self.threads
        threads = self._calls_per_second * self._work_seconds
        return max(1.0, threads / self.threads) / self._calls_per_second

    @property
    def limit_binds(self) -> bool:
        """The workers could make more calls than the limits allow."""
        return self._calls_per_second * self._work_seconds < self.processes * self.threads

    @property
    def _work_seconds(self) -> float:
        return LOAD_SECONDS + MEAN_NETWORK_SECONDS + self.call_seconds + STORE_SECONDS

    @property
    def _calls_per_second(self) -> float:
        """What the limits allow."""
        by_rate = self.rate / 62 if self.rate else inf
        return min(by_rate, self.max_in_flight / self.call_seconds or inf)

    @property
    def utilisation(self) -> float:
        """Of what the limits allow, from minute 2 until 90 % of the rows are called for."""
        arrivals = sorted(self.provider.allowed)
        measured = [t for t in arrivals[: int(0.9 * self.rows)] if t >= START + 60]
        seconds = measured[-1] - measured[0]
        by_places = self.max_in_flight * 60 / self.call_seconds
        possible = min(self.rate or inf, by_places or inf)
        return (len(measured) - 1) / (seconds / 60) / possible
