"""What there is to know about an image model before calling it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from darkroom.calls import Provider

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
