"""Local images that a CSV names: which of them must go to the bucket, and where to."""

import hashlib
import posixpath
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from mimetypes import guess_type
from pathlib import Path

from darkroom_cli.ports import Bucket, StoredObject
from darkroom_cli.sentences import CommandFailed

PARALLEL = 16
# Metadata of an uploaded image. The MD5 tells whether it changed where the ETag cannot (KMS keys);
# the job tells whose it is.
MD5, JOB = "darkroom-md5", "darkroom-job"


@dataclass(frozen=True, slots=True)
class LocalImage:
    """A file on this machine and its key in the input bucket."""

    path: Path
    key: str


@dataclass(slots=True)
class ImagePlan:
    """What a CSV's references come to."""

    found: dict[str, LocalImage] = field(default_factory=dict)  # by key
    absent: dict[str, str] = field(default_factory=dict)  # key -> reference: not on this machine
    renamed: dict[str, str] = field(default_factory=dict)  # reference -> what the CSV must say


@dataclass(frozen=True, slots=True)
class ToSend:
    new: tuple[LocalImage, ...]
    changed: tuple[LocalImage, ...]
    unchanged: int
    missing: tuple[str, ...]  # references neither here nor in the bucket


def plan_images(references: Iterable[str], csv: Path, key: str) -> ImagePlan:
    """Sort references by where they lie. Files in the CSV's folder keep their place beside its key.

    Others go to a folder named after the CSV. What no longer says where the file is (an absolute
    path, or one that leaves the folder) is in `renamed`, with what to write instead.
    """
    plan, home = ImagePlan(), csv.parent.resolve()
    folder = posixpath.dirname(key)
    stem = posixpath.basename(key).removesuffix(".gz").removesuffix(".csv")
    for reference in references:
        given = _local_path(reference)
        if given is None:
            continue
        path = (csv.parent / given).resolve()
        relative = posixpath.normpath(given.as_posix())
        if (given.is_absolute() or relative.startswith("..")) and path.is_file():
            if path.is_relative_to(home):
                relative = path.relative_to(home).as_posix()
            else:
                relative = f"{stem}.images/{_short_digest(path)}-{path.name}"
            plan.renamed[reference] = relative
        target = posixpath.normpath(posixpath.join(folder, relative))
        if path.is_file():
            plan.found[target] = LocalImage(path, target)
        else:
            plan.absent[target] = reference
    return plan


def _local_path(reference: str) -> Path | None:
    """The path a reference means, or None for one that lies elsewhere (https://, s3://, ...)."""
    return None if "://" in reference else Path(reference)


def _short_digest(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:8]


def compare(plan: ImagePlan, bucket: Bucket, job: str) -> ToSend:
    """Find what is missing or changed in the bucket, by listings rather than a request per image.

    Raises CommandFailed when an upload would overwrite another job's image by a different one.
    """
    stored = _stored(bucket, [*plan.found, *plan.absent])
    new, doubtful = list[LocalImage](), list[LocalImage]()
    for key, image in plan.found.items():
        (doubtful if key in stored else new).append(image)
    with ThreadPoolExecutor(PARALLEL) as pool:
        verdicts = list(pool.map(lambda i: _changed(i, stored[i.key], bucket, job), doubtful))
    changed = [image for image, verdict in zip(doubtful, verdicts, strict=True) if verdict]
    missing = tuple(ref for key, ref in plan.absent.items() if key not in stored)
    return ToSend(tuple(new), tuple(changed), len(doubtful) - len(changed), missing)


def _stored(bucket: Bucket, keys: Iterable[str]) -> Mapping[str, StoredObject]:
    wanted = set(keys)
    folders = {posixpath.dirname(key) for key in wanted}
    found: dict[str, StoredObject] = {}
    for folder in folders:
        prefix = f"{folder}/" if folder else ""
        found |= {o.key: o for o in bucket.list(prefix, shallow=True) if o.key in wanted}
    return found


def _changed(image: LocalImage, stored: StoredObject, bucket: Bucket, job: str) -> bool:
    digest = _md5(image.path) if image.path.stat().st_size == stored.size else ""
    if digest == stored.etag:
        return False
    metadata = bucket.metadata(image.key) or {}
    if digest and metadata.get(MD5) == digest:
        return False
    owner = metadata.get(JOB, job)
    if owner != job:
        raise CommandFailed(
            f"{image.path} would overwrite another picture, {image.key} of job {owner}: submit "
            "with another --to, so that both jobs keep their images."
        )
    return True


def _md5(path: Path) -> str:
    with path.open("rb") as body:
        return hashlib.file_digest(body, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def send(images: Iterable[LocalImage], bucket: Bucket, job: str, sent: Callable[[], None]) -> None:
    """Upload in parallel; `sent` is called after each, in this thread."""

    def put(image: LocalImage) -> None:
        kind = guess_type(image.path.name)[0] or "application/octet-stream"
        bucket.put_file(image.key, image.path, kind, {MD5: _md5(image.path), JOB: job})

    pool = ThreadPoolExecutor(PARALLEL)
    try:
        for done in as_completed([pool.submit(put, image) for image in images]):
            done.result()
            sent()
    finally:
        pool.shutdown(cancel_futures=True)
