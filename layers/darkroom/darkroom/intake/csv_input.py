"""The CSV as records, streamed: header, delimiter, rows, and where in the text each row ends."""

import codecs
import contextlib
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from darkroom.errors import JobRejected
from darkroom.intake.columns import KNOWN_NAMES, normalized
from darkroom.intake.csv_text import (
    HEAD_BYTES,
    Lines,
    OpenBytes,
    TextFormat,
    read_format,
    read_text,
)

DELIMITERS = (",", ";", "\t")
MAX_COLUMNS = 1_000


class Record(NamedTuple):
    """One data row: its cells, and the byte offset (decompressed) where the next row begins."""

    cells: list[str]
    end: int


@dataclass(frozen=True, slots=True)
class CsvInput:
    """An opened CSV: what the header row tells. Rows come from `records`."""

    open_bytes: OpenBytes
    text_format: TextFormat
    delimiter: str
    header: tuple[str, ...]
    data_start: int  # byte offset in the decompressed text of the first data row

    @classmethod
    def open(cls, open_bytes: OpenBytes) -> "CsvInput":
        """Read the header row. Raises JobRejected with the sentence for the user."""
        text_format, head = read_format(open_bytes)
        found: list[_Header] = []
        refused: list[JobRejected] = []
        for delimiter in DELIMITERS:
            try:
                found.append(_read_header(head, text_format, delimiter))
            except JobRejected as error:
                refused.append(error)
        if not found:
            raise refused[0]
        best = max(found, key=lambda header: header.score)
        if refused and best.score <= (0, 1):
            raise refused[0]  # a header of one odd column only because its quote is never closed
        if len(best.names) > MAX_COLUMNS:
            raise JobRejected(f"The header row has more than {MAX_COLUMNS:,} columns.")
        return cls(open_bytes, text_format, best.delimiter, best.names, best.end)

    def records(self, offset: int | None = None) -> Iterator[Record]:
        """Data rows from the byte `offset` of an earlier record's `end`, or from the first.

        Blank lines, and rows whose cells are all empty, are no rows. Raises JobRejected when the
        rest of the file cannot be read as CSV.
        """
        start = self.data_start if offset is None else offset
        lines = Lines(
            read_text(self.open_bytes, self.text_format, start), self.text_format.encoding, start
        )
        if offset is None:
            lines.line = 1  # for messages; a header over several lines is rare
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise JobRejected(_sentence(error, lines)) from error
            lines.record_chars = 0
            if any(cells) and any(cell.strip() for cell in cells):
                yield Record(cells, lines.offset)


class _Header(NamedTuple):
    """The header row as one delimiter reads it."""

    delimiter: str
    names: tuple[str, ...]
    end: int

    @property
    def score(self) -> tuple[int, int]:
        return sum(normalized(name) in KNOWN_NAMES for name in self.names), len(self.names)


def _read_header(head: bytes, text_format: TextFormat, delimiter: str) -> _Header:
    lines = Lines(_whole_text(head, text_format), text_format.encoding, text_format.start)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) and not _is_excel_hint(cells):
                _check_complete(lines.offset, head)
                return _Header(delimiter, tuple(cell.strip() for cell in cells), lines.offset)
    except csv.Error as error:
        _check_complete(lines.offset, head)
        raise JobRejected(_sentence(error, lines)) from error
    raise JobRejected("The file is empty: it needs a header row and at least one row.")


def _is_excel_hint(cells: list[str]) -> bool:
    """Excel's first line "sep=;", which says the delimiter."""
    return cells[0].lower().startswith("sep=") and not any(cells[1:])


def _whole_text(head: bytes, text_format: TextFormat) -> Iterator[bytes]:
    """The head's text without a character cut in two at its end."""
    body = head[text_format.start :]
    if len(head) > HEAD_BYTES:
        decoder = codecs.getincrementaldecoder(text_format.encoding)()
        with contextlib.suppress(UnicodeDecodeError):  # met again, and named, by Lines
            body = decoder.decode(body).encode(text_format.encoding)
    yield body


def _check_complete(offset: int, head: bytes) -> None:
    if len(head) > HEAD_BYTES and offset >= len(head) - 4:  # less than a character left
        raise JobRejected(
            f"The header row is longer than {HEAD_BYTES:,} bytes, or a quote in it is never closed."
        )


def _sentence(error: csv.Error, lines: Lines) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return (
            "The file ends in the middle of a quoted field: it was probably cut off, "
            "upload it again whole."
        )
    if "field limit" in text:
        return (
            f"Line {lines.line} holds a field of more than 131,072 characters: probably a quote "
            "before it is never closed."
        )
    if "expected after" in text:
        return (
            f"Line {lines.line} has text after a closing quote: double the quotes inside a quoted "
            'field ("").'
        )
    return f"Line {lines.line} cannot be read as CSV ({text})."
