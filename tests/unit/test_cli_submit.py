"""`darkroom submit`: what is uploaded, under which keys, with which options."""

import csv
import io
import json
import re
from email.header import decode_header, make_header
from pathlib import Path

import pytest

from darkroom.csv_input.fields import OPTION_FIELDS, parse_options
from darkroom.csv_input.values import parse_images
from darkroom.jobs import Source
from tests.fakes.command import PNG_SIGNATURE, CliHarness, FakeObject
from tests.fakes.ledger import running


def uploaded_rows(cli: CliHarness) -> list[dict[str, str]]:
    body = cli.input_bucket.objects["jobs/p.csv"].body.decode()
    return list(csv.DictReader(io.StringIO(body, newline="")))


def test_relative_images_keep_their_place_beside_the_csv(cli: CliHarness) -> None:
    cli.image("photos/a.png")
    file = cli.csv("photos/a.png,warm", name="products.csv")
    assert cli.succeed("submit", file).stdout == "jobs/products\n"
    assert cli.input_bucket.puts == ["jobs/photos/a.png", "jobs/products.csv"]
    uploaded = cli.input_bucket.objects["jobs/products.csv"]
    assert (uploaded.body, uploaded.metadata) == (file.read_bytes(), {})


def test_the_csv_is_uploaded_after_all_images(cli: CliHarness) -> None:
    names = [cli.image(f"{i}.png", bytes([i])).name for i in range(60)]
    cli.succeed("submit", cli.csv(*(f"{name},warm" for name in names)), "--to", "")
    assert cli.input_bucket.puts[-1] == "p.csv"
    assert sorted(cli.input_bucket.puts[:-1]) == sorted(names)


@pytest.mark.parametrize("encrypted", [False, True], ids=["md5 as etag", "kms"])
def test_only_missing_and_changed_images_are_uploaded(cli: CliHarness, encrypted: bool) -> None:
    cli.input_bucket.encrypted = encrypted
    for name in ("same", "changed", "resized"):
        cli.image(f"{name}.png", b"1234")
    file = cli.csv("same.png,warm", "changed.png,warm", "resized.png,warm", "new.png,warm")
    cli.succeed("submit", file)
    cli.image("changed.png", b"4321")
    cli.image("resized.png", b"12345")
    cli.image("new.png")
    cli.input_bucket.puts.clear()
    result = cli.run("submit", file, "--json")
    assert sorted(cli.input_bucket.puts[:-1]) == [
        *("jobs/changed.png", "jobs/new.png", "jobs/resized.png")
    ]
    printed = json.loads(result.stdout)
    assert (printed["images_uploaded"], printed["images_unchanged"]) == (3, 1)
    assert "2 images changed since the last upload" in result.stderr
    assert "--no-resume" in result.stderr


def submitted(cli: CliHarness, file: Path, *options: str) -> tuple[list[str], list[str], str]:
    """The keys of images uploaded, the image of each row in the CSV, and the notes."""
    cli.input_bucket.puts.clear()
    notes = cli.succeed("submit", file, *options).stderr
    images = ["|".join(parse_images(row["image_url"])) for row in uploaded_rows(cli)]
    return cli.input_bucket.puts[:-1], images, notes


@pytest.mark.parametrize("uploaded_before", [False, True], ids=["at once", "after the warning"])
def test_a_replaced_image_changes_exactly_the_rows_that_use_it_and_only_once(
    cli: CliHarness, uploaded_before: bool
) -> None:
    cli.image("photos/a.png", b"old")
    cli.image("photos/b.png", b"same")
    rows = ("photos/a.png,warm", "photos/b.png,warm", "photos/b.png|photos/a.png,warm")
    file = cli.csv(*rows)
    before = ["photos/a.png", "photos/b.png", "photos/b.png|photos/a.png"]
    assert submitted(cli, file)[1] == before
    cli.image("photos/a.png", b"retouched")
    if uploaded_before:
        _, images, notes = submitted(cli, file)
        assert images == before
        assert "1 image changed" in notes
        assert "add --replace-images" in notes
    uploaded, images, notes = submitted(cli, file, "--replace-images")
    (key,) = uploaded
    new = key.removeprefix("jobs/")
    assert re.fullmatch(r"p\.images/[0-9a-f]{12}/a\.png", new)
    assert images == [new, "photos/b.png", f"photos/b.png|{new}"]
    assert cli.input_bucket.objects[key].body == PNG_SIGNATURE + b"retouched"
    assert "1 image replaced: 2 rows will be edited again." in notes
    for options in ((), ("--replace-images",)):
        assert submitted(cli, file, *options)[:2] == ([], images)
    cli.image("photos/a.png", b"retouched again")
    uploaded, again, notes = submitted(cli, file, "--replace-images")
    assert len(uploaded) == 1
    assert again[0] not in (images[0], "photos/a.png")


