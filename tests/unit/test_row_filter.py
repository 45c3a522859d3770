"""The option filter-rows: ranges of rows, compared with their plain meaning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import parse_options
from darkroom.csv_input.values import parse_row_filter
from darkroom.errors import JobRejected
from tests.fakes.csv_files import HEADER, job_rows

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


def test_without_a_filter_all_rows_are_selected() -> None:
    row_filter = job_rows(HEADER).row_filter
    assert 0 in row_filter
    assert 4_999_999 in row_filter


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        *(
            (text, r"filter-rows: '.*' is not a row or a range of rows: write rows")
            for text in ("", ",", "a", "-1", "1,,2", "1:2:3", "1-5", "\u0663", "1e3", "5 7")
        ),
        *((text, f"the range '{text}' is empty") for text in ("5:5", "9:3", ":0")),
    ],
)
def test_an_invalid_filter_is_rejected_with_the_invalid_part(text: str, sentence: str) -> None:
    with pytest.raises(JobRejected, match=sentence):
        parse_options({"filter-rows": text})
    with pytest.raises(JobRejected, match=sentence):
        job_rows(HEADER, filter_rows=text)


@given(st.text(max_size=20))
def test_any_text_is_a_filter_or_is_rejected(text: str) -> None:
    try:
        parse_options({"filter-rows": text})
    except JobRejected as error:
        sentence = str(error)
        assert sentence.endswith(".")
