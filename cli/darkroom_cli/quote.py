"""`quote`: rows, cost and time of a job before it is started."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from darkroom.endpoints import EndpointsSecret
from darkroom.formatting import duration, money, plural
from darkroom_cli import estimate as sums
from darkroom_cli import speed
from darkroom_cli.bars import working
from darkroom_cli.endpoints import current, from_file
from darkroom_cli.estimate import Estimate
from darkroom_cli.local_csv import object_name, open_rows
from darkroom_cli.reasons import Failures
from darkroom_cli.session import Session
from darkroom_cli.speed import Pace
from darkroom_cli.submit import job_options

_SHOWN = 10
DEFAULT_WORKERS = 16  # the template's WorkerProcesses times RowsPerWorker


def quote(
    session: Session,
    csv: Path,
    given: Mapping[str, object],
    *,
    call_seconds: float,
    endpoints: Path | None = None,
    workers: int | None = None,
) -> None:
    """With `endpoints` and `workers` no stack is needed."""
    options, _ = job_options(given)
    object_name(csv)
    rows = open_rows(csv, options)
    secret = current(session) if endpoints is None else from_file(endpoints)
    if workers is None:
        workers = session.stack.workers if endpoints is None else DEFAULT_WORKERS
    pace = Pace(call_seconds, workers)
    with working(session, f"Reading {csv.name}"):
        for _ in rows.check():
            pass
        told = sums.estimate(rows, secret, pace)
    time = speed.seconds(told.calls, secret, pace)
    if session.json:
        session.print_json(_as_json(told, secret, pace, time))
        return
    session.facts(_facts(told, secret, pace, time))
    _list(session, "Rows that will fail", told.invalid)
    _list(session, "Rows that no endpoint can take", told.impossible)
    for warning in [
        *rows.warnings,
        *(f"{w} ({plural(n, 'row')})" for w, n in told.warnings.items()),
        *_day_warnings(told, secret),
    ]:
        session.warn(warning)
    if time > speed.RETENTION_SECONDS:
        session.warn(
            f"The queue keeps rows for {duration(speed.RETENTION_SECONDS)}: split the file, "
            "or raise the limits, or rows will leave it before their turn."
        )


def _facts(
    told: Estimate, secret: EndpointsSecret, pace: Pace, time: float
) -> Iterator[tuple[str, str]]:
    parts = [f"{told.to_do:,} to do"]
    for count, what in (
        (told.skipped, "outside filter-rows"),
        (told.invalid.count, "invalid"),
        (told.impossible.count, "that no endpoint can take"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    yield "rows", f"{told.rows:,}: {', '.join(parts)}"
    yield "pictures", f"{told.pictures:,}"
    yield "cost", _cost(told)
    yield (
        "time",
        (f"about {duration(time)}, if a call takes {pace.call_seconds:g} s and no provider fails"),
    )
    for name, calls in sums.chosen(told, secret):
        yield "endpoint", f"{name}: {plural(calls, 'call')}"


def _cost(told: Estimate) -> str:
    least, expected, most = (
        money(sum_ / 1e6) for sum_ in (told.least, told.expected_most, told.most)
    )
    said = f"{least} to {expected}"
    if told.most > told.expected_most:
        said += f"; up to {most} if rows fall back"
    if told.unpriced:
        models = ", ".join(sorted(told.unpriced_models))
        said += f"; and {plural(told.unpriced, 'row')} of unknown price ({models})"
    return said


def _day_warnings(told: Estimate, secret: EndpointsSecret) -> Iterator[str]:
    last = max(endpoint.tier for endpoint in secret.endpoints)
    for endpoint in secret.endpoints:
        if over := told.spilled[endpoint.name]:
            then = (
                "they wait for the days after"
                if endpoint.tier == last
                else "they go to the next tier that can take them, at its price, or wait"
            )
            yield (
                f"{plural(over, 'row')} beyond the {endpoint.requests_per_day:,} requests a day of "
                f"{endpoint.name}: {then}."
            )


def _list(session: Session, title: str, failures: Failures) -> None:
    if not failures.count:
        return
    session.note(f"{title}:")
    for group in list(failures.groups.values())[:_SHOWN]:
        rows = f"row {group.first[0]}"
        if group.count > 1:
            rows = f"{plural(group.count, 'row')}, such as {rows}"
        session.note(f"  {rows}: {group.detail}")
    if len(failures.groups) > _SHOWN:
        session.note("  and more (--json lists all reasons)")


def _reasons(failures: Failures) -> list[dict[str, Any]]:
    return [
        {"detail": group.detail, "rows": group.count, "first_rows": group.first}
        for group in failures.groups.values()
    ]


def _as_json(told: Estimate, secret: EndpointsSecret, pace: Pace, time: float) -> dict[str, Any]:
    return {
        "rows": told.rows,
        "to_do": told.to_do,
        "skipped": told.skipped,
        "invalid": told.invalid.count,
        "invalid_reasons": _reasons(told.invalid),
        "impossible": told.impossible.count,
        "impossible_reasons": _reasons(told.impossible),
        "pictures": told.pictures,
        "cost_usd": {
            "least": told.least / 1e6,
            "expected_most": told.expected_most / 1e6,
            "most": told.most / 1e6,
        },
        "unpriced_rows": told.unpriced,
        "unpriced_models": sorted(told.unpriced_models),
        "seconds": round(time, 1),
        "call_seconds": pace.call_seconds,
        "workers": pace.workers,
        "calls": dict(sums.chosen(told, secret)),
        "exceeds_retention": time > speed.RETENTION_SECONDS,
        "beyond_a_day": {name: rows for name, rows in told.spilled.items() if rows},
        "warnings": dict(told.warnings),
    }
