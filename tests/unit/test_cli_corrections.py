"""`darkroom submit failed.csv --job JOB`: corrected rows go back into the CSV of their job."""

import gzip
from pathlib import Path

import pytest

from darkroom.jobs import Source
from tests.fakes.command import CliHarness, FakeObject
from tests.fakes.csv_files import job_rows
from tests.fakes.ledger import running

ORIGINAL = """image_url,instruction,price
https://h/0.png,warm,1
https://h/1.png,,2
https://h/2.png,cold,3
"""
KEY = "shop/products.csv"
_, BRIGHT, COLD = (row.key for row in job_rows(ORIGINAL))


@pytest.fixture
def cli(cli: CliHarness) -> CliHarness:
    metadata = {"budget-usd": "5", "resume": "false", "instruction-column": "instruction"}
    cli.input_bucket.objects[KEY] = FakeObject(ORIGINAL.encode(), metadata=metadata)
    cli.ledger.start(running("shop/products", source=Source("in", KEY, "v1")), 60)
    return cli


def failed(cli: CliHarness, text: str) -> Path:
    return cli.write("downloads/failed.csv", text)


def uploaded(cli: CliHarness) -> str:
    return cli.input_bucket.objects[KEY].body.decode()


def test_corrected_rows_replace_their_own_and_the_others_stay(cli: CliHarness) -> None:
    corrected = failed(
        cli, f'index,image_url,instruction,price\n{BRIGHT},https://h/1.png,"bright, please",2\n'
    )
    result = cli.succeed("submit", corrected, "--job", "shop/products")
    assert result.stdout == "shop/products\n"
    assert cli.input_bucket.puts == [KEY]
    assert uploaded(cli).splitlines() == [
        "image_url,instruction,price",
        "https://h/0.png,warm,1",
        'https://h/1.png,"bright, please",2',
        "https://h/2.png,cold,3",
    ]


def test_the_options_of_the_job_hold_except_those_given_again(cli: CliHarness) -> None:
    corrected = failed(cli, f"index,instruction\n{BRIGHT},bright\n")
    cli.succeed("submit", corrected, "--job", "shop/products", "--budget-usd", "9")
    metadata = cli.input_bucket.objects[KEY].metadata
    assert metadata == {"budget-usd": "9", "instruction-column": "instruction"}


def test_a_column_that_is_added_applies_to_the_corrected_rows(cli: CliHarness) -> None:
    corrected = failed(cli, f"index,instruction,quality\n{BRIGHT},bright,high\n")
    cli.succeed("submit", corrected, "--job", "shop/products")
    assert uploaded(cli).splitlines()[:3] == [
        "image_url,instruction,price,quality",
        "https://h/0.png,warm,1,",
        "https://h/1.png,bright,2,high",
    ]


def test_a_local_image_of_a_corrected_row_lies_beside_the_corrections(cli: CliHarness) -> None:
    cli.image("downloads/new.png")
    corrected = failed(cli, f"index,image_url,instruction\n{BRIGHT},new.png,bright\n")
    cli.succeed("submit", corrected, "--job", "shop/products")
    assert cli.input_bucket.puts == ["shop/new.png", KEY]


def test_a_compressed_csv_stays_compressed(cli: CliHarness) -> None:
    stored = cli.input_bucket.objects.pop(KEY)
    stored.body = gzip.compress(stored.body)
    cli.input_bucket.objects[f"{KEY}.gz"] = stored
    cli.ledger.start(running("shop/products", run="2", source=Source("in", f"{KEY}.gz", "v2")), 60)
    cli.succeed("submit", failed(cli, f"index,price\n{COLD},4\n"), "--job", "shop/products")
    body = gzip.decompress(cli.input_bucket.objects[f"{KEY}.gz"].body).decode()
    assert body.splitlines()[3] == "https://h/2.png,cold,4"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("image_url,instruction\nx,y\n", "has no column index"),
        ("index,instruction\n000007,y\n", "the job has no row with the index '000007'"),
        ("index,instruction\n,y\n", "line 2 (row 0) has no index"),
    ],
)
def test_corrections_that_name_no_row_of_the_job_change_nothing(
    cli: CliHarness, text: str, problem: str
) -> None:
    assert problem in cli.error("submit", failed(cli, text), "--job", "shop/products")
    assert uploaded(cli) == ORIGINAL


def test_corrections_of_an_unknown_job_are_refused(cli: CliHarness) -> None:
    error = cli.error("submit", failed(cli, "index,price\n0,4\n"), "--job", "jobs/none")
    assert "has no job jobs/none" in error
