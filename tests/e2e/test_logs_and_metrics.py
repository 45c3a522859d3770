"""A job on a separate stack that meets every kind of fault, and all that it logs and writes.

The simulated providers quote the API key in their errors, in full; it must appear nowhere. Every
metric that the dashboard and the alarms use must be emitted. MiniStack extracts no metrics from
logs, so the embedded metric lines are parsed here. AWS's own metrics (AWS/SQS, AWS/Lambda) do not
exist here: for those, the resources are checked.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from darkroom.aws.events import uploads_in
from darkroom.endpoints import key_fingerprint
from darkroom.rows import RowMessage, RowRequest
from darkroom_local import stack
from darkroom_local.processes import wait_until
from darkroom_local.providers import Config, Fault, FaultKind, SimulatedEndpoint, When
from tests.e2e.harness import StackHarness
from tests.fakes.csv_files import rows_of
from tests.metric_names import NamedMetric, emitted, of_alarms, of_dashboard
from tests.template.functions import NAMES

pytestmark = pytest.mark.e2e

JOB = "faulty/run"
REJECTED = "AIza-canary-rejected-51c7e0b2d94f"
GEMINI = "AIza-canary-gemini-8be2f31a6c05"
OPENAI = "sk-canary-openai-2f9d7740ab1e63"


def _fault(kind: FaultKind, prompt: str, key: str, count: int | None = None, **more: Any) -> Fault:
    when = When(prompt_contains=prompt, count=count)
    return Fault(kind=kind, when=when, message=f"Denied for key {key} ({prompt})", **more)


CONFIG = Config(
    endpoints={
        "gemini-main": SimulatedEndpoint(
            keys=(GEMINI,),
            mode="fast",
            faults=(
                Fault(
                    kind=FaultKind.KEY_REJECTED,
                    when=When(key=REJECTED),
                    status=403,
                    message=f"API key not valid: {REJECTED}",
                ),
                _fault(FaultKind.REFUSED, "refuse", GEMINI),
                _fault(FaultKind.TEXT_ONLY, "only talk", GEMINI),
                _fault(FaultKind.BAD_REQUEST, "bad request", GEMINI),
                _fault(FaultKind.RATE_LIMITED, "slow down", GEMINI, count=1, retry_after=1),
                _fault(FaultKind.SERVER_ERROR, "outage", GEMINI, status=500),
                _fault(FaultKind.OVERLOADED, "dead end", GEMINI),
            ),
        ),
        "openai-main": SimulatedEndpoint(
            keys=(OPENAI,),
            mode="fast",
            faults=(_fault(FaultKind.SERVER_ERROR, "dead end", OPENAI, status=502),),
        ),
    }
)
OVERRIDES = {
    name: {"api_keys": keys, "max_retries": 0, "requests_per_minute": 0}
    for name, keys in (("gemini-main", [REJECTED, GEMINI]), ("openai-main", [OPENAI]))
}
# First the rows that must be answered by Gemini, then the outage that opens its circuit breaker.
HEALTHY_PROMPTS = (
    "a calm sea",
    "a quiet wood",
    "refuse this",
    "only talk about it",
    "a bad request",
    "slow down, please",
)
PROMPTS = (*HEALTHY_PROMPTS, *(f"outage number {n}" for n in range(14)), "a dead end")
# Of a stack that cannot work at all, and of jobs with mode=batch; unit tests emit them.
NOT_IN_THIS_RUN = {"SecretUnusable", "RowsWaiting", "BatchAge"}
# The contract of the README; FallbackRate is metric math over the others.
CONTRACT = {
    "RowsSucceeded",
    "RowsFailed",
    "RowsDead",
    "FallbackUsed",
    "ProviderCalls",
    "ProviderErrors",
    "RateLimited",
    "ProviderLatency",
    "SlotWait",
    "BreakerOpened",
    "KeyRejected",
    "DuplicateSuppressed",
    "CostUSD",
}
# Source: "Available CloudWatch metrics for Amazon SQS" and "Types of metrics for Lambda functions".
AWS_METRICS = {
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"),
    ("AWS/SQS", "ApproximateNumberOfMessagesNotVisible"),
    ("AWS/SQS", "ApproximateAgeOfOldestMessage"),
    ("AWS/SQS", "NumberOfMessagesDeleted"),
    ("AWS/Lambda", "ConcurrentExecutions"),
    ("AWS/Lambda", "Duration"),
    ("AWS/Lambda", "Errors"),
    ("AWS/Lambda", "Throttles"),
}
# A long run of base64, or the start of a PNG or JPEG as Python shows bytes.
IMAGE_BYTES = re.compile(r"[A-Za-z0-9+/_-]{200}|\\x89PNG|\\xff\\xd8")


@dataclass(frozen=True)
class FaultyRun:
    info: stack.StackInfo
    logs: tuple[str, ...]  # lines of all functions
    manifest: list[dict[str, str]]
    written: dict[str, str]  # everything else that was written, by where it was found
    endpoint_stats: dict[str, Any]  # counts of the simulated endpoints

    def lines(self, message: str) -> list[dict[str, Any]]:
        """Structured log lines with this message."""
        parsed = (json.loads(line) for line in self.logs if line.startswith("{"))
        return [line for line in parsed if line.get("message") == message]


@pytest.fixture(scope="module")
def faulty_run() -> Iterator[FaultyRun]:
    with stack.running(stack="faulty", config=CONFIG, overrides=OVERRIDES) as info:
        harness = StackHarness(info)
        harness.run(f"{JOB}.csv", _csv(HEALTHY_PROMPTS), {"max-attempts": "1"})
        results = harness.run(f"{JOB}.csv", _csv(PROMPTS), {"max-attempts": "1"})
        _redeliver_first_row(info, results.summary["source"]["version_id"])
        logs, written = tuple(_log_lines(info)), dict(_written(info))
        yield FaultyRun(info, logs, results.manifest, written, harness.simulator.stats())


def _csv(prompts: tuple[str, ...]) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerows([("image_url", "instruction"), *(("", prompt) for prompt in prompts)])
    rows.writerow(("https://127.0.0.1:1/missing.png", "an image that cannot be loaded"))
    return text.getvalue().encode()


def _redeliver_first_row(info: stack.StackInfo, version: str | None) -> None:
    """Send the first row's message again, long after it was settled."""
    bucket = info.outputs["InputBucketName"]
    record = {"bucket": {"name": bucket}, "object": {"key": f"{JOB}.csv", "versionId": version}}
    (upload,) = uploads_in({"Records": [{"s3": record}]})
    message = RowMessage(
        job=JOB,
        run=upload.run,
        row=0,
        key=rows_of(_csv(PROMPTS))[0].key,
        base=upload.source.base,
        request=RowRequest(instruction=PROMPTS[0]),
    )
    info.client("sqs").send_message(
        QueueUrl=info.outputs["RowsQueueUrl"],
        MessageBody=message.model_dump_json(exclude_defaults=True),
    )

    def suppressed() -> bool:
        return any("DuplicateSuppressed" in line for line in _log_lines(info))

    assert wait_until(suppressed, 120, 1.0), "the second delivery does not appear in the metrics"


