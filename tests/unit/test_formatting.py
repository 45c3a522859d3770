"""How values appear in sentences."""

import time

import pytest

from darkroom.formatting import duration, money, quoted, redact_url


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
    shown = ["$0.00", "$0.039", "$12.30", "$1,234.50"]
    assert [money(usd) for usd in (0, 0.039, 12.3, 1234.5)] == shown


@pytest.mark.parametrize(
    ("reference", "safe"),
    [
        ("https://h/a.png?X-Amz-Signature=5ecret#5ecret", "https://h/a.png?…"),
        ("https://h/a.png#access_token=5ecret", "https://h/a.png?…"),
        ("https://me:5ecret@h/a.png", "https://…@h/a.png"),
        ("https://h/@me/a.png", "https://h/@me/a.png"),
        ("https://h:8443/a@b.png", "https://h:8443/a@b.png"),
        ("https://me:5e/cret@h/a.png", "https://…@h/a.png"),
        ("https://me:5e?cret@h/a.png", "https://…@h/a.png"),
        ("//me:5ecret@h/a.png?signature=5ecret", "//…@h/a.png?…"),
        ("https:/me:5ecret@h/a.png", "https:/…@h/a.png"),
        ("h/a.png?X-Amz-Signature=5ecret", "h/a.png?…"),
        ("what?.png", "what?.png"),
        ("photos//me@home.png", "photos//me@home.png"),
    ],
)
def test_the_parts_of_a_url_that_give_access_are_never_shown(reference: str, safe: str) -> None:
    assert redact_url(reference) == safe
    assert quoted(reference) == f"'{safe}'"


@pytest.mark.parametrize("piece", ["://", "://a:", "https://a:b/", "?", "@", ":", "//a:"])
def test_a_reference_of_any_length_is_shown_at_once(piece: str) -> None:
    before = time.process_time()
    quoted(piece * (131_072 // len(piece)))
    assert time.process_time() - before < 1
