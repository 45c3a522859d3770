"""Fits a row's request to one model: what is sent, what is left out, and what it may cost.

Nothing is degraded silently: what a model lacks becomes a warning in the manifest, and what it must
not lack (a mask, editing as such) makes it ineligible.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date

from darkroom.calls import CallPlan, SourceImage
from darkroom.endpoints import Endpoint
from darkroom.errors import Ineligible
from darkroom.formatting import plural
from darkroom.images import codec
from darkroom.models import sizes
from darkroom.models.catalog import (
    EDIT_SETTINGS,
    GENERATE_SETTINGS,
    SETTINGS,
    Model,
    current_name,
    model_at,
    retirement_notice,
    worst_cost,
)
from darkroom.providers.registry import likely_provider_of
from darkroom.rows import Mode, RowRequest

MAX_MASK_BYTES = 4 * codec.MIB - 1
_SAME_SHAPE = 0.02  # relative difference in aspect ratio that is not visible
_SAME_AREA = 2.2  # factor that counts as the same resolution
_ORIENTATIONS = ((0.95, "portrait"), (1.05, "square"), (float("inf"), "landscape"))
# For a quality the model does not have: the nearest of those it has, in this order.
_QUALITY_ORDER = ("low", "medium", "high", "xhigh", "max")
_EQUIVALENT_QUALITIES = {"standard": "medium", "hd": "high"}


def model_for(requested: str | None, endpoint: Endpoint) -> str:
    """The requested model where the endpoint's provider makes it, else the endpoint's own.

    An endpoint with `model_is` is the deployment of one model and serves no other.
    """
    if requested is None or endpoint.model_is is not None:
        return endpoint.model
    if likely_provider_of(requested) is not endpoint.provider:
        return endpoint.model
    return requested


def endpoint_in_mode(endpoint: Endpoint, mode: Mode) -> Endpoint:
    """As the rows of a job with this mode use it: with the flex tier, if its model has that."""
    asks = mode == "flex" and endpoint.service_tier is None
    if asks and "flex" in model_at(endpoint, endpoint.model).service_tiers:
        return endpoint.model_copy(update={"service_tier": "flex"})
    return endpoint


def check_mode(endpoint: Endpoint, mode: Mode) -> None:
    """Raise Ineligible if an endpoint of `endpoint_in_mode` cannot be used in the mode."""
    if mode == "flex" and endpoint.service_tier != "flex":
        raise Ineligible("the job's mode is flex, which its model is not offered with")


def plan_call(
    request: RowRequest,
    images: tuple[SourceImage, ...],
    mask: SourceImage | None,
    endpoint: Endpoint,
    today: date,
    *,
    batch: bool = False,
) -> CallPlan:
    """Fit the row to a model; `images` and `mask` come from codec.open_source and open_mask.

    The model is the row's where the endpoint can serve it, else the endpoint's own. Raises
    Ineligible when that model cannot honour the row, though another may, and RowRejected
    (bad_image) when an image cannot be converted to what the model accepts. `batch`: its cost is
    that of a request in a batch.
    """
    name = model_for(request.model, endpoint)
    entry = model_at(endpoint, name, batch=batch)
    draft = _Draft(request, entry, endpoint)
    draft.warn_about_model(name, today)
    draft.check_eligible(images, mask)
    images = draft.fit_images(images)
    mask = draft.fit_mask(images, mask)
    size, aspect_ratio, resolution = draft.shape(images)
    output_format = draft.output_format()
    plan = CallPlan(
        endpoint.provider,
        current_name(endpoint, name),
        draft.prompt(),
        images,
        mask,
        size=size,
        aspect_ratio=aspect_ratio,
        resolution=resolution,
        quality=draft.quality(),
        output_format=output_format,
        n=draft.count(),
        settings=draft.settings(output_format, edits=bool(images or request.images)),
        model_of_row=name != endpoint.model,
    )
    cost = worst_cost(entry, plan)
    return replace(plan, warnings=tuple(draft.warnings), worst_cost_micro_usd=cost)


def check_operation(model: Model, *, images: bool, mask: bool) -> None:
    """Raise Ineligible if the model cannot edit or apply a mask, as the row requires."""
    if images and not model.edits:
        raise Ineligible(f"{model.name} only generates images, it cannot edit one")
    if mask and not images:
        raise Ineligible("a mask needs an image to apply to")
    if mask and not model.masks:
        raise Ineligible(f"{model.name} does not support masks")


@dataclass(slots=True)
class _Draft:
    """A plan in the making; its methods add to `warnings`."""

    request: RowRequest
    model: Model
    endpoint: Endpoint
    warnings: list[str] = field(default_factory=list)

    def _warn(self, sentence: str) -> None:
        self.warnings.append(sentence)

    def warn_about_model(self, name: str, today: date) -> None:
        model, requested, endpoint = self.model, self.request.model, self.endpoint
        provider, only = endpoint.provider.value, endpoint.model_is
        if requested not in (None, name, only):
            reason = f"is not {only}, the only one there" if only else f"is not {provider}'s"
            self._warn(f"model {requested} {reason}: {endpoint.name} used {name}")
        if not model.known:
            price = "" if model.image_prices else ", and its price is not known"
            self._warn(
                f"{model.name} is not in Darkroom's model catalogue: it is called as an ordinary "
                f"{provider} image model{price}"
            )
        if notice := retirement_notice(endpoint, name, today):
            self._warn(notice)

    def check_eligible(self, images: Sequence[SourceImage], mask: SourceImage | None) -> None:
        model, characters = self.model, len(self.request.instruction)
        check_operation(model, images=bool(images), mask=mask is not None)
        if characters > model.max_prompt_characters:
            limit = f"{model.name} accepts at most {model.max_prompt_characters}"
            raise Ineligible(f"the instruction has {characters} characters: {limit}")
        if model.square_input and images and mask is None and not codec.has_transparency(images[0]):
            raise Ineligible(
                f"{model.name} edits only the transparent area of a mask or image: there is none"
            )

    def fit_images(self, images: Sequence[SourceImage]) -> tuple[SourceImage, ...]:
        """As many as the model accepts, each within its size limits and in one of its formats."""
        model = self.model
        kept, dropped = images[: model.max_images], images[model.max_images :]
        if dropped:
            limit, names = plural(model.max_images, "input image"), [i.name for i in dropped]
            self._warn(f"{model.name} accepts {limit}: left out {', '.join(names)}")
        max_bytes = model.max_image_bytes
        if model.max_request_bytes and kept:
            max_bytes = min(max_bytes, _fair_share(model.max_request_bytes, kept))
        return tuple(self._fit_image(image, max_bytes) for image in kept)

    def _fit_image(self, image: SourceImage, max_bytes: int) -> SourceImage:
        model = self.model
        fitted = codec.square(image) if model.square_input else image
        if fitted is not image:
            limit = f"{model.name} accepts square images only"
            self._warn(f"{image.name} was padded with transparent bars: {limit}")
        fitted = codec.fit(fitted, model.input_formats, max_bytes)
        if fitted.width < image.width:
            self._warn(
                f"{image.name} was scaled from {image.width}x{image.height} to "
                f"{fitted.width}x{fitted.height} to fit the limits of {model.name}"
            )
        return fitted

    def fit_mask(
        self, images: Sequence[SourceImage], mask: SourceImage | None
    ) -> SourceImage | None:
        if mask is None:
            return None
        if self.model.square_input:
            mask = codec.square(mask)
        first = images[0]
        if (mask.width, mask.height) != (first.width, first.height):
            self._warn(
                f"the mask was scaled from {mask.width}x{mask.height} to "
                f"{first.width}x{first.height}, the size of {first.name}"
            )
            mask = codec.resize_mask(mask, first.width, first.height)
        if len(mask.data) > MAX_MASK_BYTES:
            problem = f"the mask has {len(mask.data) / codec.MIB:.1f} MiB"
            limit = f"{self.model.name} accepts less than 4 MiB"
            raise Ineligible(f"{problem}, {limit}: a mask of plain areas is far smaller")
        return mask

    def shape(self, images: Sequence[SourceImage]) -> tuple[str | None, str | None, str | None]:
        """size, aspect_ratio and resolution; a model has either sizes or the other two."""
        request, model = self.request, self.model
        if model.sizes:
            return self._size(images), None, None
        aspect_ratio: str | None = request.aspect_ratio
        resolution: str | None = request.resolution
        if requested := sizes.parse_size(request.size or ""):
            width, height = requested
            if aspect_ratio is None and model.aspect_ratios:
                aspect_ratio = sizes.nearest_ratio(width / height, model.aspect_ratios)
            if resolution is None and model.resolutions:
                resolution = sizes.nearest_resolution(width * height, model.resolutions)
            if request.aspect_ratio is None or request.resolution is None:
                used = " ".join(filter(None, (aspect_ratio, resolution)))
                change = f"{request.size} became {used}"
                self._warn(f"{model.name} does not accept sizes in pixels: {change}")
        if aspect_ratio is not None and aspect_ratio not in model.aspect_ratios:
            aspect_ratio = self._other_ratio(aspect_ratio)
        if resolution is not None and resolution not in model.resolutions:
            self._warn_about_resolution(resolution)
            resolution = None
        return None, aspect_ratio, resolution

    def _other_ratio(self, requested: str) -> str | None:
        """The nearest ratio; None where the model has no such parameter: the prompt states it."""
        model = self.model
        if not model.aspect_ratios:
            return None
        nearest = sizes.nearest_ratio(sizes.ratio_of(requested), model.aspect_ratios)
        self._warn(f"{model.name} has no aspect ratio {requested}: used {nearest} instead")
        return nearest

    def _size(self, images: Sequence[SourceImage]) -> str | None:
        request = self.request
        if request.size is not None:
            if parsed := sizes.parse_size(request.size):
                width, height = parsed
                return self._nearest_size(width / height, width * height, request.size)
            if request.size.strip().lower() != "auto":
                self._warn(
                    f"{request.size!r} is not a valid size (like 1024x1536): left to the model"
                )
        if request.aspect_ratio is None and request.resolution is None:
            return None  # the provider's own default, which follows the input image
        if request.aspect_ratio is None and not self.model.free_sizes:
            self._warn_about_resolution(request.resolution)
            return None
        own_ratio = images[0].width / images[0].height if images else 1.0
        ratio = sizes.ratio_of(request.aspect_ratio) if request.aspect_ratio else own_ratio
        requested = " ".join(filter(None, (request.aspect_ratio, request.resolution)))
        return self._nearest_size(ratio, sizes.PIXELS[request.resolution or "1K"], requested)

    def _nearest_size(self, ratio: float, pixels: int, requested: str) -> str:
        model, exact = self.model, sizes.parse_size(requested)
        if model.free_sizes:
            if exact is not None and sizes.is_free_size(*exact):
                return f"{exact[0]}x{exact[1]}"
            size = sizes.free_size(ratio, pixels)
        else:
            size = sizes.nearest_size(ratio, pixels, model.sizes)
        other_shape = abs(sizes.ratio_of(size) / ratio - 1) > _SAME_SHAPE
        # A free size is as large as the model allows: 3840 pixels across is what it calls 4K.
        same_area = model.free_sizes or 1 / _SAME_AREA < sizes.area(size) / pixels < _SAME_AREA
        if other_shape or not same_area or (exact and size != requested.strip().lower()):
            self._warn(f"{model.name} does not offer {requested}: used {size} instead")
        return size

    def _warn_about_resolution(self, resolution: str | None) -> None:
        if resolution != "1K":
            self._warn(f"{self.model.name} has no resolution {resolution}: its default is used")

    def quality(self) -> str | None:
        """The row's, else the endpoint's default; None for the provider's choice."""
        model, requested = self.model, self.request.quality or self.endpoint.quality or "auto"
        if requested == "auto":
            return None
        if requested in model.qualities:
            return requested
        if not model.qualities:
            if self.request.quality is not None:
                self._warn(f"{model.name} has no quality {requested}: it was left out")
            return None
        rank = _quality_rank(requested)
        nearest = min(model.qualities, key=lambda name: abs(_quality_rank(name) - rank))
        self._warn(f"{model.name} has no quality {requested}: used {nearest} instead")
        return nearest

    def output_format(self) -> str | None:
        """Of the output's name, where it is neither the default nor unsupported."""
        _, dot, extension = (self.request.output_name or "").rpartition(".")
        kind = codec.EXTENSIONS.get(extension.lower(), "").lower() if dot else ""
        return kind if kind in self.model.output_formats and kind != "png" else None

    def settings(self, output_format: str | None, *, edits: bool) -> dict[str, str | int]:
        """Those that are sent as the row has them, where the model accepts them."""
        kept: dict[str, str | int] = {}
        for name in SETTINGS:
            value = getattr(self.request, name)
            if value is None:
                continue
            if problem := self._setting_problem(name, value, output_format, edits=edits):
                self._warn(problem)
            else:
                kept[name] = value
        return kept

    def _setting_problem(
        self, name: str, value: str | int, output_format: str | None, *, edits: bool
    ) -> str | None:
        model = self.model
        accepted = model.settings.get(name, ())
        if not accepted:
            return f"{model.name} has no {name} setting: {value} was left out"
        if value not in accepted:
            choices = ", ".join(map(str, accepted))
            return f"{model.name} accepts {choices} as {name}: {value} was left out"
        if name in (GENERATE_SETTINGS if edits else EDIT_SETTINGS):
            operation = "edited" if edits else "generated"
            return f"{name} does not apply to an image that is {operation}: it was left out"
        if name == "background" and value == "transparent" and output_format == "jpeg":
            return "a JPEG cannot be transparent: the background will be white"
        if name == "output_compression" and output_format is None:
            return "a PNG has no output_compression: name the output .jpg or .webp to use it"
        return None

    def prompt(self) -> str:
        """The instruction; with the shape in words where the model has no parameter for it."""
        request, model = self.request, self.model
        if model.aspect_ratios or len({sizes.ratio_of(size) for size in model.sizes}) > 1:
            return request.instruction
        parsed = sizes.parse_size(request.size or "")
        shape = request.aspect_ratio or (parsed and f"{parsed[0]}x{parsed[1]}")
        if not shape:
            return request.instruction
        ratio = sizes.ratio_of(shape)
        orientation = next(name for limit, name in _ORIENTATIONS if ratio < limit)
        sentence = f"Make the image {orientation}, with an aspect ratio of {shape}."
        return f"{request.instruction}\n\n{sentence}"

    def count(self) -> int:
        n, max_n = self.request.n, self.model.max_n
        if n > max_n:
            self._warn(f"{self.model.name} makes {plural(max_n, 'image')} per call: n was {n}")
        return min(n, max_n)


def _fair_share(total: int, images: Sequence[SourceImage]) -> int:
    """The most bytes for one image so that all fit together; small ones leave room for others."""
    left = total
    waiting = sorted(len(image.data) for image in images)
    while waiting:
        share = left // len(waiting)
        if waiting[0] > share:
            return share
        left -= waiting.pop(0)
    return total


def _quality_rank(quality: str) -> int:
    return _QUALITY_ORDER.index(_EQUIVALENT_QUALITIES.get(quality, quality))
