"""What an image's metadata tells of it: enough to settle its row if its worker died just then."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from darkroom.editor.call_context import RowCallContext
from darkroom.errors import LeaseLost, ServiceUnavailable
from darkroom.images.codec import render, thumbnail
from darkroom.jobs import ResultPaths
from darkroom.ports import Clock, DispatchResult, ObjectStore, Telemetry
from darkroom.rows import Claim, RowRecord, RowRequest, RowResult, RowState

_SEPARATOR = " | "
_LONGEST_WARNINGS = 600  # characters; S3 takes 2 KB of metadata in all


def image_name(request: RowRequest, key: str) -> str:
    """The path under images/ of a row's (first) picture, with its extension."""
    name = request.output_name or f"{key}.png"
    return name if PurePosixPath(name).suffix else f"{name}.png"


def result_of(
    delivery: DispatchResult, claim: Claim, outputs: tuple[str, ...], warnings: tuple[str, ...]
) -> RowResult:
    """The outcome of a call that gave images; its cost includes the row's earlier calls."""
    cost = delivery.result.cost_micro_usd
    return RowResult(
        status=RowState.SUCCEEDED,
        outputs=outputs,
        provider=delivery.plan.provider.value,
        endpoint=delivery.endpoint.name,
        model=delivery.result.model or delivery.plan.model,
        fallback=delivery.fallback,
        latency_ms=delivery.latency_ms,
        cost_micro_usd=None if cost is None else claim.record.spent + cost,
        warnings=warnings,
    )


def to_metadata(claim: Claim, result: RowResult) -> dict[str, str]:
    """User metadata of each of the row's images. `cost-micro-usd` is missing where not known."""
    metadata = {
        "job": claim.job,
        "row": claim.key,
        "run": claim.run,
        "run-number": str(claim.record.run_number),
        "fingerprint": claim.record.fingerprint,
        "provider": result.provider or "",
        "endpoint": result.endpoint or "",
        "model": result.model or "",
        "fallback": str(result.fallback).lower(),
        "latency-ms": str(result.latency_ms),
        "images": str(len(result.outputs)),
    }
    if result.cost_micro_usd is not None:
        metadata["cost-micro-usd"] = str(result.cost_micro_usd)
    if result.warnings:
        metadata["warnings"] = _SEPARATOR.join(result.warnings)[:_LONGEST_WARNINGS]
    return metadata


@dataclass(frozen=True, slots=True)
class Stored:
    """An image found in the results bucket."""

    metadata: Mapping[str, str]

    @property
    def etag(self) -> str:
        return self.metadata["etag"]

    @property
    def run_number(self) -> int:
        """0 where the metadata does not tell, as of a file that somebody put there by hand."""
        number = self.metadata.get("run-number", "")
        return int(number) if number.isdecimal() else 0

    def answers(self, record: RowRecord, run: str) -> bool:
        """It is what a call for this very row and wish gave, made in `run`."""
        found = (self.metadata.get("row"), self.metadata.get("fingerprint"))
        return found == (record.key, record.fingerprint) and self.metadata.get("run") == run

    def result(self, paths: ResultPaths, name: str) -> RowResult:
        metadata = self.metadata
        cost = metadata.get("cost-micro-usd")
        warnings = metadata.get("warnings")
        return RowResult(
            status=RowState.SUCCEEDED,
            outputs=tuple(paths.image(name, copy) for copy in range(int(metadata["images"]))),
            provider=metadata.get("provider") or None,
            endpoint=metadata.get("endpoint") or None,
            model=metadata.get("model") or None,
            fallback=metadata.get("fallback") == "true",
            latency_ms=int(metadata.get("latency-ms", "0")),
            cost_micro_usd=None if cost is None else int(cost),
            warnings=tuple(warnings.split(_SEPARATOR)) if warnings else (),
        )


# Puts a row's images into the results bucket, the first one last: with it the row is done.


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
        self,
        context: RowCallContext,
        delivery: DispatchResult,
        warnings: tuple[str, ...],
        deadline: float,
    ) -> RowResult:
        """Store the answer and give the row's result.

        Raises LeaseLost when a later upload's image lies there, ServiceUnavailable.
        """
        claim = context.claim
        paths, name = ResultPaths(claim.job), image_name(context.request, claim.key)
        images = delivery.result.images
        outputs = tuple(paths.image(name, copy) for copy in range(len(images)))
        result = result_of(delivery, claim, outputs, warnings)
        metadata = to_metadata(claim, result)
        self._keep_thumbs(context, paths, images[0])
        extension = PurePosixPath(name).suffix
        for key, image in zip(outputs[1:], images[1:], strict=True):
            body, kind = render(image, extension)
            self._insist(partial(self.store.put, key, body, kind, metadata), deadline)
        body, kind = render(images[0], extension)
        put_first = partial(self._put_first, outputs[0], body, kind, metadata, claim)
        theirs = self._insist(put_first, deadline)
        return result if theirs is None else theirs.result(paths, name)

    def find(self, context: RowCallContext) -> RowResult | None:
        """The outcome of a call whose worker died after it had stored the image."""
        record = context.claim.record
        name = image_name(context.request, record.key)
        paths = ResultPaths(context.claim.job)
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

    def _keep_thumbs(self, context: RowCallContext, paths: ResultPaths, after: bytes) -> None:
        before = context.images[0].data if context.images else None
        for side, data in (("before", before), ("after", after)):
            if data is None:
                continue
            try:
                self.store.put(paths.thumb(context.claim.key, side), thumbnail(data), _THUMB_TYPE)
            except (ServiceUnavailable, ValueError, OSError) as error:
                self.telemetry.warning("thumb_failed", row=context.claim.key, error=str(error))

    def _insist[T](self, put: Callable[[], T], deadline: float) -> T:
        for wait in _RETRY_SECONDS:
            try:
                return put()
            except ServiceUnavailable:
                if self.clock.now() + wait >= deadline:
                    raise
                self.clock.sleep(wait)
        return put()
