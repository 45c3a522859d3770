"""Aspect ratios and resolutions against sizes in pixels, both ways."""

import re
from collections.abc import Sequence
from functools import lru_cache
from math import log

PIXELS = {"1K": 1024 * 1024, "2K": 2048 * 2048, "4K": 4096 * 4096}
# Free sizes of gpt-image-2 and later: openai 3.52, image_edit_params, and the image guide's limits
# of edges and area (https://developers.openai.com/api/docs/guides/image-generation), 2026-11-21.
STEP = 16
LONGEST_EDGE = 3840
LEAST_PIXELS = 655_360
MOST_PIXELS = 8_294_400
STEEPEST = 3.0
NEAR_ENOUGH = 0.15  # in area, as a logarithm
_SIZE = re.compile(r"\s*(\d{2,5})\s*[xX×]\s*(\d{2,5})\s*")  # noqa: RUF001 - people write it


def parse_size(size: str) -> tuple[int, int] | None:
    """ "1024x1536" -> (1024, 1536); None for anything else, "auto" included."""
    found = _SIZE.fullmatch(size)
    if found is None or not int(found[1]) or not int(found[2]):
        return None
    return int(found[1]), int(found[2])


def ratio_of(aspect_ratio: str) -> float:
    """Width over height of "2:3" or "1024x1536"."""
    across, _, down = aspect_ratio.replace("x", ":").partition(":")
    return int(across) / int(down)


def nearest_ratio(ratio: float, choices: Sequence[str]) -> str:
    """The choice that is nearest as a factor, so that 2:3 is as far from 1:1 as 3:2 is."""
    return min(choices, key=lambda choice: abs(log(ratio / ratio_of(choice))))


def nearest_resolution(pixels: int, choices: Sequence[str]) -> str:
    return min(choices, key=lambda choice: abs(log(pixels / PIXELS[choice])))


def nearest_size(ratio: float, pixels: int | None, choices: Sequence[str]) -> str:
    """Of fixed sizes, those of the nearest shape; of these, the nearest in area, or the largest."""
    distance = {choice: abs(log(ratio / ratio_of(choice))) for choice in choices}
    shaped = [c for c in choices if distance[c] <= min(distance.values()) + 1e-9]
    areas = {c: area(c) for c in shaped}
    if pixels is None:
        return max(shaped, key=areas.__getitem__)
    return min(shaped, key=lambda choice: abs(log(pixels / areas[choice])))


def area(size: str) -> int:
    """Pixels of "1024x1536". Raises ValueError for what is no size."""
    parsed = parse_size(size)
    if parsed is None:
        raise ValueError(f"{size!r} is not a size like 1024x1536")
    return parsed[0] * parsed[1]


@lru_cache(maxsize=256)
def free_size(ratio: float, pixels: int) -> str:
    """The allowed free size of that shape nearest to that area.

    Within 15 % of the area, the truest shape wins: 16:9 at 1K is 1280x720, exactly 16:9.
    """
    ratio = min(max(ratio, 1 / STEEPEST), STEEPEST)
    edge = LONGEST_EDGE * LONGEST_EDGE / max(ratio, 1 / ratio)
    target = max(LEAST_PIXELS, min(pixels, MOST_PIXELS, int(edge)))
    candidates = []
    for width in range(STEP, LONGEST_EDGE + 1, STEP):
        for height in {round(width / ratio / STEP + nudge) * STEP for nudge in (-0.5, 0, 0.5)}:
            if not is_free_size(width, height):
                continue
            off = abs(log(width * height / target))
            skew = abs(log(width / height / ratio))
            near = off <= NEAR_ENOUGH
            candidates.append((not near, skew if near else off, off, width, height))
    *_, width, height = min(candidates)
    return f"{width}x{height}"


def is_free_size(width: int, height: int) -> bool:
    """Whether a model with free sizes takes this one."""
    return (
        min(width, height) > 0
        and width % STEP == 0
        and height % STEP == 0
        and max(width, height) <= LONGEST_EDGE
        and max(width, height) <= STEEPEST * min(width, height)
        and LEAST_PIXELS <= width * height <= MOST_PIXELS
    )
