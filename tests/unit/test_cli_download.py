"""`darkroom download`: results are copied into a folder that works offline."""

from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.command import UPLOADED_AT, CliHarness, FakeBucket, FakeObject
from tests.fakes.ledger import running

NAMES = (
    *("images/000000.png", "images/sub/b.png", "thumbs/000000-after.webp"),
    *("manifest.csv", "report.html", "report-002.html", "job.json"),
)


@pytest.fixture
def cli(cli: CliHarness) -> CliHarness:
    for name in NAMES:
        cli.results_bucket.objects[f"jobs/p/{name}"] = FakeObject(name.encode())
    return cli


@pytest.fixture
def out(cli: CliHarness) -> Path:
    return cli.folder / "out"


def test_every_result_is_written_where_the_gallery_links_to(cli: CliHarness, out: Path) -> None:
    assert cli.succeed("download", "jobs/p", out).stdout.strip() == str(out / "report.html")
    for name in NAMES:
        assert (out / name).read_bytes() == name.encode()


def test_a_second_download_fetches_only_what_is_new_or_changed(cli: CliHarness, out: Path) -> None:
    cli.succeed("download", "jobs/p", out)
    cli.results_bucket.fetches.clear()
    (out / "images/000000.png").unlink()
    later = UPLOADED_AT + timedelta(seconds=1)
    cli.results_bucket.objects["jobs/p/job.json"] = FakeObject(b"JOB.JSON", modified=later)
    printed = cli.json("download", "jobs/p", out)
    assert sorted(cli.results_bucket.fetches) == ["jobs/p/images/000000.png", "jobs/p/job.json"]
    assert (printed["files"], printed["downloaded"]) == (7, 2)
    assert (out / "job.json").read_bytes() == b"JOB.JSON"


class BreakingBucket(FakeBucket):
    """Loses the connection in the middle of one object."""

    def fetch(self, key: str, target: Path) -> None:
        if key.endswith("000000.png"):
            target.write_bytes(b"half")
            raise ConnectionError
        super().fetch(key, target)


def test_an_interrupted_download_leaves_no_partial_file(cli: CliHarness, out: Path) -> None:
    complete = cli.results_bucket
    cli.results_bucket = BreakingBucket("out", complete.objects)
    cli.error("download", "jobs/p", out)
    assert not (out / "images/000000.png").exists()
    cli.results_bucket = complete
    cli.succeed("download", "jobs/p", out)
    assert (out / "images/000000.png").read_bytes() == b"images/000000.png"
    assert list(out.rglob("*.part")) == []


def test_keys_of_other_jobs_or_outside_the_folder_are_skipped(cli: CliHarness, out: Path) -> None:
    for name in ("images/000000.png", "report.html"):
        cli.results_bucket.objects[f"jobs/p/summer/{name}"] = FakeObject(b"other")
    cli.succeed("download", "jobs/p", out)
    assert not (out / "summer").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("../../evil", "a.png/b.png/c.png", "sub/./x.png", "NUL.png", "c:evil.png", "x\\y.png"),
        *("two\nlines.png", "esc\x1b[31m.png", "trailing. ", "a.png/below-a-file.png"),
    ],
)
def test_one_object_without_a_portable_name_does_not_stop_the_download(
    cli: CliHarness, out: Path, name: str
) -> None:
    for key in ("images/a.png", f"images/{name}"):
        cli.results_bucket.objects[f"jobs/p/{key}"] = FakeObject(b"x")
    warning = cli.succeed("download", "jobs/p", out).stderr
    assert "1 object not downloaded" in warning
    assert "\x1b" not in warning
    stored = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert stored == {*NAMES, "images/a.png"}
    assert not (cli.folder / "evil").exists()


def test_a_job_without_results_yet_points_to_its_status(cli: CliHarness, out: Path) -> None:
    cli.ledger.start(running("jobs/q"), 60)
    assert "darkroom status jobs/q" in cli.error("download", "q", out)
    assert "has no job jobs/r" in cli.error("download", "jobs/r", out)
    assert not out.exists()


_PARTS = st.sampled_from(
    [
        *(
            "..",
            ".",
            "",
            "a",
            "A",
            "a.png",
            "A.PNG",
            "images",
            "thumbs",
            "report.html",
            "C:",
            "nul",
        ),
        *(
            "COM\u00b9.png",
            "a ",
            "a.",
            ".ssh",
            "\\\\host",
            "a\x1b[2J",
            "\u202egnp",
            "a\nError: b",
            "é",
        ),
        *("a.png.part", "~", "-rf", "*", "\ud800", "n" * 300),
    ]
) | st.text(max_size=6)
_KEYS = st.lists(_PARTS, min_size=1, max_size=4).map("/".join)


@given(
    st.lists(_KEYS, min_size=1, max_size=8), st.sampled_from(["", "images/", "thumbs/", "report"])
)
def test_no_key_leaves_the_folder_or_controls_the_terminal(keys: list[str], start: str) -> None:
    with TemporaryDirectory() as root:
        cli = CliHarness(Path(root) / "user")
        cli.folder.mkdir()
        for key in keys:
            cli.results_bucket.objects[f"jobs/p/{start}{key}"] = FakeObject(b"x")
        result = cli.run("download", "jobs/p", cli.folder / "out")
        assert result.exit_code in (0, 1)
        assert "bug in darkroom" not in result.output
        assert result.output.replace("\n", "").isprintable()
        written = {path for path in Path(root).rglob("*") if path.is_file()}
        assert all(path.is_relative_to(cli.folder / "out") for path in written)
