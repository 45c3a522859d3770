"""Endpoint state in DynamoDB: one item per endpoint, one round trip per update.

Conditions in DynamoDB have no max() and no arithmetic, so `rate_limiter.decide` picks the form of
update from the last state seen, and the condition says what that form takes for granted. When it
does not hold, the refusal carries the true state, and the choice is made again.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import BotoCoreError, ClientError

from darkroom.calls import Outcome
from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.endpoint_state import (
    EndpointState,
    Health,
    KeyCooldown,
    Rejection,
    Report,
    Reservation,
    ReservationRequest,
    ReservationUpdate,
    StatesUnavailable,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


TRIES = 25  # of one booking, against other workers' updates in between
_NUMBERS = [field.name for field in fields(EndpointState) if field.type is int]
_NEW_ITEM: dict[str, Any] = {name: {"N": "0"} for name in (*_NUMBERS, "tripped")} | {
    "leases": {"M": {}},
    "keys": {"M": {}},
}


class DynamoDBEndpointStates:
    """Implements ports.EndpointStates. Thread-safe; the client's pool should hold every thread."""

    def __init__(self, client: "DynamoDBClient", table: str) -> None:
        self._client = client
        self._table = table

    def read(self, endpoint: str) -> EndpointState:
        try:
            answer = self._client.get_item(
                TableName=self._table, Key={"endpoint": {"S": endpoint}}, ConsistentRead=True
            )
        except (BotoCoreError, ClientError) as error:
            raise _unavailable(error) from error
        return _parse(answer["Item"]) if "Item" in answer else EndpointState()

    def book(
        self, endpoint: str, ask: ReservationRequest, guess: EndpointState | None = None
    ) -> Reservation:
        state, known = (guess, False) if guess is not None else (self.read(endpoint), True)
        for _ in range(TRIES):
            move = rate_limiter.decide(state, ask)
            if isinstance(move, Rejection):
                if known:
                    return Reservation(state, refused=move)
                state, known = self.read(endpoint), True
                continue
            update = _Update()
            _put_move(update, ask, move, state)
            done, state = self._apply(endpoint, update)
            if done:
                base = ask.now if move.idle else state.next - move.interval
                slot = max(ask.now, base - move.tolerance)
                return Reservation(state, slot=slot, probe=move.probe)
            known = True
        raise StatesUnavailable(f"no slot at {endpoint} could be booked: too many workers at once")

    def settle(self, endpoint: str, report: Report) -> EndpointState:
        update = _Update()
        update.remove(f"#leases.{update.name(report.lease)}")
        if report.health is Health.UNTOLD:
            if report.probe:
                update.set("#breaker_until = :now", now=report.now)
            return self._write(endpoint, update)
        if report.health is Health.GOOD:
            if report.probe:
                update.set("#tripped = :zero, #breaker_until = :zero, #opens = :zero", zero=0)
                update.set("#failures = :zero")
                return self._write(endpoint, update)
            return self._settle_good(endpoint, update, report.sent_at)
        if report.probe:
            update.set("#breaker_until = :reopen", reopen=report.reopen_until)
            update.set("#opens = #opens + :one")
        return self._settle_failed(endpoint, update, report.now)

    def pause(self, endpoint: str, until: int) -> EndpointState:
        update = _Update().set("#next = :until, #paused_until = :until", until=until)
        return self._write(endpoint, update.when("#next < :until"))

    def slow(self, endpoint: str, gap: int, now: int, before: int) -> EndpointState:
        update = _Update().set("#gap = :gap, #slowed_at = :now", gap=gap, now=now)
        return self._write(endpoint, update.when("#slowed_at < :before", before=before))

    def trip(self, endpoint: str, until: int) -> tuple[bool, EndpointState]:
        update = _Update().set("#tripped = :one, #breaker_until = :until", until=until)
        update.set("#opens = #opens + :one").when("#tripped = :zero", zero=0)
        return self._apply(endpoint, update)

    def rest(self, endpoint: str, until: int) -> EndpointState:
        update = _Update().set("#tripped = :one, #breaker_until = :until", until=until)
        return self._write(endpoint, update.when("#breaker_until < :until"))

    def rest_key(self, endpoint: str, fingerprint: str, rest: KeyCooldown) -> EndpointState:
        update = _Update()
        value = {"M": {"until": {"N": str(rest.until)}, "why": {"S": rest.why.value}}}
        update.values[":rest"] = value
        update.set(f"#keys.{update.name(fingerprint)} = :rest")
        return self._write(endpoint, update)

    def _settle_good(self, endpoint: str, update: "_Update", sent_at: int) -> EndpointState:
        # Failures are rare, so the form without any comes first.
        older = "(#failures <= :zero OR #failed_at >= :sent)"
        healthy = update.copy().when(older, zero=0, sent=sent_at)
        done, state = self._apply(endpoint, healthy)
        if done:
            return state
        return self._write(endpoint, update.set("#failures = #failures - :one"))

    def _settle_failed(self, endpoint: str, update: "_Update", now: int) -> EndpointState:
        recent = now - circuit_breaker.FORGET_AFTER
        update.set("#failed_at = :failed_at", failed_at=now)
        again = update.copy().set("#failures = #failures + :one")
        done, state = self._apply(endpoint, again.when("#failed_at >= :recent", recent=recent))
        if done:
            return state
        return self._write(endpoint, update.set("#failures = :one"))

    def _write(self, endpoint: str, update: "_Update") -> EndpointState:
        """The newest state, whether or not the condition held."""
        return self._apply(endpoint, update)[1]

    def _apply(self, endpoint: str, update: "_Update") -> tuple[bool, EndpointState]:
        """(whether the condition held, the newest state). Makes the item if there is none."""
        key = {"endpoint": {"S": endpoint}}
        for _ in range(2):
            try:
                answer = self._client.update_item(
                    TableName=self._table,
                    Key=key,
                    ReturnValues="ALL_NEW",
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                    **update.arguments(),
                )
                return True, _parse(answer["Attributes"])
            except self._client.exceptions.ConditionalCheckFailedException as refusal:
                response = cast("dict[str, Any]", refusal.response)
                if "Item" in response:
                    return False, _parse(response["Item"])
                self._seed(endpoint)
            except (BotoCoreError, ClientError) as error:
                raise _unavailable(error) from error
        return False, EndpointState()

    def _seed(self, endpoint: str) -> None:
        try:
            self._client.put_item(
                TableName=self._table,
                Item={"endpoint": {"S": endpoint}, **_NEW_ITEM},
                ConditionExpression="attribute_not_exists(endpoint)",
            )
        except self._client.exceptions.ConditionalCheckFailedException:
            pass  # another worker was first
        except (BotoCoreError, ClientError) as error:
            raise _unavailable(error) from error