def _log_lines(info: stack.StackInfo) -> Iterator[str]:
    logs = info.client("logs")
    for group in NAMES:
        name = f"/aws/lambda/{info.stack}-{group}"
        for page in logs.get_paginator("filter_log_events").paginate(logGroupName=name):
            for event in page["events"]:
                yield from str(event["message"]).splitlines()


def _written(info: stack.StackInfo) -> Iterator[tuple[str, str]]:
    for path in (Path(info.work) / "ministack").glob("*.log"):
        yield path.name, path.read_text(errors="replace")
    s3, bucket = info.client("s3"), info.outputs["ResultsBucketName"]
    for item in s3.list_objects_v2(Bucket=bucket)["Contents"]:
        found = s3.get_object(Bucket=bucket, Key=item["Key"])
        content = found["Body"].read().decode(errors="replace")
        yield item["Key"], f"{found['Metadata']} {content}"
    for table in ("LedgerTableName", "EndpointsTableName"):
        items = info.client("dynamodb").scan(TableName=info.outputs[table])["Items"]
        yield table, json.dumps(items, default=str)
    queue = info.outputs["DeadLetterQueueUrl"]
    dead = info.client("sqs").receive_message(
        QueueUrl=queue, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
    )
    yield "dead letters", json.dumps(dead, default=str)


