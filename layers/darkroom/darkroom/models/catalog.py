"""The image models: what each accepts, makes and costs, with sources.

To add a model or change a figure, edit its entry with its source and `CHECKED`, then run
`python -m darkroom_local.models_page`, which writes docs/models.md.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from math import ceil

from darkroom.calls import CallPlan
from darkroom.endpoints import Endpoint, Prices
from darkroom.images.codec import JPEG, MIB, PNG, WEBP
from darkroom.models import sizes
from darkroom.providers.registry import PROVIDERS, Provider

RETIREMENT_NOTICE = timedelta(days=60)  # how long before a model's end users are warned
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """US dollars per million tokens, which is micro-USD per token."""

    text_in: float
    image_in: float
    image_out: float
    text_out: float = 0.0  # thoughts, and text beside the image
    input_image_tokens: int = 0  # the most that one input image is counted as


@dataclass(frozen=True, slots=True)
class Retirement:
    """When the provider ends a model, or one of its names, at its own endpoints."""

    on: date
    successor: str  # the model that the provider recommends
    source: str
    confirmed: bool = True  # False: the provider may serve it for longer


@dataclass(frozen=True, slots=True)
class Model:
    """One image model. An empty tuple means that the model has no such parameter."""

    name: str
    provider: Provider
    edits: bool = True
    masks: bool = False
    max_images: int = 1
    input_formats: tuple[str, ...] = (PNG, JPEG, WEBP)
    max_image_bytes: int = 50 * MIB
    max_request_bytes: int | None = None  # all images of a call together, before base64
    square_input: bool = False
    aspect_ratios: tuple[str, ...] = ()
    resolutions: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    free_sizes: bool = False
    qualities: tuple[str, ...] = ()
    output_formats: tuple[str, ...] = ()
    # Further settings by their names in EditSettings, with the values that the model accepts.
    settings: Mapping[str, Collection[str | int]] = field(default_factory=dict)
    needs_response_format: bool = False  # returns a URL unless `response_format` is b64_json
    max_n: int = 1
    max_prompt_characters: int = 32_000
    thinking_tokens: int = 0  # allowance in an estimate for thoughts and text beside an image
    token_prices: TokenPrices | None = None
    # Micro-USD of one image by resolution, "quality" or "quality/size", as in the provider's own
    # table: for quotes and budgets, and where a response does not count its tokens.
    image_prices: Mapping[str, int] = field(default_factory=dict)
    service_tiers: Mapping[str, float] = field(default_factory=dict)  # factor of all its prices
    batch_factor: float | None = None  # of all its prices in a batch; None: it cannot be batched
    retirement: Retirement | None = None
    note: str = ""
    aliases: tuple[str, ...] = ()
    retired_names: Mapping[str, Retirement] = field(default_factory=dict)  # former aliases
    sources: tuple[str, ...] = ()
    known: bool = True


# --- The catalogue ------------------------------------------------------------------------------
# Token prices in US dollars per million; `image_prices` in micro-USD ($0.134 is 134_000). A source
# that "quotes" is second hand. Read from stored copies of these pages, as of the dates they carry.

CHECKED = date(2026, 11, 21)

_OPENAI_API = "openai 3.52, image_edit_params, image_generate_params and image_model"
_OPENAI_MODELS = "https://developers.openai.com/api/docs/models"
_OPENAI_DEPRECATIONS = (
    "https://developers.openai.com/api/docs/deprecations (stored in November 2026)"
)
_GPT_1_PRICES = (
    "https://www.aifreeapi.com/en/posts/gpt-image-1-5-pricing (quotes OpenAI's of 2026-03-23)"
)
_GPT_15_PRICES = (
    "https://www.llmreference.com/model/gpt-image-1.5/openai-api (quotes OpenAI's of 2026-05-10)"
)
_GPT_2_PRICES = (
    "https://yingtu.ai/en/blog/gpt-image-2-cost-per-image (quotes OpenAI's prices of 2026-05-06)"
)
_GPT_25_PRICES = (
    "https://apidog.com/blog/gpt-image-2-5-api/ (quotes OpenAI's prices of 2026-09-09); tokens of "
    "an image: https://github.com/sanand0/blog, quality-levels-of-gpt-image-2.5-flare, 2026-09-26"
)
_GPT_26_PRICES = (
    f"{_OPENAI_MODELS}/gpt-image-2.6-sunburst (prices of tokens); tokens of an image relative to "
    "2.5: https://docs.laozhang.ai/en/api-capabilities/gpt-image-2-6"
)
_DALL_E_PRICES = "OpenAI's last price list for DALL-E, from before it was shut down; not read again"
_GEMINI_PRICES = (
    "https://www.aifreeapi.com/en/posts/gemini-3-pro-image-preview-pricing (quotes "
    "https://ai.google.dev/gemini-api/docs/pricing of 2026-03-23)"
)
_GEMINI_TYPES = "google-genai 3.4, types.ImageConfig, ThinkingLevel and ServiceTier"
_GEMINI_CHANGELOG = "https://ai.google.dev/gemini-api/docs/changelog (stored 2026-10)"
_GEMINI_DEPRECATIONS = "https://ai.google.dev/gemini-api/docs/deprecations"
_GEMINI_SETTINGS = (
    "ratios, sizes, input images and thinking levels: "
    "https://docs.laozhang.ai/en/api-capabilities/nano-banana-image (2026-11)"
)
_GEMINI_25_PRICES = (
    "1,290 tokens an image at $30 per million, as many pages quote Google's price page"
)
_NANO_BANANA_PRICES = (
    "https://github.com/BerriAI/litellm/discussions/44983 (prices of tokens and of 1K, 2026-10); "
    "tokens of 2K and 4K from the prices of https://fal.ai/learn/tools/nano-banana-api"
)
_FLASH_LITE_PRICES = "https://github.com/BerriAI/litellm/pull/31946 (quotes Google's of 2026-07-02)"
_FLASH_PRICES = (
    "https://lumenfall.ai/models/google/gemini-3.1-flash-image-preview/providers (quotes Google's "
    "prices of 2026-02-26)"
)
_VERTEX = "https://docs.cloud.google.com/vertex-ai/generative-ai/docs/models/gemini"
_RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
_PANORAMAS = ("1:4", "4:1", "1:8", "8:1")
_SQUARE, _TALL, _WIDE = "1024x1024", "1024x1536", "1536x1024"


def _by_size(
    square: str = _SQUARE, tall: str = _TALL, wide: str = _WIDE, **prices: tuple[int, int]
) -> dict[str, int]:
    """Micro-USD of each quality's square image, and of its tall or wide one."""
    return {
        f"{quality}/{size}": price
        for quality, (of_square, of_other) in prices.items()
        for size, price in ((square, of_square), (tall, of_other), (wide, of_other))
    }


