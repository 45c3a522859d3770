"""A plan in the making: what is asked for, of which model, and what had to be changed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from darkroom.calls import CallPlan, SourceImage
from darkroom.errors import Ineligible
from darkroom.images import codec
from darkroom.models import sizes
from darkroom.models.catalog import MIB, Model, find, image_price, worst_cost
from darkroom.providers.registry import Provider
from darkroom.rows import RowRequest


@dataclass(slots=True)
class Draft:
    request: RowRequest
    model: Model
    warnings: list[str] = field(default_factory=list)

    def warn(self, sentence: str) -> None:
        """Nothing is degraded in silence: the sentence goes into the manifest."""
        self.warnings.append(sentence)


# A row's pictures brought into what the model takes: how many, how large, of which format.


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
    fitted = codec.square(image) if entry.square_input else image
    if fitted is not image:
        draft.warn(f"{image.name} got transparent bars: {entry.name} takes square pictures only")
    fitted = codec.fit(fitted, entry.input_formats, max_bytes)
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
        mask = codec.square(mask)
    first = images[0]
    if (mask.width, mask.height) != (first.width, first.height):
        draft.warn(
            f"the mask was scaled from {mask.width}x{mask.height} to {first.width}x{first.height}, "
            f"the size of {first.name}"
        )
        mask = codec.resize_mask(mask, first.width, first.height)
    if len(mask.data) > MASK_BYTES:
        raise Ineligible(
            f"the mask has {len(mask.data) / MIB:.1f} MiB, {draft.model.name} takes less than 4: "
            "a mask of plain areas is far smaller"
        )
    return mask


# aspect_ratio, resolution and size as the provider takes them, each from either.


SAME_SHAPE = 0.02  # a difference in shape that nobody sees
SAME_AREA = 2.2  # a factor


def shape(draft: Draft, images: Sequence[SourceImage]) -> tuple[str | None, str | None, str | None]:
    """size, aspect_ratio, resolution: as the provider takes them."""
    if draft.model.aspect_ratios:  # it takes no size in pixels
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


# A row's request fitted to one model: what is sent, what is left out, and what it may cost.
#
# Nothing is degraded in silence: what a model lacks becomes a warning, what it must not lack
# (a mask,
# editing as such) makes it ineligible.


# For a quality the model does not have: the nearest of those it has, in this order.
_LADDER = ("low", "medium", "high", "xhigh", "max")
_SAME_QUALITY = {"standard": "medium", "hd": "high"}
_SHAPES = ((0.95, "portrait"), (1.05, "square"), (float("inf"), "landscape"))


def plan_call(
    request: RowRequest,
    images: tuple[SourceImage, ...],
    mask: SourceImage | None,
    provider: Provider,
    model: str,
) -> CallPlan:
    """Fit the row to the model; `images` and `mask` as `codec.open_source` and `open_mask` gave.

    Raises Ineligible when this model cannot honour the row, though another may, and RowRejected
    (bad_image) when a picture cannot be brought into a form that it takes.
    """
    entry = find(provider, model)
    draft = Draft(request, entry)
    _warn_of_the_model(draft, model)
    _check_eligible(draft, images, mask)
    sent = fit_images(draft, images)
    sent_mask = fit_mask(draft, sent, mask)
    size, aspect_ratio, resolution = shape(draft, sent)
    quality = _quality(draft)
    background, output_format = _output(draft)
    prompt = _prompt(draft)
    n = _count(draft)
    return CallPlan(
        provider=provider,
        model=model,
        prompt=prompt,
        images=sent,
        mask=sent_mask,
        size=size,
        aspect_ratio=aspect_ratio,
        resolution=resolution,
        quality=quality,
        background=background,
        output_format=output_format,
        n=n,
        warnings=tuple(draft.warnings),
        worst_cost_micro_usd=worst_cost(
            entry, prompt, len(sent), _one_picture(entry, quality, size, resolution), n
        ),
    )


def _warn_of_the_model(draft: Draft, name: str) -> None:
    entry = draft.model
    if not entry.known:
        draft.warn(
            f"{entry.name} is not in Darkroom's table of models: it is called as an ordinary "
            f"{entry.provider.value} image model, and its price is not known"
        )
    if entry.retired_on is not None:
        draft.warn(
            f"{entry.name} was shut down by its provider on {entry.retired_on.isoformat()}: only a "
            "compatible endpoint still serves it"
        )
    if (ended := entry.retired_names.get(name.removeprefix("models/"))) is not None:
        draft.warn(
            f"its provider has shut down the name {name} on {ended.isoformat()}: use {entry.name}"
        )


def _check_eligible(draft: Draft, images: Sequence[SourceImage], mask: SourceImage | None) -> None:
    entry = draft.model
    if images and not entry.edits:
        raise Ineligible(f"{entry.name} makes new pictures only, it cannot edit one")
    if not images and not entry.generates:
        raise Ineligible(f"{entry.name} needs a picture to edit")
    if mask is not None and not images:
        raise Ineligible("a mask needs a picture that it belongs to")
    if mask is not None and not entry.masks:
        raise Ineligible(f"{entry.name} takes no mask")
    if len(draft.request.instruction) > entry.max_prompt_characters:
        raise Ineligible(
            f"the instruction has {len(draft.request.instruction)} characters, {entry.name} takes "
            f"{entry.max_prompt_characters}"
        )
    if entry.square_input and images and mask is None and not codec.has_transparency(images[0]):
        raise Ineligible(f"{entry.name} edits only where a mask is transparent, and there is none")


def _quality(draft: Draft) -> str | None:
    asked, entry = draft.request.quality, draft.model
    if asked is None or asked.strip().lower() == "auto":
        return None
    wanted = asked.strip().lower()
    if wanted in entry.qualities:
        return wanted
    nearest = _nearest_quality(wanted, entry.qualities)
    if nearest is None:
        draft.warn(f"quality {asked} means nothing to {entry.name}: left out")
    else:
        draft.warn(f"{entry.name} has no quality {asked}: {nearest} is the nearest")
    return nearest


def _nearest_quality(wanted: str, offered: Sequence[str]) -> str | None:
    def rung(quality: str) -> int | None:
        named = _SAME_QUALITY.get(quality, quality)
        return _LADDER.index(named) if named in _LADDER else None

    place = rung(wanted)
    if place is None or not offered:
        return None
    return min(offered, key=lambda quality: abs((rung(quality) or 0) - place))


def _output(draft: Draft) -> tuple[str | None, str | None]:
    """background and output_format, which only OpenAI's newer models take."""
    request, entry = draft.request, draft.model
    _, dot, extension = (request.output_name or "").rpartition(".")
    kind = codec.EXTENSIONS.get(extension.lower(), "").lower() if dot else ""
    output_format = kind if kind in entry.output_formats and kind != "png" else None
    background = request.background
    if background is None:
        return None, output_format
    if background not in entry.backgrounds:
        draft.warn(f"{entry.name} takes no background: {background} was left out")
        return None, output_format
    if background == "transparent" and output_format == "jpeg":
        draft.warn("a JPEG cannot be transparent: the background will be white")
        return None, output_format
    return background, output_format


