"""`darkroom submit`: uploads the local images a CSV names, then the CSV itself."""

import csv
import gzip
import hashlib
import io
import json
import posixpath
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.header import Header
from mimetypes import guess_type
from pathlib import Path
from typing import IO

from darkroom.csv_input.fields import parse_options
from darkroom.csv_input.reader import JobRows, read_job_rows
from darkroom.csv_input.values import parse_images
from darkroom.errors import JobRejected, RowRejected
from darkroom.formatting import plural
from darkroom.jobs import JobOptions, job_id
from darkroom_cli.error_messages import CommandFailed, UsageMistake
from darkroom_cli.session import Session
from darkroom_cli.stack import PARALLEL_TRANSFERS, Bucket, StoredObject
from darkroom_cli.status import Upload, watch

_CHUNK_BYTES = 1 << 20
_SUFFIXES = (".csv.gz", ".csv")
_EXAMPLES = 3  # rows or images named in a warning
# Metadata of an uploaded image. The MD5 shows a change where the ETag cannot (KMS keys).
_MD5_METADATA, _JOB_METADATA = "darkroom-md5", "darkroom-job"


@dataclass(frozen=True, slots=True)
class JobCsv:
    """A local CSV, opened with its job options."""

    path: Path
    name: str  # of the uploaded object: the file's name with a lower-case suffix
    rows: JobRows
    metadata: Mapping[str, str]  # the job options as the object's user metadata


def open_csv(path: Path, options: Mapping[str, object]) -> JobCsv:
    """Read the header row.

    Raises UsageMistake (name or options), JobRejected (contents), with the job's own sentences.
    """
    metadata = {
        name.replace("_", "-"): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in options.items()
        if value is not None
    }
    try:
        parsed = parse_options(metadata)
    except JobRejected as error:
        raise UsageMistake(str(error)) from error
    name = _object_name(path)

    def open_bytes(offset: int) -> Iterator[bytes]:
        with path.open("rb") as body:
            body.seek(offset)
            while chunk := body.read(_CHUNK_BYTES):
                yield chunk

    encoded = {name: _encode_metadata(value) for name, value in metadata.items()}
    return JobCsv(path, name, read_job_rows(open_bytes, parsed), encoded)


def _object_name(path: Path) -> str:
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)] + suffix
    raise UsageMistake(f"{path}: the name must end in .csv or .csv.gz, or no job would start.")


def _encode_metadata(value: str) -> str:
    """S3 takes ASCII only: other text is sent as RFC 2047 encoded words."""
    return value if value.isascii() else Header(value, "utf-8", maxlinelen=10_000).encode()


def submit(
    session: Session,
    path: Path,
    to: str,
    options: Mapping[str, object],
    *,
    wait: bool,
    every: float,
) -> None:
    job_csv = open_csv(path, options)
    key = posixpath.join(to.strip("/"), job_csv.name)
    job = job_id(key)
    with session.spinner(f"Reading {path.name}"):
        survey = _survey(job_csv.rows)
        plan = _plan_images(survey.references, path, key)
    if survey.invalid:
        session.warn(
            f"{survey.invalid:,} of {plural(survey.rows, 'row')} will fail: "
            f"{_examples(survey.first_invalid, survey.invalid)}."
        )
    sent = _send_images(session, plan, job, job_csv.rows.options)
    previous = session.stack.ledger.current(job) if wait else None
    version = _send_csv(session, job_csv, key, plan.renamed)
    session.note(f"Uploaded {path} to s3://{session.stack.input_bucket.name}/{key}.")
    if not (wait and session.json):  # with both, only the watch's JSON lines are printed
        session.print_result(job, _as_json(job, version, survey, sent))
    if wait:
        upload = Upload(version, previous.run if previous else None)
        watch(session, job, every=every, upload=upload)


def _as_json(
    job: str, version: str | None, survey: "_Survey", sent: "_ImagesToSend"
) -> dict[str, object]:
    return {
        "job": job,
        "version": version,
        "rows": survey.rows,
        "skipped": survey.skipped,
        "invalid": survey.invalid,
        "images_uploaded": len(sent.new) + len(sent.changed),
        "images_unchanged": sent.unchanged,
        "images_missing": list(sent.missing),
    }