# --- Gemini -------------------------------------------------------------------------------------
# 100 MB is the limit of a request with inline data since 2026-01-08, an image has none of its own:
# https://blog.google/innovation-and-ai/technology/developers-tools/gemini-api-new-file-limits.
# base64 makes 4 bytes of 3, and 1 MB is left for the instruction.
_SEEDS = range(2**31)
_GEMINI = Model(
    name="",
    provider=Provider.GEMINI,
    max_images=14,
    max_image_bytes=74_000_000,
    max_request_bytes=74_000_000,
    aspect_ratios=_RATIOS,
    resolutions=("1K", "2K", "4K"),
    settings={"seed": _SEEDS},
    max_prompt_characters=100_000,
    service_tiers={"flex": 0.5},  # https://ai.google.dev/gemini-api/docs/flex-inference
    batch_factor=0.5,  # https://ai.google.dev/gemini-api/docs/batch-api
)
# On Google's enterprise platform an inline image has at most 7 MB; a flex request at most 20 MB:
# the pages of its models, and https://docs.cloud.google.com/gemini-enterprise-agent-platform/models/flex-paygo.
_ENTERPRISE_IMAGE_BYTES = 7_000_000
_ENTERPRISE_FLEX_BYTES = 14_000_000
_NANO_BANANA_2_1 = "gemini-nano-banana-2.1"
_PREVIEWS_ENDED = Retirement(date(2026, 6, 25), "", f"{_GEMINI_CHANGELOG}, entry of 2026-05-28")
GEMINI_MODELS = (
    replace(
        _GEMINI,
        name="gemini-3-pro-image",
        thinking_tokens=4096,
        token_prices=TokenPrices(2, 2, 120, text_out=12, input_image_tokens=1120),
        image_prices={"1K": 134_400, "2K": 134_400, "4K": 240_000},
        aliases=("gemini-3-pro-image-preview",),
        retired_names={
            "gemini-3-pro-image-preview": replace(_PREVIEWS_ENDED, successor="gemini-3-pro-image")
        },
        sources=(_GEMINI_PRICES, _GEMINI_TYPES),
    ),
    replace(
        _GEMINI,
        name=_NANO_BANANA_2_1,
        aspect_ratios=(*_RATIOS, *_PANORAMAS),
        settings={"seed": _SEEDS, "thinking_level": ("minimal", "medium", "high")},
        thinking_tokens=4096,
        token_prices=TokenPrices(1.5, 1.5, 30, text_out=7.5, input_image_tokens=1120),
        image_prices={"1K": 33_600, "2K": 50_400, "4K": 113_400},
        sources=(_NANO_BANANA_PRICES, f"{_GEMINI_CHANGELOG}, 2026-10-06", _GEMINI_SETTINGS),
    ),
    replace(
        _GEMINI,
        name="gemini-3.1-flash-image",
        aspect_ratios=(*_RATIOS, *_PANORAMAS),
        resolutions=("512", "1K", "2K", "4K"),
        settings={"seed": _SEEDS, "thinking_level": ("minimal", "high")},
        thinking_tokens=4096,
        token_prices=TokenPrices(0.5, 0.5, 60, text_out=3, input_image_tokens=1120),
        image_prices={"512": 45_000, "1K": 67_200, "2K": 100_800, "4K": 151_200},
        retirement=Retirement(
            date(2026, 10, 29),
            _NANO_BANANA_2_1,
            "https://github.com/BerriAI/litellm/discussions/44983",
            confirmed=False,
        ),
        aliases=("gemini-3.1-flash-image-preview",),
        retired_names={
            "gemini-3.1-flash-image-preview": replace(
                _PREVIEWS_ENDED, successor="gemini-3.1-flash-image"
            )
        },
        sources=(f"{_VERTEX}/3-1-flash-image", _FLASH_PRICES, _GEMINI_SETTINGS, _GEMINI_TYPES),
    ),
    replace(
        _GEMINI,
        name="gemini-3.1-flash-lite-image",
        resolutions=("1K",),
        settings={"seed": _SEEDS, "thinking_level": ("minimal", "high")},
        thinking_tokens=4096,
        token_prices=TokenPrices(0.25, 0.25, 30, text_out=1.5, input_image_tokens=1120),
        image_prices={"1K": 33_600},
        sources=(_FLASH_LITE_PRICES, f"{_GEMINI_CHANGELOG}, 2026-06-30", _GEMINI_SETTINGS),
    ),
    replace(
        _GEMINI,
        name="gemini-2.5-flash-image",
        max_images=3,
        resolutions=(),
        thinking_tokens=2048,
        token_prices=TokenPrices(0.3, 0.3, 30, text_out=2.5, input_image_tokens=4128),
        image_prices={"1K": 38_700},
        note="always about one megapixel",
        retirement=Retirement(
            date(2026, 10, 2), _NANO_BANANA_2_1, _GEMINI_DEPRECATIONS, confirmed=False
        ),
        aliases=("gemini-2.5-flash-image-preview",),
        retired_names={
            "gemini-2.5-flash-image-preview": Retirement(
                date(2025, 10, 31), "gemini-2.5-flash-image", _GEMINI_DEPRECATIONS
            )
        },
        sources=(f"{_VERTEX}/2-5-flash-image", _GEMINI_25_PRICES, _GEMINI_TYPES),
    ),
)

