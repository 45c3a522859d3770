"""`darkroom submit`: what is uploaded, under which keys, with which options."""

import csv
import io
import json
from collections.abc import Sequence
from email.header import decode_header, make_header
from pathlib import Path

import pytest

from darkroom.csv_input.fields import OPTION_FIELDS, parse_options
from darkroom.jobs import Source
from tests.fakes.command import CliHarness, FakeObject
from tests.fakes.ledger import running


@pytest.fixture
def cli() -> CliHarness:
    return CliHarness()


def write_csv(path: Path, *rows: Sequence[str], header: str = "image_url,instruction") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as text:
        text.write(f"{header}\n")
        csv.writer(text).writerows(rows)
    return path


def write_image(path: Path, body: bytes = b"image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def test_relative_images_keep_their_place_beside_the_csv(cli: CliHarness, tmp_path: Path) -> None:
    write_image(tmp_path / "photos/a.png")
    file = write_csv(tmp_path / "products.csv", ["photos/a.png", "warm"])
    result = cli.run("submit", file)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "jobs/products\n"
    assert cli.stack.input_bucket.puts == ["jobs/photos/a.png", "jobs/products.csv"]
    assert cli.stack.input_bucket.objects["jobs/products.csv"].body == file.read_bytes()


def test_the_csv_is_uploaded_after_all_images(cli: CliHarness, tmp_path: Path) -> None:
    for i in range(60):
        write_image(tmp_path / f"{i}.png", bytes([i]))
    file = write_csv(tmp_path / "p.csv", *[[f"{i}.png", "warm"] for i in range(60)])
    assert cli.run("submit", file, "--to", "").exit_code == 0
    assert cli.stack.input_bucket.puts[-1] == "p.csv"
    assert sorted(cli.stack.input_bucket.puts[:-1]) == sorted(f"{i}.png" for i in range(60))


@pytest.mark.parametrize("encrypted", [False, True], ids=["md5 as etag", "kms"])
def test_only_missing_and_changed_images_are_uploaded(
    cli: CliHarness, tmp_path: Path, encrypted: bool
) -> None:
    cli.stack.input_bucket.encrypted = encrypted
    for name in ("same", "changed", "resized"):
        write_image(tmp_path / f"{name}.png", b"1234")
    names = ("same", "changed", "resized", "new")
    file = write_csv(tmp_path / "p.csv", *[[f"{n}.png", "warm"] for n in names])
    cli.run("submit", file)
    write_image(tmp_path / "changed.png", b"4321")
    write_image(tmp_path / "resized.png", b"12345")
    write_image(tmp_path / "new.png")
    cli.stack.input_bucket.puts.clear()
    result = cli.run("submit", file, "--json")
    assert sorted(cli.stack.input_bucket.puts[:-1]) == [
        f"jobs/{n}.png" for n in ("changed", "new", "resized")
    ]
    answer = json.loads(result.stdout)
    assert (answer["images_uploaded"], answer["images_unchanged"]) == (3, 1)
    assert "2 images changed since the last upload" in result.stderr
    assert "--no-resume" in result.stderr


def test_an_image_of_another_job_is_never_overwritten(cli: CliHarness, tmp_path: Path) -> None:
    for folder in ("summer", "winter"):
        write_image(tmp_path / folder / "a.png", folder.encode())
        write_csv(tmp_path / folder / f"{folder}.csv", ["a.png", "warm"])
    assert cli.run("submit", tmp_path / "summer/summer.csv").exit_code == 0
    result = cli.run("submit", tmp_path / "winter/winter.csv")
    assert result.exit_code == 1
    assert "jobs/a.png of job jobs/summer" in result.stderr
    assert "--to" in result.stderr
    assert cli.stack.input_bucket.objects["jobs/a.png"].body == b"summer"
    assert "jobs/winter.csv" not in cli.stack.input_bucket.objects


def test_images_outside_the_folder_are_uploaded_and_renamed(
    cli: CliHarness, tmp_path: Path
) -> None:
    outside = write_image(tmp_path / "elsewhere/far, and wide.png", b"far")
    write_image(tmp_path / "up.png", b"up")
    write_image(tmp_path / "work/near.png", b"near")
    file = write_csv(
        tmp_path / "work/p.csv",
        [json.dumps([str(outside), "near.png"]), "one, two", "../up.png"],
        ["https://example.com/x.png", 'say "hi"', ""],
        header="image_url,instruction,mask_url",
    )
    result = cli.run("submit", file)
    assert result.exit_code == 0, result.stderr
    assert "2 paths outside the upload" in result.stderr
    body = cli.stack.input_bucket.objects["jobs/p.csv"].body.decode()
    first, second = csv.DictReader(io.StringIO(body, newline=""))
    away, near = json.loads(first["image_url"])
    assert near == "near.png"
    assert cli.stack.input_bucket.objects[f"jobs/{away}"].body == b"far"
    assert cli.stack.input_bucket.objects[f"jobs/{first['mask_url']}"].body == b"up"
    assert first["instruction"] == "one, two"
    assert second == {
        "image_url": "https://example.com/x.png",
        "instruction": 'say "hi"',
        "mask_url": "",
    }


def test_an_absolute_path_into_the_folder_is_not_uploaded_twice(
    cli: CliHarness, tmp_path: Path
) -> None:
    inside = write_image(tmp_path / "photos/near.png")
    file = write_csv(tmp_path / "p.csv", [str(inside), "warm"], ["photos/near.png", "cold"])
    assert cli.run("submit", file).exit_code == 0
    assert cli.stack.input_bucket.puts == ["jobs/photos/near.png", "jobs/p.csv"]
    body = cli.stack.input_bucket.objects["jobs/p.csv"].body.decode()
    first, _ = csv.DictReader(io.StringIO(body, newline=""))
    assert json.loads(first["image_url"]) == ["photos/near.png"]


def test_an_image_outside_the_folder_keeps_its_new_name_in_later_uploads(
    cli: CliHarness, tmp_path: Path
) -> None:
    outside = write_image(tmp_path / "elsewhere/far.png")
    file = write_csv(tmp_path / "work/p.csv", [str(outside), "warm"])
    cli.run("submit", file)
    first = cli.stack.input_bucket.objects["jobs/p.csv"].body
    cli.run("submit", file)
    assert cli.stack.input_bucket.objects["jobs/p.csv"].body == first


def test_options_become_metadata_that_the_splitter_reads_back(
    cli: CliHarness, tmp_path: Path
) -> None:
    file = write_csv(tmp_path / "p.csv", ["x", "warm"], header="ä,Anweisung für Bilder")
    result = cli.run(
        *("submit", file, "--filter-rows", "0:5", "--budget-usd", "2.50", "--no-resume"),
        *("--retry-failed", "--instruction-column", "Anweisung für Bilder", "--max-attempts", 3),
        *("--quality", "high", "--background", "transparent"),
    )
    assert result.exit_code == 0, result.stderr
    metadata = cli.stack.input_bucket.objects["jobs/p.csv"].metadata
    assert all(value.isascii() for value in metadata.values())
    decoded = str(make_header(decode_header(metadata["instruction-column"])))
    assert decoded == "Anweisung für Bilder"
    options = parse_options(metadata)
    assert options.instruction_column == "Anweisung für Bilder"
    assert (options.filter_rows, options.budget_usd, options.max_attempts) == ("0:5", 2.5, 3)
    assert (options.resume, options.retry_failed) == (False, True)
    assert (options.quality, options.background) == ("high", "transparent")


def test_every_job_option_is_an_option_of_submit(cli: CliHarness) -> None:
    printed = cli.run("submit", "--help").stdout
    assert [name for name in OPTION_FIELDS if f"--{name}" not in printed] == []


def test_without_options_the_object_has_no_metadata(cli: CliHarness, tmp_path: Path) -> None:
    cli.run("submit", write_csv(tmp_path / "p.csv", ["https://h/x.png", "warm"]))
    assert cli.stack.input_bucket.objects["jobs/p.csv"].metadata == {}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--filter-rows", "1..3"),
        ("--budget-usd", "much"),
        ("--resolution", "8K"),
        ("--max-attempts", "0"),
    ],
)
def test_an_invalid_option_is_a_usage_error_and_uploads_nothing(
    cli: CliHarness, tmp_path: Path, option: str, value: str
) -> None:
    file = write_csv(tmp_path / "p.csv", ["https://h/x.png", "warm"])
    result = cli.run("submit", file, option, value)
    assert result.exit_code == 2
    assert option.removeprefix("--") in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert cli.stack.input_bucket.puts == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n", "PNG image"),
        (b"a,b\n1,2\n", "instruction"),
        (b'image_url,instruction\n"a.png,x', "quoted field"),
        (b"image_url,instruction\n", "no rows"),
    ],
    ids=["empty", "png", "no instruction column", "cut", "no rows"],
)
def test_an_unusable_csv_is_rejected_in_one_sentence_and_uploads_nothing(
    cli: CliHarness, tmp_path: Path, body: bytes, message: str
) -> None:
    file = tmp_path / "p.csv"
    file.write_bytes(body)
    result = cli.run("submit", file)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert cli.stack.input_bucket.puts == []


