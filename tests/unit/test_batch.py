"""A batch of messages: which are delivered again, which leases are renewed, when it is complete."""

from dataclasses import dataclass, field

import pytest

from darkroom.editor.batch import (
    FRESH_COPY_RECEIVES,
    FRESH_COPY_SECONDS,
    TIMINGS,
    Leases,
)
from darkroom.jobs import Run
from darkroom.rows import Claim, Received, RowMessage, RowResult, RowState
from tests.fakes.editing import JOB, EditorHarness, row_message
from tests.fakes.ledger import FakeLedger
from tests.fakes.services import fail_once


@dataclass
class ScriptedHandler:
    """Returns a row's delay by its key, or raises it; settles rows without one."""

    ledger: FakeLedger
    delays: dict[str, float | Exception] = field(default_factory=dict)
    owners: list[str] = field(default_factory=list)

    def handle(
        self, message: RowMessage, run: Run, owner: str, deadline: float, leases: Leases
    ) -> float | None:
        self.owners.append(owner)
        delay = self.delays.get(message.key)
        if isinstance(delay, Exception):
            raise delay
        if delay is None:
            claim = self.ledger.claim(message, run, owner, 90)
            assert isinstance(claim, Claim)
            assert self.ledger.settle(claim, RowResult(RowState.SUCCEEDED))
        return delay


def received(key: str, job: str = JOB, **changes: object) -> Received:
    body = row_message("run-1", key, job=job).model_dump_json()
    given = {"message_id": f"m{key}", "receipt": f"r{key}", "body": body}
    return Received(**(given | changes))  # type: ignore[arg-type]  # fields of Received


@pytest.fixture
def harness() -> EditorHarness:
    return EditorHarness.with_job(queued=2)


def test_messages_of_settled_rows_are_deleted_and_the_last_one_requests_the_report(
    harness: EditorHarness,
) -> None:
    handler = ScriptedHandler(harness.ledger)
    assert harness.handle_batch(handler, received("000000")) == []
    assert harness.report_requests == []
    assert harness.handle_batch(handler, received("000001")) == []
    assert harness.report_requests == [JOB]


def test_a_delayed_row_is_hidden_until_then_and_fails_alone(harness: EditorHarness) -> None:
    handler = ScriptedHandler(harness.ledger, {"000001": 61.2})
    assert harness.handle_batch(handler, received("000000"), received("000001")) == ["m000001"]
    assert harness.queue.visibility == {"r000000": TIMINGS.lease_seconds, "r000001": 62}


def test_each_delivery_has_its_own_owner(harness: EditorHarness) -> None:
    handler = ScriptedHandler(harness.ledger, {"000000": 1.0})
    harness.handle_batch(
        handler, received("000000"), received("000000", message_id="twice", receipt="r2")
    )
    assert sorted(handler.owners) == ["invocation-1/0", "invocation-1/1"]


def test_a_message_that_is_not_a_row_is_dead_lettered_at_once(harness: EditorHarness) -> None:
    handler = ScriptedHandler(harness.ledger)
    odd = Received("odd", "r", '{"v": 1, "job": "x"}')
    unknown = received("000000", job="jobs/unknown")
    assert harness.handle_batch(handler, odd, unknown) == []
    by_body = dict(harness.queue.dead)
    assert by_body[odd.body]["reason"] == "unparseable"
    assert "run: is missing" in by_body[odd.body]["detail"]
    assert "jobs/unknown" in by_body[unknown.body]["detail"]


@pytest.mark.parametrize("expiring", ["receives", "retention"])
def test_a_message_that_the_queue_would_soon_drop_is_replaced_by_a_fresh_copy(
    expiring: str,
) -> None:
    harness = EditorHarness.with_job()
    handler = ScriptedHandler(harness.ledger, {"000000": 60.0})
    expired_at = harness.clock.now() - FRESH_COPY_SECONDS - 1
    delivery = (
        received("000000", receive_count=FRESH_COPY_RECEIVES)
        if expiring == "receives"
        else received("000000", sent_at=expired_at)
    )
    assert harness.handle_batch(handler, delivery) == []
    assert [m.key for m in harness.queue.sent] == ["000000"]


def test_one_message_that_crashes_does_not_fail_the_others(harness: EditorHarness) -> None:
    handler = ScriptedHandler(harness.ledger, {"000000": ZeroDivisionError()})
    assert harness.handle_batch(handler, received("000000"), received("000001")) == ["m000000"]
    assert harness.queue.visibility["r000000"] == TIMINGS.aws_delay_seconds
    assert harness.telemetry.logged("exception") == ["message_crashed"]


def test_messages_are_delivered_again_when_completion_could_not_be_checked() -> None:
    harness = EditorHarness.with_job(queued=1)
    handler = ScriptedHandler(harness.ledger)
    fail_once(harness.ledger, "report_due")
    assert harness.handle_batch(handler, received("000000")) == ["m000000"]


def test_messages_are_delivered_again_when_their_job_cannot_be_read(harness: EditorHarness) -> None:
    handler = ScriptedHandler(harness.ledger)
    fail_once(harness.ledger, "current")
    assert harness.handle_batch(handler, received("000000")) == ["m000000"]


def test_a_heartbeat_hides_messages_and_renews_leases_of_rows_in_work() -> None:
    harness = EditorHarness.with_job()
    claim = harness.ledger.claim(harness.message(), harness.run, "w", 90)
    assert isinstance(claim, Claim)
    leases = harness.leases()
    with leases.heartbeat(["r1", "r2"]), leases.claimed(claim):
        leases.return_message("r2", 700)
        harness.clock.time += 80
        leases.renew()
    assert harness.queue.visibility == {"r1": TIMINGS.lease_seconds, "r2": 700}
    assert harness.ledger.rows[JOB, "000000"].lease_until == harness.clock.now() + 90


def test_a_missed_heartbeat_does_not_stop_the_next() -> None:
    harness = EditorHarness.with_job()
    leases = harness.leases()
    fail_once(harness.queue, "extend")
    with leases.heartbeat(["r1"]):
        pass
    assert harness.telemetry.logged("warning") == ["heartbeat_missed"]
    leases.renew()
    assert harness.queue.visibility == {"r1": TIMINGS.lease_seconds}
