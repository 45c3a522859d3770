"""`darkroom quote`: rows, cost and time of a job before it is started."""

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from darkroom.csv_input.reader import JobRow, JobRows
from darkroom.endpoints import EndpointsSecret
from darkroom.formatting import duration, money, plural, quoted
from darkroom.jobs import job_id
from darkroom.models.catalog import retirement_notice
from darkroom.rows import RowRequest
from darkroom.splitter import ResumeDecision
from darkroom_cli.earlier_upload import KEPT, EarlierUpload
from darkroom_cli.endpoints import load_current, load_file
from darkroom_cli.estimate import RETENTION_SECONDS, Estimate, FailureGroups, Throughput, estimate
from darkroom_cli.local_files import csv_of_folder, object_name, open_csv
from darkroom_cli.row_names import describe_row
from darkroom_cli.session import Session
from darkroom_cli.submit import ImagePlan, plan_images

_SHOWN_GROUPS = 10
_SHOWN_IMAGES = 3
_WIDE = 3  # times the least cost: such a range is explained
_DEFAULT_WORKERS = 40  # the template's WorkerProcesses times RowsPerWorker


def quote(
    session: Session,
    csv: Path,
    options: Mapping[str, object],
    *,
    to: str,
    call_seconds: float,
    endpoints: Path | None = None,
    workers: int | None = None,
) -> None:
    """With an `endpoints` file no stack is needed, and no earlier upload is known."""
    path = csv_of_folder(session, csv, options) if csv.is_dir() else csv
    rows = open_csv(path, options)
    secret = load_current(session) if endpoints is None else load_file(endpoints)
    if workers is None:
        workers = session.stack.workers if endpoints is None else _DEFAULT_WORKERS
    throughput = Throughput(call_seconds, workers)
    survey = _Survey(rows)
    key = posixpath.join(to.strip("/"), object_name(path))
    if endpoints is None:
        survey.earlier = EarlierUpload.find(session, job_id(key), rows.options)
    with session.spinner("Reading the CSV"):
        rows.check()
        budget = rows.options.budget_micro_usd
        totals = estimate(survey.rows_to_do(), secret, throughput, session.today, budget)
        images = plan_images(survey.references, path, key)
    totals.kept, totals.kept_failed = survey.kept, survey.kept_failed
    totals.rows += survey.kept + survey.kept_failed
    throughput = totals.throughput(throughput)
    seconds = throughput.job_seconds(totals.calls, secret)
    absent = [*images.absent.values(), *images.not_images]
    if session.json:
        session.print_json(_as_json(totals, throughput, seconds) | {"images_missing": absent})
        return
    session.print_fields(_fields(totals, call_seconds, seconds, budget))
    _print_groups(session, "Rows that will fail", totals.invalid)
    _print_groups(session, "Rows that no endpoint can take", totals.impossible)
    for warning in (
        *rows.columns.warnings,
        *_warnings(totals, secret, seconds),
        *_image_warnings(images, survey),
        *_retirements(totals, secret, session.today),
    ):
        session.warn(warning)


@dataclass(slots=True)
class _Survey:
    """The rows of a CSV that an upload would start, and the images that they name."""

    rows: JobRows
    earlier: EarlierUpload | None = None
    kept: int = 0
    kept_failed: int = 0
    plain_http: int = 0  # rows with a reference that only trusted hosts may have
    references: dict[str, None] = field(default_factory=dict)

    def rows_to_do(self) -> Iterator[JobRow]:
        """Without those that an earlier upload did."""
        for row in self._not_kept():
            if not row.skipped and isinstance(row.request, RowRequest):
                self._note_references(row.request)
            yield row

    def _not_kept(self) -> Iterator[JobRow]:
        if self.earlier is None:
            yield from self.rows
            return
        for row, _, decision in self.earlier.compare(self.rows):
            self.kept += decision is ResumeDecision.RESUMED
            self.kept_failed += decision is ResumeDecision.KEPT_FAILED
            if decision not in KEPT:
                yield row

    def _note_references(self, request: RowRequest) -> None:
        named = [*request.images, *([request.mask] if request.mask else [])]
        self.references.update(dict.fromkeys(named))
        self.plain_http += any(name.lower().startswith("http://") for name in named)


