"""A row is fitted to a model: what is sent, what is left out with a warning, what is rejected."""

from datetime import date
from functools import cache
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from PIL import Image

from darkroom.calls import CallPlan, SourceImage
from darkroom.endpoints import Endpoint
from darkroom.errors import Ineligible
from darkroom.images import codec
from darkroom.images.codec import MIB, PNG, WEBP
from darkroom.models import sizes
from darkroom.models.catalog import MODELS, Model
from darkroom.models.planner import plan_call
from darkroom.providers.registry import Provider, provider_of
from darkroom.rows import RowRequest
from tests.corpus.images import saved

GEMINI, OPENAI = Provider.GEMINI, Provider.OPENAI
PRO = "gemini-3-pro-image"
GPT = "gpt-image-1.5"
TODAY = date(2026, 6, 1)
TALL_4K = {"aspect_ratio": "9:16", "resolution": "4K"}


@cache
def photo(
    width: int = 60, height: int = 40, kind: str = "JPEG", mode: str = "RGB", name: str = "a.jpg"
) -> SourceImage:
    noise = Image.effect_noise((width, height), 90).convert(mode)
    if "A" in mode:
        noise.putalpha(100)
    return codec.open_source(saved(noise, kind), name)


@cache
def full_mask(width: int = 60, height: int = 40) -> SourceImage:
    mask = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    return codec.open_mask(saved(mask, "PNG"), "mask.png")


def endpoint(model: str, **fields: Any) -> Endpoint:
    provider = provider_of(model) or OPENAI
    return Endpoint.model_validate(
        {"name": "e", "provider": provider, "api_keys": ["k"], "model": model, **fields}
    )


def plan(
    at: str | Endpoint,
    *images: SourceImage,
    mask: SourceImage | None = None,
    today: date = TODAY,
    batch: bool = False,
    **settings: Any,
) -> CallPlan:
    """`at` is an endpoint, or the model of one."""
    request = RowRequest.model_validate({"instruction": "make it red", **settings})
    of = endpoint(at) if isinstance(at, str) else at
    return plan_call(request, images, mask, of, today, batch=batch)


def test_request_that_fits_is_sent_unchanged_without_a_warning() -> None:
    image = photo()
    planned = plan(PRO, image, aspect_ratio="3:2", resolution="2K")
    assert planned.images == (image,)
    assert planned.images[0].data is image.data
    assert planned.prompt == "make it red"
    assert (planned.aspect_ratio, planned.resolution, planned.size) == ("3:2", "2K", None)
    assert (planned.quality, planned.n, planned.warnings) == (None, 1, ())
    planned = plan(GPT, image)  # without settings, which are the provider's then
    assert (planned.size, planned.quality, planned.output_format) == (None,) * 3
    assert planned.settings == {}
    assert planned.warnings == ()


@pytest.mark.parametrize(
    ("model", "maximum"),
    [
        (PRO, 14),
        ("gemini-3.1-flash-image", 14),
        ("gemini-2.5-flash-image", 3),
        (GPT, 16),
        ("gpt-image-2", 16),
    ],
)
def test_images_beyond_the_models_maximum_are_left_out_and_named(model: str, maximum: int) -> None:
    images = [photo(name=f"{i}.jpg") for i in range(maximum + 2)]
    planned = plan(model, *images)
    assert planned.images == tuple(images[:maximum])
    (warning,) = planned.warnings
    assert f"{maximum}.jpg, {maximum + 1}.jpg" in warning
    assert plan(model, *images[:maximum]).warnings == ()


@pytest.mark.parametrize(
    ("model", "images", "mask", "settings", "reason"),
    [
        (PRO, 1, True, {}, "mask"),
        ("gemini-2.5-flash-image", 1, True, {}, "mask"),
        ("gemini-3.1-flash-image", 1, True, {}, "mask"),
        (GPT, 0, True, {}, "needs an image"),
        ("dall-e-3", 1, False, {}, "cannot edit"),
        ("dall-e-2", 1, False, {}, "mask"),
        ("dall-e-2", 0, False, {"instruction": "x" * 1001}, "1001 characters"),
    ],
)
def test_what_the_model_cannot_do_makes_it_ineligible(
    model: str, images: int, mask: bool, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Ineligible, match=reason):
        plan(model, *[photo()] * images, mask=full_mask() if mask else None, **settings)


