"""Pillow, and what is done with it: decode in full, normalise, encode. See `images/pictures.py`."""

import io
from functools import cache
from typing import TYPE_CHECKING, Any

from darkroom.models.catalog import JPEG, PNG, WEBP

if TYPE_CHECKING:
    from PIL.Image import Image
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from darkroom.calls import CallFailed, Outcome, SourceImage
from darkroom.errors import Reason, RowRejected
from darkroom.images.file_types import describe_unsupported, is_heic, is_image
from darkroom.models.catalog import MIB

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_PIXELS = 64_000_000  # 8,000 x 8,000: 256 MB while it is open
MIME = {"PNG": PNG, "JPEG": JPEG, "WEBP": WEBP}
UNDECODABLE = (OSError, ValueError, SyntaxError, KeyError, EOFError, IndexError, MemoryError)
_READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO")
_SAVE: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 92, "method": 2},
}
_DEEP_GREYS = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_IHDR_DEPTH = 24  # offset of the byte that tells a PNG's bits per channel


@cache
def pillow() -> Any:
    """PIL.Image, with its own bomb check off: ours is lower and runs before anything is decoded."""
    from PIL import Image  # noqa: PLC0415 - 19 ms that not every start needs

    Image.MAX_IMAGE_PIXELS = None
    return Image


def open_lazily(data: bytes) -> "Image":
    """The header only. Raises one of UNDECODABLE."""
    picture: Image = pillow().open(io.BytesIO(data), formats=_READ)
    return picture


def decode(data: bytes) -> "Image":
    """All of it. Raises ValueError for what is no picture, is damaged or is too large."""
    try:
        picture = open_lazily(data)
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width}x{picture.height} is too large a picture")
        picture.load()
    except UNDECODABLE as error:
        raise ValueError("not a picture, or a damaged one") from error
    return picture


def is_deep_png(data: bytes) -> bool:
    """A PNG of 16 bits a channel; in colour, Pillow shows it as an ordinary one."""
    return data.startswith(_PNG_MAGIC) and data[_IHDR_DEPTH : _IHDR_DEPTH + 1] == b"\x10"


def normalised(picture: "Image") -> "Image":
    """Upright, one frame, eight bits a channel, RGB or RGBA."""
    from PIL import ImageOps  # noqa: PLC0415

    picture.seek(0)
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in _DEEP_GREYS:
        upright = _eight_bits(upright)
    if upright.mode == "CMYK":
        return _from_cmyk(upright)
    seen_through = "A" in upright.getbands() or "transparency" in upright.info
    return upright.convert("RGBA" if seen_through else "RGB")


def _eight_bits(picture: "Image") -> "Image":
    """Greys of sixteen bits scaled down, where Pillow's own conversion would cut them off."""
    return picture.convert("F").point(lambda value: value * (1 / 257) + 0.0).convert("L")


def _from_cmyk(picture: "Image") -> "Image":
    """By the picture's own colour profile where it has a usable one, else by Pillow's formula."""
    from PIL import ImageCms  # noqa: PLC0415

    profile = picture.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            done = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            done = None
        if done is not None:
            return done
    return picture.convert("RGB")


def mask_of_greys(picture: "Image") -> "Image":
    """Transparent where the picture is white."""
    from PIL import ImageOps  # noqa: PLC0415

    mask: Image = pillow().new("RGBA", picture.size, (0, 0, 0, 255))
    mask.putalpha(ImageOps.invert(picture.convert("L")))
    return mask


