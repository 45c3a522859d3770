"""A row fitted to a model: what is sent, what is left out with a warning, what cannot be."""

import io
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from darkroom.calls import CallPlan, SourceImage
from darkroom.errors import Ineligible
from darkroom.images import codec
from darkroom.models import sizes
from darkroom.models.catalog import JPEG, MIB, MODELS, PNG, WEBP, Model, find
from darkroom.models.planner import plan_call
from darkroom.providers.registry import Provider
from darkroom.rows import RowRequest

GEMINI, OPENAI = Provider.GEMINI, Provider.OPENAI


@cache
def picture(
    width: int = 60, height: int = 40, kind: str = "JPEG", mode: str = "RGB", name: str = "a.jpg"
) -> SourceImage:
    image = Image.effect_noise((width, height), 90).convert(mode)
    if "A" in mode:
        image.putalpha(100)
    out = io.BytesIO()
    image.save(out, kind)
    return codec.open_source(out.getvalue(), name)


@cache
def a_mask(width: int = 60, height: int = 40) -> SourceImage:
    out = io.BytesIO()
    Image.new("RGBA", (width, height), (0, 0, 0, 0)).save(out, "PNG")
    return codec.open_mask(out.getvalue(), "mask.png")


def plan(
    model: str,
    *images: SourceImage,
    mask: SourceImage | None = None,
    provider: Provider | None = None,
    **wishes: Any,
) -> CallPlan:
    request = RowRequest.model_validate({"instruction": "make it red", **wishes})
    of = provider or (GEMINI if model.startswith("gemini") else OPENAI)
    return plan_call(request, images, mask, of, model)


def test_what_fits_is_sent_as_it_is_and_without_a_warning() -> None:
    photo = picture()
    made = plan("gemini-3-pro-image", photo, aspect_ratio="3:2", resolution="2K")
    assert made.images == (photo,)
    assert made.images[0].data is photo.data
    assert (made.prompt, made.aspect_ratio, made.resolution) == ("make it red", "3:2", "2K")
    assert (made.size, made.quality, made.n, made.warnings) == (None, None, 1, ())


def test_a_plain_row_leaves_everything_to_the_provider() -> None:
    made = plan("gpt-image-1.5", picture())
    assert (made.size, made.quality, made.background, made.output_format) == (None,) * 4
    assert made.warnings == ()


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("gemini-3-pro-image", 14),
        ("gemini-3.1-flash-image", 14),
        ("gemini-2.5-flash-image", 3),
        ("gpt-image-1.5", 16),
        ("gpt-image-2", 16),
    ],
)
def test_references_beyond_the_models_maximum_are_left_out_by_name(model: str, most: int) -> None:
    images = [picture(name=f"{i}.jpg") for i in range(most + 2)]
    made = plan(model, *images)
    assert made.images == tuple(images[:most])
    (warning,) = made.warnings
    assert f"{most}.jpg, {most + 1}.jpg" in warning
    assert plan(model, *images[:most]).warnings == ()


@pytest.mark.parametrize(
    "model", ["gemini-3-pro-image", "gemini-2.5-flash-image", "gemini-3.1-flash-image"]
)
def test_a_mask_makes_gemini_ineligible(model: str) -> None:
    with pytest.raises(Ineligible, match="mask"):
        plan(model, picture(), mask=a_mask())


def test_a_mask_without_a_picture_fits_nothing() -> None:
    with pytest.raises(Ineligible, match="picture"):
        plan("gpt-image-1.5", mask=a_mask())


def test_a_mask_of_the_pictures_size_is_sent_untouched() -> None:
    mask = a_mask()
    made = plan("gpt-image-1.5", picture(), mask=mask)
    assert made.mask is mask
    assert made.warnings == ()


def test_a_mask_of_another_size_is_scaled_with_a_warning() -> None:
    made = plan("gpt-image-1.5", picture(), mask=a_mask(120, 80))
    assert made.mask is not None
    assert (made.mask.width, made.mask.height) == (60, 40)
    assert "120x80" in made.warnings[0]


def test_a_model_that_only_makes_pictures_cannot_edit() -> None:
    with pytest.raises(Ineligible, match="cannot edit"):
        plan("dall-e-3", picture())
    assert plan("dall-e-3").images == ()


