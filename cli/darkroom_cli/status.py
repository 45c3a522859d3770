"""`status`: how far a job is."""

from collections.abc import Iterator

import typer

from darkroom.formatting import duration, money, plural
from darkroom.jobs import RunState
from darkroom_cli.progress import Pace, Progress, measure
from darkroom_cli.sentences import CommandFailed
from darkroom_cli.session import Session


def status(session: Session, job: str) -> None:
    progress = look(session, job)
    if progress is None:
        raise no_such_job(session, job)
    show(session, progress)
    exit_as(progress)


def no_such_job(session: Session, job: str) -> CommandFailed:
    return CommandFailed(
        f"Stack {session.stack.name} knows no job {job}: a job is named after its CSV without "
        "the extension (jobs/products.csv is jobs/products); `darkroom list` shows all."
    )


def look(session: Session, job: str, pace: Pace | None = None) -> Progress | None:
    run = session.stack.runs.current(job)
    if run is None:
        return None
    counters = session.stack.runs.counters(job, run.run)
    now = session.wiring.clock.now()
    rate = pace.note(now, counters.settled) if pace else None
    return measure(run, counters, now, rate)


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


def exit_as(progress: Progress) -> None:
    """A script that waits for the job must not go on as if it were done."""
    if progress.state in (RunState.FAILED, RunState.STOPPED):
        raise typer.Exit(1)
