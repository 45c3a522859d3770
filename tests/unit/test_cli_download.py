"""`darkroom download`: results are copied into a folder that works offline."""

from datetime import timedelta
from pathlib import Path

import pytest

from tests.fakes.command import UPLOADED_AT, CliHarness, FakeBucket, FakeObject

NAMES = (
    *("images/000000.png", "images/sub/b.png", "thumbs/000000-after.webp"),
    *("manifest.csv", "report.html", "report-002.html", "job.json"),
)


@pytest.fixture
def cli() -> CliHarness:
    cli = CliHarness()
    for name in NAMES:
        cli.stack.results_bucket.objects[f"jobs/p/{name}"] = FakeObject(name.encode())
    return cli


def test_every_result_is_written_where_the_gallery_links_to(
    cli: CliHarness, tmp_path: Path
) -> None:
    result = cli.run("download", "jobs/p", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "out/report.html")
    for name in NAMES:
        assert (tmp_path / "out" / name).read_bytes() == name.encode()


def test_a_second_download_fetches_only_what_is_new_or_changed(
    cli: CliHarness, tmp_path: Path
) -> None:
    cli.run("download", "jobs/p", tmp_path)
    cli.stack.results_bucket.fetches.clear()
    (tmp_path / "images/000000.png").unlink()
    later = UPLOADED_AT + timedelta(seconds=1)
    cli.stack.results_bucket.objects["jobs/p/job.json"] = FakeObject(b"JOB.JSON", modified=later)
    answer = cli.json("download", "jobs/p", tmp_path)
    assert sorted(cli.stack.results_bucket.fetches) == [
        "jobs/p/images/000000.png",
        "jobs/p/job.json",
    ]
    assert (answer["files"], answer["downloaded"]) == (7, 2)
    assert (tmp_path / "job.json").read_bytes() == b"JOB.JSON"


class BreakingBucket(FakeBucket):
    """Loses the connection in the middle of one object."""

    def fetch(self, key: str, target: Path) -> None:
        if key.endswith("000000.png"):
            target.write_bytes(b"half")
            raise ConnectionError
        super().fetch(key, target)


def test_an_interrupted_download_leaves_no_partial_file_under_its_name(
    cli: CliHarness, tmp_path: Path
) -> None:
    complete = cli.stack.results_bucket
    cli.stack.results_bucket = BreakingBucket("out", complete.objects)
    assert cli.run("download", "jobs/p", tmp_path).exit_code == 1
    assert not (tmp_path / "images/000000.png").exists()
    cli.stack.results_bucket = complete
    assert cli.run("download", "jobs/p", tmp_path).exit_code == 0
    assert (tmp_path / "images/000000.png").read_bytes() == b"images/000000.png"
    assert list(tmp_path.rglob("*.part")) == []


def test_results_of_a_job_in_a_subfolder_are_not_downloaded(
    cli: CliHarness, tmp_path: Path
) -> None:
    cli.stack.results_bucket.objects["jobs/p/summer/images/000000.png"] = FakeObject(b"other")
    cli.stack.results_bucket.objects["jobs/p/summer/report.html"] = FakeObject(b"other")
    cli.run("download", "jobs/p", tmp_path)
    assert not (tmp_path / "summer").exists()


def test_a_key_cannot_leave_the_folder(cli: CliHarness, tmp_path: Path) -> None:
    cli.stack.results_bucket.objects["jobs/p/images/../../evil"] = FakeObject(b"x")
    result = cli.run("download", "jobs/p", tmp_path / "out")
    assert result.exit_code == 1
    assert "would leave the folder" in result.stderr
    assert not (tmp_path / "evil").exists()


def test_a_job_without_results_yet_points_to_its_status(cli: CliHarness, tmp_path: Path) -> None:
    result = cli.run("download", "jobs/q", tmp_path / "out")
    assert result.exit_code == 1
    assert "darkroom status jobs/q" in result.stderr
    assert not (tmp_path / "out").exists()
