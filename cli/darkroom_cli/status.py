"""`darkroom status`: a job's progress, once or watched to its end."""

import json
import posixpath
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

import typer
from pydantic import ValidationError

from darkroom.errors import ServiceUnavailable, Waiting
from darkroom.formatting import duration, money, plural, printable
from darkroom.jobs import Counters, RejectedUpload, ResultPaths, Run, RunState, job_id
from darkroom.ledger.batches import BatchRecord, BatchState
from darkroom.ports import Clock
from darkroom.report.summary import JobSummary, counts_so_far
from darkroom.rows import SETTLED_STATUSES, UNSUCCESSFUL_STATUSES, Mode, StatusCounts
from darkroom_cli.error_messages import CommandFailed
from darkroom_cli.options import DEFAULT_FOLDER
from darkroom_cli.session import Session

ENDED = frozenset({RunState.DONE, RunState.FAILED, RunState.STOPPED})
_RATE_WINDOW_SECONDS = 60.0
ROWS_FAILED_EXIT_CODE = 3  # the job is done, and some of its rows failed or are dead
_UNAVAILABLE_SECONDS = 900.0  # without an answer of AWS, until a watch gives up
_LINE_INTERVAL_SECONDS = 10.0  # between two lines of progress where there is no terminal
_STILL_INTERVAL_SECONDS = 600.0  # the same, while nothing changes because rows are in batches
_BATCH_POLL_SECONDS = 15.0  # the least, while all that is left is in batches
_MUCH_FALLBACK = 0.3  # as in the stack's alarm
_HALF_DAY_SECONDS = 12 * 3600.0
_START_TIMEOUT_SECONDS = 120.0  # from the upload until its run must exist


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """The rows of a run that wait for answers of batches. Times in seconds.

    Answers that are being collected count as submitted until their batch is closed. Batches of
    earlier runs still cost, and settle those of their rows that this run has unchanged.
    """

    queued: int  # rows in no batch of this run: they wait for one, or are called for instead
    submitted: int = 0
    batches: int = 0
    oldest_at: float | None = None  # Unix time
    oldest_seconds: float | None = None  # since then
    earlier_submitted: int = 0
    earlier_batches: int = 0

    @property
    def providers_decide(self) -> bool:
        """All rows that are left may be in batches."""
        return self.queued <= self.earlier_submitted

    @property
    def age(self) -> str:
        return duration(self.oldest_seconds or 0.0)

    @property
    def where(self) -> str:
        """`3 batches, the oldest`, to be followed by a time."""
        return plural(self.batches, "batch") + (", the oldest" if self.batches > 1 else "")


