"""Damaged and unusual images, generated here, each with its expected outcome.

`Accepted` describes what every model is then given; a text is the sentence that fails the row.
tests/unit/test_image_corpus.py runs them.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

NAME = "photos/a.jpg"  # for all of them: the format is detected from the content
_NOT_READ = f"image '{NAME}' "


@dataclass(frozen=True, slots=True)
class Accepted:
    mime: str
    size: tuple[int, int]
    untouched: bool = False


PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"
PNG_UNCHANGED = Accepted(PNG, (64, 48), untouched=True)
JPEG_UNCHANGED = Accepted(JPEG, (64, 48), untouched=True)
WEBP_UNCHANGED = Accepted(WEBP, (64, 48), untouched=True)
REWRITTEN = Accepted(PNG, (64, 48))

type Expected = Accepted | str
CASES: dict[str, tuple[Callable[[], bytes], Expected]] = {}


def case(expected: Expected) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    def add(make: Callable[[], bytes]) -> Callable[[], bytes]:
        CASES[make.__name__] = (make, expected)
        return make

    return add


def fixed(name: str, data: bytes, expected: Expected) -> None:
    CASES[name] = (lambda: data, expected)


def photo(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB").convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def frames(count: int = 3) -> list[Image.Image]:
    return [Image.new("RGB", (64, 48), (60 * i, 0, 0)) for i in range(count)]


# --- accepted unchanged ---------------------------------------------------------------------------

fixed("png", saved(photo(), "PNG"), PNG_UNCHANGED)
fixed("jpeg", saved(photo(), "JPEG"), JPEG_UNCHANGED)
fixed("webp", saved(photo(), "WEBP"), WEBP_UNCHANGED)
fixed("png_rgba", saved(photo("RGBA"), "PNG"), PNG_UNCHANGED)
fixed("png_grey", saved(photo("L"), "PNG"), PNG_UNCHANGED)
fixed("one_pixel", saved(photo(size=(1, 1)), "PNG"), Accepted(PNG, (1, 1), untouched=True))
fixed("one_row", saved(photo(size=(3000, 1)), "PNG"), Accepted(PNG, (3000, 1), untouched=True))
fixed("jpeg_progressive", saved(photo(), "JPEG", progressive=True), JPEG_UNCHANGED)
fixed("webp_lossless", saved(photo(), "WEBP", lossless=True), WEBP_UNCHANGED)
fixed(
    "png_with_a_large_comment",
    saved(photo(), "PNG").replace(b"IDAT", b"IDAT", 1)[:33]
    + chunk(b"tEXt", b"Comment\0" + b"x" * 500_000)
    + saved(photo(), "PNG")[33:],
    PNG_UNCHANGED,
)
fixed(
    "jpeg_with_text_after_its_end",
    saved(photo(), "JPEG") + b"<?php system($_GET['c']); ?>",
    JPEG_UNCHANGED,
)
fixed("png_that_is_a_zip_too", saved(photo(), "PNG") + b"PK\x03\x04" + b"\0" * 60, PNG_UNCHANGED)

# --- accepted, but rewritten ----------------------------------------------------------------------

fixed("gif", saved(photo("P"), "GIF"), REWRITTEN)
fixed(
    "gif_animated",
    saved(frames()[0], "GIF", save_all=True, append_images=frames()[1:]),
    REWRITTEN,
)
fixed("gif_that_is_javascript_too", saved(photo("P"), "GIF") + b"/*=1;alert(1)//*/", REWRITTEN)
fixed("apng", saved(frames()[0], "PNG", save_all=True, append_images=frames()[1:]), REWRITTEN)
fixed(
    "webp_animated",
    saved(frames()[0], "WEBP", save_all=True, append_images=frames()[1:]),
    REWRITTEN,
)
fixed("jpeg_cmyk", saved(photo("CMYK"), "JPEG"), Accepted(JPEG, (64, 48)))
fixed("bmp", saved(photo(), "BMP"), REWRITTEN)
fixed("tiff", saved(photo(), "TIFF"), REWRITTEN)
fixed("tiff_lzw", saved(photo(), "TIFF", compression="tiff_lzw"), REWRITTEN)
fixed(
    "tiff_of_many_pages",
    saved(frames()[0], "TIFF", save_all=True, append_images=frames()[1:]),
    REWRITTEN,
)
fixed("tiff_float", saved(photo("F"), "TIFF"), REWRITTEN)
fixed("avif", saved(photo(), "AVIF"), REWRITTEN)
fixed("png_palette", saved(photo("P"), "PNG"), REWRITTEN)
fixed("png_palette_transparent", saved(photo("P"), "PNG", transparency=0), REWRITTEN)
fixed("png_black_and_white", saved(photo("1"), "PNG"), REWRITTEN)
fixed("png_16_bit_grey", saved(photo("L").convert("I;16"), "PNG"), REWRITTEN)


@case(Accepted(PNG, (4, 3)))
def png_16_bit_colour() -> bytes:
    rows = b"".join(b"\0" + b"\x80\0\x40\0\xff\xff" * 4 for _ in range(3))
    return png(ihdr(4, 3, depth=16), chunk(b"IDAT", zlib.compress(rows)))


@case(Accepted(JPEG, (48, 64)))
def jpeg_rotated_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(photo(), "JPEG", exif=exif)


@case(JPEG_UNCHANGED)
def jpeg_with_broken_exif() -> bytes:
    return saved(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")


# --- damaged --------------------------------------------------------------------------------------

_DAMAGED = f"{NAME} is damaged or cut off"
fixed("png_cut", saved(photo(), "PNG")[:-60], _DAMAGED)
fixed("png_header_only", saved(photo(), "PNG")[:40], _DAMAGED)
fixed("png_magic_only", b"\x89PNG\r\n\x1a\n", _DAMAGED)
fixed("jpeg_cut", saved(photo(size=(600, 400)), "JPEG")[:2000], _DAMAGED)
fixed("jpeg_magic_only", b"\xff\xd8\xff", _DAMAGED)
fixed("webp_cut", saved(photo(size=(600, 400)), "WEBP")[:300], _DAMAGED)
fixed("webp_header_only", b"RIFF\x24\0\0\0WEBPVP8 ", _DAMAGED)
fixed("gif_cut", saved(photo("P"), "GIF")[:200], _DAMAGED)
fixed("png_wrong_pixels", png(ihdr(64, 48), chunk(b"IDAT", b"no zlib stream")), _DAMAGED)
fixed("png_no_pixels", png(ihdr(64, 48)), _DAMAGED)
fixed("png_without_width", png(ihdr(0, 48), chunk(b"IDAT", zlib.compress(b""))), _DAMAGED)


@case(_DAMAGED)
def png_wrong_crc_of_its_header() -> bytes:
    whole = bytearray(saved(photo(), "PNG"))
    whole[29] ^= 1
    return bytes(whole)


@case(Accepted(PNG, (4, 3), untouched=True))
def png_wrong_crc_of_complete_pixels() -> bytes:
    """Not cut off: zlib's own checksum of the pixels is right."""
    rows = zlib.compress(b"".join(b"\0" + b"\x80" * 12 for _ in range(3)))
    return png(ihdr(4, 3), chunk(b"IDAT", rows, crc=1))