def test_dall_e_2_edits_one_square_png_where_a_mask_is_transparent() -> None:
    made = plan("dall-e-2", picture(), picture(name="b.jpg"), mask=a_mask())
    (image,) = made.images
    assert (image.mime, image.width, image.height) == (PNG, 60, 60)
    assert made.mask is not None
    assert (made.mask.width, made.mask.height) == (60, 60)
    assert any("bars" in warning for warning in made.warnings)
    assert any("b.jpg" in warning for warning in made.warnings)


def test_dall_e_2_without_a_mask_needs_a_transparent_picture() -> None:
    with pytest.raises(Ineligible, match="mask"):
        plan("dall-e-2", picture())
    assert plan("dall-e-2", picture(kind="PNG", mode="RGBA")).images
    assert plan("dall-e-2").images == ()


def test_an_instruction_too_long_for_the_model_is_not_cut() -> None:
    with pytest.raises(Ineligible, match="1001 characters"):
        plan("dall-e-2", instruction="x" * 1001)
    assert len(plan("gpt-image-1.5", instruction="x" * 1001).prompt) == 1001


def test_a_format_the_model_does_not_take_is_changed() -> None:
    webp = picture(50, 50, kind="WEBP")
    assert webp.mime == WEBP
    assert plan("gpt-image-1.5", webp).images == (webp,)
    assert plan("dall-e-2", webp, mask=a_mask(50, 50)).images[0].mime == PNG


def test_a_picture_too_large_for_gemini_is_made_smaller() -> None:
    noisy = SourceImage(*_noisy_png())
    made = plan("gemini-3-pro-image", noisy)
    assert len(noisy.data) > 7 * MIB
    assert len(made.images[0].data) <= 7 * MIB
    assert made.images[0].mime in {JPEG, WEBP, PNG}
    assert plan("gpt-image-1.5", noisy).images == (noisy,)


@cache
def _noisy_png() -> tuple[bytes, str, int, int, str]:
    side = 1850
    bands = [Image.effect_noise((side, side), 200) for _ in range(3)]
    out = io.BytesIO()
    Image.merge("RGB", bands).save(out, "PNG", compress_level=1)
    return out.getvalue(), PNG, side, side, "noisy.png"


def test_many_pictures_share_what_a_request_may_hold() -> None:
    noisy = SourceImage(*_noisy_png())
    small = picture()
    made = plan("gemini-3-pro-image", noisy, noisy, noisy, small)
    assert sum(len(image.data) for image in made.images) <= 14 * MIB
    assert made.images[3] is small


@pytest.mark.parametrize(
    ("wishes", "size"),
    [
        ({"aspect_ratio": "9:16"}, "1024x1536"),
        ({"aspect_ratio": "1:1", "resolution": "1K"}, "1024x1024"),
        ({"size": "1536x1024"}, "1536x1024"),
        ({"size": "1920x1080"}, "1536x1024"),
        ({"size": "auto"}, None),
        ({"resolution": "4K"}, None),
        ({}, None),
    ],
)
def test_sizes_of_a_model_with_fixed_ones(wishes: dict[str, Any], size: str | None) -> None:
    assert plan("gpt-image-1.5", **wishes).size == size


@pytest.mark.parametrize(
    ("wishes", "size"),
    [
        ({"aspect_ratio": "16:9", "resolution": "4K"}, "3840x2160"),
        ({"aspect_ratio": "1:1", "resolution": "2K"}, "2048x2048"),
        ({"aspect_ratio": "1:1"}, "1024x1024"),
        ({"size": "1536x864"}, "1536x864"),
        ({"size": "2000x1000"}, "2000x1008"),
    ],
)
def test_sizes_of_a_model_with_free_ones(wishes: dict[str, Any], size: str) -> None:
    found = plan("gpt-image-2", **wishes).size or ""
    width, height = sizes.parse_size(found) or (0, 0)
    assert sizes.is_free_size(width, height)
    if wishes.get("size") != "2000x1000":
        assert found == size
    else:
        assert width / height == pytest.approx(2, rel=0.02)


def test_a_resolution_alone_keeps_the_pictures_shape_where_sizes_are_free() -> None:
    size = plan("gpt-image-2", picture(60, 40), resolution="2K").size or ""
    width, height = sizes.parse_size(size) or (0, 0)
    assert width / height == pytest.approx(1.5, rel=0.02)
    assert width * height == pytest.approx(2048 * 2048, rel=0.16)