def squared(picture: "Image") -> "Image":
    """With transparent bars."""
    side = max(picture.size)
    canvas: Image = pillow().new("RGBA", (side, side), (0, 0, 0, 0))
    offset = ((side - picture.width) // 2, (side - picture.height) // 2)
    canvas.paste(picture.convert("RGBA"), offset)
    return canvas


def encode(picture: "Image", kind: str, quality: int | None = None) -> bytes:
    """`kind`: PNG, JPEG or WEBP. Flattened on white where that has no transparency."""
    if kind == "JPEG" and picture.mode not in {"RGB", "L"}:
        seen: Image = picture.convert("RGBA")
        canvas: Image = pillow().new("RGB", seen.size, "white")
        canvas.paste(seen, mask=seen.getchannel("A"))
        picture = canvas
    out = io.BytesIO()
    picture.save(out, kind, **_SAVE[kind] | ({"quality": quality} if quality else {}))
    return out.getvalue()


# Pictures: what a source may be, what becomes of it, and how an answer is stored.
#
# Bytes that already fit are passed on untouched. Pillow is imported at the first use.


MAX_SOURCE_BYTES = 100 * MIB
MAX_JPEG_PIXELS = 400_000_000  # a JPEG can be read at a half, a quarter or an eighth
EXTENSIONS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
_EXIF_ORIENTATION = 0x0112
_PLAIN_MODES = frozenset({"RGB", "RGBA", "L", "LA"})
_LESS_DETAIL = 85
_SCALES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)


def open_source(data: bytes, name: str) -> SourceImage:
    """Check a row's input picture in full and bring it into a form that every model reads.

    The content decides what it is, not the name. Turned by EXIF, in CMYK, of 16 bits, with a
    palette, animated (its first picture counts), or in another format than PNG, JPEG or WebP, it is
    written anew. Raises RowRejected (bad_image) with a sentence that names it.
    """
    picture, whole = _read(data, name)
    kind = picture.format or ""
    if kind in MIME and whole and not _needs_rewriting(picture, data):
        return SourceImage(data, MIME[kind], picture.width, picture.height, name)
    return _as_source(normalised(picture), "JPEG" if kind in {"JPEG", "MPO"} else "PNG", name)


def open_mask(data: bytes, name: str) -> SourceImage:
    """A mask as a PNG: where it is transparent, the picture is edited.

    One without transparency is read as black and white, white marking what is edited. Raises
    RowRejected (bad_image).
    """
    picture, _ = _read(data, name)
    if picture.format == "PNG" and picture.mode in {"RGBA", "LA"} and not is_deep_png(data):
        return SourceImage(data, PNG, picture.width, picture.height, name)
    mask = normalised(picture)
    return _as_source(mask if "A" in mask.getbands() else mask_of_greys(mask), "PNG", name)


def resize_mask(mask: SourceImage, width: int, height: int) -> SourceImage:
    """The mask at the size of its picture."""
    resized = decode(mask.data).convert("RGBA").resize((width, height))
    return _as_source(resized, "PNG", mask.name)


def square(source: SourceImage) -> SourceImage:
    """As a square PNG, with transparent bars where the picture is not."""
    if source.width == source.height:
        return source
    return _as_source(squared(decode(source.data)), "PNG", source.name)


def has_transparency(source: SourceImage) -> bool:
    """Whether any pixel is transparent."""
    picture = decode(source.data).convert("RGBA")
    least, _ = picture.getchannel("A").getextrema()
    return isinstance(least, int | float) and least < 255  # noqa: PLR2004 - opaque


def fit(source: SourceImage, formats: Sequence[str], max_bytes: int) -> SourceImage:
    """The same picture in one of `formats` (mime types) within `max_bytes`; untouched if it is.

    Another format or less detail first, then fewer pixels. Raises RowRejected (bad_image) when
    nothing helps.
    """
    if source.mime in formats and len(source.data) <= max_bytes:
        return source
    picture = decode(source.data)
    if picture.mode not in {"RGB", "RGBA"}:
        picture = picture.convert("RGBA" if "A" in picture.getbands() else "RGB")
    for scale, kind, quality in _attempts(formats, seen_through="A" in picture.getbands()):
        size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
        scaled = picture if scale == 1 else picture.resize(size, pillow().Resampling.LANCZOS)
        data = encode(scaled, kind, quality)
        if len(data) <= max_bytes:
            return SourceImage(data, MIME[kind], scaled.width, scaled.height, source.name)
    raise RowRejected(
        Reason.BAD_IMAGE, f"{source.name} cannot be brought below {max_bytes // 1024} KiB"
    )


def verify(data: bytes) -> tuple[int, int]:
    """Decode an answer in full: its width and height. Raises ValueError when it is no picture."""
    return decode(data).size


