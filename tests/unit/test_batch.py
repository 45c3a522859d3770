"""A batch of messages: which are delivered again, which leases are renewed, when it is complete."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from darkroom.editor.batch import FRESH_COPY_RECEIVES, FRESH_COPY_SECONDS, ReturnRow
from darkroom.editor.leases import TIMINGS, Leases
from darkroom.editor.waiting import SUPPLY_FACTOR, hide_seconds
from darkroom.errors import Reason, ServiceUnavailable, Waiting
from darkroom.jobs import Run
from darkroom.ports import Readiness
from darkroom.rows import Received, RowMessage
from tests.fakes.editing import JOB, EditorHarness, row_message
from tests.fakes.services import FakeClock, fail_once


@dataclass
class ScriptedHandler:
    """Returns what `returns` says of a row by its key, or raises it; settles the other rows.

    A row takes `seconds`, of the virtual clock.
    """

    harness: EditorHarness
    returns: dict[str, ReturnRow | Exception] = field(default_factory=dict)
    seconds: float = 20.0
    owners: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    started: list[tuple[float, str]] = field(default_factory=list)  # (time, key)
    in_work: set[str] = field(default_factory=set)
    together: dict[str, set[str]] = field(default_factory=dict)  # rows in work, at a row's start

    def handle(
        self,
        message: RowMessage,
        run: Run,
        owner: str,
        deadline: float,
        leases: Leases,
        *,
        given_up: Waiting | None = None,
    ) -> ReturnRow | None:
        key = message.key
        self.owners.append(owner)
        self.started.append((self.harness.clock.now(), key))
        self.in_work.add(key)
        self.together[key] = set(self.in_work)
        if given_up is not None:
            self.given_up.append(key)
        try:
            self.harness.clock.sleep(self.seconds)
            returned = self.returns.pop(key, None)
            if isinstance(returned, Exception):
                raise returned
            if returned is None:
                self.harness.settle(message, owner)
            return returned
        finally:
            self.in_work.discard(key)


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
    handler = ScriptedHandler(harness)
    assert harness.handle_batch(handler, received("000000")) == []
    assert harness.report_requests == []
    assert harness.handle_batch(handler, received("000001")) == []
    assert harness.report_requests == [JOB]


def test_a_delayed_row_is_hidden_until_then_and_fails_alone(harness: EditorHarness) -> None:
    handler = ScriptedHandler(harness, {"000001": ReturnRow(61.2)})
    assert harness.handle_batch(handler, received("000000"), received("000001")) == ["m000001"]
    assert harness.queue.visibility == {"r000000": TIMINGS.lease_seconds, "r000001": 62}


def test_each_delivery_has_its_own_owner(harness: EditorHarness) -> None:
    handler = ScriptedHandler(harness, {"000000": ReturnRow(1.0)})
    harness.handle_batch(
        handler, received("000000"), received("000000", message_id="twice", receipt="r2")
    )
    assert sorted(handler.owners) == ["invocation-1/1", "invocation-1/2"]


def test_a_message_that_is_not_a_row_is_dead_lettered_at_once(harness: EditorHarness) -> None:
    handler = ScriptedHandler(harness)
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
    handler = ScriptedHandler(harness, {"000000": ReturnRow(60.0)})
    expired_at = harness.clock.now() - FRESH_COPY_SECONDS - 1
    delivery = (
        received("000000", receive_count=FRESH_COPY_RECEIVES)
        if expiring == "receives"
        else received("000000", sent_at=expired_at)
    )
    assert harness.handle_batch(handler, delivery) == []
    assert [m.key for m in harness.queue.sent] == ["000000"]


def test_one_message_that_crashes_does_not_fail_the_others(harness: EditorHarness) -> None:
    handler = ScriptedHandler(harness, {"000000": ZeroDivisionError()})
    assert harness.handle_batch(handler, received("000000"), received("000001")) == ["m000000"]
    assert harness.queue.visibility["r000000"] == TIMINGS.aws_delay_seconds
    assert harness.telemetry.logged("exception") == ["message_crashed"]


def test_messages_are_delivered_again_when_completion_could_not_be_checked() -> None:
    harness = EditorHarness.with_job(queued=1)
    handler = ScriptedHandler(harness)
    fail_once(harness.ledger, "report_due")
    assert harness.handle_batch(handler, received("000000")) == ["m000000"]


def test_messages_are_delivered_again_when_their_job_cannot_be_read(harness: EditorHarness) -> None:
    handler = ScriptedHandler(harness)
    fail_once(harness.ledger, "current")
    assert harness.handle_batch(handler, received("000000")) == ["m000000"]


def test_a_heartbeat_hides_messages_and_renews_leases_of_rows_in_work() -> None:
    harness = EditorHarness.with_job()
    claim = harness.claim("w")
    leases = harness.leases()
    leases.hold(["r1", "r2"])
    with leases.claimed(claim):
        leases.return_messages(["r2"], 699.5)
        harness.clock.time += 80
        leases.renew()
    assert harness.queue.visibility == {"r1": TIMINGS.lease_seconds, "r2": 700}
    assert harness.ledger.rows[JOB, "000000"].lease_until == harness.clock.now() + 90


def test_a_heartbeat_renews_each_row_whatever_the_queue_and_the_other_rows_answer() -> None:
    harness = EditorHarness.with_job(queued=2)
    claims = [harness.claim(f"w{n}", f"00000{n}") for n in range(2)]
    leases = harness.leases()
    leases.hold(["r1"])
    fail_once(harness.queue, "extend")
    fail_once(harness.ledger, "renew")
    with leases.claimed(claims[0]), leases.claimed(claims[1]):
        harness.clock.time += 30
        leases.renew()
    assert harness.telemetry.logged("warning") == ["heartbeat_missed", "heartbeat_missed"]
    renewed = [r for r in harness.ledger.rows.values() if r.lease_until > harness.clock.now() + 80]
    assert [record.key for record in renewed] == ["000001"]
    leases.renew()
    assert harness.queue.visibility == {"r1": TIMINGS.lease_seconds}


def test_the_first_heartbeat_precedes_all_other_work(harness: EditorHarness) -> None:
    """A crash right after it hides the messages for a lease, not for the queue's 90 minutes."""
    hidden: list[dict[str, int]] = []
    harness.dispatcher.on_readiness = lambda: hidden.append(dict(harness.queue.visibility))
    harness.handle_batch(ScriptedHandler(harness), received("000000"), received("000001"))
    assert hidden[0] == dict.fromkeys(("r000000", "r000001"), TIMINGS.lease_seconds)


