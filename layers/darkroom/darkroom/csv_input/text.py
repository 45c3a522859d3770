"""From an uploaded object's bytes to lines of text: gzip, encodings, files that are not CSVs."""

import codecs
import gzip
import io
import zlib
from collections.abc import Buffer, Callable, Iterator
from dataclasses import dataclass
from itertools import chain

from darkroom.errors import JobRejected

# Returns the object's bytes from an offset to its end; every call starts a new read.
OpenBytes = Callable[[int], Iterator[bytes]]

HEAD_BYTES = 65_536  # the header row must end within these
MAX_RECORD_CHARS = 1_000_000
MAX_TEXT_BYTES = 16 * 1024**3  # after decompression; stops a gzip bomb of blank lines
MAX_FIELD_CHARS = 131_072  # the default of csv.field_size_limit
_PIECE_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"

_NOT_CSV = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a WebP image or another RIFF file"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "an Excel workbook or another zip file"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)"),
    (b"PAR1", "a Parquet file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"{\\rtf", "an RTF document"),
)
_NOT_CSV_TEXT = (
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML file"),
    (b"{", "JSON"),
    (b"[", "JSON"),
)


@dataclass(frozen=True, slots=True)
class TextFormat:
    """How to decode the bytes. `start` is the offset of the text, after a byte order mark."""

    gzipped: bool
    encoding: str
    start: int


def gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress as a stream, one piece in memory at a time. Consecutive members are one file.

    Raises JobRejected when the file is cut off or damaged.
    """
    packed = io.BufferedReader(_RawStream(chunks), buffer_size=_PIECE_BYTES)
    text = gzip.GzipFile(fileobj=packed)
    try:
        while piece := text.read1(_PIECE_BYTES):
            yield piece
    except EOFError as error:
        raise JobRejected(
            "The gzip file ends too early: its upload was probably cut off, upload it again."
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise JobRejected(
            "The file's gzip compression is damaged: compress it again and upload it again."
        ) from error


def read_format(open_bytes: OpenBytes) -> tuple[TextFormat, bytes]:
    """The file's format and the first bytes of its decompressed text, at most HEAD_BYTES + 1.

    Raises JobRejected for an empty file and for one that cannot be text.
    """
    raw = open_bytes(0)
    first = b""
    for chunk in raw:
        first += chunk
        if len(first) >= len(_GZIP):
            break
    gzipped = first.startswith(_GZIP)
    chunks = chain([first], raw)
    head = bytearray()
    for chunk in gunzip(chunks) if gzipped else chunks:
        head += chunk
        if len(head) > HEAD_BYTES:
            break
    text = bytes(head[: HEAD_BYTES + 1])
    encoding, start = _detect_encoding(text)
    return TextFormat(gzipped, encoding, start), text


def read_text(
    open_bytes: OpenBytes,
    text_format: TextFormat,
    offset: int,
    on_text: Callable[[], None] = lambda: None,
) -> Iterator[bytes]:
    """The decompressed bytes from `offset` on. A gzip file is always read from its start.

    `on_text` is called for every piece that is skipped.
    """
    if not text_format.gzipped:
        yield from open_bytes(offset)
        return
    position = 0
    for piece in gunzip(open_bytes(0)):
        on_text()
        position += len(piece)
        if position > offset:
            yield piece[max(0, offset - (position - len(piece))) :]


def _detect_encoding(head: bytes) -> tuple[str, int]:
    if not head.strip(b" \t\r\n\xef\xbb\xbf"):
        raise JobRejected("The file is empty: it needs a header row and at least one row.")
    for beginning, kinds in ((head, _NOT_CSV), (head[:64].lstrip().lower(), _NOT_CSV_TEXT)):
        for magic, kind in kinds:
            if beginning.startswith(magic):
                raise JobRejected(
                    f"The file is {kind}, not a CSV: save or export it as CSV (UTF-8)."
                )
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise JobRejected("The file is UTF-32 text: save it as CSV (UTF-8).")
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if head.startswith(mark):
            return encoding, len(mark)
    return "utf-8", 0


def _describe_nul(line: int) -> str:
    return (
        f"Line {line} contains NUL characters, so the file is not plain text (or UTF-16 without a "
        "byte order mark): save it as CSV (UTF-8)."
    )


class _RawStream(io.RawIOBase):
    """An iterator of bytes as a raw stream. `on_read` is called before every read."""

    def __init__(self, chunks: Iterator[bytes], on_read: Callable[[], None] = lambda: None) -> None:
        self._chunks = chunks
        self._on_read = on_read
        self._remaining = memoryview(b"")
        self._total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        self._on_read()
        while not self._remaining:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._total += len(chunk)
            if self._total > MAX_TEXT_BYTES:
                raise JobRejected("The file is larger than 16 GiB of text: split it into several.")
            self._remaining = memoryview(chunk)
        target = memoryview(buffer)
        count = min(len(target), len(self._remaining))
        target[:count] = self._remaining[:count]
        self._remaining = self._remaining[count:]
        return count


class Lines:
    """Lines with their line ends; `offset` is the byte after the last line returned.

    `on_text` is called for every piece of at most 1 MiB. Raises JobRejected on bytes that cannot be
    decoded, NULs, and records that never end.
    """

    def __init__(
        self,
        chunks: Iterator[bytes],
        encoding: str,
        offset: int,
        on_text: Callable[[], None] = lambda: None,
    ) -> None:
        buffered = io.BufferedReader(_RawStream(chunks, on_text), buffer_size=_PIECE_BYTES)
        # newline="": nothing is translated, quoted newlines stay as they are.
        self._text = io.TextIOWrapper(buffered, encoding=encoding, errors="strict", newline="")
        self._encoding = encoding
        self.offset = offset
        self.line = 0
        self.record_chars = 0  # set to 0 by the reader at each record's end

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = self._text.readline(MAX_RECORD_CHARS + 1)
        except UnicodeDecodeError as error:
            raise JobRejected(self._describe_undecodable(error)) from error
        if not line:
            raise StopIteration
        self.line += 1
        if "\0" in line:
            raise JobRejected(_describe_nul(self.line))
        self.record_chars += len(line)
        if self.record_chars > MAX_RECORD_CHARS:
            raise JobRejected(
                f"The row that ends after line {self.line} is longer than {MAX_RECORD_CHARS:,} "
                "characters: probably a quote before it is never closed."
            )
        is_single_byte = self._encoding == "utf-8" and line.isascii()
        self.offset += len(line) if is_single_byte else len(line.encode(self._encoding))
        return line

    def _describe_undecodable(self, error: UnicodeDecodeError) -> str:
        if self._encoding != "utf-8":
            return "The file's UTF-16 text is cut off or damaged: save it as CSV (UTF-8)."
        before = error.object[: error.start]
        if b"\0" in before:
            line = self.line + before[: before.index(b"\0")].count(b"\n") + 1
            return _describe_nul(line)
        line = self.line + (before.count(b"\n") or before.count(b"\r")) + 1
        return (
            f"Line {line} is not UTF-8 text (byte 0x{error.object[error.start]:02X}): "
            "save the file as CSV (UTF-8)."
        )
