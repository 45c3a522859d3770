"""Which model a name means, and what its pictures cost.

What a model takes and gives is data: `models/model_table.py`, shown in docs/models.md.
"""

import re
from dataclasses import replace
from math import ceil

from darkroom.calls import Provider
from darkroom.models.model_table import DEFAULTS, MODELS
from darkroom.models.model_types import Model

_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_PROVIDER_BY_PREFIX = (
    ("gemini-", Provider.GEMINI),
    ("gpt-image-", Provider.OPENAI),
    ("chatgpt-image-", Provider.OPENAI),
    ("dall-e-", Provider.OPENAI),
)


def provider_of(model: str) -> Provider | None:
    """Whose model a name is, by how the providers name theirs; None when it cannot be told."""
    name = model.removeprefix("models/").lower()
    for prefix, provider in _PROVIDER_BY_PREFIX:
        if name.startswith(prefix):
            return provider
    return None


def find(provider: Provider, model: str) -> Model:
    """The model's entry, by its name, an alias or the name of a dated snapshot.

    A name that is not in the table gets the provider's stated defaults; `known` tells.
    """
    name = _SNAPSHOT.sub("", model.removeprefix("models/"))
    for entry in MODELS:
        if entry.provider is provider and name in (entry.name, *entry.aliases):
            return entry
    return replace(DEFAULTS[provider], name=model)


def picture_price(
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
