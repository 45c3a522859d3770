"""Each capability of the table, through the real SDKs, is taken by the simulated providers.

They are strict from a table of their own, so that a mistake in ours is rejected here.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import ImageChops, ImageStat

from darkroom.calls import Outcome
from darkroom.models.catalog import GEMINI_MODELS, MODELS, OPENAI_MODELS, Model
from darkroom.providers.registry import Provider
from darkroom_local.providers import running
from tests.contract.provider_world import (
    BOTH,
    GEMINI,
    KEY,
    OPENAI,
    World,
    left_half_mask,
    opened,
    photo,
)

RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
MODEL_IDS = [model.name for model in MODELS]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with running() as simulator:
        world = World(simulator)
        yield world
        world.close()


def what_it_edits(model: Model) -> dict[str, Any]:
    """dall-e-2 edits only under a mask."""
    return {"mask": left_half_mask()} if model.square_input else {}


@pytest.mark.parametrize("model", [m for m in MODELS if m.edits], ids=lambda m: m.name)
def test_each_editing_model_edits(world: World, model: Model) -> None:
    world.set_up(mode="effects")
    answer = world.call(model.provider, photo(), model=model.name, **what_it_edits(model))
    (image,) = answer.images
    assert opened(image).size[0] >= 256
    assert world.stats()["models"] == {model.name: 1}


@pytest.mark.parametrize("model", [m for m in MODELS if m.generates], ids=lambda m: m.name)
def test_each_generating_model_makes_a_picture_from_words(world: World, model: Model) -> None:
    world.set_up(mode="effects")
    answer = world.call(model.provider, model=model.name)
    assert opened(answer.images[0]).size[0] >= 256


@pytest.mark.parametrize(
    ("model", "edits"),
    [(m, edits) for m in MODELS for edits in (False, True) if (m.edits if edits else m.generates)],
    ids=lambda value: getattr(value, "name", "edits" if value is True else "makes"),
)
def test_each_wish_of_the_table_is_one_the_api_takes(
    world: World, model: Model, edits: bool
) -> None:
    world.set_up()
    wishes: list[dict[str, Any]] = [
        *({"size": size} for size in model.sizes),
        *({"quality": quality} for quality in model.qualities),
        *({"background": background} for background in model.backgrounds),
        *({"aspect_ratio": ratio} for ratio in RATIOS),
        *({"aspect_ratio": ratio, "resolution": "4K"} for ratio in RATIOS),
        *({"resolution": resolution} for resolution in ("1K", "2K", "4K")),
        *({"output_name": f"a.{extension}"} for extension in ("png", "jpg", "webp")),
        {"n": 10},
        {"size": "1920x1088"},
    ]
    for wish in wishes:
        images = [photo()] if edits else []
        answer = world.call(
            model.provider,
            *images,
            model=model.name,
            **(what_it_edits(model) if edits else {}),
            **wish,
        )
        assert len(answer.images) == min(wish.get("n", 1), model.max_n)
    assert world.stats()["statuses"] == {"200": len(wishes)}


@pytest.mark.parametrize("model", [m for m in MODELS if m.edits], ids=lambda m: m.name)
def test_as_many_references_as_the_table_says(world: World, model: Model) -> None:
    world.set_up(mode="effects")
    images = [photo(name=str(i)) for i in range(model.max_images)]
    assert world.call(model.provider, *images, model=model.name, **what_it_edits(model)).images


@pytest.mark.parametrize("model", [m for m in MODELS if m.edits], ids=lambda m: m.name)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_each_input_format_arrives_as_one_the_model_takes(
    world: World, model: Model, kind: str
) -> None:
    world.set_up(mode="effects")
    world.call(model.provider, photo(kind=kind), model=model.name, **what_it_edits(model))
    assert world.stats()["statuses"] == {"200": 1}


@pytest.mark.parametrize("provider", BOTH)
def test_the_input_picture_reaches_the_model(world: World, provider: Provider) -> None:
    """Two different pictures give two different edits: none is dropped on the way."""
    world.set_up(mode="effects")
    wide = world.call(provider, photo(96, 64), aspect_ratio="1:1", instruction="flip it")
    flat = world.call(provider, photo(64, 64, "PNG"), aspect_ratio="1:1", instruction="flip it")
    difference = ImageChops.difference(
        opened(wide.images[0]).convert("L"), opened(flat.images[0]).convert("L")
    )
    assert difference.getbbox() is not None
    only_words = world.call(provider, aspect_ratio="1:1", instruction="flip it")
    assert only_words.images[0] != wide.images[0]


@pytest.mark.parametrize("model", [m for m in OPENAI_MODELS if m.masks], ids=lambda m: m.name)
def test_a_mask_keeps_what_it_covers(world: World, model: Model) -> None:
    world.set_up(mode="effects")
    square, mask = photo(128, 128, "PNG"), left_half_mask(128, 128)
    options: dict[str, Any] = {"model": model.name, "size": "1024x1024", "instruction": "invert it"}
    edited = opened(world.call(OPENAI, square, mask=mask, **options).images[0]).convert("L")
    whole = square_at(edited.size)
    upper = edited.height * 3 // 4  # below lies the caption
    left = (16, 16, edited.width // 2 - 16, upper)
    right = (edited.width // 2 + 16, 16, edited.width - 16, upper)
    assert mean_difference(edited, whole, right) < 8
    assert mean_difference(edited, whole, left) > 40


def square_at(size: tuple[int, int]) -> Any:
    return opened(photo(128, 128, "PNG").data).convert("L").resize(size)


def mean_difference(one: Any, other: Any, box: tuple[int, int, int, int]) -> float:
    difference = ImageChops.difference(one.crop(box), other.crop(box))
    return float(ImageStat.Stat(difference).mean[0])


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("model", GEMINI_MODELS, ids=lambda m: m.name)
def test_gemini_gives_the_shape_asked_for(world: World, model: Model, ratio: str) -> None:
    world.set_up(mode="effects")
    width, height = opened(
        world.call(GEMINI, photo(), model=model.name, aspect_ratio=ratio).images[0]
    ).size
    across, down = map(int, ratio.split(":"))
    assert width / height == pytest.approx(across / down, rel=0.06)


@pytest.mark.parametrize(("resolution", "edge"), [("1K", 1024), ("2K", 2048), ("4K", 4096)])
def test_gemini_gives_the_resolution_asked_for(world: World, resolution: str, edge: int) -> None:
    world.set_up(mode="effects")
    answer = world.call(GEMINI, aspect_ratio="1:1", resolution=resolution)
    assert opened(answer.images[0]).size == (edge, edge)


@pytest.mark.parametrize("size", ["1024x1024", "1024x1536", "1536x1024"])
def test_openai_gives_the_size_asked_for(world: World, size: str) -> None:
    world.set_up(mode="effects")
    width, height = opened(world.call(OPENAI, photo(), size=size).images[0]).size
    assert f"{width}x{height}" == size


def test_openai_gives_a_free_size_where_the_model_takes_one(world: World) -> None:
    world.set_up(mode="effects")
    answer = world.call(OPENAI, photo(), model="gpt-image-2", size="1920x1088")
    assert opened(answer.images[0]).size == (1920, 1088)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jpg", "JPEG"), ("a.webp", "WEBP"), ("a.png", "PNG")]
)
def test_openai_gives_the_format_of_the_output_name(world: World, name: str, kind: str) -> None:
    world.set_up(mode="effects")
    assert opened(world.call(OPENAI, photo(), output_name=name).images[0]).format == kind


def test_openai_gives_a_transparent_background(world: World) -> None:
    world.set_up(mode="effects")
    image = opened(world.call(OPENAI, photo(), background="transparent").images[0])
    assert image.mode == "RGBA"


def test_openai_gives_n_pictures_in_one_call(world: World) -> None:
    world.set_up()
    assert len(world.call(OPENAI, photo(), n=4).images) == 4
    assert world.stats()["calls"] == 1
    assert world.stats()["paid_images"] == 4


def test_thoughts_are_not_pictures(world: World) -> None:
    """A thought may carry an interim image, which must not be taken for the answer."""
    world.set_up(thoughts=True)
    answer = world.call(GEMINI, photo())
    assert len(answer.images) == 1
    assert "draft" not in answer.text


@pytest.mark.parametrize("provider", BOTH)
def test_the_key_of_the_call_is_the_one_sent(world: World, provider: Provider) -> None:
    world.set_up()
    for key in ("key-one-111", "key-two-222", "key-one-111"):
        world.call(provider, photo(), key=key)
    assert world.stats()["keys"] == {"key-one-111": 2, "key-two-222": 1}


def test_a_compatible_base_url_may_end_in_v1(world: World) -> None:
    world.set_up()
    for tail in ("/v1", "/v1/", "/openai/v1/", ""):
        endpoint = world.endpoint(OPENAI, base_url=world.simulator.base_url("endpoint") + tail)
        assert world.call(OPENAI, photo(), endpoint=endpoint).images


def test_azure_is_called_by_its_deployment_path(world: World) -> None:
    world.set_up()
    azure = world.endpoint(OPENAI, api_version="2026-10-01", model="gpt-image-1.5")
    assert world.call(OPENAI, photo(), endpoint=azure).images
    assert world.call(OPENAI, endpoint=azure).images
    assert world.stats()["keys"] == {KEY: 2}
    assert world.stats()["models"] == {"gpt-image-1.5": 2}


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_gemini_is_called_by_its_version(world: World, version: str) -> None:
    world.set_up()
    endpoint = world.endpoint(GEMINI, api_version=version)
    assert world.call(GEMINI, photo(), endpoint=endpoint).images


def test_a_dated_snapshot_is_called_by_its_name(world: World) -> None:
    world.set_up()
    world.call(OPENAI, photo(), model="gpt-image-2-2026-04-21")
    assert world.stats()["models"] == {"gpt-image-2-2026-04-21": 1}


def test_the_environment_does_not_move_a_call_elsewhere(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDKs read base URLs, versions, keys and proxies from it; an endpoint says its own."""
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "ALL_PROXY", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v9")
    monkeypatch.setenv("GOOGLE_API_KEY", "of-the-environment")
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
    world.set_up()
    fresh = World(world.simulator)
    for provider in BOTH:
        fresh.call(provider, photo())
    assert world.stats()["keys"] == {KEY: 2}