def test_the_run_met_its_faults(faulty_run: FaultyRun) -> None:
    """Otherwise the other tests would prove nothing."""
    outcomes = {line["outcome"] for line in faulty_run.lines("attempt")}
    assert outcomes >= {
        "succeeded",
        "refused",
        "no_image",
        "bad_request",
        "rate_limited",
        "unavailable",
        "key_rejected",
    }
    statuses = [row["status"] for row in faulty_run.manifest]
    assert len(statuses) == len(PROMPTS) + 1
    assert {"succeeded", "failed", "dead"} == set(statuses)


@pytest.mark.parametrize("key", [REJECTED, GEMINI, OPENAI])
def test_no_key_is_in_a_log_result_table_or_dead_letter(faulty_run: FaultyRun, key: str) -> None:
    assert [line for line in faulty_run.logs if key in line] == []
    assert [where for where, text in faulty_run.written.items() if key in text] == []
    assert key not in json.dumps(faulty_run.manifest)


def test_logs_have_no_image_bytes_and_only_the_fingerprint_of_a_rejected_key(
    faulty_run: FaultyRun,
) -> None:
    assert [line for line in faulty_run.logs if IMAGE_BYTES.search(line)] == []
    logged = {line["key"] for line in faulty_run.lines("key_rejected")}
    assert logged == {key_fingerprint(SecretStr(REJECTED))}


def test_every_attempt_is_one_log_line_that_identifies_its_row(faulty_run: FaultyRun) -> None:
    lines = faulty_run.lines("attempt")
    fields = ("job", "row", "endpoint", "outcome", "latency_ms", "slot_wait_ms", "correlation_id")
    lacking = [(line, name) for line in lines for name in fields if line.get(name) in (None, "")]
    assert lacking == []
    calls = sum(counts["calls"] for counts in faulty_run.endpoint_stats.values())
    assert len(lines) == calls


@pytest.fixture(scope="module")
def used_metrics(faulty_run: FaultyRun) -> set[NamedMetric]:
    """Every metric that a widget or an alarm of the deployed stack uses."""
    cloudwatch = faulty_run.info.client("cloudwatch")
    name = faulty_run.info.outputs["DashboardName"]
    body = cloudwatch.get_dashboard(DashboardName=name)["DashboardBody"]
    alarms = cloudwatch.describe_alarms()["MetricAlarms"]
    assert len(alarms) > 5
    return {*of_dashboard(body), *of_alarms(alarms)}


@pytest.fixture(scope="module")
def emitted_metrics(faulty_run: FaultyRun) -> set[NamedMetric]:
    return set(emitted(faulty_run.logs))


def test_every_metric_in_use_is_emitted_and_every_metric_of_the_contract_is_in_use(
    used_metrics: set[NamedMetric], emitted_metrics: set[NamedMetric]
) -> None:
    ours = {metric for metric in used_metrics if metric.namespace == "Darkroom"}
    missing = {m.name for m in ours if not any(m.matches(e) for e in emitted_metrics)}
    assert missing <= NOT_IN_THIS_RUN
    assert {m.name for m in ours} >= CONTRACT
    assert {m.name for m in emitted_metrics} >= CONTRACT


def test_dimensions_are_the_stack_and_at_most_an_endpoint(
    faulty_run: FaultyRun, emitted_metrics: set[NamedMetric]
) -> None:
    """Each combination of dimensions costs money every month: job and row are not dimensions."""
    for metric in emitted_metrics:
        dimensions = dict(metric.dimensions)
        assert metric.namespace == "Darkroom"
        assert dimensions.pop("Stack") == faulty_run.info.stack
        assert dimensions.keys() <= {"Endpoint"}


def test_metrics_of_aws_are_for_resources_of_this_stack(
    faulty_run: FaultyRun, used_metrics: set[NamedMetric]
) -> None:
    queues = faulty_run.info.client("sqs").list_queues()["QueueUrls"]
    functions = faulty_run.info.client("lambda").list_functions()["Functions"]
    resources = {
        "QueueName": {url.rpartition("/")[2] for url in queues},
        "FunctionName": {function["FunctionName"] for function in functions},
    }
    of_aws = {metric for metric in used_metrics if metric.namespace != "Darkroom"}
    assert {(metric.namespace, metric.name) for metric in of_aws} <= AWS_METRICS
    for metric in of_aws:
        ((dimension, value),) = metric.dimensions
        assert value in resources[dimension]
