"""Cells that list images."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import read_columns
from darkroom.csv_input.reader import parse_row
from darkroom.csv_input.values import MAX_IMAGES, parse_images
from darkroom.errors import Reason, RowRejected
from darkroom.jobs import JobOptions

COLUMNS = read_columns(("image_url", "instruction", "mask_url"), JobOptions())
URL = "https://x.test"
REFERENCE = st.one_of(
    st.from_regex(r"[a-z0-9/_-]{1,12}\.(png|jpg)", fullmatch=True),
    st.from_regex(r"(https|s3)://[a-z]{1,8}/[a-z0-9/._?=&-]{1,20}", fullmatch=True),
)
LISTS = st.lists(REFERENCE, min_size=1, max_size=MAX_IMAGES)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("", []),
        ("a.jpg", ["a.jpg"]),
        ("a.jpg,b.jpg", ["a.jpg", "b.jpg"]),
        ("a.jpg, b.jpg ,", ["a.jpg", "b.jpg"]),
        ("a.jpg|b.jpg||", ["a.jpg", "b.jpg"]),
        ("a.jpg\r\nb.jpg", ["a.jpg", "b.jpg"]),
        ("a,b.jpg|c.jpg", ["a,b.jpg", "c.jpg"]),
        (f"{URL}/w_400,h_300/a.jpg", [f"{URL}/w_400,h_300/a.jpg"]),
        (f"{URL}/w_4,h_3/a.jpg,{URL}/b.jpg", [f"{URL}/w_4,h_3/a.jpg", f"{URL}/b.jpg"]),
        (f"{URL}/a.jpg,b.jpg", [f"{URL}/a.jpg", "b.jpg"]),
        (f"{URL}/a, b.jpg", [f"{URL}/a", "b.jpg"]),
        ('["a, b.jpg", " c|d.jpg ", ""]', ["a, b.jpg", "c|d.jpg"]),
        ("[]", []),
        ("photos/caf\xe9 (1).jpg", ["photos/caf\xe9 (1).jpg"]),
    ],
)
def test_a_cell_is_split_as_documented(cell: str, expected: list[str]) -> None:
    assert list(parse_images(cell)) == expected


@given(LISTS)
def test_a_json_list_yields_its_strings_in_order(references: list[str]) -> None:
    assert list(parse_images(json.dumps(references))) == references


@given(LISTS, st.sampled_from(["|", "\n", " | "]))
def test_bars_and_line_ends_separate_anything(references: list[str], separator: str) -> None:
    assert list(parse_images(separator.join([*references, ""]))) == references


@given(LISTS)
def test_a_comma_with_a_space_always_separates(references: list[str]) -> None:
    assert list(parse_images(", ".join(references))) == references


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ('["a.jpg"', "begins like a JSON list but is not valid JSON"),
        ("['a.jpg']", "begins like a JSON list but is not valid JSON"),
        ("[" * 100_000, "begins like a JSON list but is not valid JSON"),
        ("[1, 2]", "must contain strings only"),
        ('["a.jpg", null]', "must contain strings only"),
        ("|".join(f"{i}.jpg" for i in range(17)), "17 images, but no model accepts more than 16"),
        ("data:image/png;base64,AAAA", "data: URLs are not accepted, upload the image to S3"),
        ("ftp://x.test/a.jpg", "is neither an https:// or s3:// URL nor a path"),
        ("file:///etc/passwd", "is neither an https:// or s3:// URL nor a path"),
        ("C:\\photos\\a.jpg", "is neither an https:// or s3:// URL nor a path"),
        ("https:a.jpg", "is neither an https:// or s3:// URL nor a path"),
        ("https://", "has no host or bucket"),
        ("s3:///", "has no host or bucket"),
        ('["a\\u0000.jpg"]', "contains a control character"),
        ('["\\ud800"]', "contains a control character"),
        ("a" * 8193, "is longer than 8,192 characters"),
    ],
)
def test_invalid_references_are_rejected(cell: str, sentence: str) -> None:
    with pytest.raises(RowRejected) as rejected:
        parse_row(COLUMNS, [cell, "red"], JobOptions())
    assert rejected.value.reason is Reason.BAD_INPUT
    assert sentence in rejected.value.detail
    assert rejected.value.detail.startswith("column image_url")


def test_the_rejection_of_a_signed_url_does_not_contain_its_signature() -> None:
    with pytest.raises(RowRejected) as rejected:
        parse_row(COLUMNS, ["a.jpg", "red", "ftp://x.test/a?X-Amz-Signature=SECRET"], JobOptions())
    assert rejected.value.detail.startswith("column mask_url")
    assert "SECRET" not in rejected.value.detail


@given(st.text(max_size=60), st.sampled_from(["", "[", '["', "https://x", "s3://", "a|"]))
def test_any_cell_is_split_or_rejected(cell: str, start: str) -> None:
    try:
        references = parse_images(start + cell)
    except ValueError as error:
        assert len(str(error)) < 400  # noqa: PT017 - either outcome is right
        return
    assert len(references) <= MAX_IMAGES
    assert all(reference == reference.strip() != "" for reference in references)