def test_row_that_the_model_supports_is_eligible() -> None:
    assert plan("dall-e-3").images == ()
    assert plan("dall-e-2").images == ()
    assert plan("dall-e-2", photo(kind="PNG", mode="RGBA")).images
    assert len(plan(GPT, instruction="x" * 1001).prompt) == 1001


def test_mask_of_another_size_is_scaled_with_a_warning() -> None:
    planned = plan(GPT, photo(), mask=full_mask())
    assert planned.mask is full_mask()
    assert planned.warnings == ()
    planned = plan(GPT, photo(), mask=full_mask(120, 80))
    assert planned.mask is not None
    assert (planned.mask.width, planned.mask.height) == (60, 40)
    assert "120x80" in planned.warnings[0]


def test_dall_e_2_edits_one_square_png_where_a_mask_is_transparent() -> None:
    planned = plan("dall-e-2", photo(), photo(name="b.jpg"), mask=full_mask())
    (image,) = planned.images
    assert (image.mime, image.width, image.height) == (PNG, 60, 60)
    assert planned.mask is not None
    assert (planned.mask.width, planned.mask.height) == (60, 60)
    assert any("bars" in warning for warning in planned.warnings)
    assert any("b.jpg" in warning for warning in planned.warnings)


def test_unsupported_format_is_converted() -> None:
    webp = photo(50, 50, kind="WEBP")
    assert webp.mime == WEBP
    assert plan(GPT, webp).images == (webp,)
    assert plan("dall-e-2", webp, mask=full_mask(50, 50)).images[0].mime == PNG


@cache
def noise(side: int) -> SourceImage:
    """A PNG that does not compress: 3 bytes a pixel."""
    bands = [Image.effect_noise((side, side), 200) for _ in range(3)]
    data = saved(Image.merge("RGB", bands), "PNG", compress_level=1)
    return SourceImage(data, PNG, side, side, "noisy.png")


def test_a_large_image_is_sent_to_gemini_as_it_is() -> None:
    """A request has 100 MB since January 2026, and an image no limit of its own."""
    assert len(noise(1850).data) > 7 * MIB
    planned = plan(PRO, noise(1850), noise(1850))
    assert planned.images == (noise(1850),) * 2
    assert planned.warnings == ()


def test_an_image_of_more_than_7_mb_is_reduced_for_the_enterprise_platform_only() -> None:
    enterprise = endpoint(PRO, project="p", location="global")
    (image,) = plan(enterprise, noise(1850)).images
    assert len(image.data) <= 7_000_000
    flex = endpoint(PRO, project="p", location="global", service_tier="flex")
    planned = plan(flex, *[noise(1850)] * 3, photo())  # which share the limit of a request
    assert sum(len(image.data) for image in planned.images) <= 14_000_000
    assert planned.images[3] is photo()


