"""Input images are checked and converted to what every model reads; output images are rendered."""

import contextlib
import io
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from darkroom.calls import SourceImage
from darkroom.errors import Reason, RowRejected, ServiceUnavailable
from darkroom.images import codec, process
from darkroom.images.codec import JPEG, PNG, WEBP
from darkroom.images.containers import add_thumbnail, embedded_thumbnail, strip_metadata
from tests.corpus.images import png_16_bit, rotated, saved

ALL = (PNG, JPEG, WEBP)
MAGIC_BYTES = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x40\0\0\0WEBPVP8 "]
MAGIC_BYTES += [b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x1cftypavif"]


def photo(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue, so that a rotation is visible."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image.convert(mode)


def opened(source: SourceImage) -> Image.Image:
    image = Image.open(io.BytesIO(source.data))
    image.load()
    assert Image.MIME[image.format or ""] == source.mime
    assert image.size == (source.width, source.height)
    return image


def source_of(image: Image.Image, kind: str, **options: Any) -> SourceImage:
    return codec.open_source(saved(image, kind, **options), "a")


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Compresses badly; half transparent where the mode has transparency."""
    image = Image.effect_noise((width, height), 120).convert(mode)
    if "A" in mode:
        image.putalpha(128)
    return image


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_bytes_that_already_fit_are_passed_on_unchanged(kind: str, mode: str) -> None:
    data = saved(photo(mode=mode), kind)
    source = codec.open_source(data, "a.bin")
    assert source.data is data
    assert source.mime == f"image/{kind.lower()}"
    assert (source.width, source.height) == (64, 48)


def test_exif_rotation_is_applied() -> None:
    source = codec.open_source(rotated(photo(), 6), "phone.jpg")  # by 90 degrees
    image = opened(source)
    assert image.size == (48, 64)
    assert source.mime == JPEG
    red, _, blue = image.convert("RGB").getpixel((24, 4))  # type: ignore[misc]
    assert red > 200
    assert blue < 60
    assert image.getexif().get(0x0112, 1) == 1


def test_cmyk_becomes_rgb_of_about_the_same_colour() -> None:
    source = source_of(photo(mode="CMYK"), "JPEG")
    image = opened(source)
    assert image.mode == "RGB"
    red, green, blue = image.getpixel((8, 8))  # type: ignore[misc]
    assert red > 180
    assert max(green, blue) < 90


@pytest.mark.parametrize(
    "profile",
    [
        b"not a colour profile",
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),  # not of CMYK
    ],
    ids=["broken", "of another colour space"],
)
def test_unusable_colour_profile_is_ignored(profile: bytes) -> None:
    source = source_of(photo(mode="CMYK"), "JPEG", icc_profile=profile)
    assert opened(source).mode == "RGB"


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    image = opened(source_of(Image.new("I;16", (8, 8), 32768), "PNG"))
    assert image.mode in {"RGB", "L"}
    value = image.convert("L").getpixel((0, 0))
    assert value == pytest.approx(127, abs=2)


def test_16_bit_colour_png_is_rewritten_with_8_bits() -> None:
    data = png_16_bit(4, 3)
    source = codec.open_source(data, "scan.png")
    assert source.data != data
    assert source.data[24] == 8  # bits per channel, in the IHDR chunk
    assert opened(source).size == (4, 3)


def test_palette_becomes_rgb_and_keeps_its_transparency() -> None:
    palette = photo().convert("P")
    assert opened(source_of(palette, "PNG")).mode == "RGB"
    image = opened(source_of(palette, "PNG", transparency=palette.getpixel((0, 0))))
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0))[3] == 0  # type: ignore[index]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_is_used(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "lime")
    image = opened(source_of(first, kind, save_all=True, append_images=[second]))
    assert getattr(image, "n_frames", 1) == 1
    red, green, _ = image.convert("RGB").getpixel((4, 4))  # type: ignore[misc]
    assert red > 200
    assert green < 50


def test_too_many_bytes_are_rejected() -> None:
    with pytest.raises(RowRejected, match=r"a\.png has 101 MiB: at most 100 are read"):
        codec.open_source(saved(photo(), "PNG") + bytes(101 << 20), "a.png")


@pytest.mark.parametrize(("side", "scale"), [(9_000, 2), (18_000, 4)])
def test_very_large_jpeg_is_read_at_a_fraction_of_its_size(side: int, scale: int) -> None:
    data = saved(Image.new("L", (side, side), 200), "JPEG")
    source = codec.open_source(data, "large.jpg")
    assert (source.width, source.height) == (side // scale, side // scale)
    codec.thumbnail(data, 320)


@given(st.binary(max_size=100), st.data())
def test_a_thumbnail_is_found_in_a_webp_whatever_follows_and_in_nothing_else(
    body: bytes, drawn: st.DataObject
) -> None:
    webp = add_thumbnail(saved(photo(), "WEBP"), body)
    assert embedded_thumbnail(webp + drawn.draw(st.binary(max_size=20))) == body
    cut = drawn.draw(st.integers(0, len(webp) - len(body) - len(body) % 2))
    assert embedded_thumbnail(webp[:cut]) in (None, b"")
    assert embedded_thumbnail(body) is None
    strip_metadata(webp)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about broken metadata
@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(MAGIC_BYTES))
def test_arbitrary_bytes_raise_only_rejections(body: bytes, magic: bytes) -> None:
    for read in (codec.open_source, codec.open_mask):
        with contextlib.suppress(RowRejected):
            read(magic + body, "x")
    for use in (codec.verify, partial(codec.thumbnail, longest_side=320)):
        with contextlib.suppress(ValueError):
            use(magic + body)


def test_mask_with_transparency_is_passed_on_unchanged() -> None:
    data = saved(photo(mode="RGBA"), "PNG")
    assert codec.open_mask(data, "m.png").data is data


def test_black_and_white_mask_becomes_transparent_where_it_is_white() -> None:
    mask = Image.new("L", (10, 10), 0)
    mask.paste(255, (5, 0, 10, 10))
    for kind in ("PNG", "JPEG"):
        source = codec.open_mask(saved(mask, kind), "m")
        assert source.mime == PNG
        alpha = opened(source).getchannel("A")
        assert alpha.getpixel((0, 0)) > 250  # type: ignore[operator]
        assert alpha.getpixel((9, 9)) < 5  # type: ignore[operator]


def test_mask_is_resized_to_its_image() -> None:
    source = codec.open_mask(saved(photo(mode="RGBA"), "PNG"), "m")
    assert opened(codec.resize_mask(source, 30, 20)).size == (30, 20)


def test_image_that_fits_is_unchanged() -> None:
    source = source_of(photo(), "PNG")
    assert codec.fit(source, ALL, 10**6) is source


def test_unsupported_format_is_converted_at_full_size() -> None:
    fitted = codec.fit(source_of(photo(), "WEBP"), (PNG,), 10**6)
    assert (fitted.mime, fitted.width, fitted.height) == (PNG, 64, 48)


def test_quality_is_reduced_before_size() -> None:
    source = source_of(noise(300, 300), "PNG")
    fitted = codec.fit(source, ALL, len(source.data) - 1)
    assert (fitted.width, fitted.height) == (300, 300)
    assert fitted.mime != PNG
    source = source_of(noise(400, 300), "JPEG", quality=100)
    fitted = codec.fit(source, ALL, len(source.data) * 6 // 10)
    assert (fitted.mime, fitted.width, fitted.height) == (JPEG, 400, 300)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
@pytest.mark.parametrize("max_bytes", [60_000, 20_000, 5_000])
def test_reduced_image_is_small_enough_and_keeps_its_shape(mode: str, max_bytes: int) -> None:
    source = source_of(noise(400, 300, mode), "PNG")
    fitted = codec.fit(source, ALL, max_bytes)
    assert len(fitted.data) <= max_bytes
    assert fitted.width / fitted.height == pytest.approx(4 / 3, rel=0.05)
    assert ("A" in opened(fitted).getbands()) == ("A" in mode)


def test_image_that_cannot_be_reduced_enough_is_a_bad_image() -> None:
    with pytest.raises(RowRejected) as caught:
        codec.fit(source_of(noise(400, 300), "PNG"), ALL, 10)
    assert caught.value.reason is Reason.BAD_IMAGE


def test_image_is_padded_to_a_square_with_transparent_bars() -> None:
    source = source_of(photo(), "PNG")
    squared = codec.square(source)
    image = opened(squared)
    assert image.size == (64, 64)
    assert image.getpixel((5, 1))[3] == 0  # type: ignore[index]
    assert image.getpixel((5, 32))[3] == 255  # type: ignore[index]
    assert codec.square(squared) is squared
    assert codec.has_transparency(squared)
    assert not codec.has_transparency(source)


@pytest.mark.parametrize(
    ("extension", "kind", "mime"),
    [("png", "PNG", PNG), (".jpg", "JPEG", JPEG), ("JPEG", "JPEG", JPEG), (".WebP", "WEBP", WEBP)],
)
@pytest.mark.parametrize("given_kind", ["PNG", "JPEG", "WEBP"])
def test_output_has_the_format_of_its_extension(
    extension: str, kind: str, mime: str, given_kind: str
) -> None:
    data = saved(photo(), given_kind)
    rendered, content_type = codec.render(data, extension)
    assert content_type == mime
    assert Image.open(io.BytesIO(rendered)).format == kind
    assert (rendered is data) == (kind == given_kind)


def test_an_answer_that_nothing_can_check_is_not_thrown_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was paid for."""
    monkeypatch.setattr(process, "_START", ["/no/such/python"])
    codec._process().close()
    codec.verify(saved(photo(), "PNG"))
    with pytest.raises(ServiceUnavailable):
        codec.open_source(saved(photo(), "PNG"), "a")


def test_transparency_becomes_white_in_a_jpeg() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    rendered, _ = codec.render(saved(clear, "PNG"), "jpg")
    assert Image.open(io.BytesIO(rendered)).getpixel((0, 0)) == (255, 255, 255)


def test_unknown_extension_raises_a_value_error() -> None:
    with pytest.raises(ValueError, match="gif"):
        codec.render(saved(photo(), "PNG"), "gif")


def test_output_that_cannot_be_converted_raises_a_value_error() -> None:
    with pytest.raises(ValueError, match="damaged"):
        codec.render(b"\x89PNG\r\n\x1a\n no", "jpg")


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "JPEG"), ("RGBA", "PNG"), ("P", "GIF"), ("CMYK", "JPEG")]
)
@pytest.mark.parametrize(("longest_side", "max_bytes"), [(320, 20_000), (1_280, 150_000)])
def test_thumbnail_is_a_small_webp_of_the_same_shape(
    mode: str, kind: str, longest_side: int, max_bytes: int
) -> None:
    thumb = codec.thumbnail(saved(photo(3000, 1500, mode), kind), longest_side)
    image = Image.open(io.BytesIO(thumb))
    assert image.format == "WEBP"
    assert image.size == (longest_side, longest_side // 2)
    assert len(thumb) < max_bytes


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "JPEG"), ("RGBA", "PNG"), ("P", "GIF"), ("CMYK", "JPEG")]
)
@pytest.mark.parametrize("size", [(3000, 1500), (101, 51)])
def test_preview_is_a_webp_that_contains_a_smaller_one(
    mode: str, kind: str, size: tuple[int, int]
) -> None:
    image = photo(*size, mode)
    if mode == "RGBA":
        image.putalpha(128)
    data = saved(image, kind)
    made = codec.preview(data, 1_280, 320)
    thumb = embedded_thumbnail(made)
    assert thumb is not None
    with Image.open(io.BytesIO(made)) as preview, Image.open(io.BytesIO(thumb)) as small:
        assert (preview.format, small.format) == ("WEBP", "WEBP")
        assert preview.size == (min(size[0], 1_280), min(size[1], 640))
        assert small.size == (min(size[0], 320), min(size[1], 160))
        assert ("A" in preview.getbands()) == ("A" in small.getbands()) == (mode == "RGBA")
        alone = Image.open(io.BytesIO(codec.thumbnail(data, 1_280)))
        assert preview.tobytes() == alone.tobytes()  # decoders ignore the other one


def test_thumbnail_is_upright_and_never_enlarged() -> None:
    for data, size in (
        (rotated(photo(600, 300), 8), (160, 320)),
        (saved(photo(), "PNG"), (64, 48)),
    ):
        assert Image.open(io.BytesIO(codec.thumbnail(data, 320))).size == size
