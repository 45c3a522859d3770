"""The field table, the header row, and the job options in the metadata of an upload."""

from collections.abc import Callable
from email.header import Header
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import COLUMN_FIELDS, FIELDS, Columns, parse_options, read_columns
from darkroom.csv_input.values import parse_row_filter
from darkroom.errors import JobRejected
from darkroom.jobs import JobOptions
from darkroom.models.catalog import MODELS
from darkroom.rows import AspectRatio, EditSettings, Quality, Resolution, RowRequest
from tests.fakes.csv_files import HEADER, job_rows


def columns(header: str, **options: object) -> Columns:
    return read_columns(tuple(header.split(",")), JobOptions.model_validate(options))


def test_the_choices_are_those_of_the_catalogue() -> None:
    assert {q for model in MODELS for q in model.qualities} | {"auto"} == set(get_args(Quality))
    assert {r for model in MODELS for r in model.aspect_ratios} == set(get_args(AspectRatio))
    assert {r for model in MODELS for r in model.resolutions} == set(get_args(Resolution))
    settings = {name for model in MODELS for name in model.settings}
    assert settings < set(EditSettings.model_fields)


def test_the_field_table_lists_exactly_the_attributes_of_requests_and_options() -> None:
    columns = {field.name for field in COLUMN_FIELDS}
    options = {field.name for field in FIELDS if field.option}
    assert columns == {"index", *RowRequest.model_fields}
    assert options == set(JobOptions.model_fields)
    # An instruction is both as well, but every request has one.
    assert columns & options == {*EditSettings.model_fields, "instruction"}


@pytest.mark.parametrize(
    ("field", "alias"), [(field.name, alias) for field in COLUMN_FIELDS for alias in field.columns]
)
@pytest.mark.parametrize("write", [str, str.upper, lambda name: f" {name.replace('_', ' ')} "])
def test_every_alias_is_found_in_any_spelling(
    field: str, alias: str, write: Callable[[str], str]
) -> None:
    other = "note" if field == "instruction" else "instruction"
    assert columns(f"sku,{write(alias)},{other}").positions[field] == 1


def test_the_preferred_one_of_several_aliases_is_used_with_a_warning() -> None:
    found = columns("image,instruction,image_url,prompt")
    assert found.positions == {"images": 2, "instruction": 1}
    assert [warning.split(" is used")[0].rpartition(" ")[2] for warning in found.warnings] == [
        "'image_url'",
        "'instruction'",
    ]


@pytest.mark.parametrize(
    ("header", "chosen", "position"),
    [
        ("note,note,instruction", None, 2),  # an unknown column may occur twice
        ("instruction,Anweisung,Datei", "anweisung", 1),
        ("Edit,edit", "edit", 1),
    ],
)
def test_the_chosen_column_replaces_the_usual_one_and_an_exact_match_wins(
    header: str, chosen: str | None, position: int
) -> None:
    assert columns(header, instruction_column=chosen).positions == {"instruction": position}


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


@given(st.lists(st.text(max_size=3), max_size=8), st.integers(1, 6))
def test_cells_are_aligned_to_the_header(cells: list[str], width: int) -> None:
    found = Columns(("c",) * width, {"instruction": width - 1})
    aligned = found.align(cells)
    assert len(aligned) == width
    assert found.cell(cells, "instruction") == aligned[-1].strip()
    assert found.cell(cells, "mask") == ""


def test_every_option_is_parsed_and_has_a_default() -> None:
    written = {
        "filter-rows": ("0:50", "0:50"),
        "resume": ("false", False),
        "retry-failed": ("TRUE", True),
        "instruction": ("Paint the {Name} red", "Paint the {Name} red"),
        "fallback": ("off", False),
        "mode": ("Batch", "batch"),
        "batch-fallback": ("batch", "batch"),
        "instruction-column": ("Anweisung", "Anweisung"),
        "output-name-column": ("Datei", "Datei"),
        "budget-usd": ("$2.50", 2.5),
        "model": ("gpt-image-1.5", "gpt-image-1.5"),
        "aspect-ratio": ("16x9", "16:9"),
        "resolution": ("2k", "2K"),
        "quality": ("High", "high"),
        "background": ("Transparent", "transparent"),
        "input-fidelity": ("low", "low"),
        "moderation": ("auto", "auto"),
        "output-compression": ("85", 85),
        "thinking-level": ("medium", "medium"),
        "seed": ("7.0", 7),
        "max-attempts": ("7", 7),
        "give-up-after-hours": ("48", 48),
    }
    values = {name.replace("-", "_"): value for name, (_, value) in written.items()}
    options = parse_options({name: text for name, (text, _) in written.items()})
    assert options.model_dump() == values
    default = parse_options({})
    assert default == JobOptions()
    assert (default.resume, default.retry_failed, default.max_attempts) == (True, False, 5)


@pytest.mark.parametrize("name", ["Filter-Rows", "filter_rows", " FILTER-ROWS "])
def test_option_names_are_accepted_in_any_spelling(name: str) -> None:
    assert parse_options({name: " 0:5 "}).filter_rows == "0:5"


def test_metadata_of_upload_tools_is_ignored() -> None:
    assert parse_options({"mtime": "1.5", "md5chksum": "x", "s3cmd-attrs": "y"}) == JobOptions()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("budget", " Did you mean budget-usd?"),
        ("filter-row", " Did you mean filter-rows?"),
        ("xyzzy", " The options are "),
    ],
)
def test_an_unknown_option_is_rejected_with_the_closest_and_all_options(
    name: str, hint: str
) -> None:
    with pytest.raises(JobRejected) as rejected:
        parse_options({name: "1"})
    assert str(rejected.value).startswith(f"There is no option '{name}'.{hint}")
    for option in JobOptions.model_fields:
        assert option.replace("_", "-") in str(rejected.value)


