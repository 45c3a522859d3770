"""aspect_ratio, resolution and size as the provider takes them, each from either."""

from collections.abc import Sequence

from darkroom.calls import Provider, SourceImage
from darkroom.models import sizes
from darkroom.models.plan_draft import Draft

SAME_SHAPE = 0.02  # a difference in shape that nobody sees
SAME_AREA = 2.2  # a factor


def shape(draft: Draft, images: Sequence[SourceImage]) -> tuple[str | None, str | None, str | None]:
    """size, aspect_ratio, resolution: as the provider takes them."""
    if draft.model.provider is Provider.GEMINI:
        return None, *_gemini_shape(draft)
    return _openai_size(draft, images), None, None


def _gemini_shape(draft: Draft) -> tuple[str | None, str | None]:
    request, entry = draft.request, draft.model
    aspect_ratio: str | None = request.aspect_ratio
    resolution: str | None = request.resolution
    wanted = sizes.parse_size(request.size or "")
    if wanted is not None:
        width, height = wanted
        if aspect_ratio is None and entry.aspect_ratios:
            aspect_ratio = sizes.nearest_ratio(width / height, entry.aspect_ratios)
        if resolution is None and entry.resolutions:
            resolution = sizes.nearest_resolution(width * height, entry.resolutions)
        if request.aspect_ratio is None or request.resolution is None:
            asked = " ".join(x for x in (aspect_ratio, resolution) if x)
            draft.warn(f"{entry.name} takes no size in pixels: {request.size} became {asked}")
    if aspect_ratio not in (None, *entry.aspect_ratios):
        aspect_ratio = None  # the prompt says it
    if resolution is not None and resolution not in entry.resolutions:
        if resolution != "1K":
            draft.warn(f"{entry.name} has no resolution {resolution}: its own is used")
        resolution = None
    return aspect_ratio, resolution


def _openai_size(draft: Draft, images: Sequence[SourceImage]) -> str | None:
    request, entry = draft.request, draft.model
    if request.size is not None:
        parsed = sizes.parse_size(request.size)
        if parsed is not None:
            return _nearest(draft, parsed[0] / parsed[1], parsed[0] * parsed[1], request.size)
        if request.size.strip().lower() != "auto":
            draft.warn(f"size {request.size!r} is not like 1024x1536: the model chooses")
    if request.aspect_ratio is None and request.resolution is None:
        return None  # the provider's own default, which follows the picture
    if request.aspect_ratio is None and not entry.free_sizes:
        _resolution_alone(draft)
        return None
    own = images[0].width / images[0].height if images else 1.0
    ratio = sizes.ratio_of(request.aspect_ratio) if request.aspect_ratio else own
    pixels = sizes.PIXELS[request.resolution or "1K"]
    asked = " ".join(x for x in (request.aspect_ratio, request.resolution) if x)
    return _nearest(draft, ratio, pixels, asked)


def _resolution_alone(draft: Draft) -> None:
    """A resolution without a shape: fixed sizes leave nothing to choose."""
    if draft.request.resolution != "1K":
        draft.warn(
            f"{draft.model.name} has no resolution {draft.request.resolution}: its own is used"
        )


def _nearest(draft: Draft, ratio: float, pixels: int, asked: str) -> str:
    entry = draft.model
    if entry.free_sizes:
        parsed = sizes.parse_size(asked)
        if parsed is not None and sizes.is_free_size(*parsed):
            return f"{parsed[0]}x{parsed[1]}"
        size = sizes.free_size(ratio, pixels)
    else:
        size = sizes.nearest_size(ratio, pixels, entry.sizes)
    width, height = sizes.parse_size(size) or (1, 1)
    off_shape = abs(width / height / ratio - 1) > SAME_SHAPE
    # A free size is as large as the model can make it: 3840 pixels across is what it calls 4K.
    off_area = not entry.free_sizes and not 1 / SAME_AREA < width * height / pixels < SAME_AREA
    if off_shape or off_area or (sizes.parse_size(asked) and size != asked.strip().lower()):
        draft.warn(f"{entry.name} has no {asked}: {size} is the nearest")
    return size
