"""`darkroom list`, `stop` and `failures`: a stack's jobs, and the rows of one that failed."""

import csv
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from heapq import nlargest
from pathlib import Path
from typing import Any

from darkroom.csv_input.names import is_content_key
from darkroom.errors import Reason
from darkroom.formatting import plural, quoted
from darkroom.jobs import CSV_SUFFIXES, ResultPaths, Run, RunState, job_id
from darkroom.report.manifest import own_columns, unguard
from darkroom.rows import UNSUCCESSFUL_STATUSES
from darkroom_cli.error_messages import UsageMistake
from darkroom_cli.row_names import row_name, spreadsheet_line
from darkroom_cli.session import Session
from darkroom_cli.stack import StoredObject
from darkroom_cli.status import find_run, measure_run


def list_jobs(session: Session, prefix: str, limit: int) -> None:
    listed = session.stack.input_bucket.list(prefix)
    uploads = (o for o in listed if o.key.endswith(CSV_SUFFIXES))
    jobs = [_as_json(session, o) for o in nlargest(limit, uploads, key=lambda o: o.modified)]
    if session.json:
        session.print_json(jobs)
    elif not jobs and prefix:
        session.note(f"No job's name begins with {prefix}: `darkroom list` shows all.")
    elif not jobs:
        session.note("No CSV has been uploaded yet: `darkroom submit CSV` starts a job.")
    else:
        columns = ("job", "state", "rows", "failed", "uploaded (UTC)")
        session.print_table(columns, map(_cells, jobs), right=("rows", "failed"), folded="job")
        for job in jobs:
            if job.get("waiting"):
                session.note(f"{job['job']} is waiting: {job['waiting']['detail']}")


def _as_json(session: Session, upload: StoredObject) -> dict[str, Any]:
    job = job_id(upload.key)
    uploaded = upload.modified.isoformat(timespec="seconds")
    row = {"job": job, "uploaded": uploaded, "state": "not started"}
    run = session.stack.ledger.current(job)
    return row | asdict(measure_run(session, run)) if run else row


def _cells(job: Mapping[str, Any]) -> tuple[str, ...]:
    rows = failed = ""
    if "run" in job:
        rows = f"{job['done']:,}/{job['rows']:,}"
        failed = f"{sum(job[status] for status in UNSUCCESSFUL_STATUSES):,}"
    state = f"{job['state']}, waiting" if job.get("waiting") else job["state"]
    return job["job"], state, rows, failed, job["uploaded"][:16].replace("T", " ")


def stop(session: Session, job: str) -> None:
    run = find_run(session, job)
    job = run.job
    stopped = session.stack.ledger.stop(job) is not None
    in_batches = measure_run(session, run).in_batches
    batches = (
        "Its batches are cancelled at their providers within minutes; what they have done by then "
        "is paid for and stored. "
        if in_batches and (in_batches.batches or in_batches.earlier_batches)
        else ""
    )
    text = (
        f"Stopped {job}: calls in flight finish, rows not yet sent end as `failed: stopped`. "
        f"{batches}Submit the CSV again to continue."
        if stopped
        else f"Job {job} has already ended: there is nothing to stop."
    )
    session.print_result(text, {"job": job, "stopped": stopped})


@dataclass(frozen=True, slots=True)
class _FailedRow:
    row: int
    line: int  # of the spreadsheet
    name: str  # its index, or the file name of its image; may be empty
    status: str
    reason: str
    detail: str
    endpoint: str
    attempts: int


def check_reason(reason: str | None) -> None:
    """Raises UsageMistake for a reason that does not exist."""
    if reason is not None and reason not in set(Reason):
        close = get_close_matches(reason, list(Reason), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageMistake(
            f"There is no reason {quoted(reason)}.{hint} The reasons are {', '.join(Reason)}."
        )


def failures(session: Session, job: str, reason: str | None) -> None:
    check_reason(reason)
    run = find_run(session, job)
    done = run.state is RunState.DONE
    rows = [*(_from_manifest(session, run.job) if done else _from_ledger(session, run))]
    found = [row for row in rows if reason is None or row.reason == reason]
    if session.json:
        session.print_json([asdict(row) for row in found])
        return
    if run.state is RunState.FAILED:
        session.note(f"The job failed as a whole: {run.reason}")
    elif not done:
        session.note(
            f"The job is {run.state.value}: rows that failed so far, without those with bad input."
        )
    if not found:
        others = f" for the reason {reason}, {len(rows):,} for others" if rows else ""
        session.note(f"No row failed{others}.")
        return
    cells = (
        (str(r.line), str(r.row), r.name, r.status, r.reason, " ".join(r.detail.split()))
        for r in found
    )
    columns = ("line", "row", "name", "status", "reason", "detail")
    session.print_table(columns, cells, right=("line", "row"), folded="detail")
    counts = Counter(row.reason for row in found).most_common()
    by_reason = ", ".join(f"{count:,} {name}" for name, count in counts)
    session.note(f"{plural(len(found), 'row')}: {by_reason}.")


def _from_manifest(session: Session, job: str) -> Iterator[_FailedRow]:
    with tempfile.TemporaryDirectory(prefix="darkroom-") as scratch:
        path = Path(scratch) / "manifest.csv"
        session.stack.results_bucket.fetch(ResultPaths(job).manifest, path)
        with path.open(encoding="utf-8", newline="") as text:
            lines = csv.reader(text)
            names = next(lines)
            columns = own_columns(names)
            header = names[: -len(columns)]
            for cells in lines:
                own = map(unguard, cells[-len(columns) :])
                line = dict(zip(columns, own, strict=True))
                if line["status"] in UNSUCCESSFUL_STATUSES:
                    row, of_input = int(line["row"]), [*map(unguard, cells[: len(header)])]
                    yield _FailedRow(
                        row,
                        spreadsheet_line(row),
                        row_name(header, of_input),
                        line["status"],
                        line["reason"],
                        line["detail"],
                        line["endpoint"],
                        int(line["attempts"] or 0),
                    )


def _from_ledger(session: Session, run: Run) -> Iterator[_FailedRow]:
    """Of the current upload; a row that it no longer has may still be in the ledger."""
    for record in session.stack.ledger.all(run.job):
        result = record.result
        if record.run == run.run and result is not None and result.status.unsuccessful:
            yield _FailedRow(
                record.row,
                spreadsheet_line(record.row),
                "" if is_content_key(record.key) else record.key,
                result.status.value,
                result.reason.value if result.reason else "",
                result.detail,
                result.endpoint or "",
                record.attempts,
            )
