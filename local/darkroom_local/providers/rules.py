"""What the real APIs take and reject, as far as the simulator is strict about it.

Written down apart from Darkroom's own table of models, so that a mistake there shows in a test.
Sources: the OpenAI Images API reference as shipped in the openai package 3.52 (image_edit_params,
image_generate_params); the Gemini API's image generation guide. Read on 2026-11-21.
"""

import re
from dataclasses import dataclass

MIB = 1024 * 1024
GPT_SIZES = frozenset({"auto", "1024x1024", "1536x1024", "1024x1536"})
GPT_QUALITIES = frozenset({"auto", "low", "medium", "high"})
LONGEST_EDGE, LEAST_PIXELS, MOST_PIXELS = 3840, 655_360, 8_294_400
_SIZE = re.compile(r"(\d{2,5})x(\d{2,5})")


@dataclass(frozen=True, slots=True)
class OpenAIRules:
    sizes: frozenset[str]
    qualities: frozenset[str]
    free_sizes: bool = False
    edits: bool = True
    generates: bool = True
    gpt: bool = True  # always base64; background, output_format; no response_format
    most_images: int = 16
    most_bytes: int = 50 * MIB
    most_n: int = 10
    prompt_characters: int = 32_000
    input_fidelity: bool = True
    usd_per_million: tuple[float, float, float] = (5, 8, 32)  # text in, image in, image out

    def takes_size(self, size: str) -> bool:
        if size in self.sizes:
            return True
        found = _SIZE.fullmatch(size)
        if not self.free_sizes or not found:
            return False
        width, height = int(found[1]), int(found[2])
        return (
            width % 16 == 0
            and height % 16 == 0
            and max(width, height) <= LONGEST_EDGE
            and max(width, height) <= 3 * min(width, height)
            and LEAST_PIXELS <= width * height <= MOST_PIXELS
        )


_GPT = OpenAIRules(GPT_SIZES, GPT_QUALITIES)
_GPT_2 = OpenAIRules(GPT_SIZES, GPT_QUALITIES, free_sizes=True, input_fidelity=False)
_GPT_25 = OpenAIRules(
    GPT_SIZES, GPT_QUALITIES | {"xhigh", "max"}, free_sizes=True, input_fidelity=False
)
OPENAI: dict[str, OpenAIRules] = {
    "gpt-image-1": _GPT,
    "gpt-image-1-mini": _GPT,
    "gpt-image-1.5": _GPT,
    "chatgpt-image-latest": _GPT,
    "gpt-image-2": _GPT_2,
    "gpt-image-2.5-sunburst": _GPT_25,
    "gpt-image-2.5-flare": _GPT_25,
    "gpt-image-2.6-sunburst": _GPT_25,
    "gpt-image-2.6-flare": _GPT_25,
    "dall-e-2": OpenAIRules(
        frozenset({"256x256", "512x512", "1024x1024"}),
        frozenset({"standard"}),
        gpt=False,
        most_images=1,
        most_bytes=4 * MIB,
        prompt_characters=1000,
    ),
    "dall-e-3": OpenAIRules(
        frozenset({"1024x1024", "1792x1024", "1024x1792"}),
        frozenset({"standard", "hd"}),
        edits=False,
        gpt=False,
        most_n=1,
        prompt_characters=4000,
    ),
}


@dataclass(frozen=True, slots=True)
class GeminiRules:
    most_images: int
    sizes: frozenset[str]  # of imageConfig.imageSize
    output_tokens: dict[str, int]
    answer_mime: str
    ratios: frozenset[str] = frozenset(
        {"1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"}
    )
    input_tokens_per_image: int = 560
    thinks: bool = True


_PRO = GeminiRules(
    14, frozenset({"1K", "2K", "4K"}), {"1K": 1120, "2K": 1120, "4K": 2000}, "image/jpeg"
)
GEMINI: dict[str, GeminiRules] = {
    "gemini-2.5-flash-image": GeminiRules(
        3, frozenset(), {"1K": 1290}, "image/png", input_tokens_per_image=1290, thinks=False
    ),
    "gemini-3-pro-image": _PRO,
    "gemini-3-pro-image-preview": _PRO,
    "gemini-3.1-flash-image": GeminiRules(
        14,
        frozenset({"512", "1K", "2K", "4K"}),
        {"512": 747, "1K": 1120, "2K": 1680, "4K": 2520},
        "image/jpeg",
        ratios=_PRO.ratios | {"1:4", "4:1", "1:8", "8:1"},
        input_tokens_per_image=1120,
    ),
}
GEMINI_INLINE_BYTES = 20 * MIB  # of a whole request
GEMINI_INPUT_TYPES = frozenset(
    {"image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"}
)


def base_model(model: str) -> str:
    """Without the date of a snapshot."""
    return re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model)
