"""`darkroom quote`: rows, cost and time of a job before it is started."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from darkroom.csv_input.reader import JobRow, JobRows
from darkroom.endpoints import EndpointsSecret
from darkroom.formatting import duration, money, plural, quoted
from darkroom.jobs import job_id
from darkroom.models.catalog import retirement_notice
from darkroom.rows import Mode, RowRequest
from darkroom.splitter import ResumeDecision
from darkroom_cli.earlier_upload import KEPT, EarlierUpload
from darkroom_cli.endpoints import load_current, load_file
from darkroom_cli.estimate import (
    RETENTION_SECONDS,
    Estimate,
    FailureGroup,
    FailureGroups,
    Throughput,
    estimate,
)
from darkroom_cli.image_upload import ImagePlan, plan_images
from darkroom_cli.local_files import csv_of_folder, object_name, open_csv
from darkroom_cli.row_names import describe_row
from darkroom_cli.session import Session

_SHOWN_GROUPS = 10
_SHOWN_IMAGES = 3
_WIDE = 3  # times the least cost: such a range is explained
_DEFAULT_WORKERS = 40  # the template's WorkerProcesses times RowsPerWorker
_CALL_SECONDS = 20.0
# Answers take 1 to 15 minutes: https://ai.google.dev/gemini-api/docs/flex-inference.
_FLEX_CALL_SECONDS = 480.0
_COMPARED: tuple[Mode, ...] = ("live", "batch")  # shown beside the job's own mode


def quote(
    session: Session,
    csv: Path,
    options: Mapping[str, object],
    *,
    to: str,
    call_seconds: float | None = None,
    endpoints: Path | None = None,
    workers: int | None = None,
) -> None:
    """With an `endpoints` file no stack is needed, and no earlier upload is known."""
    path = csv_of_folder(session, csv, options) if csv.is_dir() else csv
    rows = open_csv(path, options)
    secret = load_current(session) if endpoints is None else load_file(endpoints)
    if workers is None:
        workers = session.stack.workers if endpoints is None else _DEFAULT_WORKERS
    mode = rows.options.mode
    quotes = _Quotes(
        secret,
        mode,
        Throughput(call_seconds or _CALL_SECONDS, workers),
        Throughput(call_seconds or _FLEX_CALL_SECONDS, workers),
    )
    survey = _Survey(rows)
    key = posixpath.join(to.strip("/"), object_name(path))
    if endpoints is None:
        survey.earlier = EarlierUpload.find(session, job_id(key), rows.options)
    with session.spinner("Reading the CSV"):
        rows.check()
        quotes.of_modes = estimate(
            survey.rows_to_do(),
            secret,
            quotes.of_calls,
            session.today,
            options=rows.options,
            modes=dict.fromkeys((mode, *_COMPARED)),
        )
        images = plan_images(survey.references, path, key)
    for totals in quotes.of_modes.values():
        totals.kept, totals.kept_failed = survey.kept, survey.kept_failed
        totals.rows += survey.kept + survey.kept_failed
    if session.json:
        absent = [*images.absent.values(), *images.not_images]
        session.print_json(_as_json(quotes) | {"images_missing": absent})
    else:
        _print(session, quotes, survey, images)


def _print(session: Session, quotes: "_Quotes", survey: "_Survey", images: ImagePlan) -> None:
    totals, rows = quotes.totals, survey.rows
    session.print_fields(_fields(quotes, rows.options.budget_micro_usd))
    _print_groups(session, "Rows that will fail", totals.invalid)
    _print_groups(session, "Rows that no endpoint can take", totals.impossible)
    _print_groups(
        session, "Rows that cannot be in a batch, edited live at the full price", totals.not_batched
    )
    for warning in (
        *rows.columns.warnings,
        *_warnings(totals, quotes.secret, quotes.seconds(quotes.mode)),
        *_image_warnings(images, survey),
        *_retirements(totals, quotes.secret, session.today),
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
        named = request.references
        self.references.update(dict.fromkeys(named))
        self.plain_http += any(name.lower().startswith("http://") for name in named)


@dataclass(slots=True)
class _Quotes:
    """The estimates of a job in its own mode, and in the others that it might have."""

    secret: EndpointsSecret
    mode: Mode
    of_calls: Throughput
    of_flex: Throughput
    of_modes: dict[Mode, Estimate] = field(default_factory=dict)

    @property
    def totals(self) -> Estimate:
        return self.of_modes[self.mode]

    def throughput(self, mode: Mode) -> Throughput:
        of_calls = self.of_flex if mode == "flex" else self.of_calls
        return self.of_modes[mode].throughput(of_calls)

    def seconds(self, mode: Mode) -> float:
        return self.of_modes[mode].seconds(self.throughput(mode), self.secret)

    def time(self, mode: Mode) -> str:
        if self.of_modes[mode].requests:
            return "within 24 hours"
        throughput = self.throughput(mode)
        assumption = f"if a call takes {throughput.call_seconds:g} s and no provider fails"
        return f"about {duration(self.seconds(mode))}, {assumption}"

    def others(self) -> Iterator[tuple[str, str]]:
        """What the job would cost in the other modes, and how long it would take."""
        for mode in self.of_modes:
            if mode == self.mode or not self.totals.to_do:
                continue
            if mode == "batch":
                yield "with --batch", self._in_batches()
            else:
                yield f"with --mode {mode}", f"{_cost(self.of_modes[mode])}; {self.time(mode)}"

    def _in_batches(self) -> str:
        totals = self.of_modes["batch"]
        left_out = [*totals.not_batched.groups.values()] or [*totals.impossible.groups.values()]
        if not totals.requests:
            return f"not offered: {_details(left_out)}"
        text = f"{_cost(totals)}; {self.time('batch')}"
        if totals.not_batched.count:
            rows = plural(totals.not_batched.count, "row")
            text += f"; {rows} of these live, at the full price: {_details(left_out)}"
        return text


def _details(groups: Sequence[FailureGroup]) -> str:
    """Of the first group, and whether there are more."""
    if not groups:
        return "no row can be in a batch"
    more = f" (and {len(groups) - 1} other reasons)" if len(groups) > 1 else ""
    return f"{groups[0].detail}{more}"


def _fields(quotes: _Quotes, budget: int | None) -> Iterator[tuple[str, str]]:
    totals = quotes.totals
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
    yield "time", quotes.time(quotes.mode)
    yield from quotes.others()
    for name, requests in totals.requests.items():
        yield "endpoint", f"{name}: {plural(requests, 'request')} in batches"
    for name, calls in totals.calls.items():
        yield "endpoint", f"{name}: {plural(calls, 'call')}"


def _cost(totals: Estimate) -> str:
    text = totals.price
    if totals.most > totals.expected_most:
        case = "batches leave rows to live calls" if totals.requests else "rows fall back"
        text += f"; up to {money(totals.most / 1e6)} if {case}"
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


def _cost_as_json(totals: Estimate) -> dict[str, float]:
    return {
        "least": totals.least / 1e6,
        "expected_most": totals.expected_most / 1e6,
        "most": totals.most / 1e6,
    }


def _mode_as_json(quotes: _Quotes, mode: Mode) -> dict[str, Any]:
    totals = quotes.of_modes[mode]
    return {
        "to_do": totals.to_do,
        "cost_usd": _cost_as_json(totals),
        "seconds": round(quotes.seconds(mode), 1),
        "within_budget": totals.within_budget,
        "impossible": totals.impossible.count,
        "impossible_reasons": [asdict(group) for group in totals.impossible.groups.values()],
        "not_batched": totals.not_batched.count,
        "not_batched_reasons": [asdict(group) for group in totals.not_batched.groups.values()],
    }


def _as_json(quotes: _Quotes) -> dict[str, Any]:
    totals, throughput = quotes.totals, quotes.throughput(quotes.mode)
    seconds = quotes.seconds(quotes.mode)
    return {
        "mode": quotes.mode,
        "modes": {mode: _mode_as_json(quotes, mode) for mode in quotes.of_modes},
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
        "cost_usd": _cost_as_json(totals),
        "within_budget": totals.within_budget,
        "open_quality_rows": totals.open_quality,
        "unpriced_rows": totals.unpriced,
        "unpriced_models": sorted(totals.unpriced_models),
        "seconds": round(seconds, 1),
        "call_seconds": throughput.call_seconds,
        "workers": throughput.workers,
        "calls": dict(totals.calls),
        "requests": dict(totals.requests),
        "exceeds_retention": seconds > RETENTION_SECONDS,
        "beyond_a_day": dict(totals.over_daily_limit),
        "warnings": dict(totals.warnings),
    }
