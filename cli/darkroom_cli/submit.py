"""`darkroom submit`: uploads the local images a CSV names, then the CSV itself."""

import csv
import hashlib
import json
import posixpath
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress
from mimetypes import guess_type
from pathlib import Path

from darkroom.csv_input.reader import JobRows
from darkroom.csv_input.values import parse_images
from darkroom.errors import RowRejected
from darkroom.formatting import plural, quoted, quoted_list
from darkroom.jobs import JobOptions, Run, job_id
from darkroom_cli.error_messages import CommandFailed
from darkroom_cli.local_files import (
    as_metadata,
    content_problem,
    object_name,
    open_csv,
    open_for_writing,
)
from darkroom_cli.session import Session
from darkroom_cli.stack import PARALLEL_TRANSFERS, Bucket, StoredObject
from darkroom_cli.status import Progress, watch

_EXAMPLES = 3  # rows or images named in a warning
# Metadata of an uploaded image. The MD5 shows a change where the ETag cannot (KMS keys).
_MD5_METADATA, _JOB_METADATA = "darkroom-md5", "darkroom-job"


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
    with session.spinner(f"Reading {path.name}"):
        survey = _survey(rows)
        plan = plan_images(survey.references, upload.images_beside or path, key)
    for warning in rows.columns.warnings:
        session.warn(warning)
    if plan.outside and not upload.allow_outside:
        raise CommandFailed(
            f"{plural(len(plan.outside), 'image')} outside the folder of {path.name}: "
            f"{quoted_list(plan.outside)}. Nothing was uploaded; add --allow-outside to upload "
            f"{'them' if len(plan.outside) > 1 else 'it'} too."
        )
    if plan.not_images:
        session.warn(
            f"{plural(len(plan.not_images), 'file')} not uploaded, their rows will fail: "
            f"{_examples(plan.not_images[:_EXAMPLES], len(plan.not_images))}."
        )
    if survey.invalid and survey.invalid == survey.rows - survey.skipped:
        raise CommandFailed(
            f"No row can be edited, so nothing was started: "
            f"{_examples(survey.first_invalid, survey.invalid)}."
        )
    if survey.invalid:
        session.warn(
            f"{survey.invalid:,} of {plural(survey.rows, 'row')} will fail: "
            f"{_examples(survey.first_invalid, survey.invalid)}."
        )
    images = _upload_images(session, plan, job, rows.options)
    previous = session.stack.ledger.current(job) if upload.wait else None
    with _renamed_csv(session, path, rows, plan.renamed) as file:
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


def _examples(shown: Sequence[str], count: int) -> str:
    more = count - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more" if more > 0 else "")


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
            if len(survey.first_invalid) < _EXAMPLES:
                survey.first_invalid.append(f"row {row.row}: {row.request.detail}")
        else:
            survey.references.update(dict.fromkeys(row.request.images))
            if row.request.mask:
                survey.references[row.request.mask] = None
    return survey


@dataclass(slots=True)
class ImagePlan:
    """Where the CSV's image references are, and where they go in the input bucket."""

    found: dict[str, Path] = field(default_factory=dict)  # by key
    absent: dict[str, str] = field(default_factory=dict)  # key -> reference: not on this machine
    outside: list[str] = field(default_factory=list)  # files that are not in the CSV's folder
    not_images: list[str] = field(default_factory=list)  # by their contents, each with the problem
    renamed: dict[str, str] = field(default_factory=dict)  # reference -> its name in the upload


def plan_images(references: Iterable[str], csv_path: Path, key: str) -> ImagePlan:
    """Map local references to keys. Files in the CSV's folder keep their place relative to it.

    Others go to a folder named after the CSV. References that are not valid in the bucket
    (absolute paths, and those that leave the folder) are in `renamed`.
    """
    plan, csv_folder = ImagePlan(), csv_path.parent.resolve()
    prefix, csv_name = posixpath.split(key)
    stem = job_id(csv_name)
    for reference in references:
        if "://" in reference:
            continue
        given = Path(reference)
        path = (csv_path.parent / given).resolve()  # a symbolic link counts as what it leads to
        relative, is_file = posixpath.normpath(given.as_posix()), path.is_file()
        if is_file and (problem := content_problem(path)):
            plan.not_images.append(f"{quoted(reference)} {problem}")
            continue
        if is_file and not path.is_relative_to(csv_folder):
            plan.outside.append(reference)
        if (given.is_absolute() or relative.startswith("..")) and is_file:
            if path.is_relative_to(csv_folder):
                relative = path.relative_to(csv_folder).as_posix()
            else:
                digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
                relative = f"{stem}.images/{digest}-{path.name}"
            plan.renamed[reference] = relative
        target = posixpath.normpath(posixpath.join(prefix, relative))
        if is_file:
            plan.found[target] = path
        else:
            plan.absent[target] = reference
    return plan