def _fields(
    totals: Estimate, call_seconds: float, seconds: float, budget: int | None
) -> Iterator[tuple[str, str]]:
    parts = [f"{totals.to_do:,} to do"]
    for count, label in (
        (totals.kept, "done in an earlier upload, not paid for again"),
        (totals.kept_failed, "failed in an earlier upload, tried again only with --retry-failed"),
        (totals.skipped, "outside filter-rows"),
        (totals.invalid.count, "invalid"),
        (totals.impossible.count, "that no endpoint can take"),
    ):
        if count:
            parts.append(f"{count:,} {label}")
    yield "rows", f"{totals.rows:,}: {', '.join(parts)}"
    yield "images", f"{totals.images:,}"
    yield "cost", _cost(totals)
    if budget is not None:
        yield "budget", _budget(totals, budget)
    assumption = f"if a call takes {call_seconds:g} s and no provider fails"
    yield "time", f"about {duration(seconds)}, {assumption}"
    for name, calls in totals.calls.items():
        yield "endpoint", f"{name}: {plural(calls, 'call')}"


def _cost(totals: Estimate) -> str:
    text = totals.price
    if totals.most > totals.expected_most:
        text += f"; up to {money(totals.most / 1e6)} if rows fall back"
    if totals.unpriced:
        models = ", ".join(sorted(totals.unpriced_models))
        text += f"; and {plural(totals.unpriced, 'row')} of unknown price ({models})"
    return text


def _budget(totals: Estimate, budget: int) -> str:
    """Each call reserves the most that it can cost, so a budget may end before it is spent."""
    if totals.within_budget >= totals.to_do:
        return f"{money(budget / 1e6)}, enough for all rows"
    unpriced = "; rows of unknown price fail" if totals.unpriced else ""
    return (
        f"{money(budget / 1e6)}, enough for {totals.within_budget:,} of "
        f"{plural(totals.to_do, 'row')} at the most that they can cost{unpriced}"
    )


def _image_warnings(images: ImagePlan, survey: _Survey) -> Iterator[str]:
    outside = images.outside
    if absent := [*map(quoted, images.absent.values()), *images.not_images]:
        shown = ", ".join(absent[:_SHOWN_IMAGES])
        more = f" and {len(absent) - _SHOWN_IMAGES:,} more" if len(absent) > _SHOWN_IMAGES else ""
        yield (
            f"{plural(len(absent), 'image')} cannot be uploaded from here: {shown}{more}. Their "
            "rows will fail unless the images are in the bucket already."
        )
    if outside:
        yield (
            f"{plural(len(outside), 'image')} outside the folder of the CSV, such as "
            f"{quoted(outside[0])}: submit needs --allow-outside."
        )
    if survey.plain_http:
        yield (
            f"{plural(survey.plain_http, 'row')} with an image at http://, which is read only from "
            "hosts in the stack's TrustedImageHosts: write https://."
        )


def _retirements(totals: Estimate, secret: EndpointsSecret, today: date) -> Iterator[str]:
    """The end of models of endpoints that no row goes to first."""
    for endpoint in secret.endpoints:
        notice = retirement_notice(endpoint, endpoint.model, today)
        if notice is not None and notice not in totals.warnings:
            yield f"{endpoint.name}: {notice}."


def _warnings(totals: Estimate, secret: EndpointsSecret, seconds: float) -> Iterator[str]:
    for text, count in totals.warnings.items():
        yield f"{text} ({plural(count, 'row')})"
    if totals.open_quality and totals.expected_most > _WIDE * totals.least:
        yield (
            f"The price is this uncertain because {plural(totals.open_quality, 'row')} of the CSV "
            "leave the quality to the provider: --quality medium narrows it."
        )
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
        rows = describe_row(group.first_rows[0])
        if group.rows > 1:
            rows = f"{plural(group.rows, 'row')}, such as {rows}"
        session.note(f"  {rows}: {group.detail}")
    if len(failures.groups) > _SHOWN_GROUPS:
        session.note("  and more (--json lists all reasons)")


def _as_json(totals: Estimate, throughput: Throughput, seconds: float) -> dict[str, Any]:
    return {
        "rows": totals.rows,
        "to_do": totals.to_do,
        "kept": totals.kept,
        "kept_failed": totals.kept_failed,
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
        "within_budget": totals.within_budget,
        "open_quality_rows": totals.open_quality,
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
