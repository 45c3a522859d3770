"""Aspect ratios and resolutions convert to sizes in pixels and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.models import sizes
from darkroom.models.catalog import MODELS

GPT = ("1024x1024", "1024x1536", "1536x1024")
RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")


@pytest.mark.parametrize(
    ("ratios", "size"),
    [
        (("1:1",), "1024x1024"),
        (("2:3", "3:4", "4:5", "9:16"), "1024x1536"),
        (("3:2", "4:3", "5:4", "16:9", "21:9"), "1536x1024"),
    ],
)
def test_aspect_ratio_becomes_the_nearest_fixed_size(ratios: tuple[str, ...], size: str) -> None:
    for ratio in ratios:
        assert sizes.nearest_size(sizes.ratio_of(ratio), sizes.PIXELS["1K"], GPT) == size, ratio


@pytest.mark.parametrize("ratio", RATIOS)
def test_free_size_is_allowed_keeps_the_aspect_ratio_and_grows_with_the_resolution(
    ratio: str,
) -> None:
    found = [sizes.free_size(sizes.ratio_of(ratio), sizes.PIXELS[r]) for r in ("1K", "2K", "4K")]
    for size in found:
        assert sizes.is_free_size(*sizes.parse_size(size) or (0, 0))
        assert sizes.ratio_of(size) == pytest.approx(sizes.ratio_of(ratio), rel=0.02)
    areas = [sizes.area(size) for size in found]
    assert areas == sorted(set(areas))
    assert sizes.nearest_ratio(sizes.ratio_of(found[1]), RATIOS) == ratio
    assert sizes.nearest_resolution(areas[1], ("1K", "2K", "4K")) == "2K"


@given(st.floats(min_value=0.01, max_value=100), st.integers(min_value=1, max_value=200_000_000))
def test_free_size_is_allowed_for_any_ratio_and_area(ratio: float, pixels: int) -> None:
    assert sizes.is_free_size(*sizes.parse_size(sizes.free_size(ratio, pixels)) or (0, 0))


@pytest.mark.parametrize("text", ["auto", "", "1024", "1024x", "0000x1024", "12x34x56", "axb"])
def test_invalid_size_parses_to_none(text: str) -> None:
    assert sizes.parse_size(text) is None


def test_size_may_have_blanks_and_any_multiplication_sign() -> None:
    assert sizes.parse_size(" 1024 X 1536 ") == (1024, 1536)
    assert sizes.parse_size("1024\u00d71536") == (1024, 1536)


def test_nearest_area_wins_among_sizes_of_one_shape() -> None:
    squares = ("256x256", "512x512", "1024x1024")
    assert sizes.nearest_size(1.0, 500 * 500, squares) == "512x512"
    assert sizes.nearest_size(1.0, sizes.PIXELS["4K"], squares) == "1024x1024"


def test_every_size_and_ratio_of_the_catalogue_is_valid() -> None:
    for model in MODELS:
        assert all(sizes.parse_size(size) for size in model.sizes), model.name
        assert all(sizes.ratio_of(ratio) > 0 for ratio in model.aspect_ratios), model.name
        assert set(model.resolutions) <= set(sizes.PIXELS), model.name
