"""A row's request fitted to one model: what is sent, what is left out, and what it may cost.

Nothing is degraded in silence: what a model lacks becomes a warning, what it must not lack (a mask,
editing as such) makes it ineligible.
"""

from collections.abc import Sequence
from math import ceil

from darkroom.calls import CallPlan, Provider, SourceImage
from darkroom.images import pictures
from darkroom.limits.errand import Ineligible
from darkroom.models import sizes
from darkroom.models.capabilities import find, picture_price, worst_cost
from darkroom.models.model_types import Model
from darkroom.models.plan_draft import Draft
from darkroom.models.plan_images import fit_images, fit_mask
from darkroom.models.plan_shape import shape
from darkroom.rows import RowRequest

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
    """Fit the row to the model; `images` and `mask` as `pictures.open_source` and `open_mask` gave.

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
    if entry.square_input and images and mask is None and not pictures.has_transparency(images[0]):
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
    kind = pictures.EXTENSIONS.get(extension.lower(), "").lower() if dot else ""
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
    if entry.provider is Provider.GEMINI:
        return picture_price(entry, quality=resolution or "1K")
    parsed = sizes.parse_size(size or "")
    megapixels = ceil(parsed[0] * parsed[1] / sizes.PIXELS["1K"] * 100) / 100 if parsed else 1
    return picture_price(entry, quality=quality, size=size, megapixels=megapixels)
