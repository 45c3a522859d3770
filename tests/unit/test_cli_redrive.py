"""`darkroom redrive`: dead letters go back, none is lost, none that was not meant."""

import json

import pytest

from darkroom_cli.ports import DeadLetter
from tests.fakes.command import FakeStack, run
from tests.fakes.services import FakeClock


def letter(number: int, job: str = "jobs/a", reason: str = "unavailable") -> DeadLetter:
    body = json.dumps({"job": job, "row": number})
    return DeadLetter(f"id-{number}", f"receipt-{number}", body, {"reason": reason})


@pytest.fixture
def stack() -> FakeStack:
    made = FakeStack(FakeClock())
    jobs, reasons = ("jobs/a", "jobs/b"), ("unavailable", "quota_spent")
    made.dead_letters.waiting = [letter(i, jobs[i % 2], reasons[i // 2 % 2]) for i in range(48)]
    return made


def rows(letters: list[DeadLetter]) -> set[str]:
    return {found.id for found in letters}


def test_a_redrive_by_job_and_reason_takes_those_and_frees_the_rest(stack: FakeStack) -> None:
    result = run(stack, "redrive", "jobs/a", "--reason", "quota_spent", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["redriven"] == 12
    assert told["by_reason"] == {"quota_spent": 12}
    queue = stack.dead_letters
    assert {(m.job, m.reason) for m in queue.rows_queue} == {("jobs/a", "quota_spent")}
    assert len(queue.waiting) == 36
    assert queue.hidden == []


def test_without_a_filter_the_queue_moves_all_itself(stack: FakeStack) -> None:
    stack.dead_letters.moves = True
    assert json.loads(run(stack, "redrive", "--json").stdout) == {"redriven": 48}
    assert len(stack.dead_letters.rows_queue) == 48


def test_where_the_queue_cannot_move_the_command_does(stack: FakeStack) -> None:
    result = run(stack, "redrive")
    assert "Redrove 48 rows: 24 unavailable, 24 quota_spent." in result.stdout
    assert len(rows(stack.dead_letters.rows_queue)) == 48
    assert stack.dead_letters.count() == 0


def test_an_interruption_loses_no_message(stack: FakeStack) -> None:
    before = rows(stack.dead_letters.waiting)
    stack.dead_letters.break_after = 2
    result = run(stack, "redrive", "jobs/a")
    assert result.exit_code == 130
    queue = stack.dead_letters
    assert rows(queue.rows_queue) | rows(queue.waiting) | rows(queue.hidden) == before
    assert rows(queue.rows_queue) & rows(queue.waiting + queue.hidden) == set()
    assert queue.hidden == []


def test_a_message_the_rows_queue_refuses_stays(stack: FakeStack) -> None:
    stack.dead_letters.refused = {"id-4"}
    result = run(stack, "redrive")
    assert result.exit_code == 1
    assert "stay in the dead-letter queue" in result.stderr
    assert "id-4" in rows(stack.dead_letters.waiting)
    assert "id-4" not in rows(stack.dead_letters.rows_queue)


def test_large_messages_go_in_batches_that_sqs_takes(stack: FakeStack) -> None:
    big = json.dumps({"job": "jobs/a", "x": "y" * 400_000})
    stack.dead_letters.waiting = [DeadLetter(str(i), str(i), big) for i in range(5)]
    sizes: list[int] = []
    send = stack.dead_letters.send_back

    def weigh(letters: list[DeadLetter]) -> object:
        sizes.append(sum(len(m.body) for m in letters))
        return send(letters)

    stack.dead_letters.send_back = weigh  # type: ignore[method-assign, assignment]
    assert run(stack, "redrive", "jobs/a").exit_code == 0
    assert sum(sizes) == 5 * len(big)
    assert max(sizes) < 1_048_576


def test_a_message_that_is_no_row_belongs_to_no_job(stack: FakeStack) -> None:
    stack.dead_letters.waiting = [
        DeadLetter("1", "1", "not json", {"reason": "unparseable"}),
        DeadLetter("2", "2", '["a list"]'),
    ]
    told = json.loads(run(stack, "redrive", "jobs/a", "--json").stdout)
    assert told == {"redriven": 0, "by_reason": {}, "kept": {"unparseable": 1, "": 1}}


def test_an_empty_queue_is_no_failure(stack: FakeStack) -> None:
    stack.dead_letters.waiting = []
    for arguments in ((), ("jobs/a",)):
        result = run(stack, "redrive", *arguments)
        assert result.exit_code == 0
        assert "The dead-letter queue" in result.stdout