def test_an_image_that_is_not_changed_is_not_replaced(cli: CliHarness) -> None:
    cli.image("a.png")
    file = cli.csv("a.png,warm")
    submitted(cli, file)
    assert submitted(cli, file, "--replace-images")[:2] == ([], ["a.png"])


def test_an_image_of_another_job_is_never_overwritten(cli: CliHarness) -> None:
    summer, winter = (
        cli.csv("a.png,warm", name=f"{folder}/{folder}.csv") for folder in ("summer", "winter")
    )
    cli.image("summer/a.png", b"summer")
    cli.image("winter/a.png", b"winter")
    cli.succeed("submit", summer)
    error = cli.error("submit", winter)
    assert "jobs/a.png of job jobs/summer" in error
    assert "--to" in error
    assert cli.input_bucket.objects["jobs/a.png"].body == PNG_SIGNATURE + b"summer"
    assert "jobs/winter.csv" not in cli.input_bucket.objects


def test_images_outside_the_folder_are_uploaded_and_renamed(cli: CliHarness) -> None:
    outside = cli.image("elsewhere/far, and wide.png", b"far")
    cli.image("up.png", b"up")
    cli.image("work/near.png", b"near")
    file = cli.csv(
        f'"[""{outside}"", ""near.png""]","one, two",../up.png',
        'https://example.com/x.png,"say ""hi""",',
        name="work/p.csv",
        header="image_url,instruction,mask_url",
    )
    refused = cli.error("submit", file)
    assert f"2 images outside the folder of p.csv: '{str(outside)[:60]}" in refused
    assert "and '../up.png'" in refused
    assert "--allow-outside" in refused
    assert cli.input_bucket.puts == []
    assert "2 paths outside the upload" in cli.succeed("submit", file, "--allow-outside").stderr
    first, second = uploaded_rows(cli)
    far, near = json.loads(first["image_url"])
    assert near == "near.png"
    assert cli.input_bucket.objects[f"jobs/{far}"].body == PNG_SIGNATURE + b"far"
    assert cli.input_bucket.objects[f"jobs/{first['mask_url']}"].body == PNG_SIGNATURE + b"up"
    assert first["instruction"] == "one, two"
    unchanged = ("https://example.com/x.png", 'say "hi"', "")
    assert second == dict(zip(("image_url", "instruction", "mask_url"), unchanged, strict=True))


def test_an_absolute_path_into_the_folder_is_not_uploaded_twice(cli: CliHarness) -> None:
    inside = cli.image("photos/near.png")
    cli.succeed("submit", cli.csv(f"{inside},warm", "photos/near.png,cold"))
    assert cli.input_bucket.puts == ["jobs/photos/near.png", "jobs/p.csv"]
    first, _ = uploaded_rows(cli)
    assert json.loads(first["image_url"]) == ["photos/near.png"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("credentials", b"[default]\naws_secret_access_key = s3cr3t\n", "is not an image"),
        ("environ.png", b"HOME=/root\0OPENAI_API_KEY=s3cr3t\0", "is not an image"),
        ("page.jpg", b"<!doctype html><title>s3cr3t", "is a web page"),
        ("empty.png", b"", "is empty"),
    ],
)
def test_a_file_that_is_not_an_image_by_its_content_is_never_uploaded(
    cli: CliHarness, name: str, content: bytes, problem: str
) -> None:
    cli.write(name, content)
    cli.image("good.png")
    outside = cli.write(f"elsewhere/{name}", content)
    file = cli.csv(f"{name},warm", f"{outside},warm", "good.png,warm")
    warning = cli.succeed("submit", file, "--allow-outside").stderr
    assert "2 files not uploaded, their rows will fail" in warning
    assert f"'{name}' {problem}" in warning
    assert cli.input_bucket.puts == ["jobs/good.png", "jobs/p.csv"]
    assert not any(b"s3cr3t" in stored.body for stored in cli.input_bucket.objects.values())


