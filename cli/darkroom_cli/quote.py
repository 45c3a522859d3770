"""`quote`: rows, cost and time of a job before it is started."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from darkroom.endpoints import EndpointsSecret
from darkroom_cli import estimate as sums
from darkroom_cli.bars import working
from darkroom_cli.endpoints import current
from darkroom_cli.estimate import Estimate, Pace
from darkroom_cli.local_csv import object_name, open_rows
from darkroom_cli.session import Session
from darkroom_cli.submit import job_options
from darkroom_cli.words import duration, money, plural

_SHOWN = 10


def quote(session: Session, csv: Path, given: Mapping[str, object], *, call_seconds: float) -> None:
    options, _ = job_options(given)
    object_name(csv)
    rows = open_rows(csv, options)
    secret = current(session)
    pace = Pace(call_seconds, session.stack.workers)
    with working(session, f"Reading {csv.name}"):
        for _ in rows.check():
            pass
        told = sums.estimate(rows, secret, pace)
    time = sums.seconds(told, secret, pace)
    if session.json:
        session.print_json(_as_json(told, secret, pace, time))
        return
    session.facts(_facts(told, secret, pace, time))
    _list(session, "Rows that will fail", told.invalid)
    _list(session, "Rows that no endpoint can take", told.impossible)
    for warning in [
        *rows.warnings,
        *(f"{w} ({plural(n, 'row')})" for w, n in told.warnings.items()),
    ]:
        session.warn(warning)
    if time > sums.RETENTION_SECONDS:
        session.warn(
            f"The queue keeps rows for {duration(sums.RETENTION_SECONDS)}: split the file, "
            "or raise the limits, or rows will leave it before their turn."
        )


def _facts(
    told: Estimate, secret: EndpointsSecret, pace: Pace, time: float
) -> Iterator[tuple[str, str]]:
    parts = [f"{told.to_do:,} to do"]
    for count, what in (
        (told.skipped, "outside filter-rows"),
        (len(told.invalid), "invalid"),
        (len(told.impossible), "that no endpoint can take"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    yield "rows", f"{told.rows:,}: {', '.join(parts)}"
    yield "pictures", f"{told.pictures:,}"
    least, most = money(told.least / 1e6), money(told.most / 1e6)
    unpriced = f", and {plural(told.unpriced, 'row')} of unknown price" if told.unpriced else ""
    yield "cost", f"{least} to {most}{unpriced}"
    yield (
        "time",
        (f"about {duration(time)}, if a call takes {pace.call_seconds:g} s and no provider fails"),
    )
    for name, calls in sums.chosen(told, secret):
        yield "endpoint", f"{name}: {plural(calls, 'call')}"


def _list(session: Session, title: str, rows: Sequence[tuple[int, str]]) -> None:
    if not rows:
        return
    session.note(f"{title}:")
    for row, why in rows[:_SHOWN]:
        session.note(f"  row {row}: {why}")
    if len(rows) > _SHOWN:
        session.note(f"  and {len(rows) - _SHOWN:,} more (--json lists all)")


def _as_json(told: Estimate, secret: EndpointsSecret, pace: Pace, time: float) -> dict[str, Any]:
    return {
        "rows": told.rows,
        "to_do": told.to_do,
        "skipped": told.skipped,
        "invalid": [{"row": row, "detail": why} for row, why in told.invalid],
        "impossible": [{"row": row, "detail": why} for row, why in told.impossible],
        "pictures": told.pictures,
        "cost_usd": {"least": told.least / 1e6, "most": told.most / 1e6},
        "unpriced_rows": told.unpriced,
        "seconds": round(time, 1),
        "call_seconds": pace.call_seconds,
        "workers": pace.workers,
        "calls": dict(sums.chosen(told, secret)),
        "exceeds_retention": time > sums.RETENTION_SECONDS,
        "warnings": dict(told.warnings),
    }