class _Update:
    """An update expression under construction. `#words` stand for attributes of that name."""

    def __init__(self) -> None:
        self.sets: list[str] = ["#rev = #rev + :one"]
        self.removes: list[str] = []
        self.conditions: list[str] = ["attribute_exists(#rev)"]
        self.values: dict[str, Any] = {":one": {"N": "1"}}
        self.names: dict[str, str] = {}

    def copy(self) -> "_Update":
        twin = _Update()
        twin.sets, twin.removes = list(self.sets), list(self.removes)
        twin.conditions = list(self.conditions)
        twin.values, twin.names = dict(self.values), dict(self.names)
        return twin

    def name(self, key: str) -> str:
        """A placeholder for a map's key, which may hold any character."""
        placeholder = f"#k{len(self.names)}"
        self.names[placeholder] = key
        return placeholder

    def set(self, clause: str, **numbers: int) -> "_Update":
        self.sets.append(clause)
        return self._with(numbers)

    def remove(self, path: str) -> "_Update":
        self.removes.append(path)
        return self

    def when(self, condition: str, **numbers: int) -> "_Update":
        self.conditions.append(condition)
        return self._with(numbers)

    def arguments(self) -> dict[str, Any]:
        update = "SET " + ", ".join(self.sets)
        if self.removes:
            update += " REMOVE " + ", ".join(self.removes)
        condition = " AND ".join(self.conditions)
        text = f"{update} {condition}"
        words = set(re.findall(r"#[a-z_0-9]+", text))
        used = set(re.findall(r":[a-z_0-9]+", text))
        return {
            "UpdateExpression": update,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {w: self.names.get(w, w[1:]) for w in words},
            "ExpressionAttributeValues": {k: v for k, v in self.values.items() if k in used},
        }

    def _with(self, numbers: Mapping[str, int]) -> "_Update":
        self.values |= {f":{name}": {"N": str(value)} for name, value in numbers.items()}
        return self


def _put_move(
    update: _Update, ask: ReservationRequest, move: ReservationUpdate, state: EndpointState
) -> None:
    """The form of the booking update that `move` names, and what it takes for granted."""
    base = ":now" if move.idle else "#next"
    update.set(f"#next = {base} + :interval, #calls = #calls + :one", interval=move.interval)
    update.when("#slowed_at = :slowed_at", now=ask.now, slowed_at=state.slowed_at)
    if move.idle:
        update.when("#next <= :now")
    else:
        latest = ask.latest if ask.day is None else min(ask.latest, ask.day.end - ask.limits.margin)
        update.when("#next > :now AND #next <= :horizon", horizon=latest + move.tolerance)
    if move.probe:
        update.when("#tripped = :one AND #breaker_until <= :now")
        update.set(f"#breaker_until = {base} + :hold", hold=ask.hold)
    else:
        update.when("#tripped = :zero", zero=0)
    if ask.limits.max_in_flight:
        _put_lease(update, ask, move, base)
    if ask.day is not None:
        day = max(state.day, ask.day.number)
        if move.new_day:
            update.set("#day = :day, #day_calls = :one", day=day).when("#day < :day")
        else:
            update.set("#day_calls = #day_calls + :one").when("#day = :day", day=day)
            update.when("#day_calls < :per_day", per_day=ask.limits.per_day)


def _put_lease(
    update: _Update, ask: ReservationRequest, move: ReservationUpdate, base: str
) -> None:
    for lease in move.expired:
        dead = f"#leases.{update.name(lease)}"
        update.remove(dead).when(f"attribute_exists({dead})")
    room = ask.limits.max_in_flight + len(move.expired)
    update.when("size(#leases) < :room", room=room)
    update.set(f"#leases.{update.name(ask.lease)} = {base} + :hold", hold=ask.hold)


def _parse(item: Mapping[str, Any]) -> EndpointState:
    numbers = {name: int(item[name]["N"]) for name in _NUMBERS}
    keys = {
        fingerprint: KeyCooldown(int(value["M"]["until"]["N"]), Outcome(value["M"]["why"]["S"]))
        for fingerprint, value in item["keys"]["M"].items()
    }
    leases = {lease: int(value["N"]) for lease, value in item["leases"]["M"].items()}
    return EndpointState(**numbers, tripped=item["tripped"]["N"] != "0", leases=leases, keys=keys)


def _unavailable(error: Exception) -> StatesUnavailable:
    return StatesUnavailable(f"the endpoints table did not answer ({type(error).__name__})")
