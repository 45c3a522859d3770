"""`darkroom submit`: uploads the local images a CSV names, then the CSV itself."""

import csv
import hashlib
import json
import posixpath
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress
from mimetypes import guess_type
from pathlib import Path

import typer

from darkroom.csv_input.reader import JobRow, JobRows
from darkroom.csv_input.values import parse_images
from darkroom.errors import RowRejected
from darkroom.formatting import plural, quoted, quoted_list
from darkroom.jobs import JobOptions, Run, job_id
from darkroom.rows import RowRequest
from darkroom_cli.earlier_upload import EarlierUpload
from darkroom_cli.endpoints import load_current
from darkroom_cli.error_messages import CommandFailed
from darkroom_cli.estimate import Throughput, estimate
from darkroom_cli.local_files import (
    as_metadata,
    content_problem,
    object_name,
    open_csv,
    open_for_writing,
)
from darkroom_cli.row_names import describe_row, row_name
from darkroom_cli.session import Session
from darkroom_cli.stack import PARALLEL_TRANSFERS, Bucket, StoredObject
from darkroom_cli.status import Progress, watch

_CALL_SECONDS = 20.0  # has no effect on the price
_EXAMPLES = 3  # rows or images named in a warning
# Metadata of an uploaded image. The MD5 shows a change where the ETag cannot (KMS keys).
_MD5_METADATA, _JOB_METADATA = "darkroom-md5", "darkroom-job"
_IMAGES_FOLDER = ".images"  # appended to the job's name: images that cannot have a place beside it
# The image took the place of another one of this name, and the rows made with that one were kept.
_CHANGED_METADATA = "darkroom-changed"


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
    outside = len(plan.renamed)
    images = _upload_images(session, plan, job, upload, resumes=rows.options.resume)
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


def _note_renamed(session: Session, rows: JobRows, plan: "ImagePlan", outside: int) -> None:
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
                name = describe_row(row.row, row_name(rows.header, row.cells))
                survey.first_invalid.append(f"{name}: {row.request.detail}")
        else:
            survey.references.update(dict.fromkeys(_references(row.request)))
    return survey


def _references(request: RowRequest) -> list[str]:
    return [*request.images, *([request.mask] if request.mask else [])]


def _count_rows(rows: JobRows, references: Collection[str]) -> int:
    """Of those to be done, the rows that use one of the references."""
    used = set(references)
    return sum(
        not row.skipped
        and isinstance(row.request, RowRequest)
        and not used.isdisjoint(_references(row.request))
        for row in rows
    )


@dataclass(slots=True)
class ImagePlan:
    """Where the CSV's image references are, and where they go in the input bucket."""

    found: dict[str, Path] = field(default_factory=dict)  # by key
    absent: dict[str, str] = field(default_factory=dict)  # key -> reference: not on this machine
    outside: list[str] = field(default_factory=list)  # files that are not in the CSV's folder
    not_images: list[str] = field(default_factory=list)  # by their contents, each with the problem
    renamed: dict[str, str] = field(default_factory=dict)  # reference -> its name in the upload
    references: dict[str, list[str]] = field(default_factory=dict)  # of each key in `found`
    replaced: list[str] = field(default_factory=list)  # references of images uploaded anew

    def move(self, key: str, to: str, name: str) -> None:
        """Upload the image of `key` under another key, which the CSV names `name`."""
        self.found[to] = self.found.pop(key)
        self.references[to] = [*self.references.get(to, []), *self.references.pop(key)]
        self.renamed.update(dict.fromkeys(self.references[to], name))


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
                relative = f"{stem}{_IMAGES_FOLDER}/{digest}/{path.name}"
            plan.renamed[reference] = relative
        target = posixpath.normpath(posixpath.join(prefix, relative))
        if is_file:
            plan.found[target] = path
            plan.references.setdefault(target, []).append(reference)
        else:
            plan.absent[target] = reference
    return plan


