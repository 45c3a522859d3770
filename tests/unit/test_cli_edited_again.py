"""`darkroom submit` says what it would pay for again, and asks before that."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from darkroom.csv_input.names import default_names
from darkroom.csv_input.reader import JobRows
from darkroom.jobs import ResultPaths
from darkroom.rows import Claim, RowMessage, RowRequest, RowResult, RowState
from darkroom_cli.local_files import open_csv
from darkroom_cli.session import Session
from tests.fakes.command import CliHarness
from tests.fakes.ledger import running

JOB = "jobs/p"
ENDPOINT = {"name": "g", "provider": "gemini", "api_keys": ["k"], "model": "gemini-3-pro-image"}
ROWS = tuple(f"https://h/{name}.png,make it warm" for name in ("a", "b", "c"))
DRAWING = ",draw a hen"
AGAIN = "edited in an earlier upload will be edited and paid for again, for about $"


def edit_all(cli: CliHarness, path: Path) -> None:
    """An upload whose rows have all been edited."""
    run = cli.ledger.start(running(JOB, run="run-1", started_at=cli.clock.now()), 60)
    assert run is not None
    rows: JobRows = open_csv(path, {})
    (names, _), paths = rows.prepare(0), ResultPaths(JOB)
    for row in rows:
        assert isinstance(row.request, RowRequest)
        name = names.choose(default_names(row.row, row.key, row.request.images), row.request.n)
        message = RowMessage(
            job=JOB, run="run-1", row=row.row, key=row.key, name=name, base="", request=row.request
        )
        claim = cli.ledger.claim(message, run, row.key, 60)
        assert isinstance(claim, Claim)
        result = RowResult(RowState.SUCCEEDED, outputs=(paths.image(name),))
        assert cli.ledger.settle(claim, result)
    cli.clock.time += 60


@pytest.fixture
def cli(cli: CliHarness) -> CliHarness:
    cli.push_endpoints(ENDPOINT)
    edit_all(cli, cli.csv(*ROWS, DRAWING))
    return cli


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "is_interactive", True)


INDEXED = ("k,https://h/a.png,make it warm", "l,https://h/b.png,make it warm")


@pytest.mark.parametrize(
    ("rows", "options", "again"),
    [
        ((*ROWS, DRAWING), (), 0),
        (("https://h/new.png,make it warm", ROWS[2], DRAWING, *ROWS[:2]), (), 0),
        ((ROWS[1], "https://h/new.png,make it warm"), (), 0),
        ((*ROWS, ",draw a cow", ROWS[0]), (), 1),  # at the place of the hen
        ((*ROWS[:2], "https://h/c.png,make it cold", DRAWING), (), 1),
        (("https://h/c.png,make it cold", "https://h/c.png,make it blue"), (), 1),
        ((*ROWS, DRAWING), ("--no-resume",), 4),
        ((*ROWS, DRAWING), ("--no-resume", "--filter-rows", "1"), 1),
        ((*ROWS, DRAWING), ("--aspect-ratio", "1:1"), 4),
    ],
)
def test_rows_that_would_be_paid_for_again_are_counted(
    cli: CliHarness, rows: Sequence[str], options: Sequence[str], again: int
) -> None:
    result = cli.succeed("submit", cli.csv(*rows), *options)
    counted = f"{again} row{'s' if again > 1 else ''} {AGAIN}"
    assert (counted in result.stderr) == (again > 0), result.stderr
    assert ("again" in result.stderr) == (again > 0)
    assert cli.input_bucket.puts == ["jobs/p.csv"]


def test_an_index_added_later_makes_the_rows_new_and_that_is_said(cli: CliHarness) -> None:
    file = cli.csv(*INDEXED, header="index,image_url,instruction")
    assert f"2 rows {AGAIN}0.2" in cli.succeed("submit", file).stderr


def test_the_user_is_asked_in_a_terminal(cli: CliHarness, terminal: None) -> None:
    changed = cli.csv("https://h/c.png,make it cold", *ROWS[:2])
    declined = cli.run("submit", changed, stdin="n\n")
    assert (declined.exit_code, cli.input_bucket.puts) == (1, [])
    assert "Edit 1 row again?" in declined.stderr
    assert "Nothing was started." in declined.stderr
    cli.succeed("submit", changed, stdin="y\n")
    assert "Edit 1 row again?" not in cli.succeed("submit", changed, "--yes").stderr
    moved = cli.csv(*reversed(ROWS))
    assert "again" not in cli.succeed("submit", moved).stderr


def test_rows_edited_again_in_batches_cost_the_price_of_batches(cli: CliHarness) -> None:
    live = cli.succeed("submit", cli.csv(*ROWS), "--no-resume").stderr
    assert f"3 rows {AGAIN}0.4" in live
    batch = cli.succeed("submit", cli.csv(*ROWS), "--no-resume", "--batch").stderr
    assert f"3 rows {AGAIN}0.2" in batch


def test_a_question_without_an_answer_ends_the_command_quietly(
    cli: CliHarness, terminal: None
) -> None:
    result = cli.run("submit", cli.csv(*ROWS), "--no-resume", stdin="")
    assert (result.exit_code, cli.input_bucket.puts) == (1, [])
    assert "bug" not in result.stderr


def test_without_endpoints_the_rows_are_counted_all_the_same(cli: CliHarness) -> None:
    cli.secret = None
    result = cli.succeed("submit", cli.csv(*ROWS), "--no-resume")
    assert "3 rows edited in an earlier upload" in result.stderr
    assert "depends on the endpoints" in result.stderr
