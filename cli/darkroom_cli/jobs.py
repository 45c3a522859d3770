"""`list` and `stop`: the jobs of a stack."""

from heapq import nlargest
from typing import Any

from darkroom.jobs import job_id
from darkroom_cli.ports import StoredObject
from darkroom_cli.progress import Progress, measure
from darkroom_cli.session import Session
from darkroom_cli.status import no_such_job


def list_jobs(session: Session, prefix: str, limit: int) -> None:
    uploads = (o for o in session.stack.inputs.list(prefix) if o.key.endswith((".csv", ".csv.gz")))
    newest = nlargest(limit, uploads, key=lambda o: o.modified)
    found = [_look(session, upload) for upload in newest]
    if session.json:
        session.print_json([row for row, _ in found])
        return
    if not found:
        session.note("No CSV was uploaded yet: `darkroom submit CSV` starts a job.")
        return
    _show(session, found)


def _look(session: Session, upload: StoredObject) -> tuple[dict[str, Any], Progress | None]:
    job = job_id(upload.key)
    run = session.stack.runs.current(job)
    row = {"job": job, "uploaded": upload.modified.isoformat(timespec="seconds")}
    if run is None:
        return {**row, "state": "not started"}, None
    counters = session.stack.runs.counters(job, run.run)
    progress = measure(run, counters, session.wiring.clock.now())
    return {**row, **progress.as_json()}, progress


def _show(session: Session, found: list[tuple[dict[str, Any], Progress | None]]) -> None:
    lines = [
        (
            str(row["job"]),
            str(row["state"]),
            f"{p.done:,}/{p.rows:,}" if p else "",
            f"{p.failed + p.dead:,}" if p else "",
            str(row["uploaded"])[:16].replace("T", " "),
        )
        for row, p in found
    ]
    if not session.out.is_terminal:
        for line in lines:
            session.plain(*line)
        return
    from rich.table import Table  # noqa: PLC0415

    table = Table("job", "state", "rows", "failed", "uploaded (UTC)", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    for column in table.columns[2:4]:
        column.justify = "right"
    for line in lines:
        table.add_row(*line)
    session.out.print(table)


def stop(session: Session, job: str) -> None:
    if session.stack.runs.current(job) is None:
        raise no_such_job(session, job)
    stopped = session.stack.runs.stop(job)
    text = (
        f"Stopped {job}: calls under way end, rows not yet sent end as `failed: stopped`. "
        "Submit the CSV again to go on."
        if stopped
        else f"Job {job} is over already: there is nothing to stop."
    )
    session.answer(text, {"job": job, "stopped": stopped is not None})
