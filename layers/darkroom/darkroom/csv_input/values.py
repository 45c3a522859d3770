"""Parsers from the text of a cell or a job option to its value.

Each parser accepts common spellings, and raises ValueError for anything else. The message completes
a sentence that begins with the column or option: "column size: 'x' is not a valid size: write …".
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from darkroom.formatting import quoted

MAX_IMAGES = 16  # the most that any model accepts
MAX_INSTRUCTION_CHARS = 32_000  # the longest prompt an image model accepts (gpt-image; Gemini more)
_MAX_REFERENCE_CHARS = 8_192  # presigned URLs with session tokens have about 2,000
_MAX_BUDGET_USD = 10_000_000.0
_NO_END = 10**15  # of a range of rows

_RATIO = re.compile(r"(\d{1,3})\s*[:x\xd7/]\s*(\d{1,3})(?::00)?", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(r"([1-9]\d{1,4})\s*[x\xd7*]\s*([1-9]\d{1,4})", re.ASCII | re.IGNORECASE)
_RANGE = re.compile(r"(?P<first>\d{1,12})?(?P<colon>\s*:\s*)?(?P<last>\d{1,12})?", re.ASCII)
_WHOLE_NUMBER = re.compile(r"(\d{1,10})(?:\.0+)?", re.ASCII)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}", re.ASCII)
# Characters that SQS does not accept, and no instruction needs.
_NOT_IN_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_NOT_IN_REFERENCE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_STARTS_URL = re.compile(r"\s*(https?|s3)://", re.IGNORECASE)
_ENDS_AS_IMAGE = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic)$", re.IGNORECASE)


def choice_parser(
    choices: Sequence[str], normalize: Callable[[str], str] = str.lower
) -> Callable[[str], str]:
    """A parser for one of `choices`, which the text must equal after `normalize`."""

    def parse(text: str) -> str:
        if normalize(text) not in choices:
            raise ValueError(f"{quoted(text)} is not one of {', '.join(choices)}")
        return normalize(text)

    return parse


def normalize_ratio(text: str) -> str:
    """16:9 from 16x9, 16/9, or the time of day that a spreadsheet makes of it: 16:09, 16:09:00."""
    match = _RATIO.fullmatch(text)
    return f"{int(match[1])}:{int(match[2])}" if match else text


def normalize_resolution(text: str) -> str:
    """1K from 1k; 512 from 0.5K and 512px, other names of the same resolution."""
    name = text.upper()
    return "512" if name in ("0.5K", "512PX") else name


def parse_size(text: str) -> str:
    if text.lower() == "auto":
        return "auto"
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{quoted(text)} is not a valid size: write auto, or width x height such as 1024x1536"
        )
    return f"{match[1]}x{match[2]}"


def number_parser(largest: int, smallest: int = 1) -> Callable[[str], int]:
    """A parser for a whole number, also as 2.0, which some tools write for it."""

    def parse(text: str) -> int:
        match = _WHOLE_NUMBER.fullmatch(text)
        if match is None or not smallest <= int(match[1]) <= largest:
            raise ValueError(f"{quoted(text)} is not a number from {smallest} to {largest}")
        return int(match[1])

    return parse


def parse_model(text: str) -> str:
    """A model's name. It becomes part of a URL: `..` and empty parts would change its path."""
    parts = text.split("/")
    if _MODEL.fullmatch(text) is None or ".." in text or not all(p.strip(".") for p in parts):
        raise ValueError(
            f"{quoted(text)} is not a valid model name: docs/models.md lists those of the providers"
        )
    return text


def parse_instruction(text: str) -> str:
    if not text:
        raise ValueError("it is empty, describe the image you want")
    if len(text) > MAX_INSTRUCTION_CHARS:
        raise ValueError(
            f"it has {len(text):,} characters, at most {MAX_INSTRUCTION_CHARS:,} can be sent"
        )
    if found := _NOT_IN_TEXT.search(text):
        raise ValueError(f"it contains the control character U+{ord(found[0]):04X}")
    return text


def parse_text(text: str) -> str:
    if not text:
        raise ValueError("it is empty")
    return text


def parse_switch(text: str) -> bool:
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{quoted(text)} is neither true nor false")


