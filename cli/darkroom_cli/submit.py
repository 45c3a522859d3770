"""`darkroom submit`: uploads the local images a CSV names, then the CSV itself."""

import csv
import json
import posixpath
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import typer

from darkroom.csv_input.reader import JobRow, JobRows
from darkroom.csv_input.values import parse_images
from darkroom.errors import RowRejected
from darkroom.formatting import EXAMPLES, examples, plural, quoted_list
from darkroom.jobs import JobOptions, Run, job_id
from darkroom.rows import RowRequest
from darkroom_cli.earlier_upload import EarlierUpload
from darkroom_cli.endpoints import load_current
from darkroom_cli.error_messages import CommandFailed
from darkroom_cli.estimate import Throughput, estimate
from darkroom_cli.image_upload import ImagePlan, plan_images, upload_images
from darkroom_cli.local_files import as_metadata, object_name, open_csv, open_for_writing
from darkroom_cli.row_names import describe_row, row_name
from darkroom_cli.session import Session
from darkroom_cli.status import Progress, watch

_CALL_SECONDS = 20.0  # has no effect on the price


@dataclass(frozen=True, slots=True)
class Upload:
    """What `darkroom submit` was asked to upload, and how."""

    path: Path
    to: str  # folder in the input bucket
    options: Mapping[str, object]
    wait: bool
    every: float
    allow_outside: bool = False
    label: str = ""  # added to the job's name, to submit one CSV as several jobs
    images_beside: Path | None = None  # relative paths start at its folder, not at the CSV's
    replace_images: bool = False  # edit the rows of changed images again
    assume_yes: bool = False  # do not ask before rows are edited again


def _key(upload: Upload) -> str:
    stem, dot, suffix = object_name(upload.path).rpartition(".csv")
    label = f".{upload.label}" if upload.label else ""
    return posixpath.join(upload.to.strip("/"), f"{stem}{label}{dot}{suffix}")


def submit(session: Session, upload: Upload) -> Progress | None:
    """Upload a CSV and its images. If it waits, the progress of the job at its end."""
    path, options = upload.path, upload.options
    rows, bucket = open_csv(path, options), session.stack.input_bucket
    key = _key(upload)
    job = job_id(key)
    with session.spinner("Reading the CSV"):
        survey = _survey(rows)
        plan = plan_images(survey.references, upload.images_beside or path, key)
    for warning in rows.columns.warnings:
        session.warn(warning)
    _check(session, survey, plan, upload)
    outside = len(plan.renamed)
    images = upload_images(
        session, plan, job, replace=upload.replace_images, resumes=rows.options.resume
    )
    _note_renamed(session, rows, plan, outside)
    _warn_of_dropped_budget(session, key, options)
    previous = session.stack.ledger.current(job) if upload.wait else None
    with _renamed_csv(path, rows, plan.renamed) as file:
        _confirm_edited_again(session, open_csv(file, options), job, ask=not upload.assume_yes)
        content_type = "application/gzip" if key.endswith(".gz") else "text/csv"
        version = bucket.put_file(key, file, content_type, as_metadata(options))
    session.note(f"Uploaded {path} to s3://{bucket.name}/{key}.")
    if not (upload.wait and session.json):  # with both, only the watch's JSON lines are printed
        counts = {"rows": survey.rows, "skipped": survey.skipped, "invalid": survey.invalid}
        session.print_result(job, {"job": job, "version": version} | counts | images)
    if not upload.wait:
        return None

    started = _has_started(version, previous)
    return watch(session, job, every=upload.every, started=started)


def _check(session: Session, survey: "_Survey", plan: ImagePlan, upload: Upload) -> None:
    """Warn of rows that will fail. Raises CommandFailed if nothing can or may be uploaded."""
    if plan.outside and not upload.allow_outside:
        raise CommandFailed(
            f"{plural(len(plan.outside), 'image')} outside the folder of {upload.path.name}: "
            f"{quoted_list(plan.outside)}. Nothing was uploaded; add --allow-outside to upload "
            f"{'them' if len(plan.outside) > 1 else 'it'} too."
        )
    if plan.not_images:
        session.warn(
            f"{plural(len(plan.not_images), 'file')} not uploaded, their rows will fail: "
            f"{examples(plan.not_images, len(plan.not_images))}."
        )
    if survey.invalid and survey.invalid == survey.rows - survey.skipped:
        raise CommandFailed(
            f"No row can be edited, so nothing was started: "
            f"{examples(survey.first_invalid, survey.invalid)}."
        )
    if survey.invalid:
        session.warn(
            f"{survey.invalid:,} of {plural(survey.rows, 'row')} will fail: "
            f"{examples(survey.first_invalid, survey.invalid)}."
        )


def _confirm_edited_again(session: Session, rows: JobRows, job: str, *, ask: bool) -> None:
    """Say how many rows would be paid for again. Raises Exit if the user does not want that."""
    earlier = EarlierUpload.find(session, job, rows.options)
    if earlier is None:
        return
    with session.spinner("Comparing with the earlier upload"):
        count = sum(1 for _ in earlier.edited_again(rows))
        price = _price(session, earlier.edited_again(rows), rows.options) if count else ""
    if not count:
        return
    cause = "their cells, their index or the job's options are not the same"
    session.warn(
        f"{plural(count, 'row')} edited in an earlier upload will be edited and paid for again, "
        f"{price}: {cause if rows.options.resume else '--no-resume'}."
    )
    question = f"Edit {plural(count, 'row')} again?"
    if ask and session.is_interactive and not typer.confirm(question, err=True):
        session.note("Nothing was started.")
        raise typer.Exit(1)


