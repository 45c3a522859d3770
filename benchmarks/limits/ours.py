"""Load by Darkroom: worker processes with the real dispatcher and the real DynamoDB adapter."""

import itertools
import json
import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from pydantic import SecretStr

from benchmarks.limits.sender import send
from darkroom.aws.endpoint_table import DynamoDBEndpointStates
from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.dispatch.dispatcher import TieredDispatcher
from darkroom.endpoints import Endpoint, EndpointsSecret, parse_endpoints
from darkroom.errors import DarkroomError, DeferRow
from darkroom.metrics import Metric
from darkroom.ports import SystemClock
from darkroom_local import ministack

TABLE = "endpoints-bench"
PICTURE = EditResult(images=(b"",), model="m")


@dataclass(frozen=True)
class Spec:
    """One load: what every process of it is told."""

    name: str
    secret: str  # the endpoints as JSON
    dynamodb: str
    processes: int
    threads: int
    folder: str


class Sender:
    """Implements ports.ImageEditor over the wire format of OpenAI."""

    def edit(
        self,
        plan: CallPlan,  # noqa: ARG002 - the port's signature
        endpoint: Endpoint,
        key: SecretStr,
        timeout_seconds: float,
    ) -> EditResult:
        try:
            status, wait = send(endpoint.base_url or "", key.get_secret_value(), timeout_seconds)
        except OSError as error:
            raise CallFailed(Outcome.UNAVAILABLE, str(error)) from error
        if status == 429:
            raise CallFailed(Outcome.RATE_LIMITED, "429", retry_after_seconds=wait)
        if status != 200:
            raise CallFailed(Outcome.UNAVAILABLE, str(status))
        return PICTURE


class Fixed:
    """Implements ports.SecretSource."""

    def __init__(self, text: str) -> None:
        self._secret = parse_endpoints(text)

    def endpoints(self) -> EndpointsSecret:
        return self._secret

    def refresh(self) -> None: ...


class Quiet:
    """Implements what the dispatcher uses of ports.Telemetry."""

    def metric(self, metric: Metric, value: float = 1, **_: Any) -> None: ...

    def info(self, event: str, **_: object) -> None: ...

    warning = error = exception = info


class Row:
    """Implements CallContext."""

    def plan(self, endpoint: Endpoint) -> CallPlan:
        return CallPlan(endpoint.provider, endpoint.model, "make it red")

    def before_call(self, endpoint: Endpoint, plan: CallPlan) -> None: ...

    def after_call(
        self, endpoint: Endpoint, plan: CallPlan, outcome: EditResult | CallFailed
    ) -> None: ...


def table_client(url: str, threads: int) -> Any:
    session = boto3.Session(
        ministack.ACCESS_KEY, ministack.SECRET_KEY, region_name=ministack.REGION
    )
    config = Config(max_pool_connections=threads + 2, retries={"mode": "standard"})
    return session.client("dynamodb", endpoint_url=url, config=config)


def make_table(url: str) -> None:
    table_client(url, 1).create_table(
        TableName=TABLE,
        KeySchema=[{"AttributeName": "endpoint", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "endpoint", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )


def start(spec: Spec) -> tuple[list[Any], Callable[[], None], Callable[[], None]]:
    """(processes, wait until all are ready, let them go)."""
    context = multiprocessing.get_context("spawn")
    go = context.Event()
    readies = [context.Event() for _ in range(spec.processes)]
    processes = [
        context.Process(target=_process, args=(spec, number, ready, go), daemon=True)
        for number, ready in enumerate(readies)
    ]
    for process in processes:
        process.start()

    def wait_ready() -> None:
        for ready in readies:
            if not ready.wait(180):
                raise TimeoutError("a worker process did not start within 3 minutes")

    return processes, wait_ready, go.set


def _process(spec: Spec, number: int, ready: Event, go: Event) -> None:
    client = table_client(spec.dynamodb, spec.threads)
    client.describe_table(TableName=TABLE)  # connect, and load the client's models
    dispatcher = TieredDispatcher(
        Fixed(spec.secret),
        DynamoDBEndpointStates(client, TABLE),
        lambda _: Sender(),
        SystemClock(),
        random.Random(),
        Quiet(),  # type: ignore[arg-type]
    )
    log = Path(spec.folder) / f"{spec.name}-{number}.jsonl"
    with log.open("w", buffering=1) as out:

        def count(model: Any, **_: Any) -> None:
            out.write(json.dumps({"at": time.time(), "request": model.name}) + "\n")

        client.meta.events.register("before-call.dynamodb", count)
        ready.set()
        go.wait()
        threads = [
            threading.Thread(target=_thread, args=(dispatcher, out), daemon=True)
            for _ in range(spec.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _thread(dispatcher: TieredDispatcher, out: Any) -> None:
    for _ in itertools.count():
        begun = time.time()
        try:
            delivery = dispatcher.dispatch(Row(), begun + 900)
        except DeferRow as deferred:
            out.write(json.dumps({"begun": begun, "deferred": deferred.detail}) + "\n")
            time.sleep(deferred.delay_seconds)
            continue
        except DarkroomError as error:
            out.write(json.dumps({"begun": begun, "error": str(error)}) + "\n")
            continue
        line = {
            "begun": begun,
            "took": time.time() - begun,
            "wait": delivery.slot_wait_ms / 1000,
            "endpoint": delivery.endpoint.name,
        }
        out.write(json.dumps(line) + "\n")
