"""Stores a row's images in the results bucket, and finds them again after a crash.

Images are stored as they came before anything else is done with them. The first is stored last: its
presence marks the row as stored. Its metadata is enough to settle the row if the worker dies before
it does.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import count
from pathlib import PurePosixPath

from pydantic import TypeAdapter

from darkroom.csv_input.names import file_stem, name_with_key
from darkroom.errors import DeferRow, LeaseLost, Reason, ServiceUnavailable, Waiting
from darkroom.images.codec import preview, render, thumbnail
from darkroom.images.file_types import mime_type
from darkroom.jobs import ResultPaths
from darkroom.ports import Clock, ObjectStore, RowLedger, Telemetry
from darkroom.retry import backoff, with_jitter
from darkroom.rows import CallResult, Claim, RowRecord, RowRequest, RowResult, RowState

_SEPARATOR = " | "
_MAX_WARNINGS_CHARS = 600  # S3 accepts 2 KB of metadata in all
_THUMBNAIL_TYPE = "image/webp"
_THUMBNAIL_PIXELS = 320  # of the longest side; pages embed them
_PREVIEW_PIXELS = 1_280  # of the input; linked, with the edited image itself as the counterpart
_MAX_DETAIL_CHARS = 500
WRITE_CHECK_SECONDS = 300.0
WRITE_RETRY_SECONDS = 60.0
_PUT_RETRY_SECONDS = 1.0
_PUT_RETRY_CAP_SECONDS = 15.0
_MAX_OVERWRITES = 5

# The fields of a CallResult by their names in the metadata.
_FIELDS = {f.name.replace("_", "-"): f.name for f in fields(CallResult)}
_row_result = TypeAdapter(RowResult)


def _names(claim: Claim, request: RowRequest) -> list[str]:
    """The names that a row's (first) image may have: its own, and one for a conflict.

    A name that the CSV gives an image, or that it has after the input image, belongs to one row of
    the current upload: an image of another row there is an earlier upload's. Other names may be in
    use, because rows move.
    """
    name = request.output_name or claim.record.name or f"{claim.key}.png"
    if request.output_name or (request.images and file_stem(request.images[0])):
        return [name]
    return [name, name_with_key(name, claim.key)]


def _to_metadata(claim: Claim, result: RowResult) -> dict[str, str]:
    """User metadata of each of the row's images. Values that are not known are left out."""
    metadata = {
        "job": claim.job,
        "row": claim.key,
        "run": claim.run,
        "run-number": str(claim.record.run_number),
        "fingerprint": claim.record.fingerprint,
        "images": str(len(result.outputs)),
    }
    for name, attribute in _FIELDS.items():
        value = getattr(result, attribute)
        if isinstance(value, tuple):
            value = _SEPARATOR.join(value)[:_MAX_WARNINGS_CHARS]
        elif isinstance(value, bool):
            value = str(value).lower()
        if value not in (None, ""):
            metadata[name] = str(value)
    return metadata


def _from_metadata(metadata: Mapping[str, str], paths: ResultPaths, name: str) -> RowResult:
    """The reverse of `_to_metadata`."""
    values: dict[str, object] = {"status": RowState.SUCCEEDED, "cost_micro_usd": None}
    values |= {attribute: metadata[n] for n, attribute in _FIELDS.items() if metadata.get(n)}
    if "warnings" in values:
        values["warnings"] = metadata["warnings"].split(_SEPARATOR)
    values["outputs"] = [paths.image(name, copy) for copy in range(int(metadata["images"]))]
    return _row_result.validate_python(values)


def _content_type(image: bytes) -> str:
    return mime_type(image) or "application/octet-stream"


def _is_result_of(metadata: Mapping[str, str], record: RowRecord, run: str) -> bool:
    """The image comes from a call for this row with this request, made in `run`."""
    expected = {"row": record.key, "fingerprint": record.fingerprint, "run": run}
    return expected.items() <= metadata.items()


