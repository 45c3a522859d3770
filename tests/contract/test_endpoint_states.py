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
from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.endpoint_state import (
    SECOND,
    Day,
    EndpointState,
    Health,
    KeyCooldown,
    Limits,
    Rejection,
    RejectionReason,
    Reservation,
    ReservationRequest,
    Settlement,
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

    def settle(
        self, health: Health, now: int = NOW, lease: str = "a", **fields: Any
    ) -> EndpointState:
        return self.states.settle(self.name, Settlement(lease, now, health, **fields))

    def change(self, transition: Transition, *arguments: Any) -> EndpointState:
        return self.states.change(self.name, lambda state: transition(state, *arguments))[1]

    def open_breaker(self, now: int) -> bool:
        before, after = self.states.change(self.name, lambda s: circuit_breaker.opened(s, now))
        return before != after

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
    endpoint.settle(Health.GOOD)
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


def test_an_open_breaker_allows_one_probe_at_a_time(endpoint: EndpointHarness) -> None:
    endpoint.reserve()
    assert endpoint.open_breaker(NOW) is True
    assert endpoint.open_breaker(NOW + 80 * SECOND) is False
    assert endpoint.rejection("b") == Rejection(RejectionReason.BREAKER, NOW + 10 * SECOND)
    later = NOW + 11 * SECOND
    assert endpoint.is_probe("b", later)
    assert endpoint.rejection("c", now=later).reason is RejectionReason.BREAKER
    assert endpoint.rejection("c", now=later + 29 * SECOND).reason is RejectionReason.BREAKER
    assert endpoint.is_probe("d", later + 31 * SECOND)  # the first one was lost


def test_a_good_probe_closes_the_breaker_and_resets_failures(endpoint: EndpointHarness) -> None:
    for _ in range(4):
        endpoint.reserve()
        endpoint.settle(Health.FAILED)
    assert endpoint.state().failures == 4
    endpoint.open_breaker(NOW - 10 * SECOND)
    endpoint.reserve("p", now=NOW + 1)
    after = endpoint.settle(Health.GOOD, NOW + 2, "p", probe=True)
    assert after.breaker_open is False
    assert (after.breaker_until, after.opens, after.failures) == (0, 0, 0)


def test_a_failed_probe_keeps_the_breaker_open_and_one_not_sent_leaves_its_turn(
    endpoint: EndpointHarness,
) -> None:
    endpoint.reserve()
    endpoint.open_breaker(NOW - 10 * SECOND)
    endpoint.reserve("p", now=NOW + 1)
    unsent = endpoint.settle(Health.NOT_CALLED, NOW + 2, "p", probe=True)
    assert (unsent.breaker_open, unsent.breaker_until) == (True, NOW + 2)
    assert endpoint.is_probe("q", NOW + 3)
    failed = endpoint.settle(Health.FAILED, NOW + 4, "q", probe=True)
    until = NOW + 4 + 20 * SECOND
    assert (failed.breaker_open, failed.breaker_until, failed.opens) == (True, until, 2)


def test_failures_raise_the_count_and_good_calls_lower_it(endpoint: EndpointHarness) -> None:
    endpoint.reserve()
    for _ in range(3):
        endpoint.settle(Health.FAILED)
    assert endpoint.settle(Health.GOOD, NOW + 9, sent_at=NOW - 1).failures == 3
    assert endpoint.settle(Health.GOOD, NOW + 9, sent_at=NOW + 1).failures == 2
    later = NOW + 1000 * SECOND
    assert endpoint.settle(Health.FAILED, later).failures == 1
    endpoint.settle(Health.GOOD, later + 2, sent_at=later + 1)
    assert endpoint.settle(Health.GOOD, later + 4, sent_at=later + 3).failures == 0


def test_a_pause_or_suspension_is_never_shortened(endpoint: EndpointHarness) -> None:
    endpoint.reserve()
    for seconds in (30, 10):
        after = endpoint.change(rate_limiter.paused, NOW + seconds * SECOND)
        assert after.paused_until == NOW + 30 * SECOND
    assert endpoint.slot("b") == NOW + 30 * SECOND
    for seconds in (300, 10):
        after = endpoint.change(circuit_breaker.suspended, NOW + seconds * SECOND)
        assert after.breaker_until == NOW + 300 * SECOND


def test_one_incident_slows_an_endpoint_down_once(endpoint: EndpointHarness) -> None:
    endpoint.reserve()
    endpoint.change(rate_limiter.slowed_down, 8 * SECOND, NOW, NOW - 5)
    sent_before = NOW - 3
    late = endpoint.change(rate_limiter.slowed_down, 16 * SECOND, NOW + 1, sent_before)
    assert (late.slowed_interval, late.slowed_at) == (8 * SECOND, NOW)
    assert [endpoint.slot(str(i)) for i in range(2)] == [NOW + 2 * SECOND, NOW + 10 * SECOND]


def test_an_endpoint_never_used_can_be_read_and_written(endpoint: EndpointHarness) -> None:
    assert endpoint.state() == EndpointState()
    assert endpoint.settle(Health.FAILED).failures == 1


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


def test_of_concurrent_key_cooldowns_none_is_lost(endpoint: EndpointHarness) -> None:
    cooldowns = {
        f"fingerprint-{number}": KeyCooldown(NOW + number, Outcome.QUOTA_SPENT)
        for number in range(12)
    }

    def add(fingerprint: str) -> None:
        added = {fingerprint: cooldowns[fingerprint]}
        endpoint.change(lambda s: replace(s, key_cooldowns={**s.key_cooldowns, **added}))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, cooldowns))
    assert endpoint.state().key_cooldowns == cooldowns


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
                sent_at = now - rng.choice([0, SECOND])
                health, probe = rng.choice(list(Health)), fake.state().breaker_open
                for endpoint in (fake, real):
                    endpoint.settle(health, now, lease, sent_at=sent_at, probe=probe)
            case 6:
                assert fake.open_breaker(now) == real.open_breaker(now)
            case _:
                interval = rng.randrange(5 * SECOND)
                for endpoint in (fake, real):
                    endpoint.change(rate_limiter.slowed_down, interval, now, now - 1)
                    endpoint.change(rate_limiter.paused, now + interval)
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
    assert rate_limiter.slowed_interval(state, NOW) == 0
