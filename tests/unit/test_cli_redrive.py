"""`darkroom redrive`: matching dead letters return to the rows queue, and none is lost."""

import json
from collections.abc import Iterable

import pytest

from darkroom_cli.stack import DeadLetter
from tests.fakes.command import CliHarness


def dead_letter(number: int) -> DeadLetter:
    job, reason = "ab"[number % 2], ("unavailable", "quota_spent")[number // 2 % 2]
    body = json.dumps({"job": f"jobs/{job}", "row": number})
    return DeadLetter(f"id-{number}", f"receipt-{number}", body, {"reason": reason})


@pytest.fixture
def cli(cli: CliHarness) -> CliHarness:
    cli.dead_letters.visible = [dead_letter(i) for i in range(48)]
    return cli


def ids(letters: Iterable[DeadLetter]) -> set[str]:
    return {letter.id for letter in letters}


def test_a_redrive_by_job_and_reason_moves_only_those(cli: CliHarness) -> None:
    printed = cli.json("redrive", "jobs/a", "--reason", "quota_spent")
    assert printed["redriven"] == 12
    assert printed["by_reason"] == {"quota_spent": 12}
    assert {(m.job, m.reason) for m in cli.dead_letters.rows_queue} == {("jobs/a", "quota_spent")}
    assert len(cli.dead_letters.visible) == 36
    assert cli.dead_letters.hidden == []


def test_without_a_filter_sqs_moves_all_messages(cli: CliHarness) -> None:
    cli.dead_letters.has_move_task = True
    assert cli.json("redrive") == {"redriven": 48}
    assert len(cli.dead_letters.rows_queue) == 48


def test_the_command_moves_messages_where_sqs_cannot(cli: CliHarness) -> None:
    result = cli.run("redrive")
    assert "Redrove 48 rows: 24 unavailable, 24 quota_spent." in result.stdout
    assert len(ids(cli.dead_letters.rows_queue)) == 48
    assert cli.dead_letters.count() == 0


def test_an_interruption_loses_no_message(cli: CliHarness) -> None:
    before = ids(cli.dead_letters.visible)
    cli.dead_letters.interrupt_after = 2
    assert cli.run("redrive", "jobs/a").exit_code == 130
    assert ids(cli.dead_letters.rows_queue) | ids(cli.dead_letters.visible) == before
    assert ids(cli.dead_letters.rows_queue) & ids(cli.dead_letters.visible) == set()
    assert cli.dead_letters.hidden == []


def test_a_message_that_the_rows_queue_refuses_stays_dead(cli: CliHarness) -> None:
    cli.dead_letters.refused = {"id-4"}
    assert "stay in the dead-letter queue" in cli.error("redrive")
    assert "id-4" in ids(cli.dead_letters.visible)
    assert "id-4" not in ids(cli.dead_letters.rows_queue)


def test_large_messages_are_sent_in_batches_within_the_sqs_limit(cli: CliHarness) -> None:
    big = json.dumps({"job": "jobs/a", "x": "y" * 400_000})
    cli.dead_letters.visible = [DeadLetter(str(i), str(i), big) for i in range(5)]
    cli.succeed("redrive", "jobs/a")
    sizes = [sum(len(letter.body) for letter in batch) for batch in cli.dead_letters.batches]
    assert sum(sizes) == 5 * len(big)
    assert max(sizes) < 1_048_576


def test_messages_that_are_not_rows_match_no_job(cli: CliHarness) -> None:
    cli.dead_letters.visible = [
        DeadLetter("1", "1", "not json", {"reason": "unparseable"}),
        DeadLetter("2", "2", '["a list"]'),
    ]
    kept = {"unparseable": 1, "": 1}
    assert cli.json("redrive", "jobs/a") == {"redriven": 0, "by_reason": {}, "kept": kept}


@pytest.mark.parametrize("arguments", [(), ("jobs/a",)])
def test_an_empty_queue_is_not_an_error(cli: CliHarness, arguments: tuple[str, ...]) -> None:
    cli.dead_letters.visible = []
    assert "The dead-letter queue" in cli.succeed("redrive", *arguments).stdout
