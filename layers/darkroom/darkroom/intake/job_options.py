"""User metadata of the uploaded CSV as job options."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from darkroom.errors import JobRejected
from darkroom.intake.field_values import (
    read_aspect_ratio,
    read_background,
    read_model,
    read_quality,
    read_resolution,
)
from darkroom.intake.row_filter import parse_row_filter
from darkroom.jobs import JobOptions
from darkroom.texts import shown

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
    return f"There is no option {shown(written)}.{hint} The options are {', '.join(_READERS)}."


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
    raise ValueError(f"{shown(value)} is neither true nor false")


def _filter_rows(value: str) -> str:
    parse_row_filter(value)  # raises JobRejected with its own sentence
    return value


def _budget(value: str) -> float:
    try:
        amount = float(value.removeprefix("$"))
    except ValueError:
        amount = -1.0
    if not 0 <= amount <= _LARGEST_BUDGET:  # also false for nan
        raise ValueError(f"{shown(value)} is not an amount of US dollars such as 5 or 2.50")
    return amount


def _attempts(value: str) -> int:
    if not (value.isascii() and value.isdigit()) or not 1 <= int(value[:9]) <= _MOST_ATTEMPTS:
        raise ValueError(f"{shown(value)} is not a number from 1 to {_MOST_ATTEMPTS}")
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
