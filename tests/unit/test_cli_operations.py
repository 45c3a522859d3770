"""What an operator does: doctor, lost-events, open, endpoints reset, local status."""

import json
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from darkroom.calls import Outcome
from darkroom.endpoint_state import SECOND, EndpointState, KeyCooldown
from darkroom.errors import Reason
from darkroom.jobs import Source, Totals, job_id
from darkroom.rows import Claim, RowResult, RowState
from darkroom_cli.aws import SqsLostEvents, lost_event
from darkroom_cli.error_messages import CommandFailed
from darkroom_cli.stack import LostEvent
from darkroom_local import stack
from darkroom_local.ministack import REGION
from tests.fakes.command import CliHarness, FakeObject
from tests.fakes.editing import row_message
from tests.fakes.ledger import running

GEMINI = {"name": "gemini-main", "provider": "gemini", "api_keys": ["AIza-1"]}
UPLOAD = {"Records": [{"s3": {"bucket": {"name": "in"}, "object": {"key": "jobs/a+b.csv"}}}]}
QUEUE = "https://sqs.us-east-1.amazonaws.com/123456789012/lost"


def record(function: str, payload: Any, error: str | None = None) -> dict[str, Any]:
    """As Lambda sends it to a failure destination."""
    return {
        "version": "1.0",
        "timestamp": "2026-11-21T09:00:00.000Z",
        "requestContext": {
            "requestId": "e4b46cbf-b738-4bd7-a4c0-5b8b2d6b4b7e",
            "functionArn": f"arn:aws:lambda:us-east-1:123456789012:function:{function}:live",
            "condition": "RetriesExhausted",
            "approximateInvokeCount": 3,
        },
        "requestPayload": payload,
        "responseContext": {"statusCode": 200, "functionError": "Unhandled"},
        "responsePayload": {"errorMessage": error} if error else None,
    }


def event(number: int, function: str = "darkroom-splitter", payload: Any = UPLOAD) -> LostEvent:
    body = json.dumps(record(function, payload, "No module named 'x'"))
    return lost_event(f"id-{number}", f"receipt-{number}", body)


# ------------------------------------------------------------------ doctor


def test_a_healthy_stack_passes_without_changing_anything(cli: CliHarness) -> None:
    cli.push_endpoints(GEMINI)
    findings = cli.json("doctor")
    assert all(finding["ok"] for finding in findings), findings
    functions = {"splitter", "editor", "submitter", "collector", "reporter"}
    assert {name for name, _ in cli.invoked} == functions
    assert cli.input_bucket.puts == []


def test_a_release_that_cannot_be_imported_is_found(cli: CliHarness) -> None:
    cli.push_endpoints(GEMINI)
    cli.failing["editor"] = "It failed: No module named 'jinja2'"
    result = cli.run("doctor")
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if "FAILED" in line]
    assert line.split("\t") == ["FAILED", "editor function", "It failed: No module named 'jinja2'"]


@pytest.mark.parametrize(
    ("break_it", "check", "detail"),
    [
        (lambda cli: setattr(cli, "secret", None), "secret", "endpoints push"),
        (lambda cli: setattr(cli, "secret", '{"endpoints": []}'), "secret", "endpoints"),
        (lambda cli: cli.failing.update({"editor queue": "Disabled"}), "rows queue", "Disabled"),
        (
            lambda cli: cli.failing.update({"submitter queue": "Disabled"}),
            "batch rows queue",
            "Disabled",
        ),
    ],
)
def test_what_is_wrong_is_named(cli: CliHarness, break_it: Any, check: str, detail: str) -> None:
    cli.push_endpoints(GEMINI)
    break_it(cli)
    result = cli.run("doctor", "--json")
    assert result.exit_code == 1
    (failed,) = [finding for finding in json.loads(result.stdout) if not finding["ok"]]
    assert failed["check"] == check
    assert detail in failed["detail"]


