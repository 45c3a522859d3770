"""`download`: a job's results as a folder whose report.html works offline."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from darkroom.formatting import plural
from darkroom_cli.bars import counting
from darkroom_cli.ports import Bucket, StoredObject
from darkroom_cli.sentences import CommandFailed
from darkroom_cli.session import Session

PARALLEL = 16
_FOLDERS = ("images", "thumbs")
_FILES = ("manifest.csv", "job.json")


@dataclass(frozen=True, slots=True)
class _File:
    stored: StoredObject
    path: Path


def download(session: Session, job: str, folder: Path) -> None:
    bucket = session.stack.results
    files = [
        _File(o, _target(folder, name))
        for o in bucket.list(f"{job}/")
        if _belongs(name := o.key.removeprefix(f"{job}/"))
    ]
    if not files:
        raise CommandFailed(
            f"There is nothing to download yet for job {job}: `darkroom status {job}` tells how "
            "far it is."
        )
    wanted = [f for f in files if not _is_here(f)]
    if wanted:
        folder.mkdir(parents=True, exist_ok=True)
        with counting(session, "Downloading", len(wanted)) as arrived:
            fetch_all(bucket, wanted, arrived)
    report = folder / "report.html"
    here = plural(len(files) - len(wanted), "file")
    kept = f", {here} here already" if len(wanted) < len(files) else ""
    session.note(f"{plural(len(wanted), 'file')} downloaded{kept}.")
    if not report.exists():
        session.note(f"The job is not done: run this again later for the rest and {report.name}.")
    session.answer(
        str(report if report.exists() else folder),
        {
            "job": job,
            "folder": str(folder),
            "files": len(files),
            "downloaded": len(wanted),
            "report": str(report) if report.exists() else None,
        },
    )


def _belongs(name: str) -> bool:
    """Not what another job, nested below this one's name, has there."""
    head, _, rest = name.partition("/")
    if rest:
        return head in _FOLDERS
    return name in _FILES or (name.startswith("report") and name.endswith(".html"))


def _target(folder: Path, name: str) -> Path:
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/"):
        raise CommandFailed(f"The key {name} would leave the folder {folder}: not downloaded.")
    return folder.joinpath(*parts)


def _is_here(file: _File) -> bool:
    """Same size and time as in the bucket, as an earlier download left it."""
    try:
        found = file.path.stat()
    except FileNotFoundError:
        return False
    stored = file.stored
    return found.st_size == stored.size and found.st_mtime == stored.modified.timestamp()


def fetch_all(bucket: Bucket, files: Sequence[_File], arrived: Callable[[], None]) -> None:
    """Each file appears whole or not at all, so that an interrupted download can go on."""

    def fetch(file: _File) -> None:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        partial = file.path.with_name(f"{file.path.name}.part")
        bucket.fetch(file.stored.key, partial)
        moment = file.stored.modified.timestamp()
        os.utime(partial, (moment, moment))
        partial.replace(file.path)

    pool = ThreadPoolExecutor(PARALLEL)
    try:
        for done in as_completed([pool.submit(fetch, file) for file in files]):
            done.result()
            arrived()
    finally:
        pool.shutdown(cancel_futures=True)
