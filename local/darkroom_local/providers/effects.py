"""Makes visibly edited images, so that the gallery shows that an edit was made, and which."""

import hashlib
import io
import random
import textwrap
from collections.abc import Callable, Sequence
from functools import lru_cache

from PIL import (
    Image,
    ImageChops,
    ImageColor,
    ImageDraw,
    ImageEnhance,
    ImageFilter,
    ImageFont,
    ImageOps,
)

type Size = tuple[int, int]
LONGEST_SIDE = 2048  # larger outputs are rendered at this size and scaled up
_font = lru_cache(maxsize=32)(ImageFont.load_default)


def _tint(image: Image.Image, dark: str, light: str) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(image), dark, light)


def _sketch(image: Image.Image) -> Image.Image:
    edges = ImageOps.grayscale(image).filter(ImageFilter.FIND_EDGES)
    return ImageOps.invert(edges.point(lambda value: min(255, value * 3))).convert("RGB")


def _cartoon(image: Image.Image) -> Image.Image:
    flat = ImageOps.posterize(image.filter(ImageFilter.MedianFilter(5)), 3)
    return ImageEnhance.Color(flat).enhance(1.6)


Effect = Callable[[Image.Image], Image.Image]
_EFFECTS_BY_KEYWORD: tuple[tuple[tuple[str, ...], Effect], ...] = (
    (("black and white", "grey", "gray", "monochrome"), lambda i: _tint(i, "black", "white")),
    (("sepia", "vintage", "old photo"), lambda i: _tint(i, "#2b1a08", "#f5e3c0")),
    (("night", "moon", "dark"), lambda i: _tint(i, "#020414", "#8fb0e8")),
    (("sunset", "sunrise", "golden", "warm", "autumn"), lambda i: _tint(i, "#2a0a2e", "#ffd27a")),
    (("winter", "snow", "cold", "ice"), lambda i: _tint(i, "#0b2038", "#f4fbff")),
    (("sketch", "pencil", "drawing", "line art"), _sketch),
    (("cartoon", "comic", "poster", "illustration", "mural", "paint"), _cartoon),
    (("mist", "fog", "haze"), lambda i: Image.blend(i, Image.new("RGB", i.size, "#dfe6ea"), 0.55)),
    (("blur", "soft", "dream"), lambda i: i.filter(ImageFilter.GaussianBlur(i.width / 80))),
    (("bright", "white background", "studio"), lambda i: ImageEnhance.Brightness(i).enhance(1.35)),
    (("sharp", "detail", "restore"), lambda i: i.filter(ImageFilter.UnsharpMask(4, 220, 2))),
    ((" blue",), lambda i: Image.blend(i, _tint(i, "#00082e", "#9fc4ff"), 0.8)),
    ((" red",), lambda i: Image.blend(i, _tint(i, "#2e0004", "#ffa9a0"), 0.8)),
    ((" green",), lambda i: Image.blend(i, _tint(i, "#00240c", "#b8f2b0"), 0.8)),
    (("vivid", "colour", "color", "saturat"), lambda i: ImageEnhance.Color(i).enhance(2.2)),
    (("mirror", "flip"), ImageOps.mirror),
    (("invert", "negative"), ImageOps.invert),
)


def _effect(prompt: str) -> Effect:
    lowered = prompt.lower()
    for keywords, effect in _EFFECTS_BY_KEYWORD:
        if any(keyword in lowered for keyword in keywords):
            return effect
    dark, light = _colours(prompt)
    return lambda image: Image.blend(image, _tint(image, dark, light), 0.65)


def _colours(prompt: str) -> tuple[str, str]:
    digest = hashlib.sha256(prompt.encode()).digest()
    hue = digest[0] * 360 // 256
    return f"hsl({hue},70%,15%)", f"hsl({(hue + 40) % 360},85%,85%)"


def _collage(images: Sequence[Image.Image], size: Size) -> Image.Image:
    """The images side by side, each cropped to its share of the canvas."""
    canvas = Image.new("RGB", size)
    columns = min(len(images), 4)
    rows = -(-len(images) // columns)
    width, height = -(-size[0] // columns), -(-size[1] // rows)
    for index, image in enumerate(images):
        tile = ImageOps.fit(image.convert("RGB"), (width, height))
        canvas.paste(tile, (index % columns * width, index // columns * height))
    return canvas


def _landscape(prompt: str, size: Size) -> Image.Image:
    """A sky, hills and a sun, in colours derived from the prompt, for a row without images."""
    dark, light = _colours(prompt)
    canvas = ImageOps.colorize(Image.linear_gradient("L").resize(size), dark, light)
    draw = ImageDraw.Draw(canvas)
    digest = hashlib.sha256(prompt.encode()).digest()
    width, height = size
    radius = min(size) // 8
    x = width * (40 + digest[1] % 176) // 256
    draw.ellipse((x - radius, height // 4 - radius, x + radius, height // 4 + radius), fill=light)
    for layer in range(3):
        top = height * (5 + layer) // 8
        rises = [digest[2 + layer * 7 + i] * height // 1600 for i in range(7)]
        peaks = [(width * i // 6, top - rise) for i, rise in enumerate(rises)]
        fill = tuple(min(255, c + 30 * (2 - layer)) for c in ImageColor.getrgb(dark))
        draw.polygon([(0, height), *peaks, (width, height)], fill=fill)
    return canvas


def _caption(image: Image.Image, text: str) -> None:
    """A strip at the bottom with the start of the text."""
    strip = max(24, image.height // 14)
    font = _font(max(11, strip * 2 // 5))
    draw = ImageDraw.Draw(image, "RGBA")
    draw.rectangle((0, image.height - strip, image.width, image.height), fill=(0, 0, 0, 170))
    characters = max(12, int(image.width / (strip * 0.24)))
    shown = textwrap.shorten(text, width=characters, placeholder=" …")
    draw.text((strip // 3, image.height - strip // 2), shown, "white", font, anchor="lm")


def render(
    prompt: str, images: Sequence[Image.Image], mask: Image.Image | None, size: Size, label: str
) -> Image.Image:
    """An RGB image of `size`, with a caption. With `mask`, only its transparent area is changed."""
    scale = min(1.0, LONGEST_SIDE / max(size))
    work = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    before = _collage(images, work) if images else _landscape(prompt, work)
    after = _effect(prompt)(before) if images else before
    if mask is not None:
        change = ImageChops.invert(ImageOps.fit(mask.getchannel("A"), work))
        after = Image.composite(after, before, change)
    _caption(after, f"{label}: {' '.join(prompt.split())}")
    return after if work == size else after.resize(size)


def encode(image: Image.Image, image_format: str) -> bytes:
    """`image_format`: png, jpeg or webp. Fast rather than small."""
    out = io.BytesIO()
    options = {"png": {"compress_level": 1}, "jpeg": {"quality": 88}, "webp": {"method": 0}}
    image.save(out, image_format.upper(), **options[image_format])
    return out.getvalue()


@lru_cache(maxsize=8)
def fixed_image(image_format: str) -> bytes:
    """The image of the fast mode: 16 x 16, always the same."""
    return encode(Image.radial_gradient("L").resize((16, 16)).convert("RGB"), image_format)


@lru_cache(maxsize=2)
def large_image(size: int) -> bytes:
    """A PNG of about `size` bytes, all noise."""
    side = max(1, round((size / 3) ** 0.5))
    noise = Image.frombytes("RGB", (side, side), random.Random(0).randbytes(side * side * 3))  # noqa: S311
    out = io.BytesIO()
    noise.save(out, "PNG", compress_level=0)
    return out.getvalue()
