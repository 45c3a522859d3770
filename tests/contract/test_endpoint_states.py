"""The table in memory and the one in DynamoDB behave alike, move by move."""

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
    Report,
    ReservationRequest,
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


def ask(lease: str = "a", *, now: int = NOW, wait: int = 60, **limits: int) -> ReservationRequest:
    given = {"interval": 2 * SECOND, "margin": 2 * SECOND} | limits
    return ReservationRequest(lease, now, now + wait * SECOND, 30 * SECOND, Limits(**given))


def test_slots_follow_each_other_by_the_interval(states: EndpointStates, name: str) -> None:
    slots = [states.book(name, ask(str(i))).slot for i in range(4)]
    assert slots == [NOW, NOW + 2 * SECOND, NOW + 4 * SECOND, NOW + 6 * SECOND]


def test_an_idle_endpoint_starts_over_from_now(states: EndpointStates, name: str) -> None:
    states.book(name, ask())
    later = NOW + 100 * SECOND
    assert states.book(name, ask("b", now=later)).slot == later


def test_a_wrong_guess_changes_nothing_but_the_number_of_tries(
    states: EndpointStates, name: str
) -> None:
    first = states.book(name, ask())
    stale = EndpointState()
    assert states.book(name, ask("b"), guess=stale).slot == NOW + 2 * SECOND
    gloomy = replace(first.state, tripped=True, breaker_until=NOW + 999 * SECOND)
    assert states.book(name, ask("c"), guess=gloomy).slot == NOW + 4 * SECOND


def test_a_slot_beyond_the_horizon_is_refused_with_its_time(
    states: EndpointStates, name: str
) -> None:
    states.book(name, ask())
    refused = states.book(name, ask("b", wait=1)).refused
    assert refused is not None
    assert (refused.gate, refused.opens_at) == (RejectionReason.PACE, NOW + 2 * SECOND)
    assert states.read(name).calls == 1


def test_a_burst_goes_out_at_once_and_then_keeps_the_pace(
    states: EndpointStates, name: str
) -> None:
    burst = {"interval": 2 * SECOND, "tolerance": 4 * SECOND}
    slots = [states.book(name, ask(str(i), **burst)).slot for i in range(5)]
    assert slots == [NOW, NOW, NOW, NOW + 2 * SECOND, NOW + 4 * SECOND]


def test_in_flight_is_held_until_given_back(states: EndpointStates, name: str) -> None:
    states.book(name, ask("a", max_in_flight=2))
    states.book(name, ask("b", max_in_flight=2))
    refused = states.book(name, ask("c", max_in_flight=2)).refused
    assert refused is not None
    assert refused.gate is RejectionReason.IN_FLIGHT
    states.settle(name, Report("a", NOW, Health.GOOD))
    assert states.book(name, ask("c", max_in_flight=2)).slot is not None


def test_leases_of_dead_workers_make_room_when_they_expire(
    states: EndpointStates, name: str
) -> None:
    for lease in "abc":
        states.book(name, ask(lease, max_in_flight=3))
    later = NOW + 33 * SECOND  # a and b have expired, c not yet
    after = states.book(name, ask("d", now=later, max_in_flight=3))
    assert after.slot == later
    assert set(after.state.leases) == {"c", "d"}


def test_the_day_limit_holds_and_a_new_day_starts_over(states: EndpointStates, name: str) -> None:
    today = Day(7, NOW - 1000 * SECOND, NOW + 1000 * SECOND)
    wish = replace(ask(per_day=2), day=today)
    assert states.book(name, wish).slot is not None
    assert states.book(name, wish).slot is not None
    refused = states.book(name, wish).refused
    assert refused is not None
    assert (refused.gate, refused.opens_at) == (RejectionReason.DAY, today.end + 2 * SECOND)
    tomorrow = Day(8, today.end, today.end + 2000 * SECOND)
    now = today.end + 5 * SECOND
    assert states.book(name, replace(ask(now=now, per_day=2), day=tomorrow)).slot == now


