"""The field table: every CSV column, job option and command-line option of a job, once.

A new column that is also a job option needs an entry in FIELDS and an attribute of EditSettings
(rows.py), or of RowRequest if it is a column only, or of JobOptions (jobs.py) if an option only. A
setting that a provider takes as it is needs nothing else but its values in models/catalog.py.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, get_args

from darkroom.csv_input import values
from darkroom.csv_input.instructions import InstructionTemplate, parse_template
from darkroom.csv_input.names import parse_key, parse_output_name
from darkroom.errors import JobRejected
from darkroom.formatting import quoted, quoted_list
from darkroom.jobs import BatchFallback, JobOptions
from darkroom.rows import (
    AspectRatio,
    Background,
    InputFidelity,
    Mode,
    Moderation,
    Quality,
    Resolution,
    ThinkingLevel,
)

MAX_COLUMN_NAME_CHARS = 100
# Metadata that upload tools (rclone, s3cmd, S3 Browser, s3fs, gsutil) add by themselves.
_METADATA_OF_TOOLS = frozenset(
    {
        *("mtime", "md5chksum", "s3cmd-attrs", "s3b-last-modified", "goog-reserved-file-mtime"),
        *("sha256", "uid", "gid", "atime", "ctime", "content-type"),
    }
)
_MODE_OF_FILE = re.compile(r"[0-7]{3,7}|[0-9]{3,6}", re.ASCII)  # what s3fs and rclone call "mode"


@dataclass(frozen=True, slots=True)
class Field:
    """A CSV column, a job option, or both: then the option is the default for empty cells."""

    name: str  # of the attribute of RowRequest, of JobOptions, or of both
    parse: Callable[[str], Any]  # the text has no surrounding whitespace; see values.py
    columns: tuple[str, ...] = ()  # names of the CSV column, the preferred one first
    required: bool = False  # an empty cell is parsed too
    help: str = ""  # makes it a job option (S3 metadata and command line), and describes that
    metavar: str = ""  # on the command line
    in_quote: bool = True  # the option is also one of `darkroom quote`

    @property
    def option(self) -> bool:
        return bool(self.help)

    @property
    def option_name(self) -> str:
        """As in S3 metadata and, after two dashes, on the command line."""
        return self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """An option that is true or false."""
        return self.parse is values.parse_switch


FIELDS = (
    Field("images", values.parse_images, ("image_url", "input_images", "images", "image")),
    Field(
        "instruction",
        values.parse_instruction,
        ("instruction", "prompt"),
        required=True,
        help='For rows without one; {name} is a cell of the row: "Put the {name} on grass".',
        metavar="TEXT",
    ),
    Field("index", parse_key, ("index", "id")),
    Field("mask", values.parse_reference, ("mask_url", "mask")),
    Field("size", values.parse_size, ("size",)),
    Field("n", values.number_parser(10), ("n",)),  # what OpenAI accepts
    Field("output_name", parse_output_name, ("output_name",)),
    Field(
        "filter_rows",
        values.check_row_filter,
        help="Process only these rows: 0:50, :10, 5,7,20:30 (the first is 0).",
        metavar="ROWS",
    ),
    Field(
        "budget_usd",
        values.parse_budget,
        help="Never spend more than this; rows beyond it fail as `budget`.",
        metavar="USD",
    ),
    Field(
        "resume",
        values.parse_switch,
        help="Keep rows that succeeded in an earlier upload (the default), or edit them again.",
    ),
    Field(
        "retry_failed",
        values.parse_switch,
        help="Also retry rows that failed in an earlier upload.",
    ),
    Field(
        "fallback",
        values.parse_switch,
        help="Fall back to another model or a later tier when calls fail (the default), or wait.",
        in_quote=False,
    ),
    Field(
        "mode",
        values.choice_parser(get_args(Mode)),
        help="live; flex or batch are half price: minutes per image, or up to 24 hours in all.",
        metavar="NAME",
    ),
    Field(
        "batch_fallback",
        values.choice_parser(get_args(BatchFallback)),
        help="Rows that a batch gave no answer for: live (at the full price) or batch (the next).",
        metavar="NAME",
    ),
    Field(
        "model",
        values.parse_model,
        ("model",),
        help="For rows that do not name a model.",
        metavar="NAME",
    ),
    Field(
        "aspect_ratio",
        values.choice_parser(get_args(AspectRatio), values.normalize_ratio),
        ("aspect_ratio",),
        help="For rows without one: 1:1, 2:3, 16:9 …",
        metavar="W:H",
    ),
    Field(
        "resolution",
        values.choice_parser(get_args(Resolution), values.normalize_resolution),
        ("resolution",),
        help="For rows without one: 512, 1K, 2K or 4K.",
        metavar="SIZE",
    ),
    Field(
        "quality",
        values.choice_parser(get_args(Quality)),
        ("quality",),
        help="For rows without one: low, medium, high, xhigh or max.",
        metavar="NAME",
    ),
    Field(
        "background",
        values.choice_parser(get_args(Background)),
        ("background",),
        help="For rows without one: transparent, opaque, auto.",
        metavar="NAME",
    ),
    Field(
        "input_fidelity",
        values.choice_parser(get_args(InputFidelity)),
        ("input_fidelity",),
        help="How closely gpt-image-1.5 follows the input image: low, high.",
        metavar="NAME",
    ),
    Field(
        "moderation",
        values.choice_parser(get_args(Moderation)),
        ("moderation",),
        help="OpenAI's filter for generated images: auto, low.",
        metavar="NAME",
    ),
    Field(
        "output_compression",
        values.number_parser(100, 0),
        ("output_compression",),
        help="Quality of OpenAI's JPEG and WebP, 0 to 100.",
        metavar="NUMBER",
    ),
    Field(
        "thinking_level",
        values.choice_parser(get_args(ThinkingLevel)),
        ("thinking_level",),
        help="Of Gemini: minimal, low, medium, high.",
        metavar="NAME",
    ),
    Field(
        "seed",
        values.number_parser(2**31 - 1, 0),
        ("seed",),
        help="Of Gemini: the same number asks for the same result.",
        metavar="NUMBER",
    ),
    Field(
        "max_attempts",
        values.number_parser(50),
        help="Attempts per row before it is dead (default 5).",
        metavar="NUMBER",
        in_quote=False,
    ),
    Field(
        "give_up_after_hours",
        values.number_parser(336),
        help="Hours that rows wait for endpoints before they are dead (default 24, at most 336).",
        metavar="HOURS",
        in_quote=False,
    ),
    Field(
        "instruction_column",
        values.parse_text,
        help="The column with the instructions.",
        metavar="COLUMN",
    ),
    Field(
        "output_name_column",
        values.parse_text,
        help="The column with the names of the edited images.",
        metavar="COLUMN",
    ),
)
COLUMN_FIELDS = tuple(field for field in FIELDS if field.columns)
COLUMN_NAMES = frozenset(name for field in COLUMN_FIELDS for name in field.columns)
OPTION_FIELDS: Mapping[str, Field] = {field.option_name: field for field in FIELDS if field.option}

# The header row: which column is which field.


def normalize_name(name: str) -> str:
    """Column names are compared ignoring case, and with spaces and dashes as underscores."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Columns:
    """The position of each field in a row. Other columns are only copied into the manifest."""

    header: tuple[str, ...]
    positions: Mapping[str, int]
    warnings: tuple[str, ...] = ()
    template: InstructionTemplate | None = None  # for rows without an instruction of their own

    def has(self, field_name: str) -> bool:
        return field_name in self.positions

    def name(self, field_name: str) -> str:
        """The column's name as the user wrote it."""
        return self.header[self.positions[field_name]]

    def cell(self, cells: Sequence[str], field_name: str) -> str:
        """The field's cell without surrounding whitespace; empty where there is none."""
        position = self.positions.get(field_name)
        if position is None or position >= len(cells):
            return ""
        return cells[position].strip()

    def align(self, cells: Sequence[str]) -> tuple[str, ...]:
        """The cells, truncated or padded with empty ones to the length of the header."""
        width = len(self.header)
        return tuple(cells[:width]) + ("",) * (width - len(cells))


