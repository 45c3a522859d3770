"""Detects file types by their first bytes; content types and file names are not relied on."""

import re

_MARKUP = re.compile(
    rb"\s*(?:\xef\xbb\xbf)?\s*(<!doctype html|<html|<svg|<\?xml|\{|\[(?=\s*[\[{\"\d\]]))",
    re.IGNORECASE,
)
_WEB_PAGE = "is a web page, not an image: does its URL lead to the image itself?"
_MARKUP_PROBLEMS = {
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"<svg": "is an SVG drawing, which is not supported: save it as PNG",
    b"<?xml": "is an XML file, not an image",
}
_UNSUPPORTED = (
    (b"%PDF", "is a PDF, which is not supported: save its page as PNG"),
    (b"PK\x03\x04", "is a zip file, not an image"),
    (b"\x1f\x8b", "is a gzip file, not an image"),
    (b"8BPS", "is a Photoshop file, which is not supported: save it as PNG"),
    (b"\xff\x0a", "is JPEG XL, which is not supported: save it as PNG or JPEG"),
    (b"\0\0\0\x0cJXL ", "is JPEG XL, which is not supported: save it as PNG or JPEG"),
    (b"\0\0\0\x0cjP  ", "is JPEG 2000, which is not supported: save it as PNG or JPEG"),
    (b"\0\0\1\0", "is an icon (.ico), which is not supported: save it as PNG"),
    (b"\x1aE\xdf\xa3", "is a video, not an image"),
)
PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"
_IMAGES = (
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)
# The size of a bitmap's second header: "BM" alone begins many a text.
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_BRAND = slice(8, 12)


def is_image(head: bytes) -> bool:
    """True for PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF and HEIC, whether they decode or not.

    The first 32 bytes of a file are enough, here and in `mime_type`.
    """
    return mime_type(head) is not None


def mime_type(head: bytes) -> str | None:
    """The content type of an image; None for what is not one."""
    for magic, mime in _IMAGES:
        if head.startswith(magic):
            return mime
    if head[:4] == b"RIFF" and head[_BRAND] == b"WEBP":
        return WEBP
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "image/bmp"
    if is_heic(head):
        return "image/heic"
    return "image/avif" if head[4:8] == b"ftyp" and head[_BRAND] in _AVIF_BRANDS else None


def is_heic(head: bytes) -> bool:
    """True for HEIC, an image that Darkroom cannot decode."""
    return head[4:8] == b"ftyp" and head[_BRAND] in _HEIC_BRANDS


def describe_unsupported(head: bytes) -> str:
    """The problem with an unsupported file, as the end of a sentence that starts with its name."""
    if not head:
        return "is empty"
    for magic, sentence in _UNSUPPORTED:
        if head.startswith(magic):
            return sentence
    if is_heic(head):
        return "is HEIC, which is not supported: save it as JPEG (on an iPhone: Most Compatible)"
    if head[4:8] == b"ftyp":
        return "is a video, not an image"
    match = _MARKUP.match(head[:512])
    if match is None:
        return "is not an image"
    token = match[1].lower()
    if token == b"<?xml" and b"<svg" in head[:2048].lower():
        token = b"<svg"
    return _MARKUP_PROBLEMS.get(token, "is JSON, not an image")
