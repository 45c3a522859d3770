"""Decodes, normalises and encodes images: the only module that uses Pillow.

Bytes that already fit are passed on untouched. Pillow is imported at its first use.
"""

import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from darkroom.calls import CallFailed, Outcome, SourceImage
from darkroom.errors import Reason, RowRejected
from darkroom.images.file_types import describe_unsupported, is_heic, is_image

if TYPE_CHECKING:
    from PIL.Image import Image

MIB = 1024 * 1024
PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"
MIME_TYPES = {"PNG": PNG, "JPEG": JPEG, "WEBP": WEBP}  # by Pillow's name of the format
EXTENSIONS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}

MAX_SOURCE_BYTES = 100 * MIB
MAX_PIXELS = 64_000_000  # 8,000 x 8,000: 256 MB while it is open
MAX_JPEG_PIXELS = 400_000_000  # a JPEG can be decoded at a half, a quarter or an eighth
_UNDECODABLE = (OSError, ValueError, SyntaxError, KeyError, EOFError, IndexError, MemoryError)
_READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO")
_JPEG_FORMATS = frozenset({"JPEG", "MPO"})
_PLAIN_MODES = frozenset({"RGB", "RGBA", "L", "LA"})
_DEEP_GREY_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_IHDR_DEPTH = 24  # offset of a PNG's bits per channel
_EXIF_ORIENTATION = 0x0112
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 92, "method": 2},
}
_REDUCED_QUALITY = 85
_SCALES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)


def open_source(data: bytes, name: str) -> SourceImage:
    """Check a row's input image in full and convert it to a form that every model reads.

    The format is detected from the content, not the name. An image with an EXIF rotation, in CMYK,
    with 16 bits a channel or a palette, animated (its first frame is used), or in a format other
    than PNG, JPEG and WebP is re-encoded. Raises RowRejected (bad_image) with a sentence that
    starts with `name`.
    """
    image, full_size = _read(data, name)
    image_format = image.format or ""
    if image_format in MIME_TYPES and full_size and not _needs_rewriting(image, data):
        return SourceImage(data, MIME_TYPES[image_format], image.width, image.height, name)
    return _as_source(_normalise(image), "JPEG" if image_format in _JPEG_FORMATS else "PNG", name)


def open_mask(data: bytes, name: str) -> SourceImage:
    """A mask as a PNG: the image is edited where the mask is transparent.

    A mask without transparency is read as black and white; white marks what is edited. Raises
    RowRejected (bad_image).
    """
    image, _ = _read(data, name)
    if image.format == "PNG" and image.mode in {"RGBA", "LA"} and not _is_16_bit_png(data):
        return SourceImage(data, PNG, image.width, image.height, name)
    mask = _normalise(image)
    if "A" not in mask.getbands():
        from PIL import ImageOps  # noqa: PLC0415 - see _pillow

        alpha = ImageOps.invert(mask.convert("L"))
        mask = _pillow().new("RGBA", mask.size, (0, 0, 0, 255))
        mask.putalpha(alpha)
    return _as_source(mask, "PNG", name)


def resize_mask(mask: SourceImage, width: int, height: int) -> SourceImage:
    """The mask at the size of its image."""
    return _as_source(_decode(mask.data).convert("RGBA").resize((width, height)), "PNG", mask.name)


def square(source: SourceImage) -> SourceImage:
    """The image padded with transparent bars to a square PNG; untouched if it is square."""
    if source.width == source.height:
        return source
    side = max(source.width, source.height)
    canvas = _pillow().new("RGBA", (side, side), (0, 0, 0, 0))
    offset = ((side - source.width) // 2, (side - source.height) // 2)
    canvas.paste(_decode(source.data).convert("RGBA"), offset)
    return _as_source(canvas, "PNG", source.name)


def has_transparency(source: SourceImage) -> bool:
    """Whether any pixel is transparent."""
    lowest, _ = _decode(source.data).convert("RGBA").getchannel("A").getextrema()
    return isinstance(lowest, int | float) and lowest < 255  # noqa: PLR2004 - opaque


def fit(source: SourceImage, mime_types: Sequence[str], max_bytes: int) -> SourceImage:
    """The image in one of `mime_types` within `max_bytes`; untouched if it already fits.

    Tries another format or a lower quality before a smaller size. Raises RowRejected (bad_image)
    when nothing is small enough.
    """
    if source.mime in mime_types and len(source.data) <= max_bytes:
        return source
    image = _decode(source.data)
    if image.mode not in {"RGB", "RGBA"}:
        image = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    for scale, image_format, quality in _encodings(mime_types, alpha="A" in image.getbands()):
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        scaled = image if scale == 1 else image.resize(size, _pillow().Resampling.LANCZOS)
        data = _encode(scaled, image_format, quality)
        if len(data) <= max_bytes:
            return SourceImage(data, MIME_TYPES[image_format], *scaled.size, source.name)
    problem = f"{source.name} cannot be reduced to {max_bytes // 1024} KiB"
    raise RowRejected(Reason.BAD_IMAGE, problem)


def verify(data: bytes) -> None:
    """Decode a provider's image in full. Raises ValueError when that fails."""
    _decode(data)


def render(data: bytes, extension: str) -> tuple[bytes, str]:
    """A provider's image in the format of `output_name`'s extension, and its content type.

    Accepts png, jpg, jpeg and webp, with or without the dot. Bytes of that format are passed on
    untouched. Raises CallFailed (unavailable, maybe charged) if `data` does not decode, which the
    provider adapters have already checked, and ValueError for another extension.
    """
    image_format = EXTENSIONS.get(extension.lower().lstrip("."))
    if image_format is None:
        raise ValueError(f"{extension!r} is not a supported output format: use png, jpg or webp")
    try:
        image = _decode(data)
    except ValueError as error:
        problem = "the response's image does not decode"
        raise CallFailed(Outcome.UNAVAILABLE, problem, maybe_charged=True) from error
    if image.format != image_format:
        data = _encode(image, image_format)
    return data, MIME_TYPES[image_format]


def thumbnail(data: bytes, longest_side: int = 320) -> bytes:
    """A small WebP for the gallery. Raises ValueError when `data` does not decode."""
    try:
        image = _open(data)
        image.draft("RGB", (longest_side * 2, longest_side * 2))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("too many pixels")
        image = _normalise(image)
        image.thumbnail((longest_side, longest_side))
    except _UNDECODABLE as error:
        raise ValueError("not an image, or a damaged one") from error
    out = io.BytesIO()
    image.save(out, "WEBP", quality=78, method=2)
    return out.getvalue()


@cache
def _pillow() -> Any:
    """PIL.Image, with its own limit on pixels off: ours is lower and is checked before decoding."""
    from PIL import Image  # noqa: PLC0415 - 19 ms that not every start needs

    Image.MAX_IMAGE_PIXELS = None
    return Image


def _open(data: bytes) -> "Image":
    """The image with only its header read. Raises one of _UNDECODABLE."""
    image: Image = _pillow().open(io.BytesIO(data), formats=_READABLE)
    return image


def _decode(data: bytes) -> "Image":
    """Raises ValueError for what is not an image, is damaged or has too many pixels."""
    try:
        image = _open(data)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} are too many pixels")
        image.load()
    except _UNDECODABLE as error:
        raise ValueError("not an image, or a damaged one") from error
    return image