def test_a_file_name_that_would_not_start_a_job_is_rejected(
    cli: CliHarness, tmp_path: Path
) -> None:
    result = cli.run("submit", write_csv(tmp_path / "p.txt", ["https://h/x.png", "warm"]))
    assert result.exit_code == 2
    assert ".csv" in result.stderr
    assert cli.stack.input_bucket.puts == []


def test_an_upper_case_suffix_is_uploaded_in_lower_case(cli: CliHarness, tmp_path: Path) -> None:
    cli.run("submit", write_csv(tmp_path / "P.CSV", ["https://h/x.png", "warm"]))
    assert cli.stack.input_bucket.puts == ["jobs/P.csv"]


def test_rows_that_will_fail_get_a_warning(cli: CliHarness, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "p.csv", ["gone.png", "warm"], ["https://h/x.png", ""])
    result = cli.run("submit", file)
    assert result.exit_code == 0
    assert "1 of 2 rows will fail: row 1:" in result.stderr
    assert "gone.png" in result.stderr
    assert cli.stack.input_bucket.puts == ["jobs/p.csv"]


def test_an_image_that_exists_only_in_the_bucket_is_not_missing(
    cli: CliHarness, tmp_path: Path
) -> None:
    cli.stack.input_bucket.objects["jobs/a.png"] = FakeObject(b"x")
    result = cli.run("submit", write_csv(tmp_path / "p.csv", ["a.png", "warm"]), "--json")
    assert json.loads(result.stdout)["images_missing"] == []
    assert result.stderr == ""


