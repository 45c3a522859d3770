"""`darkroom submit`: what is uploaded, under which keys, with which options."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from email.header import decode_header, make_header
from pathlib import Path

import pytest
from typer.testing import Result

from darkroom.csv_input.fields import parse_options
from darkroom.jobs import Source
from tests.fakes.command import FakeStack, Held, run
from tests.fakes.ledger import running
from tests.fakes.services import FakeClock

Invoke = Callable[..., Result]


@pytest.fixture
def stack() -> FakeStack:
    return FakeStack(FakeClock())


@pytest.fixture
def darkroom(stack: FakeStack) -> Invoke:
    def invoke(*arguments: object) -> Result:
        return run(stack, *arguments)

    return invoke


def write_csv(path: Path, *rows: Sequence[str], header: str = "image_url,instruction") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as text:
        text.write(f"{header}\n")
        csv.writer(text).writerows(rows)
    return path


def picture(path: Path, body: bytes = b"picture") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def test_relative_images_keep_their_place_beside_the_csv(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    picture(tmp_path / "photos/a.png")
    file = write_csv(tmp_path / "products.csv", ["photos/a.png", "warm"])
    result = darkroom("submit", file)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "jobs/products\n"
    assert stack.inputs.puts == ["jobs/photos/a.png", "jobs/products.csv"]
    assert stack.inputs.objects["jobs/products.csv"].body == file.read_bytes()


def test_the_csv_goes_last_however_many_images_there_are(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    for i in range(60):
        picture(tmp_path / f"{i}.png", bytes([i]))
    file = write_csv(tmp_path / "p.csv", *[[f"{i}.png", "warm"] for i in range(60)])
    assert darkroom("submit", file, "--to", "").exit_code == 0
    assert stack.inputs.puts[-1] == "p.csv"
    assert sorted(stack.inputs.puts[:-1]) == sorted(f"{i}.png" for i in range(60))


@pytest.mark.parametrize("opaque", [False, True], ids=["md5 as etag", "kms"])
def test_only_missing_and_changed_images_are_uploaded(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path, opaque: bool
) -> None:
    stack.inputs.opaque = opaque
    for name in ("same", "changed", "resized"):
        picture(tmp_path / f"{name}.png", b"1234")
    names = ("same", "changed", "resized", "new")
    file = write_csv(tmp_path / "p.csv", *[[f"{n}.png", "warm"] for n in names])
    darkroom("submit", file)
    picture(tmp_path / "changed.png", b"4321")
    picture(tmp_path / "resized.png", b"12345")
    picture(tmp_path / "new.png")
    stack.inputs.puts.clear()
    result = darkroom("submit", file, "--json")
    assert sorted(stack.inputs.puts[:-1]) == [
        f"jobs/{n}.png" for n in ("changed", "new", "resized")
    ]
    answer = json.loads(result.stdout)
    assert (answer["images_uploaded"], answer["images_unchanged"]) == (3, 1)
    assert "2 images changed since the last upload" in result.stderr
    assert "--no-resume" in result.stderr


def test_an_image_of_another_job_is_never_overwritten(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    for folder in ("summer", "winter"):
        picture(tmp_path / folder / "a.png", folder.encode())
        write_csv(tmp_path / folder / f"{folder}.csv", ["a.png", "warm"])
    assert darkroom("submit", tmp_path / "summer/summer.csv").exit_code == 0
    result = darkroom("submit", tmp_path / "winter/winter.csv")
    assert result.exit_code == 1
    assert "jobs/a.png of job jobs/summer" in result.stderr
    assert "--to" in result.stderr
    assert stack.inputs.objects["jobs/a.png"].body == b"summer"
    assert "jobs/winter.csv" not in stack.inputs.objects


def test_images_outside_the_folder_are_uploaded_and_named_anew(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    far = picture(tmp_path / "elsewhere/far, and wide.png", b"far")
    picture(tmp_path / "up.png", b"up")
    picture(tmp_path / "work/near.png", b"near")
    file = write_csv(
        tmp_path / "work/p.csv",
        [json.dumps([str(far), "near.png"]), "one, two", "../up.png"],
        ["https://example.com/x.png", 'say "hi"', ""],
        header="image_url,instruction,mask_url",
    )
    result = darkroom("submit", file)
    assert result.exit_code == 0, result.stderr
    assert "2 paths of this machine" in result.stderr
    body = stack.inputs.objects["jobs/p.csv"].body.decode()
    first, second = csv.DictReader(io.StringIO(body, newline=""))
    away, near = json.loads(first["image_url"])
    assert near == "near.png"
    assert stack.inputs.objects[f"jobs/{away}"].body == b"far"
    assert stack.inputs.objects[f"jobs/{first['mask_url']}"].body == b"up"
    assert first["instruction"] == "one, two"
    assert second == {
        "image_url": "https://example.com/x.png",
        "instruction": 'say "hi"',
        "mask_url": "",
    }


def test_an_absolute_path_into_the_folder_is_not_uploaded_twice(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    near = picture(tmp_path / "photos/near.png")
    file = write_csv(tmp_path / "p.csv", [str(near), "warm"], ["photos/near.png", "cold"])
    assert darkroom("submit", file).exit_code == 0
    assert stack.inputs.puts == ["jobs/photos/near.png", "jobs/p.csv"]
    body = stack.inputs.objects["jobs/p.csv"].body.decode()
    first, _ = csv.DictReader(io.StringIO(body, newline=""))
    assert json.loads(first["image_url"]) == ["photos/near.png"]


def test_submitting_twice_names_an_outside_image_the_same(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    far = picture(tmp_path / "elsewhere/far.png")
    file = write_csv(tmp_path / "work/p.csv", [str(far), "warm"])
    darkroom("submit", file)
    once = stack.inputs.objects["jobs/p.csv"].body
    darkroom("submit", file)
    assert stack.inputs.objects["jobs/p.csv"].body == once


def test_options_become_metadata_that_the_splitter_reads_back(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    file = write_csv(tmp_path / "p.csv", ["x", "warm"], header="ä,Anweisung für Bilder")
    result = darkroom(
        *("submit", file, "--filter-rows", "0:5", "--budget-usd", "2.50", "--no-resume"),
        *("--retry-failed", "--instruction-column", "Anweisung für Bilder", "--max-attempts", 3),
        *("--quality", "high", "--background", "transparent"),
    )
    assert result.exit_code == 0, result.stderr
    metadata = stack.inputs.objects["jobs/p.csv"].metadata
    assert all(value.isascii() for value in metadata.values())
    decoded = str(make_header(decode_header(metadata["instruction-column"])))
    assert decoded == "Anweisung für Bilder"
    options = parse_options(metadata)
    assert options.instruction_column == "Anweisung für Bilder"
    assert (options.filter_rows, options.budget_usd, options.max_attempts) == ("0:5", 2.5, 3)
    assert (options.resume, options.retry_failed) == (False, True)
    assert (options.quality, options.background) == ("high", "transparent")


def test_without_options_the_object_carries_no_metadata(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    darkroom("submit", write_csv(tmp_path / "p.csv", ["https://h/x.png", "warm"]))
    assert stack.inputs.objects["jobs/p.csv"].metadata == {}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--filter-rows", "1..3"),
        ("--budget-usd", "much"),
        ("--resolution", "8K"),
        ("--max-attempts", "0"),
    ],
)
def test_a_bad_option_is_a_usage_mistake_and_uploads_nothing(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path, option: str, value: str
) -> None:
    file = write_csv(tmp_path / "p.csv", ["https://h/x.png", "warm"])
    result = darkroom("submit", file, option, value)
    assert result.exit_code == 2
    assert option.removeprefix("--") in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert stack.inputs.puts == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n", "PNG image"),
        (b"a,b\n1,2\n", "instruction"),
        (b'image_url,instruction\n"a.png,x', "quoted field"),
        (b"image_url,instruction\n", "no rows"),
    ],
    ids=["empty", "png", "no instruction column", "cut", "no rows"],
)
def test_a_broken_csv_is_one_sentence_and_uploads_nothing(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path, body: bytes, says: str
) -> None:
    file = tmp_path / "p.csv"
    file.write_bytes(body)
    result = darkroom("submit", file)
    assert result.exit_code == 1
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert stack.inputs.puts == []


def test_a_name_that_would_start_no_job_is_refused(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    result = darkroom("submit", write_csv(tmp_path / "p.txt", ["https://h/x.png", "warm"]))
    assert result.exit_code == 2
    assert ".csv" in result.stderr
    assert stack.inputs.puts == []


def test_an_upper_case_suffix_starts_a_job_all_the_same(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    darkroom("submit", write_csv(tmp_path / "P.CSV", ["https://h/x.png", "warm"]))
    assert stack.inputs.puts == ["jobs/P.csv"]


def test_rows_that_will_fail_are_told_before_they_do(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    file = write_csv(tmp_path / "p.csv", ["gone.png", "warm"], ["https://h/x.png", ""])
    result = darkroom("submit", file)
    assert result.exit_code == 0
    assert "1 of 2 rows will fail: row 1:" in result.stderr
    assert "gone.png" in result.stderr
    assert stack.inputs.puts == ["jobs/p.csv"]


def test_an_image_that_only_the_bucket_has_is_not_missing(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    stack.inputs.objects["jobs/a.png"] = Held(b"x", "image/png", {})
    result = darkroom("submit", write_csv(tmp_path / "p.csv", ["a.png", "warm"]), "--json")
    assert json.loads(result.stdout)["images_missing"] == []
    assert result.stderr == ""


def test_images_of_rows_outside_the_filter_stay_at_home(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png", name.encode())
    file = write_csv(tmp_path / "p.csv", ["a.png", "warm"], ["b.png", "warm"])
    darkroom("submit", file, "--filter-rows", "1")
    assert stack.inputs.puts == ["jobs/b.png", "jobs/p.csv"]


def test_wait_ends_with_the_upload_it_made_not_with_an_older_run(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    before = Source("in", "jobs/p.csv", "v0")
    old = running("jobs/p", source=before)
    stack.ledger.start(old, 10)
    stack.ledger.fail(old, "The old file was a PNG.")
    sleeps = stack.clock.sleep

    def splitter_wakes(seconds: float) -> None:
        sleeps(seconds)
        fresh = running("jobs/p", run="run-2", started_at=stack.clock.now())
        if len(stack.clock.slept) == 2:
            stack.ledger.start(fresh, 10)
        if len(stack.clock.slept) == 4:
            stack.ledger.fail(fresh, "The file is empty.")

    stack.clock.sleep = splitter_wakes  # type: ignore[method-assign]
    file = write_csv(tmp_path / "p.csv", ["https://h/x.png", "warm"])
    result = darkroom("submit", file, "--wait")
    assert result.exit_code == 1
    assert "The file is empty." in result.stdout
    assert "PNG" not in result.output
    assert len(stack.clock.slept) == 4


def test_wait_gives_up_when_nothing_picks_the_file_up(
    darkroom: Invoke, stack: FakeStack, tmp_path: Path
) -> None:
    file = write_csv(tmp_path / "p.csv", ["https://h/x.png", "warm"])
    result = darkroom("submit", file, "--wait")
    assert result.exit_code == 1
    assert "/aws/lambda/SplitterFunctionName" in result.stderr
    assert 100 < sum(stack.clock.slept) < 150
