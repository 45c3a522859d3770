"""Stages the objects of a report under its run and version, and publishes them when all are there.

A staged object is an unfinished upload in parts: nothing is visible at its key until one small
write completes it. That write is conditional, and each object carries the version of the report it
belongs to, so a reporter can replace older reports but never a newer one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from pydantic import ConfigDict

from darkroom.errors import DarkroomError, ServiceUnavailable
from darkroom.ports import MIN_PART_BYTES, ObjectStore

PART_BYTES = MIN_PART_BYTES + 3 * 1024 * 1024  # 10,000 parts (the limit of S3) are 80 GB
_MAX_TRIES = 5  # of one key that several reporters write at the same time
_RUN, _CHANGES, _FINAL = "report-run", "report-version", "report-final"


class Superseded(DarkroomError):
    """A newer report, or a newer upload, has taken the place of this one."""


@dataclass(frozen=True, slots=True, order=True)
class ReportVersion:
    """Orders the reports of a job, the newest last.

    `changes` is Counters.transitions, the number of changes made to the run's counters when the
    report began. A report of unfinished rows (`final` false) precedes the one of the same changes
    that covers all.
    """

    run_number: int = 0
    changes: int = 0
    final: bool = True

    @classmethod
    def of(cls, stored: Mapping[str, str] | None) -> Self:
        """The version in an object's metadata; of an object without one, the lowest."""
        values = stored or {}
        number, changes = values.get(_RUN, ""), values.get(_CHANGES, "")
        if not (number.isdecimal() and changes.isdecimal()):
            return cls(final=False)
        return cls(int(number), int(changes), values.get(_FINAL) == "true")

    def metadata(self) -> dict[str, str]:
        final = "true" if self.final else "false"
        return {_RUN: str(self.run_number), _CHANGES: str(self.changes), _FINAL: final}


@dataclass(slots=True)
class StagedObject:
    """An upload in parts, and the bytes that are not a part yet."""

    key: str
    upload: str
    etags: list[str] = field(default_factory=list)
    tail: bytes = b""

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


@dataclass(frozen=True, slots=True)
class Staging:
    """Writes and publishes the objects of one version of a job's report."""

    store: ObjectStore
    version: ReportVersion

    def create(self, key: str, content_type: str) -> StagedObject:
        upload = self.store.create_upload(key, content_type, self.version.metadata())
        return StagedObject(key, upload)

    def write(self, staged: StagedObject, data: bytes) -> None:
        """`data` in pieces of many lines: each is copied into the part."""
        staged.tail += data
        while len(staged.tail) >= PART_BYTES:
            self._upload_part(staged, PART_BYTES)

    def finish(self, staged: StagedObject) -> None:
        """Upload what is left. An upload needs one part at least, even of an empty object."""
        if staged.tail or not staged.etags:
            self._upload_part(staged, len(staged.tail))

    def create_whole(self, key: str, body: bytes, content_type: str) -> StagedObject:
        staged = self.create(key, content_type)
        self.write(staged, body)
        self.finish(staged)
        return staged

    def _upload_part(self, staged: StagedObject, size: int) -> None:
        body, number = staged.tail[:size], len(staged.etags) + 1
        staged.etags.append(self.store.upload_part(staged.key, staged.upload, number, body))
        staged.tail = staged.tail[size:]

    def publish(self, staged: StagedObject) -> None:
        """Make the object visible. Raises Superseded where a newer report's object is.

        A repeat after a crash finds its own object there and changes nothing.
        """
        for _ in range(_MAX_TRIES):
            stored = self.store.metadata(staged.key)
            present = ReportVersion.of(stored)
            if stored is not None and present == self.version:
                return
            self._check_newer_than(present, staged.key)
            replaces = stored["etag"] if stored else None
            if self.store.complete_upload(
                staged.key, staged.upload, staged.etags, replaces=replaces
            ):
                return
        raise ServiceUnavailable(f"{staged.key} is written by too many reporters at once")

    def put(
        self, key: str, body: bytes, content_type: str, stored: Mapping[str, str] | None
    ) -> bool:
        """Replace `stored`, the object's metadata as read before; False if it has changed since.

        Raises Superseded where a newer report's object is.
        """
        self._check_newer_than(ReportVersion.of(stored), key)
        return self.store.put(
            key,
            body,
            content_type,
            self.version.metadata(),
            only_if_new=stored is None,
            replaces=stored["etag"] if stored else None,
        )

    def _check_newer_than(self, present: ReportVersion, key: str) -> None:
        if present > self.version:
            raise Superseded(f"{key} is of a newer report: {present}, this is {self.version}")

    def discard(self, staged: StagedObject) -> None:
        self.store.abort_upload(staged.key, staged.upload)
