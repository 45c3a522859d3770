"""What there is to know about an image model before calling it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from math import ceil

from darkroom.providers.registry import Provider

MIB = 1024 * 1024
PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """US dollars per million tokens, which is millionths of a dollar per token."""

    text_in: float
    image_in: float
    image_out: float
    text_out: float = 0.0  # thoughts, and words beside the picture
    input_image_tokens: int = 0  # the most that one input image is counted as


@dataclass(frozen=True, slots=True)
class Model:
    """One image model. An empty tuple means that the model takes no such parameter."""

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
    backgrounds: tuple[str, ...] = ()
    output_formats: tuple[str, ...] = ()
    asks_for_base64: bool = False  # `response_format` is taken, and needed
    max_n: int = 1
    max_prompt_characters: int = 32_000
    thinking_tokens: int = 0  # thoughts and words beside a picture, allowed for in an estimate
    prices: TokenPrices | None = None
    # Micro-USD for one picture by "quality/size", "quality" or resolution, as the provider's own
    # table says: for quotes and budgets, and where an answer does not count its tokens.
    picture_prices: Mapping[str, int] = field(default_factory=dict)
    retired_on: date | None = None
    note: str = ""
    aliases: tuple[str, ...] = ()
    retired_names: Mapping[str, date] = field(default_factory=dict)  # aliases that were shut down
    sources: tuple[str, ...] = ()
    known: bool = True


# The image models, as data. Change a figure here with its source and `CHECKED`, then run
# `python -m darkroom_local.models_page`.
#
# Prices in US dollars per million tokens; `picture_prices` in micro-USD ($0.134 is 134_000). A
# source that "tells" is second hand. Read from stored copies of these pages,
# as of the dates they carry.


CHECKED = date(2026, 11, 21)

_OPENAI_API = "openai 3.52, image_edit_params and image_generate_params"
_OPENAI_MODELS = "https://developers.openai.com/api/docs/models"
_GPT_1_PRICES = (
    "https://www.aifreeapi.com/en/posts/gpt-image-1-5-pricing (tells OpenAI's prices of 2026-03-23)"
)
_GPT_15_PRICES = (
    "https://www.llmreference.com/model/gpt-image-1.5/openai-api (tells OpenAI's of 2026-05-10)"
)
_GPT_2_PRICES = (
    "https://yingtu.ai/en/blog/gpt-image-2-cost-per-image (tells OpenAI's prices of 2026-05-06)"
)
_GPT_25_PRICES = (
    "https://apidog.com/blog/gpt-image-2-5-api/ (tells OpenAI's prices of 2026-09-09); tokens of a "
    "picture: https://github.com/sanand0/blog, quality-levels-of-gpt-image-2.5-flare, 2026-09-26"
)
_DALL_E_PRICES = "OpenAI's last price list for DALL-E, from before it was shut down; not read again"
_GEMINI_PRICES = (
    "https://www.aifreeapi.com/en/posts/gemini-3-pro-image-preview-pricing (tells "
    "https://ai.google.dev/gemini-api/docs/pricing of 2026-03-23)"
)
_GEMINI_TYPES = "google-genai 3.4, types.ImageConfig"
_GEMINI_25_PRICES = (
    "1,290 tokens a picture at $30 per million, as many pages tell Google's price page"
)
_VERTEX = "https://docs.cloud.google.com/vertex-ai/generative-ai/docs/models/gemini"

_RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
_SQUARE, _TALL, _WIDE = "1024x1024", "1024x1536", "1536x1024"


def _by_size(
    low: tuple[int, int], medium: tuple[int, int], high: tuple[int, int]
) -> dict[str, int]:
    """Micro-USD of (square, tall or wide) pictures of each quality."""
    levels = {"low": low, "medium": medium, "high": high}
    return {
        f"{quality}/{size}": square if size == _SQUARE else other
        for quality, (square, other) in levels.items()
        for size in (_SQUARE, _TALL, _WIDE)
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
        prices=TokenPrices(2, 2, 120, text_out=12, input_image_tokens=1120),
        picture_prices={"1K": 134_400, "2K": 134_400, "4K": 240_000},
        aliases=("gemini-3-pro-image-preview",),
        sources=(_GEMINI_PRICES, _GEMINI_TYPES),
    ),
    replace(
        _GEMINI,
        name="gemini-3.1-flash-image",
        thinking_tokens=4096,
        prices=TokenPrices(0.5, 0.5, 60, text_out=3, input_image_tokens=1120),
        picture_prices={"1K": 67_200, "2K": 100_800, "4K": 151_200},
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
        prices=TokenPrices(0.3, 0.3, 30, text_out=2.5, input_image_tokens=4128),
        picture_prices={"1K": 38_700},
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
    input_formats=(PNG, JPEG, WEBP),
    max_image_bytes=50 * MIB - 1,
    sizes=(_SQUARE, _TALL, _WIDE),
    qualities=("low", "medium", "high"),
    backgrounds=("transparent", "opaque", "auto"),
    output_formats=("png", "jpeg", "webp"),
    max_n=10,
    prices=TokenPrices(5, 8, 32, text_out=10, input_image_tokens=1024),
    picture_prices=_by_size((9_000, 13_000), (34_000, 50_000), (133_200, 200_000)),
)
# Always reads its input images at high fidelity, which counts up to 6,240 tokens on top.
_GPT_2 = replace(
    _GPT,
    free_sizes=True,
    prices=TokenPrices(5, 8, 30, text_out=10, input_image_tokens=7264),
    picture_prices=_by_size((6_000, 5_000), (53_000, 41_000), (211_000, 165_000)),
)
_GPT_25 = replace(
    _GPT_2,
    qualities=("low", "medium", "high", "xhigh", "max"),
    picture_prices={
        "low": 5_880,
        "medium": 13_170,
        "high": 52_680,
        "xhigh": 93_660,
        "max": 210_720,
    },
)
OPENAI_MODELS = (
    replace(
        _GPT,
        name="gpt-image-1.5",
        sources=(_GPT_15_PRICES, _OPENAI_API),
    ),
    replace(
        _GPT_2,
        name="gpt-image-2",
        sources=(_GPT_2_PRICES, _OPENAI_API),
    ),
    *(
        replace(
            _GPT_25,
            name=name,
            sources=(
                f"{_OPENAI_MODELS}/gpt-image-2.6-sunburst" if "2.6" in name else _GPT_25_PRICES,
                _OPENAI_API,
            ),
            note=""
            if "2.5" in name
            else "price of a picture taken from 2.5: same price of a token",
        )
        for name in (
            "gpt-image-2.5-sunburst",
            "gpt-image-2.5-flare",
            "gpt-image-2.6-sunburst",
            "gpt-image-2.6-flare",
        )
    ),
    replace(
        _GPT,
        name="gpt-image-1-mini",
        prices=TokenPrices(2, 2.5, 8, text_out=8, input_image_tokens=1024),
        picture_prices=_by_size((5_000, 6_000), (11_000, 15_000), (36_000, 52_000)),
        note="its provider calls it deprecated",
        sources=(f"{_OPENAI_MODELS}/gpt-image-1-mini", _OPENAI_API),
    ),
    replace(
        _GPT,
        name="chatgpt-image-latest",
        note="an alias that its provider moves; prices of gpt-image-1.5 assumed",
        sources=(_GPT_1_PRICES, _OPENAI_API),
    ),
    replace(
        _GPT,
        name="gpt-image-1",
        prices=TokenPrices(5, 10, 40, text_out=10, input_image_tokens=1024),
        picture_prices=_by_size((11_000, 16_000), (42_000, 63_000), (167_000, 250_000)),
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
        asks_for_base64=True,
        max_n=10,
        max_prompt_characters=1000,
        picture_prices={"any/256x256": 16_000, "any/512x512": 18_000, "any/1024x1024": 20_000},
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
        asks_for_base64=True,
        max_prompt_characters=4000,
        picture_prices={
            "standard/1024x1024": 40_000,
            "standard/1024x1792": 80_000,
            "standard/1792x1024": 80_000,
            "hd/1024x1024": 80_000,
            "hd/1024x1792": 120_000,
            "hd/1792x1024": 120_000,
        },
        retired_on=date(2026, 5, 12),
        note="makes one new picture from words, edits none",
        sources=(_DALL_E_PRICES, _OPENAI_API),
    ),
)

MODELS: tuple[Model, ...] = (*GEMINI_MODELS, *OPENAI_MODELS)

# What a model that is not in the table is taken to be: the least that its family has in common.
DEFAULTS: dict[Provider, Model] = {
    Provider.GEMINI: replace(_GEMINI, name="any other", max_images=3, resolutions=(), known=False),
    Provider.OPENAI: replace(_GPT, name="any other", prices=None, picture_prices={}, known=False),
}


# Which model a name means, and what its pictures cost.
#
# What a model takes and gives is data: `models/model_table.py`, shown in docs/models.md.


_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")


def find(provider: Provider, model: str) -> Model:
    """The model's entry, by its name, an alias or the name of a dated snapshot.

    A name that is not in the table gets the provider's stated defaults; `known` tells.
    """
    name = _SNAPSHOT.sub("", model.removeprefix("models/"))
    for entry in MODELS:
        if entry.provider is provider and name in (entry.name, *entry.aliases):
            return entry
    return replace(DEFAULTS[provider], name=model)


def image_price(
    model: Model, *, quality: str | None = None, size: str | None = None, megapixels: float = 1
) -> int | None:
    """The most that one picture costs, in micro-USD; None when the price is not known.

    What is left to the provider (quality or size None or "auto") counts as its dearest. A size that
    its table does not have is estimated by area, and never below the price of one megapixel.
    """
    table = model.picture_prices
    if not table:
        return None
    fixed_quality = quality not in (None, "auto")
    keys = [k for k in table if fixed_quality and k.split("/")[0] in (quality, "any")] or [*table]
    if size in (None, "auto"):
        return max(table[k] for k in keys)
    exact = [k for k in keys if k.endswith(f"/{size}")]
    if exact:
        return max(table[k] for k in exact)
    return ceil(max(table[k] for k in keys) * max(1.0, megapixels))


def worst_cost(
    model: Model, prompt: str, images: int, one_picture: int | None, n: int
) -> int | None:
    """The most that a call should cost, in micro-USD; None when the price is not known.

    Words count as one token a byte, which no tokenizer exceeds; thoughts as the allowance in the
    table, which is generous but no promise of the provider.
    """
    if one_picture is None:
        return None
    prices = model.prices
    if prices is None:
        return one_picture * n
    read = len(prompt.encode()) * prices.text_in
    read += images * prices.input_image_tokens * prices.image_in
    return ceil(read + model.thinking_tokens * prices.text_out) + one_picture * n


def token_cost(
    model: Model, *, text_in: int = 0, image_in: int = 0, text_out: int = 0, image_out: int = 0
) -> int | None:
    """What the counted tokens cost, in micro-USD, rounded up; None when the price is not known."""
    prices = model.prices
    if prices is None:
        return None
    return ceil(
        text_in * prices.text_in
        + image_in * prices.image_in
        + text_out * prices.text_out
        + image_out * prices.image_out
    )