# Waiting


def test_messages_without_a_slot_return_unclaimed_at_once(harness: EditorHarness) -> None:
    handler = ScriptedHandler(harness)
    began_at = harness.clock.now()
    harness.dispatcher.ready = Readiness(began_at + 40, rows_per_second=1 / 6)
    harness.queue.extra_backlog = 100
    kept = harness.handle_batch(handler, received("000000"), received("000001"))
    assert kept == ["m000000", "m000001"]
    assert (handler.started, harness.ledger.rows) == ([], {})
    assert harness.clock.now() == began_at
    # 100 rows at 10 a minute take ten minutes; messages return twice as fast.
    (hidden,) = set(harness.queue.visibility.values())
    assert abs(hidden - (40 + 0.5 * 300)) <= 5


def test_a_row_that_was_called_for_returns_before_the_backlog(harness: EditorHarness) -> None:
    harness.dispatcher.ready = Readiness(harness.clock.now() + 40, rows_per_second=1 / 6)
    harness.queue.extra_backlog = 10_000
    retry = row_message("run-1", "000001").model_copy(update={"retry": True})
    harness.handle_batch(
        ScriptedHandler(harness),
        received("000000"),
        received("000001", body=retry.model_dump_json()),
    )
    assert harness.queue.visibility["r000001"] <= 70
    assert harness.queue.visibility["r000000"] > 3600