def test_a_symbolic_link_out_of_the_folder_counts_as_outside(cli: CliHarness) -> None:
    cli.image("elsewhere/private.png")
    (cli.folder / "work").mkdir()
    (cli.folder / "work/innocent.png").symlink_to(cli.folder / "elsewhere/private.png")
    file = cli.csv("innocent.png,warm", name="work/p.csv")
    assert "1 image outside the folder of p.csv: 'innocent.png'" in cli.error("submit", file)
    cli.succeed("submit", file, "--allow-outside")
    assert cli.input_bucket.puts == ["jobs/innocent.png", "jobs/p.csv"]


def test_an_image_outside_the_folder_keeps_its_new_name_in_later_uploads(cli: CliHarness) -> None:
    file = cli.csv(f"{cli.write('elsewhere/far.png')},warm", name="work/p.csv")
    cli.succeed("submit", file, "--allow-outside")
    first = cli.input_bucket.objects["jobs/p.csv"].body
    cli.succeed("submit", file, "--allow-outside")
    assert cli.input_bucket.objects["jobs/p.csv"].body == first


def test_options_become_metadata_that_the_splitter_reads_back(cli: CliHarness) -> None:
    file = cli.csv("x,warm", header="ä,Anweisung für Bilder")
    cli.succeed(
        *("submit", file, "--filter-rows", "0:5", "--budget-usd", "2.50", "--no-resume"),
        *("--retry-failed", "--instruction-column", "Anweisung für Bilder", "--max-attempts", 3),
        *("--quality", "high", "--background", "transparent"),
    )
    metadata = cli.input_bucket.objects["jobs/p.csv"].metadata
    assert all(value.isascii() for value in metadata.values())
    decoded = str(make_header(decode_header(metadata["instruction-column"])))
    assert decoded == "Anweisung für Bilder"
    options = parse_options(metadata)
    assert options.instruction_column == "Anweisung für Bilder"
    assert (options.filter_rows, options.budget_usd, options.max_attempts) == ("0:5", 2.5, 3)
    assert (options.resume, options.retry_failed) == (False, True)
    assert (options.quality, options.background) == ("high", "transparent")


def test_a_budget_that_the_next_upload_drops_is_said_before_it_is_spent(cli: CliHarness) -> None:
    file = cli.csv("https://h/x.png,warm")
    assert "Warning" not in cli.succeed("submit", file, "--budget-usd", "3").stderr
    assert "Warning" not in cli.succeed("submit", file, "--budget-usd", "4").stderr
    dropped = cli.succeed("submit", file).stderr
    assert "The last upload had --budget-usd 4 and this one has no budget" in dropped
    assert "Submit again with that option to limit the cost." in dropped
    assert "Warning" not in cli.succeed("submit", file).stderr


def test_every_job_option_is_an_option_of_submit(cli: CliHarness) -> None:
    printed = cli.run("submit", "--help").stdout
    assert [name for name in OPTION_FIELDS if f"--{name}" not in printed] == []


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("p.csv", ("--filter-rows", "1..3"), "filter-rows"),
        ("p.csv", ("--budget-usd", "much"), "budget-usd"),
        ("p.csv", ("--resolution", "8K"), "resolution"),
        ("p.csv", ("--max-attempts", "0"), "max-attempts"),
        ("p.txt", (), ".csv"),  # it would not start a job
    ],
)
def test_an_invalid_option_or_name_uploads_nothing(
    cli: CliHarness, name: str, options: tuple[str, ...], problem: str
) -> None:
    file = cli.csv("https://h/x.png,warm", name=name)
    assert problem in cli.error("submit", file, *options, exit_code=2)
    assert cli.input_bucket.puts == []


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
def test_an_unusable_csv_is_rejected(cli: CliHarness, body: bytes, message: str) -> None:
    assert message in cli.error("submit", cli.write("p.csv", body))
    assert cli.input_bucket.puts == []


