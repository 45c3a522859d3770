"""The splitter: turns an uploaded CSV into messages, one per row with work to do.

Two passes. The first reads the file to its end and queues nothing, so that a file that is cut off
or not a CSV costs nothing. The second sends rows in batches, saves a checkpoint, and continues in a
new invocation before its time runs out. An event or a batch that is repeated after a crash changes
nothing, because the ledger records the runs and the rows.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import batched

from darkroom.csv_input.fields import parse_options
from darkroom.csv_input.reader import JobRow, read_job_rows
from darkroom.errors import JobRejected, Reason
from darkroom.jobs import JobOptions, Run, RunState, Source, Totals, job_id
from darkroom.ports import Clock, CsvStore, RowLedger, RowQueue, RunLedger, Telemetry
from darkroom.rows import RowMessage, RowRecord, RowRequest, RowState

BATCH_ROWS = 100  # the most that one read of the ledger accepts
# Lambda retries a crashed invocation after a minute: the lease must have expired by then.
LEASE_SECONDS = 50.0
RENEW_SECONDS = 15.0
CHECKPOINT_BATCHES = 10
STOP_BEFORE_SECONDS = 45.0  # enough for a batch with all its retries, and the checkpoint
MAX_CONTINUATIONS = 100
_CLOCK_CHECK_ROWS = 1_000
_MAX_JOB_BYTES = 480  # keys of results are longer, and S3 accepts 1,024
# The cause of these failures is outside the row, and a new upload is meant to remove it.
_ALWAYS_RETRIED = (Reason.BUDGET, Reason.STOPPED)


class ResumeDecision(StrEnum):
    """What an upload does with a row. Each value is a field of Totals, except QUEUED_BEFORE."""

    QUEUED = "queued"
    QUEUED_BEFORE = "queued_before"  # by this run, and settled since; counts as queued
    RESUMED = "resumed"
    KEPT_FAILED = "kept_failed"


def resume_decision(record: RowRecord | None, fingerprint: str, run: Run) -> ResumeDecision:
    """Compare a row, whose request has `fingerprint`, with the ledger's `record` of it, if any."""
    if record is None:
        return ResumeDecision.QUEUED
    if record.run == run.run and record.redriven:
        return ResumeDecision.KEPT_FAILED  # its own message is queued, and counted apart
    if record.run == run.run:  # queued before the splitter was interrupted
        return ResumeDecision.QUEUED_BEFORE if record.state.terminal else ResumeDecision.QUEUED
    # Settled for an earlier upload while this one is split: a splitter that crashed may have queued
    # the row before, so it is queued again. Its claim transfers a success without a call.
    settled_since = record.updated_at > run.started_at
    if settled_since or not run.options.resume or record.fingerprint != fingerprint:
        return ResumeDecision.QUEUED
    if record.state is RowState.SUCCEEDED:
        return ResumeDecision.RESUMED
    always_retried = record.result is not None and record.result.reason in _ALWAYS_RETRIED
    retried = always_retried or run.options.retry_failed or not record.state.terminal
    return ResumeDecision.QUEUED if retried else ResumeDecision.KEPT_FAILED


@dataclass(frozen=True, slots=True)
class CsvUploaded:
    """An S3 upload event for a CSV. `key` is the object's own, not URL-encoded."""

    bucket: str
    key: str
    version_id: str | None
    sequencer: str
    size: int
    etag: str = ""

    @property
    def source(self) -> Source:
        version = None if self.version_id in (None, "", "null") else self.version_id
        return Source(self.bucket, self.key, version, self.size)

    @property
    def run(self) -> str:
        """The run's id, the same for every event of the same upload."""
        upload = self.source.version_id or f"{self.sequencer}/{self.etag}"
        return hashlib.sha256(f"{self.bucket}/{self.key}/{upload}".encode()).hexdigest()[:16]


class _Interrupted(Exception):
    """A newer upload replaced the run, or its split continues in another invocation."""


@dataclass(frozen=True, slots=True)
class Splitter:
    """`continue_later` invokes the splitter again with the event, `request_report` the reporter
    with the job; `check_complete` requests the report if all rows of the job are settled.
    """

    runs: RunLedger
    rows: RowLedger
    queue: RowQueue
    store: CsvStore
    clock: Clock
    telemetry: Telemetry
    continue_later: Callable[[CsvUploaded], None]
    request_report: Callable[[str], None]
    check_complete: Callable[[str], object]

    def split(self, event: CsvUploaded, remaining_seconds: Callable[[], float]) -> None:
        """Raises ServiceUnavailable when AWS fails; a repeated call continues where it stopped."""
        if not job_id(event.key).rpartition("/")[2]:
            # A file named just ".csv": there is no job name to store results or a reason under.
            self.telemetry.warning("csv_without_name", key=event.key)
            return
        options, problem = self._read_options(event)
        run = self._start(event, options, remaining_seconds)
        if run is None:
            return
        try:
            if problem is not None:
                raise problem
            _Invocation(self, run, event, remaining_seconds).split()
        except JobRejected as rejected:
            self.runs.fail(run, str(rejected))
            self.telemetry.warning("job_rejected", job=run.job, reason=str(rejected))
            self.request_report(run.job)
        except _Interrupted as interrupted:
            self.telemetry.info("split_interrupted", job=run.job, why=str(interrupted))
        else:
            self.check_complete(run.job)

    def _read_options(self, event: CsvUploaded) -> tuple[JobOptions, JobRejected | None]:
        """A file with bad options still becomes a run, which fails with the problem as reason."""
        if len(job_id(event.key).encode()) > _MAX_JOB_BYTES:
            return JobOptions(), JobRejected(
                f"The CSV's key is longer than {_MAX_JOB_BYTES} bytes: shorten it."
            )
        try:
            return parse_options(self.store.metadata(event.source)), None
        except JobRejected as rejected:
            return JobOptions(), rejected

    def _start(
        self, event: CsvUploaded, options: JobOptions, remaining_seconds: Callable[[], float]
    ) -> Run | None:
        run = Run(
            job=job_id(event.key),
            run=event.run,
            state=RunState.SPLITTING,
            source=event.source,
            options=options,
            started_at=self.clock.now(),
            sequencer=event.sequencer,
        )
        started = self.runs.start(run, LEASE_SECONDS)
        if started is None and self._is_leased_elsewhere(run):
            # Another splitter works on the run, or has crashed: only then will its lease expire.
            if remaining_seconds() < LEASE_SECONDS + STOP_BEFORE_SECONDS:
                return None
            self.clock.sleep(LEASE_SECONDS + 1)
            started = self.runs.start(run, LEASE_SECONDS)
        return started

    def _is_leased_elsewhere(self, run: Run) -> bool:
        """False if `run` is superseded or already split.

        Repeats the last step of a split run, before which its splitter may have crashed.
        """
        current = self.runs.current(run.job)
        if current is None or current.run != run.run:
            self.telemetry.info("upload_superseded", job=run.job, run=run.run)
            return False
        if current.state is RunState.FAILED:
            self.request_report(run.job)
            return False
        if current.split_done:
            self.check_complete(run.job)
            return False
        return True