def test_images_of_rows_outside_the_filter_are_not_uploaded(
    cli: CliHarness, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png", name.encode())
    file = write_csv(tmp_path / "p.csv", ["a.png", "warm"], ["b.png", "warm"])
    cli.run("submit", file, "--filter-rows", "1")
    assert cli.stack.input_bucket.puts == ["jobs/b.png", "jobs/p.csv"]


def test_wait_follows_the_new_run_and_not_an_older_one(cli: CliHarness, tmp_path: Path) -> None:
    source = Source("in", "jobs/p.csv", "v0")
    old = running("jobs/p", source=source)
    cli.stack.ledger.start(old, 10)
    cli.stack.ledger.fail(old, "The old file was a PNG.")

    def start_and_fail_the_run() -> None:
        new = running("jobs/p", run="run-2", started_at=cli.clock.now())
        if len(cli.clock.slept) == 2:
            cli.stack.ledger.start(new, 10)
        if len(cli.clock.slept) == 4:
            cli.stack.ledger.fail(new, "The file is empty.")

    cli.clock.on_sleep = start_and_fail_the_run
    file = write_csv(tmp_path / "p.csv", ["https://h/x.png", "warm"])
    result = cli.run("submit", file, "--wait")
    assert result.exit_code == 1
    assert "The file is empty." in result.stdout
    assert "PNG" not in result.output
    assert len(cli.clock.slept) == 4


def test_wait_gives_up_if_the_job_does_not_start(cli: CliHarness, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "p.csv", ["https://h/x.png", "warm"])
    result = cli.run("submit", file, "--wait")
    assert result.exit_code == 1
    assert "/aws/lambda/SplitterFunctionName" in result.stderr
    assert 100 < sum(cli.clock.slept) < 150
