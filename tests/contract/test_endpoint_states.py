"""The table in memory and the one in DynamoDB behave alike, update by update."""

import itertools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from darkroom.aws.endpoint_table import DynamoDBEndpointStates
from darkroom.calls import Outcome
from darkroom.dispatch import circuit_breaker
from darkroom.dispatch.circuit_breaker import Failure
from darkroom.endpoint_state import (
    SECOND,
    Day,
    EndpointState,
    GoodAnswers,
    Limits,
    Rejection,
    RejectionReason,
    Reservation,
    ReservationRequest,
    StatesUnavailable,
)
from darkroom.ports import EndpointStates
from tests.conftest import ClientFactory
from tests.fakes.endpoint_states import InMemoryEndpointStates
from tests.tables import create_table

NOW = 1_795_000_000 * SECOND

type Transition = Callable[..., EndpointState]
_names = (f"endpoint.with-dots_{number}" for number in itertools.count())


def a_request(
    lease: str = "a", *, now: int = NOW, wait: int = 60, day: Day | None = None, **limits: int
) -> ReservationRequest:
    """A request for a slot within `wait` seconds."""
    limits_in_force = Limits(**{"interval": 2 * SECOND} | limits)
    return ReservationRequest(lease, now, now + wait * SECOND, 30 * SECOND, limits_in_force, day)


class EndpointHarness:
    """One endpoint in the table of `states`."""

    def __init__(self, states: EndpointStates, name: str = "") -> None:
        self.states = states
        self.name = name or next(_names)

    def reserve(self, lease: str = "a", **fields: Any) -> Reservation | Rejection:
        return self.states.reserve(self.name, a_request(lease, **fields))[0]

    def slot(self, lease: str = "a", **fields: Any) -> int:
        reservation = self.reserve(lease, **fields)
        assert isinstance(reservation, Reservation)
        return reservation.slot

    def is_probe(self, lease: str, now: int) -> bool:
        reservation = self.reserve(lease, now=now)
        return isinstance(reservation, Reservation) and reservation.probe

    def rejection(self, lease: str, **fields: Any) -> Rejection:
        rejection = self.reserve(lease, **fields)
        assert isinstance(rejection, Rejection)
        return rejection

    def settle(self, lease: str = "a", counted_as: GoodAnswers | None = "good") -> EndpointState:
        return self.states.settle(self.name, lease, counted_as)

    def fail(
        self,
        now: int = NOW,
        lease: str = "a",
        outcome: Outcome = Outcome.UNAVAILABLE,
        **fields: Any,
    ) -> EndpointState:
        facts = Failure(lease, now, now - 1, outcome, **fields)
        return self.report(lambda state: circuit_breaker.after_failure(state, facts))

    def open_breaker(self, now: int) -> EndpointState:
        """By four failures at `now`: it is open until ten seconds after."""
        for _ in range(4):
            state = self.fail(now)
        return state

    def end_probe(self, lease: str, now: int, change: Transition) -> EndpointState:
        return self.report(lambda s: circuit_breaker.without_lease(change(s, now), lease))

    def report(self, transition: Transition) -> EndpointState:
        return self.states.report(self.name, transition)[1]

    def state(self) -> EndpointState:
        return self.states.read(self.name)

    def comparable_state(self, now: int) -> EndpointState:
        """The state without what may differ: the number of writes, and expired leases."""
        state = self.state()
        live = {lease: until for lease, until in state.leases.items() if until > now}
        return replace(state, revision=0, leases=live)


@pytest.fixture(scope="module")
def dynamodb_states(aws_client: ClientFactory) -> DynamoDBEndpointStates:
    client = aws_client("dynamodb")
    create_table(client, "endpoints", "endpoints-contract")
    return DynamoDBEndpointStates(client, "endpoints-contract")


@pytest.fixture(params=["memory", "dynamodb"])
def endpoint(request: pytest.FixtureRequest) -> EndpointHarness:
    if request.param == "memory":
        return EndpointHarness(InMemoryEndpointStates())
    return EndpointHarness(request.getfixturevalue("dynamodb_states"))