@dataclass(frozen=True, slots=True)
class ImageStorage:
    store: ObjectStore
    rows: RowLedger
    clock: Clock
    telemetry: Telemetry
    _checked_at: dict[str, float] = field(default_factory=dict)  # by job

    def check_writable(self, job: str) -> None:
        """Prove that the job's results can be stored, before a call is paid for.

        Raises DeferRow. A proof is valid for WRITE_CHECK_SECONDS in this process.
        """
        now = self.clock.now()
        if now - self._checked_at.get(job, -WRITE_CHECK_SECONDS) < WRITE_CHECK_SECONDS:
            return
        try:
            self.store.put(ResultPaths(job).write_check, b"", "text/plain")
        except Exception as error:  # whatever keeps results from being stored
            detail = f"the results bucket cannot be written ({error}): check its policy and key"
            waiting = Waiting(Reason.NOT_STORED, detail[:_MAX_DETAIL_CHARS], now)
            raise DeferRow(detail, delay_seconds=WRITE_RETRY_SECONDS, waiting=waiting) from error
        self._checked_at[job] = now

    def put(
        self,
        claim: Claim,
        request: RowRequest,
        images: Sequence[bytes],
        result: RowResult,
        deadline: float,
    ) -> RowResult:
        """Store the images as they came, then convert those whose names ask for another format.

        Returns `result` with its outputs, or that of a faster worker. Raises LeaseLost when the
        image of a later upload is in place, ServiceUnavailable.
        """
        paths = ResultPaths(claim.job)
        name = self._retry(claim.job, partial(self._choose_name, claim, request), deadline)
        outputs = tuple(paths.image(name, copy) for copy in range(len(images)))
        result = replace(result, outputs=outputs)
        metadata = _to_metadata(claim, result)
        for key, image in zip(outputs[1:], images[1:], strict=True):
            put_copy = partial(self._put_copy, key, image, metadata, claim)
            self._retry(claim.job, put_copy, deadline)
        put_first = partial(self._put_first, outputs[0], images[0], metadata, claim)
        other = self._retry(claim.job, put_first, deadline)
        if other is not None:
            return _from_metadata(other, paths, name)
        warnings = tuple(
            warning
            for key, image in zip(outputs, images, strict=True)
            for warning in self._convert(key, image, metadata, claim)
        )
        return replace(result, warnings=(*result.warnings, *warnings))

    def planned_output(self, claim: Claim, request: RowRequest) -> str:
        """The key of the row's first image, unless another row's image takes its place before."""
        return ResultPaths(claim.job).image(self._choose_name(claim, request))

    def _choose_name(self, claim: Claim, request: RowRequest) -> str:
        name, *others = _names(claim, request)
        if others:
            found = self.store.metadata(ResultPaths(claim.job).image(name))
            if found is not None and found.get("row") != claim.key:
                return others[0]
        return name

    def put_thumbnails(
        self, claim: Claim, image: str, before: bytes | None, after: bytes | None
    ) -> tuple[str, ...]:
        """Returns a warning for each that fails: the images themselves matter more."""
        warnings: list[str] = []

        def put(side: str, make: Callable[[], bytes]) -> None:
            try:
                self.store.put(ResultPaths(claim.job).thumb(image, side), make(), _THUMBNAIL_TYPE)
            except Exception as error:  # noqa: BLE001  # the image is stored and paid for
                self.telemetry.warning("thumb_failed", side=side, error=str(error))
                warnings.append(f"the gallery has no thumbnail '{side}': {error}")

        if before is not None:
            put("before", partial(preview, before, _PREVIEW_PIXELS, _THUMBNAIL_PIXELS))
        if after is not None:
            put("after", partial(thumbnail, after, _THUMBNAIL_PIXELS))
        return tuple(warnings)

    def _convert(
        self, key: str, image: bytes, metadata: Mapping[str, str], claim: Claim
    ) -> Iterator[str]:
        """Replace the stored image by one of its name's format. Yields a warning if that fails."""
        try:
            body, kind = render(image, PurePosixPath(key).suffix)
            found = None if body is image else self.store.metadata(key)
            if found is not None and _is_result_of(found, claim.record, claim.run):
                self.store.put(key, body, kind, metadata, replaces=found["etag"])
        except Exception as error:  # noqa: BLE001  # the image is stored and paid for
            self.telemetry.warning("conversion_failed", key=key, error=str(error))
            name, kind = PurePosixPath(key).name, _content_type(image)
            yield f"{name} is stored as it came ({kind}), because its conversion failed: {error}"

    def lookup(self, claim: Claim, request: RowRequest) -> RowResult | None:
        """The result of a call whose worker died after it had stored the image."""
        paths, sent_run = ResultPaths(claim.job), claim.record.sent_run
        for name in _names(claim, request) if sent_run is not None else ():
            found = self.store.metadata(paths.image(name))
            if found is not None and _is_result_of(found, claim.record, str(sent_run)):
                return _from_metadata(found, paths, name)
        return None

    def _put_copy(self, key: str, body: bytes, metadata: dict[str, str], claim: Claim) -> None:
        found = self.store.metadata(key)
        if found is not None:
            self._discard_result(found, key, claim)
        self.store.put(key, body, _content_type(body), metadata)

    def _discard_result(self, found: Mapping[str, str], key: str, claim: Claim) -> None:
        """An earlier upload's image is about to be replaced: the row it belonged to has lost it."""
        row = found.get("row")  # missing from a file put there by hand
        if row is not None and row != claim.key:
            self.rows.discard_result(claim.job, row, key)

    def _put_first(
        self, key: str, body: bytes, metadata: dict[str, str], claim: Claim
    ) -> Mapping[str, str] | None:
        """None when our image is in place, else the metadata of a faster worker's image."""
        kind = _content_type(body)
        for _ in range(_MAX_OVERWRITES):
            if self.store.put(key, body, kind, metadata, only_if_new=True):
                return None
            found = self.store.metadata(key)
            if found is None:
                continue
            if _is_result_of(found, claim.record, claim.run):
                return found
            number = found.get("run-number", "")  # missing from a file put there by hand
            if number.isdecimal() and int(number) > claim.record.run_number:
                raise LeaseLost(f"row {claim.key}: the image of a later upload is in place")
            self._discard_result(found, key, claim)
            # The image of an earlier upload is replaced, unless it has changed meanwhile.
            if self.store.put(key, body, kind, metadata, replaces=found["etag"]):
                return None
        raise ServiceUnavailable(f"{key} keeps being changed by other workers")

    def _retry[T](self, job: str, put: Callable[[], T], deadline: float) -> T:
        """A lost image has to be paid for again, so a failed upload is repeated until `deadline`.

        Raises LeaseLost, ServiceUnavailable.
        """
        for tries in count(1):
            try:
                return put()
            except LeaseLost:
                raise
            except Exception as error:  # an image that is paid for is worth every try
                self._checked_at.pop(job, None)
                wait = backoff(tries, _PUT_RETRY_SECONDS, _PUT_RETRY_CAP_SECONDS)
                if self.clock.now() + wait >= deadline:
                    raise ServiceUnavailable(f"an image could not be stored: {error}") from error
                self.clock.sleep(with_jitter(wait, random.random))
        raise AssertionError  # count() does not end