@pytest.mark.parametrize(
    ("model", "settings", "sent"),
    [
        # The nearest of its fixed sizes.
        (GPT, {"aspect_ratio": "9:16"}, ("1024x1536", None, None)),
        (GPT, {"aspect_ratio": "1:1", "resolution": "1K"}, ("1024x1024", None, None)),
        (GPT, {"size": "1536x1024"}, ("1536x1024", None, None)),
        (GPT, {"size": "1920x1080"}, ("1536x1024", None, None)),
        (GPT, {"size": "auto"}, (None, None, None)),
        (GPT, {"resolution": "4K"}, (None, None, None)),
        (GPT, {}, (None, None, None)),
        # A free size.
        ("gpt-image-2", {"aspect_ratio": "16:9", "resolution": "4K"}, ("3840x2160", None, None)),
        ("gpt-image-2", {"aspect_ratio": "1:1", "resolution": "2K"}, ("2048x2048", None, None)),
        ("gpt-image-2", {"aspect_ratio": "1:1"}, ("1024x1024", None, None)),
        ("gpt-image-2", {"size": "1536x864"}, ("1536x864", None, None)),
        # An aspect ratio and a resolution.
        (PRO, {"size": "1024x1536"}, (None, "2:3", "1K")),
        (PRO, {"size": "3840x2160"}, (None, "16:9", "2K")),
        (PRO, {"size": "2048x2048"}, (None, "1:1", "2K")),
        (PRO, {"size": "1024x1024"} | TALL_4K, (None, "9:16", "4K")),
        (PRO, {"size": "auto"}, (None, None, None)),
        (PRO, {"size": "auto", "aspect_ratio": "3:4"}, (None, "3:4", None)),
    ],
)
def test_shape_is_sent_as_the_model_accepts_it(
    model: str, settings: dict[str, Any], sent: tuple[str | None, str | None, str | None]
) -> None:
    planned = plan(model, **settings)
    assert (planned.size, planned.aspect_ratio, planned.resolution) == sent
    if model == "gpt-image-2":
        assert sizes.is_free_size(*sizes.parse_size(planned.size or "") or (0, 0))


@pytest.mark.parametrize(
    ("settings", "ratio", "area"),
    [({"size": "2000x1000"}, 2, 2000 * 1000), ({"resolution": "2K"}, 1.5, 2048 * 2048)],
)
def test_a_free_size_keeps_the_shape(settings: dict[str, Any], ratio: float, area: int) -> None:
    planned = plan("gpt-image-2", photo(60, 40), **settings)
    width, height = sizes.parse_size(planned.size or "") or (0, 0)
    assert sizes.is_free_size(width, height)
    assert width / height == pytest.approx(ratio, rel=0.02)
    assert width * height == pytest.approx(area, rel=0.16)


@pytest.mark.parametrize(
    ("model", "settings", "warning"),
    [
        (GPT, TALL_4K, "9:16 4K"),
        ("gemini-2.5-flash-image", {"resolution": "4K"}, "4K"),
        ("gemini-2.5-flash-image", {"resolution": "1K"}, None),
        (PRO, {"size": "1920x1080"}, "1920x1080"),
        ("gpt-image-2", {"aspect_ratio": "21:9", "resolution": "4K"}, None),
        ("gemini-nano-banana-2.1", {"aspect_ratio": "1:8"}, None),
        (PRO, {"aspect_ratio": "1:8"}, "no aspect ratio 1:8: used 9:16 instead"),
        (PRO, {"resolution": "512"}, "512"),
        (GPT, {"size": "large"}, "'large' is not a valid size (like 1024x1536)"),
    ],
)
def test_unsupported_settings_are_warned_about(
    model: str, settings: dict[str, Any], warning: str | None
) -> None:
    warnings = plan(model, **settings).warnings
    assert len(warnings) == (0 if warning is None else 1)
    assert warning is None or warning in warnings[0]


@pytest.mark.parametrize(
    ("model", "requested", "sent"),
    [
        (GPT, "high", "high"),
        (GPT, "auto", None),
        (GPT, "hd", "high"),
        (GPT, "standard", "medium"),
        (GPT, "max", "high"),
        ("gpt-image-2.5-flare", "xhigh", "xhigh"),
        ("dall-e-3", "hd", "hd"),
        ("dall-e-3", "high", "hd"),
        ("dall-e-3", "low", "standard"),
        ("dall-e-2", "high", None),
        (PRO, "high", None),
    ],
)
def test_quality_becomes_the_nearest_supported(
    model: str, requested: str, sent: str | None
) -> None:
    planned = plan(model, quality=requested)
    assert planned.quality == sent
    warned = any("quality" in warning for warning in planned.warnings)
    assert warned == (requested.lower() not in {sent, "auto"})


def test_shape_goes_into_the_prompt_where_the_model_has_no_setting_for_it() -> None:
    for ratio, word in (("9:16", "portrait"), ("1:1", "square"), ("16:9", "landscape")):
        prompt = plan("dall-e-2", aspect_ratio=ratio).prompt
        assert prompt.startswith("make it red\n\n")
        assert word in prompt
        assert ratio in prompt
    assert "portrait, with an aspect ratio of 512x768" in plan("dall-e-2", size="512 X 768").prompt
    for model in (PRO, GPT, "gpt-image-2", "dall-e-3"):
        assert plan(model, aspect_ratio="9:16").prompt == "make it red"


