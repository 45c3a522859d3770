"""Loads a row's input images and mask; a reference that fails is skipped if another one loads."""

from dataclasses import dataclass

from darkroom.calls import SourceImage
from darkroom.errors import Reason, RetryRow, RowError, RowRejected
from darkroom.formatting import redact_url
from darkroom.images.codec import open_mask, open_source
from darkroom.images.memory import MAX_ROW_BYTES
from darkroom.ports import ImageFetcher
from darkroom.rows import RowRequest


@dataclass(frozen=True, slots=True)
class LoadedImages:
    images: tuple[SourceImage, ...] = ()
    mask: SourceImage | None = None
    warnings: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(len(i.data) for i in (*self.images, *((self.mask,) if self.mask else ())))


def load_images(
    request: RowRequest, base: str, fetcher: ImageFetcher, *, last_attempt: bool
) -> LoadedImages:
    """The images and mask that the row names, with a warning for each reference skipped.

    A reference that may load later is worth another attempt, if there is one. Raises RowRejected
    (the first reference's error when none loads; bad_image for a mask, and for images that are too
    large together), RetryRow (image_unavailable).
    """
    images: list[SourceImage] = []
    left = MAX_ROW_BYTES
    failures: list[tuple[str, RowError]] = []
    for reference in request.images:
        try:
            image = open_source(fetcher.fetch(reference, base), redact_url(reference))
        except RowError as error:
            failures.append((redact_url(reference), error))
        else:
            left -= len(image.data)
            _check_total(left)
            images.append(image)
    unavailable = [error for _, error in failures if isinstance(error, RetryRow)]
    if unavailable and not (last_attempt and images):
        raise unavailable[0]
    if failures and not images:
        raise failures[0][1]
    warnings = tuple(f"skipped {name}: {error.detail}" for name, error in failures)
    return LoadedImages(tuple(images), _load_mask(request.mask, base, fetcher), warnings)


def _check_total(bytes_left: int) -> None:
    if bytes_left < 0:
        limit = f"at most {MAX_ROW_BYTES >> 20} MiB: use fewer or smaller images"
        raise RowRejected(Reason.BAD_IMAGE, f"the row's images have more than {limit}")


def _load_mask(reference: str | None, base: str, fetcher: ImageFetcher) -> SourceImage | None:
    if reference is None:
        return None
    try:
        return open_mask(fetcher.fetch(reference, base), redact_url(reference))
    except RowRejected as error:
        raise RowRejected(Reason.BAD_IMAGE, f"mask: {error.detail}") from error
