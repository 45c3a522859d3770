"""A row's pictures brought into what the model takes: how many, how large, of which format."""

from collections.abc import Sequence

from darkroom.calls import SourceImage
from darkroom.images import pictures
from darkroom.limits.errand import Ineligible
from darkroom.models.model_types import MIB
from darkroom.models.plan_draft import Draft

MASK_BYTES = 4 * MIB - 1


def fit_images(draft: Draft, images: Sequence[SourceImage]) -> tuple[SourceImage, ...]:
    entry = draft.model
    kept, dropped = images[: entry.max_images], images[entry.max_images :]
    if dropped:
        names = ", ".join(image.name for image in dropped)
        draft.warn(
            f"{entry.name} takes {entry.max_images} input image{'s' * (entry.max_images > 1)}: "
            f"left out {names}"
        )
    share = entry.max_image_bytes
    if entry.max_request_bytes and kept:
        share = min(share, _share(entry.max_request_bytes, kept))
    return tuple(_fit_image(draft, image, share) for image in kept)


def _share(total: int, images: Sequence[SourceImage]) -> int:
    """The most bytes for one image, so that all fit together; small ones leave room for others."""
    left = total
    waiting = sorted(len(image.data) for image in images)
    while waiting:
        fair = left // len(waiting)
        if waiting[0] > fair:
            return fair
        left -= waiting.pop(0)
    return total


def _fit_image(draft: Draft, image: SourceImage, max_bytes: int) -> SourceImage:
    entry = draft.model
    fitted = pictures.square(image) if entry.square_input else image
    if fitted is not image:
        draft.warn(f"{image.name} got transparent bars: {entry.name} takes square pictures only")
    fitted = pictures.fit(fitted, entry.input_formats, max_bytes)
    if fitted.width < image.width:
        draft.warn(
            f"{image.name} was scaled from {image.width}x{image.height} to "
            f"{fitted.width}x{fitted.height} to fit what {entry.name} takes"
        )
    return fitted


def fit_mask(
    draft: Draft, images: Sequence[SourceImage], mask: SourceImage | None
) -> SourceImage | None:
    if mask is None:
        return None
    if draft.model.square_input:
        mask = pictures.square(mask)
    first = images[0]
    if (mask.width, mask.height) != (first.width, first.height):
        draft.warn(
            f"the mask was scaled from {mask.width}x{mask.height} to {first.width}x{first.height}, "
            f"the size of {first.name}"
        )
        mask = pictures.resize_mask(mask, first.width, first.height)
    if len(mask.data) > MASK_BYTES:
        raise Ineligible(
            f"the mask has {len(mask.data) / MIB:.1f} MiB, {draft.model.name} takes less than 4: "
            "a mask of plain areas is far smaller"
        )
    return mask