@pytest.mark.parametrize(
    ("wishes", "aspect_ratio", "resolution"),
    [
        ({"size": "1024x1536"}, "2:3", "1K"),
        ({"size": "3840x2160"}, "16:9", "2K"),
        ({"size": "2048x2048"}, "1:1", "2K"),
        ({"size": "1024x1024", "aspect_ratio": "9:16", "resolution": "4K"}, "9:16", "4K"),
        ({"size": "auto"}, None, None),
        ({"size": "auto", "aspect_ratio": "3:4"}, "3:4", None),
    ],
)
def test_a_size_becomes_geminis_shape_and_resolution(
    wishes: dict[str, Any], aspect_ratio: str | None, resolution: str | None
) -> None:
    made = plan("gemini-3-pro-image", **wishes)
    assert (made.aspect_ratio, made.resolution, made.size) == (aspect_ratio, resolution, None)


def test_what_the_model_cannot_give_is_said() -> None:
    assert "9:16 4K" in plan("gpt-image-1.5", aspect_ratio="9:16", resolution="4K").warnings[0]
    assert "4K" in plan("gemini-2.5-flash-image", resolution="4K").warnings[0]
    assert plan("gemini-2.5-flash-image", resolution="1K").warnings == ()
    assert "1920x1080" in plan("gemini-3-pro-image", size="1920x1080").warnings[0]
    assert plan("gpt-image-2", aspect_ratio="21:9", resolution="4K").warnings == ()
    assert "not like 1024x1536" in plan("gpt-image-1.5", size="large").warnings[0]


@pytest.mark.parametrize(
    ("model", "asked", "sent"),
    [
        ("gpt-image-1.5", "high", "high"),
        ("gpt-image-1.5", "HIGH", "high"),
        ("gpt-image-1.5", "auto", None),
        ("gpt-image-1.5", "hd", "high"),
        ("gpt-image-1.5", "standard", "medium"),
        ("gpt-image-1.5", "max", "high"),
        ("gpt-image-2.5-flare", "xhigh", "xhigh"),
        ("gpt-image-1.5", "superb", None),
        ("dall-e-3", "hd", "hd"),
        ("dall-e-3", "high", "hd"),
        ("dall-e-3", "low", "standard"),
        ("dall-e-2", "high", None),
        ("gemini-3-pro-image", "high", None),
    ],
)
def test_a_quality_is_the_models_nearest(model: str, asked: str, sent: str | None) -> None:
    made = plan(model, quality=asked)
    assert made.quality == sent
    said = [w for w in made.warnings if "quality" in w]
    assert bool(said) == (asked.lower() not in {sent, "auto"})


def test_the_shape_goes_into_the_prompt_where_the_model_takes_none() -> None:
    for ratio, word in (("9:16", "portrait"), ("1:1", "square"), ("16:9", "landscape")):
        prompt = plan("dall-e-2", aspect_ratio=ratio).prompt
        assert prompt.startswith("make it red\n\n")
        assert word in prompt
        assert ratio in prompt
    for model in ("gemini-3-pro-image", "gpt-image-1.5", "gpt-image-2", "dall-e-3"):
        assert plan(model, aspect_ratio="9:16").prompt == "make it red"


def test_n_is_cut_to_what_the_model_makes_in_one_call() -> None:
    assert plan("gpt-image-1.5", n=4).n == 4
    for model in ("gemini-3-pro-image", "dall-e-3"):
        made = plan(model, n=4)
        assert made.n == 1
        assert any("n was 4" in warning for warning in made.warnings)


@pytest.mark.parametrize(
    ("name", "output_format"),
    [("a.png", None), ("a.jpg", "jpeg"), ("dir/a.JPEG", "jpeg"), ("a.webp", "webp"), (None, None)],
)
def test_the_output_names_format_is_asked_for_where_it_can_be(
    name: str | None, output_format: str | None
) -> None:
    assert plan("gpt-image-1.5", output_name=name).output_format == output_format
    assert plan("gemini-3-pro-image", output_name=name).output_format is None
    assert plan("dall-e-3", output_name=name).output_format is None


