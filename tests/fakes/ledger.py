"""The ledger in memory: the same transitions as in the table, applied under a lock."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from darkroom.errors import Reason, ServiceUnavailable
from darkroom.jobs import Checkpoint, Counters, JobOptions, Run, RunState, Source, Totals
from darkroom.ledger import rows, runs
from darkroom.ledger.batches import BatchRecord, BatchState
from darkroom.ledger.rows import LEASE_SECONDS, Change, ClaimRequest
from darkroom.ledger.runs import JobRecord, RunRecord, UnfinishedJob
from darkroom.ledger.transitions import RowTransitions
from darkroom.ports import Clock
from darkroom.rows import (
    Claim,
    NotClaimed,
    NotSent,
    RowMessage,
    RowRecord,
)


@dataclass
class FakeLedger(RowTransitions):
    """RowLedger and RunLedger in one, like the table. `committed` holds the jobs' budgets."""

    clock: Clock
    rows: dict[tuple[str, str], RowRecord] = field(default_factory=dict)
    runs: dict[tuple[str, str], RunRecord] = field(default_factory=dict)
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    sums: dict[tuple[str, str], Counters] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)  # unfinished jobs
    reserved: dict[str, int] = field(default_factory=dict)  # micro-USD, for calls under way
    committed: dict[str, int] = field(default_factory=dict)  # micro-USD
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __post_init__(self) -> None:
        self._now = self.clock.now
        self._lease_seconds = LEASE_SECONDS

    # -- rows

    def get_many(self, job: str, keys: Sequence[str]) -> Mapping[str, RowRecord]:
        return {k: self.rows[job, k] for k in keys if (job, k) in self.rows}

    def all(self, job: str) -> Iterator[RowRecord]:
        return iter([self.rows[job, key] for j, key in sorted(self.rows) if j == job])

    def unsettled(self, job: str) -> Iterator[RowRecord]:
        return (record for record in self.all(job) if not record.state.terminal)

    def discard_result(self, job: str, key: str, image: str) -> None:
        with self.lock:
            record = self.rows.get((job, key))
            change = rows.discard_result(record, image, self.clock.now()) if record else None
            if change is not None:
                self._write(job, change)

    def claim(
        self, message: RowMessage, run: Run, owner: str, lease_seconds: float
    ) -> Claim | NotClaimed:
        if message.run != run.run:
            run = self.current(message.job) or run
        request = ClaimRequest(message, run, owner, self.clock.now(), lease_seconds)
        with self.lock:
            decision = request.decide(self.rows.get((message.job, message.key)))
            if decision.change is not None:
                self._write(message.job, decision.change)
                if decision.change.counters:
                    now = self.clock.now()
                    self._mark_unfinished(run.job)
                    with suppress(ServiceUnavailable):
                        self._update(run, lambda record: runs.reopen(record, now))
        return decision.verdict

    def renew(self, claims: Sequence[Claim], lease_seconds: float) -> None:
        with self.lock:
            until = self.clock.now() + lease_seconds
            for claim in claims:
                record = self.rows.get((claim.job, claim.key))
                if record and record.lease_owner == claim.owner and not record.state.terminal:
                    self.rows[claim.job, claim.key] = replace(record, lease_until=until)

    def _apply(self, claim: Claim, change: Change, *, limit: int | None = None) -> Claim | NotSent:
        """Compare and swap; a repeat of a write whose response was lost succeeds."""
        after = replace(claim, record=change.record)
        with self.lock:
            stored = self.rows.get((claim.job, claim.key))
            if stored is None or stored.version != claim.record.version:
                ours = stored is not None and rows.same_write(stored, change.record)
                return after if ours else NotSent.LEASE_LOST
            if limit is not None and self.committed.get(claim.job, 0) + change.budget > limit:
                settled = self.committed.get(claim.job, 0) - self.reserved.get(claim.job, 0)
                waits = settled + change.budget <= limit
                return NotSent.BUDGET_RESERVED if waits else NotSent.NO_BUDGET
            self._write(claim.job, change)
        return after

    def _write(self, job: str, change: Change) -> None:
        self.rows[job, change.record.key] = change.record
        for run, delta in change.counters.items():
            self.sums[job, run] = self.counters(job, run) + delta
        if change.budget:
            self.committed[job] = self.committed.get(job, 0) + change.budget
        if change.reserved:
            self.reserved[job] = self.reserved.get(job, 0) + change.reserved

    # -- runs

    def start(self, run: Run, lease_seconds: float) -> Run | None:
        current, now = self.jobs.get(run.job), self.clock.now()
        if current is not None and current.run == run.run:
            return self._update(
                run, lambda record: runs.take_over_split(record, now, lease_seconds)
            )
        if not self._is_new(run):
            return None
        return self._make_current(self._next_run(run, now + lease_seconds))

    def reject(self, run: Run, reason: str) -> Run | None:
        current, now = self.jobs.get(run.job), self.clock.now()
        if not self._is_new(run):
            return None
        known = self.runs[run.job, current.run] if current else None
        if known is not None and runs.is_under_way(known):
            return self._update(
                known.run, lambda record: runs.add_rejected_upload(record, run, reason, now)
            )
        return self._make_current(runs.start_rejected(self._next_run(run, now), reason, now))

    def _is_new(self, run: Run) -> bool:
        current = self.jobs.get(run.job)
        known = (run.job, run.run) in self.runs
        return not known and (current is None or runs.is_newer(run.sequencer, current))

    def _next_run(self, run: Run, until: float) -> RunRecord:
        spent = sum(
            self.counters(job, name).cost_micro_usd
            for (job, name), earlier in self.runs.items()
            if job == run.job and earlier.run.options.budget_micro_usd is None
        )
        current = self.jobs.get(run.job)
        previous = self.runs[run.job, current.run] if current else None
        return runs.start(run, previous, spent, until)

    def spent_earlier(self, run: Run) -> int:
        return sum(
            self.counters(job, name).cost_micro_usd
            for (job, name), earlier in self.runs.items()
            if job == run.job and earlier.run.number < run.number
        )

    def _make_current(self, record: RunRecord) -> Run:
        run = record.run
        self.jobs[run.job] = JobRecord(run.job, run.run, run.number, run.sequencer, run.number)
        self.runs[run.job, run.run] = record
        self._mark_unfinished(run.job)
        return run

    def add_to_run(self, job: str, run: str, counters: Counters) -> None:
        self.sums[job, run] = self.counters(job, run) + counters
        self._mark_unfinished(job)

    def _mark_unfinished(self, job: str) -> None:
        self.marks[job] = self.marks.get(job, 0) + 1

    def unfinished(self) -> Iterator[UnfinishedJob]:
        return iter([UnfinishedJob(job, marks) for job, marks in sorted(self.marks.items())])

    def finish(self, job: UnfinishedJob) -> None:
        if self.marks.get(job.job) == job.marks:
            del self.marks[job.job]

    def inspect(self, job: str) -> tuple[RunRecord, Counters] | None:
        run = self.current(job)
        return (self.runs[job, run.run], self.counters(job, run.run)) if run else None

    def queue_again(self, run: Run) -> bool:
        with self.lock:
            counters, now = self.counters(run.job, run.run), self.clock.now()
            again = self._update(run, lambda record: runs.queue_again(record, counters, now))
        return again is not None

    def give_up_lost(self, run: Run) -> Run | None:
        settled = self.counters(run.job, run.run).settled
        return self._update(run, lambda record: runs.give_up_lost(record, settled))

    def note_progress(self, run: Run) -> None:
        with self.lock:
            counters, now = self.counters(run.job, run.run), self.clock.now()
            self._update(run, lambda record: runs.note_progress(record, counters, now))

    def dropped_settled(self, run: Run) -> None:
        self._update(run, runs.dropped_settled)

    def checkpoint(self, run: Run, checkpoint: Checkpoint, lease_seconds: float) -> bool:
        if self.jobs[run.job].run != run.run:
            return False
        until = self.clock.now() + lease_seconds
        self._update(run, lambda record: runs.checkpoint(record, checkpoint, until))
        return True

    def finish_split(self, run: Run, totals: Totals, warnings: Sequence[str]) -> None:
        self._update(run, lambda record: runs.finish_split(record, totals, warnings))

    def set_waiting(self, run: Run, reason: Reason, detail: str) -> Run | None:
        now = self.clock.now()
        return self._update(run, lambda record: runs.set_waiting(record, reason, detail, now))

    def clear_waiting(self, run: Run) -> Run | None:
        return self._update(run, runs.clear_waiting)

    def fail(self, run: Run, reason: str) -> None:
        now = self.clock.now()
        self._update(run, lambda record: runs.fail(record, reason, now))

    def stop(self, job: str) -> Run | None:
        run = self.current(job)
        return self._update(run, runs.stop) if run else None

    def current(self, job: str) -> Run | None:
        current = self.jobs.get(job)
        return self.runs[job, current.run].run if current else None

    def current_run(self, job: str) -> Run:
        """Like `current`, for a job that has a run."""
        return self.runs[job, self.jobs[job].run].run

    def counters(self, job: str, run: str) -> Counters:
        return self.sums.get((job, run), Counters())

    def report_due(self, job: str) -> bool:
        run = self.current(job)
        if run is None:
            return False
        return runs.report_due(self.runs[job, run.run], self.counters(job, run.run))

    def begin_report(self, run: Run, lease_seconds: float, owner: str = "") -> bool:
        if self.jobs[run.job].run != run.run:
            return False
        now = self.clock.now()
        with self.lock:
            record, counters = self.runs[run.job, run.run], self.counters(run.job, run.run)
            begun = runs.begin_report(record, counters, owner, now, lease_seconds)
            self._update(run, lambda _: begun)
        return begun is not None

    def finish_report(self, run: Run, finished_at: float) -> bool:
        with self.lock:
            record, counters = self.runs[run.job, run.run], self.counters(run.job, run.run)
            is_current, changed = runs.finish_report(record, counters, finished_at)
            self._update(run, lambda _: changed)
        return is_current

    def _update(self, run: Run, transition: Callable[[RunRecord], RunRecord | None]) -> Run | None:
        with self.lock:
            changed = transition(self.runs[run.job, run.run])
            if changed is None:
                return None
            self.runs[run.job, run.run] = changed
        return changed.run