def test_what_a_gemini_picture_cost(world: World) -> None:
    """$120 per million output tokens of pictures, 1,120 of them at 1K; $2 per million read."""
    world.set_up()
    answer = world.call(GEMINI, photo(), resolution="1K")
    assert answer.usage.output_tokens == 1120
    assert answer.usage.input_tokens is not None
    assert answer.cost_micro_usd == 1120 * 120 + answer.usage.input_tokens * 2


def test_thoughts_are_paid_as_words(world: World) -> None:
    world.set_up(thoughts=True)
    thinking = world.call(GEMINI, photo())
    world.set_up()
    assert (thinking.cost_micro_usd or 0) - (world.call(GEMINI, photo()).cost_micro_usd or 0) == (
        412 * 12
    )


def test_what_an_openai_picture_cost(world: World) -> None:
    """gpt-image-1.5: $32 per million image tokens out, $8 in, $5 for words."""
    world.set_up()
    answer = world.call(OPENAI, photo(), quality="high", size="1024x1024")
    words = (answer.usage.input_tokens or 0) - 323
    assert answer.usage.output_tokens == 4160
    assert answer.cost_micro_usd == 4160 * 32 + 323 * 8 + words * 5


def test_a_model_priced_by_the_picture_costs_that(world: World) -> None:
    world.set_up()
    assert world.call(OPENAI, model="dall-e-3", quality="hd").cost_micro_usd == 120_000
    assert world.call(OPENAI, model="dall-e-2", size="512x512", n=2).cost_micro_usd == 36_000


