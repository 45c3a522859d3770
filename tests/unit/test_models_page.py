"""docs/models.md says what the table says."""

from darkroom.models.catalog import MODELS
from darkroom_local.models_page import PAGE, page


def test_the_page_is_the_current_tables() -> None:
    """If this fails: `python -m darkroom_local.models_page`."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_model_is_on_the_page_with_its_prices() -> None:
    text = page()
    for model in MODELS:
        assert text.count(f"`{model.name}`") == 2, model.name
        for alias in model.aliases:
            assert f"`{alias}`" in text
