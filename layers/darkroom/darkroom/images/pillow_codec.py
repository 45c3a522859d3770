"""Decodes, normalises and encodes images with Pillow, in the image process (see process.py).

Each operation takes the bytes of an image and is called by `run`, which turns whatever Pillow
raises for hostile bytes into one exception.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from PIL import AvifImagePlugin, Image, ImageChops, ImageCms

from darkroom.images.containers import (
    MAX_JPEG_SCANS,
    add_thumbnail,
    count_scans,
    is_16_bit_png,
    strip_metadata,
    webp_size,
)
from darkroom.images.file_types import describe_unsupported, is_heic, is_image, mime_type

MIB = 1024 * 1024
MIME_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}

MAX_SOURCE_BYTES = 100 * MIB
MAX_PIXELS = 64_000_000  # 8,000 x 8,000: 256 MB once decoded
MAX_JPEG_PIXELS = 400_000_000  # a JPEG can be decoded at a half, a quarter or an eighth
# The coefficients of all pixels are kept, up to 6 bytes for each, at whatever scale it is decoded.
MAX_PROGRESSIVE_JPEG_PIXELS = 70_000_000
MAX_FULL_PROGRESSIVE_JPEG_PIXELS = 45_000_000  # above it, decoded at a half
MAX_AVIF_PIXELS = 45_000_000  # 10 bytes a pixel, measured
MAX_WEBP_PIXELS = 30_000_000  # Pillow's decoder holds four copies: 16 bytes a pixel, measured
MAX_SQUARE_SIDE = 4096  # no model that needs squares takes more
_SCALES_OF_JPEG = (1, 2, 4, 8)
_READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO")
_JPEG_FORMATS = frozenset({"JPEG", "MPO"})
_PLAIN_MODES = frozenset({"RGB", "RGBA", "L", "LA"})
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PROFILE_SPACES = {"RGB": b"RGB ", "RGBA": b"RGB ", "L": b"GRAY", "LA": b"GRAY"}
_MAX_PROFILE_BYTES = 4 * MIB
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 92, "method": 2},
}
_REDUCED_QUALITY = 85
_SCALES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)

Image.MAX_IMAGE_PIXELS = None  # our own limits are lower and are checked before decoding
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread has buffers of its own


class Undecodable(Exception):
    """`str()` is the end of a sentence that starts with the image's name."""


class Encoded(NamedTuple):
    """An image file: `mime` is of PNG, JPEG or WebP; the size is in pixels."""

    data: bytes
    mime: str
    width: int
    height: int


type Result = Encoded | bytes | bool | None


def open_source(data: bytes) -> Encoded:
    """See codec.open_source."""
    with suppress(ValueError):  # of segments that cannot be read, though pixels may
        stripped = strip_metadata(data)
        if _is_ready(data, has_metadata=stripped is not data):
            return _checked(stripped)
    image, _ = _open_source(data)
    lossy = image.format in _JPEG_FORMATS
    return _encoded(_normalise(image), "JPEG" if lossy else "PNG")


def open_mask(data: bytes) -> Encoded:
    """See codec.open_mask."""
    image, _ = _open_source(data)
    if image.format == "PNG" and image.mode in {"RGBA", "LA"} and not is_16_bit_png(data):
        with suppress(ValueError):
            return _checked(strip_metadata(data))
    mask = _normalise(image)
    if "A" not in mask.getbands():
        alpha = ImageChops.invert(mask.convert("L"))
        mask = Image.new("RGBA", mask.size, (0, 0, 0, 255))
        mask.putalpha(alpha)
    return _encoded(mask, "PNG")


def resize_mask(data: bytes, *, width: int, height: int) -> Encoded:
    return _encoded(_decode(data).convert("RGBA").resize((width, height)), "PNG")