def test_a_row_that_was_called_for_is_queued_again_as_a_retry_with_its_delay() -> None:
    harness = EditorHarness.with_job()
    handler = ScriptedHandler(harness, {"000000": ReturnRow(60.0, called=True)})
    assert harness.handle_batch(handler, received("000000", sent_at=999_000.0)) == []
    (copy,) = harness.queue.sent
    assert (copy.retry, copy.queued_at) == (True, 999_000.0)
    (queued,) = harness.queue.messages.values()
    assert queued.visible_at - queued.sent_at == 60
    assert harness.queue.deleted == ["r000000"]


def test_a_free_thread_receives_further_messages_while_rows_are_in_work() -> None:
    harness = EditorHarness.with_job(queued=9)
    harness.queue.send([harness.message(key=f"00000{n}") for n in range(1, 9)])
    handler = ScriptedHandler(harness)
    began_at = harness.clock.now()
    assert harness.handle_batch(handler, received("000000")) == []
    assert len(handler.owners) == len(set(handler.owners)) == 9
    assert max(len(rows) for rows in handler.together.values()) == 4
    # Three rounds of four threads.
    assert harness.clock.now() - began_at < 3 * handler.seconds + 5
    assert harness.queue.messages == {}
    assert harness.report_requests == [JOB]


def test_a_thread_takes_a_row_only_when_a_slot_is_near() -> None:
    """At 10 a minute and 20 s a call one invocation serves the rate, without idle reservations."""
    harness = EditorHarness.with_job(queued=30)
    handler = ScriptedHandler(harness)
    slots = SlotsEvery(6.0, handler)
    harness.dispatcher.on_readiness = slots.update
    harness.queue.send([harness.message(key=f"{n:06d}") for n in range(1, 30)])
    began_at = harness.clock.now()
    assert harness.handle_batch(handler, received("000000")) == []
    assert len(handler.started) == 30
    assert harness.clock.now() - began_at <= 29 * 6 + 20 + 10


def test_one_more_row_is_prepared_while_a_limit_binds() -> None:
    """Slots are four seconds apart, and four threads would make a call in every five."""
    harness = EditorHarness.with_job(queued=30)
    handler = ScriptedHandler(harness)
    slots = SlotsEvery(4.0, handler)
    harness.dispatcher.on_readiness = slots.update
    harness.queue.send([harness.message(key=f"{n:06d}") for n in range(1, 30)])
    began_at = harness.clock.now()
    assert harness.handle_batch(handler, received("000000")) == []
    assert max(len(rows) for rows in handler.together.values()) == 5
    assert harness.clock.now() - began_at <= 29 * 4 + 20 + 10


def test_a_supply_returns_piece_by_piece() -> None:
    harness = EditorHarness.with_job(queued=80)
    harness.rng = random.Random(1).random
    began_at = harness.clock.now()

    def endpoint_is_busy_after_the_first_row() -> None:
        later = began_at + 3600 if harness.clock.now() > began_at + 1 else began_at
        harness.dispatcher.ready = Readiness(later, rows_per_second=1.0)

    harness.dispatcher.on_readiness = endpoint_is_busy_after_the_first_row
    harness.queue.send([harness.message(key=f"{n:06d}") for n in range(1, 80)])
    harness.handle_batch(ScriptedHandler(harness), received("000000"))
    ended_at = harness.clock.now()
    hidden = Counter(m.visible_at for m in harness.queue.messages.values())
    assert len([at for at in hidden if at > ended_at]) >= 5
    assert max(hidden.values()) <= 10