def test_n_is_reduced_to_what_the_model_makes_per_call() -> None:
    assert plan(GPT, n=4).n == 4
    for model in (PRO, "dall-e-3"):
        planned = plan(model, n=4)
        assert planned.n == 1
        assert any("n was 4" in warning for warning in planned.warnings)


@pytest.mark.parametrize(
    ("name", "output_format"),
    [("a.png", None), ("a.jpg", "jpeg"), ("dir/a.JPEG", "jpeg"), ("a.webp", "webp"), (None, None)],
)
def test_output_names_format_is_requested(name: str | None, output_format: str | None) -> None:
    assert plan(GPT, output_name=name).output_format == output_format
    assert plan(PRO, output_name=name).output_format is None
    assert plan("dall-e-3", output_name=name).output_format is None


@pytest.mark.parametrize(
    ("model", "edits", "setting", "warning"),
    [
        (GPT, True, {"background": "transparent"}, None),
        (PRO, True, {"background": "transparent"}, "has no background setting"),
        (GPT, True, {"input_fidelity": "high"}, None),
        (GPT, False, {"input_fidelity": "high"}, "does not apply to an image that is generated"),
        ("gpt-image-1-mini", True, {"input_fidelity": "high"}, "accepts low as input_fidelity"),
        ("gpt-image-2", True, {"input_fidelity": "high"}, "has no input_fidelity setting"),
        (GPT, False, {"moderation": "low"}, None),
        (GPT, True, {"moderation": "low"}, "does not apply to an image that is edited"),
        (GPT, True, {"output_compression": 0}, "a PNG has no output_compression"),
        (PRO, False, {"moderation": "low"}, "has no moderation setting"),
        (PRO, True, {"seed": 0}, None),
        (GPT, True, {"seed": 0}, "has no seed setting"),
        (PRO, True, {"thinking_level": "high"}, "has no thinking_level setting"),
        ("gemini-3.1-flash-image", True, {"thinking_level": "high"}, None),
        ("gemini-nano-banana-2.1", True, {"thinking_level": "medium"}, None),
        ("gemini-nano-banana-2.1", True, {"thinking_level": "low"}, "accepts minimal, medium, hi"),
    ],
)
def test_a_setting_is_sent_where_the_model_has_it_and_else_left_out_with_a_warning(
    model: str, edits: bool, setting: dict[str, Any], warning: str | None
) -> None:
    planned = plan(model, *[photo()] * edits, **setting)
    assert planned.settings == ({} if warning else setting)
    assert len(planned.warnings) == (0 if warning is None else 1)
    assert warning is None or warning in planned.warnings[0]


def test_a_setting_that_the_output_format_has_not_is_left_out() -> None:
    planned = plan(GPT, background="transparent", output_name="a.jpg")
    assert (planned.settings, planned.output_format) == ({}, "jpeg")
    assert "JPEG" in planned.warnings[0]
    for name in ("a.jpg", "a.webp"):
        planned = plan(GPT, output_compression=80, output_name=name)
        assert planned.settings == {"output_compression": 80}


def test_an_endpoints_quality_is_the_default_of_its_rows() -> None:
    fallback = endpoint("gpt-image-2.6-sunburst", quality="high")
    assert plan(fallback).quality == "high"
    assert plan(fallback, quality="low").quality == "low"
    assert plan(fallback, quality="auto").quality is None
    assert plan(endpoint(PRO, quality="high")).warnings == ()


# --- the end of a model -------------------------------------------------------------------------

FLASH = "gemini-3.1-flash-image"
AZURE = {"base_url": "https://x.openai.azure.com", "api_version": "1"}