@case(_DAMAGED)
def jpeg_of_zeros_after_its_header() -> bytes:
    return saved(photo(size=(600, 400)), "JPEG")[:160] + bytes(4000)


# --- bombs ----------------------------------------------------------------------------------------


@case(f"{NAME} has 60000x60000 pixels: at most 64 million are read")
def png_bomb() -> bytes:
    return png(ihdr(60_000, 60_000), chunk(b"IDAT", zlib.compress(bytes(10_000))))


@case(f"{NAME} has 2147483647x1 pixels: at most 64 million are read")
def png_as_wide_as_can_be() -> bytes:
    return png(ihdr(2**31 - 1, 1), chunk(b"IDAT", zlib.compress(bytes(10_000))))


@case(f"{NAME} has 8001x8000 pixels: at most 64 million are read")
def png_one_column_too_many() -> bytes:
    return png(ihdr(8001, 8000), chunk(b"IDAT", zlib.compress(bytes(10_000))))


@case(f"{NAME} has 65000x65000 pixels: at most 400 million are read")
def jpeg_bomb() -> bytes:
    data = bytearray(saved(photo(), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


@case(f"{NAME} has 65535x65535 pixels: at most 64 million are read")
def gif_bomb() -> bytes:
    data = bytearray(saved(photo("P"), "GIF"))
    data[6:10] = struct.pack("<HH", 65_535, 65_535)
    return bytes(data)


@case(f"{NAME} has 60000x60000 pixels: at most 64 million are read")
def bmp_bomb() -> bytes:
    data = bytearray(saved(photo(), "BMP"))
    data[18:26] = struct.pack("<ii", 60_000, 60_000)
    return bytes(data)


@case(_DAMAGED)
def png_comment_bomb() -> bytes:
    """A compressed comment of 50 MB in 50 kB; Pillow's own limit stops it."""
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9))
    whole = saved(photo(), "PNG")
    return whole[:33] + bomb + whole[33:]


