"""How values appear in sentences."""

import pytest

from darkroom.formatting import duration, money


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.42, "0.4 s"),
        (59, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (200, "3 min 20 s"),
        (4_000, "1 h 6 min"),
        (7_500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_show_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_money_keeps_the_digits_that_matter() -> None:
    assert [money(x) for x in (0, 0.039, 12.3, 1234.5)] == [
        "$0.00",
        "$0.039",
        "$12.30",
        "$1,234.50",
    ]
