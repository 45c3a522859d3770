"""Values that a row and a job option share: read generously, refused with the choices."""

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, cast, get_args

from darkroom.errors import JobRejected
from darkroom.formatting import quoted, quoted_list
from darkroom.jobs import JobOptions
from darkroom.rows import AspectRatio, Background, Resolution

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
        raise ValueError(f"{quoted(text)} is not one of {', '.join(_RATIOS)}")
    return cast("AspectRatio", ratio)


def read_resolution(text: str) -> Resolution:
    if text.upper() not in _RESOLUTIONS:
        raise ValueError(f"{quoted(text)} is not one of {', '.join(_RESOLUTIONS)}")
    return cast("Resolution", text.upper())


def read_quality(text: str) -> str:
    if text.lower() not in _QUALITIES:
        raise ValueError(f"{quoted(text)} is not one of {', '.join(_QUALITIES)}")
    return text.lower()


def read_background(text: str) -> Background:
    if text.lower() not in _BACKGROUNDS:
        raise ValueError(f"{quoted(text)} is not one of {', '.join(_BACKGROUNDS)}")
    return cast("Background", text.lower())


def read_size(text: str) -> str:
    if text.lower() == "auto":
        return "auto"
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{quoted(text)} is no size: write auto, or width x height like 1024x1536")
    return f"{match[1]}x{match[2]}"


def read_count(text: str) -> int:
    """1 to 10, also as 2.0, which tools write into columns with gaps."""
    match = _WHOLE.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= 10:  # noqa: PLR2004 - what OpenAI takes
        raise ValueError(f"{quoted(text)} is not a number from 1 to 10")
    return int(match[1])


def read_model(text: str) -> str:
    if _MODEL.fullmatch(text) is None:
        raise ValueError(f"{quoted(text)} is no model name")
    return text


# The header row: which column means what.


# The names a column may go by, the most particular first.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "images": ("image_url", "input_images", "images", "image"),
    "instruction": ("instruction", "prompt"),
    "index": ("index", "id"),
    "mask": ("mask_url", "mask"),
    "aspect_ratio": ("aspect_ratio",),
    "resolution": ("resolution",),
    "size": ("size",),
    "quality": ("quality",),
    "background": ("background",),
    "n": ("n",),
    "output_name": ("output_name",),
    "model": ("model",),
}
KNOWN_NAMES = frozenset(name for names in ALIASES.values() for name in names)
_LONGEST_NAME = 100


def normalized(name: str) -> str:
    """Header names are compared without regard to case, spaces and dashes: "Image URL"."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Columns:
    """Where each field lies in a row. Columns that mean nothing here are carried on."""

    header: tuple[str, ...]
    positions: Mapping[str, int]
    warnings: tuple[str, ...] = field(default=())

    def has(self, field_name: str) -> bool:
        return field_name in self.positions

    def name(self, field_name: str) -> str:
        """The column's name as the user wrote it."""
        return self.header[self.positions[field_name]]

    def cell(self, cells: Sequence[str], field_name: str) -> str:
        """The field's cell without surrounding blanks; empty where there is none."""
        position = self.positions.get(field_name)
        if position is None or position >= len(cells):
            return ""
        return cells[position].strip()

    def align(self, cells: Sequence[str]) -> tuple[str, ...]:
        """As many cells as the header has names."""
        width = len(self.header)
        return tuple(cells[:width]) + ("",) * (width - len(cells))


def read_columns(header: tuple[str, ...], options: JobOptions) -> Columns:
    """Raises JobRejected: no header, no instruction column, a named column that is not there."""
    names = [normalized(name) for name in header]
    positions: dict[str, int] = {}
    warnings: list[str] = []
    chosen = {"instruction": options.instruction_column, "output_name": options.output_name_column}
    for field_name, aliases in ALIASES.items():
        wanted = chosen.get(field_name)
        if wanted is not None:
            option = f"{field_name.replace('_', '-')}-column"
            positions[field_name] = _find_named(wanted, option, header)
            continue
        present = [alias for alias in aliases if alias in names]
        if not present:
            continue
        if names.count(present[0]) > 1:
            raise JobRejected(
                f"The header row has the column {quoted(present[0])} {names.count(present[0])} "
                "times: keep one."
            )
        positions[field_name] = names.index(present[0])
        if len(present) > 1:
            warnings.append(
                f"The columns {quoted_list(present)} mean the same: {quoted(present[0])} is used, "
                "the others are only carried into the manifest."
            )
    if "instruction" not in positions:
        raise JobRejected(_no_instruction(header))
    return Columns(header, positions, tuple(warnings))


def _find_named(wanted: str, option: str, header: tuple[str, ...]) -> int:
    if header.count(wanted) == 1:
        return header.index(wanted)
    matches = [i for i, name in enumerate(header) if normalized(name) == normalized(wanted)]
    if len(matches) == 1:
        return matches[0]
    problem = "is there more than once" if matches else "is not there"
    raise JobRejected(
        f"The column {quoted(wanted)} that {option} names {problem}: the columns are "
        f"{quoted_list(header)}."
    )