def test_an_open_breaker_refuses_then_lets_one_probe_through(
    states: EndpointStates, name: str
) -> None:
    states.book(name, ask())
    assert states.trip(name, NOW + 10 * SECOND)[0] is True
    assert states.trip(name, NOW + 90 * SECOND)[0] is False
    refused = states.book(name, ask("b")).refused
    assert refused is not None
    assert (refused.gate, refused.opens_at) == (RejectionReason.BREAKER, NOW + 10 * SECOND)
    later = NOW + 11 * SECOND
    assert states.book(name, ask("b", now=later)).probe is True
    second = states.book(name, ask("c", now=later)).refused
    assert second is not None
    assert second.gate is RejectionReason.BREAKER


def test_a_good_probe_closes_the_breaker_and_forgets(states: EndpointStates, name: str) -> None:
    for _ in range(4):
        states.book(name, ask())
        states.settle(name, Report("a", NOW, Health.FAILED))
    assert states.read(name).failures == 4
    states.trip(name, NOW)
    states.book(name, ask("p", now=NOW + 1))
    after = states.settle(name, Report("p", NOW + 2, Health.GOOD, probe=True))
    assert (after.tripped, after.breaker_until, after.opens, after.failures) == (False, 0, 0, 0)


def test_a_failed_probe_keeps_it_open_and_one_not_sent_passes_the_turn(
    states: EndpointStates, name: str
) -> None:
    states.book(name, ask())
    states.trip(name, NOW)
    states.book(name, ask("p", now=NOW + 1))
    unsent = states.settle(name, Report("p", NOW + 2, Health.UNTOLD, probe=True))
    assert (unsent.tripped, unsent.breaker_until) == (True, NOW + 2)
    assert states.book(name, ask("q", now=NOW + 3)).probe is True
    report = Report("q", NOW + 4, Health.FAILED, probe=True, reopen_until=NOW + 20 * SECOND)
    failed = states.settle(name, report)
    assert (failed.tripped, failed.breaker_until, failed.opens) == (True, NOW + 20 * SECOND, 2)


def test_failures_go_up_by_failures_and_down_by_answers(states: EndpointStates, name: str) -> None:
    states.book(name, ask())
    for _ in range(3):
        states.settle(name, Report("a", NOW, Health.FAILED))
    assert states.settle(name, Report("a", NOW + 9, Health.GOOD, sent_at=NOW - 1)).failures == 3
    assert states.settle(name, Report("a", NOW + 9, Health.GOOD, sent_at=NOW + 1)).failures == 2
    much_later = NOW + 1000 * SECOND
    assert states.settle(name, Report("a", much_later, Health.FAILED)).failures == 1
    states.settle(name, Report("a", much_later + 2, Health.GOOD, sent_at=much_later + 1))
    last = states.settle(name, Report("a", much_later + 4, Health.GOOD, sent_at=much_later + 3))
    assert last.failures == 0


def test_a_pause_moves_the_next_slot_but_never_forward_to_an_earlier_one(
    states: EndpointStates, name: str
) -> None:
    states.book(name, ask())
    states.pause(name, NOW + 30 * SECOND)
    assert states.pause(name, NOW + 10 * SECOND).paused_until == NOW + 30 * SECOND
    assert states.book(name, ask("b")).slot == NOW + 30 * SECOND


def test_a_learned_interval_is_learned_once_per_incident(states: EndpointStates, name: str) -> None:
    states.book(name, ask())
    states.slow(name, 8 * SECOND, NOW, NOW - 5)
    late = states.slow(name, 16 * SECOND, NOW + 1, NOW - 3)  # sent before the first lesson
    assert (late.gap, late.slowed_at) == (8 * SECOND, NOW)
    slots = [states.book(name, ask(str(i))).slot for i in range(2)]
    assert slots == [NOW + 2 * SECOND, NOW + 10 * SECOND]


def test_a_rest_is_never_shortened(states: EndpointStates, name: str) -> None:
    states.book(name, ask())
    states.rest(name, NOW + 300 * SECOND)
    assert states.rest(name, NOW + 10 * SECOND).breaker_until == NOW + 300 * SECOND


