"""filter-rows, against its plain meaning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import ALL_ROWS, parse_row_filter
from darkroom.errors import JobRejected

PART = st.one_of(
    st.integers(0, 40).map(lambda row: (f"{row}", range(row, row + 1))),
    st.tuples(st.integers(0, 40), st.integers(1, 9)).map(
        lambda r: (f"{r[0]}:{r[0] + r[1]}", range(r[0], r[0] + r[1]))
    ),
    st.integers(0, 40).map(lambda row: (f"{row}:", range(row, 10_000))),
    st.integers(1, 40).map(lambda row: (f":{row}", range(row))),
)


@given(st.lists(PART, min_size=1, max_size=8), st.sampled_from([",", ", ", ";"]))
def test_a_filter_is_the_union_of_its_parts(parts: list[tuple[str, range]], separator: str) -> None:
    chosen = parse_row_filter(separator.join(text for text, _ in parts))
    for row in range(60):
        assert (row in chosen) == any(row in rows for _, rows in parts)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("0:50", set(range(50))),
        (":10", set(range(10))),
        ("5,7,20:30", {5, 7, *range(20, 30)}),
        (" 3 : 5 ", {3, 4}),
        (":", set(range(100))),
        ("98:", {98, 99}),
    ],
)
def test_the_documented_forms(text: str, rows: set[int]) -> None:
    assert {row for row in range(100) if row in parse_row_filter(text)} == rows


def test_no_filter_is_all_rows() -> None:
    assert parse_row_filter(None) is ALL_ROWS
    assert 4_999_999 in ALL_ROWS


@pytest.mark.parametrize(
    "text", ["", ",", "a", "-1", "1,,2", "1:2:3", "1-5", "\u0663", "1e3", "5 7"]
)
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(JobRejected, match=r"filter-rows cannot be read at '.*': write rows"):
        parse_row_filter(text)


@pytest.mark.parametrize("text", ["5:5", "9:3", ":0"])
def test_an_empty_range_is_named(text: str) -> None:
    with pytest.raises(JobRejected, match=f"the range '{text}', which is empty"):
        parse_row_filter(text)


@given(st.text(max_size=20))
def test_any_text_is_a_filter_or_rejected(text: str) -> None:
    try:
        parse_row_filter(text)
    except JobRejected as error:
        told = str(error)
        assert told.endswith(".")