@dataclass
class _Invocation:
    """The work of one invocation on one run."""

    _splitter: Splitter
    _run: Run
    _event: CsvUploaded
    _remaining_seconds: Callable[[], float]

    def __post_init__(self) -> None:
        self._checkpoint = self._run.checkpoint
        self._saved_at = self._splitter.clock.now()
        read = partial(self._splitter.store.read, self._run.source)
        self._rows = read_job_rows(read, self._run.options)

    def split(self) -> None:
        if self._checkpoint.row == 0:
            self._check_file()
        rows = self._rows.from_row(self._checkpoint.row, self._checkpoint.offset)
        for number, batch in enumerate(batched(rows, BATCH_ROWS, strict=False), 1):
            self._send(batch)
            if self._remaining_seconds() < STOP_BEFORE_SECONDS:
                self._continue_later()
            if number % CHECKPOINT_BATCHES == 0 or self._must_renew():
                self._save(LEASE_SECONDS)
        totals = self._checkpoint.totals
        self._splitter.runs.finish_split(self._run, totals, self._rows.columns.warnings)
        self._splitter.telemetry.info(
            "split_done", job=self._run.job, rows=totals.rows, queued=totals.queued
        )

    def _check_file(self) -> None:
        for number in self._rows.check():
            if number % _CLOCK_CHECK_ROWS == 0 and self._must_renew():
                self._save(LEASE_SECONDS)
                if self._remaining_seconds() < STOP_BEFORE_SECONDS:
                    raise JobRejected("The file is too large to be read in time: split it.")

    def _send(self, batch: tuple[JobRow, ...]) -> None:
        selected = [row for row in batch if not row.skipped]
        valid = [(row, row.request) for row in selected if isinstance(row.request, RowRequest)]
        keys = [row.key for row, _ in valid]
        records = self._splitter.rows.get_many(self._run.job, keys) if keys else {}
        counts = Counter(
            rows=len(batch), skipped=len(batch) - len(selected), invalid=len(selected) - len(valid)
        )
        messages = list[RowMessage]()
        for row, request in valid:
            decision = resume_decision(records.get(row.key), request.fingerprint(), self._run)
            counts[decision] += 1
            if decision is ResumeDecision.QUEUED:
                messages.append(self._message(row, request))
        if messages:
            self._splitter.queue.send(messages)
        counts[ResumeDecision.QUEUED] += counts.pop(ResumeDecision.QUEUED_BEFORE, 0)
        counts.update(asdict(self._checkpoint.totals))
        self._checkpoint = replace(
            self._checkpoint, offset=batch[-1].end, row=batch[-1].row + 1, totals=Totals(**counts)
        )

    def _message(self, row: JobRow, request: RowRequest) -> RowMessage:
        return RowMessage(
            job=self._run.job,
            run=self._run.run,
            row=row.row,
            key=row.key,
            base=self._run.source.base,
            request=request,
            redo=not self._run.options.resume,
            queued_at=self._splitter.clock.now(),
        )

    def _must_renew(self) -> bool:
        return self._splitter.clock.now() - self._saved_at >= RENEW_SECONDS

    def _save(self, lease_seconds: float) -> None:
        if not self._splitter.runs.checkpoint(self._run, self._checkpoint, lease_seconds):
            raise _Interrupted("a newer upload replaced the run")
        self._saved_at = self._splitter.clock.now()

    def _continue_later(self) -> None:
        row, continuations = self._checkpoint.row, self._checkpoint.continuations
        if continuations >= MAX_CONTINUATIONS:
            raise JobRejected(
                f"The file is too large: after {MAX_CONTINUATIONS} invocations the splitter was at "
                f"row {row:,}. Split it; rows already queued are not edited."
            )
        self._checkpoint = replace(self._checkpoint, continuations=continuations + 1)
        self._save(lease_seconds=0.0)  # the next invocation can start at once
        self._splitter.continue_later(self._event)
        raise _Interrupted(f"continues at row {row} in another invocation")
