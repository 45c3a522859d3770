"""`submit`: the local images a CSV names, then the CSV itself, into the input bucket."""

import posixpath
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.header import Header
from pathlib import Path

from darkroom.csv_input.fields import parse_options
from darkroom.csv_input.reader import JobRows
from darkroom.errors import JobRejected
from darkroom.formatting import plural
from darkroom.jobs import JobOptions, job_id
from darkroom_cli import uploads
from darkroom_cli.bars import counting, working
from darkroom_cli.local_csv import Survey, object_name, open_rows, survey, write_renamed
from darkroom_cli.sentences import UsageMistake
from darkroom_cli.session import Session
from darkroom_cli.uploads import ImagePlan, ToSend
from darkroom_cli.watch import Upload, watch_job

_SHOWN = 3


def job_options(given: Mapping[str, object]) -> tuple[JobOptions, dict[str, str]]:
    """Command-line options as job options, and as the object's metadata.

    Raises UsageMistake with the sentence the job would end with.
    """
    metadata = {
        name.replace("_", "-"): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in given.items()
        if value is not None
    }
    try:
        options = parse_options(metadata)
    except JobRejected as error:
        raise UsageMistake(str(error)) from error
    return options, {name: _ascii(value) for name, value in metadata.items()}


def _ascii(value: str) -> str:
    """S3 carries other text as RFC 2047 words."""
    return value if value.isascii() else Header(value, "utf-8", maxlinelen=10_000).encode()


def submit(
    session: Session, csv: Path, to: str, given: Mapping[str, object], *, wait: bool, every: float
) -> None:
    options, metadata = job_options(given)
    key = posixpath.join(to.strip("/"), object_name(csv))
    job = job_id(key)
    rows = open_rows(csv, options)
    with working(session, f"Reading {csv.name}"):
        found = survey(rows)
        plan = uploads.plan_images(found.references, csv, key)
    warn_of_invalid(session, found)
    sent = _send_images(session, plan, job, options)
    before = session.stack.runs.current(job) if wait else None
    version = _send_csv(session, _Upload(csv, key, rows, metadata), plan.renamed)
    session.note(f"Uploaded {csv} to s3://{session.stack.inputs.name}/{key}.")
    if not (wait and session.json):  # with both, standard output is the watch's JSON lines
        session.answer(job, _summary(job, found, sent, version))
    if wait:
        upload = Upload(version, before.run if before else None)
        watch_job(session, job, every=every, upload=upload)


def _summary(job: str, found: Survey, sent: ToSend, version: str | None) -> dict[str, object]:
    return {
        "job": job,
        "version": version,
        "rows": found.rows,
        "skipped": found.skipped,
        "invalid": found.invalid,
        "images_uploaded": len(sent.new) + len(sent.changed),
        "images_unchanged": sent.unchanged,
        "images_missing": list(sent.missing),
    }


def warn_of_invalid(session: Session, found: Survey) -> None:
    if found.invalid:
        session.warn(
            f"{found.invalid:,} of {plural(found.rows, 'row')} will fail: "
            f"{_few(found.first_invalid, found.invalid)}."
        )


def _few(shown: Sequence[str], count: int) -> str:
    more = count - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more" if more > 0 else "")


def _send_images(session: Session, plan: ImagePlan, job: str, options: JobOptions) -> ToSend:
    bucket = session.stack.inputs
    with working(session, "Comparing images with the bucket's"):
        to_send = uploads.compare(plan, bucket, job)
    if to_send.missing:
        session.warn(
            f"{plural(len(to_send.missing), 'image')} found neither here nor in the bucket, their "
            f"rows will fail: {_few(to_send.missing[:_SHOWN], len(to_send.missing))}."
        )
    images = (*to_send.new, *to_send.changed)
    if images:
        with counting(session, "Uploading images", len(images)) as sent:
            uploads.send(images, bucket, job, sent)
    if plan.found:
        session.note(
            f"{plural(len(images), 'image')} uploaded, {to_send.unchanged:,} there already."
        )
    if to_send.changed and options.resume:
        session.warn(
            f"{plural(len(to_send.changed), 'image')} changed since the last upload; rows that "
            "succeeded with the old ones are kept: add --no-resume to edit them again."
        )
    return to_send


@dataclass(frozen=True, slots=True)
class _Upload:
    csv: Path
    key: str
    rows: JobRows
    metadata: Mapping[str, str]


def _send_csv(session: Session, upload: _Upload, renamed: Mapping[str, str]) -> str | None:
    bucket, key = session.stack.inputs, upload.key
    kind = "application/gzip" if key.endswith(".gz") else "text/csv"
    if not renamed:
        return bucket.put_file(key, upload.csv, kind, upload.metadata)
    session.note(
        f"{plural(len(renamed), 'path')} of this machine: the uploaded CSV names "
        f"{'them' if len(renamed) > 1 else 'it'} as in the bucket."
    )
    with tempfile.TemporaryDirectory(prefix="darkroom-") as scratch:
        copy = Path(scratch) / posixpath.basename(key)
        write_renamed(upload.rows, renamed, copy)
        return bucket.put_file(key, copy, kind, upload.metadata)
