"""The image models: what each accepts, makes and costs, with sources.

To add a model or change a figure, edit its entry with its source and `CHECKED`, then run
`python -m darkroom_local.models_page`, which writes docs/models.md.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from math import ceil

from darkroom.calls import CallPlan
from darkroom.images.codec import JPEG, MIB, PNG, WEBP
from darkroom.models import sizes
from darkroom.providers.registry import Provider

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
class Model:
    """One image model. An empty tuple means that the model has no such parameter."""

    name: str
    provider: Provider
    edits: bool = True
    generates: bool = True
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
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs_response_format: bool = False  # returns a URL unless `response_format` is b64_json
    max_n: int = 1
    max_prompt_characters: int = 32_000
    thinking_tokens: int = 0  # allowance in an estimate for thoughts and text beside an image
    token_prices: TokenPrices | None = None
    # Micro-USD of one image by resolution, "quality" or "quality/size", as in the provider's own
    # table: for quotes and budgets, and where a response does not count its tokens.
    image_prices: Mapping[str, int] = field(default_factory=dict)
    retired_on: date | None = None
    note: str = ""
    aliases: tuple[str, ...] = ()
    retired_names: Mapping[str, date] = field(default_factory=dict)  # aliases that were shut down
    sources: tuple[str, ...] = ()
    known: bool = True


# --- The catalogue ------------------------------------------------------------------------------
# Token prices in US dollars per million; `image_prices` in micro-USD ($0.134 is 134_000). A source
# that "quotes" is second hand. Read from stored copies of these pages, as of the dates they carry.

CHECKED = date(2026, 11, 21)

_OPENAI_API = "openai 3.52, image_edit_params and image_generate_params"
_OPENAI_MODELS = "https://developers.openai.com/api/docs/models"
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
_DALL_E_PRICES = "OpenAI's last price list for DALL-E, from before it was shut down; not read again"
_GEMINI_PRICES = (
    "https://www.aifreeapi.com/en/posts/gemini-3-pro-image-preview-pricing (quotes "
    "https://ai.google.dev/gemini-api/docs/pricing of 2026-03-23)"
)
_GEMINI_TYPES = "google-genai 3.4, types.ImageConfig"
_GEMINI_25_PRICES = (
    "1,290 tokens an image at $30 per million, as many pages quote Google's price page"
)
_VERTEX = "https://docs.cloud.google.com/vertex-ai/generative-ai/docs/models/gemini"

_RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
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
# 20 MB is the limit of a whole request with inline data; base64 makes 4 bytes of 3.
_GEMINI = Model(
    name="",
    provider=Provider.GEMINI,
    max_images=14,
    max_image_bytes=7 * MIB,
    max_request_bytes=14 * MIB,
    aspect_ratios=_RATIOS,
    resolutions=("1K", "2K", "4K"),
    max_prompt_characters=100_000,
)
GEMINI_MODELS = (
    replace(
        _GEMINI,
        name="gemini-3-pro-image",
        thinking_tokens=4096,
        token_prices=TokenPrices(2, 2, 120, text_out=12, input_image_tokens=1120),
        image_prices={"1K": 134_400, "2K": 134_400, "4K": 240_000},
        aliases=("gemini-3-pro-image-preview",),
        sources=(_GEMINI_PRICES, _GEMINI_TYPES),
    ),
    replace(
        _GEMINI,
        name="gemini-3.1-flash-image",
        thinking_tokens=4096,
        token_prices=TokenPrices(0.5, 0.5, 60, text_out=3, input_image_tokens=1120),
        image_prices={"1K": 67_200, "2K": 100_800, "4K": 151_200},
        aliases=("gemini-3.1-flash-image-preview",),
        retired_names={"gemini-3.1-flash-image-preview": date(2026, 7, 17)},
        sources=(f"{_VERTEX}/3-1-flash-image", _GEMINI_TYPES),
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
        aliases=("gemini-2.5-flash-image-preview",),
        retired_names={"gemini-2.5-flash-image-preview": date(2025, 10, 31)},
        sources=(f"{_VERTEX}/2-5-flash-image", _GEMINI_25_PRICES, _GEMINI_TYPES),
    ),
)

# --- OpenAI -------------------------------------------------------------------------------------
_GPT = Model(
    name="",
    provider=Provider.OPENAI,
    masks=True,
    max_images=16,
    max_image_bytes=50 * MIB - 1,
    sizes=(_SQUARE, _TALL, _WIDE),
    qualities=("low", "medium", "high"),
    output_formats=("png", "jpeg", "webp"),
    settings={"background": ("transparent", "opaque", "auto")},
    max_n=10,
    token_prices=TokenPrices(5, 8, 32, text_out=10, input_image_tokens=1024),
    image_prices=_by_size(low=(9_000, 13_000), medium=(34_000, 50_000), high=(133_200, 200_000)),
)
# Input images are always read at high fidelity, which counts up to 6,240 tokens on top.
_GPT_2 = replace(
    _GPT,
    free_sizes=True,
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
    note="image prices of 2.5 assumed: its token prices are the same",
    sources=(f"{_OPENAI_MODELS}/gpt-image-2.6-sunburst", _OPENAI_API),
)
OPENAI_MODELS = (
    replace(_GPT, name="gpt-image-1.5", sources=(_GPT_15_PRICES, _OPENAI_API)),
    replace(_GPT_2, name="gpt-image-2", sources=(_GPT_2_PRICES, _OPENAI_API)),
    replace(_GPT_25, name="gpt-image-2.5-sunburst"),
    replace(_GPT_25, name="gpt-image-2.5-flare"),
    replace(_GPT_26, name="gpt-image-2.6-sunburst"),
    replace(_GPT_26, name="gpt-image-2.6-flare"),
    replace(
        _GPT,
        name="gpt-image-1-mini",
        token_prices=TokenPrices(2, 2.5, 8, text_out=8, input_image_tokens=1024),
        image_prices=_by_size(low=(5_000, 6_000), medium=(11_000, 15_000), high=(36_000, 52_000)),
        note="deprecated by its provider",
        sources=(f"{_OPENAI_MODELS}/gpt-image-1-mini", _OPENAI_API),
    ),
    replace(
        _GPT,
        name="chatgpt-image-latest",
        note="an alias that its provider redirects; prices of gpt-image-1.5 assumed",
        sources=(_GPT_1_PRICES, _OPENAI_API),
    ),
    replace(
        _GPT,
        name="gpt-image-1",
        token_prices=TokenPrices(5, 10, 40, text_out=10, input_image_tokens=1024),
        image_prices=_by_size(
            low=(11_000, 16_000), medium=(42_000, 63_000), high=(167_000, 250_000)
        ),
        retired_on=date(2026, 10, 23),
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
        retired_on=date(2026, 5, 12),
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
        retired_on=date(2026, 5, 12),
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


# --- Lookup and prices --------------------------------------------------------------------------


def find_model(provider: Provider, model: str) -> Model:
    """The model's entry, by its name, an alias or the name of a dated snapshot.

    A name that is not in the catalogue gets the provider's defaults, with `known` False.
    """
    name = _SNAPSHOT.sub("", model.removeprefix("models/"))
    for entry in MODELS:
        if entry.provider is provider and name in (entry.name, *entry.aliases):
            return entry
    return replace(DEFAULTS[provider], name=model)


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
    prices = model.image_prices
    if not prices:
        return None
    if not model.sizes:
        return prices.get(resolution or "1K", max(prices.values()))
    fixed_quality = quality not in (None, "auto")
    keys = [k for k in prices if fixed_quality and k.split("/")[0] in (quality, "any")] or [*prices]
    if size in (None, "auto"):
        return max(prices[k] for k in keys)
    exact = [k for k in keys if k.endswith(f"/{size}")]
    if exact:
        return max(prices[k] for k in exact)
    return ceil(max(prices[k] for k in keys) * max(1.0, megapixels))


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
