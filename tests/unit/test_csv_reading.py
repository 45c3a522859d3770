"""From the bytes of a CSV to the rows of its job: encodings, records, offsets, unique names.

Every CSV of tests/corpus/csv yields the rows, or the error, listed in expected.yaml. A string there
is the reason that the job fails with. A list contains the rows: `key {request}` or `key ! reason`,
and warnings as `warning: …`.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input import reader, text
from darkroom.csv_input.names import (
    ImageNames,
    default_names,
    is_content_key,
    parse_output_name,
    plain_names,
)
from darkroom.csv_input.reader import CsvInput, JobRow, read_job_rows
from darkroom.csv_input.text import HEAD_BYTES, Lines, TextFormat, gunzip, read_format, read_text
from darkroom.errors import JobRejected, RowRejected
from darkroom.jobs import JobOptions, ResultPaths
from darkroom.rows import RowRequest
from tests.corpus.csv.binary import CORPUS, CSVS
from tests.fakes.csv_files import (
    HEADER,
    comparable,
    job_rows,
    opened,
    rejection,
    rows_of,
)

EXPECTED = yaml.safe_load((CORPUS / "expected.yaml").read_text())


def outcome(data: bytes) -> str | list[str]:
    try:
        warnings = job_rows(data).columns.warnings
        return [*map(line, rows_of(data)), *(f"warning: {warning}" for warning in warnings)]
    except JobRejected as error:
        return str(error)


def line(row: JobRow) -> str:
    name = f"{row.row:06d}" if is_content_key(row.key) else row.key
    if not isinstance(row.request, RowRequest):
        return f"{name} ! {row.request.detail}"
    request = row.request.model_dump(exclude_defaults=True, mode="json")
    return f"{name} {json.dumps(request, ensure_ascii=False)}"


def test_expected_yaml_lists_exactly_the_files_of_the_corpus() -> None:
    assert set(EXPECTED) == set(CSVS)
    assert len(CSVS) >= 100


@pytest.mark.parametrize("name", sorted(CSVS))
def test_a_csv_yields_the_expected_rows_or_error_also_when_compressed(name: str) -> None:
    data = CSVS[name]()
    assert outcome(data) == EXPECTED[name]
    if "gzip" not in name:
        assert outcome(gzip.compress(data)) == EXPECTED[name]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return opened(data, size)(0)


@given(
    st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    st.integers(0, 40),
    st.integers(1, 50),
)
def test_consecutive_gzip_members_are_one_file_and_zero_padding_is_ignored(
    members: list[bytes], zeros: int, size: int
) -> None:
    zipped = b"".join(gzip.compress(member) for member in members) + bytes(zeros)
    assert b"".join(gunzip(pieces(zipped, size))) == b"".join(members)


@given(st.data())
def test_truncated_gzip_is_rejected(data: st.DataObject) -> None:
    zipped = gzip.compress(b"image_url,instruction\n" + b"a.jpg,red\n" * 50)
    cut = data.draw(st.integers(2, len(zipped) - 1))
    with pytest.raises(JobRejected, match="ends too early"):
        list(gunzip(pieces(zipped[:cut], 16)))


@given(st.data())
def test_gzip_with_a_wrong_byte_is_rejected_or_yields_the_same_text(data: st.DataObject) -> None:
    text = b"image_url,instruction\n" + b"a.jpg,red\n" * 50
    zipped = bytearray(gzip.compress(text, mtime=0))
    place = data.draw(st.integers(0, len(zipped) - 1))
    zipped[place] ^= data.draw(st.integers(1, 255))
    try:
        read = b"".join(gunzip(pieces(bytes(zipped), 64)))
    except JobRejected as error:
        outcome = str(error)
    else:
        outcome = "gzip" if read == text else "other text"  # no checksum covers some header bytes
    assert "gzip" in outcome


def test_a_gzip_bomb_is_decompressed_piece_by_piece() -> None:
    zipped = gzip.compress(bytes(64 << 20))
    assert max(map(len, gunzip(pieces(zipped, 1 << 20)))) <= 1 << 20


def test_text_that_does_not_end_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_TEXT_BYTES", 100)  # 16 GiB of it would take too long
    with pytest.raises(JobRejected, match="larger than 16 GiB"):
        list(Lines(pieces(b"\n" * 101, 10), "utf-8", 0))


@given(st.text(), st.integers(1, 5), st.sampled_from(["utf-8", "utf-16-le", "utf-16-be"]))
def test_lines_are_the_text_and_offsets_count_its_bytes(
    text: str, size: int, encoding: str
) -> None:
    data = text.replace("\0", "").encode(encoding, "ignore")
    lines = Lines(pieces(data, size), encoding, 7)
    read = b""
    for line in lines:
        read += line.encode(encoding)
        lines.record_chars = 0
        assert lines.offset == 7 + len(read)
    assert read == data


@pytest.mark.parametrize(
    ("data", "encoding", "sentence"),
    [
        *(
            (f"a,b{end}a,red{end}b,".encode() + b"\xe9", "utf-8", r"Line 3 is not UTF-8 .*0xE9")
            for end in ("\n", "\r\n", "\r")
        ),
        (b"a.jpg,red\n" * 5_000 + b"b.jpg,\xff\n", "utf-8", "Line 5001 is not UTF-8"),
        ("caf\xe9".encode()[:-1], "utf-8", "Line 1 is not UTF-8"),
        ("ab\n".encode("utf-16-le") + b"x", "utf-16-le", "UTF-16 text is cut off or damaged"),
        (b"\x00\xd8a\x00", "utf-16-le", "UTF-16 text is cut off or damaged"),
        (b"ok\nno\0t ok\n", "utf-8", "Line 2 contains NUL"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1000])
def test_bytes_that_are_not_text_are_rejected_with_their_line(
    data: bytes, encoding: str, sentence: str, chunk: int
) -> None:
    with pytest.raises(JobRejected, match=sentence):
        list(Lines(pieces(data, chunk), encoding, 0))


def test_a_record_that_never_ends_takes_bounded_memory() -> None:
    def forever() -> Iterator[bytes]:
        while True:
            yield b"x" * 65_536

    with pytest.raises(JobRejected, match="never closed"):
        list(Lines(forever(), "utf-8", 0))


@pytest.mark.parametrize(
    ("data", "encoding", "start"),
    [
        (b"instruction\n", "utf-8", 0),
        (b"\xef\xbb\xbfinstruction\n", "utf-8", 3),
        (b"\xff\xfei\0", "utf-16-le", 2),
        (b"\xfe\xff\0i", "utf-16-be", 2),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("chunk", [1, 4096])
def test_the_format_is_detected_from_the_first_bytes(
    data: bytes, encoding: str, start: int, zipped: bool, chunk: int
) -> None:
    stored = gzip.compress(data) if zipped else data
    found, head = read_format(opened(stored, chunk))
    assert found == TextFormat(zipped, encoding, start)
    assert head == data


@given(st.binary(min_size=1, max_size=300), st.data(), st.booleans())
def test_reading_from_an_offset_yields_the_remaining_bytes(
    data: bytes, draw: st.DataObject, zipped: bool
) -> None:
    offset = draw.draw(st.integers(0, len(data)))
    stored = gzip.compress(data) if zipped else data
    read = read_text(opened(stored, 17), TextFormat(zipped, "utf-8", 0), offset)
    assert b"".join(read) == data[offset:]


# What a CSV can contain: all but NUL, surrogates and bare CRs (csv.reader ends rows at those).
CELL = st.text(
    st.one_of(
        st.sampled_from(list(",;\t\"'\n |=[]{}<>\N{EURO SIGN}\N{LINE SEPARATOR}\x85\x0b")),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"),
    ),
    max_size=12,
)
ROWS = st.lists(st.lists(CELL, min_size=3, max_size=3), max_size=12)


def read(data: bytes, chunk: int = 4096) -> list[list[str]]:
    return list(CsvInput.open(opened(data, chunk)).records())


@given(
    ROWS,
    st.tuples(st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"])),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
    st.integers(1, 99),
)
def test_the_rows_do_not_depend_on_the_format(
    rows: list[list[str]], dialect: tuple[str, str], encoding: str, zipped: bool, chunk: int
) -> None:
    written, (delimiter, end) = io.StringIO(newline=""), dialect
    writer = csv.writer(written, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([["image_url", "instruction", "note"], *rows])
    data = written.getvalue().encode(encoding)
    opened_csv = CsvInput.open(opened(gzip.compress(data) if zipped else data, chunk))
    records = list(opened_csv.records())
    assert records == [row for row in rows if "".join(row).strip()]


@pytest.mark.parametrize(
    "contents",
    [
        st.binary(max_size=400),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    ],
)
@given(st.data(), st.sampled_from([b"", b"image_url,instruction\n"]), st.integers(1, 100))
def test_any_bytes_are_read_or_rejected(
    contents: st.SearchStrategy[bytes], data: st.DataObject, header: bytes, chunk: int
) -> None:
    source = opened(header + data.draw(contents), chunk)
    try:
        opened_csv = CsvInput.open(source)
        records = list(opened_csv.records())
    except JobRejected as error:
        sentence = str(error)
        assert sentence.endswith(".")
        return
    assert list(opened_csv.records()) == records


@pytest.mark.parametrize(
    ("blank", "end"), [("", "\r"), *((b, "\n") for b in ("\n", "\r\n", ",\n", ' , \n"",\n'))]
)
def test_blank_rows_and_line_ends_are_skipped(blank: str, end: str) -> None:
    rows = ("image_url,instruction", "a.jpg,red", "b.jpg,blue", "")
    opened_csv = CsvInput.open(opened(f"{end}{blank}".join(rows).encode()))
    assert list(opened_csv.records()) == [["a.jpg", "red"], ["b.jpg", "blue"]]


@pytest.mark.parametrize("hint", ["sep=;\r\n", "SEP=;\n", '"sep=;"\n'])
def test_the_delimiter_hint_of_excel_is_not_the_header(hint: str) -> None:
    opened_csv = CsvInput.open(opened(f"{hint}image_url;instruction\na,b.jpg;red\n".encode()))
    assert opened_csv.header == ("image_url", "instruction")
    assert list(opened_csv.records()) == [["a,b.jpg", "red"]]


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
    assert read(data)[0] == ["a.jpg", note]


def test_the_limits_on_cells_and_rows_do_not_limit_the_file() -> None:
    row = b"a.jpg," + b"x" * 131_072 + b"\n"
    assert [len(cells[1]) for cells in read(HEADER.encode() + row * 30)] == [131_072] * 30


NAME = st.sampled_from(["", "a", "A", "a-1", "a-1.png", "a.png", "b/a.png", "000001", "../x", "é"])
IMAGE = st.sampled_from(
    ["", "a.jpg", "b/A.png", "https://h/a-1.jpg?x=1", "000001.webp", "s3://b/k/a?.gif", "/", "con"]
)


@st.composite
def named_rows(draw: st.DrawFn) -> str:
    """A CSV whose index, output_name and n collide in many ways."""
    header = draw(st.sampled_from([["index"], ["output_name"], ["index", "output_name"], []]))
    rows = [
        [
            *("red", draw(IMAGE)),
            *(draw(NAME) for _ in header),
            draw(st.sampled_from(["", "1", "2", "3", "0"])),
        ]
        for _ in range(draw(st.integers(1, 12)))
    ]
    text = io.StringIO()
    csv.writer(text).writerows([["instruction", "image_url", *header, "n"], *rows])
    return text.getvalue()


@given(named_rows(), st.data())
def test_reading_from_any_row_yields_the_remaining_rows(text: str, data: st.DataObject) -> None:
    rows = job_rows(text, filter_rows="1:6")
    whole = list(map(comparable, rows))
    assert list(map(comparable, rows)) == whole
    start = data.draw(st.integers(1, len(whole)))
    assert list(map(comparable, rows.from_row(start))) == whole[start:]
    names, before = rows.prepare(start)
    assert list(map(comparable, rows.from_row(start, before))) == whole[start:]
    first_names, _ = rows.prepare(0)
    for row in whole:
        own = default_names(row.row, row.key, (row.cells[1],))
        assert names.choose(own, 1) == first_names.choose(own, 1)


@given(named_rows())
def test_no_two_rows_share_a_key_or_an_image(text: str) -> None:
    paths = ResultPaths("j")
    keys, images = list[str](), list[str]()
    names, _ = job_rows(text).prepare(0)
    for row in rows_of(text):
        if isinstance(row.request, RowRejected):
            continue
        request = row.request
        own = default_names(row.row, row.key, request.images)
        name = request.output_name or names.choose(own, request.n)
        assert parse_output_name(name) == name
        keys.append(row.key.casefold())
        images += [paths.image(name, copy).casefold() for copy in range(row.request.n)]
    assert len(set(keys)) == len(keys)
    assert len(set(images)) == len(images)


(RED,) = (row.key for row in rows_of("instruction\nred\n"))


@pytest.mark.parametrize(
    ("rows", "detail"),
    [
        ("7,,\n7,,\n", "column index: row 0 already uses the name '7'"),
        ("a,,\nA,,\n", "column index: row 0 already uses the name 'A'"),
        (",x.png,\n,X.PNG,\n", "column output_name: row 0 already uses the name 'X.PNG'"),
        (",x.png,2\n,x-1.png,\n", "column output_name: row 0 already uses the name 'x-1.png'"),
        (f"{RED},,\n,,\n", f"column index: row 0 already uses the name '{RED}'"),
    ],
)
def test_a_name_used_twice_fails_the_second_row_and_names_the_first(rows: str, detail: str) -> None:
    first, second = rows_of("index,output_name,n,instruction\n" + rows.replace("\n", ",red\n"))
    assert rejection(first) == ""
    assert rejection(second).startswith(detail)


def test_a_rejected_row_does_not_use_up_its_name() -> None:
    first, second = rows_of("index,n,instruction\n7,0,red\n7,1,blue\n")
    assert "from 1 to 10" in rejection(first)
    assert second.request == RowRequest(instruction="blue")


def test_a_skipped_row_still_uses_up_its_name() -> None:
    first, second = rows_of("index,instruction\n7,red\n7,blue\n", filter_rows="1")
    assert (first.skipped, second.skipped) == (True, False)
    assert "row 0 already uses the name" in rejection(second)


def test_cells_are_kept_as_written() -> None:
    (row,) = rows_of('instruction,note,sku\n red ," a ""b"" ",\n')
    assert row.cells == (" red ", ' a "b" ', "")


def test_row_numbers_and_keys_count_rows_not_lines() -> None:
    rows = rows_of(HEADER + '\na.jpg,"two\nlines"\n\n,,\nb.jpg,blue\n')
    assert [row.row for row in rows] == [0, 1]


def test_rows_without_an_index_are_identified_by_what_they_ask_for() -> None:
    header = "image_url,instruction,size,n,sku,index\n"
    first, same, moved, other = rows_of(
        header
        + "a.jpg|b.jpg,red,1024x1536,,A,\n"
        + '"[""a.jpg"", ""b.jpg""]", red ,1024 x 1536,1,B,\n'
        + "b.jpg|a.jpg,red,1024x1536,,A,\n"
        + "a.jpg|b.jpg,red,1024x1536,2,A,\n"
    )
    assert is_content_key(first.key)
    assert same.key == f"{first.key}_2"
    assert len({first.key, moved.key, other.key}) == 3
    (alone,) = rows_of(header + f"a.jpg|b.jpg,blue,1024x1536,,A,{first.key}\n")
    assert alone.key == first.key  # as in failed.csv


def test_job_options_do_not_change_the_identity_of_a_row() -> None:
    text = "image_url,colour\na.jpg,red\nb.jpg,\n"
    keys = [
        [row.key for row in rows_of(text, instruction=instruction, quality=quality)]
        for instruction, quality in (("Make it {colour}", "low"), ("Paint it {colour}", None))
    ]
    assert keys[0] == keys[1]
    (changed, _) = rows_of(text.replace("red", "blue"), instruction="Make it {colour}")
    assert changed.key != keys[0][0]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (",p/IMG_001.jpg,|,p/IMG_002.JPEG,", ["IMG_001.png", "IMG_002.png"]),
        (",https://h/My%20cup.webp?X-Amz-Signature=s,", ["My cup.png"]),
        (",s3://b/k/a.tar.gz,|,https://h/download,", ["a.tar.gz.png", "download.png"]),
        ("mug-1,p/mug.jpg,|mug-2,p/mug.jpg,", ["mug-mug-1.png", "mug-mug-2.png"]),
        ("mug-1,p/mug.jpg,|hen,,|,,", ["mug.png", "hen.png", "000002.png"]),
        (",a/x.jpg,|,b/X.png,", ["x-*.png", "X-*.png"]),
        (",x.jpg,|,a.jpg,x.png", ["x-*.png", "x.png"]),
        (",000001.jpg,|,,", ["000001-*.png", "000001-*.png"]),
        (",https://h/,|,p/con.jpg,|,..,|,https://[/a.jpg,", ["000000", "_con", "000002", "000003"]),
    ],
)
def test_images_are_named_after_the_first_input_image(rows: str, names: list[str]) -> None:
    text = "index,image_url,output_name,instruction\n" + rows.replace("|", ",red\n") + ",red\n"
    chosen = chosen_names(text)
    assert [re.sub(r"-[0-9a-f]{12}(?=\.)", "-*", name) for name in chosen] == [
        name if name.endswith(".png") else f"{name}.png" for name in names
    ]


def chosen_names(text: str) -> list[str]:
    rows = job_rows(text)
    names, _ = rows.prepare(0)
    return [
        row.request.output_name
        or names.choose(default_names(row.row, row.key, row.request.images), row.request.n)
        for row in rows
        if isinstance(row.request, RowRequest)
    ]


def test_the_names_of_copies_are_nobody_elses() -> None:
    first, second = chosen_names("image_url,n,instruction\nx.jpg,2,red\nx-1.jpg,1,red\n")
    assert (first.startswith("x-"), second.startswith("x-1-")) == (True, True)


def test_names_stay_unique_when_there_are_too_many_to_compare() -> None:
    names = ImageNames(max_slots=1024)
    for number in range(1_000):
        names.add(plain_names(number, f"row-{number:012x}", (f"{number}.jpg",)), 1)
    assert names.choose(["5.png", "5-000000000005.png"], 1) == "5-000000000005.png"


ROW = st.tuples(st.sampled_from("abc"), st.sampled_from(["red", "blue", ""]))


@given(st.lists(ROW, max_size=8), st.lists(ROW, max_size=4), st.data())
def test_rows_that_only_move_keep_their_identity(
    kept: list[tuple[str, str]], added: list[tuple[str, str]], data: st.DataObject
) -> None:
    """Equal rows are interchangeable: what counts is which keys there are, and for which rows."""

    def keys(rows: list[tuple[str, str]]) -> set[tuple[tuple[str, ...], str]]:
        text = HEADER + "".join(f"{image}.jpg,{instruction}\n" for image, instruction in rows)
        found = list(job_rows(text))
        assert len({row.key for row in found}) == len(rows)
        return {(row.cells, row.key) for row in found}

    removed = data.draw(st.sets(st.integers(0, 7), max_size=3))
    left = [row for place, row in enumerate(kept) if place not in removed]
    assert keys(left) <= keys(kept)
    assert keys(kept) <= keys(data.draw(st.permutations([*kept, *added])))


def test_many_equal_rows_are_distinguished_in_one_pass() -> None:
    rows = job_rows(HEADER + "a.jpg,red\n" * 20_000)
    keys = [row.key for row in rows]
    assert keys[1:3] == [f"{keys[0]}_2", f"{keys[0]}_3"]
    assert len(set(keys)) == 20_000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEADER + "\n,\n \n", "has a header row but no rows"),
        (HEADER + "a,b\n" * 2, "'2:9' selects none of the file's 2 rows"),
    ],
)
def test_a_file_without_rows_to_edit_is_rejected(text: str, sentence: str) -> None:
    with pytest.raises(JobRejected, match=sentence):
        rows_of(text, filter_rows="2:9")


def test_a_file_with_too_many_rows_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_ROWS", 3)  # ten million would take too long
    assert len(rows_of(HEADER + "a,b\n" * 3)) == 3
    rows = job_rows(HEADER + "a,b\n" * 4)
    for read in (rows.check, lambda: list(rows)):
        with pytest.raises(JobRejected, match="more than 3 rows: split it"):
            read()


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_the_clock_is_looked_at_for_every_mebibyte_of_blank_lines(
    compress: Callable[[bytes], bytes],
) -> None:
    data = compress(HEADER.encode() + b"\n" * 20_000_000 + b"a,b\n")
    looks = list[int]()
    rows = read_job_rows(opened(data, 100_000), JobOptions(), lambda: looks.append(1))
    assert [row.row for row in rows] == [0]
    assert len(looks) >= 20_000_000 / 2**20


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
