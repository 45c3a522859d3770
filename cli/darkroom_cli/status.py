"""`status`: a job's progress once, or watched to its end."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from darkroom.jobs import RunState
from darkroom_cli.progress import Pace, Progress, measure
from darkroom_cli.sentences import CommandFailed
from darkroom_cli.session import Session
from darkroom_cli.words import duration, money, plural

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

QUIET_SECONDS = 10.0  # between two lines of a watch that nobody sees
APPEARS_SECONDS = 120.0  # from upload to the splitter's first sign of life


def status(session: Session, job: str, *, watch: bool, every: float) -> None:
    if watch:
        watch_job(session, job, every=every)
        return
    progress = _look(session, job)
    if progress is None:
        raise no_such_job(session, job)
    show(session, progress)
    _exit_as(progress)


def no_such_job(session: Session, job: str) -> CommandFailed:
    return CommandFailed(
        f"Stack {session.stack.name} knows no job {job}: a job is named after its CSV without "
        "the extension (jobs/products.csv is jobs/products); `darkroom list` shows all."
    )


def _look(session: Session, job: str, pace: Pace | None = None) -> Progress | None:
    run = session.stack.runs.current(job)
    if run is None:
        return None
    counters = session.stack.runs.counters(job, run.run)
    now = session.wiring.clock.now()
    rate = pace.note(now, counters.settled) if pace else None
    return measure(run, counters, now, rate)


def watch_job(session: Session, job: str, *, every: float, version: str | None = None) -> None:
    """Look every `every` seconds until the job ends. Exits with 1 unless it is DONE.

    With `version` (of the uploaded object) it waits for that upload's run to appear first.
    """
    looks = _looks(session, job, every, version)
    if session.json:
        last = None
        for last in looks:
            typer.echo(json.dumps(last.as_json()))
    elif session.err.is_terminal:
        last = _watch_bar(session, looks)
    else:
        last = _watch_lines(session, looks)
    if last is None:
        raise no_such_job(session, job)
    if not session.json:
        show(session, last)
    _exit_as(last)


def _looks(session: Session, job: str, every: float, version: str | None) -> Iterator[Progress]:
    pace, clock = Pace(), session.wiring.clock
    if version is not None:
        _await_run(session, job, every, version)
    while True:
        progress = _look(session, job, pace)
        if progress is None:
            return
        yield progress
        if progress.ended:
            return
        clock.sleep(every)


def _await_run(session: Session, job: str, every: float, version: str) -> None:
    clock = session.wiring.clock
    began = clock.now()
    while clock.now() - began < APPEARS_SECONDS:
        run = session.stack.runs.current(job)
        if run and (run.source.version_id == version or run.started_at > began):
            return
        clock.sleep(every)
    raise CommandFailed(
        f"The file is uploaded, but {APPEARS_SECONDS:.0f} s later job {job} has not started: see "
        f"the log group /aws/lambda/{session.stack.outputs.SplitterFunctionName}."
    )


def _watch_bar(session: Session, looks: Iterator[Progress]) -> Progress | None:
    last = None
    with _bar(session) as bar:
        task = bar.add_task("", total=None)
        for last in looks:
            total = last.rows if last.split_done else None
            bar.update(task, total=total, completed=last.done, description=_line(last))
    return last


def _bar(session: Session) -> "Bar":
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    return Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.description}", markup=False),
        console=session.err,
        transient=True,
    )


def _line(p: Progress) -> str:
    """`600/1,240 rows · 15 failed · 39/min · $22.19 · 16 min 25 s left`."""
    parts = [f"{p.done:,}/{p.rows:,}{'' if p.split_done else '+'} rows"]
    parts += [p.state.value] if p.state is not RunState.RUNNING else []
    parts += [f"{n:,} {what}" for n, what in ((p.failed, "failed"), (p.dead, "dead")) if n]
    if p.rows_per_minute:
        parts.append(f"{p.rows_per_minute:,.0f}/min")
    if p.cost_usd:
        parts.append(money(p.cost_usd))
    if p.eta_seconds is not None:
        parts.append(f"{duration(p.eta_seconds)} left")
    return " · ".join(parts)


def _watch_lines(session: Session, looks: Iterator[Progress]) -> Progress | None:
    """For logs and pipes: a line when something changed, at most one per QUIET_SECONDS."""
    last, shown, told_at = None, None, float("-inf")
    for last in looks:
        seen = (last.state, last.done, last.rows)
        now = session.wiring.clock.now()
        new_state = shown is None or last.state is not shown[0]
        due = seen != shown and now - told_at >= QUIET_SECONDS
        if (due or new_state) and not last.ended:
            typer.echo(_line(last), err=True)
            shown, told_at = seen, now
    return last


def show(session: Session, progress: Progress) -> None:
    """The whole picture, as a small table or JSON."""
    if session.json:
        session.print_json(progress.as_json())
        return
    session.facts(_facts(progress))
    if session.err.is_terminal:
        for hint in _hints(progress):
            session.note(hint)


def _hints(p: Progress) -> Iterator[str]:
    """What to do next."""
    if p.state is not RunState.DONE:
        return
    if p.failed or p.dead:
        yield f"Which rows and why: darkroom failures {p.job}"
    if p.dead:
        yield f"To try the dead ones again: darkroom redrive {p.job}"
    yield f"For images, manifest and gallery: darkroom download {p.job} DIR"


def _facts(p: Progress) -> Iterator[tuple[str, str]]:
    yield "job", p.job
    yield "state", p.state.value
    if p.reason:
        yield "reason", p.reason
    if p.state is RunState.FAILED and not p.rows:
        return
    percent = f" ({p.done / p.rows:.0%})" if p.rows and p.split_done else ""
    yield "rows", f"{p.done:,} of {p.rows:,}{'' if p.split_done else ' or more'}{percent}"
    earlier = f" ({p.resumed:,} in an earlier upload)" if p.resumed else ""
    yield "succeeded", f"{p.succeeded:,}{earlier}"
    yield "failed", f"{p.failed:,}"
    yield "dead", f"{p.dead:,}"
    if p.skipped:
        yield "skipped", f"{p.skipped:,}"
    yield "fallback", f"{p.fallback_rate:.1%}"
    unpriced = f" and {plural(p.unpriced, 'answer')} of unknown price" if p.unpriced else ""
    yield "cost", money(p.cost_usd) + unpriced
    if p.possible_duplicate_charges:
        yield "maybe paid twice", plural(p.possible_duplicate_charges, "call")
    yield (
        "time",
        duration(p.elapsed_seconds)
        + (f", {p.rows_per_minute:,.1f} rows/min" if p.rows_per_minute else ""),
    )
    if p.eta_seconds is not None:
        yield "left", f"about {duration(p.eta_seconds)}"
    for warning in p.warnings:
        yield "warning", warning


def _exit_as(progress: Progress) -> None:
    """A script that waits for the job must not go on as if it were done."""
    if progress.state in (RunState.FAILED, RunState.STOPPED):
        raise typer.Exit(1)
