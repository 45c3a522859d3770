"""The job option `instruction`: one text for all rows, which may name columns."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import read_columns
from darkroom.csv_input.reader import parse_row
from darkroom.errors import JobRejected, RowRejected
from darkroom.jobs import JobOptions
from tests.fakes.command import CliHarness

HEADER = ("image_url", "name", "Background Colour")


def sent(instruction: str, *cells: str, header: tuple[str, ...] = HEADER) -> str:
    options = JobOptions(instruction=instruction)
    return parse_row(read_columns(header, options), cells, options).instruction


def rejected(instruction: str, header: tuple[str, ...] = HEADER) -> str:
    with pytest.raises(JobRejected) as error:
        read_columns(header, JobOptions(instruction=instruction))
    return str(error.value)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Make it bright", "Make it bright"),
        ("Put the {name} on {background_colour}", "Put the mug on light blue"),
        ("{Name}: {Background Colour}, {NAME}", "mug: light blue, mug"),
        ("Write {{name}} on the {name}", "Write {name} on the mug"),
    ],
)
def test_an_instruction_for_all_rows_takes_cells_of_the_row(
    instruction: str, expected: str
) -> None:
    assert sent(instruction, "a.png", " mug ", "light blue") == expected


def test_a_row_with_an_instruction_of_its_own_keeps_it() -> None:
    header = ("image_url", "instruction", "name")
    template = "Paint the {name} red"
    assert sent(template, "a.png", "Make it green", "mug", header=header) == "Make it green"
    assert sent(template, "a.png", "", "mug", header=header) == "Paint the mug red"


def test_braces_in_a_cell_are_text() -> None:
    assert sent("Show {name}", "a.png", "{0.__class__} {image_url}") == (
        "Show {0.__class__} {image_url}"
    )


def test_an_unknown_column_is_an_error_of_the_job_that_lists_the_columns() -> None:
    problem = rejected("Put the {nmae} on grass")
    assert "'nmae' named by the option instruction does not exist" in problem
    assert "'image_url', 'name' and 'Background Colour'" in problem


def test_a_column_that_occurs_twice_is_ambiguous() -> None:
    assert "more than once" in rejected("Paint the {name}", ("image_url", "Name", "NAME"))


@pytest.mark.parametrize(
    "instruction", ["Paint {name", "Paint name}", "{name!r}", "{name:>99}", "{name:{name}}", "{"]
)
def test_other_braces_are_an_error_that_shows_the_spelling(instruction: str) -> None:
    assert "write {{ and }} for braces" in rejected(instruction)


@pytest.mark.parametrize("name", ["", "{}", "{ }", "{0}", "{name.upper}", "{name[0]}"])
def test_a_placeholder_is_only_ever_the_name_of_a_column(name: str) -> None:
    if name:
        assert "does not exist" in rejected(f"Paint {name}")


def test_an_empty_cell_is_an_error_of_its_row() -> None:
    with pytest.raises(RowRejected, match="it uses the column 'name', whose cell is empty"):
        sent("Paint the {name} red", "a.png", "  ", "blue")
    with pytest.raises(RowRejected, match="'Background Colour'"):
        sent("On {background_colour}", "a.png", "mug")  # the row is shorter than the header


def test_a_text_that_becomes_too_long_is_an_error_of_its_row() -> None:
    with pytest.raises(RowRejected, match="at most"):
        sent("{name} " * 10, "a.png", "x" * 100_000)


@given(st.text(max_size=40))
def test_any_instruction_is_either_accepted_or_a_reason(instruction: str) -> None:
    with contextlib.suppress(JobRejected, RowRejected):
        assert sent(instruction, "a.png", "mug", "blue")


def test_a_file_without_a_header_row_is_still_recognised() -> None:
    problem = rejected("Make it bright", ("https://example.com/a.png", "mug"))
    assert problem.startswith("The file has no header row")


def test_a_csv_without_an_image_column_warns_that_all_rows_are_generated(cli: CliHarness) -> None:
    file = cli.csv("a.png,mug", header="photo,name")
    result = cli.succeed("submit", file, "--instruction", "Draw a {name}")
    assert "No column is named image_url" in result.stderr
    assert cli.input_bucket.objects["jobs/p.csv"].metadata == {"instruction": "Draw a {name}"}


def test_options_beyond_the_metadata_of_an_object_are_refused_at_once(cli: CliHarness) -> None:
    file = cli.csv("https://example.com/a.png")
    error = cli.error("submit", file, "--instruction", "x" * 2100, exit_code=2)
    assert "S3 stores 2,048" in error
    assert "column of the CSV" in error