def render(data: bytes, extension: str) -> tuple[bytes, str]:
    """An answer in the format of `output_name`'s extension, and its content type.

    Takes png, jpg, jpeg and webp, with or without the dot. Bytes of that format are passed on
    untouched. Raises CallFailed (unavailable, maybe charged) if `data` does not decode, which the
    editors have already made sure of, and ValueError for another extension.
    """
    kind = EXTENSIONS.get(extension.lower().lstrip("."))
    if kind is None:
        raise ValueError(f"{extension!r} is not a format to write: use png, jpg or webp")
    try:
        picture = decode(data)
    except ValueError as error:
        raise CallFailed(
            Outcome.UNAVAILABLE, "the answer's image does not decode", maybe_charged=True
        ) from error
    if picture.format == kind:
        return data, MIME[kind]
    return encode(picture, kind), MIME[kind]


def thumbnail(data: bytes, longest_side: int = 320) -> bytes:
    """A small WebP for the gallery. Raises ValueError when `data` is no picture."""
    try:
        picture = open_lazily(data)
        picture.draft("RGB", (longest_side * 2, longest_side * 2))
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError("too large a picture")
        picture = normalised(picture)
        picture.thumbnail((longest_side, longest_side))
    except UNDECODABLE as error:
        raise ValueError("not a picture, or a damaged one") from error
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=78, method=2)
    return out.getvalue()


def _read(data: bytes, name: str) -> tuple["Image", bool]:
    """A source decoded in full, and whether at its full size. Raises RowRejected."""
    if len(data) > MAX_SOURCE_BYTES:
        size, most = len(data) // MIB, MAX_SOURCE_BYTES // MIB
        raise RowRejected(Reason.BAD_IMAGE, f"{name} has {size} MiB: at most {most} are read")
    if (sentence := _known_by_its_first_bytes(data)) is not None:
        raise RowRejected(Reason.BAD_IMAGE, f"{name} {sentence}")
    try:
        picture = open_lazily(data)
    except UNDECODABLE as error:
        raise RowRejected(Reason.BAD_IMAGE, f"{name} is damaged or cut off") from error
    whole = _check_pixels(picture, name)
    try:
        picture.load()
    except UNDECODABLE as error:
        raise RowRejected(Reason.BAD_IMAGE, f"{name} is damaged or cut off") from error
    return picture, whole


def _known_by_its_first_bytes(data: bytes) -> str | None:
    """A sentence for what people upload by mistake."""
    return describe_unsupported(data) if is_heic(data) or not is_image(data) else None


def _check_pixels(picture: "Image", name: str) -> bool:
    """Refuse bombs before anything is decoded; False when a large JPEG is read at a fraction."""
    width, height = picture.size
    most = MAX_JPEG_PIXELS if picture.format in {"JPEG", "MPO"} else MAX_PIXELS
    if width * height > most:
        raise RowRejected(
            Reason.BAD_IMAGE,
            f"{name} has {width}x{height} pixels: at most {most // 1_000_000} million are read",
        )
    if width * height > MAX_PIXELS:
        picture.draft(picture.mode, (width // 2, height // 2))
        return False
    return True


def _needs_rewriting(picture: "Image", data: bytes) -> bool:
    return (
        picture.mode not in _PLAIN_MODES
        or picture.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1)
        or getattr(picture, "n_frames", 1) > 1
        or is_deep_png(data)
    )


def _attempts(
    formats: Sequence[str], *, seen_through: bool
) -> Iterable[tuple[float, str, int | None]]:
    """Scale, format and quality to try, the best first."""
    order = ("PNG", "WEBP", "JPEG") if seen_through else ("JPEG", "WEBP", "PNG")
    kinds = [kind for kind in order if MIME[kind] in formats]
    smallest = kinds[:2][-1] if seen_through else kinds[0]
    yield 1.0, kinds[0], None
    for scale in _SCALES:
        yield scale, smallest, None if smallest == "PNG" else _LESS_DETAIL


def _as_source(picture: "Image", kind: str, name: str) -> SourceImage:
    return SourceImage(encode(picture, kind), MIME[kind], picture.width, picture.height, name)