def read_columns(header: tuple[str, ...], options: JobOptions) -> Columns:
    """Find the fields' columns.

    Raises JobRejected if there is no header, neither an instruction column nor the option
    instruction, if a column of a field occurs twice, or if an option names a column that does not
    exist.
    """
    names = [normalize_name(name) for name in header]
    positions: dict[str, int] = {}
    warnings: list[str] = []
    for field in COLUMN_FIELDS:
        option = f"{field.name}_column"  # instruction_column, output_name_column
        if chosen := getattr(options, option, None):
            positions[field.name] = _find_chosen(chosen, option.replace("_", "-"), header)
            continue
        present = [alias for alias in field.columns if alias in names]
        if present and (count := names.count(present[0])) > 1:
            raise JobRejected(
                f"The header row has the column {quoted(present[0])} {count} times: keep one."
            )
        if present:
            positions[field.name] = names.index(present[0])
        if len(present) > 1:
            warnings.append(
                f"The columns {quoted_list(present)} mean the same: {quoted(present[0])} is used, "
                "the others are only copied into the manifest."
            )
    if "instruction" not in positions:
        _check_header(header)
    template = None
    if options.instruction is not None:
        find = partial(_find_chosen, option="instruction", header=header)
        template = parse_template(options.instruction, header, find)
        if "images" not in positions:
            warnings.append(
                "No column is named image_url, so that no row has an image: all are generated from "
                "the instruction alone."
            )
    elif "instruction" not in positions:
        raise JobRejected(
            f"No column contains instructions: the columns are {quoted_list(header)}. Give one for "
            'all rows in the option instruction, as in --instruction "Put the product on white"; '
            "or name a column instruction (or prompt), or name it in the option instruction-column."
        )
    return Columns(header, positions, tuple(warnings), template)