def test_a_background_is_for_openais_newer_models() -> None:
    assert plan("gpt-image-1.5", background="transparent").background == "transparent"
    assert "background" in plan("gemini-3-pro-image", background="transparent").warnings[0]
    made = plan("gpt-image-1.5", background="transparent", output_name="a.jpg")
    assert (made.background, made.output_format) == (None, "jpeg")
    assert "JPEG" in made.warnings[0]


def test_an_unknown_model_runs_with_a_warning_and_without_a_price() -> None:
    made = plan("seedream-9", picture(), provider=OPENAI)
    assert made.model == "seedream-9"
    assert made.worst_cost_micro_usd is None
    assert "not in Darkroom's table" in made.warnings[0]


@pytest.mark.parametrize("name", ["gpt-image-1", "dall-e-2", "dall-e-3"])
def test_a_retired_model_runs_with_a_warning(name: str) -> None:
    assert any("shut down" in warning for warning in plan(name).warnings)


def test_a_name_that_was_shut_down_runs_with_a_warning_that_tells_the_new_one() -> None:
    (warning,) = plan("gemini-2.5-flash-image-preview").warnings
    assert "use gemini-2.5-flash-image" in warning
    assert plan("gemini-3-pro-image-preview").warnings == ()


def test_the_name_goes_out_as_it_was_given() -> None:
    assert plan("gemini-3-pro-image-preview").model == "gemini-3-pro-image-preview"
    assert plan("gpt-image-2-2026-04-21").model == "gpt-image-2-2026-04-21"


def test_the_worst_cost_grows_with_what_is_asked_for() -> None:
    def worst(model: str, *images: SourceImage, **wishes: Any) -> int:
        return plan(model, *images, **wishes).worst_cost_micro_usd or 0

    low = worst("gpt-image-1.5", quality="low", size="1024x1024")
    assert 9_000 <= low < worst("gpt-image-1.5", quality="high", size="1024x1024")
    assert worst("gpt-image-1.5", n=3) > 2 * worst("gpt-image-1.5")
    assert worst("gpt-image-1.5", picture()) > worst("gpt-image-1.5")
    assert worst("gemini-3-pro-image", resolution="4K") > worst("gemini-3-pro-image") > 134_400


every_model = st.sampled_from(MODELS)
wishes = st.fixed_dictionaries(
    {},
    optional={
        "aspect_ratio": st.sampled_from(["1:1", "2:3", "21:9", "9:16"]),
        "resolution": st.sampled_from(["1K", "2K", "4K"]),
        "size": st.sampled_from(["auto", "1024x1024", "1920x1080", "17x9000", "big"]),
        "quality": st.sampled_from(["auto", "low", "max", "hd", "standard", "?"]),
        "background": st.sampled_from(["transparent", "auto", "opaque"]),
        "n": st.integers(1, 10),
        "output_name": st.sampled_from(["a.png", "b.jpg", "c.webp"]),
    },
)


@settings(max_examples=300, deadline=None)
@given(every_model, wishes, st.integers(0, 3), st.booleans())
def test_whatever_a_row_asks_for_only_what_the_model_takes_is_sent(
    model: Model, asked: dict[str, Any], count: int, masked: bool
) -> None:
    images = [picture(name=f"{i}.jpg") for i in range(count)]
    mask = a_mask() if masked else None
    try:
        made = plan(model.name, *images, mask=mask, provider=model.provider, **asked)
    except Ineligible:
        return
    assert made.aspect_ratio in (None, *model.aspect_ratios)
    assert made.resolution in (None, *model.resolutions)
    assert made.quality in (None, *model.qualities)
    assert made.background in (None, *model.backgrounds)
    assert made.output_format in (None, *model.output_formats)
    assert 1 <= made.n <= model.max_n
    assert len(made.images) <= model.max_images
    assert all(image.mime in model.input_formats for image in made.images)
    assert (made.mask is not None) == masked
    parsed = sizes.parse_size(made.size or "")
    assert made.size in (None, *model.sizes) or (
        model.free_sizes and parsed is not None and sizes.is_free_size(*parsed)
    )
    assert made.worst_cost_micro_usd
    assert not (made.background == "transparent" and made.output_format == "jpeg")


def test_the_defaults_of_an_unknown_model_are_those_stated() -> None:
    model = find(OPENAI, "seedream-9")
    assert (model.edits, model.generates, model.masks, model.max_images) == (True, True, True, 16)
