"""What bytes are, by how they begin; what a server or a file name says of them is not believed."""

import re

_TEXT = re.compile(
    rb"\s*(?:\xef\xbb\xbf)?\s*(<!doctype html|<html|<svg|<\?xml|[{\[])", re.IGNORECASE
)
_WEB_PAGE = "is a web page, not an image: does its address lead to the picture itself?"
_TEXTS = {
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"<svg": "is an SVG drawing, which is not read: save it as PNG",
    b"<?xml": "is an XML file, not an image",
}
_MAGIC = (
    (b"%PDF", "is a PDF, which is not read: save its page as PNG"),
    (b"PK\x03\x04", "is a zip file, not an image"),
    (b"\x1f\x8b", "is a gzip file, not an image"),
    (b"8BPS", "is a Photoshop file, which is not read: save it as PNG"),
    (b"\xff\x0a", "is JPEG XL, which is not read: save it as PNG or JPEG"),
    (b"\0\0\0\x0cJXL ", "is JPEG XL, which is not read: save it as PNG or JPEG"),
    (b"\0\0\0\x0cjP  ", "is JPEG 2000, which is not read: save it as PNG or JPEG"),
    (b"\0\0\1\0", "is an icon (.ico), which is not read: save it as PNG"),
    (b"\x1aE\xdf\xa3", "is a video, not an image"),
)
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")
_IMAGE_BRANDS = (b"avif", b"avis", b"mif1", b"msf1", *_HEIC_BRANDS)
_BRAND = slice(8, 12)


def is_image(head: bytes) -> bool:
    """PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC; whether it decodes is another question."""
    if head.startswith(_IMAGES):
        return True
    if head[:4] == b"RIFF":
        return head[_BRAND] == b"WEBP"
    return head[4:8] == b"ftyp" and head[_BRAND] in _IMAGE_BRANDS


def describe_unsupported(head: bytes) -> str:
    """What is wrong with something that is no image, to go on with after its name."""
    if not head:
        return "is empty"
    for magic, sentence in _MAGIC:
        if head.startswith(magic):
            return sentence
    if head[4:8] == b"ftyp":
        return "is a video, not an image"
    match = _TEXT.match(head[:512])
    if match is None:
        return "is not an image"
    token = match[1].lower()
    if token == b"<?xml" and b"<svg" in head[:2048].lower():
        token = b"<svg"
    return _TEXTS.get(token, "is JSON, not an image")
