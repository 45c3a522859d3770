"""The editor outside Lambda: a process that polls the queue as Lambda's event source mapping does.

For fault tests, which kill many of these: it starts in a fraction of a function's time, and its
leases are short, so that a crash is repaired in seconds. The editor's code and adapters are the
real ones; `poll` stands in for Lambda: it receives a batch, calls the editor, and deletes the
messages that the editor does not return. Lambda's own requests bypass the faulting proxy.
"""

import time
import uuid
from typing import Any

from botocore.config import Config

from darkroom.aws.sqs import received_message
from darkroom.aws.telemetry import PowertoolsTelemetry
from darkroom.bootstrap import Wiring
from darkroom.editor.batch import EditorBatch
from darkroom.editor.leases import Timings
from darkroom.ports import Telemetry
from darkroom.settings import Settings
from darkroom_local import ministack

RETRIES = Config(
    retries={"mode": "standard", "total_max_attempts": 5},
    connect_timeout=5,
    read_timeout=30,
    max_pool_connections=32,
    s3={"addressing_style": "path"},
)


INVOCATION_SECONDS = 900.0  # the function's time-out


def client(service: str, url: str) -> Any:
    return ministack.session().client(service, endpoint_url=url, config=RETRIES)  # type: ignore[call-overload]


def wiring(url: str, settings: Settings, timings: Timings, telemetry: Telemetry) -> Wiring:
    """The real use cases against the AWS at `url`; no function is started."""
    return Wiring(
        settings,
        telemetry,
        client=lambda service: client(service, url),
        timings=timings,
        start_function=lambda function, event: None,
    )


def run(url: str, poller_url: str, settings: Settings, timings: Timings) -> None:
    """Poll until the process is killed.

    The editor reaches AWS at `url`; the poller, which stands in for Lambda, at `poller_url`.
    """
    telemetry = PowertoolsTelemetry(settings.stack_name, "worker")
    batch = wiring(url, settings, timings, telemetry).editor
    sqs = client("sqs", poller_url)
    while True:
        poll(sqs, settings, timings, batch)
        telemetry.flush()


def poll(sqs: Any, settings: Settings, timings: Timings, batch: EditorBatch) -> None:
    """Receive and handle one batch, if there is one."""
    queue = settings.rows_queue_url
    response = sqs.receive_message(
        QueueUrl=queue,
        MaxNumberOfMessages=settings.rows_per_worker,
        WaitTimeSeconds=1,
        # The template's is 5,400 s. The first heartbeat follows at once; a worker that is killed
        # before it would hide its messages for all that time.
        VisibilityTimeout=round(2 * timings.lease_seconds),
        MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
    )
    messages = response.get("Messages", [])
    if not messages:
        return
    deadline = time.time() + INVOCATION_SECONDS
    kept = batch.handle([received_message(m) for m in messages], deadline, uuid.uuid4().hex)
    done = [m for m in messages if m["MessageId"] not in kept]
    if done:
        entries = [{"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(done)]
        sqs.delete_message_batch(QueueUrl=queue, Entries=entries)