@pytest.mark.parametrize("model", MODELS, ids=MODEL_IDS)
def test_no_call_costs_more_than_its_worst_case(world: World, model: Model) -> None:
    world.set_up(thoughts=True)
    endpoint = world.endpoint(model.provider)
    images = [photo()] if model.edits else []
    asked: list[dict[str, Any]] = [{}, {"aspect_ratio": "16:9", "resolution": "2K"}, {"n": 2}]
    for wishes in asked:
        options = {**what_it_edits(model), **wishes} if images else wishes
        plan = world.plan(model.provider, *images, model=model.name, **options)
        answer = world.call(model.provider, *images, model=model.name, endpoint=endpoint, **options)
        assert answer.cost_micro_usd is not None
        assert answer.cost_micro_usd <= (plan.worst_cost_micro_usd or 0), wishes


def test_an_unpriced_model_says_so_instead_of_zero(world: World) -> None:
    world.set_up()
    endpoint = world.endpoint(GEMINI)
    plan = world.plan(GEMINI, photo(), model="gemini-99-image")
    assert plan.worst_cost_micro_usd is None
    failed = world.failure(GEMINI, photo(), model="gemini-99-image", endpoint=endpoint)
    assert failed.outcome is Outcome.BAD_REQUEST
    assert failed.cost_micro_usd is None
