"""Endpoint state in DynamoDB: one item per endpoint, one round trip per update.

Conditions in DynamoDB have no max() and no arithmetic. So `rate_limiter.plan_reservation` chooses
the form of the update from the last known state, and the condition checks what that form assumes.
If it does not hold, the error carries the current state, and the form is chosen again.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import BotoCoreError, ClientError

from darkroom.aws.errors import error_code
from darkroom.calls import Outcome
from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.endpoint_state import (
    EndpointState,
    Health,
    KeyCooldown,
    Rejection,
    Reservation,
    ReservationRequest,
    ReservationUpdate,
    Settlement,
    StatesUnavailable,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


MAX_TRIES = 25  # of one reservation, when other workers' updates come in between
_CONDITION_FAILED = "ConditionalCheckFailedException"
_NUMBERS = [field.name for field in fields(EndpointState) if field.type is int]
_NEW_ITEM: dict[str, Any] = {name: {"N": "0"} for name in (*_NUMBERS, "breaker_open")} | {
    "leases": {"M": {}},
    "key_cooldowns": {"M": {}},
}


class DynamoDBEndpointStates:
    """Implements ports.EndpointStates. Thread-safe; the client's pool should hold every thread."""

    def __init__(self, client: "DynamoDBClient", table: str) -> None:
        self._client = client
        self._table = table

    def read(self, endpoint: str) -> EndpointState:
        with _translated_errors():
            response = self._client.get_item(
                TableName=self._table, Key={"endpoint": {"S": endpoint}}, ConsistentRead=True
            )
        return _parse(response.get("Item", {})) or EndpointState()

    def reserve(
        self, endpoint: str, request: ReservationRequest, last_known: EndpointState | None = None
    ) -> Reservation:
        state = self.read(endpoint) if last_known is None else last_known
        is_current = last_known is None
        for _ in range(MAX_TRIES):
            planned = rate_limiter.plan_reservation(state, request)
            if isinstance(planned, Rejection):
                if is_current:
                    return Reservation(state, rejection=planned)
                state, is_current = self.read(endpoint), True
                continue
            update = _Update()
            _add_reservation(update, request, planned, state)
            done, state = self._apply(endpoint, update)
            if done:
                base = request.now if planned.idle else state.next_slot - planned.interval
                slot = max(request.now, base - planned.tolerance)
                return Reservation(state, slot=slot, probe=planned.probe)
            is_current = True
        raise StatesUnavailable(f"no slot at {endpoint}: too many workers reserved at once")

    def settle(self, endpoint: str, settlement: Settlement) -> EndpointState:
        update = _Update()
        update.remove(f"#leases.{update.name(settlement.lease)}")
        match settlement.health:
            case Health.NOT_CALLED:
                if settlement.probe:
                    update.set("#breaker_until = :now", now=settlement.now)
                return self._write(endpoint, update)
            case Health.GOOD if settlement.probe:
                update.set("#breaker_open = :zero, #breaker_until = :zero, #opens = :zero", zero=0)
                return self._write(endpoint, update.set("#failures = :zero"))
            case Health.GOOD:
                return self._settle_good(endpoint, update, settlement.sent_at)
            case Health.FAILED:
                if settlement.probe:
                    update.set("#breaker_until = :reopen", reopen=settlement.reopen_until)
                    update.set("#opens = #opens + :one")
                return self._settle_failed(endpoint, update, settlement.now)

    def pause_until(self, endpoint: str, until: int) -> EndpointState:
        update = _Update().set("#next_slot = :until, #paused_until = :until", until=until)
        return self._write(endpoint, update.when("#next_slot < :until"))

    def slow_down(self, endpoint: str, interval: int, now: int, unless_since: int) -> EndpointState:
        update = _Update().set("#slowed_interval = :interval", interval=interval)
        update.set("#slowed_at = :now", now=now)
        return self._write(endpoint, update.when("#slowed_at < :since", since=unless_since))

    def open_breaker(self, endpoint: str, until: int) -> tuple[bool, EndpointState]:
        update = _Update().set("#breaker_open = :one, #breaker_until = :until", until=until)
        update.set("#opens = #opens + :one").when("#breaker_open = :zero", zero=0)
        return self._apply(endpoint, update)

    def suspend_until(self, endpoint: str, until: int) -> EndpointState:
        update = _Update().set("#breaker_open = :one, #breaker_until = :until", until=until)
        return self._write(endpoint, update.when("#breaker_until < :until"))

    def cool_down_key(
        self, endpoint: str, fingerprint: str, cooldown: KeyCooldown
    ) -> EndpointState:
        update = _Update()
        until, reason = {"N": str(cooldown.until)}, {"S": cooldown.reason.value}
        update.values[":cooldown"] = {"M": {"until": until, "reason": reason}}
        update.set(f"#key_cooldowns.{update.name(fingerprint)} = :cooldown")
        return self._write(endpoint, update)

    def _settle_good(self, endpoint: str, update: "_Update", sent_at: int) -> EndpointState:
        # Failures are rare, so the form for an endpoint without any is tried first.
        no_recovery = "(#failures <= :zero OR #failed_at >= :sent)"
        done, state = self._apply(endpoint, update.copy().when(no_recovery, zero=0, sent=sent_at))
        if done:
            return state
        return self._write(endpoint, update.set("#failures = #failures - :one"))

    def _settle_failed(self, endpoint: str, update: "_Update", now: int) -> EndpointState:
        recent = now - circuit_breaker.FAILURES_EXPIRE_AFTER
        update.set("#failed_at = :failed_at", failed_at=now)
        another = update.copy().set("#failures = #failures + :one")
        done, state = self._apply(endpoint, another.when("#failed_at >= :recent", recent=recent))
        if done:
            return state
        return self._write(endpoint, update.set("#failures = :one"))

    def _write(self, endpoint: str, update: "_Update") -> EndpointState:
        """The current state, whether or not the condition held."""
        return self._apply(endpoint, update)[1]

    def _apply(self, endpoint: str, update: "_Update") -> tuple[bool, EndpointState]:
        """(whether the condition held, the current state). Creates the item if there is none."""
        for _ in range(2):
            try:
                with _translated_errors():
                    response = self._client.update_item(
                        TableName=self._table,
                        Key={"endpoint": {"S": endpoint}},
                        ReturnValues="ALL_NEW",
                        ReturnValuesOnConditionCheckFailure="ALL_OLD",
                        **update.arguments(),
                    )
                return True, _parse(response["Attributes"]) or EndpointState()
            except self._client.exceptions.ConditionalCheckFailedException as failure:
                item = cast("dict[str, Any]", failure.response).get("Item", {})
                state = _parse(item)
                if state is not None:
                    return False, state
                self._create(endpoint)
        return False, EndpointState()

    def _create(self, endpoint: str) -> None:
        """Replaces an item of an earlier version, whose attributes had other names."""
        try:
            with _translated_errors():
                self._client.put_item(
                    TableName=self._table,
                    Item={"endpoint": {"S": endpoint}, **_NEW_ITEM},
                    ConditionExpression="attribute_not_exists(revision)",
                )
        except self._client.exceptions.ConditionalCheckFailedException:
            pass  # another worker was first


