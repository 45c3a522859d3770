"""Decodes, normalises and encodes images; bytes that already fit are passed on untouched.

The work is done by pillow_codec in the image process, so that no image can take more memory or
time than that process may, or crash this one. Unless it says otherwise, a function raises
ServiceUnavailable if the process cannot be started.
"""

import atexit
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from darkroom.calls import SourceImage
from darkroom.errors import Reason, RowRejected, ServiceUnavailable
from darkroom.images import file_types
from darkroom.images.process import ImageProcess, Rejected, Reply

MIB = 1024 * 1024
PNG, JPEG, WEBP = file_types.PNG, file_types.JPEG, file_types.WEBP
EXTENSIONS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
_MIME_TYPES = {"PNG": PNG, "JPEG": JPEG, "WEBP": WEBP}


def open_source(data: bytes, name: str) -> SourceImage:
    """Check a row's input image in full and convert it to a form that every model reads.

    The format is detected from the content, not the name. Metadata (EXIF with its location, XMP,
    comments) is removed, the colour profile stays. An image with an EXIF rotation, in CMYK, with 16
    bits a channel or a palette, animated (its first frame is used), or in a format other than PNG,
    JPEG and WebP is re-encoded. Raises RowRejected (bad_image) with a sentence that starts with
    `name`.
    """
    return _source("open_source", data, name)


def open_mask(data: bytes, name: str) -> SourceImage:
    """A mask as a PNG: the image is edited where the mask is transparent.

    A mask without transparency is read as black and white; white marks what is edited. Raises
    RowRejected (bad_image).
    """
    return _source("open_mask", data, name)


def resize_mask(mask: SourceImage, width: int, height: int) -> SourceImage:
    """The mask at the size of its image."""
    return _source("resize_mask", mask.data, mask.name, width=width, height=height)


def square(source: SourceImage) -> SourceImage:
    """The image padded with transparent bars to a square PNG; untouched if it is square."""
    if source.width == source.height:
        return source
    return _source("square", source.data, source.name)


def has_transparency(source: SourceImage) -> bool:
    """Whether any pixel is transparent."""
    if source.mime == JPEG:
        return False
    return bool(_run("has_transparency", source.data, source.name).value)


def fit(source: SourceImage, mime_types: Sequence[str], max_bytes: int) -> SourceImage:
    """The image in one of `mime_types` within `max_bytes`; untouched if it already fits.

    Tries another format or a lower quality before a smaller size. Raises RowRejected (bad_image)
    when nothing is small enough.
    """
    if source.mime in mime_types and len(source.data) <= max_bytes:
        return source
    limits: dict[str, Any] = {"mime_types": list(mime_types), "max_bytes": max_bytes}
    return _source("fit", source.data, source.name, **limits)


def verify(data: bytes) -> None:
    """Decode a provider's image in full. Raises ValueError when that fails.

    One that nothing can check, because the process cannot be started, was paid for: it passes.
    """
    with suppress(ServiceUnavailable):
        _answer("verify", data)


def render(data: bytes, extension: str) -> tuple[bytes, str]:
    """A provider's image in the format of `output_name`'s extension, and its content type.

    Accepts png, jpg, jpeg and webp, with or without the dot. Bytes of that format are passed on
    untouched. Raises ValueError for another extension and for data that does not decode.
    """
    image_format = EXTENSIONS.get(extension.lower().lstrip("."))
    if image_format is None:
        raise ValueError(f"{extension!r} is not a supported output format: use png, jpg or webp")
    mime = _MIME_TYPES[image_format]
    if file_types.mime_type(data) == mime:
        return data, mime
    return _answer("render", data, image_format=image_format), mime


def thumbnail(data: bytes, longest_side: int) -> bytes:
    """A WebP for the gallery, never enlarged. Raises ValueError when `data` does not decode."""
    return _answer("thumbnail", data, longest_side=longest_side)


def preview(data: bytes, longest_side: int, embedded_side: int) -> bytes:
    """A thumbnail that contains a smaller one, for pages to embed (containers.embedded_thumbnail).

    One file for two sizes is one write. Raises ValueError when `data` does not decode.
    """
    return _answer("preview", data, longest_side=longest_side, embedded_side=embedded_side)


@cache
def _process() -> ImageProcess:
    process = ImageProcess()
    atexit.register(process.close)
    return process


def _run(operation: str, data: bytes, name: str, **arguments: Any) -> Reply:
    try:
        return _process().run(operation, data, arguments)
    except Rejected as error:
        raise RowRejected(Reason.BAD_IMAGE, f"{name} {error}") from error


def _source(operation: str, data: bytes, name: str, **arguments: Any) -> SourceImage:
    (mime, width, height), encoded = _run(operation, data, name, **arguments)
    return SourceImage(encoded, mime, width, height, name)


def _answer(operation: str, data: bytes, **arguments: Any) -> bytes:
    try:
        return _process().run(operation, data, arguments).data
    except Rejected as error:
        raise ValueError(f"the image {error}") from error
