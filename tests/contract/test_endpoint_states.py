"""The table in memory and the one in DynamoDB behave alike, update by update."""

import itertools
import random
import threading
from dataclasses import replace

import pytest

from darkroom.aws.endpoint_table import DynamoDBEndpointStates
from darkroom.calls import Outcome
from darkroom.dispatch import rate_limiter
from darkroom.endpoint_state import (
    SECOND,
    Day,
    EndpointState,
    Health,
    KeyCooldown,
    Limits,
    RejectionReason,
    Reservation,
    ReservationRequest,
    Settlement,
    StatesUnavailable,
)
from darkroom.ports import EndpointStates
from tests.conftest import ClientFactory
from tests.fakes.endpoint_states import InMemoryEndpointStates

NOW = 1_795_000_000 * SECOND
_names = itertools.count()


@pytest.fixture(scope="module")
def table(aws_client: ClientFactory) -> str:
    name = "endpoints-contract"
    aws_client("dynamodb").create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "endpoint", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "endpoint", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return name


@pytest.fixture(params=["memory", "dynamodb"])
def states(request: pytest.FixtureRequest) -> EndpointStates:
    if request.param == "memory":
        return InMemoryEndpointStates()
    client = request.getfixturevalue("aws_client")("dynamodb")
    return DynamoDBEndpointStates(client, request.getfixturevalue("table"))


@pytest.fixture
def name() -> str:
    return f"endpoint.with-dots_{next(_names)}"


def a_request(
    lease: str = "a", *, now: int = NOW, wait: int = 60, **limits: int
) -> ReservationRequest:
    """A request for a slot within `wait` seconds."""
    limits = {"interval": 2 * SECOND, "margin": 2 * SECOND} | limits
    return ReservationRequest(lease, now, now + wait * SECOND, 30 * SECOND, Limits(**limits))


def rejected(reservation: Reservation) -> tuple[RejectionReason, int]:
    assert reservation.slot is None
    assert reservation.rejection is not None
    return reservation.rejection.reason, reservation.rejection.retry_at


def test_slots_follow_each_other_by_the_interval(states: EndpointStates, name: str) -> None:
    slots = [states.reserve(name, a_request(str(i))).slot for i in range(4)]
    assert slots == [NOW, NOW + 2 * SECOND, NOW + 4 * SECOND, NOW + 6 * SECOND]


def test_the_slots_of_an_idle_endpoint_restart_from_now(states: EndpointStates, name: str) -> None:
    states.reserve(name, a_request())
    later = NOW + 100 * SECOND
    assert states.reserve(name, a_request("b", now=later)).slot == later


def test_a_wrong_last_known_state_does_not_change_the_slot(
    states: EndpointStates, name: str
) -> None:
    first = states.reserve(name, a_request())
    stale = EndpointState()
    assert states.reserve(name, a_request("b"), last_known=stale).slot == NOW + 2 * SECOND
    wrongly_open = replace(first.state, breaker_open=True, breaker_until=NOW + 999 * SECOND)
    assert states.reserve(name, a_request("c"), last_known=wrongly_open).slot == NOW + 4 * SECOND


def test_a_slot_after_the_latest_one_is_rejected_with_its_time(
    states: EndpointStates, name: str
) -> None:
    states.reserve(name, a_request())
    rejection = rejected(states.reserve(name, a_request("b", wait=1)))
    assert rejection == (RejectionReason.RATE, NOW + 2 * SECOND)
    assert states.read(name).calls == 1


def test_a_burst_is_sent_at_once_and_then_the_rate_is_kept(
    states: EndpointStates, name: str
) -> None:
    burst = {"interval": 2 * SECOND, "tolerance": 4 * SECOND}
    slots = [states.reserve(name, a_request(str(i), **burst)).slot for i in range(5)]
    assert slots == [NOW, NOW, NOW, NOW + 2 * SECOND, NOW + 4 * SECOND]


def test_a_place_in_flight_is_taken_until_its_lease_is_released(
    states: EndpointStates, name: str
) -> None:
    states.reserve(name, a_request("a", max_in_flight=2))
    states.reserve(name, a_request("b", max_in_flight=2))
    rejection = rejected(states.reserve(name, a_request("c", max_in_flight=2)))
    assert rejection[0] is RejectionReason.IN_FLIGHT
    states.settle(name, Settlement("a", NOW, Health.GOOD))
    assert states.reserve(name, a_request("c", max_in_flight=2)).slot is not None


def test_the_leases_of_dead_workers_expire(states: EndpointStates, name: str) -> None:
    for lease in "abc":
        states.reserve(name, a_request(lease, max_in_flight=3))
    later = NOW + 33 * SECOND  # a and b have expired, c not yet
    after = states.reserve(name, a_request("d", now=later, max_in_flight=3))
    assert after.slot == later
    assert set(after.state.leases) == {"c", "d"}


