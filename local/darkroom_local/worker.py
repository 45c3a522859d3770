"""The editor outside of Lambda: a process that polls the queue as Lambda's poller does.

For fault tests, which kill many of these: it starts in a fraction of a function's time, and its
leases are short, so that a crash is repaired in seconds. The editor's own code and adapters are the
real ones; what stands for Lambda is here, in `poll`: it receives a batch, calls the editor, and
deletes whatever the editor does not want to keep. Lambda's own calls go past the faulting proxy.
"""

import pkgutil
import random
import time
import uuid
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

from darkroom.aws.endpoint_table import DynamoDBEndpointStates
from darkroom.aws.ledger_table import LedgerTable
from darkroom.aws.s3 import S3ObjectStore
from darkroom.aws.secrets import SecretsManagerSource
from darkroom.aws.sqs import SqsRowQueue
from darkroom.aws.telemetry import PowertoolsTelemetry
from darkroom.dispatch.dispatcher import Dispatcher
from darkroom.editor.batch import Completion, EditorBatch, Received
from darkroom.editor.heartbeat import Heartbeat, Timings
from darkroom.editor.image_storage import ImageStorage
from darkroom.editor.row_editor import RowEditor
from darkroom.fetcher import SafeImageFetcher
from darkroom.ports import ImageEditor, SystemClock
from darkroom.providers.registry import PROVIDERS, Provider
from darkroom.settings import Settings
from darkroom_local import ministack

RETRIES = Config(
    retries={"mode": "standard", "total_max_attempts": 5},
    connect_timeout=5,
    read_timeout=30,
    max_pool_connections=32,
    s3={"addressing_style": "path"},
)


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """`url` is what the editor takes for AWS, `poller_url` what its Lambda would be."""

    url: str
    poller_url: str
    settings: Settings
    timings: Timings
    invocation_seconds: float = 900.0  # the function's time-out
    idle_seconds: float = 1.0  # one long poll


def client(service: str, url: str) -> Any:
    return boto3.client(  # type: ignore[call-overload]
        service,
        endpoint_url=url,
        region_name=ministack.REGION,
        aws_access_key_id=ministack.ACCESS_KEY,
        aws_secret_access_key=ministack.SECRET_KEY,
        config=RETRIES,
    )


def run(config: WorkerConfig) -> None:
    """Poll for ever; the process is ended from outside, at any moment."""
    telemetry = PowertoolsTelemetry(config.settings.stack_name, "worker")
    batch = editor(config, telemetry)
    sqs = client("sqs", config.poller_url)
    while True:
        poll(sqs, config, batch)
        telemetry.flush()


def poll(sqs: Any, config: WorkerConfig, batch: EditorBatch) -> None:
    """One batch, if there is one: what Lambda's event source mapping does."""
    queue = config.settings.rows_queue_url
    answer = sqs.receive_message(
        QueueUrl=queue,
        MaxNumberOfMessages=config.settings.rows_per_worker,
        WaitTimeSeconds=round(config.idle_seconds),
        # The template's is 5,400 s. The first beat follows at once; what is killed before it
        # would else be missing for all that time.
        VisibilityTimeout=round(2 * config.timings.lease),
        MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
    )
    messages = answer.get("Messages", [])
    if not messages:
        return
    deadline = time.time() + config.invocation_seconds
    kept = batch.handle([_received(m) for m in messages], deadline, uuid.uuid4().hex)
    done = [m for m in messages if m["MessageId"] not in kept]
    if done:
        entries = [{"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(done)]
        sqs.delete_message_batch(QueueUrl=queue, Entries=entries)


def _received(message: Any) -> Received:
    attributes = message["Attributes"]
    return Received(
        message_id=message["MessageId"],
        receipt=message["ReceiptHandle"],
        body=message["Body"],
        receive_count=int(attributes["ApproximateReceiveCount"]),
        sent_at=int(attributes["SentTimestamp"]) / 1000,
    )


def ledger(url: str, settings: Settings, timings: Timings) -> LedgerTable:
    return LedgerTable(client("dynamodb", url), settings.ledger_table, lease_seconds=timings.lease)


def row_queue(url: str, settings: Settings) -> SqsRowQueue:
    return SqsRowQueue(client("sqs", url), settings.rows_queue_url, settings.dead_letter_queue_url)


def editor(config: WorkerConfig, telemetry: PowertoolsTelemetry) -> EditorBatch:
    """Wired as in `darkroom.bootstrap`, with other timings; the test requests the report."""
    settings, clock = config.settings, SystemClock()
    table = ledger(config.url, settings, config.timings)
    queue = row_queue(config.url, settings)
    s3 = client("s3", config.url)
    store = S3ObjectStore(s3, settings.results_bucket)
    secret = SecretsManagerSource(
        client("secretsmanager", config.url), settings.endpoints_secret_arn, clock, telemetry
    )
    states = DynamoDBEndpointStates(client("dynamodb", config.url), settings.endpoints_table)
    editors: dict[Provider, ImageEditor] = {
        provider: pkgutil.resolve_name(entry.adapter)() for provider, entry in PROVIDERS.items()
    }
    rng = random.Random()  # noqa: S311 - jitter
    return EditorBatch(
        editor=RowEditor(
            rows=table,
            images=ImageStorage(store, clock, telemetry),
            queue=queue,
            fetcher=SafeImageFetcher.from_settings(s3, settings),
            dispatcher=Dispatcher(secret, states, editors, clock, rng, telemetry),
            clock=clock,
            telemetry=telemetry,
            on_unknown_outcome=settings.on_unknown_outcome,
            timings=config.timings,
        ),
        runs=table,
        queue=queue,
        heartbeat=Heartbeat(queue, table, telemetry, config.timings),
        completion=Completion(table, lambda _: None, telemetry),
        clock=clock,
        telemetry=telemetry,
        threads=settings.rows_per_worker,
    )