def _batch_progress(
    run: Run, batches: Sequence[BatchRecord], left: int, now: float
) -> BatchProgress | None:
    submitted = [batch for batch in batches if batch.state is BatchState.SUBMITTED]
    own = [batch for batch in submitted if batch.run == run.run]
    earlier = [batch for batch in submitted if batch.run != run.run]
    waits = run.options.mode == "batch" and left and run.state not in ENDED
    if not submitted and not waits:
        return None
    rows = min(sum(batch.rows for batch in own), left)
    oldest = min((batch.submitted_at for batch in own), default=None)
    return BatchProgress(
        left - rows,
        rows,
        len(own),
        oldest,
        None if oldest is None else max(now - oldest, 0.0),
        earlier_submitted=sum(batch.rows for batch in earlier),
        earlier_batches=len(earlier),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(StatusCounts):
    """A job at one moment. Rates in rows per minute, times in seconds, money in US dollars.

    The counts by status include earlier uploads.
    """

    job: str
    run: str
    state: RunState
    rows: int  # data rows read so far; all of them once `split_done`
    split_done: bool
    done: int
    skipped: int
    resumed: int  # succeeded in an earlier upload
    kept_failed: int  # failed or dead in an earlier upload, and not tried again
    fallback_rate: float
    cost_usd: float
    unpriced: int
    possible_duplicate_charges: int
    elapsed_seconds: float
    rows_per_minute: float | None
    eta_seconds: float | None
    reason: str | None = None
    earlier_cost_usd: float = 0.0  # of earlier uploads of the job
    budget_usd: float | None = None
    fallback_note: str | None = None  # of a job that is done
    waiting: Waiting | None = None
    rejected_uploads: tuple[RejectedUpload, ...] = ()
    warnings: tuple[str, ...] = ()
    mode: Mode = "live"
    in_batches: BatchProgress | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def measure(
    run: Run,
    counters: Counters,
    now: float,
    rows_per_minute: float | None = None,
    batches: Sequence[BatchRecord] = (),
) -> Progress:
    """Without a recent rate, and once the job has ended, the average rate is used.

    `batches` are the job's open ones. While there are any, no rate says when the job ends.
    """
    so_far, ended = counts_so_far(run, counters), run.state in ENDED
    elapsed = max((run.finished_at or now) - run.started_at, 0.0)
    rate = rows_per_minute
    if (rate is None or ended) and counters.settled and elapsed > 0:
        rate = counters.settled * 60 / elapsed
    left = max(run.totals.queued - counters.settled, 0)
    in_batches = _batch_progress(run, batches, left, now)
    if in_batches is not None:
        rate = None
    eta = left * 60 / rate if rate and left and run.split_done and not ended else None
    counts = {status: getattr(so_far, status) for status in SETTLED_STATUSES}
    return Progress(
        **counts,
        job=run.job,
        run=run.run,
        state=run.state,
        rows=so_far.rows,
        split_done=run.split_done,
        done=sum(counts.values()) + so_far.skipped,
        skipped=so_far.skipped,
        resumed=so_far.resumed,
        kept_failed=so_far.kept_failed,
        fallback_rate=counters.fallback / counters.succeeded if counters.succeeded else 0.0,
        cost_usd=counters.cost_micro_usd / 1e6,
        unpriced=counters.unpriced,
        possible_duplicate_charges=counters.possible_duplicate_charges,
        elapsed_seconds=elapsed,
        rows_per_minute=rate,
        eta_seconds=eta,
        budget_usd=run.options.budget_usd,
        reason=run.reason,
        waiting=None if ended else run.waiting,
        rejected_uploads=run.rejected_uploads,
        warnings=run.warnings,
        mode=run.options.mode,
        in_batches=in_batches,
    )


@dataclass(slots=True)
class RecentRate:
    """Rows per minute over the last minute of polling."""

    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def update(self, now: float, settled: int) -> float | None:
        """None until two samples differ in time and in settled rows."""
        self._samples.append((now, settled))
        while self._samples[0][0] < now - _RATE_WINDOW_SECONDS:
            self._samples.popleft()
        since, before = self._samples[0]
        if now <= since or settled <= before:
            return None
        return (settled - before) * 60 / (now - since)


def find_run(session: Session, job: str) -> Run:
    """The current run of a job, which may be named without its folder or as its CSV.

    Raises CommandFailed if there is no such job.
    """
    ledger = session.stack.ledger
    names = dict.fromkeys((job, job_id(job), posixpath.join(DEFAULT_FOLDER, job_id(job))))
    run = next((run for name in names if (run := ledger.current(name))), None)
    if run is None:
        raise CommandFailed(
            f"Stack {session.stack.name} has no job {job}: a job is named after its CSV without "
            "the extension (jobs/products.csv is jobs/products); `darkroom list` shows all."
        )
    return run


def measure_run(session: Session, run: Run, recent: RecentRate | None = None) -> Progress:
    counters = session.stack.ledger.counters(run.job, run.run)
    now = session.clock.now()
    rate = recent.update(now, counters.settled) if recent else None
    progress = measure(run, counters, now, rate, _open_batches(session, run))
    if progress.state is RunState.DONE and progress.fallback_rate >= _MUCH_FALLBACK:
        progress = replace(progress, fallback_note=_fallback_note(session, run))
    return progress


def _open_batches(session: Session, run: Run) -> Sequence[BatchRecord]:
    """Those that rows of the run may be in, also if an earlier upload made them."""
    may_have = run.finished_at is None and (run.options.mode == "batch" or run.number > 1)
    return [b for b in session.stack.batches.open() if b.job == run.job] if may_have else []


def _fallback_note(session: Session, run: Run) -> str | None:
    """What job.json says on why images came from the fallback."""
    bucket, key = session.stack.results_bucket, ResultPaths(run.job).summary
    if bucket.metadata(key) is None:
        return None
    with tempfile.TemporaryDirectory(prefix="darkroom-") as scratch:
        path = Path(scratch) / "job.json"
        bucket.fetch(key, path)
        try:
            summary = JobSummary.model_validate_json(path.read_bytes())
        except ValidationError:
            return None  # of another version
    return summary.fallback.note if summary.run == run.run else None


def status(session: Session, job: str) -> None:
    """Exits with 1 if the job failed or was stopped."""
    run = find_run(session, job)
    earlier = session.stack.ledger.spent_earlier(run) / 1e6
    progress = replace(measure_run(session, run), earlier_cost_usd=earlier)
    if session.json:
        session.print_json(asdict(progress))
    _show(session, progress)
    if progress.state in (RunState.FAILED, RunState.STOPPED):
        raise typer.Exit(1)


def exit_as(progress: Progress) -> None:
    """A script that waited for the job must not continue as if all rows had succeeded."""
    if progress.state is not RunState.DONE:
        raise typer.Exit(1)
    if any(getattr(progress, status) for status in UNSUCCESSFUL_STATUSES):
        raise typer.Exit(ROWS_FAILED_EXIT_CODE)


def _show(session: Session, progress: Progress) -> None:
    """For people: the JSON has been printed already."""
    if not session.json:
        session.print_fields(_fields(progress, session.clock.now()))
        if session.err.is_terminal:
            for hint in _hints(progress):
                session.note(hint)


def _fields(p: Progress, now: float) -> Iterator[tuple[str, str]]:
    yield "job", p.job
    yield "state", p.state.value
    if p.reason:
        yield "reason", p.reason
    if p.state is RunState.FAILED and not p.rows:
        return
    if p.waiting:
        yield "waiting", f"since {_clock_time(p.waiting.since, now)}: {p.waiting.detail}"
    yield from _row_fields(p, now)
    yield "fallback", f"{p.fallback_rate:.1%}"
    yield "cost", _cost(p)
    if p.possible_duplicate_charges:
        yield "maybe charged twice", plural(p.possible_duplicate_charges, "call")
    rate = f", {p.rows_per_minute:,.1f} rows/min" if p.rows_per_minute else ""
    yield "time", duration(p.elapsed_seconds) + rate
    if p.eta_seconds is not None:
        yield "left", f"about {duration(p.eta_seconds)}"
    yield from _notes(p, now)


def _row_fields(p: Progress, now: float) -> Iterator[tuple[str, str]]:
    if p.mode != "live":
        yield "mode", p.mode
    percent = f" ({p.done / p.rows:.0%})" if p.rows and p.split_done else ""
    yield "rows", f"{p.done:,} of {p.rows:,}{'' if p.split_done else ' or more'}{percent}"
    if batches := p.in_batches:
        if batches.queued:
            of_run = " of this upload" if batches.earlier_batches else ""
            yield "queued", f"{plural(batches.queued, 'row')} not in a batch{of_run}"
        if batches.oldest_at is not None:
            oldest = f"since {_clock_time(batches.oldest_at, now)} ({batches.age})"
            yield "submitted", f"{plural(batches.submitted, 'row')} in {batches.where} {oldest}"
        if batches.earlier_batches:
            yield "submitted earlier", _earlier(batches)
    earlier = f" ({p.resumed:,} in an earlier upload)" if p.resumed else ""
    yield "succeeded", f"{p.succeeded:,}{earlier}"
    for status in UNSUCCESSFUL_STATUSES:
        yield status, f"{getattr(p, status):,}"
    if p.skipped:
        yield "skipped", f"{p.skipped:,}"


def _earlier(batches: BatchProgress) -> str:
    rows = plural(batches.earlier_submitted, "row")
    return (
        f"{rows} in {plural(batches.earlier_batches, 'batch')} of earlier uploads: paid for, and "
        "used for the rows that have not changed since"
    )


def _cost(p: Progress) -> str:
    """`$1.90 this upload, $2.85 in all, budget $3.00`, as far as they differ and are given."""
    cost = money(p.cost_usd)
    if p.unpriced:
        cost += f" and {plural(p.unpriced, 'call')} of unknown price"
    if p.earlier_cost_usd:
        cost += f" this upload, {money(p.cost_usd + p.earlier_cost_usd)} in all"
    return cost if p.budget_usd is None else f"{cost}, budget {money(p.budget_usd)}"


def _notes(p: Progress, now: float) -> Iterator[tuple[str, str]]:
    for warning in (*filter(None, [p.fallback_note]), *p.warnings):
        yield "warning", warning
    for upload in p.rejected_uploads:
        yield "rejected upload", f"{_clock_time(upload.rejected_at, now)}: {upload.reason}"


def _clock_time(at: float, now: float) -> str:
    """Local time; with the date when it is not within the last 12 hours. Unix seconds."""
    time = datetime.fromtimestamp(at).astimezone()
    return f"{time:%H:%M}" if 0 <= now - at < _HALF_DAY_SECONDS else f"{time:%Y-%m-%d %H:%M}"


def _hints(p: Progress) -> Iterator[str]:
    if p.state is not RunState.DONE:
        return
    if any(getattr(p, status) for status in UNSUCCESSFUL_STATUSES):
        yield f"To see which rows and why: darkroom failures {p.job}"
    if p.fallback_rate >= _MUCH_FALLBACK and not p.fallback_note:  # which says where to look
        yield "To see why images came from the fallback: darkroom endpoints show"
    if p.kept_failed:
        yield (
            f"{plural(p.kept_failed, 'row')} failed in an earlier upload and did not change: "
            "submit with --retry-failed to try again"
        )
    if p.dead:
        yield f"To retry the dead ones: darkroom redrive {p.job}"
    yield f"To get images, manifest and gallery: darkroom download {p.job} DIR"


def watch(
    session: Session, job: str, *, every: float, started: Callable[[Run], bool] | None = None
) -> Progress:
    """Poll every `every` seconds until the job ends; its progress then.

    With `started`, waits for a run that it accepts first.
    """
    try:
        if started is not None:
            _await_run(session, job, every, started)
        with _progress_display(session) as show:
            for progress in _poll(session, job, every):
                show(progress)
    except KeyboardInterrupt:
        _note_continues(session, job)
        raise typer.Exit(130) from None
    _show(session, progress)
    return progress


def _note_continues(session: Session, job: str) -> None:
    session.note(f"The job continues: darkroom status {job} --watch")


def _await_run(session: Session, job: str, every: float, started: Callable[[Run], bool]) -> None:
    began = session.clock.now()
    while session.clock.now() - began < _START_TIMEOUT_SECONDS:
        run = session.stack.ledger.current(job)
        if run and started(run):
            return
        session.clock.sleep(every)
    raise CommandFailed(
        f"The file is uploaded, but job {job} did not start within {_START_TIMEOUT_SECONDS:.0f} s: "
        f"see the log group /aws/lambda/{session.stack.outputs.SplitterFunctionName}."
    )


def _poll(session: Session, job: str, every: float) -> Iterator[Progress]:
    """Yields at least once; ends with the job."""
    recent, answered_at = RecentRate(), session.clock.now()
    earlier = dict[str, float]()  # cost of the uploads before a run: read once
    while True:
        try:
            run = find_run(session, job)
            if run.run not in earlier:
                earlier[run.run] = session.stack.ledger.spent_earlier(run) / 1e6
            progress = measure_run(session, run, recent)
            progress = replace(progress, earlier_cost_usd=earlier[run.run])
        except ServiceUnavailable:
            if session.clock.now() - answered_at > _UNAVAILABLE_SECONDS:
                _note_continues(session, job)
                raise
            seconds = every
        else:
            answered_at = session.clock.now()
            yield progress
            if progress.ended:
                return
            seldom = progress.in_batches is not None and progress.in_batches.providers_decide
            seconds = max(every, _BATCH_POLL_SECONDS) if seldom else every
        session.clock.sleep(seconds)


@contextmanager
def _progress_display(session: Session) -> Iterator[Callable[[Progress], None]]:
    """JSON lines for scripts, a bar on a terminal, lines of text for logs and pipes."""
    if session.json:
        yield lambda p: typer.echo(json.dumps(asdict(p)))
    elif session.err.is_terminal:
        from rich.progress import BarColumn, TextColumn  # noqa: PLC0415 - start-up
        from rich.progress import Progress as ProgressBar  # noqa: PLC0415 - start-up

        columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
        with ProgressBar(*columns, console=session.err, transient=True) as bar:
            task = bar.add_task("waiting for the job to start", total=None)
            yield lambda p: bar.update(
                task, total=p.rows if p.split_done else None, completed=p.done, description=_line(p)
            )
    else:
        yield _line_printer(session.clock)


def _line_printer(clock: Clock) -> Callable[[Progress], None]:
    """A line for every new state, and for other changes at most every _LINE_INTERVAL_SECONDS.

    What a job waits for is part of its state. While rows are in batches a line says so now and
    then, though nothing has changed.
    """
    state: RunState | None = None
    waiting: str | None = None
    shown: tuple[int, ...] | None = None
    printed_at = float("-inf")

    def show(p: Progress) -> None:
        nonlocal state, waiting, shown, printed_at
        batches, passed = p.in_batches, clock.now() - printed_at
        submitted = (batches.submitted, batches.batches, batches.earlier_batches) if batches else ()
        counts = (p.done, p.rows, *submitted)
        due = counts != shown and passed >= _LINE_INTERVAL_SECONDS
        due |= batches is not None and passed >= _STILL_INTERVAL_SECONDS
        detail = p.waiting.detail if p.waiting else None
        news = p.state is not state or detail != waiting
        if (due or news) and not p.ended:
            typer.echo(_line(p), err=True)
            state, waiting = p.state, detail
            shown, printed_at = counts, clock.now()

    return show


def _line(p: Progress) -> str:
    """`600/1,240 rows · 15 failed · 39/min · $22.19 · 16 min 25 s left`."""
    noun = "row" if p.rows == 1 and p.split_done else "rows"
    parts = [f"{p.done:,}/{p.rows:,}{'' if p.split_done else '+'} {noun}"]
    parts += [p.state.value] if p.state is not RunState.RUNNING else []
    parts += [f"{rows:,} {s}" for s in UNSUCCESSFUL_STATUSES if (rows := getattr(p, s))]
    if batches := p.in_batches:
        if batches.queued:
            parts.append(f"{batches.queued:,} not in a batch")
        if batches.batches:
            parts.append(f"{batches.submitted:,} submitted in {batches.where} {batches.age} ago")
        if batches.earlier_batches:
            parts.append(f"{batches.earlier_submitted:,} submitted by earlier uploads")
    if p.rows_per_minute:
        parts.append(f"{p.rows_per_minute:,.0f}/min")
    if p.cost_usd:
        parts.append(money(p.cost_usd))
    if p.eta_seconds is not None:
        parts.append(f"{duration(p.eta_seconds)} left")
    if p.waiting:
        parts.append(f"waiting: {p.waiting.detail}")
    return printable(" · ".join(parts))
