"""The ledger in memory: the same pure moves as the real one, swapped under a lock."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from darkroom.jobs import Checkpoint, Counters, JobOptions, Run, RunState, Source, Totals
from darkroom.ledger import rows as row_transitions
from darkroom.ledger import runs as run_transitions
from darkroom.ledger.rows import ClaimRequest
from darkroom.ledger.runs import JobRecord, RunRecord
from darkroom.ports import Clock
from darkroom.rows import Claim, NotClaimed, NotSent, RowMessage, RowRecord, RowResult

LEASE_SECONDS = 90.0


@dataclass
class FakeLedger:
    """RowLedger, RunLedger and Budget in one, like the table."""

    clock: Clock
    rows: dict[tuple[str, str], RowRecord] = field(default_factory=dict)
    runs: dict[tuple[str, str], RunRecord] = field(default_factory=dict)
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    sums: dict[tuple[str, str], Counters] = field(default_factory=dict)
    money: dict[str, int] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    # -- rows

    def get_many(self, job: str, keys: Sequence[str]) -> Mapping[str, RowRecord]:
        assert len(keys) <= 100
        with self.lock:
            return {k: self.rows[job, k] for k in keys if (job, k) in self.rows}

    def all(self, job: str) -> Iterator[RowRecord]:
        with self.lock:
            found = sorted((k, r) for (j, k), r in self.rows.items() if j == job)
        return (record for _, record in found)

    def claim(
        self, message: RowMessage, run: Run, owner: str, lease_seconds: float
    ) -> Claim | NotClaimed:
        with self.lock:
            request = ClaimRequest(message, run, owner, self.clock.now(), lease_seconds)
            decision = request.decide(self.rows.get((message.job, message.key)))
            if decision.change is not None:
                self._write(message.job, decision.change)
                self._reopen(message.job, decision.change)
            return decision.verdict

    def renew(self, claims: Sequence[Claim], lease_seconds: float) -> None:
        with self.lock:
            for claim in claims:
                record = self.rows[claim.job, claim.key]
                if record.lease_owner == claim.owner and not record.state.terminal:
                    until = self.clock.now() + lease_seconds
                    self.rows[claim.job, claim.key] = replace(record, lease_until=until)

    def mark_sent(
        self, claim: Claim, endpoint: str, *, reserve: int = 0, limit: int | None = None
    ) -> Claim | NotSent:
        with self.lock:
            now = self.clock.now()
            amount = reserve if limit is not None else 0
            change = row_transitions.send(claim, endpoint, amount, now, LEASE_SECONDS)
            if not self._holds(claim):
                done = self._moved_before(claim, change)
                return NotSent.LEASE_LOST if done is None else done
            if limit is not None and self.money.get(claim.job, 0) + reserve > limit:
                return NotSent.NO_BUDGET
            return self._move(claim, change)

    def mark_failed_call(
        self, claim: Claim, *, cost_micro_usd: int = 0, maybe_charged: bool = False
    ) -> Claim | None:
        with self.lock:
            now = self.clock.now()
            change = row_transitions.call_failed(
                claim,
                cost_micro_usd,
                maybe_charged=maybe_charged,
                now=now,
                lease_seconds=LEASE_SECONDS,
            )
            if not self._holds(claim):
                return self._moved_before(claim, change)
            return self._move(claim, change)

    def release(self, claim: Claim, *, refund_attempt: bool) -> None:
        with self.lock:
            if self._holds(claim):
                now = self.clock.now()
                self._move(
                    claim, row_transitions.release(claim, now, refund_attempt=refund_attempt)
                )

    def settle(self, claim: Claim, result: RowResult) -> bool:
        with self.lock:
            change = row_transitions.settle(claim, result, self.clock.now())
            if not self._holds(claim):
                return self._moved_before(claim, change) is not None
            self._move(claim, change)
            return True

    def committed(self, job: str) -> int:
        with self.lock:
            return self.money.get(job, 0)

    def _holds(self, claim: Claim) -> bool:
        return self.rows[claim.job, claim.key].version == claim.record.version

    def _moved_before(self, claim: Claim, change: row_transitions.Change) -> Claim | None:
        """The same move asked for again, after its answer was lost."""
        written = self.rows[claim.job, claim.key]
        same = row_transitions.same_write(written, change.record)
        return replace(claim, record=change.record) if same else None

    def _move(self, claim: Claim, change: row_transitions.Change) -> Claim:
        self._write(claim.job, change)
        return replace(claim, record=change.record)

    def _write(self, job: str, change: row_transitions.Change) -> None:
        self.rows[job, change.record.key] = change.record
        for run, delta in change.counters.items():
            self.sums[job, run] = self.counters(job, run) + delta
        if change.budget:
            self.money[job] = self.money.get(job, 0) + change.budget

    def _reopen(self, job: str, change: row_transitions.Change) -> None:
        if change.counters:
            record = run_transitions.reopen(self.runs[job, change.record.run])
            if record is not None:
                self._put(record)

    # -- runs

    def start(self, run: Run, lease_seconds: float) -> Run | None:
        with self.lock:
            current = self.jobs.get(run.job)
            now = self.clock.now()
            if current is not None and current.run == run.run:
                mine = self.runs[run.job, run.run]
                taken = run_transitions.take_over_split(mine, now, lease_seconds)
                return self._put(taken) if taken is not None else None
            known = (run.job, run.run) in self.runs
            if known or (current and not run_transitions.is_newer(run.sequencer, current)):
                return None
            record = run_transitions.start(
                run, current, self._unbudgeted(run.job), now + lease_seconds
            )
            number = record.run.number
            self.jobs[run.job] = JobRecord(run.job, run.run, number, run.sequencer, number)
            return self._put(record)

    def checkpoint(self, run: Run, checkpoint: Checkpoint, lease_seconds: float) -> bool:
        with self.lock:
            if self.jobs[run.job].run != run.run:
                return False
            until = self.clock.now() + lease_seconds
            self._put(run_transitions.checkpoint(self.runs[run.job, run.run], checkpoint, until))
            return True

    def finish_split(self, run: Run, totals: Totals, warnings: Sequence[str]) -> None:
        with self.lock:
            self._put(run_transitions.finish_split(self.runs[run.job, run.run], totals, warnings))

    def fail(self, run: Run, reason: str) -> None:
        with self.lock:
            self._put(run_transitions.fail(self.runs[run.job, run.run], reason, self.clock.now()))

    def stop(self, job: str) -> Run | None:
        with self.lock:
            run = self.current(job)
            stopped = run_transitions.stop(self.runs[job, run.run]) if run else None
            return self._put(stopped) if stopped is not None else None

    def current(self, job: str) -> Run | None:
        with self.lock:
            current = self.jobs.get(job)
            return self.runs[job, current.run].run if current else None

    def counters(self, job: str, run: str) -> Counters:
        with self.lock:
            return self.sums.get((job, run), Counters())

    def report_due(self, job: str) -> bool:
        with self.lock:
            run = self.current(job)
            if run is None:
                return False
            return run_transitions.report_due(self.runs[job, run.run], self.counters(job, run.run))

    def begin_report(self, run: Run, lease_seconds: float, owner: str = "") -> bool:
        with self.lock:
            if self.jobs[run.job].run != run.run:
                return False
            record, now = self.runs[run.job, run.run], self.clock.now()
            sums = self.counters(run.job, run.run)
            begun, new = run_transitions.begin_report(record, sums, owner, now, lease_seconds)
            if new is not None:
                self._put(new)
            return begun

    def finish_report(self, run: Run, finished_at: float) -> bool:
        with self.lock:
            record = self.runs[run.job, run.run]
            sums = self.counters(run.job, run.run)
            true, new = run_transitions.finish_report(record, sums, finished_at)
            self._put(new)
            return true

    def _put(self, record: RunRecord) -> Run:
        self.runs[record.run.job, record.run.run] = record
        return record.run

    def _unbudgeted(self, job: str) -> int:
        return sum(
            self.counters(job, name).cost_micro_usd
            for (j, name), r in self.runs.items()
            if j == job and r.run.options.budget_micro_usd is None
        )


def running(job: str = "jobs/products", **changes: object) -> Run:
    """A run for tests; `changes` as for dataclasses.replace."""

    source = Source(bucket="in", key=f"{job}.csv", version_id="v1")
    run = Run(job, "run-1", RunState.SPLITTING, source, JobOptions(), started_at=0.0)
    return replace(run, **changes)  # type: ignore[arg-type]
