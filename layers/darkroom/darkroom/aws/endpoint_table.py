"""Endpoint state in DynamoDB: one item per endpoint, one round trip per update.

Conditions in DynamoDB have no max() and no arithmetic. So `rate_limiter.plan_reservation` chooses
the form of the update from the last known state, and the condition checks what that form assumes.
If it does not hold, the error carries the current state, and the form is chosen again.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import BotoCoreError, ClientError

from darkroom.aws.errors import CONDITION_FAILED, error_code
from darkroom.aws.items import ItemCodec, to_attribute
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
_STATES = ItemCodec(EndpointState)
_NEW_ITEM = {name: to_attribute(value) for name, value in asdict(EndpointState()).items()}


@dataclass(frozen=True)
class _Update:
    """An update expression. `#name` is the attribute of that name, or a map's key in `keys`."""

    sets: tuple[str, ...] = ("#revision = #revision + :one",)
    removes: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ("attribute_exists(#revision)",)
    keys: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(
        default_factory=lambda: {"zero": 0, "one": 1, "true": True, "false": False}
    )

    def set(self, *clauses: str, **values: Any) -> "_Update":
        return replace(self, sets=self.sets + clauses, values={**self.values, **values})

    def when(self, *conditions: str, **values: Any) -> "_Update":
        conditions = self.conditions + conditions
        return replace(self, conditions=conditions, values={**self.values, **values})

    def remove(self, *paths: str) -> "_Update":
        return replace(self, removes=self.removes + paths)

    def with_keys(self, **keys: str) -> "_Update":
        return replace(self, keys={**self.keys, **keys})

    def arguments(self) -> dict[str, Any]:
        update = "SET " + ", ".join(self.sets)
        if self.removes:
            update += " REMOVE " + ", ".join(self.removes)
        condition = " AND ".join(self.conditions)
        names = set(re.findall(r"#([a-z_0-9]+)", f"{update} {condition}"))
        values = set(re.findall(r":([a-z_0-9]+)", f"{update} {condition}"))
        return {
            "UpdateExpression": update,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {f"#{n}": self.keys.get(n, n) for n in names},
            "ExpressionAttributeValues": {f":{v}": to_attribute(self.values[v]) for v in values},
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
        return _STATES.from_item(response.get("Item", {}))

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
            done, state = self._apply(endpoint, _reservation(request, planned, state))
            if done:
                base = request.now if planned.idle else state.next_slot - planned.interval
                slot = max(request.now, base - planned.tolerance)
                return Reservation(state, slot=slot, probe=planned.probe)
            is_current = True
        raise StatesUnavailable(f"no slot at {endpoint}: too many workers reserved at once")

    def settle(self, endpoint: str, settlement: Settlement) -> EndpointState:
        update = _Update().with_keys(lease=settlement.lease).remove("#leases.#lease")
        match settlement.health:
            case Health.NOT_CALLED if settlement.probe:
                update = update.set("#breaker_until = :now", now=settlement.now)
            case Health.GOOD if settlement.probe:
                update = update.set("#breaker_open = :false", "#breaker_until = :zero")
                update = update.set("#opens = :zero", "#failures = :zero")
            case Health.GOOD:
                return self._settle_good(endpoint, update, settlement.sent_at)
            case Health.FAILED:
                return self._settle_failed(endpoint, update, settlement)
        return self._write(endpoint, update)

    def pause_until(self, endpoint: str, until: int) -> EndpointState:
        update = _Update().set("#next_slot = :until", "#paused_until = :until", until=until)
        return self._write(endpoint, update.when("#next_slot < :until"))

    def slow_down(self, endpoint: str, interval: int, now: int, unless_since: int) -> EndpointState:
        update = _Update().set("#slowed_interval = :interval", interval=interval)
        update = update.set("#slowed_at = :now", now=now)
        return self._write(endpoint, update.when("#slowed_at < :since", since=unless_since))

    def open_breaker(self, endpoint: str, until: int) -> tuple[bool, EndpointState]:
        update = _Update().set("#breaker_open = :true", "#breaker_until = :until", until=until)
        update = update.set("#opens = #opens + :one").when("#breaker_open = :false")
        return self._apply(endpoint, update)

    def suspend_until(self, endpoint: str, until: int) -> EndpointState:
        update = _Update().set("#breaker_open = :true", "#breaker_until = :until", until=until)
        return self._write(endpoint, update.when("#breaker_until < :until"))

    def cool_down_key(
        self, endpoint: str, fingerprint: str, cooldown: KeyCooldown
    ) -> EndpointState:
        update = _Update().with_keys(key=fingerprint)
        return self._write(
            endpoint, update.set("#key_cooldowns.#key = :cooldown", cooldown=asdict(cooldown))
        )

    def _settle_good(self, endpoint: str, update: _Update, sent_at: int) -> EndpointState:
        # Failures are rare, so the form for an endpoint without any is tried first.
        no_recovery = "(#failures <= :zero OR #failed_at >= :sent_at)"
        done, state = self._apply(endpoint, update.when(no_recovery, sent_at=sent_at))
        if done:
            return state
        return self._write(endpoint, update.set("#failures = #failures - :one"))

    def _settle_failed(
        self, endpoint: str, update: _Update, settlement: Settlement
    ) -> EndpointState:
        update = update.set("#failed_at = :now", now=settlement.now)
        if settlement.probe:
            update = update.set("#breaker_until = :until", until=settlement.reopen_until)
            update = update.set("#opens = #opens + :one")
        recent = settlement.now - circuit_breaker.FAILURES_EXPIRE_AFTER
        another = update.set("#failures = #failures + :one")
        done, state = self._apply(endpoint, another.when("#failed_at >= :recent", recent=recent))
        return state if done else self._write(endpoint, update.set("#failures = :one"))

    def _write(self, endpoint: str, update: _Update) -> EndpointState:
        """The current state, whether or not the condition held."""
        return self._apply(endpoint, update)[1]

    def _apply(self, endpoint: str, update: _Update) -> tuple[bool, EndpointState]:
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
                return True, _STATES.from_item(response["Attributes"])
            except self._client.exceptions.ConditionalCheckFailedException as failure:
                item = cast("dict[str, Any]", failure.response).get("Item", {})
                if "revision" in item:
                    return False, _STATES.from_item(item)
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


def _reservation(
    request: ReservationRequest, planned: ReservationUpdate, state: EndpointState
) -> _Update:
    """The form of the update that `planned` names, with the conditions it assumes."""
    limits, base = request.limits, ":now" if planned.idle else "#next_slot"
    update = _Update().set(f"#next_slot = {base} + :interval", interval=planned.interval)
    update = update.set("#calls = #calls + :one")
    update = update.when("#slowed_at = :slowed_at", slowed_at=state.slowed_at, now=request.now)
    if planned.idle:
        update = update.when("#next_slot <= :now")
    else:
        latest = request.latest_slot
        if request.day is not None:
            latest = min(latest, request.day.end - limits.margin)
        horizon = latest + planned.tolerance
        update = update.when("#next_slot > :now", "#next_slot <= :horizon", horizon=horizon)
    lease_end = f"{base} + :duration"
    if planned.probe:
        update = update.when("#breaker_open = :true", "#breaker_until <= :now")
        update = update.set(f"#breaker_until = {lease_end}", duration=request.lease_duration)
    else:
        update = update.when("#breaker_open = :false")
    if limits.max_in_flight:
        update = _with_lease(update, request, planned, lease_end)
    if request.day is None:
        return update
    day = max(state.day, request.day.number)
    if planned.new_day:
        return update.set("#day = :day", "#day_calls = :one", day=day).when("#day < :day")
    update = update.set("#day_calls = #day_calls + :one").when("#day = :day", day=day)
    return update.when("#day_calls < :per_day", per_day=limits.per_day)


def _with_lease(
    update: _Update, request: ReservationRequest, planned: ReservationUpdate, lease_end: str
) -> _Update:
    expired = {f"expired{i}": lease for i, lease in enumerate(planned.expired_leases)}
    update = update.with_keys(lease=request.lease, **expired)
    for key in expired:
        path = f"#leases.#{key}"
        update = update.remove(path).when(f"attribute_exists({path})")
    room = request.limits.max_in_flight + len(expired)
    update = update.when("size(#leases) < :room", room=room)
    return update.set(f"#leases.#lease = {lease_end}", duration=request.lease_duration)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raises StatesUnavailable for any error of AWS except a condition that did not hold."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        if isinstance(error, ClientError) and error_code(error) == CONDITION_FAILED:
            raise
        kind = type(error).__name__
        raise StatesUnavailable(f"the endpoints table did not answer ({kind})") from error