@pytest.mark.parametrize(
    ("requests", "slots"),
    [
        pytest.param([{}] * 4, [0, 2, 4, 6], id="slots follow each other by the interval"),
        pytest.param([{}, {"now": NOW + 100 * SECOND}], [0, 100], id="slots restart when idle"),
        pytest.param([{"tolerance": 4 * SECOND}] * 5, [0, 0, 0, 2, 4], id="a burst, then the rate"),
    ],
)
def test_slots(endpoint: EndpointHarness, requests: list[dict[str, int]], slots: list[int]) -> None:
    reserved = [endpoint.slot(str(turn), **fields) for turn, fields in enumerate(requests)]
    assert reserved == [NOW + slot * SECOND for slot in slots]


def test_a_wrong_last_known_state_does_not_change_the_slot(endpoint: EndpointHarness) -> None:
    states, name = endpoint.states, endpoint.name
    endpoint.reserve()
    wrongly_open = replace(endpoint.state(), breaker_open=True, breaker_until=NOW + 999 * SECOND)
    for turn, wrong in enumerate([EndpointState(), wrongly_open], start=1):
        reservation, _ = states.reserve(name, a_request(f"{turn}"), last_known=wrong)
        assert isinstance(reservation, Reservation)
        assert reservation.slot == NOW + turn * 2 * SECOND


def test_a_slot_after_the_latest_one_is_rejected_with_its_time(endpoint: EndpointHarness) -> None:
    endpoint.reserve()
    assert endpoint.rejection("b", wait=1) == Rejection(RejectionReason.RATE, NOW + 2 * SECOND)
    assert endpoint.state().calls == 1


def test_a_place_in_flight_is_taken_until_its_lease_is_released(endpoint: EndpointHarness) -> None:
    endpoint.reserve("a", max_in_flight=2)
    endpoint.reserve("b", max_in_flight=2)
    assert endpoint.rejection("c", max_in_flight=2).reason is RejectionReason.IN_FLIGHT
    endpoint.settle()
    assert endpoint.slot("c", max_in_flight=2)


def test_the_leases_of_dead_workers_expire(endpoint: EndpointHarness) -> None:
    for lease in "abc":
        endpoint.reserve(lease, max_in_flight=3)
    later = NOW + 33 * SECOND  # a and b have expired, c not yet
    assert endpoint.slot("d", now=later, max_in_flight=3) == later
    assert set(endpoint.state().leases) == {"c", "d"}


def test_the_daily_limit_is_kept_and_restarts_the_next_day(endpoint: EndpointHarness) -> None:
    today = Day(7, NOW - 1000 * SECOND, NOW + 1000 * SECOND)
    assert endpoint.slot(day=today, per_day=2)
    assert endpoint.slot(day=today, per_day=2)
    spent = Rejection(RejectionReason.DAY, today.end + 2 * SECOND)
    assert endpoint.rejection("a", day=today, per_day=2) == spent
    tomorrow = Day(8, today.end, today.end + 2000 * SECOND)
    now = today.end + 5 * SECOND
    assert endpoint.slot(now=now, day=tomorrow, per_day=2) == now


def test_a_limit_lowered_below_the_leases_of_many_dead_workers_recovers(
    endpoint: EndpointHarness,
) -> None:
    for number in range(20):
        endpoint.reserve(f"dead-{number}", max_in_flight=20)
    full = endpoint.rejection("b", now=NOW + 20 * SECOND, max_in_flight=2)
    assert full.reason is RejectionReason.IN_FLIGHT
    assert full.retry_at > NOW + 20 * SECOND
    later = NOW + 200 * SECOND
    assert endpoint.slot("c", now=later, max_in_flight=2) == later
    assert set(endpoint.state().leases) == {"c"}


