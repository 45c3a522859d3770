"""Converts aspect ratios and resolutions to sizes in pixels, and back."""

import re
from collections.abc import Sequence
from functools import lru_cache
from math import log

PIXELS = {"512": 512 * 512, "1K": 1024 * 1024, "2K": 2048 * 2048, "4K": 4096 * 4096}
# Free sizes of gpt-image-2 and later: openai 3.52, image_edit_params, and the image guide's limits
# of edges and area (https://developers.openai.com/api/docs/guides/image-generation), 2026-11-21.
EDGE_MULTIPLE = 16
MAX_EDGE = 3840
MIN_PIXELS = 655_360
MAX_PIXELS = 8_294_400
MAX_RATIO = 3.0
_AREA_TOLERANCE = 0.15  # as a logarithm
_SIZE = re.compile(r"\s*(\d{2,5})\s*[xX×]\s*(\d{2,5})\s*")  # noqa: RUF001 - people write it


def parse_size(size: str) -> tuple[int, int] | None:
    """ "1024x1536" -> (1024, 1536); None for anything else, "auto" included."""
    match = _SIZE.fullmatch(size)
    if match is None or not int(match[1]) or not int(match[2]):
        return None
    return int(match[1]), int(match[2])


def area(size: str) -> int:
    """Pixels of "1024x1536". Raises ValueError for anything else."""
    parsed = parse_size(size)
    if parsed is None:
        raise ValueError(f"{size!r} is not a valid size: write it like 1024x1536")
    return parsed[0] * parsed[1]


def ratio_of(aspect_ratio: str) -> float:
    """Width over height of "2:3" or "1024x1536"."""
    width, _, height = aspect_ratio.replace("x", ":").partition(":")
    return int(width) / int(height)


def nearest_ratio(ratio: float, choices: Sequence[str]) -> str:
    """The nearest choice as a factor, so that 2:3 is as far from 1:1 as 3:2 is."""
    return min(choices, key=lambda choice: abs(log(ratio / ratio_of(choice))))


def nearest_resolution(pixels: int, choices: Sequence[str]) -> str:
    return min(choices, key=lambda choice: abs(log(pixels / PIXELS[choice])))


def nearest_size(ratio: float, pixels: int, choices: Sequence[str]) -> str:
    """Of the fixed sizes with the nearest shape, the nearest in area."""
    distances = {choice: abs(log(ratio / ratio_of(choice))) for choice in choices}
    nearest = min(distances.values()) + 1e-9
    same_shape = [choice for choice in choices if distances[choice] <= nearest]
    return min(same_shape, key=lambda choice: abs(log(pixels / area(choice))))


@lru_cache(maxsize=256)
def free_size(ratio: float, pixels: int) -> str:
    """The allowed free size of that shape that is nearest to that area.

    Within 15 % of the area, the closest shape wins: 16:9 at 1K is 1280x720, exactly 16:9.
    """
    ratio = min(max(ratio, 1 / MAX_RATIO), MAX_RATIO)
    largest = MAX_EDGE * MAX_EDGE / max(ratio, 1 / ratio)
    target = max(MIN_PIXELS, min(pixels, MAX_PIXELS, int(largest)))
    candidates = []
    for width in range(EDGE_MULTIPLE, MAX_EDGE + 1, EDGE_MULTIPLE):
        exact = width / ratio / EDGE_MULTIPLE
        for height in {round(exact + step) * EDGE_MULTIPLE for step in (-0.5, 0, 0.5)}:
            if not is_free_size(width, height):
                continue
            area_error = abs(log(width * height / target))
            shape_error = abs(log(width / height / ratio))
            near = area_error <= _AREA_TOLERANCE
            rank = (not near, shape_error if near else area_error, area_error)
            candidates.append((*rank, width, height))
    *_, width, height = min(candidates)
    return f"{width}x{height}"


def is_free_size(width: int, height: int) -> bool:
    """Whether a model with free sizes accepts this one."""
    return (
        min(width, height) > 0
        and width % EDGE_MULTIPLE == 0
        and height % EDGE_MULTIPLE == 0
        and max(width, height) <= MAX_EDGE
        and max(width, height) <= MAX_RATIO * min(width, height)
        and MIN_PIXELS <= width * height <= MAX_PIXELS
    )