@dataclass
class FakeBatchLedger:
    """BatchLedger in memory, beside the rows and runs of `ledger`."""

    ledger: FakeLedger
    batches: dict[str, BatchRecord] = field(default_factory=dict)
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def create(self, batch: BatchRecord, candidates: Sequence[str]) -> None:
        assert self.batches.get(batch.name, batch) == batch
        self.batches[batch.name] = batch
        self.keys[batch.name] = tuple(candidates)

    def read(self, name: str) -> BatchRecord | None:
        return self.batches.get(name)

    def candidates(self, name: str) -> Sequence[str]:
        return self.keys[name]

    def open(self) -> Iterator[BatchRecord]:
        found = sorted(self.batches.items())
        return iter([b for _, b in found if b.state is not BatchState.CLOSED])

    def update(
        self, name: str, transition: Callable[[BatchRecord], BatchRecord | None]
    ) -> BatchRecord | None:
        with self.ledger.lock:
            changed = transition(self.batches[name])
            if changed is None:
                return None
            self.batches[name] = changed
            counters = changed.unclaimed_cost
            if changed.state is BatchState.CLOSED and counters != Counters():
                self.ledger.add_to_run(changed.job, changed.run, counters)
        return changed


def running(job: str = "jobs/products", **changes: object) -> Run:
    """A run for tests; `changes` as for dataclasses.replace."""
    source = Source(bucket="in", key=f"{job}.csv", version_id="v1")
    run = Run(job, "run-1", RunState.SPLITTING, source, JobOptions(), started_at=0.0)
    return replace(run, **changes)  # type: ignore[arg-type]  # fields of Run