# --- OpenAI -------------------------------------------------------------------------------------
_PERCENT = range(101)
_RENDERING: dict[str, Collection[str | int]] = {
    "background": ("transparent", "opaque", "auto"),
    "moderation": ("auto", "low"),
    "output_compression": _PERCENT,
}
# The parameters that only one of the two operations has (the request types of openai 3.52).
EDIT_SETTINGS = frozenset({"input_fidelity"})
GENERATE_SETTINGS = frozenset({"moderation"})
_GPT_26_SUNBURST = "gpt-image-2.6-sunburst"
_ENDS_IN_DECEMBER = Retirement(date(2026, 12, 1), _GPT_26_SUNBURST, _OPENAI_DEPRECATIONS)
_DALL_E_ENDED = Retirement(date(2026, 5, 12), _GPT_26_SUNBURST, _OPENAI_API)
_GPT = Model(
    name="",
    provider=Provider.OPENAI,
    masks=True,
    max_images=16,
    max_image_bytes=50 * MIB - 1,
    sizes=(_SQUARE, _TALL, _WIDE),
    qualities=("low", "medium", "high"),
    output_formats=("png", "jpeg", "webp"),
    settings=_RENDERING | {"input_fidelity": ("low", "high")},
    max_n=10,
    batch_factor=0.5,  # https://developers.openai.com/api/docs/guides/batch
    token_prices=TokenPrices(5, 8, 32, text_out=10, input_image_tokens=1024),
    image_prices=_by_size(low=(9_000, 13_000), medium=(34_000, 50_000), high=(133_200, 200_000)),
)
# Input images are always read at high fidelity, which counts up to 6,240 tokens on top.
_GPT_2 = replace(
    _GPT,
    free_sizes=True,
    settings=_RENDERING,
    token_prices=TokenPrices(5, 8, 30, text_out=10, input_image_tokens=7264),
    image_prices=_by_size(low=(6_000, 5_000), medium=(53_000, 41_000), high=(211_000, 165_000)),
)
_GPT_25 = replace(
    _GPT_2,
    qualities=("low", "medium", "high", "xhigh", "max"),
    image_prices={"low": 5_880, "medium": 13_170, "high": 52_680, "xhigh": 93_660, "max": 210_720},
    sources=(_GPT_25_PRICES, _OPENAI_API),
)
_GPT_26 = replace(
    _GPT_25,
    image_prices={"low": 23_520, "medium": 52_680, "high": 52_680, "xhigh": 93_660, "max": 210_720},
    sources=(_GPT_26_PRICES, _OPENAI_API),
)
OPENAI_MODELS = (
    replace(_GPT_26, name=_GPT_26_SUNBURST),
    replace(_GPT_26, name="gpt-image-2.6-flare"),
    replace(_GPT_25, name="gpt-image-2.5-sunburst"),
    replace(_GPT_25, name="gpt-image-2.5-flare"),
    replace(_GPT_2, name="gpt-image-2", sources=(_GPT_2_PRICES, _OPENAI_API)),
    replace(
        _GPT,
        name="gpt-image-1.5",
        retirement=_ENDS_IN_DECEMBER,
        sources=(_GPT_15_PRICES, _OPENAI_API),
    ),
    replace(
        _GPT,
        name="gpt-image-1-mini",
        settings=_RENDERING | {"input_fidelity": ("low",)},
        token_prices=TokenPrices(2, 2.5, 8, text_out=8, input_image_tokens=1024),
        image_prices=_by_size(low=(5_000, 6_000), medium=(11_000, 15_000), high=(36_000, 52_000)),
        retirement=_ENDS_IN_DECEMBER,
        sources=(f"{_OPENAI_MODELS}/gpt-image-1-mini", _OPENAI_API),
    ),
    replace(
        _GPT,
        name="chatgpt-image-latest",
        note="an alias that its provider redirects; prices of gpt-image-1.5 assumed",
        retirement=_ENDS_IN_DECEMBER,
        sources=(_GPT_1_PRICES, _OPENAI_API),
    ),
    replace(
        _GPT,
        name="gpt-image-1",
        token_prices=TokenPrices(5, 10, 40, text_out=10, input_image_tokens=1024),
        image_prices=_by_size(
            low=(11_000, 16_000), medium=(42_000, 63_000), high=(167_000, 250_000)
        ),
        retirement=Retirement(date(2026, 10, 23), _GPT_26_SUNBURST, _OPENAI_API),
        sources=(_GPT_1_PRICES, _OPENAI_API),
    ),
    Model(
        name="dall-e-2",
        provider=Provider.OPENAI,
        masks=True,
        input_formats=(PNG,),
        max_image_bytes=4 * MIB - 1,
        square_input=True,
        sizes=("256x256", "512x512", "1024x1024"),
        needs_response_format=True,
        max_n=10,
        max_prompt_characters=1000,
        image_prices={"any/256x256": 16_000, "any/512x512": 18_000, "any/1024x1024": 20_000},
        retirement=_DALL_E_ENDED,
        note="edits one square PNG, where a mask or the image itself is transparent",
        sources=(_DALL_E_PRICES, _OPENAI_API),
    ),
    Model(
        name="dall-e-3",
        provider=Provider.OPENAI,
        edits=False,
        sizes=("1024x1024", "1024x1792", "1792x1024"),
        qualities=("standard", "hd"),
        needs_response_format=True,
        max_prompt_characters=4000,
        image_prices=_by_size(
            "1024x1024", "1024x1792", "1792x1024", standard=(40_000, 80_000), hd=(80_000, 120_000)
        ),
        retirement=_DALL_E_ENDED,
        note="generates one image from text, cannot edit",
        sources=(_DALL_E_PRICES, _OPENAI_API),
    ),
)

