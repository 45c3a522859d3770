"""Job options, parsed from the metadata of the upload."""

from email.header import Header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.fields import parse_options
from darkroom.errors import JobRejected
from darkroom.jobs import JobOptions


def test_without_metadata_all_options_have_their_defaults() -> None:
    options = parse_options({})
    assert options == JobOptions()
    assert (options.resume, options.retry_failed, options.max_attempts) == (True, False, 5)


def test_every_option_is_parsed() -> None:
    given_options = {
        "filter-rows": "0:50",
        "resume": "false",
        "retry-failed": "TRUE",
        "instruction-column": "Anweisung",
        "output-name-column": "Datei",
        "budget-usd": "$2.50",
        "model": "gpt-image-1.5",
        "aspect-ratio": "16x9",
        "resolution": "2k",
        "quality": "High",
        "background": "Transparent",
        "max-attempts": "7",
    }
    assert parse_options(given_options) == JobOptions(
        filter_rows="0:50",
        resume=False,
        retry_failed=True,
        instruction_column="Anweisung",
        output_name_column="Datei",
        budget_usd=2.5,
        model="gpt-image-1.5",
        aspect_ratio="16:9",
        resolution="2K",
        quality="high",
        background="transparent",
        max_attempts=7,
    )
    assert {name.replace("-", "_") for name in given_options} == set(JobOptions.model_fields)


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("resume", value) for value in ("", "maybe", "2")),
        *(("budget-usd", value) for value in ("", "-1", "nan", "inf", "five", "1e9")),
        *(("max-attempts", value) for value in ("0", "51", "1.5", "-3", "\u0665", "9" * 400)),
        ("aspect-ratio", "5:3"),
        ("resolution", "8K"),
        ("quality", "best"),
        ("background", "white"),
        ("model", "gpt image"),
        ("instruction-column", ""),
        ("filter-rows", "x"),
    ],
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
