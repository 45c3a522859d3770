"""`darkroom redrive`: matching dead letters return to the rows queue, and none is lost."""

import json

import pytest

from darkroom_cli.stack import DeadLetter
from tests.fakes.command import CliHarness


def dead_letter(number: int, job: str = "jobs/a", reason: str = "unavailable") -> DeadLetter:
    body = json.dumps({"job": job, "row": number})
    return DeadLetter(f"id-{number}", f"receipt-{number}", body, {"reason": reason})


@pytest.fixture
def cli() -> CliHarness:
    cli = CliHarness()
    jobs, reasons = ("jobs/a", "jobs/b"), ("unavailable", "quota_spent")
    cli.stack.dead_letters.visible = [
        dead_letter(i, jobs[i % 2], reasons[i // 2 % 2]) for i in range(48)
    ]
    return cli


def ids(letters: list[DeadLetter]) -> set[str]:
    return {letter.id for letter in letters}


def test_a_redrive_by_job_and_reason_moves_only_those(cli: CliHarness) -> None:
    answer = cli.json("redrive", "jobs/a", "--reason", "quota_spent")
    assert answer["redriven"] == 12
    assert answer["by_reason"] == {"quota_spent": 12}
    queue = cli.stack.dead_letters
    assert {(m.job, m.reason) for m in queue.rows_queue} == {("jobs/a", "quota_spent")}
    assert len(queue.visible) == 36
    assert queue.hidden == []


def test_without_a_filter_sqs_moves_all_messages(cli: CliHarness) -> None:
    cli.stack.dead_letters.has_move_task = True
    assert cli.json("redrive") == {"redriven": 48}
    assert len(cli.stack.dead_letters.rows_queue) == 48


def test_the_command_moves_messages_where_sqs_cannot(cli: CliHarness) -> None:
    result = cli.run("redrive")
    assert "Redrove 48 rows: 24 unavailable, 24 quota_spent." in result.stdout
    assert len(ids(cli.stack.dead_letters.rows_queue)) == 48
    assert cli.stack.dead_letters.count() == 0


def test_an_interruption_loses_no_message(cli: CliHarness) -> None:
    before = ids(cli.stack.dead_letters.visible)
    cli.stack.dead_letters.interrupt_after = 2
    result = cli.run("redrive", "jobs/a")
    assert result.exit_code == 130
    queue = cli.stack.dead_letters
    assert ids(queue.rows_queue) | ids(queue.visible) | ids(queue.hidden) == before
    assert ids(queue.rows_queue) & ids(queue.visible + queue.hidden) == set()
    assert queue.hidden == []


def test_a_message_that_the_rows_queue_refuses_stays_dead(cli: CliHarness) -> None:
    cli.stack.dead_letters.refused = {"id-4"}
    result = cli.run("redrive")
    assert result.exit_code == 1
    assert "stay in the dead-letter queue" in result.stderr
    assert "id-4" in ids(cli.stack.dead_letters.visible)
    assert "id-4" not in ids(cli.stack.dead_letters.rows_queue)


def test_large_messages_are_sent_in_batches_within_the_sqs_limit(cli: CliHarness) -> None:
    big = json.dumps({"job": "jobs/a", "x": "y" * 400_000})
    cli.stack.dead_letters.visible = [DeadLetter(str(i), str(i), big) for i in range(5)]
    assert cli.run("redrive", "jobs/a").exit_code == 0
    batches = cli.stack.dead_letters.batches
    sizes = [sum(len(letter.body) for letter in batch) for batch in batches]
    assert sum(sizes) == 5 * len(big)
    assert max(sizes) < 1_048_576


def test_messages_that_are_not_rows_match_no_job(cli: CliHarness) -> None:
    cli.stack.dead_letters.visible = [
        DeadLetter("1", "1", "not json", {"reason": "unparseable"}),
        DeadLetter("2", "2", '["a list"]'),
    ]
    assert cli.json("redrive", "jobs/a") == {
        "redriven": 0,
        "by_reason": {},
        "kept": {"unparseable": 1, "": 1},
    }


def test_an_empty_queue_is_not_an_error(cli: CliHarness) -> None:
    cli.stack.dead_letters.visible = []
    for arguments in ((), ("jobs/a",)):
        result = cli.run("redrive", *arguments)
        assert result.exit_code == 0
        assert "The dead-letter queue" in result.stdout