def test_a_request_that_takes_more_keeps_its_distance_on_both_sides(
    endpoint: EndpointHarness,
) -> None:
    intervals = [2, 6, 2, 2]
    slots = [endpoint.slot(str(n), interval=i * SECOND) for n, i in enumerate(intervals)]
    assert [(slot - NOW) // SECOND for slot in slots] == [0, 6, 12, 14]


def test_an_open_breaker_allows_one_probe_at_a_time(endpoint: EndpointHarness) -> None:
    endpoint.reserve()
    epoch = endpoint.state().epoch
    assert endpoint.open_breaker(NOW).epoch == epoch + 1
    assert endpoint.rejection("b") == Rejection(RejectionReason.BREAKER, NOW + 10 * SECOND)
    later = NOW + 11 * SECOND
    assert endpoint.is_probe("b", later)
    rejection = endpoint.rejection("c", now=later)
    assert rejection == Rejection(RejectionReason.BREAKER, later + 10 * SECOND)
    assert endpoint.rejection("c", now=later + 29 * SECOND).reason is RejectionReason.BREAKER
    assert endpoint.is_probe("d", later + 31 * SECOND)  # the first one was lost


def test_a_good_probe_closes_the_breaker_and_resets_failures(endpoint: EndpointHarness) -> None:
    endpoint.open_breaker(NOW - 10 * SECOND)
    endpoint.reserve("p", now=NOW + 1)
    after = endpoint.end_probe("p", NOW + 2, circuit_breaker.closed)
    assert (after.breaker_open, after.breaker_until, after.probe) == (False, 0, "")
    assert (after.opens, after.failures, after.leases) == (0, 0, {})


def test_a_failed_probe_keeps_the_breaker_open_and_one_not_sent_leaves_its_turn(
    endpoint: EndpointHarness,
) -> None:
    endpoint.open_breaker(NOW - 10 * SECOND)
    endpoint.reserve("p", now=NOW + 1)
    unsent = endpoint.end_probe("p", NOW + 2, circuit_breaker.probe_not_sent)
    assert (unsent.breaker_open, unsent.breaker_until) == (True, NOW + 2)
    assert endpoint.is_probe("q", NOW + 3)
    failed = endpoint.fail(NOW + 4, "q")
    until = NOW + 4 + 20 * SECOND
    assert (failed.breaker_open, failed.breaker_until, failed.opens) == (True, until, 2)


def test_good_answers_offset_failures(endpoint: EndpointHarness) -> None:
    endpoint.reserve()
    for _ in range(3):
        endpoint.fail()
    for _ in range(2):
        state = endpoint.settle()
    assert circuit_breaker.net_failures(state) == 1
    endpoint.settle(counted_as=None)  # a call that was not made is no evidence
    assert circuit_breaker.net_failures(endpoint.state()) == 1
    assert endpoint.fail().failures == 2


def test_a_pause_voids_reservations_and_delays_the_next_slot(endpoint: EndpointHarness) -> None:
    for number in range(30):
        endpoint.reserve(str(number))
    epoch = endpoint.state().epoch
    paused = endpoint.fail(outcome=Outcome.RATE_LIMITED, retry_after_seconds=25.0)
    assert paused.epoch == epoch + 1
    slots = [endpoint.slot(f"after-{n}") for n in range(3)]
    assert [(slot - NOW) // SECOND for slot in slots] == [25, 27, 29]


def test_a_reservation_made_on_a_state_of_an_earlier_epoch_gets_the_current_one(
    endpoint: EndpointHarness,
) -> None:
    endpoint.reserve()
    stale = endpoint.state()
    endpoint.fail(outcome=Outcome.RATE_LIMITED, retry_after_seconds=25.0)
    reservation, _ = endpoint.states.reserve(endpoint.name, a_request("b"), last_known=stale)
    assert isinstance(reservation, Reservation)
    assert (reservation.epoch, reservation.slot) == (stale.epoch + 1, NOW + 25 * SECOND)


def test_an_endpoint_never_used_can_be_read_and_written(endpoint: EndpointHarness) -> None:
    assert endpoint.state() == EndpointState()
    assert endpoint.fail().failures == 1


def test_concurrent_workers_never_exceed_the_limits(endpoint: EndpointHarness) -> None:
    def work(worker: int) -> list[int]:
        slots, last_known = [], None
        for turn in range(8):
            request = a_request(f"{worker}-{turn}", wait=600, interval=SECOND, max_in_flight=64)
            reservation, last_known = endpoint.states.reserve(endpoint.name, request, last_known)
            assert isinstance(reservation, Reservation)
            slots.append(reservation.slot)
        return slots

    with ThreadPoolExecutor(6) as pool:
        slots = [slot for worker in pool.map(work, range(6)) for slot in worker]
    assert set(slots) == {NOW + i * SECOND for i in range(48)}
    assert len(slots) == 48
    full = endpoint.rejection("full", wait=600, max_in_flight=48)
    assert full.reason is RejectionReason.IN_FLIGHT


def test_of_concurrent_reports_none_is_lost(endpoint: EndpointHarness) -> None:
    keys = [f"fingerprint-{number}" for number in range(12)]

    def reject(key_id: str) -> None:
        endpoint.fail(outcome=Outcome.QUOTA_SPENT, key_id=key_id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(reject, keys))
    assert set(endpoint.state().key_cooldowns) == set(keys)


def outcome_of(reservation: Reservation | Rejection) -> object:
    if isinstance(reservation, Rejection):
        return reservation
    return reservation.slot, reservation.probe


@pytest.mark.parametrize("seed", range(3))
def test_fake_and_table_agree_on_any_history(
    seed: int, dynamodb_states: DynamoDBEndpointStates
) -> None:
    rng = random.Random(seed)
    fake = EndpointHarness(InMemoryEndpointStates())
    real = EndpointHarness(dynamodb_states, fake.name)
    day = Day(5, NOW - 100 * SECOND, NOW + 90_000 * SECOND)
    now, last_known = NOW, None
    for step in range(120):
        now += rng.choice([0, 1000, SECOND, 20 * SECOND])
        lease = f"l{rng.randrange(step + 1)}"
        match rng.randrange(8):
            case 0 | 1 | 2 | 3:
                limits = {"max_in_flight": 3, "per_day": 40, "tolerance": SECOND}
                wait = rng.choice([0, 5, 60])
                request = a_request(f"l{step}", now=now, wait=wait, day=day, **limits)
                one, _ = fake.states.reserve(fake.name, request)
                two, state = real.states.reserve(real.name, request, last_known)
                assert outcome_of(one) == outcome_of(two)
                last_known = state if rng.random() < 0.5 else last_known
            case 4 | 5:
                kinds: list[GoodAnswers | None] = ["good", "good", "earlier_good", None]
                counted_as = rng.choice(kinds)
                after, same = fake.settle(lease, counted_as), real.settle(lease, counted_as)
                assert (after.good, after.earlier_good) == (same.good, same.earlier_good)
            case _:
                kind = rng.choice([Outcome.UNAVAILABLE, Outcome.RATE_LIMITED, Outcome.KEY_REJECTED])
                retry_after = rng.choice([None, 5.0, 90.0])
                probe = fake.state().probe or lease
                for endpoint in (fake, real):
                    endpoint.fail(now, probe, kind, retry_after_seconds=retry_after, key_id=lease)
        assert fake.comparable_state(now) == real.comparable_state(now)


# DynamoDB alone


def test_a_missing_table_is_an_error_and_not_a_rejection(aws_client: ClientFactory) -> None:
    states = DynamoDBEndpointStates(aws_client("dynamodb"), "no-such-table")
    with pytest.raises(StatesUnavailable, match="did not answer"):
        states.reserve("any", a_request())


def test_a_reservation_takes_one_round_trip_when_the_last_known_state_is_current(
    aws_client: ClientFactory, dynamodb_states: DynamoDBEndpointStates
) -> None:
    client, name = aws_client("dynamodb"), next(_names)
    calls: list[str] = []
    client.meta.events.register("before-call.dynamodb", lambda model, **_: calls.append(model.name))
    _, state = dynamodb_states.reserve(name, a_request())
    calls.clear()
    for turn in range(5):
        _, state = dynamodb_states.reserve(name, a_request(str(turn)), state)
    assert calls == ["UpdateItem"] * 5


def test_an_item_of_an_earlier_version_is_brought_up_to_date(
    aws_client: ClientFactory, dynamodb_states: DynamoDBEndpointStates
) -> None:
    name = next(_names)
    item: dict[str, Any] = {
        "endpoint": {"S": name},
        "revision": {"N": "7"},
        "next_slot": {"N": str(NOW + 4 * SECOND)},
        "leases": {"M": {}},
    }
    aws_client("dynamodb").put_item(TableName="endpoints-contract", Item=item)
    # What the last reservation took is not known: a whole interval more.
    assert EndpointHarness(dynamodb_states, name).slot() == NOW + 6 * SECOND
