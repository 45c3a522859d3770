"""Damaged, hostile and unusual images, generated here, each with its expected outcome.

`Accepted` describes what every model is then given; a text is the sentence that fails the row.
tests/unit/test_image_corpus.py runs them; tests/fuzz/fuzz_images.py starts with them.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageCms

NAME = "photos/a.jpg"  # for all of them: the format is detected from the content
PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"


@dataclass(frozen=True, slots=True)
class Accepted:
    mime: str
    size: tuple[int, int] = (64, 48)
    untouched: bool = False
    stripped: bool = False  # of metadata, and otherwise untouched
    profile: bool = False  # its colour profile is kept


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


SECRET = b"LatLon-52.5163-13.3777"  # stands in all metadata, and in no image that is sent
DISPLAY_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_PROFILE = DISPLAY_PROFILE[:16] + b"GRAY" + DISPLAY_PROFILE[20:]
_XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + SECRET + b"</x:xmpmeta>"


def exif(orientation: int = 1) -> bytes:
    """With a place and a comment, as phones write them."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = SECRET.decode()
    tags.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 58.0), 29: SECRET.decode()})
    return tags.tobytes()


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segment(data: bytes, *added: bytes) -> bytes:
    """A JPEG with segments added after its start."""
    return data[:2] + b"".join(added) + data[2:]