class _Update:
    """An update expression under construction. `#name` stands for the attribute of that name."""

    def __init__(self) -> None:
        self.sets: list[str] = ["#revision = #revision + :one"]
        self.removes: list[str] = []
        self.conditions: list[str] = ["attribute_exists(#revision)"]
        self.values: dict[str, Any] = {":one": {"N": "1"}}
        self.names: dict[str, str] = {}

    def copy(self) -> "_Update":
        copy = _Update()
        copy.sets, copy.removes = list(self.sets), list(self.removes)
        copy.conditions = list(self.conditions)
        copy.values, copy.names = dict(self.values), dict(self.names)
        return copy

    def name(self, key: str) -> str:
        """A placeholder for a map's key, which may contain any character."""
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
        names = set(re.findall(r"#[a-z_0-9]+", f"{update} {condition}"))
        used = set(re.findall(r":[a-z_0-9]+", f"{update} {condition}"))
        return {
            "UpdateExpression": update,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {n: self.names.get(n, n[1:]) for n in names},
            "ExpressionAttributeValues": {k: v for k, v in self.values.items() if k in used},
        }

    def _with(self, numbers: Mapping[str, int]) -> "_Update":
        self.values |= {f":{name}": {"N": str(value)} for name, value in numbers.items()}
        return self


def _add_reservation(
    update: _Update, request: ReservationRequest, planned: ReservationUpdate, state: EndpointState
) -> None:
    """Add the form of the update that `planned` names, and the conditions it assumes."""
    base = ":now" if planned.idle else "#next_slot"
    update.set(f"#next_slot = {base} + :interval", interval=planned.interval)
    update.set("#calls = #calls + :one")
    update.when("#slowed_at = :slowed_at", now=request.now, slowed_at=state.slowed_at)
    if planned.idle:
        update.when("#next_slot <= :now")
    else:
        latest = request.latest_slot
        if request.day is not None:
            latest = min(latest, request.day.end - request.limits.margin)
        horizon = latest + planned.tolerance
        update.when("#next_slot > :now AND #next_slot <= :horizon", horizon=horizon)
    if planned.probe:
        update.when("#breaker_open = :one AND #breaker_until <= :now")
        update.set(f"#breaker_until = {base} + :duration", duration=request.lease_duration)
    else:
        update.when("#breaker_open = :zero", zero=0)
    if request.limits.max_in_flight:
        _add_lease(update, request, planned, base)
    if request.day is not None:
        day = max(state.day, request.day.number)
        if planned.new_day:
            update.set("#day = :day, #day_calls = :one", day=day).when("#day < :day")
        else:
            update.set("#day_calls = #day_calls + :one").when("#day = :day", day=day)
            update.when("#day_calls < :per_day", per_day=request.limits.per_day)


def _add_lease(
    update: _Update, request: ReservationRequest, planned: ReservationUpdate, base: str
) -> None:
    for lease in planned.expired_leases:
        expired = f"#leases.{update.name(lease)}"
        update.remove(expired).when(f"attribute_exists({expired})")
    room = request.limits.max_in_flight + len(planned.expired_leases)
    update.when("size(#leases) < :room", room=room)
    update.set(
        f"#leases.{update.name(request.lease)} = {base} + :duration",
        duration=request.lease_duration,
    )


def _parse(item: Mapping[str, Any]) -> EndpointState | None:
    """None for a missing item, and for one of an earlier version."""
    if "revision" not in item:
        return None
    numbers = {name: int(item[name]["N"]) for name in _NUMBERS}
    cooldowns = {
        fingerprint: KeyCooldown(int(value["M"]["until"]["N"]), Outcome(value["M"]["reason"]["S"]))
        for fingerprint, value in item["key_cooldowns"]["M"].items()
    }
    return EndpointState(
        **numbers,
        breaker_open=item["breaker_open"]["N"] != "0",
        leases={lease: int(value["N"]) for lease, value in item["leases"]["M"].items()},
        key_cooldowns=cooldowns,
    )


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raises StatesUnavailable for any error of AWS but a condition that did not hold."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        if isinstance(error, ClientError) and error_code(error) == _CONDITION_FAILED:
            raise
        kind = type(error).__name__
        raise StatesUnavailable(f"the endpoints table did not answer ({kind})") from error