def _upload_images(
    session: Session, plan: ImagePlan, job: str, upload: Upload, *, resumes: bool
) -> dict[str, object]:
    """Upload images that are missing or changed in the bucket. Returns their counts for --json.

    Raises CommandFailed if an upload would overwrite another job's image with a different one.
    """
    bucket, replace_images = session.stack.input_bucket, upload.replace_images
    with session.spinner("Comparing images with those in the bucket"):
        keys = [*plan.found]
        with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
            images = zip(keys, pool.map(lambda k: _md5(plan.found[k]), keys), strict=True)
            digests = dict(images)
            by_content = {k: _key_by_content(job, k, digests[k]) for k in keys}
            wanted = {*keys, *by_content.values(), *plan.absent}
            stored = _stored_objects(bucket, wanted, f"{job}{_IMAGES_FOLDER}/")
            # A replacement keeps its own key in later uploads, or its rows would be edited again.
            replaced_before = [key for key in keys if by_content[key] in stored]
            existing = [key for key in keys if key in stored and key not in replaced_before]
            differ = pool.map(
                lambda k: _is_changed(
                    plan.found[k], digests[k], stored[k], bucket, job, replace=replace_images
                ),
                existing,
            )
            changed = list(compress(existing, differ))
    missing = [reference for key, reference in plan.absent.items() if key not in stored]
    if missing:
        session.warn(
            f"{plural(len(missing), 'image')} found neither here nor in the bucket, their rows "
            f"will fail: {_examples(missing[:_EXAMPLES], len(missing))}."
        )
    new = [key for key in keys if key not in stored and key not in replaced_before]
    if replace_images:
        plan.replaced = [reference for key in changed for reference in plan.references[key]]
        new += [by_content[key] for key in changed]
        moved = [*replaced_before, *changed]
    else:
        new += changed
        moved = replaced_before
    for key in moved:
        plan.move(key, by_content[key], posixpath.relpath(by_content[key], posixpath.dirname(job)))
    marked = frozenset[str]() if replace_images or not resumes else frozenset(changed)
    if new:
        session.run_parallel(
            "Uploading images",
            lambda k: _upload(bucket, k, plan.found[k], job, changed=k in marked),
            new,
        )
    if keys:
        unchanged = len(keys) - len(new)
        session.note(f"{plural(len(new), 'image')} uploaded, {unchanged:,} already there.")
    if marked:
        session.warn(
            f"{plural(len(marked), 'image')} changed since the last upload; rows that succeeded "
            f"with the old {'ones' if len(marked) > 1 else 'one'} are kept: add --replace-images "
            "to edit exactly those rows again, or --no-resume for all."
        )
    return {
        "images_uploaded": len(new),
        "images_unchanged": len(keys) - len(new),
        "images_replaced": len(changed) if replace_images else 0,
        "images_missing": missing,
    }


def _key_by_content(job: str, key: str, digest: str) -> str:
    """Where an image goes that replaces another one of its name: the row's reference changes."""
    return f"{job}{_IMAGES_FOLDER}/{digest[:12]}/{posixpath.basename(key)}"


def _stored_objects(bucket: Bucket, keys: set[str], own: str) -> Mapping[str, StoredObject]:
    """Those of the keys that exist, with few requests: one listing per folder.

    The folders below `own`, the job's folder of images, take one together.
    """
    found: dict[str, StoredObject] = {}
    folders = {posixpath.dirname(key) for key in keys if not key.startswith(own)}
    prefixes = [f"{folder}/" if folder else "" for folder in folders]
    listings = [bucket.list(prefix, shallow=True) for prefix in prefixes]
    if any(key.startswith(own) for key in keys):
        listings.append(bucket.list(own))
    for listing in listings:
        found |= {o.key: o for o in listing if o.key in keys}
    return found


def _is_changed(
    path: Path, digest: str, stored: StoredObject, bucket: Bucket, job: str, *, replace: bool
) -> bool:
    """With `replace`, also if it was changed by an upload that kept the rows of the old image."""
    if digest == stored.etag and not replace:
        return False
    metadata = bucket.metadata(stored.key) or {}
    if digest in (stored.etag, metadata.get(_MD5_METADATA)):
        return replace and _CHANGED_METADATA in metadata
    owner = metadata.get(_JOB_METADATA, job)
    if owner != job and not replace:
        raise CommandFailed(
            f"{path} would overwrite another image, {stored.key} of job {owner}: submit with "
            "another --to, so that both jobs keep their images."
        )
    return True


def _md5(path: Path) -> str:
    with path.open("rb") as body:
        return hashlib.file_digest(body, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _upload(bucket: Bucket, key: str, path: Path, job: str, *, changed: bool) -> None:
    content_type = guess_type(path.name)[0] or "application/octet-stream"
    metadata = {_MD5_METADATA: _md5(path), _JOB_METADATA: job}
    if changed:
        metadata[_CHANGED_METADATA] = "true"
    bucket.put_file(key, path, content_type, metadata)


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