def test_no_row_is_edited_where_a_check_failed(cli: CliHarness) -> None:
    assert cli.run("doctor", "--row").exit_code == 1
    assert cli.input_bucket.puts == []


@pytest.mark.parametrize(
    ("result", "exit_code"),
    [
        (RowResult(RowState.SUCCEEDED, endpoint="gemini-main"), 0),
        (RowResult(RowState.FAILED, Reason.REFUSED, "No."), 1),
    ],
)
def test_a_row_that_goes_all_the_way_decides(
    cli: CliHarness, result: RowResult, exit_code: int
) -> None:
    cli.push_endpoints(GEMINI)

    def edit_what_was_uploaded() -> None:
        (upload,) = cli.input_bucket.puts
        if cli.ledger.current(job_id(upload)) is None:
            new = running(job_id(upload), source=Source("in", upload, "v1"))
            run = cli.ledger.start(new, 60)
            assert run is not None
            cli.ledger.finish_split(run, Totals(1, queued=1), [])
            claim = cli.ledger.claim(row_message(run.run, job=run.job), run, "worker", 60)
            assert isinstance(claim, Claim)
            assert cli.ledger.settle(claim, result)
            assert cli.ledger.begin_report(run, 60)
            assert cli.ledger.finish_report(run, cli.clock.now())

    cli.clock.on_sleep = edit_what_was_uploaded
    done = cli.run("doctor", "--row")
    assert done.exit_code == exit_code, done.output
    (upload,) = cli.input_bucket.puts
    body = cli.input_bucket.objects[upload].body.decode()
    assert body == "image_url,instruction\n,A plain grey square\n"
    advice = f"`darkroom failures {job_id(upload)}` says why"
    assert (advice in done.stderr) is bool(exit_code)


# ------------------------------------------------------------------ lost events


def test_lost_events_are_listed_and_stay_in_the_queue(cli: CliHarness) -> None:
    sweep = event(3, payload={"sweep": True})
    cli.lost_events.visible = [event(1), event(2, "darkroom-reporter", {"job": "jobs/p"}), sweep]
    rows = [line.split("\t") for line in cli.succeed("lost-events").stdout.splitlines()]
    assert [row[1:3] for row in rows] == [
        ["darkroom-splitter", "upload of jobs/a b.csv"],
        ["darkroom-reporter", "report of jobs/p"],
        ["darkroom-splitter", "sweep of unfinished jobs"],
    ]
    assert rows[0][3] == "No module named 'x'"
    assert len(cli.lost_events.visible) == 3


def test_replayed_events_are_started_once_and_removed_so_that_the_alarm_clears(
    cli: CliHarness,
) -> None:
    cli.lost_events.visible = [event(n) for n in range(23)]
    replayed = cli.json("lost-events", "--replay")
    assert len(replayed) == 23
    assert all(entry["replayed"] for entry in replayed)
    assert [e.id for e in cli.lost_events.started] == [f"id-{n}" for n in range(23)]
    assert cli.lost_events.visible == cli.lost_events.hidden == []


def test_an_event_that_cannot_be_replayed_stays_with_those_after_it(cli: CliHarness) -> None:
    cli.lost_events.visible = [event(1), lost_event("id-2", "r", "not json"), event(3)]
    assert "for no function" in cli.error("lost-events", "--replay")
    assert [e.id for e in cli.lost_events.started] == ["id-1"]
    assert [e.id for e in cli.lost_events.visible] == ["id-2", "id-3"]


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"requestContext": {"functionArn": "x"}}'])
def test_a_message_that_is_no_record_is_shown_as_such(body: str) -> None:
    found = lost_event("id", "receipt", body)
    assert (found.function, found.payload) == ("", {})
    assert found.error == "not a record of a failed invocation"


def test_an_event_without_an_error_message_gives_lambdas_condition() -> None:
    body = json.dumps(record("darkroom-reporter", {"job": "jobs/p"}))
    assert lost_event("id", "receipt", body).error == "RetriesExhausted"