def _price(session: Session, rows: Iterable[JobRow], options: JobOptions) -> str:
    try:
        secret = load_current(session)
    except CommandFailed:  # the upload waits for one
        return "at a price that depends on the endpoints"
    mode = options.mode
    of_modes = estimate(
        rows, secret, Throughput(_CALL_SECONDS), session.today, options=options, modes=(mode,)
    )
    totals = of_modes[mode]
    if totals.unpriced and not totals.expected_most:
        return "at a price that is not known"
    return f"for about {totals.price}"


def _has_started(version: str | None, previous: Run | None) -> Callable[[Run], bool]:
    """Whether a run is that of the upload `version`; `previous` was current before it.

    Raises CommandFailed when the upload was rejected and the earlier run goes on.
    """
    known = previous.rejected_uploads if previous else ()

    def started(run: Run) -> bool:
        for rejected in run.rejected_uploads:
            if rejected.version_id == version and rejected not in known:
                raise CommandFailed(
                    f"The upload was rejected, and the earlier one of {run.job} goes on: "
                    f"{rejected.reason}"
                )
        # A still newer upload may have replaced it: that counts, or the wait would never end.
        return run.source.version_id == version or previous is None or run.run != previous.run

    return started


def _warn_of_dropped_budget(session: Session, key: str, options: Mapping[str, object]) -> None:
    last = (session.stack.input_bucket.metadata(key) or {}).get("budget-usd")
    if last is not None and "budget_usd" not in options:
        session.warn(
            f"The last upload had --budget-usd {last} and this one has no budget: its rows may "
            "cost more. Submit again with that option to limit the cost."
        )


def _note_renamed(session: Session, rows: JobRows, plan: ImagePlan, outside: int) -> None:
    """`outside` is the number of references that are not valid in the bucket."""
    if plan.replaced:
        used = _count_rows(rows, plan.replaced)
        session.note(
            f"{plural(len(plan.replaced), 'image')} replaced: {plural(used, 'row')} will be edited "
            "again."
        )
    if outside:
        session.note(
            f"{plural(outside, 'path')} outside the upload: the uploaded CSV uses the "
            f"{'names' if outside > 1 else 'name'} in the bucket instead."
        )


@dataclass(slots=True)
class _Survey:
    """Counts of a job's rows, and the image references of those to be done."""

    rows: int = 0
    skipped: int = 0
    invalid: int = 0
    first_invalid: list[str] = field(default_factory=list)  # the first few, with reasons
    references: dict[str, None] = field(default_factory=dict)  # in order, without duplicates


def _survey(rows: JobRows) -> _Survey:
    """Read the whole file. Raises JobRejected if it cannot be read or has no rows to do."""
    rows.check()
    survey = _Survey()
    for row in rows:
        survey.rows += 1
        if row.skipped:
            survey.skipped += 1
        elif isinstance(row.request, RowRejected):
            survey.invalid += 1
            if len(survey.first_invalid) < EXAMPLES:
                name = describe_row(row.row, row_name(rows.header, row.cells))
                survey.first_invalid.append(f"{name}: {row.request.detail}")
        else:
            survey.references.update(dict.fromkeys(row.request.references))
    return survey


def _count_rows(rows: JobRows, references: Collection[str]) -> int:
    """Of those to be done, the rows that use one of the references."""
    used = set(references)
    return sum(
        not row.skipped
        and isinstance(row.request, RowRequest)
        and not used.isdisjoint(row.request.references)
        for row in rows
    )


@contextmanager
def _renamed_csv(path: Path, rows: JobRows, renamed: Mapping[str, str]) -> Iterator[Path]:
    """The CSV itself, or a copy in UTF-8 with other image references; all other cells stay."""
    if not renamed:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="darkroom-") as scratch:
        copy = Path(scratch) / object_name(path)
        with open_for_writing(copy) as text:
            writer = csv.writer(text, delimiter=rows.csv.delimiter)
            writer.writerow(rows.csv.header)
            for cells in rows.csv.records():
                writer.writerow(_rename_references(rows, cells, renamed))
        yield copy


def _rename_references(
    rows: JobRows, cells: Sequence[str], renamed: Mapping[str, str]
) -> list[str]:
    changed = list(cells)
    for name in ("images", "mask"):
        position = rows.columns.positions.get(name)
        if position is None or position >= len(cells):
            continue
        cell = cells[position].strip()
        try:
            references = parse_images(cell) if name == "images" else (cell,)
        except ValueError:
            continue  # the row will fail with this problem
        if any(reference in renamed for reference in references):
            names = [renamed.get(reference, reference) for reference in references]
            changed[position] = (
                json.dumps(names, ensure_ascii=False) if name == "images" else names[0]
            )
    return changed
