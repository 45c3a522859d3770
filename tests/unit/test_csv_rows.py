"""The rows of a job: the same in every pass and from any row on, with unique names."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input import reader
from darkroom.errors import JobRejected, RowRejected
from darkroom.jobs import ResultPaths
from darkroom.rows import RowRequest
from tests.fakes.csv_files import HEADER, job_rows, rejection, request_of, rows_of

NAME = st.sampled_from(["", "a", "A", "a-1", "a-1.png", "a.png", "b/a.png", "000001", "../x", "é"])


@st.composite
def named_rows(draw: st.DrawFn) -> str:
    """A CSV whose index, output_name and n collide in many ways."""
    header = draw(st.sampled_from([["index"], ["output_name"], ["index", "output_name"], []]))
    rows = [
        ["red", *(draw(NAME) for _ in header), draw(st.sampled_from(["", "1", "2", "3", "0"]))]
        for _ in range(draw(st.integers(1, 12)))
    ]
    text = io.StringIO()
    csv.writer(text).writerows([["instruction", *header, "n"], *rows])
    return text.getvalue()


@given(named_rows(), st.data())
def test_reading_from_any_row_yields_the_remaining_rows(text: str, data: st.DataObject) -> None:
    rows = job_rows(text, filter_rows="1:6")
    whole = [shape(row) for row in rows]
    assert [shape(row) for row in rows] == whole
    start = data.draw(st.integers(1, len(whole)))
    assert [shape(row) for row in rows.from_row(start, whole[start - 1][-1])] == whole[start:]


def shape(row: reader.JobRow) -> tuple[object, str, bool, int]:
    request = row.request if isinstance(row.request, RowRequest) else row.request.detail
    return request, row.key, row.skipped, row.end


@given(named_rows())
def test_no_two_rows_share_a_key_or_an_image(text: str) -> None:
    paths = ResultPaths("j")
    keys, images = list[str](), list[str]()
    for row in rows_of(text):
        if isinstance(row.request, RowRejected):
            continue
        name = row.request.output_name or f"{row.key}.png"
        keys.append(row.key.casefold())
        images += [paths.image(name, copy).casefold() for copy in range(row.request.n)]
    assert len(set(keys)) == len(keys)
    assert len(set(images)) == len(images)


@pytest.mark.parametrize(
    ("rows", "detail"),
    [
        ("7,,\n7,,\n", "column index: row 0 already uses the name '7'"),
        ("a,,\nA,,\n", "column index: row 0 already uses the name 'A'"),
        (",x.png,\n,X.PNG,\n", "column output_name: row 0 already uses the name 'X.PNG'"),
        (",x.png,2\n,x-1.png,\n", "column output_name: row 0 already uses the name 'x-1.png'"),
        ("x,,\n,x.png,\n", "column output_name: row 0 already uses the name 'x.png'"),
        ("000001,,\n,,\n", "column index: row 0 already uses the name '000001'"),
    ],
)
def test_a_name_used_twice_fails_the_second_row_and_names_the_first(rows: str, detail: str) -> None:
    first, second = rows_of("index,output_name,n,instruction\n" + rows.replace("\n", ",red\n"))
    assert rejection(first) == ""
    assert rejection(second).startswith(detail)


def test_a_rejected_row_does_not_use_up_its_name() -> None:
    first, second = rows_of("index,n,instruction\n7,0,red\n7,1,blue\n")
    assert "from 1 to 10" in rejection(first)
    assert request_of(second).instruction == "blue"


def test_a_skipped_row_still_uses_up_its_name() -> None:
    first, second = rows_of("index,instruction\n7,red\n7,blue\n", filter_rows="1")
    assert (first.skipped, second.skipped) == (True, False)
    assert "row 0 already uses the name" in rejection(second)


def test_cells_are_kept_as_written() -> None:
    (row,) = rows_of('instruction,note,sku\n red ," a ""b"" ",\n')
    assert row.cells == (" red ", ' a "b" ', "")


def test_row_numbers_and_keys_count_rows_not_lines() -> None:
    rows = rows_of(HEADER + '\na.jpg,"two\nlines"\n\n,,\nb.jpg,blue\n')
    assert [(row.row, row.key) for row in rows] == [(0, "000000"), (1, "000001")]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEADER, "has a header row but no rows"),
        (HEADER + "\n,\n \n", "has a header row but no rows"),
        (HEADER + "a,b\n" * 2, "'2:9' selects none of the file's 2 rows"),
    ],
)
def test_a_file_without_rows_to_edit_is_rejected(text: str, sentence: str) -> None:
    with pytest.raises(JobRejected, match=sentence):
        rows_of(text, filter_rows="2:9")


def test_a_file_with_too_many_rows_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_ROWS", 3)  # five million would take too long
    assert len(rows_of(HEADER + "a,b\n" * 3)) == 3
    rows = job_rows(HEADER + "a,b\n" * 4)
    for read in (rows.check, rows.__iter__):
        with pytest.raises(JobRejected, match="more than 3 rows: split it"):
            list(read())


def test_the_check_of_a_truncated_file_yields_its_rows_and_then_fails() -> None:
    numbers = list[int]()
    with pytest.raises(JobRejected, match="middle of a quoted field"):
        numbers.extend(job_rows(HEADER + 'a,b\n"c').check())
    assert numbers == [0]


def test_a_bad_filter_is_rejected_before_the_file_is_opened() -> None:
    with pytest.raises(JobRejected, match="filter-rows: 'x' is not a row"):
        job_rows(b"\x89PNG", filter_rows="x")


@given(st.text(max_size=120), st.sampled_from(["instruction\n", "index,instruction,image_url\n"]))
def test_any_text_yields_rows_or_is_rejected(text: str, header: str) -> None:
    try:
        rows = rows_of((header + text).encode("utf-8", "surrogatepass"))
    except JobRejected as error:
        sentence = str(error)
        assert sentence.endswith(".")
        return
    assert [row.row for row in rows] == list(range(len(rows)))
    assert all(len(row.cells) == header.count(",") + 1 for row in rows)
