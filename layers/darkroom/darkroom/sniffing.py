"""What bytes are, by how they begin; what a server or a file name says of them is not believed."""

import re

_TEXT = re.compile(
    rb"\s*(?:\xef\xbb\xbf)?\s*(<!doctype html|<html|<svg|<\?xml|[{\[])", re.IGNORECASE
)
_KINDS = {b"<!doctype html": "a web page", b"<html": "a web page", b"<svg": "an SVG drawing"}
_MAGIC = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"8BPS", "a Photoshop file"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x1aE\xdf\xa3", "a video"),
)
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
_BRAND = slice(8, 12)


def is_image(head: bytes) -> bool:
    """PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC; whether it decodes is another question."""
    if head.startswith(_IMAGES):
        return True
    if head[:4] == b"RIFF":
        return head[_BRAND] == b"WEBP"
    return head[4:8] == b"ftyp" and head[_BRAND] in _IMAGE_BRANDS


def kind_of(head: bytes) -> str:
    """What something that is no image is, for a sentence: "a web page"."""
    if not head:
        return "empty"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        return "a video"
    match = _TEXT.match(head[:512])
    if match is None:
        return "no image"
    token = match[1].lower()
    if token == b"<?xml" and b"<svg" in head[:2048].lower():
        return "an SVG drawing"
    return _KINDS.get(token, "an XML file" if token == b"<?xml" else "JSON")
