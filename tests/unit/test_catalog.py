"""The model catalogue is complete and consistent, also on its page, and finds models by name."""

from math import ceil
from typing import Any, get_args

import pytest
from openai.types import ImageModel

from darkroom.calls import CallPlan, SourceImage
from darkroom.models.catalog import MODELS, Model, find_model, image_price, token_cost, worst_cost
from darkroom.providers.registry import PROVIDERS, Provider, provider_of
from darkroom_local import models_page

IMAGE = SourceImage(b"", "image/png", 1, 1, "a.png")
GEMINI, OPENAI = Provider.GEMINI, Provider.OPENAI
REQUIRED = {"gemini-2.5-flash-image", "gemini-3-pro-image", "gemini-3-pro-image-preview"}
REQUIRED |= {"gemini-3.1-flash-image", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5"}
REQUIRED |= {"gpt-image-2", "chatgpt-image-latest", "dall-e-2", "dall-e-3"}
REQUIRED |= {"gemini-3.1-flash-lite-image", "gemini-nano-banana-2.1"}
REQUIRED |= {"gpt-image-2.5-sunburst", "gpt-image-2.5-flare"}
REQUIRED |= {"gpt-image-2.6-sunburst", "gpt-image-2.6-flare"}
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)


def test_catalogue_covers_the_promised_models_and_every_name_belongs_to_one() -> None:
    names = [name for model in MODELS for name in (model.name, *model.aliases)]
    assert set(names) >= REQUIRED
    assert len(names) == len(set(names))


@each_model
def test_every_model_has_a_source_a_price_and_an_operation(model: Model) -> None:
    assert model.sources
    assert model.image_prices
    assert model.known
    # DALL-E is priced by the image.
    assert model.token_prices is not None or model.needs_response_format


@each_model
def test_every_price_is_of_a_quality_and_size_of_the_model_and_matches_its_tokens(
    model: Model,
) -> None:
    """The provider's price of an image is a plausible number of output tokens."""
    for key, price in model.image_prices.items():
        head, _, size = key.partition("/")
        assert head in {*model.qualities, *model.resolutions, "any", "1K"}
        assert not size or size in model.sizes
        assert model.token_prices is None or 100 <= price / model.token_prices.image_out <= 9000


def test_default_models_of_endpoints_are_known_and_have_no_end() -> None:
    for provider, entry in PROVIDERS.items():
        assert find_model(provider, entry.model).known
        assert find_model(provider, entry.model).retirement is None


def test_every_image_model_that_the_sdk_names_is_in_the_catalogue() -> None:
    assert [name for name in get_args(ImageModel) if not find_model(OPENAI, name).known] == []


@each_model
def test_every_end_has_a_source_and_a_successor_without_one(model: Model) -> None:
    ends = [*model.retired_names.values(), *([model.retirement] if model.retirement else [])]
    for end in ends:
        assert end.source
        successor = find_model(model.provider, end.successor)
        assert successor.known
        assert successor.retirement is None or successor.retirement.on > end.on
    assert set(model.retired_names) <= set(model.aliases)


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("gemini-9-ultra-image", GEMINI),
        ("models/gemini-3-pro-image", GEMINI),
        ("gpt-image-2-2026-04-21", OPENAI),
        ("flux-2", None),
        ("", None),
        *((name, model.provider) for model in MODELS for name in (model.name, *model.aliases)),
    ],
)
def test_provider_is_derived_from_the_name(name: str, provider: Provider | None) -> None:
    assert provider_of(name) is provider


def test_aliases_and_dated_snapshots_find_the_model() -> None:
    assert find_model(GEMINI, "gemini-3-pro-image-preview").name == "gemini-3-pro-image"
    assert find_model(GEMINI, "models/gemini-3-pro-image").name == "gemini-3-pro-image"
    assert find_model(OPENAI, "gpt-image-2-2026-04-21").name == "gpt-image-2"
    assert not find_model(OPENAI, "gemini-3-pro-image").known  # another provider's


@pytest.mark.parametrize("provider", Provider)
def test_unknown_model_has_its_providers_defaults_and_no_price(provider: Provider) -> None:
    model = find_model(provider, "something-new")
    assert not model.known
    assert model.name == "something-new"
    assert model.token_prices is None
    assert image_price(model) is None
    assert worst_cost(model, CallPlan(provider, model.name, "prompt", (IMAGE,))) is None
    assert token_cost(model, image_out=100) is None
    assert model.edits
    assert (model.masks, model.max_images) == ((True, 16) if provider is OPENAI else (False, 3))


@pytest.mark.parametrize(
    ("name", "settings", "price"),
    [
        # What is left to the provider counts as the most expensive.
        ("gpt-image-1.5", {}, 200_000),
        ("gpt-image-1.5", {"quality": "low"}, 13_000),
        ("gpt-image-1.5", {"quality": "low", "size": "1024x1024"}, 9_000),
        ("gpt-image-1.5", {"quality": "auto", "size": "1024x1024"}, 133_200),
        # A free size is estimated by its area.
        ("gpt-image-2", {"quality": "low", "size": "2048x2048", "megapixels": 4}, 24_000),
        ("gpt-image-2", {"quality": "low", "size": "800x800", "megapixels": 0.6}, 6_000),
        ("dall-e-2", {"size": "512x512"}, 18_000),
        ("dall-e-3", {"quality": "hd", "size": "1024x1792"}, 120_000),
    ],
)
def test_price_of_an_image_is_the_most_its_settings_allow(
    name: str, settings: dict[str, Any], price: int
) -> None:
    assert image_price(find_model(OPENAI, name), **settings) == price


def test_price_of_a_response_is_that_of_its_tokens() -> None:
    """Figures of https://ai.google.dev/gemini-api/docs/pricing: $0.134 for a 1K image, $0.0011 for
    an input image of 560 tokens.
    """
    model = find_model(GEMINI, "gemini-3-pro-image")
    assert token_cost(model, image_in=560, image_out=1120) == 1120 + 134_400
    assert token_cost(model, text_out=1000) == 12_000


@each_model
def test_worst_cost_covers_the_prompt_the_input_images_and_every_output_image(model: Model) -> None:
    price = image_price(model)
    assert price is not None
    empty = worst_cost(model, CallPlan(model.provider, model.name, ""))
    plan = CallPlan(model.provider, model.name, "Mach es röter" * 20, (IMAGE, IMAGE), n=3)
    larger = worst_cost(model, plan)
    assert empty is not None
    assert larger is not None
    assert empty >= price
    prices = model.token_prices
    if prices is not None:
        read = 280 * prices.text_in + 2 * prices.input_image_tokens * prices.image_in
        thoughts = model.thinking_tokens * prices.text_out
        assert larger == ceil(read + thoughts) + 3 * price


def test_page_is_generated_from_the_current_catalogue() -> None:
    """If this fails, run `python -m darkroom_local.models_page`."""
    assert models_page.PAGE.read_text(encoding="utf-8") == models_page.page()


@each_model
def test_page_lists_every_model_with_its_prices(model: Model) -> None:
    text = models_page.page()
    assert text.count(f"| `{model.name}`") == 2
    assert all(f"`{alias}`" in text for alias in model.aliases)
