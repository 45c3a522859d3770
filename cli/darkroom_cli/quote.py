"""`darkroom quote`: rows, cost and time of a job before it is started."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from darkroom.endpoints import EndpointsSecret
from darkroom.formatting import duration, money, plural
from darkroom_cli.endpoints import load_current, load_file
from darkroom_cli.estimate import RETENTION_SECONDS, Estimate, FailureGroups, Throughput, estimate
from darkroom_cli.local_files import csv_of_folder, open_csv
from darkroom_cli.session import Session

_SHOWN_GROUPS = 10
_DEFAULT_WORKERS = 16  # the template's WorkerProcesses times RowsPerWorker


def quote(
    session: Session,
    csv: Path,
    options: Mapping[str, object],
    *,
    call_seconds: float,
    endpoints: Path | None = None,
    workers: int | None = None,
) -> None:
    """With an `endpoints` file no stack is needed."""
    rows = open_csv(csv_of_folder(session, csv, options) if csv.is_dir() else csv, options)
    secret = load_current(session) if endpoints is None else load_file(endpoints)
    if workers is None:
        workers = session.stack.workers if endpoints is None else _DEFAULT_WORKERS
    throughput = Throughput(call_seconds, workers)
    with session.spinner(f"Reading {csv.name}"):
        rows.check()
        totals = estimate(rows, secret, throughput, session.today)
    seconds = throughput.job_seconds(totals.calls, secret)
    if session.json:
        session.print_json(_as_json(totals, throughput, seconds))
        return
    session.print_fields(_fields(totals, call_seconds, seconds))
    _print_groups(session, "Rows that will fail", totals.invalid)
    _print_groups(session, "Rows that no endpoint can take", totals.impossible)
    for warning in (*rows.columns.warnings, *_warnings(totals, secret, seconds)):
        session.warn(warning)


def _fields(totals: Estimate, call_seconds: float, seconds: float) -> Iterator[tuple[str, str]]:
    parts = [f"{totals.to_do:,} to do"]
    for count, label in (
        (totals.skipped, "outside filter-rows"),
        (totals.invalid.count, "invalid"),
        (totals.impossible.count, "that no endpoint can take"),
    ):
        if count:
            parts.append(f"{count:,} {label}")
    yield "rows", f"{totals.rows:,}: {', '.join(parts)}"
    yield "images", f"{totals.images:,}"
    yield "cost", _cost(totals)
    assumption = f"if a call takes {call_seconds:g} s and no provider fails"
    yield "time", f"about {duration(seconds)}, {assumption}"
    for name, calls in totals.calls.items():
        yield "endpoint", f"{name}: {plural(calls, 'call')}"


def _cost(totals: Estimate) -> str:
    text = f"{money(totals.least / 1e6)} to {money(totals.expected_most / 1e6)}"
    if totals.most > totals.expected_most:
        text += f"; up to {money(totals.most / 1e6)} if rows fall back"
    if totals.unpriced:
        models = ", ".join(sorted(totals.unpriced_models))
        text += f"; and {plural(totals.unpriced, 'row')} of unknown price ({models})"
    return text


def _warnings(totals: Estimate, secret: EndpointsSecret, seconds: float) -> Iterator[str]:
    for text, count in totals.warnings.items():
        yield f"{text} ({plural(count, 'row')})"
    last_tier = max(endpoint.tier for endpoint in secret.endpoints)
    for endpoint in secret.endpoints:
        if over := totals.over_daily_limit[endpoint.name]:
            consequence = (
                "they wait for the following days"
                if endpoint.tier == last_tier
                else "they go to the next tier that can take them, at its price, or wait"
            )
            yield (
                f"{plural(over, 'row')} beyond the {endpoint.requests_per_day:,} requests a day of "
                f"{endpoint.name}: {consequence}."
            )
    if seconds > RETENTION_SECONDS:
        yield (
            f"The queue keeps rows for {duration(RETENTION_SECONDS)}: split the file or raise the "
            "limits, or rows will expire before their turn."
        )


def _print_groups(session: Session, title: str, failures: FailureGroups) -> None:
    if not failures.count:
        return
    session.note(f"{title}:")
    for group in list(failures.groups.values())[:_SHOWN_GROUPS]:
        rows = f"row {group.first_rows[0]}"
        if group.rows > 1:
            rows = f"{plural(group.rows, 'row')}, such as {rows}"
        session.note(f"  {rows}: {group.detail}")
    if len(failures.groups) > _SHOWN_GROUPS:
        session.note("  and more (--json lists all reasons)")


def _as_json(totals: Estimate, throughput: Throughput, seconds: float) -> dict[str, Any]:
    return {
        "rows": totals.rows,
        "to_do": totals.to_do,
        "skipped": totals.skipped,
        "invalid": totals.invalid.count,
        "invalid_reasons": [asdict(group) for group in totals.invalid.groups.values()],
        "impossible": totals.impossible.count,
        "impossible_reasons": [asdict(group) for group in totals.impossible.groups.values()],
        "images": totals.images,
        "cost_usd": {
            "least": totals.least / 1e6,
            "expected_most": totals.expected_most / 1e6,
            "most": totals.most / 1e6,
        },
        "unpriced_rows": totals.unpriced,
        "unpriced_models": sorted(totals.unpriced_models),
        "seconds": round(seconds, 1),
        "call_seconds": throughput.call_seconds,
        "workers": throughput.workers,
        "calls": dict(totals.calls),
        "exceeds_retention": seconds > RETENTION_SECONDS,
        "beyond_a_day": dict(totals.over_daily_limit),
        "warnings": dict(totals.warnings),
    }