def _read(data: bytes, name: str) -> tuple["Image", bool]:
    """A source decoded in full, and whether at its full size. Raises RowRejected.

    A very large JPEG is read at a fraction of its size.
    """
    if len(data) > MAX_SOURCE_BYTES:
        problem = f"has {len(data) // MIB} MiB: at most {MAX_SOURCE_BYTES // MIB} are read"
        raise RowRejected(Reason.BAD_IMAGE, f"{name} {problem}")
    if is_heic(data) or not is_image(data):
        raise RowRejected(Reason.BAD_IMAGE, f"{name} {describe_unsupported(data)}")
    try:
        image = _open(data)
        pixels = image.width * image.height
        limit = MAX_JPEG_PIXELS if image.format in _JPEG_FORMATS else MAX_PIXELS
        if pixels > limit:  # a decompression bomb
            problem = (
                f"has {image.width}x{image.height} pixels: at most {limit // 1_000_000} million"
            )
            raise RowRejected(Reason.BAD_IMAGE, f"{name} {problem} are read")
        if pixels > MAX_PIXELS:
            image.draft(image.mode, (image.width // 2, image.height // 2))
        image.load()
    except _UNDECODABLE as error:
        raise RowRejected(Reason.BAD_IMAGE, f"{name} is damaged or cut off") from error
    return image, pixels <= MAX_PIXELS


def _needs_rewriting(image: "Image", data: bytes) -> bool:
    return (
        image.mode not in _PLAIN_MODES
        or image.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1)
        or getattr(image, "n_frames", 1) > 1
        or _is_16_bit_png(data)
    )


def _is_16_bit_png(data: bytes) -> bool:
    """Read from the header, because Pillow reports a 16-bit colour PNG as one with 8 bits."""
    return data.startswith(_PNG_MAGIC) and data[_IHDR_DEPTH : _IHDR_DEPTH + 1] == b"\x10"


def _normalise(image: "Image") -> "Image":
    """Upright, one frame, eight bits a channel, RGB or RGBA."""
    from PIL import ImageOps  # noqa: PLC0415 - see _pillow

    image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP_GREY_MODES:  # scaled, where Pillow's own conversion would clip
        image = image.convert("F").point(lambda value: value * (1 / 257) + 0.0).convert("L")
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image)
    alpha = "A" in image.getbands() or "transparency" in image.info
    return image.convert("RGBA" if alpha else "RGB")


def _cmyk_to_rgb(image: "Image") -> "Image":
    """By the image's own colour profile where it has a usable one, else by Pillow's formula."""
    from PIL import ImageCms  # noqa: PLC0415 - see _pillow

    if profile := image.info.get("icc_profile"):
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")


def _encodings(
    mime_types: Sequence[str], *, alpha: bool
) -> Iterable[tuple[float, str, int | None]]:
    """Scale, format and quality to try, the best first."""
    order = ("PNG", "WEBP", "JPEG") if alpha else ("JPEG", "WEBP", "PNG")
    formats = [name for name in order if MIME_TYPES[name] in mime_types]
    smallest = formats[:2][-1] if alpha else formats[0]
    yield 1.0, formats[0], None
    for scale in _SCALES:
        yield scale, smallest, None if smallest == "PNG" else _REDUCED_QUALITY


def _encode(image: "Image", image_format: str, quality: int | None = None) -> bytes:
    """Transparency becomes white in a JPEG."""
    if image_format == "JPEG" and image.mode not in {"RGB", "L"}:
        foreground = image.convert("RGBA")
        image = _pillow().new("RGB", foreground.size, "white")
        image.paste(foreground, mask=foreground.getchannel("A"))
    out = io.BytesIO()
    options = _SAVE_OPTIONS[image_format] | ({"quality": quality} if quality else {})
    image.save(out, image_format, **options)
    return out.getvalue()


def _as_source(image: "Image", image_format: str, name: str) -> SourceImage:
    data = _encode(image, image_format)
    return SourceImage(data, MIME_TYPES[image_format], image.width, image.height, name)