def test_the_daily_limit_is_kept_and_the_count_restarts_the_next_day(
    states: EndpointStates, name: str
) -> None:
    today = Day(7, NOW - 1000 * SECOND, NOW + 1000 * SECOND)
    request = replace(a_request(per_day=2), day=today)
    assert states.reserve(name, request).slot is not None
    assert states.reserve(name, request).slot is not None
    rejection = rejected(states.reserve(name, request))
    assert rejection == (RejectionReason.DAY, today.end + 2 * SECOND)
    tomorrow = Day(8, today.end, today.end + 2000 * SECOND)
    now = today.end + 5 * SECOND
    assert states.reserve(name, replace(a_request(now=now, per_day=2), day=tomorrow)).slot == now


def test_an_open_breaker_rejects_and_then_allows_one_probe(
    states: EndpointStates, name: str
) -> None:
    states.reserve(name, a_request())
    assert states.open_breaker(name, NOW + 10 * SECOND)[0] is True
    assert states.open_breaker(name, NOW + 90 * SECOND)[0] is False
    rejection = rejected(states.reserve(name, a_request("b")))
    assert rejection == (RejectionReason.BREAKER, NOW + 10 * SECOND)
    later = NOW + 11 * SECOND
    assert states.reserve(name, a_request("b", now=later)).probe is True
    second = rejected(states.reserve(name, a_request("c", now=later)))
    assert second[0] is RejectionReason.BREAKER


def test_a_good_probe_closes_the_breaker_and_resets_the_failures(
    states: EndpointStates, name: str
) -> None:
    for _ in range(4):
        states.reserve(name, a_request())
        states.settle(name, Settlement("a", NOW, Health.FAILED))
    assert states.read(name).failures == 4
    states.open_breaker(name, NOW)
    states.reserve(name, a_request("p", now=NOW + 1))
    after = states.settle(name, Settlement("p", NOW + 2, Health.GOOD, probe=True))
    assert (after.breaker_open, after.breaker_until, after.opens, after.failures) == (
        False,
        0,
        0,
        0,
    )


def test_a_failed_probe_keeps_the_breaker_open_and_one_not_sent_leaves_its_turn(
    states: EndpointStates, name: str
) -> None:
    states.reserve(name, a_request())
    states.open_breaker(name, NOW)
    states.reserve(name, a_request("p", now=NOW + 1))
    unsent = states.settle(name, Settlement("p", NOW + 2, Health.NOT_CALLED, probe=True))
    assert (unsent.breaker_open, unsent.breaker_until) == (True, NOW + 2)
    assert states.reserve(name, a_request("q", now=NOW + 3)).probe is True
    failure = Settlement("q", NOW + 4, Health.FAILED, probe=True, reopen_until=NOW + 20 * SECOND)
    failed = states.settle(name, failure)
    assert (failed.breaker_open, failed.breaker_until, failed.opens) == (True, NOW + 20 * SECOND, 2)


def test_transient_failures_raise_the_count_and_good_calls_lower_it(
    states: EndpointStates, name: str
) -> None:
    states.reserve(name, a_request())
    for _ in range(3):
        states.settle(name, Settlement("a", NOW, Health.FAILED))
    assert states.settle(name, Settlement("a", NOW + 9, Health.GOOD, sent_at=NOW - 1)).failures == 3
    assert states.settle(name, Settlement("a", NOW + 9, Health.GOOD, sent_at=NOW + 1)).failures == 2
    much_later = NOW + 1000 * SECOND
    assert states.settle(name, Settlement("a", much_later, Health.FAILED)).failures == 1
    states.settle(name, Settlement("a", much_later + 2, Health.GOOD, sent_at=much_later + 1))
    last = states.settle(name, Settlement("a", much_later + 4, Health.GOOD, sent_at=much_later + 3))
    assert last.failures == 0


def test_a_pause_delays_the_next_slot_and_is_never_shortened(
    states: EndpointStates, name: str
) -> None:
    states.reserve(name, a_request())
    states.pause_until(name, NOW + 30 * SECOND)
    assert states.pause_until(name, NOW + 10 * SECOND).paused_until == NOW + 30 * SECOND
    assert states.reserve(name, a_request("b")).slot == NOW + 30 * SECOND


def test_one_incident_slows_an_endpoint_down_once(states: EndpointStates, name: str) -> None:
    states.reserve(name, a_request())
    states.slow_down(name, 8 * SECOND, NOW, NOW - 5)
    late = states.slow_down(name, 16 * SECOND, NOW + 1, NOW - 3)  # sent before the slowdown
    assert (late.slowed_interval, late.slowed_at) == (8 * SECOND, NOW)
    slots = [states.reserve(name, a_request(str(i))).slot for i in range(2)]
    assert slots == [NOW + 2 * SECOND, NOW + 10 * SECOND]


def test_a_suspension_is_never_shortened(states: EndpointStates, name: str) -> None:
    states.reserve(name, a_request())
    states.suspend_until(name, NOW + 300 * SECOND)
    assert states.suspend_until(name, NOW + 10 * SECOND).breaker_until == NOW + 300 * SECOND