def with_repeated_scan(data: bytes, times: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: each costs a pass over the image."""
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * times + data[-2:]


def claiming(data: bytes, width: int, height: int) -> bytes:
    """A JPEG with another size in its header."""
    start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return patched(data, start + 5, struct.pack(">HH", height, width))


def webp_claiming(width: int, height: int, *, lossless: bool) -> bytes:
    """The first 34 bytes of a WebP of this size."""
    data = saved(photo(), "WEBP", lossless=lossless)[:34]
    if lossless:
        return patched(data, 21, ((width - 1) | (height - 1) << 14).to_bytes(4, "little"))
    return patched(data, 26, struct.pack("<HH", width, height))


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of these chunks."""
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def tiff(*tags: tuple[int, int, int, int], after: bytes = b"", following: int = 0) -> bytes:
    """A little-endian TIFF with one directory of (tag, type, count, value)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    header = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    return header + entries + struct.pack("<I", following) + after


def tiff_claiming(width: int, height: int, *more: tuple[int, int, int, int]) -> bytes:
    """A TIFF in RGB, compressed, with hardly any data."""
    strips = ((273, 4, 1, 8), (278, 4, 1, height), (279, 4, 1, 60))
    base = ((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 5))
    return tiff(*base, (262, 3, 1, 1), *(more or strips), after=bytes(100))


def png_of(mode: int, depth: int, *chunks: bytes, interlaced: int = 0) -> bytes:
    """A PNG of 64 by 48 in a colour type and depth that Pillow does not write."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[mode]
    row = b"\0" + bytes(i % 256 for i in range((64 * channels * depth + 7) // 8))
    header = struct.pack(">IIBBBBB", 64, 48, depth, mode, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(row * 48))
    parts = (chunk(b"IHDR", header), *chunks, pixels, chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


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
_PLAIN_PNG = png(64, 48, chunk(b"IDAT", zlib.compress((b"\0" + b"\x80" * 192) * 48)))
_PROGRESSIVE = saved(photo(), "JPEG", progressive=True)
_PALETTE = chunk(b"PLTE", bytes(range(48)))
_WEBP = saved(photo(), "WEBP")
_AVIF = saved(photo(), "AVIF")
_TIFF = saved(photo(), "TIFF")
_ACCEPTED |= {
    "jpeg_rotated_with_a_profile": (
        saved(photo(), "JPEG", exif=exif(6), icc_profile=DISPLAY_PROFILE),
        Accepted(JPEG, (48, 64), profile=True),
    ),
    "jpeg_mirrored_and_turned": (rotated(photo(), 5), Accepted(JPEG, (48, 64))),
    "jpeg_upside_down": (rotated(photo(), 3), Accepted(JPEG)),
    "png_rotated_by_exif": (saved(photo(), "PNG", exif=exif(8)), Accepted(PNG, (48, 64))),
    "webp_rotated_by_exif": (saved(photo(), "WEBP", exif=exif(6)), Accepted(PNG, (48, 64))),
    "png_palette_with_a_profile": (
        saved(photo("P"), "PNG", icc_profile=DISPLAY_PROFILE),
        Accepted(PNG, profile=True),
    ),
    "jpeg_grey_with_a_profile_of_colours_rotated": (
        saved(photo("L"), "JPEG", exif=exif(3), icc_profile=GREY_PROFILE),
        Accepted(JPEG),
    ),
    "jpeg_with_a_profile": (
        saved(photo(), "JPEG", icc_profile=DISPLAY_PROFILE),
        Accepted(JPEG, untouched=True, profile=True),
    ),
    "png_with_a_profile": (
        saved(photo(), "PNG", icc_profile=DISPLAY_PROFILE),
        Accepted(PNG, untouched=True, profile=True),
    ),
    "webp_with_a_profile_and_exif": (
        saved(photo(), "WEBP", icc_profile=DISPLAY_PROFILE, exif=exif()),
        Accepted(WEBP, stripped=True, profile=True),
    ),
    "jpeg_cmyk_with_a_profile_of_another_space": (
        saved(photo("CMYK"), "JPEG", icc_profile=DISPLAY_PROFILE),
        Accepted(JPEG),
    ),
    "tiff_with_a_profile": (
        saved(photo(), "TIFF", icc_profile=DISPLAY_PROFILE),
        Accepted(PNG, profile=True),
    ),
    "mpo_of_two_photos": (
        saved(photo(), "MPO", save_all=True, append_images=[photo(size=(80, 80))]),
        Accepted(JPEG, stripped=True),
    ),
    "gif_first_frame_smaller_than_its_canvas": (
        patched(_GIF, 6, struct.pack("<HH", 100, 90)),
        Accepted(PNG, (100, 90)),
    ),
    "bmp_top_down": (
        patched(_BMP, 22, struct.pack("<i", -48)),
        Accepted(PNG),
    ),
    "jpeg_very_wide": (
        saved(photo(size=(60_000, 2)), "JPEG"),
        Accepted(JPEG, (60_000, 2), untouched=True),
    ),
    "png_very_tall": (
        saved(photo(size=(2, 60_000)), "PNG"),
        Accepted(PNG, (2, 60_000), untouched=True),
    ),
}
_UNTOUCHED_PNG = {
    "png": _PNG,
    "png_rgba": saved(photo("RGBA"), "PNG"),
    "png_grey": saved(photo("L"), "PNG"),
    "png_grey_and_transparent": saved(photo("LA"), "PNG"),
    "png_with_a_resolution": saved(photo(), "PNG", dpi=(300, 300)),
    "png_of_2_bits": png_of(0, 2),
}
_UNTOUCHED_JPEG = {
    "jpeg": _JPEG,
    "jpeg_progressive": _PROGRESSIVE,
    "jpeg_grey": saved(photo("L"), "JPEG"),
    "jpeg_grey_progressive": saved(photo("L"), "JPEG", progressive=True),
    "jpeg_4_2_0": saved(photo(), "JPEG", subsampling=2),
    "jpeg_4_4_4": saved(photo(), "JPEG", subsampling=0),
    "jpeg_of_quality_1": saved(photo(), "JPEG", quality=1),
    "jpeg_with_restart_markers": saved(photo(), "JPEG", restart_marker_blocks=2),
    "jpeg_with_a_resolution": saved(photo(), "JPEG", dpi=(72, 72)),
    "jpeg_of_twenty_scans": with_repeated_scan(_PROGRESSIVE, 10),
}
_UNTOUCHED_WEBP = {
    "webp": _WEBP,
    "webp_lossless": saved(photo(), "WEBP", lossless=True),
    "webp_transparent": saved(photo("RGBA"), "WEBP"),
    "webp_lossless_transparent": saved(photo("RGBA"), "WEBP", lossless=True),
    "webp_extended_header": riff(
        (b"VP8X", bytes([0, 0, 0, 0, 63, 0, 0, 47, 0, 0])), (b"VP8 ", _WEBP[20:])
    ),
}
# Metadata and whatever follows the end of the image is removed, and nothing else.
_STRIPPED = {
    "png_with_a_large_comment": with_chunk(_PNG, chunk(b"tEXt", b"Comment\0" + b"x" * 500_000)),
    "png_that_is_a_zip_too": _PNG + b"PK\x03\x04" + bytes(60),
    "jpeg_with_text_after_its_end": _JPEG + b"<?php system($_GET['c']); ?>",
    "jpeg_with_broken_exif": saved(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "jpeg_with_the_usual_codes_left_out": _JPEG.replace(b"\xff\xc4", b"\xff\xec"),
    "jpeg_with_a_place": saved(photo(), "JPEG", exif=exif()),
    "jpeg_with_a_comment": saved(photo(), "JPEG", comment=SECRET),
    "jpeg_with_xmp": saved(photo(), "JPEG", xmp=_XMP),
    "jpeg_with_iptc": with_segment(_JPEG, segment(0xED, b"Photoshop 3.0\x008BIM" + SECRET)),
    "jpeg_with_segments_of_applications": with_segment(
        _JPEG, *(segment(marker, b"Vendor\0" + SECRET) for marker in range(0xE1, 0xF0))
    ),
    "jpeg_with_a_video_after_its_end": _JPEG + b"\0\0\0\x20ftypmp42" + SECRET * 20,
    "jpeg_with_a_comment_between_scans": _PROGRESSIVE.replace(
        b"\xff\xda", segment(0xFE, SECRET) + b"\xff\xda"
    ),
    "jpeg_with_a_jpeg_in_its_exif": with_segment(_JPEG, segment(0xE1, b"Exif\0\0" + _JPEG)),
    "png_with_a_place": saved(photo(), "PNG", exif=exif()),
    "png_with_texts": with_chunk(
        _PNG,
        chunk(b"tEXt", b"Author\0" + SECRET)
        + chunk(b"zTXt", b"Place\0\0" + zlib.compress(SECRET))
        + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + SECRET)
        + chunk(b"tIME", bytes(7)),
    ),
    "png_with_unknown_chunks": with_chunk(_PNG, chunk(b"prVt", SECRET)),
    "png_with_a_cut_exif": with_chunk(_PNG, chunk(b"eXIf", exif()[6:20])),
    "webp_with_a_place_and_xmp": saved(photo(), "WEBP", exif=exif(), xmp=_XMP),
    "webp_with_unknown_chunks": riff((b"VP8 ", _WEBP[20:]), (b"JUNK", SECRET)),
    "webp_with_text_after_its_end": _WEBP + SECRET,
}
_STRIPPED_PNG, _STRIPPED_JPEG, _STRIPPED_WEBP = (
    {name: data for name, data in _STRIPPED.items() if name.startswith(kind)}
    for kind in ("png", "jpeg", "webp")
)
_REWRITTEN = {
    "gif": _GIF,
    "gif_animated": animated("GIF"),
    "gif_that_is_javascript_too": _GIF + b"/*=1;alert(1)//*/",
    "apng": animated("PNG"),
    "webp_animated": animated("WEBP"),
    "bmp": _BMP,
    "tiff": _TIFF,
    "tiff_lzw": saved(photo(), "TIFF", compression="tiff_lzw"),
    "tiff_of_many_pages": animated("TIFF"),
    "tiff_float": saved(photo("F"), "TIFF"),
    "avif": _AVIF,
    "png_palette": saved(photo("P"), "PNG"),
    "png_palette_transparent": saved(photo("P"), "PNG", transparency=0),
    "png_black_and_white": saved(photo("1"), "PNG"),
    "png_16_bit_grey": saved(photo("L").convert("I;16"), "PNG"),
    "png_16_bit_grey_and_transparent": png_of(4, 16),
    "png_16_bit_transparent": png_of(6, 16),
    "png_of_4_bits_with_a_palette": png_of(3, 4, _PALETTE),
    "png_palette_missing": png_of(3, 8),
    "apng_cut": animated("PNG")[:-100],
    "gif_without_width": patched(_GIF, 6, bytes(4)),
    "gif_wrong_codes": patched(_GIF, 800, b"\xff" * 200),
    "gif_transparent": saved(photo("P"), "GIF", transparency=0),
    "gif_interlaced": saved(photo("P"), "GIF", interlace=1),
    "gif_with_text_after_its_end": _GIF + SECRET,
    "bmp_grey": saved(photo("L"), "BMP"),
    "bmp_of_1_bit": saved(photo("1"), "BMP"),
    "bmp_transparent": saved(photo("RGBA"), "BMP"),
    "tiff_deflate": saved(photo(), "TIFF", compression="tiff_adobe_deflate"),
    "tiff_packbits": saved(photo(), "TIFF", compression="packbits"),
    "tiff_jpeg": saved(photo(), "TIFF", compression="jpeg"),
    "tiff_fax": saved(photo("1"), "TIFF", compression="group4"),
    "tiff_cmyk": saved(photo("CMYK"), "TIFF"),
    "tiff_lab": saved(photo("LAB"), "TIFF"),
    "tiff_transparent": saved(photo("RGBA"), "TIFF"),
    "tiff_16_bit": saved(photo("L").convert("I;16"), "TIFF"),
    "tiff_32_bit": saved(photo("I"), "TIFF"),
    "tiff_with_a_place": saved(photo(), "TIFF", description=SECRET.decode(), exif=exif()),
    "tiff_whose_pages_are_a_loop": _TIFF[:-4] + _TIFF[4:8],
    "avif_transparent": saved(photo("RGBA"), "AVIF"),
    "avif_grey": saved(photo("L"), "AVIF"),
    "avif_animated": animated("AVIF"),
    "avif_with_a_place": saved(photo(), "AVIF", exif=exif(), xmp=_XMP),
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
    "jpeg_of_scans_without_data": with_segment(
        _JPEG, *[segment(0xDA, bytes([1, 1, 0, 0, 63, 0]))] * 5000
    ),
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
    "jpeg_without_its_end_marker": _JPEG[:-2],
    "png_of_an_impossible_depth": patched(_PNG, 24, b"\x05"),
    "png_of_an_impossible_colour_type": patched(_PNG, 25, b"\x09"),
    "png_with_a_chunk_of_4_gb": with_chunk(_PNG, b"\xff\xff\xff\xfftEXt"),
    "png_interlaced_wrongly": patched(_PNG, 28, b"\x07"),
    "png_too_few_pixels": png(64, 48, chunk(b"IDAT", zlib.compress(bytes(500)))),
    "jpeg_without_tables": _JPEG.replace(b"\xff\xdb", b"\xff\xec"),
    "jpeg_of_5_components": patched(_JPEG, _JPEG.index(b"\xff\xc0") + 9, b"\x05"),
    "jpeg_of_12_bits": patched(_JPEG, _JPEG.index(b"\xff\xc0") + 4, b"\x0c"),
    "jpeg_without_height": claiming(_JPEG, 64, 0),
    "jpeg_of_start_markers": b"\xff\xd8" * 5000,
    "jpeg_of_fill_bytes": b"\xff\xd8" + b"\xff" * 5000,
    "jpeg_segment_past_the_end": _JPEG[:2] + b"\xff\xe1\xff\xff" + bytes(50),
    "webp_wrong_pixels": patched(saved(photo(), "WEBP", lossless=True), 25, bytes(60)),
    "webp_of_unknown_chunks": riff((b"JUNK", bytes(60))),
    "webp_chunk_past_the_end": b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\x7f" + bytes(60),
    "webp_empty_animation": riff((b"VP8X", bytes([2, 0, 0, 0, 63, 0, 0, 47, 0, 0]))),
    "gif_header_only": _GIF[:13],
    "bmp_cut": _BMP[:2000],
    "bmp_of_an_unknown_compression": patched(_BMP, 30, b"\x63"),
    "bmp_of_77_bits": patched(_BMP, 28, b"\x4d"),
    "bmp_pixels_past_the_end": patched(_BMP, 10, b"\xff\xff\xff\x7f"),
    "tiff_cut": _TIFF[:3000],
    "tiff_of_a_billion_tags": b"II*\0\x08\0\0\0\xff\xff" + bytes(100),
    "tiff_strips_past_the_end": tiff_claiming(64, 48, (273, 4, 1, 2**31), (279, 4, 1, 2**31)),
    "tiff_without_pixels": tiff_claiming(64, 48),
    "tiff_with_a_huge_tile": tiff_claiming(
        64, 48, (322, 4, 1, 65_520), (323, 4, 1, 65_520), (324, 4, 1, 8), (325, 4, 1, 60)
    ),
    "tiff_of_a_billion_samples": tiff_claiming(64, 48, (277, 3, 1, 65_535), (273, 4, 1, 8)),
    "avif_cut": _AVIF[:-80],
    "avif_wrong_pixels": _AVIF[:-80] + bytes(80),
    "avif_header_only": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "bmp_header_only": _BMP[:30],
    "tiff_header_only": b"II*\0\x08\0\0\0",
}
# With the end of the sentence.
_BOMBS = {
    "png_bomb": (png_bomb(60_000, 60_000), "60000x60000 pixels: at most 64 million are read"),
    "png_as_wide_as_can_be": (
        png_bomb(2**31 - 1, 1),
        "2147483647x1 pixels: at most 64 million are read",
    ),
    "png_one_column_too_many": (
        png_bomb(8001, 8000),
        "8001x8000 pixels: at most 64 million are read",
    ),
    "jpeg_bomb": (
        claiming(_JPEG, 65_000, 65_000),
        "65000x65000 pixels: at most 400 million are read",
    ),
    # 2.7 GB in Pillow, measured: the coefficients of all pixels.
    "jpeg_progressive_bomb": (
        claiming(_PROGRESSIVE, 20_000, 19_999),
        "20000x19999 pixels: at most 70 million are read from a progressive JPEG",
    ),
    # 1 GB in Pillow, measured.
    "webp_bomb": (
        webp_claiming(7900, 7900, lossless=True),
        "7900x7900 pixels: at most 30 million are read from a WebP",
    ),
    "webp_bomb_lossy": (
        webp_claiming(16_383, 16_383, lossless=False),
        "16383x16383 pixels: at most 30 million are read from a WebP",
    ),
    "webp_bomb_animated": (
        riff((b"VP8X", bytes([2, 0, 0, 0, 255, 63, 0, 255, 63, 0]))),
        "16384x16384 pixels: at most 30 million are read from a WebP",
    ),
    "avif_bomb": (
        patched(_AVIF, _AVIF.index(b"ispe") + 8, struct.pack(">II", 7000, 7000)),
        "7000x7000 pixels: at most 45 million are read from an AVIF",
    ),
    "gif_bomb": (
        patched(_GIF, 6, struct.pack("<HH", 65_535, 65_535)),
        "65535x65535 pixels: at most 64 million are read",
    ),
    "bmp_bomb": (
        patched(_BMP, 18, struct.pack("<ii", 60_000, 60_000)),
        "60000x60000 pixels: at most 64 million are read",
    ),
    "tiff_bomb": (
        tiff_claiming(60_000, 60_000),
        "60000x60000 pixels: at most 64 million are read",
    ),
}
_MANY_SCANS = {
    "jpeg_of_101_scans": with_repeated_scan(_PROGRESSIVE, 92),
    "jpeg_of_4000_scans": with_repeated_scan(claiming(_PROGRESSIVE, 4000, 4000), 4000),
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
    "bigtiff": (b"II+\0\x08\0\0\0" + bytes(60), "not an image"),
    "html_in_capitals": (b"<HTML><BODY>not found</BODY></HTML>", _WEB_PAGE),
    "json_list": (b'[{"error": 1}]', "JSON, not an image"),
    "text_that_begins_with_bm": (b"BMW drives past the house, and", "not an image"),
    "credentials": (b"[default]\naws_access_key_id = AKIA\n", "not an image"),
    "environment": (b"PATH=/usr/bin\0HOME=/root\0", "not an image"),
    "script": (b"#!/bin/sh\necho hello\n", "not an image"),
    "zeros": (bytes(5000), "not an image"),
    "matroska": (b"\x1aE\xdf\xa3" + bytes(60), "a video, not an image"),
    "jpeg_2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), f"JPEG 2000, {_SAVE_IT} or JPEG"),
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
    **{name: (data, Accepted(PNG, stripped=True)) for name, data in _STRIPPED_PNG.items()},
    **{name: (data, Accepted(JPEG, stripped=True)) for name, data in _STRIPPED_JPEG.items()},
    **{name: (data, Accepted(WEBP, stripped=True)) for name, data in _STRIPPED_WEBP.items()},
    **{name: (data, Accepted(PNG)) for name, data in _REWRITTEN.items()},
    **{name: (data, f"{NAME} is damaged or cut off") for name, data in _DAMAGED.items()},
    **{name: (data, f"{NAME} has {end}") for name, (data, end) in _BOMBS.items()},
    **{
        name: (data, f"{NAME} is a JPEG of more than 100 scans: save it again")
        for name, data in _MANY_SCANS.items()
    },
    **{name: (data, f"image '{NAME}' is {end}") for name, (data, end) in _NOT_READ.items()},
    "heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60),
        f"{NAME} is HEIC, which is not supported: save it as JPEG (on an iPhone: Most Compatible)",
    ),
}


def largest() -> Iterator[tuple[str, bytes]]:
    """Images just inside the limits, made one at a time: what takes most memory and time."""
    grey = Image.new("L", (8000, 8000), 90)
    yield "png of 64 MP", saved(grey.convert("RGBA"), "PNG", compress_level=1)
    yield "png of 64 MP and 16 bits", png_16_bit(8000, 8000)
    yield "gif of 64 MP", saved(grey.convert("P"), "GIF")
    yield "tiff of 64 MP", saved(grey.convert("RGB"), "TIFF", compression="packbits")
    small = Image.new("RGB", (6708, 6708), "grey")
    yield "avif of 45 MP", saved(small, "AVIF", speed=10, subsampling="4:4:4")
    wide = Image.new("RGB", (5477, 5477), "teal")
    yield "webp of 30 MP", saved(wide, "WEBP", method=0)
    yield "webp of 30 MP, lossless", saved(wide, "WEBP", lossless=True, method=0)
    yield "jpeg of 64 MP, turned", rotated(grey.convert("RGB"), 6)
    yield "jpeg of 64 MP in CMYK", saved(grey.convert("CMYK"), "JPEG")
    yield "jpeg of 400 MP", claiming(_LARGE_JPEG, 20_000, 20_000)
    progressive = saved(photo(), "JPEG", progressive=True, subsampling=0)
    yield "jpeg of 70 MP, progressive", claiming(progressive, 8366, 8366)
    scans = claiming(with_repeated_scan(progressive, 90), 6708, 6708)
    yield "jpeg of 45 MP and 99 scans", scans
    for name in ("jpeg_progressive_bomb", "webp_bomb", "webp_bomb_lossy", "jpeg_of_4000_scans"):
        yield name, CASES[name][0]
