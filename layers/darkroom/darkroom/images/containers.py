"""JPEG, PNG and WebP files as segments and chunks.

Metadata is removed, and a thumbnail added to a WebP, without decoding anything.

Pixels, colour profiles and what a decoder needs are copied as they are; every other segment or
chunk (EXIF with its location, XMP, IPTC, comments, embedded previews) and whatever follows the end
of the image is left out. Only kinds of segments that are known to be needed are kept, so that a
kind nobody thought of is removed.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
MAX_JPEG_SCANS = 100  # progressive photos have about 10

# ITU-T T.81, table B.1.
_SOI, _EOI, _SOS, _COM = 0xD8, 0xD9, 0xDA, 0xFE
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_APPLICATION = range(0xE0, 0xF0)
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither stuffing, fill nor restart
_FIRST_MARKER = re.compile(rb"\xff[^\x00\xff]")
# The application segments that change how pixels are shown: JFIF, the colour profile, Adobe's
# colour transform.
_KEPT_APPLICATION = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}

# https://www.w3.org/TR/png-3/#4Concepts.FormatTypes: chunks that pixels and their colours need.
_KEPT_PNG = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP sBIT bKGD pHYs cICP mDCV cLLI".split()
)
# https://developers.google.com/speed/webp/docs/riff_container
_FIRST_CHUNK = 12  # after RIFF, the length and WEBP
_KEPT_WEBP = frozenset((b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"ANIM", b"ANMF"))
_VP8X_EXIF_AND_XMP = 0x0C
# Of our own. "Readers SHOULD ignore" unknown chunks (RFC 9649, 2.7.1.6), which only the extended
# format, the one with VP8X, may have.
_THUMBNAIL = b"THMB"


class Segment(NamedTuple):
    """A JPEG's marker and where it lies; a scan includes its data."""

    marker: int
    start: int
    body: int  # after the marker and the length
    end: int


class Chunk(NamedTuple):
    """A WebP's chunk and where it lies; `end` is that of its body, before the padding."""

    kind: bytes
    start: int
    body: int
    end: int


def jpeg_segments(data: bytes) -> Iterator[Segment]:
    """The segments of the file's first image, as far as they can be read."""
    position = 0
    while match := _FIRST_MARKER.search(data, position):
        start, marker = match.start(), data[match.end() - 1]
        body = end = match.end()
        if marker not in _WITHOUT_LENGTH and marker != _EOI:
            length = int.from_bytes(data[end : end + 2])
            if length < 2 or end + length > len(data):  # noqa: PLR2004 - the length includes itself
                return
            body, end = end + 2, end + length
        if marker == _SOS:
            found = _AFTER_SCAN.search(data, end)
            end = found.start() if found else len(data)
        yield Segment(marker, start, body, end)
        if marker == _EOI:
            return
        position = end


def count_scans(data: bytes) -> int:
    """The scans of a JPEG, at most one more than MAX_JPEG_SCANS.

    Each one costs a decoder a pass over the whole image, and 14 bytes are enough for one.
    """
    scans = 0
    for segment in jpeg_segments(data):
        scans += segment.marker == _SOS
        if scans > MAX_JPEG_SCANS:
            break
    return scans