def test_key_cooldowns_are_shared(states: EndpointStates, name: str) -> None:
    states.reserve(name, a_request())
    cooldown = KeyCooldown(NOW + 600 * SECOND, Outcome.QUOTA_SPENT)
    states.cool_down_key(name, "0123456789ab", cooldown)
    assert states.read(name).key_cooldowns == {"0123456789ab": cooldown}


def test_an_endpoint_never_used_can_be_read_and_written(states: EndpointStates, name: str) -> None:
    assert states.read(name) == EndpointState()
    assert states.settle(name, Settlement("a", NOW, Health.FAILED)).failures == 1


def test_concurrent_workers_never_share_a_slot_or_exceed_the_in_flight_limit(
    states: EndpointStates, name: str
) -> None:
    taken: list[int] = []

    def work(worker: int) -> None:
        last_known = None
        for turn in range(8):
            request = a_request(f"{worker}-{turn}", wait=600, interval=SECOND, max_in_flight=64)
            reservation = states.reserve(name, request, last_known)
            assert reservation.slot is not None
            taken.append(reservation.slot)
            last_known = reservation.state

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [NOW + i * SECOND for i in range(48)]
    rejection = rejected(states.reserve(name, a_request("full", wait=600, max_in_flight=48)))
    assert rejection[0] is RejectionReason.IN_FLIGHT


@pytest.mark.parametrize("seed", range(3))
def test_fake_and_table_agree_on_random_histories(
    seed: int, table: str, aws_client: ClientFactory, name: str
) -> None:
    rng = random.Random(seed)
    fake, real = InMemoryEndpointStates(), DynamoDBEndpointStates(aws_client("dynamodb"), table)
    now = NOW
    last_known = None
    for step in range(120):
        now += rng.choice([0, 1000, SECOND, 20 * SECOND])
        lease = f"l{rng.randrange(step + 1)}"
        match rng.randrange(8):
            case 0 | 1 | 2 | 3:
                limits = {"max_in_flight": 3, "per_day": 40, "tolerance": SECOND}
                request = a_request(f"l{step}", now=now, wait=rng.choice([0, 5, 60]), **limits)
                request = replace(request, day=Day(5, NOW - 100 * SECOND, NOW + 90_000 * SECOND))
                one, two = fake.reserve(name, request), real.reserve(name, request, last_known)
                assert (one.slot, one.probe, one.rejection) == (two.slot, two.probe, two.rejection)
                last_known = two.state if rng.random() < 0.5 else last_known
            case 4 | 5:
                sent = now - rng.choice([0, SECOND])
                probe = fake.read(name).breaker_open
                health = rng.choice(list(Health))
                settlement = Settlement(lease, now, health, sent, probe, now + SECOND)
                fake.settle(name, settlement)
                real.settle(name, settlement)
            case 6:
                assert (
                    fake.open_breaker(name, now + SECOND)[0]
                    == real.open_breaker(name, now + SECOND)[0]
                )
            case _:
                interval = rng.randrange(5 * SECOND)
                fake.slow_down(name, interval, now, now - 1)
                real.slow_down(name, interval, now, now - 1)
                fake.pause_until(name, now + interval)
                real.pause_until(name, now + interval)
        assert _comparable(fake, name, now) == _comparable(real, name, now)


def _comparable(states: EndpointStates, name: str, now: int) -> EndpointState:
    """The state without what may differ: the number of writes, and expired leases."""
    state = states.read(name)
    live = {lease: until for lease, until in state.leases.items() if until > now}
    return replace(state, revision=0, leases=live)


def test_a_missing_table_is_an_error_and_not_a_rejection(aws_client: ClientFactory) -> None:
    states = DynamoDBEndpointStates(aws_client("dynamodb"), "no-such-table")
    with pytest.raises(StatesUnavailable, match="did not answer"):
        states.reserve("any", a_request())


def test_a_reservation_takes_one_round_trip_when_the_last_known_state_is_current(
    aws_client: ClientFactory, table: str, name: str
) -> None:
    client = aws_client("dynamodb")
    calls: list[str] = []
    client.meta.events.register("before-call.dynamodb", lambda model, **_: calls.append(model.name))
    states = DynamoDBEndpointStates(client, table)
    state = states.reserve(name, a_request()).state
    calls.clear()
    for turn in range(5):
        state = states.reserve(name, a_request(str(turn)), state).state
    assert calls == ["UpdateItem"] * 5
    assert rate_limiter.slowed_interval(state, NOW) == 0


def test_an_item_written_by_an_earlier_version_is_replaced(
    aws_client: ClientFactory, table: str, name: str
) -> None:
    client = aws_client("dynamodb")
    item = {"endpoint": {"S": name}, "rev": {"N": "7"}, "next": {"N": str(NOW)}}
    client.put_item(TableName=table, Item=item)
    states = DynamoDBEndpointStates(client, table)
    assert states.read(name) == EndpointState()
    assert states.reserve(name, a_request()).slot == NOW
