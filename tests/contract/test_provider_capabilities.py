"""The simulated providers accept each capability in the catalogue, through the real SDKs.

They validate by a table of their own, so that a mistake in the catalogue is rejected here.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any, get_args

import httpx2
import pytest
from PIL import ImageChops, ImageStat

from darkroom.calls import EditResult, Outcome, SourceImage
from darkroom.models.catalog import GEMINI_MODELS, MODELS, OPENAI_MODELS, Model
from darkroom.providers.gemini import GeminiImageEditor
from darkroom.providers.http import new_client
from darkroom.providers.openai import OpenAIImageEditor
from darkroom.providers.registry import Provider
from darkroom.rows import AspectRatio, Resolution
from tests.contract.provider_harness import (
    BOTH,
    GEMINI,
    KEY,
    NAME,
    OPENAI,
    Harness,
    left_half_mask,
    opened,
    photo,
    running_harness,
)

RATIOS = get_args(AspectRatio)


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with running_harness() as harness:
        yield harness


@pytest.fixture
def recorded(harness: Harness) -> Iterator[tuple[Harness, list[dict[str, Any]]]]:
    """Another harness, and the responses as the providers sent them."""
    bodies: list[dict[str, Any]] = []

    def record(response: httpx2.Response) -> None:
        response.read()
        bodies.append(response.json())

    with closing(new_client()) as http:
        http.event_hooks = {"response": [record]}
        editors = GeminiImageEditor(http), OpenAIImageEditor(http)
        yield Harness(harness.simulator, *editors), bodies


def name_of(value: object) -> str | None:
    return getattr(value, "name", None)


def mask_for(model: Model, *images: SourceImage) -> SourceImage | None:
    """dall-e-2 needs a mask to edit."""
    return left_half_mask() if images and model.square_input else None


def call(harness: Harness, model: Model, *images: SourceImage, **settings: Any) -> EditResult:
    mask = mask_for(model, *images)
    return harness.call(model.provider, *images, mask=mask, model=model.name, **settings)


editing = pytest.mark.parametrize("model", [m for m in MODELS if m.edits], ids=name_of)


@editing
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_editing_models_edit_each_input_format(harness: Harness, model: Model, kind: str) -> None:
    harness.set_up(mode="effects")
    (image,) = call(harness, model, photo(kind=kind)).images
    assert opened(image).size[0] >= 256
    assert harness.stats()["models"] == {model.name: 1}
    assert harness.stats()["statuses"] == {"200": 1}


@pytest.mark.parametrize("model", MODELS, ids=name_of)
def test_each_generating_model_makes_an_image_from_text(harness: Harness, model: Model) -> None:
    harness.set_up(mode="effects")
    assert opened(call(harness, model).images[0]).size[0] >= 256


@pytest.mark.parametrize(
    ("model", "edits"),
    [(m, edits) for m in MODELS for edits in (False, True) if m.edits or not edits],
    ids=lambda value: name_of(value) or ("edits" if value else "generates"),
)
def test_the_api_accepts_catalogue_settings(harness: Harness, model: Model, edits: bool) -> None:
    harness.set_up()
    settings: list[dict[str, Any]] = [
        *({"size": size} for size in model.sizes),
        *({"quality": quality} for quality in model.qualities),
        *(
            {name: value, "output_name": output}
            for name, values in model.settings.items()
            for value in ((values[0], values[-1]) if isinstance(values, range) else values)
            for output in ("a.png", "a.webp")
        ),
        *({"aspect_ratio": ratio} for ratio in RATIOS),
        *({"aspect_ratio": ratio, "resolution": "4K"} for ratio in RATIOS),
        *({"resolution": resolution} for resolution in get_args(Resolution)),
        *({"output_name": f"a.{extension}"} for extension in ("png", "jpg", "webp")),
        {"n": 10},
        {"size": "1920x1088"},
    ]
    for setting in settings:
        result = call(harness, model, *([photo()] if edits else []), **setting)
        assert len(result.images) == min(setting.get("n", 1), model.max_n)
    assert harness.stats()["statuses"] == {"200": len(settings)}


@editing
def test_each_model_takes_its_number_of_references(harness: Harness, model: Model) -> None:
    harness.set_up(mode="effects")
    assert call(harness, model, *(photo(name=str(i)) for i in range(model.max_images))).images


@pytest.mark.parametrize("provider", BOTH)
def test_the_input_image_reaches_the_model(harness: Harness, provider: Provider) -> None:
    """Two different images give two different edits: none is dropped on the way."""
    harness.set_up(mode="effects")
    wide = harness.call(provider, photo(96, 64), aspect_ratio="1:1", instruction="flip it")
    flat = harness.call(provider, photo(64, 64, "PNG"), aspect_ratio="1:1", instruction="flip it")
    one, other = (opened(result.images[0]).convert("L") for result in (wide, flat))
    assert ImageChops.difference(one, other).getbbox() is not None
    generated = harness.call(provider, aspect_ratio="1:1", instruction="flip it")
    assert generated.images[0] != wide.images[0]


@pytest.mark.parametrize("model", [m for m in OPENAI_MODELS if m.masks], ids=name_of)
def test_the_opaque_part_of_a_mask_is_kept(harness: Harness, model: Model) -> None:
    harness.set_up(mode="effects")
    square, mask = photo(128, 128, "PNG"), left_half_mask(128, 128)
    options: dict[str, Any] = {"model": model.name, "size": "1024x1024", "instruction": "invert it"}
    edited = opened(harness.call(OPENAI, square, mask=mask, **options).images[0]).convert("L")
    whole = opened(square.data).convert("L").resize(edited.size)
    upper = edited.height * 3 // 4  # below lies the caption
    left = (16, 16, edited.width // 2 - 16, upper)
    right = (edited.width // 2 + 16, 16, edited.width - 16, upper)
    assert mean_difference(edited, whole, right) < 8
    assert mean_difference(edited, whole, left) > 40


def mean_difference(one: Any, other: Any, box: tuple[int, int, int, int]) -> float:
    difference = ImageChops.difference(one.crop(box), other.crop(box))
    return float(ImageStat.Stat(difference).mean[0])


@pytest.mark.parametrize(
    ("model", "ratio"), [(m, r) for m in GEMINI_MODELS for r in m.aspect_ratios], ids=name_of
)
def test_gemini_returns_the_requested_shape(harness: Harness, model: Model, ratio: str) -> None:
    harness.set_up(mode="effects")
    width, height = opened(call(harness, model, photo(), aspect_ratio=ratio).images[0]).size
    across, down = map(int, ratio.split(":"))
    assert width / height == pytest.approx(across / down, rel=0.06)


@pytest.mark.parametrize(
    ("provider", "settings", "form"),
    [
        (GEMINI, {"aspect_ratio": "1:1", "resolution": "1K"}, {"size": (1024, 1024)}),
        (GEMINI, {"aspect_ratio": "1:1", "resolution": "2K"}, {"size": (2048, 2048)}),
        (GEMINI, {"aspect_ratio": "1:1", "resolution": "4K"}, {"size": (4096, 4096)}),
        (OPENAI, {"size": "1024x1024"}, {"size": (1024, 1024)}),
        (OPENAI, {"size": "1024x1536"}, {"size": (1024, 1536)}),
        (OPENAI, {"size": "1536x1024"}, {"size": (1536, 1024)}),
        (OPENAI, {"size": "1920x1088", "model": "gpt-image-2"}, {"size": (1920, 1088)}),
        (OPENAI, {"output_name": "a.jpg"}, {"format": "JPEG"}),
        (OPENAI, {"output_name": "a.webp"}, {"format": "WEBP"}),
        (OPENAI, {"output_name": "a.png"}, {"format": "PNG"}),
        (OPENAI, {"background": "transparent"}, {"mode": "RGBA"}),
    ],
)
def test_the_image_has_the_form_requested(
    harness: Harness, provider: Provider, settings: dict[str, Any], form: dict[str, object]
) -> None:
    harness.set_up(mode="effects")
    image = opened(harness.call(provider, photo(), **settings).images[0])
    assert {name: getattr(image, name) for name in form} == form


def test_openai_returns_n_images_from_one_call(harness: Harness) -> None:
    harness.set_up()
    assert len(harness.call(OPENAI, photo(), n=4).images) == 4
    assert harness.stats()["calls"] == 1
    assert harness.stats()["paid_images"] == 4


def test_thoughts_are_not_in_the_detail_of_a_failure(harness: Harness) -> None:
    parts = [{"text": "Let me draft this.", "thought": True}, {"text": "Which mug?"}]
    body = {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=body))
    with closing(new_client(transport)) as http:
        fixed = Harness(harness.simulator, gemini=GeminiImageEditor(http))
        assert fixed.failure(GEMINI, photo()).detail == "Which mug?"


@pytest.mark.parametrize("provider", BOTH)
def test_the_key_of_the_call_is_the_one_sent(harness: Harness, provider: Provider) -> None:
    harness.set_up()
    for key in ("key-one-111", "key-two-222", "key-one-111"):
        harness.call(provider, photo(), key=key)
    assert harness.stats()["keys"] == {"key-one-111": 2, "key-two-222": 1}


@pytest.mark.parametrize(
    ("provider", "tail", "version"),
    [
        *((OPENAI, tail, None) for tail in ("/v1", "/v1/", "/openai/v1/", "")),
        *((GEMINI, "", version) for version in ("v1", "v1beta")),
    ],
)
def test_an_endpoint_is_called_at_its_base_url_and_api_version(
    harness: Harness, provider: Provider, tail: str, version: str | None
) -> None:
    harness.set_up()
    base_url = harness.simulator.base_url(NAME) + tail
    endpoint = harness.endpoint(provider, base_url=base_url, api_version=version)
    assert harness.call(provider, photo(), endpoint=endpoint).images


def test_azure_is_called_at_its_deployment_path(harness: Harness) -> None:
    harness.set_up()
    azure = harness.endpoint(OPENAI, api_version="2026-10-01", model="gpt-image-1.5")
    assert harness.call(OPENAI, photo(), endpoint=azure).images
    assert harness.call(OPENAI, endpoint=azure).images
    assert harness.stats()["keys"] == {KEY: 2}
    assert harness.stats()["models"] == {"gpt-image-1.5": 2}


def test_a_dated_snapshot_is_called_by_its_name(harness: Harness) -> None:
    harness.set_up()
    harness.call(OPENAI, photo(), model="gpt-image-2-2026-04-21")
    assert harness.stats()["models"] == {"gpt-image-2-2026-04-21": 1}


def test_the_environment_redirects_no_call(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDKs read base URLs, versions, keys and proxies from them; the endpoint decides."""
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "ALL_PROXY", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v9")
    monkeypatch.setenv("GOOGLE_API_KEY", "of-the-environment")
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
    harness.set_up()
    fresh = Harness(harness.simulator)
    for provider in BOTH:
        fresh.call(provider, photo())
    assert harness.stats()["keys"] == {KEY: 2}


