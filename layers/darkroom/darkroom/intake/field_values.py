"""Values that a row and a job option share: read generously, refused with the choices."""

import re
from typing import cast, get_args

from darkroom.rows import AspectRatio, Background, Resolution
from darkroom.texts import shown

_RATIOS: tuple[str, ...] = get_args(AspectRatio)
_RESOLUTIONS: tuple[str, ...] = get_args(Resolution)
_BACKGROUNDS: tuple[str, ...] = get_args(Background)
_QUALITIES = ("auto", "low", "medium", "high", "standard", "hd")
# "16:9" also as 16x9, 16/9, and as a spreadsheet's idea of a time: 16:09 or 16:09:00.
_RATIO = re.compile(r"(\d{1,3})\s*[:x\xd7/]\s*(\d{1,3})(?::00)?", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(r"([1-9]\d{1,4})\s*[x\xd7*]\s*([1-9]\d{1,4})", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"(\d{1,9})(?:\.0+)?", re.ASCII)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}", re.ASCII)


def read_aspect_ratio(text: str) -> AspectRatio:
    """All functions here raise ValueError with the rest of a sentence: "'5:3' is not one of …"."""
    match = _RATIO.fullmatch(text)
    ratio = f"{int(match[1])}:{int(match[2])}" if match else text
    if ratio not in _RATIOS:
        raise ValueError(f"{shown(text)} is not one of {', '.join(_RATIOS)}")
    return cast("AspectRatio", ratio)


def read_resolution(text: str) -> Resolution:
    if text.upper() not in _RESOLUTIONS:
        raise ValueError(f"{shown(text)} is not one of {', '.join(_RESOLUTIONS)}")
    return cast("Resolution", text.upper())


def read_quality(text: str) -> str:
    if text.lower() not in _QUALITIES:
        raise ValueError(f"{shown(text)} is not one of {', '.join(_QUALITIES)}")
    return text.lower()


def read_background(text: str) -> Background:
    if text.lower() not in _BACKGROUNDS:
        raise ValueError(f"{shown(text)} is not one of {', '.join(_BACKGROUNDS)}")
    return cast("Background", text.lower())


def read_size(text: str) -> str:
    if text.lower() == "auto":
        return "auto"
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(text)} is no size: write auto, or width x height like 1024x1536")
    return f"{match[1]}x{match[2]}"


def read_count(text: str) -> int:
    """1 to 10, also as 2.0, which tools write into columns with gaps."""
    match = _WHOLE.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= 10:  # noqa: PLR2004 - what OpenAI takes
        raise ValueError(f"{shown(text)} is not a number from 1 to 10")
    return int(match[1])


def read_model(text: str) -> str:
    if _MODEL.fullmatch(text) is None:
        raise ValueError(f"{shown(text)} is no model name")
    return text
