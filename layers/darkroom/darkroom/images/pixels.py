"""Pillow, and what is done with it: decode in full, normalise, encode. See `images/pictures.py`."""

import io
from functools import cache
from typing import TYPE_CHECKING, Any

from darkroom.models.model_types import JPEG, PNG, WEBP

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
