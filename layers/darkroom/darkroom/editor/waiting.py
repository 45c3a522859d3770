"""Rows that wait: for how long their messages are hidden, and what their job shows meanwhile."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from darkroom.errors import Waiting
from darkroom.jobs import Run
from darkroom.ports import Clock, Readiness, RunLedger, Telemetry

RUN_MAX_AGE_SECONDS = 15.0  # a stopped job is noticed after this, before its next call
HOUR = 3600.0
# Hidden messages notice neither `stop` nor a higher limit, so none is hidden for longer than this.
MAX_HIDDEN_SECONDS = 4 * HOUR
# Messages return faster than the limits allow, since live workers receive only some of them.
SUPPLY_FACTOR = 2.0
UNLIMITED_ROWS_PER_SECOND = 10.0  # at which messages return while endpoints without limits are down
TYPICAL_ROW_SECONDS = 20.0
# Of a message whose row was called for: doubles with each receive.
RETRY_SECONDS = 60.0
MAX_RETRY_SECONDS = 240.0


def hide_seconds(
    readiness: Readiness,
    backlog: int,
    now: float,
    random: Callable[[], float],
    *,
    receives: int = 1,
    retry: bool = False,
) -> float:
    """How long to hide messages whose rows have no slot now.

    In proportion to the backlog, so that the messages of all workers return evenly over the time
    that the backlog takes. A retry returns before rows that were not called for.
    """
    until_slot = max(0.0, readiness.start_at - now)
    spread = backlog / (_rows_per_second(readiness) * SUPPLY_FACTOR)
    if retry and readiness.waiting is None:
        spread = min(spread, MAX_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** min(receives - 1, 10))
    return until_slot + random() * min(spread, MAX_HIDDEN_SECONDS)


def _rows_per_second(readiness: Readiness) -> float:
    """What the limits of the rate and in flight allow together."""
    places = readiness.free_places + readiness.places_in_use
    by_rate = readiness.rows_per_second or UNLIMITED_ROWS_PER_SECOND
    return min(by_rate, max(places, 1) / TYPICAL_ROW_SECONDS)


@dataclass(slots=True)
class CurrentRuns:
    """The current runs of jobs as of the last RUN_MAX_AGE_SECONDS; one per process. Thread-safe."""

    ledger: RunLedger
    clock: Clock
    _known: dict[str, tuple[float, Run | None]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, job: str) -> Run | None:
        """Raises ServiceUnavailable."""
        with self._lock:
            read_at, run = self._known.get(job, (-math.inf, None))
        if run is not None and self.clock.now() - read_at < RUN_MAX_AGE_SECONDS:
            return run
        return self.keep(job, self.ledger.current(job))

    def known(self, job: str) -> Run | None:
        """The run as it was last read, however long ago."""
        with self._lock:
            return self._known.get(job, (0.0, None))[1]

    def keep(self, job: str, run: Run | None) -> Run | None:
        with self._lock:
            self._known[job] = self.clock.now(), run
        return run


@dataclass(frozen=True, slots=True)
class JobWaits:
    """Records in the ledger what jobs wait for. `on_change` has a job's progress reported."""

    runs: CurrentRuns
    ledger: RunLedger
    on_change: Callable[[str], None]
    clock: Clock
    telemetry: Telemetry

    def record(self, run: Run, waiting: Waiting) -> bool:
        """Record it, if it is new. True when the job has waited for longer than its option says."""
        known = run.waiting
        if known is None or (known.reason, known.detail) != (waiting.reason, waiting.detail):
            changed = self.ledger.set_waiting(run, waiting.reason, waiting.detail)
            if changed is not None:
                self._changed(changed)
                known = changed.waiting
        since = self.clock.now() if known is None else known.since
        return self.clock.now() - since >= run.options.give_up_after_hours * HOUR

    def clear(self, run: Run) -> None:
        """A row of the job was edited."""
        if run.waiting is not None and (changed := self.ledger.clear_waiting(run)) is not None:
            self._changed(changed)

    def _changed(self, run: Run) -> None:
        self.runs.keep(run.job, run)
        detail = run.waiting.detail if run.waiting else None
        self.telemetry.warning("job_waiting_changed", job=run.job, waiting=detail)
        self.on_change(run.job)
