"""A job watched to its end, by a person or a script."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from darkroom.errors import ServiceUnavailable
from darkroom.formatting import duration, money
from darkroom.jobs import Run, RunState
from darkroom_cli.progress import Pace, Progress
from darkroom_cli.sentences import CommandFailed
from darkroom_cli.session import Session
from darkroom_cli.status import exit_as, look, no_such_job, show

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PATIENCE = 20  # looks in a row that AWS does not answer
QUIET_SECONDS = 10.0  # between two lines of a watch that nobody sees
APPEARS_SECONDS = 120.0  # from upload to the splitter's first sign of life


@dataclass(frozen=True, slots=True)
class Upload:
    """What to wait for: the run of this version, or any but the one `before` it."""

    version: str | None
    before: str | None

    def started(self, run: Run) -> bool:
        # Another upload may have taken over by now; it counts, or we would wait for ever.
        return run.source.version_id == self.version or run.run != self.before


def watch_job(session: Session, job: str, *, every: float, upload: Upload | None = None) -> None:
    """Look every `every` seconds until the job ends. Exits with 1 unless it is DONE.

    With `upload` it waits for that one's run to appear first.
    """
    looks = _looks(session, job, every, upload)
    try:
        last = _show_looks(session, looks)
    except KeyboardInterrupt:
        session.note(f"The job goes on without you: darkroom status {job} --watch")
        raise typer.Exit(130) from None
    if last is None:
        raise no_such_job(session, job)
    if not session.json:
        show(session, last)
    exit_as(last)


def _show_looks(session: Session, looks: Iterator[Progress]) -> Progress | None:
    if session.json:
        last = None
        for last in looks:
            typer.echo(json.dumps(last.as_json()))
        return last
    if session.err.is_terminal:
        return _watch_bar(session, looks)
    return _watch_lines(session, looks)


def _looks(session: Session, job: str, every: float, upload: Upload | None) -> Iterator[Progress]:
    pace, clock = Pace(), session.wiring.clock
    if upload is not None:
        _await_run(session, job, every, upload)
    failures = 0
    while True:
        try:
            progress = look(session, job, pace)
            failures = 0
        except ServiceUnavailable:
            failures += 1
            if failures == PATIENCE:
                raise
            clock.sleep(every)
            continue
        if progress is None:
            return
        yield progress
        if progress.ended:
            return
        clock.sleep(every)


def _await_run(session: Session, job: str, every: float, upload: Upload) -> None:
    clock = session.wiring.clock
    began = clock.now()
    while clock.now() - began < APPEARS_SECONDS:
        run = session.stack.runs.current(job)
        if run and upload.started(run):
            return
        clock.sleep(every)
    raise CommandFailed(
        f"The file is uploaded, but {APPEARS_SECONDS:.0f} s later job {job} has not started: see "
        f"the log group /aws/lambda/{session.stack.outputs.SplitterFunctionName}."
    )


def _watch_bar(session: Session, looks: Iterator[Progress]) -> Progress | None:
    last = None
    with _bar(session) as bar:
        task = bar.add_task("waiting for the job to start", total=None)
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
