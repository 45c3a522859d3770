"""`failures`: the rows that failed or are dead, and why."""

import csv
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from darkroom.formatting import plural
from darkroom.jobs import ResultPaths, RunState
from darkroom.report.manifest import OWN_COLUMNS, unguard
from darkroom.rows import RowState
from darkroom_cli.session import Session
from darkroom_cli.status import no_such_job

_BAD = frozenset({RowState.FAILED, RowState.DEAD})


@dataclass(frozen=True, slots=True)
class Failure:
    row: int
    status: str
    reason: str
    detail: str
    endpoint: str
    attempts: int


def failures(session: Session, job: str, reason: str | None) -> None:
    run = session.stack.runs.current(job)
    if run is None:
        raise no_such_job(session, job)
    final = run.state is RunState.DONE
    found = _from_manifest(session, job) if final else _from_ledger(session, job)
    wanted = [f for f in found if reason is None or f.reason == reason]
    if session.json:
        session.print_json([asdict(failure) for failure in wanted])
        return
    if run.state is RunState.FAILED:
        session.note(f"The job failed as a whole: {run.reason}")
    elif not final:
        session.note(
            f"The job is {run.state.value}: this is what failed so far, rows with bad input not "
            "included."
        )
    _show(session, wanted)


def _from_manifest(session: Session, job: str) -> Iterator[Failure]:
    own = len(OWN_COLUMNS)
    with tempfile.TemporaryDirectory(prefix="darkroom-") as scratch:
        path = Path(scratch) / "manifest.csv"
        session.stack.results.fetch(ResultPaths(job).manifest, path)
        with path.open(encoding="utf-8", newline="") as text:
            lines = csv.reader(text)
            next(lines, None)
            for cells in lines:
                line = dict(zip(OWN_COLUMNS, map(unguard, cells[-own:]), strict=True))
                if line["status"] in _BAD:
                    yield Failure(
                        int(line["row"]),
                        line["status"],
                        line["reason"],
                        line["detail"],
                        line["endpoint"],
                        int(line["attempts"] or 0),
                    )


def _from_ledger(session: Session, job: str) -> Iterator[Failure]:
    for record in session.stack.rows.all(job):
        result = record.result
        if result is not None and result.status in _BAD:
            yield Failure(
                record.row,
                result.status.value,
                result.reason.value if result.reason else "",
                result.detail,
                result.endpoint or "",
                record.attempts,
            )


def _show(session: Session, found: list[Failure]) -> None:
    if not found:
        session.note("No row failed.")
        return
    if session.out.is_terminal:
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table("row", "status", "reason", "detail", box=None, pad_edge=False)
        table.columns[0].justify = "right"
        table.columns[3].overflow = "fold"
        for f in found:
            table.add_row(f"{f.row:,}", f.status, f.reason, Text(" ".join(f.detail.split())))
        session.out.print(table)
    else:
        for f in found:
            session.plain(f.row, f.status, f.reason, " ".join(f.detail.split()))
    counts = Counter(f.reason for f in found).most_common()
    by = ", ".join(f"{count:,} {name}" for name, count in counts)
    session.note(f"{plural(len(found), 'row')}: {by}.")
