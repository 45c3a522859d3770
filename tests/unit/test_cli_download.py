"""`darkroom download`: a folder that can be looked at offline, and goes on where it stopped."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from tests.fakes.command import MOMENT, FakeBucket, FakeStack, Held, run
from tests.fakes.services import FakeClock

NAMES = ("images/000000.png", "images/sub/b.png", "thumbs/000000-after.webp", "manifest.csv")


@pytest.fixture
def stack() -> FakeStack:
    made = FakeStack(FakeClock())
    for name in (*NAMES, "report.html", "report-002.html", "job.json"):
        made.results.objects[f"jobs/p/{name}"] = Held(name.encode(), "", {})
    return made


def test_every_result_lands_where_the_gallery_links_to(stack: FakeStack, tmp_path: Path) -> None:
    result = run(stack, "download", "jobs/p", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "out/report.html")
    for name in (*NAMES, "report.html", "report-002.html", "job.json"):
        assert (tmp_path / "out" / name).read_bytes() == name.encode()


def test_a_second_download_fetches_only_what_is_new_or_changed(
    stack: FakeStack, tmp_path: Path
) -> None:
    run(stack, "download", "jobs/p", tmp_path)
    stack.results.fetches.clear()
    (tmp_path / "images/000000.png").unlink()
    later = MOMENT + timedelta(seconds=1)
    stack.results.objects["jobs/p/job.json"] = Held(b"JOB.JSON", "", {}, later)  # same size
    told = json.loads(run(stack, "download", "jobs/p", tmp_path, "--json").stdout)
    assert sorted(stack.results.fetches) == ["jobs/p/images/000000.png", "jobs/p/job.json"]
    assert (told["files"], told["downloaded"]) == (7, 2)
    assert (tmp_path / "job.json").read_bytes() == b"JOB.JSON"


class BreakingBucket(FakeBucket):
    """Loses the connection in the middle of one object."""

    def fetch(self, key: str, target: Path) -> None:
        if key.endswith("000000.png"):
            target.write_bytes(b"half")
            raise ConnectionError
        super().fetch(key, target)


def test_a_broken_download_leaves_no_half_file_under_its_name(
    stack: FakeStack, tmp_path: Path
) -> None:
    whole = stack.results
    stack.results = BreakingBucket("out", whole.objects)
    assert run(stack, "download", "jobs/p", tmp_path).exit_code == 1
    assert not (tmp_path / "images/000000.png").exists()
    stack.results = whole
    assert run(stack, "download", "jobs/p", tmp_path).exit_code == 0
    assert (tmp_path / "images/000000.png").read_bytes() == b"images/000000.png"
    assert list(tmp_path.rglob("*.part")) == []


def test_results_of_a_job_nested_below_stay_out(stack: FakeStack, tmp_path: Path) -> None:
    stack.results.objects["jobs/p/summer/images/000000.png"] = Held(b"other", "", {})
    stack.results.objects["jobs/p/summer/report.html"] = Held(b"other", "", {})
    run(stack, "download", "jobs/p", tmp_path)
    assert not (tmp_path / "summer").exists()


def test_a_key_cannot_leave_the_folder(stack: FakeStack, tmp_path: Path) -> None:
    stack.results.objects["jobs/p/images/../../evil"] = Held(b"x", "", {})
    result = run(stack, "download", "jobs/p", tmp_path / "out")
    assert result.exit_code == 1
    assert "would leave the folder" in result.stderr
    assert not (tmp_path / "evil").exists()


def test_nothing_to_download_says_where_to_look(stack: FakeStack, tmp_path: Path) -> None:
    result = run(stack, "download", "jobs/q", tmp_path / "out")
    assert result.exit_code == 1
    assert "darkroom status jobs/q" in result.stderr
    assert not (tmp_path / "out").exists()