def test_the_cost_of_a_gemini_image(recorded: tuple[Harness, list[dict[str, Any]]]) -> None:
    """$120 per million output tokens of images, 1,120 of them at 1K; $2 per million read."""
    harness, bodies = recorded
    harness.set_up()
    result = harness.call(GEMINI, photo(), resolution="1K")
    usage = bodies[-1]["usageMetadata"]
    assert usage["candidatesTokenCount"] == 1120
    assert result.cost_micro_usd == 1120 * 120 + usage["promptTokenCount"] * 2


def test_thoughts_are_charged_as_text_and_their_interim_images_are_not_results(
    harness: Harness,
) -> None:
    harness.set_up(thoughts=True)
    thinking = harness.call(GEMINI, photo())
    assert len(thinking.images) == 1
    harness.set_up()
    without = harness.call(GEMINI, photo()).cost_micro_usd or 0
    assert (thinking.cost_micro_usd or 0) - without == 412 * 12


def test_the_cost_of_an_openai_image(recorded: tuple[Harness, list[dict[str, Any]]]) -> None:
    """gpt-image-1.5: $32 per million image tokens out, $8 in, $5 for text."""
    harness, bodies = recorded
    harness.set_up()
    result = harness.call(OPENAI, photo(), quality="high", size="1024x1024", model="gpt-image-1.5")
    usage = bodies[-1]["usage"]
    assert usage["output_tokens"] == 4160
    assert result.cost_micro_usd == 4160 * 32 + 323 * 8 + (usage["input_tokens"] - 323) * 5


