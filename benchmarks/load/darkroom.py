"""Load by Darkroom: the real dispatcher and the real DynamoDB adapter. Logs DynamoDB requests."""

import random
import time
from typing import Any

from botocore.config import Config
from pydantic import SecretStr

from benchmarks.load.driver import Load, Log, Row, drive, send
from darkroom.aws.endpoint_table import DynamoDBEndpointStates
from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.dispatch.dispatcher import TieredDispatcher
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.errors import DeferRow
from darkroom.ports import SystemClock
from darkroom_local import ministack
from tests.fakes.dispatching import IMAGE, FakeCallContext, FakeSecretSource
from tests.fakes.services import FakeTelemetry

TABLE = "endpoints-bench"
DEADLINE_SECONDS = 900.0


class HttpEditor:
    """Implements ports.ImageEditor over the wire format of OpenAI."""

    def edit(
        self,
        plan: CallPlan,  # noqa: ARG002 - the port's signature
        endpoint: Endpoint,
        key: SecretStr,
        timeout_seconds: float,
    ) -> EditResult:
        try:
            status, retry_after = send(
                endpoint.base_url or "", key.get_secret_value(), timeout_seconds
            )
        except OSError as error:
            raise CallFailed(Outcome.UNAVAILABLE, str(error)) from error
        if status == 429:
            raise CallFailed(Outcome.RATE_LIMITED, "429", retry_after_seconds=retry_after)
        if status != 200:
            raise CallFailed(Outcome.UNAVAILABLE, str(status))
        return IMAGE


def dynamodb(url: str, threads: int) -> Any:
    config = Config(max_pool_connections=threads + 2, retries={"mode": "standard"})
    return ministack.session().client("dynamodb", endpoint_url=url, config=config)


def make_row(load: Load, log: Log) -> Row:
    client = dynamodb(load["dynamodb_url"], load["threads"])
    client.describe_table(TableName=TABLE)  # connect, and load the client's models
    dispatcher = TieredDispatcher(
        FakeSecretSource(EndpointsSecret.model_validate({"endpoints": load["endpoints"]})),
        DynamoDBEndpointStates(client, TABLE),
        lambda _: HttpEditor(),
        SystemClock(),
        random.Random(),
        FakeTelemetry(),
    )

    def log_request(model: Any, **_: Any) -> None:
        log({"at": time.time(), "request": model.name})

    client.meta.events.register("before-call.dynamodb", log_request)

    def row() -> dict[str, Any] | None:
        try:
            result = dispatcher.dispatch(FakeCallContext(), time.time() + DEADLINE_SECONDS)
        except DeferRow as deferred:
            time.sleep(deferred.delay_seconds)
            return None
        return {"wait": result.slot_wait_ms / 1000, "endpoint": result.endpoint.name}

    return row


if __name__ == "__main__":
    drive(make_row)