MODELS: tuple[Model, ...] = (*GEMINI_MODELS, *OPENAI_MODELS)
SETTINGS: tuple[str, ...] = tuple(dict.fromkeys(name for m in MODELS for name in m.settings))

# Assumed of a model that is not in the catalogue: the least that its family has in common.
DEFAULTS: dict[Provider, Model] = {
    Provider.GEMINI: replace(_GEMINI, name="any other", max_images=3, resolutions=(), known=False),
    Provider.OPENAI: replace(
        _GPT, name="any other", token_prices=None, image_prices={}, known=False
    ),
}


# --- Lookup and retirement ----------------------------------------------------------------------


def find_model(provider: Provider, model: str) -> Model:
    """The model's entry, by its name, an alias or the name of a dated snapshot.

    A name that is not in the catalogue gets the provider's defaults, with `known` False.
    """
    name = without_snapshot(model)
    for entry in MODELS:
        if entry.provider is provider and name in (entry.name, *entry.aliases):
            return entry
    return replace(DEFAULTS[provider], name=model)


def without_snapshot(name: str) -> str:
    """ "models/gpt-image-2-2026-04-21" -> "gpt-image-2"."""
    return _SNAPSHOT.sub("", name.removeprefix("models/"))


def model_at(endpoint: Endpoint, name: str, *, batch: bool = False) -> Model:
    """The model that the endpoint serves under `name`, with its limits and prices there.

    `batch`: with the prices of the provider's batch interface, which has no service tiers.
    """
    model = find_model(endpoint.provider, _known_as(endpoint, name))
    if endpoint.location is not None:
        model = _on_enterprise_platform(model, endpoint.service_tier)
    factor = model.service_tiers.get(endpoint.service_tier or "", 1.0)
    if endpoint.prices != Prices():
        model, factor = _with_prices(model, endpoint.prices), 1.0
    if batch:
        factor = model.batch_factor or 1.0
    return model if factor == 1 else _with_price_factor(model, factor)