def test_a_model_priced_by_the_image_costs_its_price(harness: Harness) -> None:
    harness.set_up()
    assert harness.call(OPENAI, model="dall-e-3", quality="hd").cost_micro_usd == 120_000
    assert harness.call(OPENAI, model="dall-e-2", size="512x512", n=2).cost_micro_usd == 36_000


@pytest.mark.parametrize("model", MODELS, ids=name_of)
def test_no_call_costs_more_than_its_worst_case(harness: Harness, model: Model) -> None:
    harness.set_up(thoughts=True)
    images = [photo()] if model.edits else []
    requests: list[dict[str, Any]] = [{}, {"aspect_ratio": "16:9", "resolution": "2K"}, {"n": 2}]
    for settings in requests:
        mask = mask_for(model, *images)
        plan = harness.plan(model.provider, *images, model=model.name, mask=mask, **settings)
        result = call(harness, model, *images, **settings)
        assert result.cost_micro_usd is not None
        assert result.cost_micro_usd <= (plan.worst_cost_micro_usd or 0), settings


def test_the_cost_of_a_model_without_a_price_is_unknown_not_zero(harness: Harness) -> None:
    harness.set_up()
    plan = harness.plan(GEMINI, photo(), model="gemini-99-image")
    assert plan.worst_cost_micro_usd is None
    failed = harness.failure(GEMINI, photo(), model="gemini-99-image")
    assert failed.outcome is Outcome.BAD_REQUEST
    assert failed.cost_micro_usd is None