def is_16_bit_png(data: bytes) -> bool:
    """Read from the header, because Pillow reports a 16-bit colour PNG as one with 8 bits."""
    return data.startswith(PNG_MAGIC) and data[24:25] == b"\x10"


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas, which Pillow allocates before it tells them.

    (0, 0) where the first chunk is of an unknown kind: then nothing decodes it.
    """
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(body[4:7], "little"),
            1 + int.from_bytes(body[7:10], "little"),
        )
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = body[6:8], body[8:10]
        return (
            int.from_bytes(width, "little") & 0x3FFF,
            int.from_bytes(height, "little") & 0x3FFF,
        )
    return 0, 0


def strip_metadata(data: bytes) -> bytes:
    """The JPEG, PNG or WebP without metadata; `data` itself where there is none.

    Raises ValueError for another format and for a file whose segments cannot be read.
    """
    if data.startswith(PNG_MAGIC):
        parts = list(_png_parts(data))
    elif data.startswith(JPEG_MAGIC):
        parts = list(_jpeg_parts(data))
    elif is_webp(data):
        return _strip_webp(data)
    else:
        raise ValueError("neither JPEG, PNG nor WebP")
    return data if sum(map(len, parts)) == len(data) else b"".join(parts)


def _jpeg_parts(data: bytes) -> Iterator[memoryview]:
    view, marker = memoryview(data), 0
    for marker, start, body, end in jpeg_segments(data):
        kept = _KEPT_APPLICATION.get(marker)
        named = kept is not None and data.startswith(kept, body)
        if named or (marker not in _APPLICATION and marker != _COM):
            yield view[start:end]
    if marker not in (_EOI, _SOS):
        raise ValueError("a JPEG that ends in its header")


def _png_parts(data: bytes) -> Iterator[memoryview]:
    view, position, kind = memoryview(data), len(PNG_MAGIC), b""
    yield view[:position]
    while kind != b"IEND":
        kind = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data):
            raise ValueError("a PNG that is cut off")
        if kind in _KEPT_PNG:
            yield view[position:end]
        position = end


def _strip_webp(data: bytes) -> bytes:
    """The header states the length of what is left, and which chunks there are."""
    view, position, removed = memoryview(data), _FIRST_CHUNK, False
    parts: list[bytes | memoryview] = []
    for kind, start, body, end in _webp_chunks(data):
        position = end + (end - body) % 2
        if kind == b"VP8X" and data[body] & _VP8X_EXIF_AND_XMP:
            flags = data[body] & ~_VP8X_EXIF_AND_XMP
            parts += [view[start:body], bytes([flags]), view[body + 1 : position]]
            removed = True
        elif kind in _KEPT_WEBP:
            parts.append(view[start:position])
        else:
            removed = True
    if not removed and position >= len(data):
        return data
    return _webp(parts)


def add_thumbnail(webp: bytes, thumbnail: bytes) -> bytes:
    """The lossy WebP with another image file inside, which `embedded_thumbnail` returns."""
    parts: list[bytes | memoryview] = [memoryview(webp)[_FIRST_CHUNK:]]
    if webp[_FIRST_CHUNK:].startswith(b"VP8 "):  # the simple format has this chunk alone
        width, height = webp_size(webp)
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        parts.insert(0, _webp_chunk(b"VP8X", bytes(4) + size))
    return _webp([*parts, _webp_chunk(_THUMBNAIL, thumbnail)])


def embedded_thumbnail(data: bytes) -> bytes | None:
    """What `add_thumbnail` added; None if there is none, whatever `data` is."""
    if not is_webp(data):
        return None
    with suppress(ValueError):
        for kind, _, body, end in _webp_chunks(data):
            if kind == _THUMBNAIL:
                return data[body:end]
    return None


def _webp_chunks(data: bytes) -> Iterator[Chunk]:
    """Those that the header announces. Raises ValueError for one that is cut off."""
    position = _FIRST_CHUNK
    announced = min(8 + int.from_bytes(data[4:8], "little"), len(data))
    while position + 8 <= announced:
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        body, end = position + 8, position + 8 + size
        if end > len(data):
            raise ValueError("a WebP that is cut off")
        yield Chunk(data[position : position + 4], position, body, end)
        position = end + size % 2


def _webp_chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((kind, len(body).to_bytes(4, "little"), body, bytes(len(body) % 2)))


def _webp(parts: Sequence[bytes | memoryview]) -> bytes:
    """A file of these chunks."""
    length = 4 + sum(map(len, parts))
    return b"".join((b"RIFF", length.to_bytes(4, "little"), b"WEBP", *parts))
