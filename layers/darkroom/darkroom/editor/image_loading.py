"""Loads the pictures a row names, as forgiving as it can be."""

from dataclasses import dataclass

from darkroom.calls import SourceImage
from darkroom.errors import Reason, RetryRow, RowRejected
from darkroom.formatting import redact_url
from darkroom.images.codec import open_mask, open_source
from darkroom.ports import ImageFetcher
from darkroom.rows import RowRequest


@dataclass(frozen=True, slots=True)
class Loaded:
    images: tuple[SourceImage, ...] = ()
    mask: SourceImage | None = None
    warnings: tuple[str, ...] = ()


def load(request: RowRequest, base: str, fetcher: ImageFetcher, *, last_attempt: bool) -> Loaded:
    """A reference that fails is skipped with a warning if another one loads.

    One that may load later is worth another attempt, if there is one. Raises RowRejected (the
    first reference's error when none loads; bad_image for a mask), RetryRow (image_unavailable).
    """
    images: list[SourceImage] = []
    broken: list[tuple[str, RowRejected]] = []
    away: list[tuple[str, RetryRow]] = []
    for reference in request.images:
        try:
            images.append(open_source(fetcher.fetch(reference, base), redact_url(reference)))
        except RowRejected as error:
            broken.append((reference, error))
        except RetryRow as error:
            away.append((reference, error))
    if away and not (last_attempt and images):
        raise away[0][1]
    if broken and not images:
        raise broken[0][1]
    skipped: list[tuple[str, RowRejected | RetryRow]] = [*broken, *away]
    warnings = tuple(
        f"skipped {redact_url(reference)}: {error.detail}" for reference, error in skipped
    )
    return Loaded(tuple(images), _load_mask(request.mask, base, fetcher), warnings)


def _load_mask(reference: str | None, base: str, fetcher: ImageFetcher) -> SourceImage | None:
    if reference is None:
        return None
    try:
        return open_mask(fetcher.fetch(reference, base), redact_url(reference))
    except RowRejected as error:
        raise RowRejected(Reason.BAD_IMAGE, f"mask: {error.detail}") from error