def _examples(shown: Sequence[str], count: int) -> str:
    more = count - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more" if more > 0 else "")


@dataclass(slots=True)
class _Survey:
    """Counts of a job's rows, and the image references of those to be done."""

    rows: int = 0
    skipped: int = 0
    invalid: int = 0
    first_invalid: list[str] = field(default_factory=list)  # why, for the first few
    references: dict[str, None] = field(default_factory=dict)  # in order, without duplicates


def _survey(rows: JobRows) -> _Survey:
    """Read the whole file. Raises JobRejected if it cannot be read or has no rows to do."""
    for _ in rows.check():
        pass
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


@dataclass(frozen=True, slots=True)
class _LocalImage:
    path: Path
    key: str  # in the input bucket


@dataclass(slots=True)
class _ImagePlan:
    """Where the CSV's image references are, and where they go in the input bucket."""

    found: dict[str, _LocalImage] = field(default_factory=dict)  # by key
    absent: dict[str, str] = field(default_factory=dict)  # key -> reference: not on this machine
    renamed: dict[str, str] = field(default_factory=dict)  # reference -> its name in the upload


def _plan_images(references: Iterable[str], csv_path: Path, key: str) -> _ImagePlan:
    """Map local references to keys. Files in the CSV's folder keep their place relative to it.

    Others go to a folder named after the CSV. References that do not hold in the bucket (absolute
    paths, and those that leave the folder) are in `renamed`.
    """
    plan, csv_folder = _ImagePlan(), csv_path.parent.resolve()
    prefix, csv_name = posixpath.split(key)
    stem = csv_name.removesuffix(".gz").removesuffix(".csv")
    for reference in references:
        if "://" in reference:
            continue
        given = Path(reference)
        path = (csv_path.parent / given).resolve()
        relative = posixpath.normpath(given.as_posix())
        if (given.is_absolute() or relative.startswith("..")) and path.is_file():
            if path.is_relative_to(csv_folder):
                relative = path.relative_to(csv_folder).as_posix()
            else:
                digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
                relative = f"{stem}.images/{digest}-{path.name}"
            plan.renamed[reference] = relative
        target = posixpath.normpath(posixpath.join(prefix, relative))
        if path.is_file():
            plan.found[target] = _LocalImage(path, target)
        else:
            plan.absent[target] = reference
    return plan


@dataclass(frozen=True, slots=True)
class _ImagesToSend:
    new: tuple[_LocalImage, ...]
    changed: tuple[_LocalImage, ...]
    unchanged: int
    missing: tuple[str, ...]  # references found neither here nor in the bucket


def _send_images(
    session: Session, plan: _ImagePlan, job: str, options: JobOptions
) -> _ImagesToSend:
    bucket = session.stack.input_bucket
    with session.spinner("Comparing images with those in the bucket"):
        to_send = _compare(plan, bucket, job)
    if to_send.missing:
        examples = _examples(to_send.missing[:_EXAMPLES], len(to_send.missing))
        session.warn(
            f"{plural(len(to_send.missing), 'image')} found neither here nor in the bucket, their "
            f"rows will fail: {examples}."
        )
    images = (*to_send.new, *to_send.changed)
    if images:
        session.run_parallel("Uploading images", lambda i: _upload(bucket, i, job), images)
    if plan.found:
        session.note(
            f"{plural(len(images), 'image')} uploaded, {to_send.unchanged:,} already there."
        )
    if to_send.changed and options.resume:
        session.warn(
            f"{plural(len(to_send.changed), 'image')} changed since the last upload; rows that "
            "succeeded with the old ones are kept: add --no-resume to edit them again."
        )
    return to_send