def test_a_supply_is_shared_when_slots_are_free(harness: EditorHarness) -> None:
    """Rows are not kept in one invocation while others could work on them."""
    began_at = harness.clock.now()

    def endpoint_is_busy_for_a_minute() -> None:
        now = harness.clock.now()
        busy = 1 < now - began_at < 60
        harness.dispatcher.ready = Readiness(now + 10 if busy else now, rows_per_second=1.0)

    harness.dispatcher.on_readiness = endpoint_is_busy_for_a_minute
    harness.queue.send([harness.message(key=f"{n:06d}") for n in range(1, 100)])
    handler = ScriptedHandler(harness, seconds=70.0)
    shared_at: list[float] = []
    extend = harness.queue.extend

    def record(receipts: Sequence[str], seconds: int) -> None:
        if seconds == 0:
            shared_at.append(harness.clock.now() - began_at)
        extend(receipts, seconds)

    harness.queue.extend = record  # type: ignore[method-assign]
    harness.handle_batch(handler, received("000000"))
    assert shared_at
    assert min(shared_at) >= 60


def test_no_row_is_taken_once_its_calls_would_not_end_in_time() -> None:
    harness = EditorHarness.with_job(queued=40)
    harness.dispatcher.ready = Readiness(0.0, row_seconds=390.0)
    harness.queue.send([harness.message(key=f"{n:06d}") for n in range(1, 300)])
    handler = ScriptedHandler(harness)
    began_at = harness.clock.now()
    harness.handle_batch(handler, received("000000"))
    assert began_at + 380 <= max(at for at, _ in handler.started) <= began_at + 800 - 390
    assert harness.clock.now() <= began_at + 800 - 390 + 25


def test_rows_of_an_outage_return_and_their_job_shows_what_it_waits_for() -> None:
    harness = EditorHarness.with_job()
    handler = ScriptedHandler(harness)
    waiting = Waiting(Reason.KEY_REJECTED, "every key of gemini-main was rejected (401)", 0.0)
    harness.dispatcher.ready = Readiness(harness.clock.now() + 30, waiting)
    for _ in range(3):
        assert harness.handle_batch(handler, received("000000")) == ["m000000"]
    assert handler.started == []
    assert harness.run.waiting is not None
    assert harness.run.waiting.detail == waiting.detail
    assert harness.progress_requests == [JOB]
    assert harness.telemetry.metrics["RowsWaiting"] == 3


def test_a_job_that_waited_too_long_is_given_up_only_while_it_still_waits() -> None:
    harness = EditorHarness.with_job(queued=3, give_up_after_hours=1)
    handler = ScriptedHandler(harness)
    waiting = Waiting(Reason.UNAVAILABLE, "every endpoint is out of service", 0.0)
    harness.dispatcher.ready = Readiness(harness.clock.now() + 30, waiting)
    harness.handle_batch(handler, received("000000"))
    harness.clock.time += 3601
    assert harness.handle_batch(handler, received("000001")) == []
    assert handler.given_up == ["000001"]
    harness.dispatcher.ready = Readiness(0.0)
    assert harness.handle_batch(handler, received("000002")) == []
    assert handler.given_up == ["000001"]


def test_rows_of_a_stopped_job_end_without_a_slot(harness: EditorHarness) -> None:
    harness.ledger.stop(JOB)
    harness.dispatcher.ready = Readiness(harness.clock.now() + 3600, rows_per_second=1 / 6)
    handler = ScriptedHandler(harness)
    assert harness.handle_batch(handler, received("000000"), received("000001")) == []
    assert len(handler.started) == 2


def test_a_row_that_may_kill_its_worker_is_in_work_alone() -> None:
    harness = EditorHarness.with_job(queued=6)
    harness.queue.send([harness.message(key=f"00000{n}") for n in range(3, 6)])
    handler = ScriptedHandler(harness, {"000001": ReturnRow(0.0, alone=True)})
    batch = [received(f"00000{n}") for n in range(3)]
    assert harness.handle_batch(handler, *batch) == []
    assert handler.together["000001"] == {"000001"}
    assert {key for _, key in handler.started} == {f"00000{n}" for n in range(6)}
    alone_at = max(at for at, key in handler.started if key == "000001")
    during = [key for at, key in handler.started if alone_at <= at < alone_at + handler.seconds]
    assert during == ["000001"]
    # The others were in work side by side.
    assert max(len(rows) for rows in handler.together.values()) >= 3