def test_rested_keys_are_known_to_all(states: EndpointStates, name: str) -> None:
    states.book(name, ask())
    rest = KeyCooldown(NOW + 600 * SECOND, Outcome.QUOTA_SPENT)
    states.rest_key(name, "0123456789ab", rest)
    assert states.read(name).keys == {"0123456789ab": rest}


def test_an_endpoint_nobody_used_can_be_read_and_written(states: EndpointStates, name: str) -> None:
    assert states.read(name) == EndpointState()
    assert states.settle(name, Report("a", NOW, Health.FAILED)).failures == 1


def test_concurrent_workers_never_share_a_slot_or_pass_the_in_flight_limit(
    states: EndpointStates, name: str
) -> None:
    taken: list[int] = []

    def work(worker: int) -> None:
        guess = None
        for turn in range(8):
            wish = ask(f"{worker}-{turn}", wait=600, interval=SECOND, max_in_flight=64)
            booking = states.book(name, wish, guess)
            assert booking.slot is not None
            taken.append(booking.slot)
            guess = booking.state

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [NOW + i * SECOND for i in range(48)]
    refused = states.book(name, ask("full", wait=600, max_in_flight=48)).refused
    assert refused is not None
    assert refused.gate is RejectionReason.IN_FLIGHT


@pytest.mark.parametrize("seed", range(3))
def test_fake_and_table_agree_on_random_histories(
    seed: int, table: str, aws_client: ClientFactory, name: str
) -> None:
    rng = random.Random(seed)
    fake, real = InMemoryEndpointStates(), DynamoDBEndpointStates(aws_client("dynamodb"), table)
    now = NOW
    guess = None
    for step in range(120):
        now += rng.choice([0, 1000, SECOND, 20 * SECOND])
        lease = f"l{rng.randrange(step + 1)}"
        match rng.randrange(8):
            case 0 | 1 | 2 | 3:
                wish = ask(f"l{step}", now=now, wait=rng.choice([0, 5, 60]), max_in_flight=3)
                wish = replace(wish, limits=replace(wish.limits, per_day=40, tolerance=SECOND))
                wish = replace(wish, day=Day(5, NOW - 100 * SECOND, NOW + 90_000 * SECOND))
                one, two = fake.book(name, wish), real.book(name, wish, guess)
                assert (one.slot, one.probe, one.refused) == (two.slot, two.probe, two.refused)
                guess = two.state if rng.random() < 0.5 else guess
            case 4 | 5:
                sent = now - rng.choice([0, SECOND])
                probe = fake.read(name).tripped
                told = Report(lease, now, rng.choice(list(Health)), sent, probe, now + SECOND)
                fake.settle(name, told)
                real.settle(name, told)
            case 6:
                assert fake.trip(name, now + SECOND)[0] == real.trip(name, now + SECOND)[0]
            case _:
                gap = rng.randrange(5 * SECOND)
                fake.slow(name, gap, now, now - 1)
                real.slow(name, gap, now, now - 1)
                fake.pause(name, now + gap)
                real.pause(name, now + gap)
        assert _seen(fake, name, now) == _seen(real, name, now)


def _seen(states: EndpointStates, name: str, now: int) -> EndpointState:
    """The state but for what may differ: writes made, and dead leases not yet cleared away."""
    state = states.read(name)
    live = {lease: until for lease, until in state.leases.items() if until > now}
    return replace(state, rev=0, leases=live)


def test_a_table_that_is_missing_is_told_apart_from_a_refusal(aws_client: ClientFactory) -> None:
    states = DynamoDBEndpointStates(aws_client("dynamodb"), "no-such-table")
    with pytest.raises(StatesUnavailable, match="did not answer"):
        states.book("any", ask())


def test_one_round_trip_books_when_the_guess_is_right(
    aws_client: ClientFactory, table: str, name: str
) -> None:
    client = aws_client("dynamodb")
    calls: list[str] = []
    client.meta.events.register("before-call.dynamodb", lambda model, **_: calls.append(model.name))
    states = DynamoDBEndpointStates(client, table)
    state = states.book(name, ask()).state
    calls.clear()
    for turn in range(5):
        state = states.book(name, ask(str(turn)), state).state
    assert calls == ["UpdateItem"] * 5
    assert rate_limiter.learned_interval(state, NOW) == 0
