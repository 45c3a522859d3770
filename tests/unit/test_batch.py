"""A batch of messages: which come back, what is kept alive, and who asks for the report."""

from collections.abc import Callable
from dataclasses import dataclass, field

from darkroom.editor.batch import (
    FRESH_COPY_RECEIVES,
    FRESH_COPY_SECONDS,
    TIMINGS,
    Completion,
    EditorBatch,
    Heartbeat,
    Leases,
    Received,
)
from darkroom.errors import ServiceUnavailable
from darkroom.jobs import Run, Totals
from darkroom.rows import Claim, RowMessage, RowRequest, RowResult, RowState
from tests.fakes.ledger import FakeLedger, running
from tests.fakes.services import FakeClock, FakeQueue, FakeTelemetry

JOB = "jobs/products"


@dataclass
class ScriptedRowEditor:
    """Answers by the row's key; `settles` those it is done with."""

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


class Station:
    def __init__(self, rows: int = 2) -> None:
        self.clock = FakeClock()
        self.ledger = FakeLedger(self.clock)
        self.queue = FakeQueue()
        self.telemetry = FakeTelemetry()
        self.rows = ScriptedRowEditor(self.ledger)
        self.asked: list[str] = []
        run = self.ledger.start(running(JOB), 90)
        assert run is not None
        self.ledger.finish_split(run, Totals(rows=rows, queued=rows), ())

    def handle(self, *batch: Received) -> list[str]:
        station = EditorBatch(
            editor=self.rows,
            runs=self.ledger,
            queue=self.queue,
            heartbeat=Heartbeat(self.queue, self.ledger, self.telemetry),
            completion=Completion(self.ledger, self.asked.append, self.telemetry),
            clock=self.clock,
            telemetry=self.telemetry,
            threads=4,
        )
        return station.handle(batch, self.clock.now() + 800, "invocation-1")


def received(key: str, job: str = JOB, **changes: object) -> Received:
    message = RowMessage(
        job=job,
        run="run-1",
        row=int(key),
        key=key,
        base="s3://in/",
        request=RowRequest(instruction="a red hat"),
    )
    given = {"message_id": f"m{key}", "receipt": f"r{key}", "body": message.model_dump_json()}
    return Received(**(given | changes))  # type: ignore[arg-type]


def test_settled_rows_go_and_the_last_one_asks_for_the_report() -> None:
    station = Station(rows=2)
    assert station.handle(received("000000")) == []
    assert station.asked == []
    assert station.handle(received("000001")) == []
    assert station.asked == [JOB]


def test_a_row_that_comes_back_is_hidden_until_then_and_fails_alone() -> None:
    station = Station()
    station.rows.delays["000001"] = 61.2
    assert station.handle(received("000000"), received("000001")) == ["m000001"]
    assert station.queue.visibility == {"r000000": TIMINGS.lease_seconds, "r000001": 62}


def test_each_delivery_has_an_owner_of_its_own() -> None:
    station = Station()
    station.rows.delays = {"000000": 1.0}
    station.handle(received("000000"), received("000000", message_id="twice", receipt="r2"))
    assert sorted(station.rows.owners) == ["invocation-1/0", "invocation-1/1"]


def test_what_is_no_row_goes_to_the_dead_letters_at_once() -> None:
    station = Station()
    odd = Received("odd", "r", '{"v": 1, "job": "x"}')
    unknown = received("000000", job="jobs/unknown")
    assert station.handle(odd, unknown) == []
    by_body = dict(station.queue.dead)
    assert by_body[odd.body]["reason"] == "unparseable"
    assert "run: is missing" in by_body[odd.body]["detail"]
    assert "jobs/unknown" in by_body[unknown.body]["detail"]


def test_a_message_near_its_last_receive_is_replaced_by_a_fresh_copy() -> None:
    station = Station()
    station.rows.delays["000000"] = 60.0
    worn = received("000000", receive_count=FRESH_COPY_RECEIVES)
    assert station.handle(worn) == []
    assert [m.key for m in station.queue.sent] == ["000000"]


def test_a_message_near_the_end_of_its_retention_is_replaced_by_a_fresh_copy() -> None:
    station = Station()
    station.rows.delays["000000"] = 60.0
    old = received("000000", sent_at=station.clock.now() - FRESH_COPY_SECONDS - 1)
    assert station.handle(old) == []
    assert len(station.queue.sent) == 1


def test_one_message_that_crashes_does_not_fail_the_others() -> None:
    station = Station()
    station.rows.delays["000000"] = ZeroDivisionError()
    assert station.handle(received("000000"), received("000001")) == ["m000000"]
    assert station.queue.visibility["r000000"] == TIMINGS.aws_delay_seconds
    assert station.telemetry.told("exception") == ["message_crashed"]


def test_an_unchecked_completion_brings_its_jobs_messages_back() -> None:
    station = Station(rows=1)
    station.ledger.report_due = _unavailable  # type: ignore[method-assign]
    assert station.handle(received("000000")) == ["m000000"]


def _unavailable(job: str) -> bool:
    raise ServiceUnavailable("throttled")


def test_a_batch_whose_jobs_cannot_be_read_comes_back() -> None:
    station = Station()
    station.ledger.current = _unavailable  # type: ignore[assignment,method-assign]
    assert station.handle(received("000000")) == ["m000000"]


def test_a_beat_hides_messages_and_renews_leases_of_what_is_in_work() -> None:
    station = Station()
    run = station.ledger.current(JOB)
    assert run is not None
    message = RowMessage.model_validate_json(received("000000").body)
    claim = station.ledger.claim(message, run, "w", 90)
    assert isinstance(claim, Claim)
    leases = Leases()
    leases.add_message("r1")
    leases.add_message("r2")
    with leases.claimed(claim):
        leases.return_message("r2", station.queue, 700)
        station.clock.time += 80
        leases.renew(station.queue, station.ledger, 90.0)
    assert station.queue.visibility == {"r1": TIMINGS.lease_seconds, "r2": 700}
    assert station.ledger.rows[JOB, "000000"].lease_until == station.clock.now() + 90


def test_a_missed_beat_does_not_stop_the_heart() -> None:
    station = Station()
    leases = Leases()
    leases.add_message("r1")
    failing: Callable[[list[str], int], None] = lambda receipts, seconds: _raise()  # noqa: E731
    station.queue.extend = failing  # type: ignore[assignment,method-assign]
    heartbeat = Heartbeat(station.queue, station.ledger, station.telemetry)
    heartbeat.renew(leases)
    assert station.telemetry.told("warning") == ["heartbeat_missed"]


def _raise() -> None:
    raise ServiceUnavailable("throttled")