@pytest.mark.parametrize(
    ("model", "day", "fields", "notice"),
    [
        (GPT, "2026-10-01", {}, None),
        (GPT, "2026-10-02", {}, "will be shut down by OpenAI on 2026-12-01: use gpt-image-2.6-su"),
        (GPT, "2026-12-01", {}, "was shut down by OpenAI on 2026-12-01: use gpt-image-2.6-sunbur"),
        (GPT, "2026-12-01", AZURE, "unless another service than OpenAI's is behind e"),
        ("gpt-image-1.5-2025-12-16", "2026-12-01", {}, "gpt-image-1.5 was shut down"),
        ("dall-e-3", "2026-11-21", {}, "dall-e-3 was shut down by OpenAI on 2026-05-12"),
        ("gpt-image-2.6-sunburst", "2026-12-01", {}, None),
        ("gemini-2.5-flash-image", "2026-11-21", {}, "may have been shut down by Google from"),
        ("gemini-3-pro-image-preview", "2026-06-25", {}, "it is sent as gemini-3-pro-image"),
        (
            f"{FLASH}-preview",
            "2026-11-21",
            {},
            f"{FLASH}, which may have been shut down",
        ),
        (f"{FLASH}-preview", "2026-11-21", {}, "on: use gemini-nano-banana-2.1"),
        ("my-deployment", "2026-12-01", {"model_is": GPT}, "gpt-image-1.5 was shut down"),
    ],
)
def test_the_end_of_a_model_warns_60_days_ahead_and_names_its_successor(
    model: str, day: str, fields: dict[str, Any], notice: str | None
) -> None:
    warnings = plan(endpoint(model, **fields), today=date.fromisoformat(day)).warnings
    assert len(warnings) == (0 if notice is None else 1)
    assert notice is None or notice in warnings[0]
    assert all(len(warning) <= 200 for warning in warnings)  # what the ledger keeps


def test_a_retired_preview_name_is_sent_as_the_released_models() -> None:
    planned = plan("gemini-3.1-flash-image-preview", photo(), today=date(2026, 7, 1))
    assert planned.model == "gemini-3.1-flash-image"
    assert not planned.model_of_row
    planned = plan(PRO, photo(), model="models/gemini-3-pro-image-preview")
    assert (planned.model, planned.model_of_row) == ("gemini-3-pro-image", True)
    assert not plan(PRO, photo(), model=PRO).model_of_row


# --- an endpoint's own names and prices ---------------------------------------------------------


def test_a_deployment_with_a_free_name_is_planned_as_the_model_behind_it() -> None:
    azure = endpoint("team-images", model_is="gpt-image-2", **AZURE)
    planned = plan(azure, size="2048x2048", model="gpt-image-2")
    assert (planned.model, planned.size, planned.warnings) == ("team-images", "2048x2048", ())
    assert (
        planned.worst_cost_micro_usd == plan("gpt-image-2", size="2048x2048").worst_cost_micro_usd
    )
    (warning,) = plan(azure, model="gpt-image-2.6-flare").warnings
    assert "is not gpt-image-2, the only one there: e used team-images" in warning
    assert plan(azure, model="gemini-3-pro-image").model == "team-images"


def test_an_endpoints_own_prices_replace_those_of_the_catalogue() -> None:
    listed = plan(PRO).worst_cost_micro_usd or 0
    own = plan(endpoint(PRO, prices={"image": 0.05}), instruction="x" * 1000)
    assert own.worst_cost_micro_usd == 50_000  # an image, whatever the call's tokens
    doubled = {"text_in": 4, "image_in": 4, "image_out": 240, "text_out": 24}
    assert plan(endpoint(PRO, prices=doubled)).worst_cost_micro_usd == pytest.approx(2 * listed, 2)
    unknown = plan(endpoint("flux-9", prices={"image": 0.01}))
    assert unknown.worst_cost_micro_usd == 10_000
    assert "price" not in unknown.warnings[0]


def test_flex_costs_half() -> None:
    listed = plan(PRO, photo(), resolution="4K").worst_cost_micro_usd or 0
    flex = plan(endpoint(PRO, service_tier="flex"), photo(), resolution="4K")
    assert flex.worst_cost_micro_usd == pytest.approx(listed / 2, abs=1)