def _find_chosen(chosen: str, option: str, header: tuple[str, ...]) -> int:
    if header.count(chosen) == 1:
        return header.index(chosen)
    matches = [i for i, name in enumerate(header) if normalize_name(name) == normalize_name(chosen)]
    if len(matches) == 1:
        return matches[0]
    problem = "exists more than once" if matches else "does not exist"
    raise JobRejected(
        f"The column {quoted(chosen)} named by the option {option} {problem}: the columns are "
        f"{quoted_list(header)}."
    )


def _check_header(header: tuple[str, ...]) -> None:
    """Raises JobRejected for a first row that looks like data."""
    for name in header:
        is_number = name.replace(".", "").isdigit()
        if "://" in name or len(name) > MAX_COLUMN_NAME_CHARS or is_number:
            raise JobRejected(
                f"The file has no header row: its first row contains {quoted(name)}. Add a header "
                "such as image_url,instruction."
            )


# Job options.


def parse_options(metadata: Mapping[str, str]) -> JobOptions:
    """The user metadata of the uploaded CSV as job options: `{"filter-rows": "0:50"}`.

    Raises JobRejected naming the option and its valid values.
    """
    parsed: dict[str, Any] = {}
    for written, raw in metadata.items():
        name = written.strip().lower().replace("_", "-")
        if name in _METADATA_OF_TOOLS or (name == "mode" and _MODE_OF_FILE.fullmatch(raw.strip())):
            continue
        field = OPTION_FIELDS.get(name)
        if field is None:
            close = get_close_matches(name, OPTION_FIELDS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise JobRejected(
                f"There is no option {quoted(written)}.{hint} The options are "
                f"{', '.join(OPTION_FIELDS)}."
            )
        try:
            parsed[field.name] = field.parse(_decode(raw).strip())
        except ValueError as error:
            raise JobRejected(f"The option {name}: {error}.") from error
    return JobOptions(**parsed)


def _decode(value: str) -> str:
    """S3 returns metadata that is not ASCII as RFC 2047 encoded words."""
    if "=?" not in value:
        return value
    from email.errors import HeaderParseError  # noqa: PLC0415 - rare, and slow to import
    from email.header import decode_header, make_header  # noqa: PLC0415

    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, UnicodeError):
        return value
