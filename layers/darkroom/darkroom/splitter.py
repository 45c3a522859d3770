"""What an upload does with a row that the ledger may know from before."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import batched
from typing import Protocol

from darkroom.csv_input.fields import parse_options
from darkroom.csv_input.reader import JobRow, JobRows, read_job_rows
from darkroom.errors import JobRejected, Reason, RowRejected
from darkroom.jobs import JobOptions, Run, RunState, Source, Totals, job_id
from darkroom.ports import Clock, RowLedger, RowQueue, RunLedger, Telemetry
from darkroom.rows import RowMessage, RowRecord, RowRequest, RowState

# These ended for a cause outside the row, which the new upload is there to lift.
_ALWAYS_AGAIN = (Reason.BUDGET, Reason.STOPPED)


class ResumeDecision(StrEnum):
    """Each fate but SENT_BEFORE is the name of a field of Totals; that one counts as queued."""

    QUEUED = "queued"
    SENT_BEFORE = "sent_before"  # settled in this very run: the splitter was here already
    RESUMED = "resumed"
    KEPT_FAILED = "kept_failed"


def resume_decision(record: RowRecord | None, fingerprint: str, run: Run) -> ResumeDecision:
    """`record` is the ledger's, None if it knows none; `fingerprint` of what the row asks now."""
    if record is None:
        return ResumeDecision.QUEUED
    if record.run == run.run:
        return _decision_in_this_run(record)
    # Settled for an earlier upload while this one is split: a splitter that crashed may have queued
    # the row before, and must come to the same. Its claim takes a success over without a call.
    settled_since = record.updated_at > run.started_at
    if settled_since or not run.options.resume or record.fingerprint != fingerprint:
        return ResumeDecision.QUEUED
    if record.state is RowState.SUCCEEDED:
        return ResumeDecision.RESUMED
    if not record.state.terminal or run.options.retry_failed:
        return ResumeDecision.QUEUED
    reason = record.result.reason if record.result else None
    return ResumeDecision.QUEUED if reason in _ALWAYS_AGAIN else ResumeDecision.KEPT_FAILED


def _decision_in_this_run(record: RowRecord) -> ResumeDecision:
    """The splitter sent the row before it was interrupted, or a redrive brought it in."""
    if record.redriven:
        return ResumeDecision.KEPT_FAILED  # the redrive's own copy is on its way, and counted apart
    return ResumeDecision.SENT_BEFORE if record.state.terminal else ResumeDecision.QUEUED


# The splitter: an uploaded CSV becomes messages, one per row that has something to do.
#
# Two passes. The first reads the file to its end and queues nothing, so that a file that is cut off
# or no CSV costs nothing. The second sends rows in batches, remembers how far it is, and goes on in
# a new invocation before its time runs out. Whatever is done twice (an event, a batch after
# a crash)
# has the effect of once: the ledger knows the runs and the rows.


BATCH_ROWS = 100  # what one read of the ledger takes
# Lambda tries a crashed invocation again after a minute: by then the lease must have ended.
LEASE_SECONDS = 50.0
RENEW_SECONDS = 15.0
CHECKPOINT_BATCHES = 10
STOP_BEFORE_SECONDS = 45.0  # a batch with all its retries, and the checkpoint, fit in here
MAX_CONTINUATIONS = 100
_LOOK_AT_CLOCK_ROWS = 1_000
_LONGEST_JOB = 480  # bytes; keys of results are longer, and S3 takes 1,024


@dataclass(frozen=True, slots=True)
class CsvUploaded:
    """S3's word of a CSV. `key` is the object's own, not URL-encoded."""

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
        """The same upload has the same run, however often it is told of."""
        upload = self.source.version_id or f"{self.sequencer}/{self.etag}"
        return hashlib.sha256(f"{self.bucket}/{self.key}/{upload}".encode()).hexdigest()[:16]


class CsvStore(Protocol):
    """The input bucket, read at one version of an object."""

    def metadata(self, source: Source) -> Mapping[str, str]:
        """User metadata. Raises JobRejected when the object is gone."""

    def read(self, source: Source, offset: int = 0) -> Iterator[bytes]:
        """Bytes from `offset` to the end. Raises JobRejected, ServiceUnavailable."""


class _Interrupted(Exception):
    """A newer upload took the job over, or the time is up and another invocation goes on."""


