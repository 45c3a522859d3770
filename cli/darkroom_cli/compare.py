"""`darkroom compare`: one page with the rows of several jobs side by side."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.parse import quote

from darkroom.csv_input.fields import COLUMN_FIELDS, normalize_name
from darkroom.formatting import duration, money, redact_url
from darkroom.jobs import ResultPaths
from darkroom.report.html import page_environment
from darkroom.report.manifest import INSTRUCTION_SENT, own_columns, unguard
from darkroom.rows import RowState
from darkroom_cli.download import app_folder, fetch_results, job_folder
from darkroom_cli.error_messages import CommandFailed, UsageMistake
from darkroom_cli.session import Session
from darkroom_cli.status import find_run

_TEMPLATES = Path(__file__).parent / "templates"
MAX_ROWS = 500  # of one page; a comparison is made of a trial
_COLUMNS = {
    f.name: f.columns for f in COLUMN_FIELDS if f.name in ("instruction", "index", "images")
}


@dataclass(frozen=True, slots=True)
class _Line:
    """A row of one job, from its manifest. Images by path relative to the page."""

    number: int
    name: str
    instruction: str
    status: str
    reason: str
    detail: str
    model: str
    fallback: bool
    cost: float | None  # US dollars; None: not known
    seconds: float | None
    images: tuple[str, ...]
    before: str | None

    @property
    def facts(self) -> list[str]:
        price = "price not known" if self.cost is None else money(self.cost)
        return [self.model, price, *([duration(self.seconds)] if self.seconds else [])]


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    lines: Mapping[int, _Line] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        return sorted({line.model for line in self.lines.values() if line.model})

    @property
    def succeeded(self) -> int:
        return sum(line.status == RowState.SUCCEEDED for line in self.lines.values())

    @property
    def cost(self) -> float:
        return sum(line.cost or 0.0 for line in self.lines.values())

    @property
    def median_seconds(self) -> float | None:
        seconds = [line.seconds for line in self.lines.values() if line.seconds]
        return median(seconds) if seconds else None


def compare(session: Session, names: Sequence[str], folder: Path | None) -> None:
    """Download the jobs into `folder` and write its compare.html; open it on a terminal."""
    if len(names) == 1:
        raise UsageMistake("Name at least two jobs to compare.")
    jobs = [find_run(session, name).job for name in names]
    root = folder or app_folder(session) / "comparisons"
    compared = []
    for job in jobs:
        fetch_results(session, job, job_folder(root, job))
        compared.append(_Job(job, _read(root, job)))
    page = root / "compare.html"
    page.write_text(_render(compared), encoding="utf-8")
    if session.shows_progress:
        session.wiring.launch(page.resolve().as_uri())
    session.print_result(str(page), {"page": str(page), "jobs": [_totals(job) for job in compared]})


def _totals(job: _Job) -> dict[str, object]:
    return {
        "job": job.name,
        "models": job.models,
        "rows": len(job.lines),
        "succeeded": job.succeeded,
        "cost_usd": job.cost,
        "median_seconds": job.median_seconds,
    }


def _read(root: Path, job: str) -> dict[int, _Line]:
    """The job's rows by number, those skipped by filter-rows left out."""
    path = root / job / "manifest.csv"
    if not path.exists():
        raise CommandFailed(f"Job {job} is not done: `darkroom status {job} --watch`.")
    lines: dict[int, _Line] = {}
    with path.open(encoding="utf-8", newline="") as text:
        reader = csv.reader(text)
        header = next(reader)
        ours = own_columns(header)
        columns = [normalize_name(name) for name in header[: -len(ours)]]
        for cells in reader:
            own = dict(zip(ours, map(unguard, cells[-len(ours) :]), strict=True))
            if own["status"] == RowState.SKIPPED:
                continue
            given = dict(zip(columns, map(unguard, cells), strict=False))
            if len(lines) == MAX_ROWS:
                raise CommandFailed(
                    f"Job {job} has more than {MAX_ROWS} rows, more than a page can show: compare "
                    "jobs that were submitted with --try."
                )
            lines[int(own["row"])] = _line(root, job, given, own)
    return lines


def _line(root: Path, job: str, given: Mapping[str, str], own: Mapping[str, str]) -> _Line:
    row = int(own["row"])
    texts = {name: next(filter(None, map(given.get, of)), "") for name, of in _COLUMNS.items()}
    outputs = own["output"].split("|")
    before = ResultPaths(job).thumb(outputs[0], "before")
    found = [path for path in outputs if path and (root / path).exists()]
    return _Line(
        number=row,
        name=texts["index"] or redact_url(texts["images"]) or f"row {row}",
        instruction=given.get(INSTRUCTION_SENT) or texts["instruction"],
        status=own["status"],
        reason=own["reason"],
        detail=own["detail"],
        model=own["model"],
        fallback=own["fallback"] == "true",
        cost=float(own["cost_usd"]) if own["cost_usd"] else None,
        seconds=float(own["latency_ms"]) / 1000 if own["latency_ms"] else None,
        images=tuple(quote(path) for path in found),
        before=quote(before) if (root / before).exists() else None,
    )


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    name: str
    instruction: str
    before: str | None
    lines: list[_Line | None]  # one for each job


def _render(jobs: Sequence[_Job]) -> str:
    rows = []
    for number in sorted({number for job in jobs for number in job.lines}):
        lines = [job.lines.get(number) for job in jobs]
        present = [line for line in lines if line is not None]
        before = next((line.before for line in present if line.before), None)
        rows.append(_Row(number, present[0].name, present[0].instruction, before, lines))
    template = page_environment(_TEMPLATES).get_template("compare.html")
    stylesheet = (_TEMPLATES / "compare.css").read_text(encoding="utf-8")
    return template.render(jobs=jobs, rows=rows, stylesheet=stylesheet, script=None)
