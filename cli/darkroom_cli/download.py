"""`darkroom download`: copies a job's results into a folder whose report.html works offline."""

import os
from collections.abc import Callable, Container
from pathlib import Path

import typer

from darkroom.csv_input.names import is_portable
from darkroom.formatting import plural, quoted, quoted_list
from darkroom.jobs import ResultPaths
from darkroom_cli.error_messages import CommandFailed
from darkroom_cli.session import Session
from darkroom_cli.stack import Bucket, StoredObject
from darkroom_cli.status import find_run

_FOLDERS = ("images", "thumbs")
_WRITE_CHECK = ResultPaths("").write_check.removeprefix("/")
_FILES = ("manifest.csv", "failed.csv", "job.json")


def download(session: Session, job: str, folder: Path) -> None:
    """Prints the path of the report, or of the folder while there is none."""
    files, downloaded = fetch_results(session, job, folder)
    report = folder / "report.html"
    if not report.exists():
        session.note(f"The job is not done: run this again later for the rest and {report.name}.")
    session.print_result(
        str(report if report.exists() else folder),
        {
            "job": job,
            "folder": str(folder),
            "files": files,
            "downloaded": downloaded,
            "report": str(report) if report.exists() else None,
        },
    )


def open_gallery(
    session: Session, job: str, folder: Path | None, launch: Callable[[str], object]
) -> None:
    """Downloads the job, unless `folder` has it already, and opens its gallery in the browser."""
    folder = folder or job_folder(app_folder(session), job)
    fetch_results(session, job, folder)
    report = folder / "report.html"
    if not report.exists():
        raise CommandFailed(f"Job {job} has no gallery yet: `darkroom status {job} --watch`.")
    if not session.json:
        launch(report.resolve().as_uri())
    session.print_result(str(report), {"job": job, "report": str(report)})


def app_folder(session: Session) -> Path:
    return Path(typer.get_app_dir("darkroom")) / session.stack.name


def job_folder(root: Path, job: str) -> Path:
    """Raises CommandFailed for a job whose name would lead out of `root`."""
    if not all(map(is_portable, job.split("/"))):
        raise CommandFailed(f"{quoted(job)} cannot be the name of a folder: choose one with --to.")
    return root / job


def fetch_results(session: Session, job: str, folder: Path) -> tuple[int, int]:
    """Downloads what is missing or changed; the number of files, and of those downloaded."""
    bucket = session.stack.results_bucket
    if next(iter(bucket.list(f"{job}/")), None) is None:
        job = find_run(session, job).job  # the name may be short, or there is no such job
    stored = {o.key.removeprefix(f"{job}/"): o for o in bucket.list(f"{job}/")}
    results = {name: o for name, o in stored.items() if _is_result(name)}
    unusable = [name for name in results if not _is_portable(name, results)]
    files = {folder / name: o for name, o in results.items() if name not in unusable}
    if unusable:
        session.warn(
            f"{plural(len(unusable), 'object')} not downloaded, because no file can have the name "
            f"on every system: {quoted_list(unusable)}."
        )
    if not files:
        raise CommandFailed(
            f"There is nothing to download yet for job {job}: `darkroom status {job}` shows its "
            "progress."
        )
    wanted = [path for path, stored in files.items() if not _is_downloaded(path, stored)]
    if wanted:
        folder.mkdir(parents=True, exist_ok=True)
        session.run_parallel("Downloading", lambda p: _fetch(bucket, files[p], p), wanted)
    kept = len(files) - len(wanted)
    already = f", {plural(kept, 'file')} already here" if kept else ""
    session.note(f"{plural(len(wanted), 'file')} downloaded{already}.")
    return len(files), len(wanted)


def _is_result(name: str) -> bool:
    """False for results of another job whose name continues this one's: `products/summer`."""
    head, _, rest = name.partition("/")
    if rest:
        return head in _FOLDERS and name != _WRITE_CHECK
    return name in _FILES or (name.startswith("report") and name.endswith(".html"))


def _is_portable(name: str, names: Container[str]) -> bool:
    """A file inside the folder, on Windows too, and not below another of the files."""
    parts = name.split("/")
    parents = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
    return all(map(is_portable, parts)) and not any(parent in names for parent in parents)


def _is_downloaded(path: Path, stored: StoredObject) -> bool:
    """The file has the object's size and time, as an earlier download left it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return found.st_size == stored.size and found.st_mtime == stored.modified.timestamp()


def _fetch(bucket: Bucket, stored: StoredObject, path: Path) -> None:
    """The file appears whole or not at all, so that an interrupted download can continue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    bucket.fetch(stored.key, partial)
    modified = stored.modified.timestamp()
    os.utime(partial, (modified, modified))
    partial.replace(path)
