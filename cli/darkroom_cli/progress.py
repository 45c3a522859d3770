"""How far a job is, from the ledger's run and counters."""

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from darkroom.jobs import Counters, Run, RunState

ENDED = frozenset({RunState.DONE, RunState.FAILED, RunState.STOPPED})
_WINDOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A job at one moment. Rates in rows per minute, times in seconds, money in US dollars."""

    job: str
    run: str
    state: RunState
    rows: int  # data rows read so far; all of them once `split_done`
    split_done: bool
    done: int
    succeeded: int  # with those of earlier uploads
    failed: int
    dead: int
    skipped: int
    resumed: int  # succeeded in an earlier upload
    fallback_rate: float
    cost_usd: float
    unpriced: int
    possible_duplicate_charges: int
    elapsed_seconds: float
    rows_per_minute: float | None
    eta_seconds: float | None
    reason: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(run: Run, counters: Counters, now: float, rate: float | None = None) -> Progress:
    """`rate`: rows per minute of late. Without it, or at the end, the average stands in."""
    totals = run.totals if run.split_done else run.checkpoint.totals
    elapsed = max((run.finished_at or now) - run.started_at, 0.0)
    ended = run.state in ENDED
    if (rate is None or ended) and counters.settled and elapsed > 0:
        rate = counters.settled * 60 / elapsed
    # Rows redriven from an earlier upload were counted as `kept_failed` by the splitter.
    kept_failed = max(totals.kept_failed - counters.redriven, 0)
    left = max(totals.queued + counters.redriven - counters.settled, 0)
    eta = left * 60 / rate if rate and left and run.split_done and not ended else None
    set_aside = totals.resumed + kept_failed + totals.invalid + totals.skipped
    return Progress(
        job=run.job,
        run=run.run,
        state=run.state,
        rows=totals.rows,
        split_done=run.split_done,
        done=counters.settled + set_aside,
        succeeded=counters.succeeded + totals.resumed,
        failed=counters.failed + totals.invalid + kept_failed,
        dead=counters.dead,
        skipped=totals.skipped,
        resumed=totals.resumed,
        fallback_rate=counters.fallback / counters.succeeded if counters.succeeded else 0.0,
        cost_usd=counters.cost_micro_usd / 1e6,
        unpriced=counters.unpriced,
        possible_duplicate_charges=counters.possible_duplicate_charges,
        elapsed_seconds=elapsed,
        rows_per_minute=rate,
        eta_seconds=eta,
        reason=run.reason,
        warnings=run.warnings,
    )


@dataclass(slots=True)
class Pace:
    """Rows per minute over the last minute of looking."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, now: float, settled: int) -> float | None:
        """None until two looks lie apart in time with rows settled in between."""
        self._seen.append((now, settled))
        while self._seen[0][0] < now - _WINDOW_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        if now <= since or settled <= before:
            return None
        return (settled - before) * 60 / (now - since)