def _known_as(endpoint: Endpoint, name: str) -> str:
    """The name in the catalogue, where the endpoint has the model under a name of its own."""
    return endpoint.model_is if endpoint.model_is and name == endpoint.model else name


def _on_enterprise_platform(model: Model, service_tier: str | None) -> Model:
    request_bytes = model.max_request_bytes if service_tier is None else _ENTERPRISE_FLEX_BYTES
    return replace(model, max_image_bytes=_ENTERPRISE_IMAGE_BYTES, max_request_bytes=request_bytes)


def current_name(endpoint: Endpoint, name: str) -> str:
    """The name to send for `name`: a retired preview name becomes that of the released model."""
    if _known_as(endpoint, name) != name:
        return name
    model = find_model(endpoint.provider, name)
    return model.name if name.removeprefix("models/") in model.retired_names else name


def retirement_notice(endpoint: Endpoint, name: str, today: date) -> str | None:
    """What users should know about the end of a model, from RETIREMENT_NOTICE before it on."""
    model = find_model(endpoint.provider, _known_as(endpoint, name))
    company = PROVIDERS[endpoint.provider].company
    if (sent := current_name(endpoint, name)) != name:
        day = model.retired_names[name.removeprefix("models/")].on
        renamed = f"the name {name} was shut down on {day}: it is sent as {sent}"
        end_of_sent = retirement_notice(endpoint, sent, today) or ""
        return renamed + end_of_sent.replace(model.name, ", which", 1)
    end = model.retirement
    if end is None or today < end.on - RETIREMENT_NOTICE:
        return None
    ended = today >= end.on
    if end.confirmed:
        happens = f"{'was' if ended else 'will be'} shut down by {company} on {end.on}"
    else:
        happens = f"may {'have been' if ended else 'be'} shut down by {company} from {end.on} on"
    exception = f", unless another service than {company}'s is behind {endpoint.name}"
    return f"{model.name} {happens}: use {end.successor}" + (
        exception if endpoint.base_url is not None else ""
    )


