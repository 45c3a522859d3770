"""Load by Darkroom: worker processes with the real dispatcher and the real DynamoDB adapter."""

import itertools
import json
import multiprocessing
import random
import threading
import time
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
from darkroom.endpoints import Endpoint, parse_endpoints
from darkroom.errors import DarkroomError, DeferRow
from darkroom.ports import SystemClock
from darkroom_local import ministack
from tests.fakes.dispatching import IMAGE, FakeCallContext, FakeSecretSource
from tests.fakes.services import FakeTelemetry

TABLE = "endpoints-bench"


@dataclass(frozen=True)
class Spec:
    name: str
    secret: str  # the endpoints as JSON
    dynamodb: str  # its URL
    processes: int
    threads: int
    folder: str  # of the logs


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
        return IMAGE


class DarkroomLoad:
    """Worker processes that dispatch row after row from `go` until `stop`."""

    def __init__(self, spec: Spec) -> None:
        context = multiprocessing.get_context("spawn")
        self._go = context.Event()
        self._ready = [context.Event() for _ in range(spec.processes)]
        self._processes = [
            context.Process(target=_process, args=(spec, number, ready, self._go), daemon=True)
            for number, ready in enumerate(self._ready)
        ]
        for process in self._processes:
            process.start()

    def wait_ready(self) -> None:
        for ready in self._ready:
            if not ready.wait(180):
                raise TimeoutError("a worker process did not start within 3 minutes")

    def go(self) -> None:
        self._go.set()

    def stop(self) -> None:
        for process in self._processes:
            process.kill()


def create_table(url: str) -> None:
    _client(url, 1).create_table(
        TableName=TABLE,
        KeySchema=[{"AttributeName": "endpoint", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "endpoint", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )


def _client(url: str, threads: int) -> Any:
    session = boto3.Session(
        ministack.ACCESS_KEY, ministack.SECRET_KEY, region_name=ministack.REGION
    )
    config = Config(max_pool_connections=threads + 2, retries={"mode": "standard"})
    return session.client("dynamodb", endpoint_url=url, config=config)


def _process(spec: Spec, number: int, ready: Event, go: Event) -> None:
    client = _client(spec.dynamodb, spec.threads)
    client.describe_table(TableName=TABLE)  # connect, and load the client's models
    dispatcher = TieredDispatcher(
        FakeSecretSource(parse_endpoints(spec.secret)),
        DynamoDBEndpointStates(client, TABLE),
        lambda _: Sender(),
        SystemClock(),
        random.Random(),
        FakeTelemetry(),
    )
    log = Path(spec.folder) / f"{spec.name}-{number}.jsonl"
    with log.open("w", buffering=1) as out:

        def log_request(model: Any, **_: Any) -> None:
            out.write(json.dumps({"at": time.time(), "request": model.name}) + "\n")

        client.meta.events.register("before-call.dynamodb", log_request)
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
        started = time.time()
        record: dict[str, Any] = {"started": started}
        delay = 0.0
        try:
            result = dispatcher.dispatch(FakeCallContext(), started + 900)
        except DeferRow as deferred:
            record["deferred"] = deferred.detail
            delay = deferred.delay_seconds
        except DarkroomError as error:
            record["error"] = str(error)
        else:
            record["seconds"] = time.time() - started
            record["wait"] = result.slot_wait_ms / 1000
            record["endpoint"] = result.endpoint.name
        out.write(json.dumps(record) + "\n")
        time.sleep(delay)
