"""The cells of a row as a request, or the reason why the row is rejected.

Rejections that a line of tests/corpus/csv shows already are not repeated here.
"""

import json
import posixpath
import re
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import COLUMN_FIELDS, read_columns
from darkroom.csv_input.names import (
    OUTPUT_SUFFIXES,
    TooManyNames,
    UsedNames,
    file_stem,
    image_names,
    parse_key,
    parse_output_name,
)
from darkroom.csv_input.reader import index_key, parse_row
from darkroom.csv_input.values import MAX_IMAGES, parse_images
from darkroom.errors import Reason, RowRejected
from darkroom.jobs import JobOptions, ResultPaths
from darkroom.rows import RowMessage, RowRequest

FIELD_NAMES = {field.columns[0]: field.name for field in COLUMN_FIELDS}
COLUMNS = read_columns((*FIELD_NAMES, "sku"), JobOptions())
JOB = ResultPaths("jobs/products")


def parsed(options: JobOptions | None = None, /, **cells: str) -> RowRequest:
    written = {"image_url": "a.jpg", "instruction": "make it red"} | cells
    row = [written.get(column, "") for column in FIELD_NAMES]
    return parse_row(COLUMNS, row, options or JobOptions())


def test_every_column_is_parsed_into_its_field() -> None:
    written = {
        "image_url": (" a.jpg | b.jpg ", ("a.jpg", "b.jpg")),
        "instruction": ("\tmake it\nred ", "make it\nred"),
        "mask_url": ("m.png", "m.png"),
        "aspect_ratio": ("16:9", "16:9"),
        "resolution": ("2K", "2K"),
        "size": ("1024x1536", "1024x1536"),
        "quality": ("high", "high"),
        "background": ("opaque", "opaque"),
        "input_fidelity": ("HIGH", "high"),
        "moderation": ("low", "low"),
        "output_compression": ("0", 0),
        "thinking_level": ("Minimal", "minimal"),
        "seed": ("2147483647", 2_147_483_647),
        "n": ("2", 2),
        "output_name": ("shoe", "shoe.png"),
        "model": ("gpt-image-1.5", "gpt-image-1.5"),
    }
    values = {FIELD_NAMES[column]: value for column, (_, value) in written.items()}
    assert parsed(**{column: text for column, (text, _) in written.items()}).model_dump() == values


URL = "https://x.test"
SPELLINGS: list[tuple[str, object, list[str]]] = [
    ("aspect_ratio", "16:9", ["16x9", "16/9", "16 : 9", "16:09", "16:09:00"]),
    ("resolution", "2K", ["2k"]),
    ("size", "1024x1536", ["1024 x 1536", "1024X1536", "1024*1536"]),
    ("size", "auto", ["AUTO"]),
    ("quality", "hd", ["HD"]),
    ("background", "transparent", ["Transparent"]),
    ("n", 2, ["2.0"]),
    ("n", 10, ["010"]),
    ("image_url", (), ["", "[]"]),
    ("image_url", ("a.jpg",), ["a.jpg"]),
    ("image_url", ("a.jpg", "b.jpg"), ["a.jpg,b.jpg", "a.jpg, b.jpg ,", "a.jpg|b.jpg||"]),
    ("image_url", ("a.jpg", "b.jpg"), ["a.jpg\r\nb.jpg"]),
    ("image_url", ("a,b.jpg", "c.jpg"), ["a,b.jpg|c.jpg"]),
    ("image_url", ("a, b.jpg", "c|d.jpg"), ['["a, b.jpg", " c|d.jpg ", ""]']),
    ("image_url", (f"{URL}/w_400,h_300/a.jpg",), [f"{URL}/w_400,h_300/a.jpg"]),
    ("image_url", (f"{URL}/w_4,h_3/a", f"{URL}/b"), [f"{URL}/w_4,h_3/a,{URL}/b"]),
    ("image_url", (f"{URL}/a.jpg", "b.jpg"), [f"{URL}/a.jpg,b.jpg"]),
    ("image_url", (f"{URL}/a", "b.jpg"), [f"{URL}/a, b.jpg"]),
    ("image_url", ("photos/caf\xe9 (1).jpg",), ["photos/caf\xe9 (1).jpg"]),
    ("output_name", "shoe.png", ["shoe.png", "shoe"]),
    ("output_name", "shoe.v2.png", ["shoe.v2"]),
    ("output_name", "red/shoe.JPG", ["red/shoe.JPG"]),
    ("output_name", "shoe.webp", ["images/shoe.webp"]),
    ("output_name", "caf\xe9.png", ["cafe\u0301.png"]),
    ("output_name", "\u9774 1.jpeg", ["\u9774 1.jpeg"]),
    ("output_name", "console.png", ["console.png"]),
]


