"""The darkroom command on a deployed stack: from a folder of images to a gallery on disk."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from darkroom_cli.main import app
from darkroom_local.providers import Config, Fault, FaultKind, SimulatedEndpoint, When
from tests.e2e.conftest import CONFIG
from tests.e2e.harness import StackHarness

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]
Command = Callable[..., Result]
DOWN = Fault(kind=FaultKind.OVERLOADED, when=When(prompt_contains="both are down"))


@pytest.fixture
def darkroom(harness: StackHarness) -> Command:
    def invoke(*arguments: object) -> Result:
        result = CliRunner(env=harness.info.environment()).invoke(app, [str(a) for a in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


@pytest.fixture
def end_outage(harness: StackHarness) -> Iterator[Callable[[], None]]:
    """Both providers fail for some rows until the returned function is called."""
    failing = {name: SimulatedEndpoint(faults=(DOWN,)) for name in CONFIG.endpoints}
    harness.simulator.configure(Config(endpoints=failing))
    yield lambda: harness.simulator.configure(CONFIG)
    harness.simulator.configure(CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "work/near.png")
    Image.new("RGB", (64, 48), "olive").save(tmp_path / "far.png")
    rows = "near.png,make it warm\n../far.png,make it cold\nnear.png,both are down\n"
    (tmp_path / "work/people.csv").write_text(f"image_url,instruction\n{rows}")
    return tmp_path / "work"


def last_line(result: Result) -> dict[str, object]:
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_a_folder_becomes_a_gallery_and_dead_rows_can_be_redriven(
    darkroom: Command, end_outage: Callable[[], None], folder: Path
) -> None:
    csv = folder / "people.csv"
    submitted = darkroom(
        *("submit", csv, "--to", "cli", "--wait", "--every", "0.5", "--max-attempts", 1, "--json")
    )
    assert submitted.exit_code == 0, submitted.stderr
    first = last_line(submitted)
    assert (first["state"], first["succeeded"], first["dead"]) == ("done", 2, 1)
    (failure,) = json.loads(darkroom("failures", "cli/people", "--json").stdout)
    assert (failure["row"], failure["reason"]) == (2, "unavailable")

    end_outage()
    redriven = darkroom("redrive", "cli/people", "--reason", "unavailable", "--json")
    assert json.loads(redriven.stdout)["redriven"] == 1
    deadline = time.monotonic() + 240
    while (now := json.loads(darkroom("status", "cli/people", "--json").stdout))["dead"]:
        assert time.monotonic() < deadline, now
        time.sleep(0.5)
    ended = last_line(darkroom("status", "cli/people", "--watch", "--every", "0.5", "--json"))
    assert (ended["state"], ended["succeeded"], ended["dead"]) == ("done", 3, 0)
    assert json.loads(darkroom("failures", "cli/people", "--json").stdout) == []

    out = folder / "out"
    report = darkroom("download", "cli/people", out).stdout.strip()
    assert Path(report).is_file()
    assert {path.name for path in (out / "images").iterdir()} == {
        "000000.png",
        "000001.png",
        "000002.png",
    }
    again = json.loads(darkroom("download", "cli/people", out, "--json").stdout)
    assert again["downloaded"] == 0