INVALID_OPTIONS = {
    "resume": ["", "maybe", "2"],
    "budget-usd": ["", "-1", "nan", "inf", "five", "1e9"],
    "give-up-after-hours": ["0", "337"],
    "max-attempts": ["0", "51", "1.5", "-3", "\u0665", "9" * 400],
    "aspect-ratio": ["5:3"],
    "resolution": ["8K"],
    "quality": ["best"],
    "background": ["white"],
    "input-fidelity": ["medium"],
    "moderation": ["high"],
    "output-compression": ["101", "-1", "1.5"],
    "thinking-level": ["max"],
    "seed": ["2147483648", "-1", "x"],
    "model": ["gpt image", "gemini/../x", "..", "a//b", "/a", "a/", "a/.", "x" * 129, "a\nb", "é"],
    "instruction-column": [""],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, found in INVALID_OPTIONS.items() for value in found]
)
def test_an_invalid_value_is_rejected_with_its_option(name: str, value: str) -> None:
    with pytest.raises(JobRejected, match=f"option {name}"):
        parse_options({name: value})


@pytest.mark.parametrize("value", ["0", "0.0", "10000000"])
def test_the_smallest_and_largest_budgets_are_accepted(value: str) -> None:
    assert parse_options({"budget-usd": value}).budget_usd == float(value)


def test_non_ascii_metadata_is_decoded_as_s3_returns_it() -> None:
    encoded = Header("Wörter für Bilder", "utf-8").encode()
    assert encoded.startswith("=?utf-8?")
    assert parse_options({"instruction-column": encoded}).instruction_column == "Wörter für Bilder"


@pytest.mark.parametrize("value", ["=?no-such-charset?q?x?=", "=?utf-8?q?=C3=A4?= =?", "a =? b"])
def test_text_that_only_looks_encoded_is_accepted(value: str) -> None:
    assert parse_options({"instruction-column": value}).instruction_column


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(["resume", "budget-usd", "filter-rows"]), st.text(max_size=9)),
        st.one_of(st.text(max_size=20), st.just("=?utf-8?q?=ff?=")),
        max_size=3,
    )
)
def test_any_metadata_is_parsed_or_rejected(metadata: dict[str, str]) -> None:
    try:
        parse_options(metadata)
    except JobRejected as error:
        sentence = str(error)
        assert len(sentence) < 600


PART = st.one_of(
    st.integers(0, 40).map(lambda row: (f"{row}", range(row, row + 1))),
    st.tuples(st.integers(0, 40), st.integers(1, 9)).map(
        lambda r: (f"{r[0]}:{r[0] + r[1]}", range(r[0], r[0] + r[1]))
    ),
    st.integers(0, 40).map(lambda row: (f"{row}:", range(row, 10_000))),
    st.integers(1, 40).map(lambda row: (f":{row}", range(row))),
)


@given(st.lists(PART, min_size=1, max_size=8), st.sampled_from([",", ", ", ";"]))
def test_a_filter_is_the_union_of_its_parts(parts: list[tuple[str, range]], separator: str) -> None:
    chosen = parse_row_filter(separator.join(text for text, _ in parts))
    for row in range(60):
        assert (row in chosen) == any(row in rows for _, rows in parts)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("0:50", set(range(50))),
        (":10", set(range(10))),
        ("5,7,20:30", {5, 7, *range(20, 30)}),
        (" 3 : 5 ", {3, 4}),
        (":", set(range(100))),
        ("98:", {98, 99}),
    ],
)
def test_the_documented_forms_of_a_filter_and_none_for_all(text: str, rows: set[int]) -> None:
    assert {row for row in range(100) if row in parse_row_filter(text)} == rows
    assert all(row in job_rows(HEADER).row_filter for row in (0, 4_999_999))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        *(
            (text, r"filter-rows: '.*' is not a row or a range of rows: write rows")
            for text in ("", ",", "a", "-1", "1,,2", "1:2:3", "1-5", "\u0663", "1e3", "5 7")
        ),
        *((text, f"the range '{text}' is empty") for text in ("5:5", "9:3", ":0")),
    ],
)
def test_an_invalid_filter_is_rejected_with_the_invalid_part(text: str, sentence: str) -> None:
    with pytest.raises(JobRejected, match=sentence):
        parse_options({"filter-rows": text})
    with pytest.raises(JobRejected, match=sentence):  # before the file is opened
        job_rows(b"\x89PNG", filter_rows=text)


@given(st.text(max_size=20))
def test_any_text_is_a_filter_or_is_rejected(text: str) -> None:
    try:
        parse_options({"filter-rows": text})
    except JobRejected as error:
        sentence = str(error)
        assert sentence.endswith(".")


@pytest.mark.parametrize("mode", ["33188", "0644", "100644"])
def test_mode_of_a_file_that_an_upload_tool_adds_is_ignored(mode: str) -> None:
    assert parse_options({"mode": mode}).mode == "live"


def test_unknown_mode_fails_the_job_with_the_valid_ones() -> None:
    with pytest.raises(JobRejected, match=r"mode.*'half'.*live, flex, batch"):
        parse_options({"mode": "half"})