def _prompt(draft: Draft) -> str:
    """The instruction; with the shape in words where the model takes none as a parameter."""
    request, entry = draft.request, draft.model
    wanted = request.aspect_ratio or request.size
    shapes = {sizes.ratio_of(size) for size in entry.sizes}
    if wanted is None or entry.aspect_ratios or len(shapes) > 1:
        return request.instruction
    if request.aspect_ratio is None and sizes.parse_size(wanted) is None:
        return request.instruction
    ratio = sizes.ratio_of(wanted)
    words = next(name for most, name in _SHAPES if ratio < most)
    return f"{request.instruction}\n\nMake the picture {words}, with an aspect ratio of {wanted}."


def _count(draft: Draft) -> int:
    entry, n = draft.model, draft.request.n
    if n <= entry.max_n:
        return n
    plural = "s" if entry.max_n > 1 else ""
    draft.warn(f"{entry.name} makes {entry.max_n} picture{plural} a call: n was {n}")
    return entry.max_n


def _one_picture(
    entry: Model, quality: str | None, size: str | None, resolution: str | None
) -> int | None:
    if entry.aspect_ratios:  # priced by resolution
        return image_price(entry, quality=resolution or "1K")
    parsed = sizes.parse_size(size or "")
    megapixels = ceil(parsed[0] * parsed[1] / sizes.PIXELS["1K"] * 100) / 100 if parsed else 1
    return image_price(entry, quality=quality, size=size, megapixels=megapixels)
