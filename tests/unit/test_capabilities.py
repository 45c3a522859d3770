"""The table of models: complete, consistent, and found by the names people use."""

from math import ceil

import pytest

from darkroom.models.catalog import (
    CHECKED,
    MODELS,
    Model,
    find,
    image_price,
    token_cost,
    worst_cost,
)
from darkroom.providers.registry import PROVIDERS, Provider, provider_of

REQUIRED = {
    "gemini-2.5-flash-image",
    "gemini-3-pro-image",
    "gemini-3-pro-image-preview",
    "gemini-3.1-flash-image",
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2",
    "chatgpt-image-latest",
    "dall-e-2",
    "dall-e-3",
}


def test_the_table_covers_the_models_promised() -> None:
    names = {name for model in MODELS for name in (model.name, *model.aliases)}
    assert names >= REQUIRED


def test_no_name_means_two_models() -> None:
    names = [name for model in MODELS for name in (model.name, *model.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_each_model_has_its_source_its_price_and_something_it_does(model: Model) -> None:
    assert model.sources
    assert model.edits or model.generates
    assert model.picture_prices
    assert model.known
    assert model.retired_on is None or model.retired_on <= CHECKED
    assert model.prices is not None or model.asks_for_base64  # the old ones are priced by picture


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_the_price_of_a_picture_agrees_with_the_price_of_its_tokens(model: Model) -> None:
    """The provider's own figures for a picture are a plausible number of its output tokens."""
    if model.prices is None:
        return
    for price in model.picture_prices.values():
        assert 100 <= price / model.prices.image_out <= 9000


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_prices_are_given_for_qualities_and_sizes_that_the_model_has(model: Model) -> None:
    for key in model.picture_prices:
        head, _, size = key.partition("/")
        assert head in {*model.qualities, *model.resolutions, "any", "1K"}
        assert not size or size in model.sizes


def test_default_models_of_an_endpoint_are_known_and_not_retired() -> None:
    for provider, entry in PROVIDERS.items():
        assert find(provider, entry.model).known
        assert find(provider, entry.model).retired_on is None


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("gemini-3-pro-image", Provider.GEMINI),
        ("gemini-9-ultra-image", Provider.GEMINI),
        ("models/gemini-3-pro-image", Provider.GEMINI),
        ("gpt-image-2-2026-04-21", Provider.OPENAI),
        ("dall-e-2", Provider.OPENAI),
        ("chatgpt-image-latest", Provider.OPENAI),
        ("flux-2", None),
        ("", None),
    ],
)
def test_a_name_tells_its_provider_or_none(name: str, provider: Provider | None) -> None:
    assert provider_of(name) is provider


def test_every_model_of_the_table_is_told_by_its_name() -> None:
    for model in MODELS:
        for name in (model.name, *model.aliases):
            assert provider_of(name) is model.provider


def test_aliases_and_dated_snapshots_are_the_model() -> None:
    assert find(Provider.GEMINI, "gemini-3-pro-image-preview").name == "gemini-3-pro-image"
    assert find(Provider.GEMINI, "models/gemini-3-pro-image").name == "gemini-3-pro-image"
    assert find(Provider.OPENAI, "gpt-image-2-2026-04-21").name == "gpt-image-2"


def test_an_unknown_model_has_defaults_and_no_price() -> None:
    for provider in Provider:
        model = find(provider, "something-new")
        assert not model.known
        assert model.name == "something-new"
        assert model.prices is None
        assert image_price(model) is None
        assert worst_cost(model, "prompt", 1, image_price(model), 1) is None
        assert token_cost(model, image_out=100) is None


def test_a_models_name_counts_for_its_own_provider_only() -> None:
    assert not find(Provider.OPENAI, "gemini-3-pro-image").known


def test_what_is_left_to_the_provider_counts_as_its_dearest() -> None:
    model = find(Provider.OPENAI, "gpt-image-1.5")
    assert image_price(model) == 200_000
    assert image_price(model, quality="low") == 13_000
    assert image_price(model, quality="low", size="1024x1024") == 9_000
    assert image_price(model, quality="auto", size="1024x1024") == 133_200


def test_a_free_size_is_estimated_by_its_area() -> None:
    model = find(Provider.OPENAI, "gpt-image-2")
    assert image_price(model, quality="low", size="2048x2048", megapixels=4) == 24_000
    assert image_price(model, quality="low", size="800x800", megapixels=0.6) == 6_000


def test_the_old_models_are_priced_by_size_alone() -> None:
    assert image_price(find(Provider.OPENAI, "dall-e-2"), size="512x512") == 18_000
    model = find(Provider.OPENAI, "dall-e-3")
    assert image_price(model, quality="hd", size="1024x1792") == 120_000


def test_the_price_of_an_answer_is_that_of_its_tokens() -> None:
    """Figures of https://ai.google.dev/gemini-api/docs/pricing: $0.134 a 1K picture, $0.0011 an
    input image of 560 tokens.
    """
    model = find(Provider.GEMINI, "gemini-3-pro-image")
    assert token_cost(model, image_in=560, image_out=1120) == 1120 + 134_400
    assert token_cost(model, text_out=1000) == 12_000


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_the_worst_cost_covers_words_input_and_every_picture(model: Model) -> None:
    one = image_price(model)
    assert one is not None
    none = worst_cost(model, "", 0, one, 1)
    more = worst_cost(model, "Mach es röter" * 20, 2, one, 3)
    assert none is not None
    assert more is not None
    assert none >= one
    prices = model.prices
    if prices is not None:
        read = 280 * prices.text_in + 2 * prices.input_image_tokens * prices.image_in
        thought = model.thinking_tokens * prices.text_out
        assert more == ceil(read + thought) + 3 * one
