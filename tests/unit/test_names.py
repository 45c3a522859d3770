"""Names of rows and images."""

import posixpath
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import read_columns
from darkroom.csv_input.names import (
    OUTPUT_SUFFIXES,
    UsedNames,
    image_names,
    parse_key,
    parse_output_name,
)
from darkroom.csv_input.reader import parse_row, row_key
from darkroom.errors import Reason, RowRejected
from darkroom.jobs import JobOptions, ResultPaths

JOB = ResultPaths("jobs/products")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("shoe.png", "shoe.png"),
        ("shoe", "shoe.png"),
        ("shoe.v2", "shoe.v2.png"),
        ("red/shoe.JPG", "red/shoe.JPG"),
        ("images/shoe.webp", "shoe.webp"),
        ("cafe\u0301.png", "caf\xe9.png"),
        ("\u9774 1.jpeg", "\u9774 1.jpeg"),
        ("console.png", "console.png"),
    ],
)
def test_valid_names_are_kept(written: str, name: str) -> None:
    assert parse_output_name(written) == name


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("../../other/x.png", "leaves its folder"),
        ("a/../x.png", "leaves its folder"),
        ("a//x.png", "leaves its folder"),
        ("a/", "leaves its folder"),
        ("images/", "leaves its folder"),
        ("..", "leaves its folder"),
        ("/etc/passwd", "begins with a slash"),
        ("a\\b.png", "contains '\\'"),
        ("C:x.png", "contains ':'"),
        ("what?.png", "contains '?'"),
        ("a\x07.png", "U+0007"),
        ("a\ud800.png", "U+D800"),
        (".htaccess", "begins with a dot"),
        ("a /x.png", "ends with a dot or a space"),
        ("a./x.png", "ends with a dot or a space"),
        ("nul", "Windows reserves for a device"),
        ("COM1.png", "Windows reserves for a device"),
        ("a/aux.v2/x.png", "Windows reserves for a device"),
        ("thumbs/x.png", "a folder named images or thumbs"),
        ("a/Images/x.png", "a folder named images or thumbs"),
        ("x.gif", "has the extension .gif"),
        ("x.tiff", "has the extension .tiff"),
        ("\xe9" * 101 + ".png", "a part of more than 200 bytes"),
        ("/".join(["abcdefghi"] * 60), "longer than 500 bytes"),
    ],
)
def test_names_that_leave_the_folder_or_cannot_be_stored_are_rejected(
    written: str, sentence: str
) -> None:
    columns = read_columns(("instruction", "file"), JobOptions(output_name_column="file"))
    with pytest.raises(RowRejected) as rejected:
        parse_row(columns, ["red", written], JobOptions())
    assert rejected.value.reason is Reason.BAD_INPUT
    assert rejected.value.detail.startswith("column file: ")
    assert sentence in rejected.value.detail


PATHS = st.lists(
    st.one_of(
        st.sampled_from(["..", ".", "", "images", "a", "con", "x.png", "y.jpg ", "\\", "~"]),
        st.text(max_size=8),
    ),
    max_size=5,
).map("/".join)


@given(PATHS, st.integers(1, 10))
def test_accepted_names_are_in_the_images_folder_with_a_known_extension(
    written: str, n: int
) -> None:
    try:
        name = parse_output_name(written)
    except ValueError:
        return
    key = JOB.image(name)
    assert posixpath.normpath(key) == key
    assert key.startswith("jobs/products/images/")
    assert key.lower().endswith(OUTPUT_SUFFIXES)
    assert parse_output_name(name) == name
    name.encode()
    assert [JOB.image(copy) for copy in image_names(name, n)] == [
        JOB.image(name, i) for i in range(n)
    ]


@pytest.mark.parametrize("key", ["1", "000007", "A-7_b.c", "x" * 100])
def test_valid_keys_are_kept(key: str) -> None:
    assert parse_key(key) == key


@pytest.mark.parametrize(
    "key", ["-1", ".a", "a.", "a/b", "a b", "\xe9", "x" * 101, "con", "LPT1.x", "a\n", "\u0661"]
)
def test_keys_that_cannot_be_file_names_are_rejected(key: str) -> None:
    with pytest.raises(ValueError, match="cannot be used as a file name"):
        parse_key(key)


def test_a_rejected_key_names_its_column() -> None:
    columns = read_columns(("instruction", "id"), JobOptions())
    with pytest.raises(RowRejected, match="column id: 'a/b' cannot be used as a file name"):
        row_key(columns, ["red", "a/b"], 0)


@given(st.lists(st.text(max_size=2), max_size=60))
def test_used_names_return_the_first_user_like_a_dictionary(names: list[str]) -> None:
    used, known = UsedNames(), dict[str, int]()
    for row, name in enumerate(names):
        folded = normalize("NFC", name).casefold()
        assert used.first_user(name, row) == known.get(folded)
        known.setdefault(folded, row)


def test_used_names_are_kept_while_the_table_grows() -> None:
    used = UsedNames()
    assert all(used.first_user(f"name {row}", row) is None for row in range(20_000))
    assert all(used.first_user(f"NAME {row}", 0) == row for row in range(20_000))