def model_advice(endpoint: Endpoint) -> str:
    """What to do when the provider says that the endpoint's model does not exist."""
    model = find_model(endpoint.provider, _known_as(endpoint, endpoint.model))
    end, default = model.retirement, PROVIDERS[endpoint.provider].model
    better = f"its successor {end.successor}" if end else f"another model, such as {default},"
    return f"name {better} in {endpoint.name} and push the endpoints again"


def row_model_advice(endpoint: Endpoint, name: str) -> str:
    """The same for the model of a row or its job; empty where the catalogue has no successor."""
    end = find_model(endpoint.provider, name).retirement
    return f"name its successor {end.successor} in the column or option model" if end else ""


# --- Prices -------------------------------------------------------------------------------------


def _with_prices(model: Model, own: Prices) -> Model:
    """The model at an endpoint's own rates. A price of an image without rates covers the call."""
    tokens = own.model_dump(exclude={"image"}, exclude_none=True)
    base = model.token_prices or TokenPrices(0, 0, 0)
    token_prices = replace(base, **tokens) if tokens else model.token_prices
    images = model.image_prices
    if own.image is not None:
        images = dict.fromkeys(images or ("any",), round(own.image * 1e6))
        token_prices = token_prices if tokens else None
    elif own.image_out is not None and base.image_out:
        factor = own.image_out / base.image_out
        images = {key: ceil(price * factor) for key, price in images.items()}
    return replace(model, token_prices=token_prices, image_prices=images)


