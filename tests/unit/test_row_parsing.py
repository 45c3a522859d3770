"""The cells of a row as a request, or the reason why the row is rejected."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import COLUMN_FIELDS, read_columns
from darkroom.csv_input.reader import parse_row, row_key
from darkroom.errors import Reason, RowRejected
from darkroom.jobs import JobOptions
from darkroom.rows import RowMessage, RowRequest

NAMES = tuple(field.columns[0] for field in COLUMN_FIELDS)
COLUMNS = read_columns((*NAMES, "sku"), JobOptions())
PLAIN = {"image_url": "a.jpg", "instruction": "make it red"}


def parsed(options: JobOptions | None = None, /, **cells: str) -> RowRequest:
    values = PLAIN | cells
    return parse_row(COLUMNS, [values.get(name, "") for name in NAMES], options or JobOptions())


def rejection(**cells: str) -> str:
    with pytest.raises(RowRejected) as rejected:
        parsed(**cells)
    assert rejected.value.reason is Reason.BAD_INPUT
    return rejected.value.detail


def test_every_column_is_parsed_into_its_field() -> None:
    assert parsed(
        image_url=" a.jpg | b.jpg ",
        instruction="\tmake it\nred ",
        mask_url="m.png",
        aspect_ratio="16:9",
        resolution="2K",
        size="1024x1536",
        quality="high",
        background="opaque",
        n="2",
        output_name="shoe",
        model="gpt-image-1.5",
    ) == RowRequest(
        instruction="make it\nred",
        images=("a.jpg", "b.jpg"),
        mask="m.png",
        aspect_ratio="16:9",
        resolution="2K",
        size="1024x1536",
        quality="high",
        background="opaque",
        n=2,
        output_name="shoe.png",
        model="gpt-image-1.5",
    )


def test_a_row_may_have_no_image() -> None:
    assert parsed(image_url="") == RowRequest(instruction="make it red")


@pytest.mark.parametrize(
    ("column", "written", "value"),
    [
        *(("aspect_ratio", w, "16:9") for w in ("16x9", "16/9", "16 : 9", "16:09", "16:09:00")),
        ("resolution", "2k", "2K"),
        *(("size", w, "1024x1536") for w in ("1024 x 1536", "1024X1536", "1024*1536")),
        ("size", "AUTO", "auto"),
        ("quality", "HD", "hd"),
        ("background", "Transparent", "transparent"),
        ("n", "2.0", 2),
        ("n", "010", 10),
    ],
)
def test_common_spellings_of_values_are_accepted(column: str, written: str, value: object) -> None:
    assert getattr(parsed(**{column: written}), column) == value


@pytest.mark.parametrize(
    ("column", "written", "choices"),
    [
        ("aspect_ratio", "5:3", "21:9"),
        ("aspect_ratio", "0.5625", "21:9"),
        ("resolution", "8K", "1K, 2K, 4K"),
        ("size", "big", "1024x1536"),
        ("size", "1024", "1024x1536"),
        ("size", "0x1024", "1024x1536"),
        ("quality", "best", "medium"),
        ("background", "white", "transparent, opaque, auto"),
        ("n", "0", "from 1 to 10"),
        ("n", "99", "from 1 to 10"),
        ("n", "2.5", "from 1 to 10"),
        ("n", "-1", "from 1 to 10"),
        ("n", "9" * 5_000, "from 1 to 10"),
        ("model", "gpt image", "not a valid model name"),
        ("image_url", "ftp://x.test/a", "neither an https:// or s3:// URL"),
        ("mask_url", "ftp://x.test/a", "neither an https:// or s3:// URL"),
        ("output_name", "../x", "leaves its folder"),
        ("instruction", "", "is empty"),
        ("instruction", "x" * 32_001, "at most 32,000"),
        ("instruction", "a\x08b", "U+0008"),
    ],
)
def test_an_invalid_value_is_rejected_with_its_column_and_the_valid_ones(
    column: str, written: str, choices: str
) -> None:
    detail = rejection(**{column: written})
    assert detail.startswith(f"column {column}")
    assert choices in detail
    assert len(detail) < 300


def test_a_mask_without_an_image_is_rejected() -> None:
    assert "no image to apply the mask to" in rejection(image_url="", mask_url="m.png")


def test_an_empty_cell_has_the_default_of_the_job_option() -> None:
    options = JobOptions(
        aspect_ratio="1:1", resolution="1K", quality="low", background="opaque", model="m"
    )
    assert parsed(options) == RowRequest(
        instruction="make it red",
        images=("a.jpg",),
        aspect_ratio="1:1",
        resolution="1K",
        quality="low",
        background="opaque",
        model="m",
    )
    own = parsed(options, aspect_ratio="3:2", quality="high", model="o", background="auto")
    assert (own.aspect_ratio, own.quality, own.model, own.background) == (
        "3:2",
        "high",
        "o",
        "auto",
    )


def test_missing_cells_at_the_end_of_a_row_are_empty() -> None:
    columns = read_columns(("instruction", "image_url", "n"), JobOptions())
    assert parse_row(columns, ["red"], JobOptions()) == RowRequest(instruction="red")


def test_a_row_with_too_many_cells_is_rejected_unless_they_are_blank() -> None:
    columns = read_columns(("instruction",), JobOptions())
    assert parse_row(columns, ["red", "", " "], JobOptions()).instruction == "red"
    with pytest.raises(RowRejected, match="3 cells where the header has 1: put cells"):
        parse_row(columns, ["make it red", " please", ""], JobOptions())


@pytest.mark.parametrize(("index", "key"), [("", "000007"), (" sku-1 ", "sku-1")])
def test_the_key_of_a_row_is_its_index_or_its_number(index: str, key: str) -> None:
    columns = read_columns(("instruction", "id"), JobOptions())
    assert row_key(columns, ["red", index], 7) == key


CELL = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["a.jpg", "[", '["a"]', "s3://b/k", "16:9", "2K", "3", "auto", "x.png", "con"]),
)


@given(st.lists(CELL, max_size=15))
def test_any_cells_are_a_request_that_sqs_accepts_or_are_rejected(cells: list[str]) -> None:
    try:
        request = parse_row(COLUMNS, cells, JobOptions())
        key = row_key(COLUMNS, cells, 0)
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