def test_an_upper_case_suffix_is_uploaded_in_lower_case(cli: CliHarness) -> None:
    cli.succeed("submit", cli.csv("https://h/x.png,warm", name="P.CSV"))
    assert cli.input_bucket.puts == ["jobs/P.csv"]


def test_rows_that_will_fail_get_a_warning(cli: CliHarness) -> None:
    stderr = cli.succeed("submit", cli.csv("gone.png,warm", "https://h/x.png,")).stderr
    assert "1 of 2 rows will fail: line 3 ('x.png', row 1):" in stderr
    assert "gone.png" in stderr
    assert cli.input_bucket.puts == ["jobs/p.csv"]


def test_an_image_that_exists_only_in_the_bucket_is_not_missing(cli: CliHarness) -> None:
    cli.input_bucket.objects["jobs/a.png"] = FakeObject(b"x")
    result = cli.run("submit", cli.csv("a.png,warm"), "--json")
    assert json.loads(result.stdout)["images_missing"] == []
    assert result.stderr == ""


def test_a_csv_without_a_row_that_can_be_edited_starts_nothing(cli: CliHarness) -> None:
    cli.image("a.png")
    error = cli.error("submit", cli.csv("a.png,", "a.png,warm", "a.png,"), "--filter-rows", "0,2")
    assert "No row can be edited, so nothing was started: line 2 ('a.png', row 0): column" in error
    assert cli.input_bucket.puts == []


def test_images_of_rows_outside_the_filter_are_not_uploaded(cli: CliHarness) -> None:
    cli.image("a.png")
    cli.image("b.png")
    cli.succeed("submit", cli.csv("a.png,warm", "b.png,warm"), "--filter-rows", "1")
    assert cli.input_bucket.puts == ["jobs/b.png", "jobs/p.csv"]


def test_wait_follows_the_new_run_and_not_an_older_one(cli: CliHarness) -> None:
    old = running("jobs/p", source=Source("in", "jobs/p.csv", "v0"))
    cli.ledger.start(old, 10)
    cli.ledger.fail(old, "The old file was a PNG.")

    def start_and_fail_the_run() -> None:
        new = running("jobs/p", run="run-2", started_at=cli.clock.now())
        if len(cli.clock.slept) == 2:
            cli.ledger.start(new, 10)
        if len(cli.clock.slept) == 4:
            cli.ledger.fail(new, "The file is empty.")

    cli.clock.on_sleep = start_and_fail_the_run
    result = cli.run("submit", cli.csv("https://h/x.png,warm"), "--wait")
    assert result.exit_code == 1
    assert "The file is empty." in result.stdout
    assert "PNG" not in result.output
    assert len(cli.clock.slept) == 4


def test_wait_ends_when_the_upload_is_rejected_while_another_run_is_under_way(
    cli: CliHarness,
) -> None:
    old = running("jobs/p", source=Source("in", "jobs/p.csv", "v0"))
    cli.ledger.start(old, 10)

    def reject_the_upload() -> None:
        if len(cli.clock.slept) == 2:
            cli.ledger.reject(running("jobs/p", run="run-2"), "Two columns mean the same.")

    cli.clock.on_sleep = reject_the_upload
    result = cli.run("submit", cli.csv("https://h/x.png,warm"), "--wait")
    assert result.exit_code == 1
    assert "goes on: Two columns mean the same." in result.stderr
    assert len(cli.clock.slept) == 2


def test_wait_gives_up_if_the_job_does_not_start(cli: CliHarness) -> None:
    result = cli.run("submit", cli.csv("https://h/x.png,warm"), "--wait")
    assert result.exit_code == 1
    assert "/aws/lambda/SplitterFunctionName" in result.stderr
    assert 100 < sum(cli.clock.slept) < 150