def _no_instruction(header: tuple[str, ...]) -> str:
    for name in header:
        if "://" in name or len(name) > _LONGEST_NAME or name.replace(".", "").isdigit():
            return (
                f"The file has no header row: its first row holds {quoted(name)}. Add one such as "
                "image_url,instruction."
            )
    return (
        f"No column says what to do: the columns are {quoted_list(header)}. Name one instruction "
        "(or prompt), or say which it is with the option instruction-column."
    )


# The option filter-rows: `0:50`, `:10`, `5,7,20:30`.


_PART = re.compile(r"(?P<first>\d{1,12})?(?P<colon>\s*:\s*)?(?P<last>\d{1,12})?", re.ASCII)
_SEPARATOR = re.compile(r"[,;]")
_END = 10**15


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Data rows by position, the first is 0. Ranges are sorted and do not touch."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]  # exclusive

    def __contains__(self, row: int) -> bool:
        place = bisect_right(self.starts, row) - 1
        return place >= 0 and row < self.ends[place]


ALL_ROWS = RowFilter((0,), (_END,))


def parse_row_filter(text: str | None) -> RowFilter:
    """Ranges `a:b` (b excluded, like Python's), `a:`, `:b`, and single rows, joined by commas.

    Raises JobRejected that names the part which cannot be read.
    """
    if text is None:
        return ALL_ROWS
    ranges = sorted(_parse_part(part.strip()) for part in _SEPARATOR.split(text))
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return RowFilter(tuple(start for start, _ in merged), tuple(end for _, end in merged))


def _parse_part(part: str) -> tuple[int, int]:
    match = _PART.fullmatch(part)
    if match is None or not part:
        raise JobRejected(
            f"The option filter-rows cannot be read at {quoted(part)}: write rows and ranges such "
            "as 5,7,20:30 (the first row is 0, a range's end is excluded)."
        )
    first, last = match["first"], match["last"]
    if match["colon"] is None:
        return int(first), int(first) + 1
    start = int(first) if first else 0
    end = int(last) if last else _END
    if end <= start:
        raise JobRejected(
            f"The option filter-rows holds the range {quoted(part)}, which is empty: its end must "
            "be larger than its beginning."
        )
    return start, end


# User metadata of the uploaded CSV as job options.


# What upload tools (rclone, s3cmd, S3 Browser, s3fs, gsutil) write without being asked.
_NOT_OURS = frozenset(
    {
        *("mtime", "md5chksum", "s3cmd-attrs", "s3b-last-modified", "goog-reserved-file-mtime"),
        *("sha256", "uid", "gid", "mode", "atime", "ctime", "content-type"),
    }
)
_LARGEST_BUDGET = 10_000_000.0
_MOST_ATTEMPTS = 50


def parse_options(metadata: Mapping[str, str]) -> JobOptions:
    """Names as in S3, `filter-rows`. Raises JobRejected that names the option and what it takes."""
    values: dict[str, Any] = {}
    for written, raw in metadata.items():
        name = written.strip().lower().replace("_", "-")
        if name in _NOT_OURS:
            continue
        read = _READERS.get(name)
        if read is None:
            raise JobRejected(_unknown(written, name))
        try:
            values[name.replace("-", "_")] = read(_decoded(raw).strip())
        except ValueError as error:
            raise JobRejected(f"The option {name}: {error}.") from error
    return JobOptions(**values)


def _unknown(written: str, name: str) -> str:
    close = get_close_matches(name, _READERS, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"There is no option {quoted(written)}.{hint} The options are {', '.join(_READERS)}."


def _decoded(value: str) -> str:
    """S3 gives metadata that is not ASCII back as RFC 2047 words."""
    if "=?" not in value:
        return value
    from email.errors import HeaderParseError  # noqa: PLC0415 - rare, and slow to import
    from email.header import decode_header, make_header  # noqa: PLC0415

    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, UnicodeError):
        return value


def _text(value: str) -> str:
    if not value:
        raise ValueError("it is empty")
    return value


def _switch(value: str) -> bool:
    if value.lower() in ("true", "yes", "on", "1"):
        return True
    if value.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{quoted(value)} is neither true nor false")


def _filter_rows(value: str) -> str:
    parse_row_filter(value)  # raises JobRejected with its own sentence
    return value


def _budget(value: str) -> float:
    try:
        amount = float(value.removeprefix("$"))
    except ValueError:
        amount = -1.0
    if not 0 <= amount <= _LARGEST_BUDGET:  # also false for nan
        raise ValueError(f"{quoted(value)} is not an amount of US dollars such as 5 or 2.50")
    return amount


def _attempts(value: str) -> int:
    if not (value.isascii() and value.isdigit()) or not 1 <= int(value[:9]) <= _MOST_ATTEMPTS:
        raise ValueError(f"{quoted(value)} is not a number from 1 to {_MOST_ATTEMPTS}")
    return int(value)


_READERS: Mapping[str, Callable[[str], object]] = {
    "filter-rows": _filter_rows,
    "resume": _switch,
    "retry-failed": _switch,
    "instruction-column": _text,
    "output-name-column": _text,
    "budget-usd": _budget,
    "model": read_model,
    "aspect-ratio": read_aspect_ratio,
    "resolution": read_resolution,
    "quality": read_quality,
    "background": read_background,
    "max-attempts": _attempts,
}
