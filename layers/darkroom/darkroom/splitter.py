"""The splitter: turns an uploaded CSV into messages, one per row with work to do.

The file is read three times. First to its end, with the options checked, before the upload takes
the place of an earlier one: a file that is cut off or not a CSV costs nothing, and a run under way
goes on. Then for the names that its rows give to images. The last pass sends rows in batches, saves
a checkpoint, and continues in a new invocation before its time runs out. The new invocation repeats
the second pass, because keys and names depend on the rows before its checkpoint too. So the first
two passes together may take half of an invocation, and they precede the first queued row: a file
for which later invocations had no time to send rows costs nothing either.

An event or a batch that is repeated after a crash changes nothing, because the ledger records the
runs and the rows. So another pass over a run that is split already queues its unsettled rows again,
and changes nothing else.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import batched
from math import inf

from darkroom.csv_input.fields import parse_options
from darkroom.csv_input.names import ImageNames, default_names
from darkroom.csv_input.reader import MAX_ROWS, JobRow, read_job_rows
from darkroom.errors import JobRejected, Reason
from darkroom.jobs import JobOptions, Run, RunState, Source, Totals, job_id
from darkroom.ports import Clock, CsvStore, RowLedger, RowQueue, RunLedger, Telemetry
from darkroom.rows import RowMessage, RowRecord, RowRequest, RowState

BATCH_ROWS = 100  # the most that one read of the ledger accepts
# Lambda retries a crashed invocation after a minute: the lease must have expired by then.
LEASE_SECONDS = 50.0
RENEW_SECONDS = 15.0
CHECKPOINT_BATCHES = 10
# Enough for a batch with its retries, and the checkpoint. If AWS does not answer, Lambda ends
# the invocation, and the next one begins at the last checkpoint.
STOP_BEFORE_SECONDS = 45.0
MAX_CONTINUATIONS = 100
# For the first two passes, of the 900 s of an invocation: a later one repeats them, and sends rows.
CHECK_SECONDS = 450.0
_MAX_JOB_BYTES = 480  # keys of results are longer, and S3 accepts 1,024
# The cause of these failures is outside the row, and a new upload is meant to remove it.
_ALWAYS_RETRIED = (Reason.BUDGET, Reason.STOPPED, Reason.SUPERSEDED)


class ResumeDecision(StrEnum):
    """What an upload does with a row. Each value is a field of Totals, or counts as queued."""

    QUEUED = "queued"
    QUEUED_BEFORE = "queued_before"  # by this run, and settled since
    EXPIRED = "expired"  # succeeded before, but its images have been deleted: edited again
    RESUMED = "resumed"
    KEPT_FAILED = "kept_failed"


_COUNTED_AS_QUEUED = (ResumeDecision.QUEUED_BEFORE, ResumeDecision.EXPIRED)


def resume_decision(
    record: RowRecord | None, fingerprint: str, run: Run, retention_seconds: float = inf
) -> ResumeDecision:
    """Compare a row, whose request has `fingerprint`, with the ledger's `record` of it, if any.

    Results are deleted after `retention_seconds`. The decision depends on when the run started, not
    on when it is made: a splitter that continues after a crash decides the same.
    """
    if record is None:
        return ResumeDecision.QUEUED
    if record.run == run.run:  # queued before the splitter was interrupted
        return ResumeDecision.QUEUED_BEFORE if record.state.terminal else ResumeDecision.QUEUED
    # Settled for an earlier upload while this one is split: a splitter that crashed may have queued
    # the row before, so it is queued again. Its claim transfers a success without a call.
    settled_since = record.updated_at > run.started_at
    if settled_since or not run.options.resume or record.fingerprint != fingerprint:
        return ResumeDecision.QUEUED
    if record.state is RowState.SUCCEEDED:
        expired = record.updated_at + retention_seconds <= run.started_at
        return ResumeDecision.EXPIRED if expired else ResumeDecision.RESUMED
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
    with the job, `show_progress` the reporter for job.json only; `check_complete` requests the
    report if all rows of the job are settled. Results are deleted after `retention_seconds`.
    """

    runs: RunLedger
    rows: RowLedger
    queue: RowQueue
    batch_queue: RowQueue  # of the rows of jobs with mode=batch
    store: CsvStore
    clock: Clock
    telemetry: Telemetry
    continue_later: Callable[[CsvUploaded], None]
    request_report: Callable[[str], None]
    show_progress: Callable[[str], None]
    check_complete: Callable[[str], object]
    retention_seconds: float = inf

    def split(self, event: CsvUploaded, remaining_seconds: Callable[[], float]) -> None:
        """Raises ServiceUnavailable when AWS fails; a repeated call continues where it stopped."""
        if not job_id(event.key).rpartition("/")[2]:
            # A file named just ".csv": there is no job name to store results or a reason under.
            self.telemetry.warning("csv_without_name", key=event.key)
            return
        run = self._new_run(event)
        try:
            run, names = self._checked(run, remaining_seconds)
        except JobRejected as rejected:
            self._reject(run, str(rejected))
            return
        started = self._start(run, remaining_seconds)
        if started is None:
            return
        try:
            _Invocation(self, started, event, remaining_seconds).split(names)
        except JobRejected as rejected:
            self.runs.fail(started, str(rejected))
            self.telemetry.warning("job_rejected", job=run.job, reason=str(rejected))
            self.request_report(run.job)
        except _Interrupted as interrupted:
            self.telemetry.info("split_interrupted", job=run.job, why=str(interrupted))
        else:
            self.check_complete(run.job)

    def _new_run(self, event: CsvUploaded) -> Run:
        return Run(
            job=job_id(event.key),
            run=event.run,
            state=RunState.SPLITTING,
            source=event.source,
            options=JobOptions(),
            started_at=self.clock.now(),
            sequencer=event.sequencer,
            etag=event.etag,
        )

    def _checked(
        self, run: Run, remaining_seconds: Callable[[], float]
    ) -> tuple[Run, ImageNames | None]:
        """The run with its options, once its file has been read to its end. Raises JobRejected.

        A run that is in the ledger was checked before it got there.
        """
        current = self.runs.current(run.job)
        if current is not None and current.run == run.run:
            return current, None
        if len(run.job.encode()) > _MAX_JOB_BYTES:
            raise JobRejected(f"The CSV's key is longer than {_MAX_JOB_BYTES} bytes: shorten it.")

        end = max(STOP_BEFORE_SECONDS, remaining_seconds() - CHECK_SECONDS)

        def check_time() -> None:
            if remaining_seconds() < end:
                raise JobRejected("The file is too large to be read in time: split it.")

        options = parse_options(self.store.metadata(run.source))
        read = partial(self.store.read, run.source)
        rows = read_job_rows(read, options, check_time)
        rows.check()
        names, _ = rows.prepare(MAX_ROWS)
        return replace(run, options=options, started_at=self.clock.now()), names

    def _reject(self, run: Run, reason: str) -> None:
        """The job fails, unless an earlier upload is under way: that one goes on."""
        current = self.runs.reject(run, reason)
        self.telemetry.warning("upload_rejected", job=run.job, run=run.run, reason=reason)
        if current is None:
            return
        if current.state is RunState.FAILED:
            self.request_report(run.job)
        else:
            self.show_progress(run.job)

    def _start(self, run: Run, remaining_seconds: Callable[[], float]) -> Run | None:
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
        self._rows = read_job_rows(read, self._run.options, self._check_time)

    def split(self, names: ImageNames | None) -> None:
        """`names` are those of all rows, if they have been read.

        They are not an attribute: this object and its rows refer to each other, so its attributes
        may stay in memory while the next invocation reads names of its own.
        """
        before = None
        if names is None or self._checkpoint.row:
            names, before = self._rows.prepare(self._checkpoint.row)
        rows = self._rows.from_row(self._checkpoint.row, before)
        for number, batch in enumerate(batched(rows, BATCH_ROWS, strict=False), 1):
            self._send(batch, names)
            self._check_time()
            if number % CHECKPOINT_BATCHES == 0:
                self._save(LEASE_SECONDS)
        totals = self._checkpoint.totals
        self._splitter.runs.finish_split(self._run, totals, self._rows.columns.warnings)
        self._splitter.telemetry.info(
            "split_done", job=self._run.job, rows=totals.rows, queued=totals.queued
        )

    def _check_time(self) -> None:
        """After every batch and every MiB of text. Raises _Interrupted, JobRejected."""
        if self._remaining_seconds() < STOP_BEFORE_SECONDS:
            self._continue_later()
        if self._splitter.clock.now() - self._saved_at >= RENEW_SECONDS:
            self._save(LEASE_SECONDS)

    def _send(self, batch: tuple[JobRow, ...], names: ImageNames) -> None:
        selected = [row for row in batch if not row.skipped]
        valid = [(row, row.request) for row in selected if isinstance(row.request, RowRequest)]
        keys = [row.key for row, _ in valid]
        records = self._splitter.rows.get_many(self._run.job, keys) if keys else {}
        counts = Counter(
            rows=len(batch), skipped=len(batch) - len(selected), invalid=len(selected) - len(valid)
        )
        messages = list[RowMessage]()
        for row, request in valid:
            decision = resume_decision(
                records.get(row.key),
                request.fingerprint(),
                self._run,
                self._splitter.retention_seconds,
            )
            counts[decision] += 1
            if decision in (ResumeDecision.QUEUED, ResumeDecision.EXPIRED):
                redo = not self._run.options.resume or decision is ResumeDecision.EXPIRED
                name = _image_name(row, request, names)
                messages.append(self._message(row, request, name, redo=redo))
        if messages:
            self._queue.send(messages)
        for decision in _COUNTED_AS_QUEUED:
            counts[ResumeDecision.QUEUED] += counts.pop(decision, 0)
        counts.update(asdict(self._checkpoint.totals))
        self._checkpoint = replace(self._checkpoint, row=batch[-1].row + 1, totals=Totals(**counts))

    @property
    def _queue(self) -> RowQueue:
        batch = self._run.options.mode == "batch"
        return self._splitter.batch_queue if batch else self._splitter.queue

    def _message(self, row: JobRow, request: RowRequest, name: str, *, redo: bool) -> RowMessage:
        return RowMessage(
            job=self._run.job,
            run=self._run.run,
            row=row.row,
            key=row.key,
            name=name,
            base=self._run.source.base,
            request=request,
            redo=redo,
            queued_at=self._splitter.clock.now(),
        )

    def _save(self, lease_seconds: float) -> None:
        if not self._splitter.runs.checkpoint(self._run, self._checkpoint, lease_seconds):
            raise _Interrupted("a newer upload replaced the run")
        self._saved_at = self._splitter.clock.now()

    def _continue_later(self) -> None:
        row, continuations = self._checkpoint.row, self._checkpoint.continuations
        if continuations and row == self._run.checkpoint.row:
            raise JobRejected(
                f"The file is too large: row {row:,} is not reached in time. Split it."
            )
        if continuations >= MAX_CONTINUATIONS:
            raise JobRejected(
                f"The file is too large: after {MAX_CONTINUATIONS} invocations the splitter was at "
                f"row {row:,}. Split it; rows already queued are not edited."
            )
        self._checkpoint = replace(self._checkpoint, continuations=continuations + 1)
        self._save(lease_seconds=0.0)  # the next invocation can start at once
        self._splitter.continue_later(self._event)
        raise _Interrupted(f"continues at row {row} in another invocation")


def _image_name(row: JobRow, request: RowRequest, names: ImageNames) -> str:
    if request.output_name:
        return ""
    return names.choose(default_names(row.row, row.key, request.images), request.n)
