"""docs/models.md is up to date with the model catalogue."""

from darkroom.models.catalog import MODELS
from darkroom_local.models_page import PAGE, page


def test_page_is_generated_from_the_current_catalogue() -> None:
    """If this fails, run `python -m darkroom_local.models_page`."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_page_lists_every_model_with_its_prices() -> None:
    text = page()
    for model in MODELS:
        assert text.count(f"`{model.name}`") == 2, model.name
        for alias in model.aliases:
            assert f"`{alias}`" in text
