"""Endpoint state in DynamoDB: one item per endpoint.

The two frequent writes, a reservation and its settlement, are one round trip each. Conditions in
DynamoDB have no max() and no arithmetic. So `rate_limiter.plan_reservation` chooses the form of the
update from the last known state, and the condition checks what that form assumes. If it does not
hold, the error carries the current state, and the form is chosen again.
The rare writes replace the item, on condition that its revision is the one that was read.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import BotoCoreError, ClientError

from darkroom.aws.errors import CONDITION_FAILED, error_code
from darkroom.aws.items import ItemCodec, to_attribute
from darkroom.dispatch import circuit_breaker, rate_limiter
from darkroom.endpoint_state import (
    EndpointState,
    GoodAnswers,
    Rejection,
    Reservation,
    ReservationRequest,
    StatesUnavailable,
)
from darkroom.retry import backoff

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

MAX_TRIES = 25  # of one write, when other workers' writes come in between
MAX_EXPIRED_LEASES = 8  # of dead workers, that a reservation removes on the way
_PAUSE_SECONDS = 0.01
_PAUSE_CAP_SECONDS = 0.5
_STATES = ItemCodec(EndpointState)


@dataclass
class _Update:
    """An update expression. `#name` is the attribute of that name, or a lease in `leases`."""

    values: dict[str, Any]  # those that no clause uses are left out
    leases: dict[str, str]
    sets: list[str] = field(default_factory=list)
    removes: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        update = "SET " + ", ".join(["#revision = #revision + :one", *self.sets])
        if self.removes:
            update += " REMOVE " + ", ".join(self.removes)
        condition = " AND ".join(["attribute_exists(#revision)", *self.conditions])
        names = set(re.findall(r"#([a-z_0-9]+)", f"{update} {condition}"))
        used = set(re.findall(r":([a-z_0-9]+)", f"{update} {condition}"))
        values = self.values | {"zero": 0, "one": 1}
        return {
            "UpdateExpression": update,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {f"#{n}": self.leases.get(n, n) for n in names},
            "ExpressionAttributeValues": {f":{v}": to_attribute(values[v]) for v in used},
        }


class DynamoDBEndpointStates:
    """Implements ports.EndpointStates. Thread-safe; the client's pool should hold every thread."""

    def __init__(
        self,
        client: "DynamoDBClient",
        table: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._table = table
        self._sleep = sleep

    def read(self, endpoint: str) -> EndpointState:
        with _translated_errors():
            response = self._client.get_item(
                TableName=self._table, Key={"endpoint": {"S": endpoint}}, ConsistentRead=True
            )
        return _STATES.from_item(response.get("Item", {}))

    def reserve(
        self, endpoint: str, request: ReservationRequest, last_known: EndpointState | None = None
    ) -> tuple[Reservation | Rejection, EndpointState]:
        state = self.read(endpoint) if last_known is None else last_known
        for _ in range(MAX_TRIES):
            planned = rate_limiter.plan_reservation(state, request)
            if isinstance(planned, Rejection):
                is_current = state is not last_known
                return (planned, state) if is_current else self.reserve(endpoint, request)
            if len(planned.expired_leases) > MAX_EXPIRED_LEASES:
                drop = partial(circuit_breaker.without_expired_leases, now=request.now)
                state = self.report(endpoint, drop)[1]
                continue
            done, state = self._apply(endpoint, _reservation(request, planned, state))
            if done:
                slot = state.next_slot - planned.interval - planned.tolerance
                return replace(planned, slot=max(planned.earliest, slot)), state
        raise StatesUnavailable(f"no slot at {endpoint}: too many workers reserved at once")

    def settle(
        self, endpoint: str, lease: str, counted_as: GoodAnswers | None = None
    ) -> EndpointState:
        update = _Update({}, {"lease": lease}, removes=["#leases.#lease"])
        if counted_as:  # an item of an earlier version may lack it
            counter = f"#{counted_as}"
            update.sets.append(f"{counter} = if_not_exists({counter}, :zero) + :one")
        return self._apply(endpoint, update)[1]

    def report(
        self, endpoint: str, transition: Callable[[EndpointState], EndpointState]
    ) -> tuple[EndpointState, EndpointState]:
        for tries in range(1, MAX_TRIES + 1):
            before = self.read(endpoint)
            after = transition(before)
            if after == before:
                return before, before
            after = replace(after, revision=before.revision + 1)
            if self._put(endpoint, after):
                return before, after
            # Full jitter: an outage makes every worker write at once.
            longest = backoff(tries, _PAUSE_SECONDS, _PAUSE_CAP_SECONDS)
            self._sleep(random.uniform(0, longest))  # noqa: S311 - jitter
        raise StatesUnavailable(f"{endpoint} not changed: too many workers wrote at once")

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
                state = _STATES.from_item(item)
                if "epoch" in item:
                    return False, state
                # There is no item, or an earlier version of Darkroom wrote it.
                self._put(endpoint, replace(state, revision=state.revision + 1))
        return False, EndpointState()

    def _put(self, endpoint: str, state: EndpointState) -> bool:
        """Write the revision after the stored one; False when another worker was first."""
        fields = {name: to_attribute(value) for name, value in asdict(state).items()}
        try:
            with _translated_errors():
                self._client.put_item(
                    TableName=self._table,
                    Item={"endpoint": {"S": endpoint}, **fields},
                    ConditionExpression="attribute_not_exists(endpoint) OR revision = :previous",
                    ExpressionAttributeValues={":previous": to_attribute(state.revision - 1)},
                )
        except self._client.exceptions.ConditionalCheckFailedException:
            return False
        return True


def _reservation(
    request: ReservationRequest, planned: Reservation, state: EndpointState
) -> _Update:
    """The form of the update that `planned` names, with the conditions it assumes."""
    limits, base = request.limits, ":earliest" if planned.idle else "#next_slot"
    values = {
        "earliest": planned.earliest,
        "free_at": planned.earliest - planned.extra,
        "now": request.now,
        "duration": request.lease_duration,
        "interval": planned.interval,
        "step": planned.interval + (0 if planned.idle else planned.extra),
        "horizon": planned.horizon,
        "last_interval": state.last_interval,
        "epoch": planned.epoch,
        "probe": planned.probe,
        "room": limits.max_in_flight + len(planned.expired_leases),
        "per_day": limits.per_day,
        "lease": request.lease,
    }
    update = _Update(values, {"lease": request.lease})
    update.sets += [
        f"#next_slot = {base} + :step",
        "#last_interval = :interval",
        "#calls = #calls + :one",
    ]
    same = "=" if planned.extra else ">="  # without extra: this one takes no more than the last
    values["last_interval"] = state.last_interval if planned.extra else planned.interval
    update.conditions += [
        "#epoch = :epoch",
        "#breaker_open = :probe",
        f"#last_interval {same} :last_interval",
    ]
    if planned.idle:
        update.conditions.append("#next_slot <= :free_at")
    else:
        update.conditions += ["#next_slot > :free_at", "#next_slot <= :horizon"]
    if planned.probe:
        update.conditions.append("#breaker_until <= :now")
        update.sets += [f"#breaker_until = {base} + :duration", "#probe = :lease"]
    if limits.max_in_flight:
        update.sets.append(f"#leases.#lease = {base} + :duration")
        update.conditions.append("size(#leases) < :room")
        for number, lease in enumerate(planned.expired_leases):
            update.leases[f"expired{number}"] = lease
            update.removes.append(f"#leases.#expired{number}")
            update.conditions.append(f"attribute_exists(#leases.#expired{number})")
    if request.day is not None:
        values["day"] = max(state.day, request.day.number)
        if planned.new_day:
            update.sets += ["#day = :day", "#day_calls = :one"]
            update.conditions.append("#day < :day")
        else:
            update.sets.append("#day_calls = #day_calls + :one")
            update.conditions += ["#day = :day", "#day_calls < :per_day"]
    return update


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
