"""Records: independent of chunks, delimiter, encoding and compression; offsets to continue from."""

import csv
import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.reader import CsvInput, Record
from darkroom.csv_input.text import HEAD_BYTES
from darkroom.errors import JobRejected
from tests.fakes.csv_files import opened

# What a CSV can contain: all but NUL, surrogates and bare CRs (csv.reader ends rows at those).
CELL = st.text(
    st.one_of(
        st.sampled_from(list(",;\t\"'\n |=[]{}<>\N{EURO SIGN}\N{LINE SEPARATOR}\x85\x0b")),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"),
    ),
    max_size=12,
)
ROWS = st.lists(st.lists(CELL, min_size=3, max_size=3), max_size=12)
HEADER = ["image_url", "instruction", "note"]


def written(rows: list[list[str]], delimiter: str = ",", end: str = "\n") -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([HEADER, *rows])
    return text.getvalue()


def read(data: bytes, chunk: int = 4096) -> list[Record]:
    return list(CsvInput.open(opened(data, chunk)).records())


def with_content(rows: list[list[str]]) -> list[list[str]]:
    return [row for row in rows if any(cell.strip() for cell in row)]


@given(
    ROWS,
    st.tuples(st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"])),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
    st.integers(1, 64),
)
def test_the_rows_do_not_depend_on_the_format_of_the_file(
    rows: list[list[str]], dialect: tuple[str, str], encoding: str, zipped: bool, chunk: int
) -> None:
    data = written(rows, *dialect).encode(encoding)
    stored = gzip.compress(data) if zipped else data
    assert [record.cells for record in read(stored, chunk)] == with_content(rows)


@given(ROWS, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.booleans(), st.integers(1, 99))
def test_reading_from_the_end_of_any_record_yields_the_following_ones(
    rows: list[list[str]], encoding: str, zipped: bool, chunk: int
) -> None:
    data = written(rows).encode(encoding)
    opened_csv = CsvInput.open(opened(gzip.compress(data) if zipped else data, chunk))
    records = list(opened_csv.records())
    for number, record in enumerate(records):
        assert list(opened_csv.records(record.end)) == records[number + 1 :]


@given(st.text(max_size=200), st.sampled_from(["", "image_url,instruction\n"]), st.integers(1, 50))
def test_any_text_is_read_or_rejected(text: str, header: str, chunk: int) -> None:
    data = (header + text).encode("utf-8", "surrogatepass")
    try:
        opened_csv = CsvInput.open(opened(data, chunk))
        records = list(opened_csv.records())
    except JobRejected as error:
        sentence = str(error)
        assert sentence.endswith(".")
        return
    for number, record in enumerate(records):
        assert list(opened_csv.records(record.end)) == records[number + 1 :]


def test_bare_carriage_returns_end_rows() -> None:
    records = read(b"image_url,instruction\ra.jpg,red\rb.jpg,blue\r")
    assert [record.cells for record in records] == [["a.jpg", "red"], ["b.jpg", "blue"]]


@pytest.mark.parametrize("blank", ["\n", "\r\n", ",\n", ' , \n"",\n'])
def test_blank_rows_are_skipped_and_do_not_shift_offsets(blank: str) -> None:
    text = f"image_url,instruction\n{blank}a.jpg,red\n{blank}b.jpg,blue\n{blank}"
    opened_csv = CsvInput.open(opened(text.encode()))
    first, second = opened_csv.records()
    assert (first.cells, second.cells) == (["a.jpg", "red"], ["b.jpg", "blue"])
    assert list(opened_csv.records(first.end)) == [second]


@pytest.mark.parametrize("hint", ["sep=;\r\n", "SEP=;\n", '"sep=;"\n'])
def test_the_delimiter_hint_of_excel_is_not_the_header(hint: str) -> None:
    opened_csv = CsvInput.open(opened(f"{hint}image_url;instruction\na,b.jpg;red\n".encode()))
    assert opened_csv.header == ("image_url", "instruction")
    assert [record.cells for record in opened_csv.records()] == [["a,b.jpg", "red"]]


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("image_url,instruction", ","),
        ("image_url;instruction", ";"),
        ("image_url\tinstruction", "\t"),
        ("prompt;size, in cm", ";"),
        ('"Bild,Url";prompt', ";"),
        ("Bild;Anweisung", ";"),
        ("instruction", ","),
    ],
)
def test_the_delimiter_is_the_one_that_finds_known_columns(header: str, delimiter: str) -> None:
    assert CsvInput.open(opened(f"{header}\n".encode())).delimiter == delimiter


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('image_url,"instruction\na.jpg,red\n', "middle of a quoted field"),
        ("x" * (HEAD_BYTES + 10), r"header row is longer than|never closed"),
        ('"' + "x,\n" * HEAD_BYTES, r"header row is longer than|never closed"),
        *(("x" * shift + "\U0001f5bc" * HEAD_BYTES, "header row is longer") for shift in range(4)),
    ],
)
def test_a_header_that_does_not_end_is_rejected(text: str, sentence: str) -> None:
    with pytest.raises(JobRejected, match=sentence):
        CsvInput.open(opened(text.encode()))


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_character_across_the_end_of_the_head_is_read_whole(shift: int, encoding: str) -> None:
    note = "x" * shift + "\N{LATIN SMALL LETTER E WITH ACUTE}\U0001f5bc" * 40_000
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    data = mark + f"image_url,instruction\na.jpg,{note}\n".encode(encoding)
    assert read(data)[0].cells == ["a.jpg", note]


def test_the_limit_on_rows_does_not_limit_the_file() -> None:
    row = b"a.jpg," + b"x" * 100_000 + b"\n"
    assert len(read(b"image_url,instruction\n" + row * 30)) == 30


def test_1000_columns_are_read_and_one_more_is_rejected() -> None:
    def wide(columns: int) -> bytes:
        return ",".join(["instruction", *(f"c{i}" for i in range(1, columns))]).encode()

    assert len(CsvInput.open(opened(wide(1000))).header) == 1000
    with pytest.raises(JobRejected, match="more than 1,000 columns"):
        CsvInput.open(opened(wide(1001)))


def test_a_cell_of_131072_characters_is_read_and_one_more_is_rejected() -> None:
    head = b"image_url,instruction\na.jpg,"
    assert len(read(head + b"x" * 131_072)[0].cells[1]) == 131_072
    with pytest.raises(JobRejected, match="Line 2 contains a field of more than 131,072"):
        read(head + b"x" * 131_073)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ('a.jpg,"red', "ends in the middle of a quoted field"),
        ('a.jpg,red\nb.jpg,"blue" sky\n', "Line 3 has text after a closing quote"),
    ],
)
def test_invalid_quoting_is_rejected(body: str, sentence: str) -> None:
    with pytest.raises(JobRejected, match=sentence):
        read(f"image_url,instruction\n{body}".encode())