def square(data: bytes) -> Encoded:
    """Padded with transparent bars; first scaled down to MAX_SQUARE_SIDE."""
    image = _decode(data)
    image.thumbnail((MAX_SQUARE_SIDE, MAX_SQUARE_SIDE), Image.Resampling.LANCZOS)
    side = max(image.size)
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    canvas.info = image.info
    offset = ((side - image.width) // 2, (side - image.height) // 2)
    canvas.paste(image.convert("RGBA"), offset)
    return _encoded(canvas, "PNG")


def has_transparency(data: bytes) -> bool:
    image = _decode(data)
    if "A" not in image.getbands() and "transparency" not in image.info:
        return False
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return isinstance(lowest, int | float) and lowest < 255  # noqa: PLR2004 - opaque


def fit(data: bytes, *, mime_types: Sequence[str], max_bytes: int) -> Encoded:
    """See codec.fit."""
    image = _decode(data)
    if image.mode not in {"RGB", "RGBA"}:
        image = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    for scale, image_format, quality in _encodings(mime_types, alpha="A" in image.getbands()):
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        scaled = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
        scaled.info = image.info
        encoded = _encoded(scaled, image_format, quality)
        if len(encoded.data) <= max_bytes:
            return encoded
    raise Undecodable(f"cannot be reduced to {max_bytes // 1024} KiB")


def verify(data: bytes) -> None:
    """Decode in full."""
    _decode(data)


def render(data: bytes, *, image_format: str) -> bytes:
    """The image in another format: a key of MIME_TYPES."""
    return _encode(_decode(data), image_format)


def thumbnail(data: bytes, *, longest_side: int) -> bytes:
    """A small WebP, upright."""
    return _small_webp(_reduced(data, longest_side))


def preview(data: bytes, *, longest_side: int, embedded_side: int) -> bytes:
    """See codec.preview."""
    image = _reduced(data, longest_side)
    encoded = _small_webp(image)
    image.thumbnail((embedded_side, embedded_side))
    return add_thumbnail(encoded, _small_webp(image))


def _reduced(data: bytes, longest_side: int) -> Image.Image:
    image = _open(data)
    _scale(image, data)
    image.draft("RGB", (longest_side, longest_side))
    image = _normalise(image)
    image.thumbnail((longest_side, longest_side))
    return image


def _small_webp(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=78, method=2)
    return out.getvalue()


def run(operation: str, data: bytes, arguments: Mapping[str, Any]) -> Result:
    """Run one of OPERATIONS. Raises only Undecodable.

    Pillow raises more than it documents: SyntaxError, struct.error, RuntimeError, KeyError…
    """
    try:
        return OPERATIONS[operation](data, **arguments)
    except Undecodable:
        raise
    except MemoryError as error:
        problem = "takes too much memory to decode: save it as a PNG or a plain JPEG, or smaller"
        raise Undecodable(problem) from error
    except Exception as error:
        raise Undecodable("is damaged or cut off") from error


OPERATIONS: dict[str, Callable[..., Result]] = {
    function.__name__: function
    for function in (
        open_source,
        open_mask,
        resize_mask,
        square,
        has_transparency,
        fit,
        verify,
        render,
        thumbnail,
        preview,
    )
}


def _open(data: bytes) -> Image.Image:
    """The image with only its header read. Raises Undecodable for too large a WebP."""
    if mime_type(data) == MIME_TYPES["WEBP"]:
        _check_pixels(*webp_size(data), MAX_WEBP_PIXELS, " from a WebP")
    return Image.open(io.BytesIO(data), formats=_READABLE)


def _check_pixels(width: int, height: int, limit: int, kind: str) -> None:
    if width * height > limit:
        problem = f"has {width}x{height} pixels: at most {limit // 1_000_000} million are read"
        raise Undecodable(problem + kind)


def _decode(data: bytes) -> Image.Image:
    image = _open(data)
    if (scale := _scale(image, data)) > 1:
        image.draft(image.mode, (image.width // scale, image.height // scale))
    image.load()
    return image


def _open_source(data: bytes) -> tuple[Image.Image, int]:
    """A source with only its header read, and the fraction of its size at which it is decoded."""
    if len(data) > MAX_SOURCE_BYTES:
        problem = f"has {len(data) // MIB} MiB: at most {MAX_SOURCE_BYTES // MIB} are read"
        raise Undecodable(problem)
    if is_heic(data) or not is_image(data):
        raise Undecodable(describe_unsupported(data))
    image = _open(data)
    scale = _scale(image, data)
    if scale > 1:
        image.draft(image.mode, (image.width // scale, image.height // scale))
    return image, scale


def _scale(image: Image.Image, data: bytes) -> int:
    """The fraction at which the image is decoded: 1, or for a very large JPEG 2, 4 or 8.

    Raises Undecodable for what would take too much memory or time, before anything is decoded.
    """
    limit, full, kind = MAX_PIXELS, MAX_PIXELS, ""
    if image.format in _JPEG_FORMATS:
        limit, scans = MAX_JPEG_PIXELS, count_scans(data)
        if scans > MAX_JPEG_SCANS:
            raise Undecodable(f"is a JPEG of more than {MAX_JPEG_SCANS} scans: save it again")
        if scans > 1:
            limit, kind = MAX_PROGRESSIVE_JPEG_PIXELS, " from a progressive JPEG"
            full = MAX_FULL_PROGRESSIVE_JPEG_PIXELS
    elif image.format == "AVIF":
        limit, kind = MAX_AVIF_PIXELS, " from an AVIF"
    _check_pixels(image.width, image.height, limit, kind)
    pixels = image.width * image.height
    return next(scale for scale in _SCALES_OF_JPEG if pixels <= full * scale**2)


def _checked(data: bytes) -> Encoded:
    """Bytes that are sent as they are, decoded to check them. Raises ValueError or others."""
    image = _decode(data)
    return Encoded(data, MIME_TYPES[image.format or ""], image.width, image.height)


def _is_ready(data: bytes, *, has_metadata: bool) -> bool:
    """Whether a source is sent as it is, without its metadata. (Pillow decodes a PNG to find any.)

    An MPO, a JPEG followed by further images, is: without metadata it is a JPEG. The image opened
    here is freed on return: a WebP's decoder has twice the memory of its image.
    """
    image, scale = _open_source(data)
    if scale > 1 or image.format not in {*MIME_TYPES, "MPO"} or image.mode not in _PLAIN_MODES:
        return False
    animated = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    turned = has_metadata and _transposition(image) is not None
    return not animated and not is_16_bit_png(data) and not turned


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """What turns the image upright, by its EXIF or XMP orientation."""
    try:
        return _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  # metadata that cannot be read turns no image
        return None


def _normalise(image: Image.Image) -> Image.Image:
    """Upright, one frame, eight bits a channel, RGB or RGBA."""
    image.seek(0)
    image.load()
    if (transposition := _transposition(image)) is not None:
        image = image.transpose(transposition)
    if image.mode.startswith("I"):  # scaled, where Pillow's own conversion would clip
        image = image.convert("I").point([value >> 8 for value in range(65_536)], "L")
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image)
    alpha = "A" in image.getbands() or "transparency" in image.info
    mode = "RGBA" if alpha else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    """By the image's own colour profile where it has a usable one, else by Pillow's formula."""
    if profile := image.info.get("icc_profile"):
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
    converted = image.convert("RGB")
    converted.info.pop("icc_profile", None)  # of colours that it no longer has
    return converted


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


def _encode(image: Image.Image, image_format: str, quality: int | None = None) -> bytes:
    """With its colour profile and no other metadata. Transparency becomes white in a JPEG."""
    profile = image.info.get("icc_profile")
    if image_format == "JPEG" and image.mode not in {"RGB", "L"}:
        foreground = image.convert("RGBA")
        image = Image.new("RGB", foreground.size, "white")
        image.paste(foreground, mask=foreground.getchannel("A"))
    options = _SAVE_OPTIONS[image_format] | ({"quality": quality} if quality else {})
    profile = profile if _is_usable(profile, image.mode) else None
    out = io.BytesIO()
    image.save(out, image_format, icc_profile=profile, **options)
    return strip_metadata(out.getvalue())


def _is_usable(profile: object, mode: str) -> bool:
    """Whether it is a colour profile for images of this mode: ICC.1, 7.2, bytes 16 to 19."""
    return (
        isinstance(profile, bytes)
        and len(profile) <= _MAX_PROFILE_BYTES
        and profile[16:20] == _PROFILE_SPACES.get(mode)
    )


def _encoded(image: Image.Image, image_format: str, quality: int | None = None) -> Encoded:
    data = _encode(image, image_format, quality)
    return Encoded(data, MIME_TYPES[image_format], image.width, image.height)