@pytest.mark.parametrize(
    ("column", "value", "text"), [(c, value, t) for c, value, texts in SPELLINGS for t in texts]
)
def test_values_are_accepted_in_common_spellings(column: str, value: object, text: str) -> None:
    assert getattr(parsed(**{column: text}), FIELD_NAMES[column]) == value


NOT_A_REFERENCE = "is neither an https:// or s3:// URL nor a path"
REJECTED = [
    ("aspect_ratio", "21:9", ["0.5625"]),
    ("size", "1024x1536", ["1024", "0x1024"]),
    ("n", "from 1 to 10", ["2.5", "9" * 5_000]),
    ("instruction", "U+0008", ["a\x08b"]),
    ("image_url", "is not valid JSON", ['["a.jpg"', "[" * 100_000]),
    ("image_url", "must contain strings only", ["[1, 2]", '["a.jpg", null]']),
    ("image_url", NOT_A_REFERENCE, ["file:///etc/passwd", "C:\\photos\\a.jpg", "https:a.jpg"]),
    ("image_url", "has no host or bucket", ["https://", "s3:///"]),
    ("image_url", "contains a control character", ['["a\\u0000.jpg"]', '["\\ud800"]']),
    ("image_url", "is longer than 8,192 characters", ["a" * 8193]),
    ("output_name", "leaves its folder", ["a/../x.png", "a//x.png", "a/", "images/", ".."]),
    ("output_name", "contains '\\'", ["a\\b.png"]),
    ("output_name", "contains '?'", ["what?.png"]),
    ("output_name", "U+0007", ["a\x07.png"]),
    ("output_name", "U+D800", ["a\ud800.png"]),
    ("output_name", "begins with a dot", [".htaccess"]),
    ("output_name", "ends with a dot or a space", ["a /x.png", "a./x.png"]),
    (
        "output_name",
        "Windows reserves for a device",
        ["nul", "COM1.png", "a/aux.v2/x.png", "COM¹.png", "conin$", "nul .png"],
    ),
    ("output_name", "a folder named images or thumbs", ["a/Images/x.png"]),
    ("output_name", "has the extension .gif", ["x.gif"]),
    ("output_name", "a part of more than 200 bytes", ["\xe9" * 101 + ".png"]),
    ("output_name", "longer than 500 bytes", ["/".join(["abcdefghi"] * 60)]),
]


@pytest.mark.parametrize(
    ("column", "sentence", "text"), [(c, s, text) for c, s, texts in REJECTED for text in texts]
)
def test_an_invalid_value_is_rejected_with_its_column_and_the_valid_ones(
    column: str, sentence: str, text: str
) -> None:
    with pytest.raises(RowRejected) as rejected:
        parsed(**{column: text})
    assert rejected.value.reason is Reason.BAD_INPUT
    assert rejected.value.detail.startswith(f"column {column}: ")
    assert sentence in rejected.value.detail
    assert len(rejected.value.detail) < 300


def test_the_rejection_of_a_signed_url_does_not_contain_its_signature() -> None:
    with pytest.raises(RowRejected, match="column mask_url: ") as rejected:
        parsed(mask_url="ftp://x.test/a?X-Amz-Signature=SECRET")
    assert "SECRET" not in rejected.value.detail


def test_a_rejected_name_in_a_chosen_column_names_that_column() -> None:
    columns = read_columns(("instruction", "file"), JobOptions(output_name_column="file"))
    with pytest.raises(RowRejected, match=r"^column file: .* leaves its folder"):
        parse_row(columns, ["red", "../x"], JobOptions())


def test_an_empty_cell_has_the_default_of_the_job_option() -> None:
    defaults = {"aspect_ratio": "1:1", "quality": "low", "model": "m", "background": "opaque"}
    options = JobOptions.model_validate({**defaults, "resolution": "1K"})
    expected = {"instruction": "make it red", "images": ("a.jpg",), "resolution": "1K"}
    assert parsed(options) == RowRequest.model_validate({**expected, **defaults})
    own = {"aspect_ratio": "3:2", "quality": "high", "model": "o", "background": "auto"}
    assert parsed(options, **own) == RowRequest.model_validate({**expected, **own})