def _with_price_factor(model: Model, factor: float) -> Model:
    tokens = model.token_prices
    return replace(
        model,
        token_prices=tokens
        and replace(
            tokens,
            text_in=tokens.text_in * factor,
            image_in=tokens.image_in * factor,
            image_out=tokens.image_out * factor,
            text_out=tokens.text_out * factor,
        ),
        image_prices={key: ceil(price * factor) for key, price in model.image_prices.items()},
    )


def image_price(
    model: Model,
    *,
    quality: str | None = None,
    size: str | None = None,
    resolution: str | None = None,
    megapixels: float = 1,
) -> int | None:
    """The most that one image costs, in micro-USD; None when the price is not known.

    A quality or size of None or "auto" counts as the most expensive one. A size that is not in the
    price table is estimated by its area, and never below the price of one megapixel.
    """
    prices = _matching_prices(model, quality, size, resolution)
    if not prices:
        return None
    other_size = bool(model.sizes) and size not in (None, "auto")
    if other_size and not any(key.endswith(f"/{size}") for key in prices):
        return ceil(max(prices.values()) * max(1.0, megapixels))
    return max(prices.values())


def least_image_price(model: Model, plan: CallPlan) -> int | None:
    """About the least that one image of a planned call costs, in micro-USD; None if not known.

    A size that is not in the price table counts as the cheapest one there: large images cost less
    than their area suggests (gpt-image-2 makes 7.3 megapixels of 12,329 tokens and one of 7,024:
    https://community.openai.com/t/livestream-starting-now-chatgpt-images-2-0/1379464).
    """
    prices = _matching_prices(model, plan.quality, plan.size, plan.resolution)
    return min(prices.values(), default=None)


def _matching_prices(
    model: Model, quality: str | None, size: str | None, resolution: str | None
) -> Mapping[str, int]:
    """The entries of the price table that the settings may lead to; all where none matches."""
    prices = model.image_prices
    if not model.sizes:
        key = resolution or "1K"
        return {key: prices[key]} if key in prices else prices
    if quality not in (None, "auto"):
        of_quality = {k: p for k, p in prices.items() if k.split("/")[0] in (quality, "any")}
        prices = of_quality or prices
    of_size = {k: p for k, p in prices.items() if k.endswith(f"/{size}")}
    return of_size or prices


def planned_image_price(model: Model, plan: CallPlan) -> int | None:
    """The most that one image of a planned call costs, in micro-USD; None if not known."""
    size = sizes.parse_size(plan.size or "")
    area = size[0] * size[1] / sizes.PIXELS["1K"] if size else 1
    return image_price(
        model, quality=plan.quality, size=plan.size, resolution=plan.resolution, megapixels=area
    )


def worst_cost(model: Model, plan: CallPlan) -> int | None:
    """The most that a planned call should cost, in micro-USD; None when the price is not known.

    Text counts as one token per byte, which no tokenizer exceeds; thoughts as the catalogue's
    allowance, which is generous but not guaranteed by the provider.
    """
    image, prices = planned_image_price(model, plan), model.token_prices
    if image is None:
        return None
    text_in, thoughts = len(plan.prompt.encode()), model.thinking_tokens
    image_in = len(plan.images) * prices.input_image_tokens if prices else 0
    tokens = token_cost(model, text_in=text_in, image_in=image_in, text_out=thoughts)
    return (tokens or 0) + image * plan.n


def token_cost(
    model: Model, *, text_in: int = 0, image_in: int = 0, text_out: int = 0, image_out: int = 0
) -> int | None:
    """The price of the counted tokens in micro-USD, rounded up; None when it is not known."""
    prices = model.token_prices
    if prices is None:
        return None
    text = text_in * prices.text_in + text_out * prices.text_out
    return ceil(text + image_in * prices.image_in + image_out * prices.image_out)
