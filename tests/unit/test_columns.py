"""The field table, and the header row: aliases, chosen columns, missing columns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import COLUMN_FIELDS, FIELDS, Columns, read_columns
from darkroom.errors import JobRejected
from darkroom.jobs import JobOptions
from darkroom.rows import EditSettings, RowRequest


def test_the_field_table_lists_exactly_the_attributes_of_requests_and_options() -> None:
    columns = {field.name for field in COLUMN_FIELDS}
    options = {field.name for field in FIELDS if field.option}
    assert columns == {"index", *RowRequest.model_fields}
    assert options == set(JobOptions.model_fields)
    assert columns & options == set(EditSettings.model_fields)
    assert all(field.help for field in FIELDS if field.option)


def columns(header: str, **options: object) -> Columns:
    return read_columns(tuple(header.split(",")), JobOptions.model_validate(options))


@pytest.mark.parametrize(
    ("field", "alias"), [(field.name, alias) for field in COLUMN_FIELDS for alias in field.columns]
)
@pytest.mark.parametrize("write", [str, str.upper, lambda name: f" {name.replace('_', ' ')} "])
def test_every_alias_is_found_in_any_spelling(field: str, alias: str, write: object) -> None:
    assert callable(write)
    other = "prompt" if alias == "instruction" else "instruction"
    assert columns(f"sku,{write(alias)},{other}").positions[field] == (
        1 if field != "instruction" or alias == "instruction" else 2
    )


def test_the_preferred_one_of_several_aliases_is_used_with_a_warning() -> None:
    found = columns("image,instruction,image_url,prompt")
    assert found.positions == {"images": 2, "instruction": 1}
    assert [warning.split(" is used")[0].rpartition(" ")[2] for warning in found.warnings] == [
        "'image_url'",
        "'instruction'",
    ]


def test_a_known_column_must_occur_only_once() -> None:
    with pytest.raises(JobRejected, match="has the column 'instruction' 2 times: keep one"):
        columns("instruction,a,Instruction")


def test_an_unknown_column_may_occur_twice() -> None:
    assert columns("note,note,instruction").positions == {"instruction": 2}


@pytest.mark.parametrize(
    ("header", "chosen"), [("instruction,Anweisung,Datei", "anweisung"), ("Edit,edit", "edit")]
)
def test_the_chosen_column_replaces_the_usual_one_and_an_exact_match_wins(
    header: str, chosen: str
) -> None:
    assert columns(header, instruction_column=chosen).positions == {"instruction": 1}


@pytest.mark.parametrize(
    ("header", "wanted", "problem"),
    [("a,b", "c", "does not exist"), ("c,c", "c", "exists more than once")],
)
def test_a_missing_or_ambiguous_chosen_column_is_rejected(
    header: str, wanted: str, problem: str
) -> None:
    with pytest.raises(JobRejected, match=f"'c' named by the option instruction-column {problem}"):
        columns(header, instruction_column=wanted)
    with pytest.raises(JobRejected, match=f"'c' named by the option output-name-column {problem}"):
        columns(f"instruction,{header}", output_name_column=wanted)


@pytest.mark.parametrize("first", ["https://x.test/a.jpg?sig=SECRET", "7", "x" * 101])
def test_a_first_row_of_data_is_rejected_as_a_missing_header(first: str) -> None:
    with pytest.raises(JobRejected, match="no header row") as rejected:
        columns(f"{first},make it red")
    assert "SECRET" not in str(rejected.value)


def test_a_header_without_instruction_is_rejected_with_its_columns() -> None:
    with pytest.raises(
        JobRejected, match=r"the columns are 'image_url' and 'text'\. Name one of them"
    ):
        columns("image_url,text")


@given(st.lists(st.text(max_size=3), max_size=8), st.integers(1, 6))
def test_cells_are_aligned_to_the_header(cells: list[str], width: int) -> None:
    found = Columns(("c",) * width, {"instruction": width - 1})
    aligned = found.align(cells)
    assert len(aligned) == width
    assert found.cell(cells, "instruction") == aligned[-1].strip()
    assert found.cell(cells, "mask") == ""
