"""The header row: aliases, chosen columns, and what is missing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import COLUMN_FIELDS, Columns, read_columns
from darkroom.errors import JobRejected
from darkroom.jobs import JobOptions


def columns(header: str, **options: object) -> Columns:
    return read_columns(tuple(header.split(",")), JobOptions.model_validate(options))


@pytest.mark.parametrize(
    ("field", "alias"), [(field.name, alias) for field in COLUMN_FIELDS for alias in field.columns]
)
@pytest.mark.parametrize("write", [str, str.upper, lambda name: f" {name.replace('_', ' ')} "])
def test_every_alias_is_found_however_it_is_written(field: str, alias: str, write: object) -> None:
    assert callable(write)
    other = "prompt" if alias == "instruction" else "instruction"
    assert columns(f"sku,{write(alias)},{other}").positions[field] == (
        1 if field != "instruction" or alias == "instruction" else 2
    )


def test_columns_of_the_same_meaning_use_the_most_particular_and_warn() -> None:
    found = columns("image,instruction,image_url,prompt")
    assert found.positions == {"images": 2, "instruction": 1}
    assert [warning.split(" is used")[0].rpartition(" ")[2] for warning in found.warnings] == [
        "'image_url'",
        "'instruction'",
    ]


def test_a_column_that_means_something_may_stand_only_once() -> None:
    with pytest.raises(JobRejected, match="has the column 'instruction' 2 times: keep one"):
        columns("instruction,a,Instruction")


def test_columns_that_mean_nothing_may_stand_twice() -> None:
    assert columns("note,note,instruction").positions == {"instruction": 2}


def test_the_chosen_column_is_used_and_the_usual_one_only_carried() -> None:
    found = columns("instruction,Anweisung,Datei", instruction_column="anweisung")
    assert found.positions == {"instruction": 1}


def test_the_chosen_column_may_be_one_of_several_that_differ_in_case() -> None:
    assert columns("Edit,edit", instruction_column="edit").positions == {"instruction": 1}


@pytest.mark.parametrize(
    ("header", "wanted", "problem"),
    [("a,b", "c", "does not exist"), ("c,c", "c", "exists more than once")],
)
def test_a_chosen_column_that_cannot_be_found_is_told_with_the_columns(
    header: str, wanted: str, problem: str
) -> None:
    with pytest.raises(JobRejected, match=f"'c' named by the option instruction-column {problem}"):
        columns(header, instruction_column=wanted)
    with pytest.raises(JobRejected, match=f"'c' named by the option output-name-column {problem}"):
        columns(f"instruction,{header}", output_name_column=wanted)


@pytest.mark.parametrize("first", ["https://x.test/a.jpg?sig=SECRET", "7", "x" * 101])
def test_a_first_row_of_data_is_told_as_a_missing_header(first: str) -> None:
    with pytest.raises(JobRejected, match="no header row") as rejected:
        columns(f"{first},make it red")
    assert "SECRET" not in str(rejected.value)


def test_a_header_without_instruction_is_told_with_its_columns() -> None:
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
