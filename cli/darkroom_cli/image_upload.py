"""The local images that a CSV names: where they go in the input bucket, and their upload."""

import hashlib
import posixpath
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress
from mimetypes import guess_type
from pathlib import Path

from darkroom.formatting import examples, plural, quoted
from darkroom.jobs import job_id
from darkroom_cli.error_messages import CommandFailed
from darkroom_cli.local_files import content_problem
from darkroom_cli.session import Session
from darkroom_cli.stack import PARALLEL_TRANSFERS, Bucket, StoredObject

# Metadata of an uploaded image. The MD5 shows a change where the ETag cannot (KMS keys).
_MD5_METADATA, _JOB_METADATA = "darkroom-md5", "darkroom-job"
_IMAGES_FOLDER = ".images"  # appended to the job's name: images that cannot have a place beside it
# The image took the place of another one of this name, and the rows made with that one were kept.
_CHANGED_METADATA = "darkroom-changed"


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


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The images of a plan, by key, compared with those in the bucket."""

    by_content: Mapping[str, str]  # where an image goes that replaces another one of its name
    new: list[str]
    changed: list[str]  # there is another image of this name
    replaced_before: list[str]  # an earlier upload put it where `by_content` says
    missing: list[str]  # references of images that are neither here nor in the bucket


def upload_images(
    session: Session, plan: ImagePlan, job: str, *, replace: bool, resumes: bool
) -> dict[str, object]:
    """Upload images that are missing or changed in the bucket. Returns their counts for --json.

    With `replace`, the rows of changed images are to be edited again: the plan names those images
    by their contents. Raises CommandFailed if an upload would overwrite another job's image with a
    different one.
    """
    bucket, count = session.stack.input_bucket, len(plan.found)
    with session.spinner("Comparing images with those in the bucket"):
        compared = _compare(bucket, plan, job, replace=replace)
    if missing := compared.missing:
        session.warn(
            f"{plural(len(missing), 'image')} found neither here nor in the bucket, their rows "
            f"will fail: {examples(missing, len(missing))}."
        )
    keys = [*compared.new, *_place_changed(plan, compared, job, replace=replace)]
    outdated = frozenset(compared.changed if resumes and not replace else ())  # rows are kept
    if keys:
        session.run_parallel(
            "Uploading images",
            lambda k: _upload(bucket, k, plan.found[k], job, changed=k in outdated),
            keys,
        )
    if count:
        unchanged = count - len(keys)
        session.note(f"{plural(len(keys), 'image')} uploaded, {unchanged:,} already there.")
    if outdated:
        session.warn(
            f"{plural(len(outdated), 'image')} changed since the last upload; rows that succeeded "
            f"with the old {'ones' if len(outdated) > 1 else 'one'} are kept: add --replace-images "
            "to edit exactly those rows again, or --no-resume for all."
        )
    return {
        "images_uploaded": len(keys),
        "images_unchanged": count - len(keys),
        "images_replaced": len(compared.changed) if replace else 0,
        "images_missing": missing,
    }


def _compare(bucket: Bucket, plan: ImagePlan, job: str, *, replace: bool) -> _Comparison:
    keys = [*plan.found]
    with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
        digests = dict(zip(keys, pool.map(_md5, plan.found.values()), strict=True))
        by_content = {key: _key_by_content(job, key, digests[key]) for key in keys}
        wanted = {*keys, *by_content.values(), *plan.absent}
        stored = _stored_objects(bucket, wanted, f"{job}{_IMAGES_FOLDER}/")
        # A replacement keeps its own key in later uploads, or its rows would be edited again.
        replaced_before = [key for key in keys if by_content[key] in stored]
        others = [key for key in keys if key not in replaced_before]
        existing = [key for key in others if key in stored]
        differ = pool.map(
            lambda k: _is_changed(
                plan.found[k], digests[k], stored[k], bucket, job, replace=replace
            ),
            existing,
        )
        changed = list(compress(existing, differ))
    return _Comparison(
        by_content,
        new=[key for key in others if key not in stored],
        changed=changed,
        replaced_before=replaced_before,
        missing=[reference for key, reference in plan.absent.items() if key not in stored],
    )


def _place_changed(plan: ImagePlan, compared: _Comparison, job: str, *, replace: bool) -> list[str]:
    """Have the plan say where changed images go. Returns the keys to upload them under."""
    changed, moved = compared.changed, compared.replaced_before
    if replace:
        plan.replaced = [reference for key in changed for reference in plan.references[key]]
        moved = [*moved, *changed]
    for key in moved:
        to = compared.by_content[key]
        plan.move(key, to, posixpath.relpath(to, posixpath.dirname(job)))
    return [compared.by_content[key] for key in changed] if replace else changed


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
