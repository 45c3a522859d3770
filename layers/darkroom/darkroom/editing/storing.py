"""Puts a row's images into the results bucket, the first one last: with it the row is done."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from darkroom.editing.provenance import Stored, image_name, result_of, to_metadata
from darkroom.editing.row_errand import RowErrand
from darkroom.errors import ServiceUnavailable
from darkroom.images.pictures import render, thumbnail
from darkroom.jobs import ResultPaths
from darkroom.ledger.values import Claim, RowResult
from darkroom.limits.errand import Delivery, LeaseLost
from darkroom.ports import Clock, ObjectStore, Telemetry

_THUMB_TYPE = "image/webp"
# A paid image is worth waiting for: lost, its row is called and paid for again.
_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0)
_OVERWRITES = 5


@dataclass(frozen=True, slots=True)
class ImageStorage:
    """The results bucket, as the editor uses it."""

    store: ObjectStore
    clock: Clock
    telemetry: Telemetry

    def keep(
        self, errand: RowErrand, delivery: Delivery, warnings: tuple[str, ...], deadline: float
    ) -> RowResult:
        """Store the answer and give the row's result.

        Raises LeaseLost when a later upload's image lies there, ServiceUnavailable.
        """
        claim = errand.claim
        paths, name = ResultPaths(claim.job), image_name(errand.request, claim.key)
        images = delivery.answer.images
        outputs = tuple(paths.image(name, copy) for copy in range(len(images)))
        result = result_of(delivery, claim, outputs, warnings)
        metadata = to_metadata(claim, result)
        self._keep_thumbs(errand, paths, images[0])
        extension = PurePosixPath(name).suffix
        for key, image in zip(outputs[1:], images[1:], strict=True):
            body, kind = render(image, extension)
            self._insist(partial(self.store.put, key, body, kind, metadata), deadline)
        body, kind = render(images[0], extension)
        put_first = partial(self._put_first, outputs[0], body, kind, metadata, claim)
        theirs = self._insist(put_first, deadline)
        return result if theirs is None else theirs.result(paths, name)

    def find(self, errand: RowErrand) -> RowResult | None:
        """The outcome of a call whose worker died after it had stored the image."""
        record = errand.claim.record
        name = image_name(errand.request, record.key)
        paths = ResultPaths(errand.claim.job)
        metadata = self.store.metadata(paths.image(name))
        if metadata is None or record.sent_run is None:
            return None
        found = Stored(metadata)
        return found.result(paths, name) if found.answers(record, record.sent_run) else None

    def _put_first(
        self, key: str, body: bytes, kind: str, metadata: dict[str, str], claim: Claim
    ) -> Stored | None:
        """None when our image is in place; else the one of a worker that was faster."""
        for _ in range(_OVERWRITES):
            if self.store.put(key, body, kind, metadata, only_if_new=True):
                return None
            held = self.store.metadata(key)
            if held is None:
                continue
            found = Stored(held)
            if found.answers(claim.record, claim.run):
                return found
            if found.run_number > claim.record.run_number:
                raise LeaseLost(f"row {claim.key}: a later upload's image is in place")
            # An earlier upload's: this one was asked for anew, so it takes its place.
            if self.store.put(key, body, kind, metadata, replaces=found.etag):
                return None
        raise ServiceUnavailable(f"{key} was changed by others again and again")

    def _keep_thumbs(self, errand: RowErrand, paths: ResultPaths, after: bytes) -> None:
        before = errand.images[0].data if errand.images else None
        for side, data in (("before", before), ("after", after)):
            if data is None:
                continue
            try:
                self.store.put(paths.thumb(errand.claim.key, side), thumbnail(data), _THUMB_TYPE)
            except (ServiceUnavailable, ValueError, OSError) as error:
                self.telemetry.warning("thumb_failed", row=errand.claim.key, error=str(error))

    def _insist[T](self, put: Callable[[], T], deadline: float) -> T:
        for wait in _RETRY_SECONDS:
            try:
                return put()
            except ServiceUnavailable:
                if self.clock.now() + wait >= deadline:
                    raise
                self.clock.sleep(wait)
        return put()
