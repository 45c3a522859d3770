"""Damaged and unusual images, generated here, each with its expected outcome.

`Accepted` describes what every model is then given; a text is the sentence that fails the row.
tests/unit/test_image_corpus.py runs them.
"""

import gzip
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from PIL import Image

NAME = "photos/a.jpg"  # for all of them: the format is detected from the content
PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"


@dataclass(frozen=True, slots=True)
class Accepted:
    mime: str
    size: tuple[int, int] = (64, 48)
    untouched: bool = False
    stripped: bool = False  # of metadata, and otherwise untouched


type Expected = Accepted | str


def photo(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB").convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def animated(kind: str) -> bytes:
    first, *others = [Image.new("RGB", (64, 48), (60 * i, 0, 0)) for i in range(3)]
    return saved(first, kind, save_all=True, append_images=others)


def rotated(image: Image.Image, orientation: int) -> bytes:
    """A JPEG to be shown as the EXIF orientation says."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, "JPEG", exif=exif)


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(width: int, height: int, *chunks: bytes, depth: int = 8) -> bytes:
    """A PNG in RGB with these chunks between its header and its end."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def png_bomb(width: int, height: int) -> bytes:
    return png(width, height, chunk(b"IDAT", zlib.compress(bytes(10_000))))


def png_16_bit(width: int, height: int) -> bytes:
    rows = (b"\0" + b"\x80\0\x40\0\xff\xff" * width) * height
    return png(width, height, chunk(b"IDAT", zlib.compress(rows)), depth=16)


def patched(data: bytes, offset: int, values: bytes) -> bytes:
    return data[:offset] + values + data[offset + len(values) :]


def with_chunk(data: bytes, added: bytes) -> bytes:
    """A PNG with a chunk added after its header."""
    return data[:33] + added + data[33:]


_PNG, _JPEG = saved(photo(), "PNG"), saved(photo(), "JPEG")
_GIF, _BMP = saved(photo("P"), "GIF"), saved(photo(), "BMP")
_LARGE_JPEG = saved(photo(size=(600, 400)), "JPEG")
_ACCEPTED: dict[str, tuple[bytes, Accepted]] = {
    "one_pixel": (saved(photo(size=(1, 1)), "PNG"), Accepted(PNG, (1, 1), untouched=True)),
    "one_row": (saved(photo(size=(3000, 1)), "PNG"), Accepted(PNG, (3000, 1), untouched=True)),
    "jpeg_cmyk": (saved(photo("CMYK"), "JPEG"), Accepted(JPEG)),
    "jpeg_rotated_by_exif": (rotated(photo(), 6), Accepted(JPEG, (48, 64))),
    "png_16_bit_colour": (png_16_bit(4, 3), Accepted(PNG, (4, 3))),
    # Not cut off: zlib's own checksum of the pixels is right.
    "png_wrong_crc_of_complete_pixels": (
        png(4, 3, chunk(b"IDAT", zlib.compress((b"\0" + b"\x80" * 12) * 3), crc=1)),
        Accepted(PNG, (4, 3), untouched=True),
    ),
}
_UNTOUCHED_PNG = {
    "png": _PNG,
    "png_rgba": saved(photo("RGBA"), "PNG"),
    "png_grey": saved(photo("L"), "PNG"),
}
_UNTOUCHED_JPEG = {
    "jpeg": _JPEG,
    "jpeg_progressive": saved(photo(), "JPEG", progressive=True),
}
_UNTOUCHED_WEBP = {
    "webp": saved(photo(), "WEBP"),
    "webp_lossless": saved(photo(), "WEBP", lossless=True),
}
# Metadata and whatever follows the end of the image is removed, and nothing else.
_STRIPPED = {
    "png_with_a_large_comment": with_chunk(_PNG, chunk(b"tEXt", b"Comment\0" + b"x" * 500_000)),
    "png_that_is_a_zip_too": _PNG + b"PK\x03\x04" + bytes(60),
    "jpeg_with_text_after_its_end": _JPEG + b"<?php system($_GET['c']); ?>",
    "jpeg_with_broken_exif": saved(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
}
_REWRITTEN = {
    "gif": _GIF,
    "gif_animated": animated("GIF"),
    "gif_that_is_javascript_too": _GIF + b"/*=1;alert(1)//*/",
    "apng": animated("PNG"),
    "webp_animated": animated("WEBP"),
    "bmp": _BMP,
    "tiff": saved(photo(), "TIFF"),
    "tiff_lzw": saved(photo(), "TIFF", compression="tiff_lzw"),
    "tiff_of_many_pages": animated("TIFF"),
    "tiff_float": saved(photo("F"), "TIFF"),
    "avif": saved(photo(), "AVIF"),
    "png_palette": saved(photo("P"), "PNG"),
    "png_palette_transparent": saved(photo("P"), "PNG", transparency=0),
    "png_black_and_white": saved(photo("1"), "PNG"),
    "png_16_bit_grey": saved(photo("L").convert("I;16"), "PNG"),
}
_DAMAGED = {
    "png_cut": _PNG[:-60],
    "png_header_only": _PNG[:40],
    "png_magic_only": b"\x89PNG\r\n\x1a\n",
    "png_magic_and_zeros": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "jpeg_cut": _LARGE_JPEG[:2000],
    "jpeg_header_only": _JPEG[:300],
    "jpeg_magic_only": b"\xff\xd8\xff",
    "jpeg_of_zeros_after_its_header": _LARGE_JPEG[:160] + bytes(4000),
    "webp_cut": saved(photo(size=(600, 400)), "WEBP")[:300],
    "webp_header_only": b"RIFF\x24\0\0\0WEBPVP8 ",
    "gif_cut": _GIF[:200],
    "png_wrong_pixels": png(64, 48, chunk(b"IDAT", b"no zlib stream")),
    "png_no_pixels": png(64, 48),
    "png_without_width": png(0, 48, chunk(b"IDAT", zlib.compress(b""))),
    "png_wrong_crc_of_its_header": patched(_PNG, 29, bytes([_PNG[29] ^ 1])),
    # A compressed comment of 50 MB in 0.2 MB: Pillow's own limit stops it.
    "png_comment_bomb": with_chunk(
        _PNG, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 1))
    ),
    "avif_header_only": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "bmp_header_only": _BMP[:30],
    "tiff_header_only": b"II*\0\x08\0\0\0",
}
# With their size in pixels, and the limit in millions.
_BOMBS = {
    "png_bomb": (png_bomb(60_000, 60_000), "60000x60000", 64),
    "png_as_wide_as_can_be": (png_bomb(2**31 - 1, 1), "2147483647x1", 64),
    "png_one_column_too_many": (png_bomb(8001, 8000), "8001x8000", 64),
    "jpeg_bomb": (
        patched(_JPEG, _JPEG.index(b"\xff\xc0") + 5, struct.pack(">HH", 65_000, 65_000)),
        "65000x65000",
        400,
    ),
    "gif_bomb": (patched(_GIF, 6, struct.pack("<HH", 65_535, 65_535)), "65535x65535", 64),
    "bmp_bomb": (patched(_BMP, 18, struct.pack("<ii", 60_000, 60_000)), "60000x60000", 64),
}
# Not images, or of formats that are not read; with the end of the sentence.
_WEB_PAGE = "a web page, not an image: does its URL lead to the image itself?"
_SAVE_IT = "which is not supported: save it as PNG"
_SVG = f"an SVG drawing, {_SAVE_IT}"
_NOT_READ = {
    "empty": (b"", "empty"),
    "web_page": (b"<!DOCTYPE html><html><title>Sign in</title>", _WEB_PAGE),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', _SVG),
    "svg_after_blanks": (b"  <svg xmlns='x'/>", _SVG),
    "xml_that_names_entities": (
        b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
        "an XML file, not an image",
    ),
    "json": (b'{"error": "no such image"}', "JSON, not an image"),
    "pdf": (b"%PDF-1.7\n", "a PDF, which is not supported: save its page as PNG"),
    "ico": (saved(photo(size=(32, 32)), "ICO"), f"an icon (.ico), {_SAVE_IT}"),
    "zip": (b"PK\x03\x04" + bytes(60), "a zip file, not an image"),
    "gzip_of_a_png": (gzip.compress(_PNG, mtime=0), "a gzip file, not an image"),
    "photoshop": (b"8BPS\0\1" + bytes(60), f"a Photoshop file, {_SAVE_IT}"),
    "jpeg_xl": (b"\xff\x0a" + bytes(60), f"JPEG XL, {_SAVE_IT} or JPEG"),
    "video": (b"\0\0\0\x20ftypisom" + bytes(60), "a video, not an image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "text": (b"hello, I am text", "not an image"),
    "random_bytes": (bytes(range(7, 250)) * 9, "not an image"),
    "wave_audio": (b"RIFF\x24\0\0\0WAVEfmt ", "not an image"),
}

CASES: dict[str, tuple[bytes, Expected]] = {
    **_ACCEPTED,
    **{name: (data, Accepted(PNG, untouched=True)) for name, data in _UNTOUCHED_PNG.items()},
    **{name: (data, Accepted(JPEG, untouched=True)) for name, data in _UNTOUCHED_JPEG.items()},
    **{name: (data, Accepted(WEBP, untouched=True)) for name, data in _UNTOUCHED_WEBP.items()},
    **{name: (data, Accepted(PNG)) for name, data in _REWRITTEN.items()},
    **{name: (data, f"{NAME} is damaged or cut off") for name, data in _DAMAGED.items()},
    **{
        name: (data, f"{NAME} has {size} pixels: at most {limit} million are read")
        for name, (data, size, limit) in _BOMBS.items()
    },
    **{name: (data, f"image '{NAME}' is {end}") for name, (data, end) in _NOT_READ.items()},
    "heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60),
        f"{NAME} is HEIC, which is not supported: save it as JPEG (on an iPhone: Most Compatible)",
    ),
}
