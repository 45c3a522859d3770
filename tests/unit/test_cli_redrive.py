"""`darkroom redrive`: matching dead letters return to the rows queue, and none is lost."""

import json
from collections.abc import Iterable
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from darkroom.jobs import JobOptions
from darkroom_cli.aws import SqsDeadLetterQueue
from darkroom_cli.error_messages import CommandFailed
from darkroom_cli.session import Session
from darkroom_cli.stack import DeadLetter
from darkroom_local.ministack import REGION
from tests.fakes.command import CliHarness
from tests.fakes.ledger import running


def dead_letter(number: int) -> DeadLetter:
    job, reason = "ab"[number % 2], ("unavailable", "quota_spent")[number // 2 % 2]
    body = json.dumps({"job": f"jobs/{job}", "row": number})
    return DeadLetter(f"id-{number}", f"receipt-{number}", body, {"reason": reason})


@pytest.fixture
def cli(cli: CliHarness) -> CliHarness:
    cli.dead_letters.visible = [dead_letter(i) for i in range(48)]
    cli.ledger.start(running("jobs/a"), 60)
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


def test_redriven_rows_of_a_batch_job_go_into_the_next_batch(cli: CliHarness) -> None:
    assert "batch" not in cli.succeed("redrive", "jobs/a").stdout
    cli.ledger.start(running("jobs/b", options=JobOptions(mode="batch")), 60)
    assert "and go into the next batch." in cli.succeed("redrive", "jobs/b").stdout


def test_without_a_filter_sqs_moves_all_messages(cli: CliHarness) -> None:
    cli.dead_letters.has_move_task = True
    assert cli.json("redrive", "--yes") == {"redriven": 48}
    assert len(cli.dead_letters.rows_queue) == 48


def test_the_command_moves_messages_where_sqs_cannot(cli: CliHarness) -> None:
    result = cli.run("redrive", "--yes")
    assert "Redrove 48 rows: 24 unavailable, 24 quota_spent." in result.stdout
    assert len(ids(cli.dead_letters.rows_queue)) == 48
    assert cli.dead_letters.count() == 0


def test_rows_of_all_jobs_are_returned_only_if_that_is_confirmed(
    cli: CliHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in ((), ("--reason", "quota_spent"), ("--json",)):
        assert "Name a job, or add --yes" in cli.error("redrive", *arguments, exit_code=2)
    monkeypatch.setattr(Session, "is_interactive", True)
    refused = cli.run("redrive", stdin="n\n")
    assert refused.exit_code == 1
    assert "Return the dead rows of all jobs (48 dead rows in all)?" in refused.stderr
    assert cli.dead_letters.batches == []
    assert cli.run("redrive", stdin="y\n").exit_code == 0
    assert len(cli.dead_letters.rows_queue) == 48


def test_an_unknown_job_or_reason_is_an_error(cli: CliHarness) -> None:
    assert "has no job jobs/nothing" in cli.error("redrive", "jobs/nothing")
    assert "Did you mean unavailable?" in cli.error(
        "redrive", "a", "--reason", "unavailble", exit_code=2
    )
    assert cli.json("redrive", "a", "--dry-run")["would_redrive"] == 24
    assert cli.dead_letters.batches == []


def test_an_interruption_loses_no_message(cli: CliHarness) -> None:
    before = ids(cli.dead_letters.visible)
    cli.dead_letters.interrupt_after = 2
    assert cli.run("redrive", "jobs/a").exit_code == 130
    assert ids(cli.dead_letters.rows_queue) | ids(cli.dead_letters.visible) == before
    assert ids(cli.dead_letters.rows_queue) & ids(cli.dead_letters.visible) == set()
    assert cli.dead_letters.hidden == []


def test_a_message_that_the_rows_queue_refuses_stays_dead(cli: CliHarness) -> None:
    cli.dead_letters.refused = {"id-4"}
    assert "stay in the dead-letter queue" in cli.error("redrive", "--yes")
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


@pytest.mark.parametrize("arguments", [("--yes",), ("jobs/a",)])
def test_an_empty_queue_is_not_an_error(cli: CliHarness, arguments: tuple[str, ...]) -> None:
    cli.dead_letters.visible = []
    assert "The dead-letter queue" in cli.succeed("redrive", *arguments).stdout


def test_a_dry_run_moves_nothing_and_counts_by_job_and_reason(cli: CliHarness) -> None:
    before = ids(cli.dead_letters.visible)
    printed = cli.json("redrive", "jobs/a", "--dry-run")
    assert (printed["would_redrive"], printed["of"]) == (24, 48)
    expected = [("jobs/a", "unavailable", 12), ("jobs/a", "quota_spent", 12)]
    assert [(g["job"], g["reason"], g["rows"]) for g in printed["groups"]] == expected
    assert cli.dead_letters.batches == []
    assert ids(cli.dead_letters.visible) == before
    assert cli.dead_letters.hidden == []


def test_a_dry_run_of_everything_does_not_let_sqs_move_it(cli: CliHarness) -> None:
    cli.dead_letters.has_move_task = True
    assert "Would redrive 48 rows of 48 messages." in cli.run("redrive", "--dry-run").stderr
    assert cli.dead_letters.count() == 48


# SQS finds no source for messages that were sent to a dead-letter queue, not moved there by its
# redrive policy: "CouldNotDetermineMessageSource". So the request names the destination.
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-configure-dead-letter-queue-redrive.html

DEAD, ROWS = (f"https://sqs.us-east-1.amazonaws.com/123456789012/{n}" for n in ("dead", "rows"))
DEAD_ARN, ROWS_ARN = (f"arn:aws:sqs:us-east-1:123456789012:{name}" for name in ("dead", "rows"))
MOVE = {"SourceArn": DEAD_ARN, "DestinationArn": ROWS_ARN}


@pytest.fixture
def sqs() -> Iterable[tuple[SqsDeadLetterQueue, Stubber]]:
    client = boto3.client("sqs", region_name=REGION)
    with Stubber(client) as stubber:
        for url, arn in ((DEAD, DEAD_ARN), (ROWS, ROWS_ARN)):
            expected = {"QueueUrl": url, "AttributeNames": ["QueueArn"]}
            answer = {"Attributes": {"QueueArn": arn}}
            stubber.add_response("get_queue_attributes", answer, expected)
        yield SqsDeadLetterQueue(client, DEAD, ROWS), stubber
        stubber.assert_no_pending_responses()


def add_progress(stubber: Stubber, **task: Any) -> None:
    expected = {"SourceArn": DEAD_ARN, "MaxResults": 1}
    stubber.add_response("list_message_move_tasks", {"Results": [task]}, expected)


def test_a_move_of_messages_names_its_destination(sqs: tuple[SqsDeadLetterQueue, Stubber]) -> None:
    queue, stubber = sqs
    stubber.add_response("start_message_move_task", {"TaskHandle": "h"}, MOVE)
    add_progress(stubber, Status="RUNNING", ApproximateNumberOfMessagesMoved=3)
    add_progress(stubber, Status="COMPLETED", ApproximateNumberOfMessagesMoved=7)
    progress = queue.move_all()
    assert progress is not None
    assert list(progress) == [3, 7]


def test_a_move_that_fails_is_an_error_with_sqss_reason(
    sqs: tuple[SqsDeadLetterQueue, Stubber],
) -> None:
    queue, stubber = sqs
    stubber.add_response("start_message_move_task", {"TaskHandle": "h"}, MOVE)
    add_progress(stubber, Status="FAILED", FailureReason="CouldNotDetermineMessageSource")
    progress = queue.move_all()
    assert progress is not None
    with pytest.raises(CommandFailed, match="CouldNotDetermineMessageSource"):
        list(progress)


def test_the_command_moves_the_messages_itself_where_sqs_cannot_at_all(
    sqs: tuple[SqsDeadLetterQueue, Stubber],
) -> None:
    queue, stubber = sqs
    stubber.add_client_error("start_message_move_task", "InvalidAction", expected_params=MOVE)
    assert queue.move_all() is None