def test_long_invocations_print_metrics_and_delete_messages_every_minute() -> None:
    harness = EditorHarness.with_job(queued=40)
    harness.queue.send([harness.message(key=f"{n:06d}") for n in range(1, 40)])
    deleted: list[tuple[float, int]] = []

    def flushed() -> None:
        deleted.append((harness.clock.now(), len(harness.queue.deleted)))

    harness.telemetry.on_flush = flushed
    began_at = harness.clock.now()
    harness.handle_batch(ScriptedHandler(harness), received("000000"))
    assert [round((at - began_at) / 60) for at, _ in deleted] == [1, 2, 3]
    assert [count > 0 for _, count in deleted] == [False, True, True]
    assert len(harness.queue.deleted) == 40


def test_the_age_of_the_oldest_row_counts_from_when_it_was_first_queued() -> None:
    harness = EditorHarness.with_job(queued=2)
    now = harness.clock.now()
    first = harness.message().model_copy(update={"queued_at": now - 500})
    harness.handle_batch(
        ScriptedHandler(harness),
        received("000000", body=first.model_dump_json(), sent_at=now - 10),
        received("000001", sent_at=now - 20),
    )
    assert harness.telemetry.metrics["RowAge"] == 500


def test_an_aws_error_in_the_readiness_returns_the_messages_soon(harness: EditorHarness) -> None:
    harness.dispatcher.ready = ServiceUnavailable("the endpoints table")
    handler = ScriptedHandler(harness)
    assert harness.handle_batch(handler, received("000000")) == ["m000000"]
    assert 15 <= harness.queue.visibility["r000000"] <= 16


def test_hidden_messages_return_evenly_over_the_time_that_the_backlog_takes() -> None:
    rng, now, backlog = random.Random(1), 1_000_000.0, 600
    readiness = Readiness(now + 10, rows_per_second=1 / 6)
    hidden = [hide_seconds(readiness, backlog, now, rng.random) for _ in range(backlog)]
    drain = backlog * 6 / SUPPLY_FACTOR
    for share in (0.25, 0.5, 0.75):
        returned = sum(seconds - 10 <= share * drain for seconds in hidden) / backlog
        assert share - 0.05 <= returned <= share + 0.05
    assert max(hidden) <= 10 + drain


def test_a_retry_is_hidden_for_four_minutes_at_most() -> None:
    readiness = Readiness(1_000_010.0, rows_per_second=1 / 6)

    def hidden(receives: int, *, retry: bool) -> float:
        return hide_seconds(
            readiness, 10_000, 1_000_000.0, lambda: 1.0, receives=receives, retry=retry
        )

    assert [hidden(n, retry=True) for n in (1, 2, 3, 99)] == [10 + 60, 10 + 120, 10 + 240, 10 + 240]
    assert hidden(99, retry=False) == 10 + 4 * 3600


def test_messages_return_as_fast_as_the_limit_in_flight_allows() -> None:
    readiness = Readiness(
        1_000_000.0, rows_per_second=1.0, free_places=1, places_in_use=3
    )  # 4 rows in 20 s
    assert hide_seconds(readiness, 100, 1_000_000.0, lambda: 1.0) == 100 * 5 / SUPPLY_FACTOR


def test_no_message_is_hidden_for_longer_than_four_hours() -> None:
    readiness = Readiness(1_000_000.0, rows_per_second=1 / 6)
    seconds = hide_seconds(readiness, 10**7, 1_000_000.0, lambda: 0.999)
    assert 3 * 3600 < seconds <= 4 * 3600


@dataclass
class SlotsEvery:
    """Readiness of an endpoint with one slot in `interval` seconds, taken by each row's start."""

    interval: float
    handler: ScriptedHandler

    def update(self) -> None:
        harness, taken = self.handler.harness, len(self.handler.started)
        start_at = FakeClock().time + taken * self.interval
        harness.dispatcher.ready = Readiness(start_at, rows_per_second=1 / self.interval)