def test_missing_cells_at_the_end_of_a_row_are_empty() -> None:
    columns = read_columns(("instruction", "image_url", "n"), JobOptions())
    assert parse_row(columns, ["red"], JobOptions()) == RowRequest(instruction="red")


@pytest.mark.parametrize(
    ("index", "key"),
    [
        ("", ""),
        (" sku-1 ", "sku-1"),
        *((k, k) for k in ("1", "000008", "A-7_b.c", "x" * 100)),
    ],
)
def test_the_key_of_a_row_is_its_index(index: str, key: str) -> None:
    columns = read_columns(("instruction", "id"), JobOptions())
    assert index_key(columns, ["red", index]) == key


@pytest.mark.parametrize(
    "key", ["-1", ".a", "a.", "a b", "\xe9", "x" * 101, "con", "LPT1.x", "a\n", "\u0661"]
)
def test_keys_that_cannot_be_file_names_are_rejected(key: str) -> None:
    with pytest.raises(ValueError, match="cannot be used as a file name"):
        parse_key(key)


CELL = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["a.jpg", "[", '["a"]', "s3://b/k", "16:9", "2K", "3", "auto", "x.png", "con"]),
)


@given(st.lists(CELL, max_size=15))
def test_any_cells_are_a_request_that_sqs_accepts_or_are_rejected(cells: list[str]) -> None:
    try:
        request = parse_row(COLUMNS, cells, JobOptions())
        key = index_key(COLUMNS, cells) or "row-0123456789ab"
    except RowRejected as rejected:
        reason, detail = rejected.reason, rejected.detail
        assert reason is Reason.BAD_INPUT
        assert len(detail) < 400
        assert detail.isprintable()
        return
    message = RowMessage(job="j", run="r", row=0, key=key, base="s3://b/", request=request)
    body = message.model_dump_json()
    assert RowMessage.model_validate_json(body) == message
    # SQS accepts XML 1.0 characters only.
    assert re.fullmatch(r"[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*", body)


REFERENCE = st.one_of(
    st.from_regex(r"[a-z0-9/_-]{1,12}\.(png|jpg)", fullmatch=True),
    st.from_regex(r"(https|s3)://[a-z]{1,8}/[a-z0-9/._?=&-]{1,20}", fullmatch=True),
)
LISTS = st.lists(REFERENCE, min_size=1, max_size=MAX_IMAGES)


@given(LISTS)
def test_every_kind_of_list_yields_its_references_in_order(references: list[str]) -> None:
    separated = [separator.join([*references, ""]) for separator in ("|", "\n", " | ")]
    for cell in (json.dumps(references), ", ".join(references), *separated):
        assert list(parse_images(cell)) == references


@given(st.text(max_size=60), st.sampled_from(["", "[", '["', "https://x", "s3://", "a|"]))
def test_any_cell_is_split_or_rejected(cell: str, start: str) -> None:
    try:
        references = parse_images(start + cell)
    except ValueError as error:
        assert len(str(error)) < 400  # noqa: PT017 - either outcome is right
        return
    assert len(references) <= MAX_IMAGES
    assert all(reference == reference.strip() != "" for reference in references)


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
    images = [JOB.image(copy) for copy in image_names(name, n)]
    assert images == [JOB.image(name, copy) for copy in range(n)]


@given(
    st.from_regex(
        r"[Hh]ttps?://[a-z0-9.-]{1,5}(/[a-zA-Z0-9._-]{0,6}){1,3}(\.jpe?g)?", fullmatch=True
    )
)
def test_a_plain_url_gives_the_same_name_as_one_that_has_to_be_parsed(url: str) -> None:
    assert file_stem(url) == file_stem(f"{url}?v=1")


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


@pytest.mark.parametrize("model", ["gemini/../x", "a\x07b", "a//b", "../x", "x/", "a b"])
def test_a_model_that_would_change_the_requests_path_is_bad_input_of_its_row(model: str) -> None:
    with pytest.raises(RowRejected) as caught:
        parsed(model=model)
    assert caught.value.reason is Reason.BAD_INPUT
    assert "column model: " in caught.value.detail
    assert "is not a valid model name" in caught.value.detail


def test_a_full_table_of_names_rejects_new_ones_and_finds_the_others() -> None:
    used = UsedNames(max_slots=1024)
    for row in range(682):
        assert used.first_user(f"name {row}", row) is None
    with pytest.raises(TooManyNames):
        used.first_user("name 682", 682)
    assert used.first_user("name 5", 700) == 5