def test_a_replay_starts_the_live_version_of_a_function_of_the_stack_only() -> None:
    functions, sqs = (boto3.client(s, region_name=REGION) for s in ("lambda", "sqs"))
    queue = SqsLostEvents(sqs, QUEUE, functions, {"darkroom-splitter", "darkroom-reporter"})
    with Stubber(functions) as stubber:
        expected = {
            "FunctionName": "darkroom-splitter:live",
            "InvocationType": "Event",
            "Payload": json.dumps(UPLOAD),
        }
        stubber.add_response("invoke", {"StatusCode": 202}, expected)
        queue.replay(event(1))
        stubber.assert_no_pending_responses()
        with pytest.raises(CommandFailed, match="payroll, which is not one of this stack"):
            queue.replay(event(2, "payroll"))


# ------------------------------------------------------------------ open


def test_open_downloads_the_gallery_once_and_opens_it(cli: CliHarness) -> None:
    for name in ("report.html", "thumbs/000000-after.webp", "images/000000.png"):
        cli.results_bucket.objects[f"jobs/p/{name}"] = FakeObject(name.encode())
    folder = cli.folder / "seen"
    cli.succeed("open", "jobs/p", "--to", folder)
    cli.succeed("open", "jobs/p", "--to", folder)
    assert cli.opened == [(folder / "report.html").resolve().as_uri()] * 2
    assert (folder / "images/000000.png").read_bytes() == b"images/000000.png"
    assert len(cli.results_bucket.fetches) == 3


def test_open_says_that_a_job_has_no_gallery_yet(cli: CliHarness) -> None:
    cli.results_bucket.objects["jobs/p/images/0.png"] = FakeObject(b"x")
    result = cli.run("open", "jobs/p", "--to", cli.folder / "seen")
    assert result.exit_code == 1
    assert "has no gallery yet" in result.stderr
    assert cli.opened == []


# ------------------------------------------------------------------ endpoints reset


def out_of_service(cli: CliHarness) -> EndpointState:
    later = int((cli.clock.now() + 3600) * SECOND)
    return EndpointState(
        next_slot=later,
        paused_until=later,
        calls=7,
        day=20_000,
        day_calls=5,
        breaker_open=True,
        breaker_until=later,
        opens=3,
        failures=9,
        leases={"call": later},
        key_cooldowns={"0123456789ab": KeyCooldown(later, Outcome.KEY_REJECTED)},
    )


def test_a_reset_puts_an_endpoint_back_into_service_and_keeps_its_limits(cli: CliHarness) -> None:
    cli.push_endpoints(GEMINI)
    state = out_of_service(cli)
    cli.endpoint_states.report("gemini-main", lambda _: state)
    printed = cli.succeed("endpoints", "reset", "gemini-main").stdout
    assert "breaker open" in printed
    assert "in service again" in printed
    after = cli.endpoint_states.read("gemini-main")
    assert not after.breaker_open
    assert (after.paused_until, after.failures, dict(after.key_cooldowns)) == (0, 0, {})
    kept = ("next_slot", "calls", "day", "day_calls", "leases")
    assert [getattr(after, name) for name in kept] == [getattr(state, name) for name in kept]


def test_a_healthy_endpoint_has_nothing_to_reset(cli: CliHarness) -> None:
    cli.push_endpoints(GEMINI)
    assert cli.json("endpoints", "reset", "gemini-main")["reset"] is False


def test_an_unknown_endpoint_is_answered_with_the_names(cli: CliHarness) -> None:
    cli.push_endpoints(GEMINI)
    error = cli.error("endpoints", "reset", "gemini", exit_code=2)
    assert error == "Error: No endpoint is named gemini: there are gemini-main."


# ------------------------------------------------------------------ local status


def test_local_status_says_that_nothing_runs(
    cli: CliHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "current", lambda: None)
    result = cli.run("local", "status")
    assert (result.exit_code, "darkroom local up" in result.stdout) == (1, True)