def _compare(plan: _ImagePlan, bucket: Bucket, job: str) -> _ImagesToSend:
    """Find what is missing or changed in the bucket, with few requests: one listing per folder.

    Raises CommandFailed if an upload would overwrite another job's image with a different one.
    """
    stored = _stored_objects(bucket, {*plan.found, *plan.absent})
    new = [image for key, image in plan.found.items() if key not in stored]
    existing = [image for key, image in plan.found.items() if key in stored]
    with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
        verdicts = list(pool.map(lambda i: _is_changed(i, stored[i.key], bucket, job), existing))
    changed = [image for image, differs in zip(existing, verdicts, strict=True) if differs]
    missing = tuple(ref for key, ref in plan.absent.items() if key not in stored)
    return _ImagesToSend(tuple(new), tuple(changed), len(existing) - len(changed), missing)


def _stored_objects(bucket: Bucket, keys: set[str]) -> Mapping[str, StoredObject]:
    found: dict[str, StoredObject] = {}
    for folder in {posixpath.dirname(key) for key in keys}:
        prefix = f"{folder}/" if folder else ""
        found |= {o.key: o for o in bucket.list(prefix, shallow=True) if o.key in keys}
    return found


def _is_changed(image: _LocalImage, stored: StoredObject, bucket: Bucket, job: str) -> bool:
    digest = _md5(image.path) if image.path.stat().st_size == stored.size else ""
    if digest == stored.etag:
        return False
    metadata = bucket.metadata(image.key) or {}
    if digest and metadata.get(_MD5_METADATA) == digest:
        return False
    owner = metadata.get(_JOB_METADATA, job)
    if owner != job:
        raise CommandFailed(
            f"{image.path} would overwrite another image, {image.key} of job {owner}: submit with "
            "another --to, so that both jobs keep their images."
        )
    return True


def _md5(path: Path) -> str:
    with path.open("rb") as body:
        return hashlib.file_digest(body, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _upload(bucket: Bucket, image: _LocalImage, job: str) -> None:
    content_type = guess_type(image.path.name)[0] or "application/octet-stream"
    metadata = {_MD5_METADATA: _md5(image.path), _JOB_METADATA: job}
    bucket.put_file(image.key, image.path, content_type, metadata)


def _send_csv(
    session: Session, job_csv: JobCsv, key: str, renamed: Mapping[str, str]
) -> str | None:
    bucket = session.stack.input_bucket
    content_type = "application/gzip" if key.endswith(".gz") else "text/csv"
    if not renamed:
        return bucket.put_file(key, job_csv.path, content_type, job_csv.metadata)
    session.note(
        f"{plural(len(renamed), 'path')} outside the upload: the uploaded CSV uses the "
        f"{'names' if len(renamed) > 1 else 'name'} in the bucket instead."
    )
    with tempfile.TemporaryDirectory(prefix="darkroom-") as scratch:
        copy = Path(scratch) / posixpath.basename(key)
        _write_renamed(job_csv.rows, renamed, copy)
        return bucket.put_file(key, copy, content_type, job_csv.metadata)


def _write_renamed(rows: JobRows, renamed: Mapping[str, str], target: Path) -> None:
    """Write the same CSV, in UTF-8, with other image references; all other cells stay."""
    with _open_text(target) as text:
        writer = csv.writer(text, delimiter=rows.csv.delimiter)
        writer.writerow(rows.csv.header)
        for record in rows.csv.records():
            writer.writerow(_rename_references(rows, record.cells, renamed))


def _open_text(target: Path) -> IO[str]:
    if target.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(target, "wb"), encoding="utf-8", newline="")
    return target.open("w", encoding="utf-8", newline="")


def _rename_references(
    rows: JobRows, cells: Sequence[str], renamed: Mapping[str, str]
) -> list[str]:
    changed = list(cells)
    images = rows.columns.positions.get("images")
    if images is not None and images < len(cells):
        changed[images] = _rename_list(cells[images], renamed)
    mask = rows.columns.positions.get("mask")
    if mask is not None and mask < len(cells):
        changed[mask] = renamed.get(cells[mask].strip(), cells[mask])
    return changed


def _rename_list(cell: str, renamed: Mapping[str, str]) -> str:
    try:
        references = parse_images(cell.strip())
    except ValueError:
        return cell  # the row will fail with this problem
    if not any(reference in renamed for reference in references):
        return cell
    names = [renamed.get(reference, reference) for reference in references]
    return json.dumps(names, ensure_ascii=False)