def _upload_images(
    session: Session, plan: ImagePlan, job: str, options: JobOptions
) -> dict[str, object]:
    """Upload images that are missing or changed in the bucket. Returns their counts for --json.

    Raises CommandFailed if an upload would overwrite another job's image with a different one.
    """
    bucket = session.stack.input_bucket
    with session.spinner("Comparing images with those in the bucket"):
        stored = _stored_objects(bucket, {*plan.found, *plan.absent})
        existing = [key for key in plan.found if key in stored]
        with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
            differ = pool.map(
                lambda k: _is_changed(plan.found[k], stored[k], bucket, job), existing
            )
            changed = list(compress(existing, differ))
    missing = [reference for key, reference in plan.absent.items() if key not in stored]
    if missing:
        session.warn(
            f"{plural(len(missing), 'image')} found neither here nor in the bucket, their rows "
            f"will fail: {_examples(missing[:_EXAMPLES], len(missing))}."
        )
    keys = [*(key for key in plan.found if key not in stored), *changed]
    unchanged = len(existing) - len(changed)
    if keys:
        session.run_parallel(
            "Uploading images", lambda k: _upload(bucket, k, plan.found[k], job), keys
        )
    if plan.found:
        session.note(f"{plural(len(keys), 'image')} uploaded, {unchanged:,} already there.")
    if changed and options.resume:
        session.warn(
            f"{plural(len(changed), 'image')} changed since the last upload; rows that succeeded "
            "with the old ones are kept: add --no-resume to edit them again."
        )
    return {
        "images_uploaded": len(keys),
        "images_unchanged": unchanged,
        "images_missing": missing,
    }


def _stored_objects(bucket: Bucket, keys: set[str]) -> Mapping[str, StoredObject]:
    """Those of the keys that exist, with few requests: one listing per folder."""
    found: dict[str, StoredObject] = {}
    for folder in {posixpath.dirname(key) for key in keys}:
        prefix = f"{folder}/" if folder else ""
        found |= {o.key: o for o in bucket.list(prefix, shallow=True) if o.key in keys}
    return found


def _is_changed(path: Path, stored: StoredObject, bucket: Bucket, job: str) -> bool:
    digest = _md5(path) if path.stat().st_size == stored.size else ""
    if digest == stored.etag:
        return False
    metadata = bucket.metadata(stored.key) or {}
    if digest and metadata.get(_MD5_METADATA) == digest:
        return False
    owner = metadata.get(_JOB_METADATA, job)
    if owner != job:
        raise CommandFailed(
            f"{path} would overwrite another image, {stored.key} of job {owner}: submit with "
            "another --to, so that both jobs keep their images."
        )
    return True


def _md5(path: Path) -> str:
    with path.open("rb") as body:
        return hashlib.file_digest(body, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _upload(bucket: Bucket, key: str, path: Path, job: str) -> None:
    content_type = guess_type(path.name)[0] or "application/octet-stream"
    bucket.put_file(key, path, content_type, {_MD5_METADATA: _md5(path), _JOB_METADATA: job})


@contextmanager
def _renamed_csv(
    session: Session, path: Path, rows: JobRows, renamed: Mapping[str, str]
) -> Iterator[Path]:
    """The CSV itself, or a copy in UTF-8 with other image references; all other cells stay."""
    if not renamed:
        yield path
        return
    session.note(
        f"{plural(len(renamed), 'path')} outside the upload: the uploaded CSV uses the "
        f"{'names' if len(renamed) > 1 else 'name'} in the bucket instead."
    )
    with tempfile.TemporaryDirectory(prefix="darkroom-") as scratch:
        copy = Path(scratch) / object_name(path)
        with open_for_writing(copy) as text:
            writer = csv.writer(text, delimiter=rows.csv.delimiter)
            writer.writerow(rows.csv.header)
            for record in rows.csv.records():
                writer.writerow(_rename_references(rows, record.cells, renamed))
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