def parse_budget(text: str) -> float:
    try:
        amount = float(text.removeprefix("$"))
    except ValueError:
        amount = -1.0
    if not 0 <= amount <= _MAX_BUDGET_USD:  # also false for nan
        raise ValueError(f"{quoted(text)} is not an amount of US dollars such as 5 or 2.50")
    return amount


def parse_images(cell: str) -> tuple[str, ...]:
    """The references to images, in the order written.

    A cell that begins with `[` is a JSON list. Otherwise `|` and line ends separate references, and
    in a cell without any, commas do. A comma belongs to the URL before it (`…/w_400,h_300/a.jpg`)
    unless a space or another URL follows it, or the text on both sides ends like an image's name.
    """
    if cell.startswith("["):
        references = _from_json(cell)
    elif "|" in cell or "\n" in cell:
        references = re.split(r"[|\r\n]+", cell)
    else:
        references = _split_commas(cell)
    references = [stripped for reference in references if (stripped := reference.strip())]
    if len(references) > MAX_IMAGES:
        raise ValueError(f"{len(references)} images, but no model accepts more than {MAX_IMAGES}")
    return tuple(map(parse_reference, references))


def parse_reference(reference: str) -> str:
    """An https, http or s3 URL or a path. Whether it may be fetched is decided when it is used."""
    problem = None
    scheme = _SCHEME.match(reference)
    if len(reference) > _MAX_REFERENCE_CHARS:
        problem = f"is longer than {_MAX_REFERENCE_CHARS:,} characters"
    elif _NOT_IN_REFERENCE.search(reference):
        problem = "contains a control character"
    elif scheme and scheme[1].lower() == "data":
        raise ValueError("data: URLs are not accepted, upload the image to S3 and write its URL")
    elif scheme and (scheme[1].lower() not in ("https", "http", "s3") or not scheme[2]):
        problem = "is neither an https:// or s3:// URL nor a path relative to the CSV"
    elif scheme and not reference[scheme.end() :].strip("/"):
        problem = "has no host or bucket"
    if problem:
        raise ValueError(f"{quoted(reference)} {problem}")
    return reference


def _from_json(cell: str) -> list[str]:
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{quoted(cell)} begins like a JSON list but is not valid JSON: "
            'write ["a.jpg", "b.jpg"]'
        ) from error
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"the JSON list {quoted(cell)} must contain strings only")
    return list(values)


def _split_commas(cell: str) -> list[str]:
    first, *pieces = cell.split(",")
    references = [first]
    for piece in pieces:
        before = references[-1]
        separates = (
            not _STARTS_URL.match(before)
            or _STARTS_URL.match(piece)
            or not piece[:1].strip()
            or (_ENDS_AS_IMAGE.search(before) and _ENDS_AS_IMAGE.search(piece))
        )
        if separates:
            references.append(piece)
        else:
            references[-1] += "," + piece
    return references


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Data rows by position, the first is 0: sorted ranges, which may overlap."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]  # exclusive, of this range or of an earlier one that ends later

    def __contains__(self, row: int) -> bool:
        place = bisect_right(self.starts, row) - 1
        return place >= 0 and row < self.ends[place]


def parse_row_filter(text: str) -> RowFilter:
    """Ranges `a:b` (b excluded, as in Python), `a:`, `:b`, and single rows, joined by commas."""
    ranges = sorted(_parse_range(part.strip()) for part in re.split(r"[,;]", text))
    starts, ends = zip(*ranges, strict=True)
    return RowFilter(starts, tuple(accumulate(ends, max)))


def check_row_filter(text: str) -> str:
    """The text of a filter that `parse_row_filter` accepts."""
    parse_row_filter(text)
    return text


def _parse_range(part: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(part)
    if match is None or not part:
        raise ValueError(
            f"{quoted(part)} is not a row or a range of rows: write rows and ranges such as "
            "5,7,20:30 (the first row is 0, a range's end is excluded)"
        )
    first, last = match["first"], match["last"]
    if match["colon"] is None:
        return int(first), int(first) + 1
    start, end = int(first or 0), int(last or _NO_END)
    if end <= start:
        raise ValueError(
            f"the range {quoted(part)} is empty: its end must be larger than its start"
        )
    return start, end