@pytest.mark.parametrize(
    ("at", "factor"),
    [
        (PRO, 0.5),
        ("gpt-image-2", 0.5),
        (endpoint(PRO, service_tier="flex"), 0.5),  # not half of half
        (endpoint(PRO, prices={"image": 0.1}), 0.5),
        ("dall-e-2", 1),  # has no batches
    ],
)
def test_a_batch_costs_what_the_catalogue_says(at: str | Endpoint, factor: float) -> None:
    live = plan(
        endpoint(at) if isinstance(at, str) else at.model_copy(update={"service_tier": None})
    )
    batched = plan(at, batch=True)
    assert batched.worst_cost_micro_usd == pytest.approx(
        (live.worst_cost_micro_usd or 0) * factor, abs=1
    )


@pytest.mark.parametrize("name", ["models/gemini-3-pro-image", "gpt-image-2-2026-04-21", "flux-9"])
def test_model_name_is_sent_as_given_and_an_unknown_one_has_no_price(name: str) -> None:
    planned = plan(name, photo())
    assert planned.model == name
    if name == "flux-9":
        assert planned.worst_cost_micro_usd is None
        assert "not in Darkroom's model catalogue" in planned.warnings[0]


def test_worst_cost_grows_with_the_request() -> None:
    def worst(model: str, *images: SourceImage, **settings: Any) -> int:
        return plan(model, *images, **settings).worst_cost_micro_usd or 0

    low = worst(GPT, quality="low", size="1024x1024")
    assert 9_000 <= low < worst(GPT, quality="high", size="1024x1024")
    assert worst(GPT, n=3) > 2 * worst(GPT)
    assert worst(GPT, photo()) > worst(GPT)
    assert worst(PRO, resolution="4K") > worst(PRO) > 134_400


every_model = st.sampled_from(MODELS)
settings = st.fixed_dictionaries(
    {},
    optional={
        "aspect_ratio": st.sampled_from(["1:1", "2:3", "21:9", "9:16", "1:8"]),
        "resolution": st.sampled_from(["512", "1K", "2K", "4K"]),
        "size": st.sampled_from(["auto", "1024x1024", "1920x1080", "17x9000", "big"]),
        "quality": st.sampled_from(["auto", "low", "max", "hd", "standard"]),
        "background": st.sampled_from(["transparent", "auto", "opaque"]),
        "input_fidelity": st.sampled_from(["low", "high"]),
        "moderation": st.sampled_from(["low", "auto"]),
        "output_compression": st.integers(0, 100),
        "thinking_level": st.sampled_from(["minimal", "low", "medium", "high"]),
        "seed": st.integers(0, 2**31 - 1),
        "n": st.integers(1, 10),
        "output_name": st.sampled_from(["a.png", "b.jpg", "c.webp"]),
    },
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(every_model, settings, st.integers(0, 3), st.booleans())
def test_only_what_the_model_supports_is_sent_for_any_request(
    model: Model, requested: dict[str, Any], count: int, masked: bool
) -> None:
    images = [photo(name=f"{i}.jpg") for i in range(count)]
    mask = full_mask() if masked else None
    try:
        planned = plan(model.name, *images, mask=mask, **requested)
    except Ineligible:
        return
    assert planned.aspect_ratio in (None, *model.aspect_ratios)
    assert planned.resolution in (None, *model.resolutions)
    assert planned.quality in (None, *model.qualities)
    assert all(value in model.settings[name] for name, value in planned.settings.items())
    assert planned.output_format in (None, *model.output_formats)
    assert 1 <= planned.n <= model.max_n
    assert len(planned.images) <= model.max_images
    assert all(image.mime in model.input_formats for image in planned.images)
    assert (planned.mask is not None) == masked
    parsed = sizes.parse_size(planned.size or "")
    assert planned.size in (None, *model.sizes) or (
        model.free_sizes and parsed is not None and sizes.is_free_size(*parsed)
    )
    assert planned.worst_cost_micro_usd
    assert not (
        planned.settings.get("background") == "transparent" and planned.output_format == "jpeg"
    )