# --- not images, or formats that are not read -----------------------------------------------------

fixed("empty", b"", f"{_NOT_READ}is empty")
fixed(
    "web_page",
    b"<!DOCTYPE html><html><title>Sign in</title>",
    f"{_NOT_READ}is a web page, not an image: does its URL lead to the image itself?",
)
fixed(
    "svg",
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    f"{_NOT_READ}is an SVG drawing, which is not supported: save it as PNG",
)
fixed(
    "xml_that_names_entities",
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
    f"{_NOT_READ}is an XML file, not an image",
)
fixed("json", b'{"error": "no such image"}', f"{_NOT_READ}is JSON, not an image")
fixed("pdf", b"%PDF-1.7\n", f"{_NOT_READ}is a PDF, which is not supported: save its page as PNG")
fixed(
    "ico",
    saved(photo(size=(32, 32)), "ICO"),
    f"{_NOT_READ}is an icon (.ico), which is not supported: save it as PNG",
)
fixed("zip", b"PK\x03\x04" + bytes(60), f"{_NOT_READ}is a zip file, not an image")
fixed(
    "gzip_of_a_png",
    gzip.compress(saved(photo(), "PNG"), mtime=0),
    f"{_NOT_READ}is a gzip file, not an image",
)
fixed(
    "photoshop",
    b"8BPS\0\1" + bytes(60),
    f"{_NOT_READ}is a Photoshop file, which is not supported: save it as PNG",
)
fixed(
    "jpeg_xl",
    b"\xff\x0a" + bytes(60),
    f"{_NOT_READ}is JPEG XL, which is not supported: save it as PNG or JPEG",
)
fixed("video", b"\0\0\0\x20ftypisom" + bytes(60), f"{_NOT_READ}is a video, not an image")
fixed("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", f"{_NOT_READ}is not an image")
fixed("random_bytes", bytes(range(7, 250)) * 9, f"{_NOT_READ}is not an image")
fixed("wave_audio", b"RIFF\x24\0\0\0WAVEfmt ", f"{_NOT_READ}is not an image")
fixed(
    "heic",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60),
    f"{NAME} is HEIC, which is not supported: save it as JPEG (on an iPhone: Most Compatible)",
)
fixed("avif_header_only", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", _DAMAGED)
fixed("bmp_header_only", b"BM" + bytes(12), _DAMAGED)
fixed("tiff_header_only", b"II*\0\x08\0\0\0", _DAMAGED)