@dataclass(frozen=True, slots=True)
class Splitter:
    """`continue_later` invokes the splitter again with the event, `request_report` the reporter
    with the job, `check_complete` does what every editor does at its end.
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
        """Raises ServiceUnavailable when AWS fails; calling again goes on where it stopped."""
        if not job_id(event.key).rpartition("/")[2]:
            # A file named just ".csv": no name to put results or a reason under.
            self.telemetry.warning("csv_without_name", key=event.key)
            return
        options, problem = self._options(event)
        run = self._start(event, options, remaining_seconds)
        if run is None:
            return
        try:
            if problem is not None:
                raise problem
            _Splitting(self, run, event, remaining_seconds).work()
        except JobRejected as rejected:
            self.runs.fail(run, str(rejected))
            self.telemetry.warning("job_rejected", job=run.job, reason=str(rejected))
            self.request_report(run.job)
        except _Interrupted as interrupted:
            self.telemetry.info("split_interrupted", job=run.job, why=str(interrupted))
        else:
            self.check_complete(run.job)

    def _options(self, event: CsvUploaded) -> tuple[JobOptions, JobRejected | None]:
        """A file whose options cannot be read still becomes a run, which fails and says why."""
        if len(job_id(event.key).encode()) > _LONGEST_JOB:
            return JobOptions(), JobRejected(
                f"The CSV's key is longer than {_LONGEST_JOB} bytes: shorten it."
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
        if started is None and self._held_by_another(run):
            # Another splitter works on it, or died at it: only the latter lets its lease end.
            if remaining_seconds() < LEASE_SECONDS + STOP_BEFORE_SECONDS:
                return None
            self.clock.sleep(LEASE_SECONDS + 1)
            started = self.runs.start(run, LEASE_SECONDS)
        return started

    def _held_by_another(self, run: Run) -> bool:
        """Also does again what a splitter that died at its very end may have left undone."""
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


class _Splitting:
    """One invocation's work on one run."""

    def __init__(
        self,
        splitter: Splitter,
        run: Run,
        event: CsvUploaded,
        remaining_seconds: Callable[[], float],
    ) -> None:
        self._splitter = splitter
        self._run = run
        self._event = event
        self._remaining = remaining_seconds
        self._at = run.checkpoint
        self._saved_at = splitter.clock.now()
        source = run.source
        self._job_rows: JobRows = read_job_rows(
            lambda offset: splitter.store.read(source, offset), run.options
        )

    def work(self) -> None:
        if self._at.row == 0:
            self._check_file()
        start = self._at
        rows = self._job_rows.from_row(start.row, start.offset if start.row else None)
        for number, batch in enumerate(batched(rows, BATCH_ROWS, strict=False), 1):
            self._send(batch)
            if self._remaining() < STOP_BEFORE_SECONDS:
                self._go_on_later()
            if number % CHECKPOINT_BATCHES == 0 or self._is_time_to_renew():
                self._save(LEASE_SECONDS)
        self._splitter.runs.finish_split(self._run, self._at.totals, self._job_rows.warnings)
        totals = self._at.totals
        self._splitter.telemetry.info(
            "split_done", job=self._run.job, rows=totals.rows, queued=totals.queued
        )

    def _check_file(self) -> None:
        for number in self._job_rows.check():
            if number % _LOOK_AT_CLOCK_ROWS == 0 and self._is_time_to_renew():
                self._save(LEASE_SECONDS)
                if self._remaining() < STOP_BEFORE_SECONDS:
                    raise JobRejected("The file is too large to be read in time: split it.")

    def _send(self, batch: tuple[JobRow, ...]) -> None:
        run, totals = self._run, self._at.totals
        askers = [row for row in batch if _has_work(row)]
        keys = [row.key for row in askers]
        known = self._splitter.rows.get_many(run.job, keys) if keys else {}
        messages: list[RowMessage] = []
        fates = dict.fromkeys(ResumeDecision, 0)
        for row in askers:
            message = self._message(row)
            fate = resume_decision(known.get(row.key), message.request.fingerprint(), run)
            fates[fate] += 1
            if fate is ResumeDecision.QUEUED:
                messages.append(message)
        if messages:
            self._splitter.queue.send(messages)
        totals = Totals(
            rows=totals.rows + len(batch),
            queued=totals.queued + fates[ResumeDecision.QUEUED] + fates[ResumeDecision.SENT_BEFORE],
            resumed=totals.resumed + fates[ResumeDecision.RESUMED],
            kept_failed=totals.kept_failed + fates[ResumeDecision.KEPT_FAILED],
            invalid=totals.invalid + sum(_is_invalid(row) for row in batch),
            skipped=totals.skipped + sum(row.skipped for row in batch),
        )
        last = batch[-1]
        self._at = replace(self._at, offset=last.end, row=last.row + 1, totals=totals)

    def _message(self, row: JobRow) -> RowMessage:
        if not isinstance(row.request, RowRequest):
            raise TypeError("only a row that asks for something has a message")
        run = self._run
        return RowMessage(
            job=run.job,
            run=run.run,
            row=row.row,
            key=row.key,
            base=run.source.base,
            request=row.request,
            redo=not run.options.resume,
        )

    def _is_time_to_renew(self) -> bool:
        return self._splitter.clock.now() - self._saved_at >= RENEW_SECONDS

    def _save(self, lease_seconds: float) -> None:
        if not self._splitter.runs.checkpoint(self._run, self._at, lease_seconds):
            raise _Interrupted("a newer upload is the job's current one")
        self._saved_at = self._splitter.clock.now()

    def _go_on_later(self) -> None:
        if self._at.continuations >= MAX_CONTINUATIONS:
            raise JobRejected(
                f"The file is too large: after {MAX_CONTINUATIONS} invocations the splitter "
                f"was at row "
                f"{self._at.row:,}. Split it; rows already queued are not edited."
            )
        self._at = replace(self._at, continuations=self._at.continuations + 1)
        self._save(lease_seconds=0.0)  # the next invocation takes over at once
        self._splitter.continue_later(self._event)
        raise _Interrupted(f"goes on at row {self._at.row} in another invocation")


def _has_work(row: JobRow) -> bool:
    return not row.skipped and isinstance(row.request, RowRequest)


def _is_invalid(row: JobRow) -> bool:
    return not row.skipped and isinstance(row.request, RowRejected)
