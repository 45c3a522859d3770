"""A job on a stack of its own that meets every kind of fault, and all that it left behind.

Providers here are mean: their errors quote the API key back, in full.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from darkroom.aws.events import uploads_in
from darkroom.rows import RowMessage, RowRequest
from darkroom_local import stack
from darkroom_local.processes import wait_until
from darkroom_local.providers import Config, Fault, FaultKind, SimulatedEndpoint, Simulator, When

JOB = "faulty/run"
REJECTED = "AIza-canary-rejected-51c7e0b2d94f"
GEMINI = "AIza-canary-gemini-8be2f31a6c05"
OPENAI = "sk-canary-openai-2f9d7740ab1e63"
KEYS = (REJECTED, GEMINI, OPENAI)
SECONDS = 120.0


def _fault(kind: FaultKind, word: str, key: str, **more: Any) -> Fault:
    when = When(prompt_contains=word, **({"count": more.pop("count")} if "count" in more else {}))
    return Fault(kind=kind, when=when, message=f"Denied for key {key} ({word})", **more)


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
    "gemini-main": {"api_keys": [REJECTED, GEMINI], "max_retries": 0, "requests_per_minute": 0},
    "openai-main": {"api_keys": [OPENAI], "max_retries": 0, "requests_per_minute": 0},
}
# First the rows that must meet Gemini itself, then the outage that opens its breaker.
HEALTHY_PROMPTS = (
    "a calm sea",
    "a quiet wood",
    "refuse this",
    "only talk about it",
    "a bad request",
    "slow down, please",
)
PROMPTS = (
    *HEALTHY_PROMPTS,
    *(f"outage number {n}" for n in range(14)),
    "a dead end",
)


@dataclass(frozen=True)
class FaultyRun:
    info: stack.StackInfo
    logs: tuple[str, ...]  # lines of all functions
    manifest: tuple[dict[str, str], ...]
    traces: dict[str, str]  # all else that was written, by where it was found
    provider_stats: dict[str, Any]  # what the simulated endpoints counted

    def lines(self, message: str) -> list[dict[str, Any]]:
        """Structured log lines with this message."""
        told = (json.loads(line) for line in self.logs if line.startswith("{"))
        return [line for line in told if line.get("message") == message]


@pytest.fixture(scope="session")
def faulty_run() -> Iterator[FaultyRun]:
    with stack.running(stack="faulty", config=CONFIG, overrides=OVERRIDES) as info:
        _wait_for_report(info, _upload(info, HEALTHY_PROMPTS))
        version = _upload(info, PROMPTS)
        _wait_for_report(info, version)
        _deliver_again(info, version)
        stats = Simulator(int(str(info.providers_url).rpartition(":")[2])).stats()
        manifest = tuple(csv.DictReader(io.StringIO(_result(info, "manifest.csv"))))
        yield FaultyRun(info, tuple(_log_lines(info)), manifest, dict(_traces(info)), stats)


def _upload(info: stack.StackInfo, prompts: tuple[str, ...]) -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerows([("image_url", "instruction"), *(("", prompt) for prompt in prompts)])
    rows.writerow(("https://127.0.0.1:1/missing.png", "a picture that cannot be had"))
    answer = info.client("s3").put_object(
        Bucket=info.outputs["InputBucketName"],
        Key=f"{JOB}.csv",
        Body=text.getvalue().encode(),
        Metadata={"max-attempts": "1"},
    )
    return str(answer["VersionId"])


def _wait_for_report(info: stack.StackInfo, version: str) -> None:
    """Until job.json tells of that upload."""
    s3 = info.client("s3")

    def done() -> bool:
        found = s3.list_objects_v2(
            Bucket=info.outputs["ResultsBucketName"], Prefix=f"{JOB}/job.json"
        )
        return bool(found.get("Contents")) and version in _result(info, "job.json")

    assert wait_until(done, SECONDS, 0.5), f"{JOB} was not reported within {SECONDS:.0f} s"


def _deliver_again(info: stack.StackInfo, version: str) -> None:
    """The first row's message once more, long after it was settled."""
    bucket = info.outputs["InputBucketName"]
    told = {"bucket": {"name": bucket}, "object": {"key": f"{JOB}.csv", "versionId": version}}
    (upload,) = uploads_in({"Records": [{"s3": told}]})
    message = RowMessage(
        job=JOB,
        run=upload.run,
        row=0,
        key="000000",
        base=upload.source.base,
        request=RowRequest(instruction=PROMPTS[0]),
    )
    info.client("sqs").send_message(
        QueueUrl=info.outputs["RowsQueueUrl"],
        MessageBody=message.model_dump_json(exclude_defaults=True),
    )

    def suppressed() -> bool:
        return any("DuplicateSuppressed" in line for line in _log_lines(info))

    assert wait_until(suppressed, 60, 1.0), "the second delivery was not told in the metrics"


def _result(info: stack.StackInfo, name: str) -> str:
    body = info.client("s3").get_object(
        Bucket=info.outputs["ResultsBucketName"], Key=f"{JOB}/{name}"
    )["Body"]
    return str(body.read().decode())


def _log_lines(info: stack.StackInfo) -> Iterator[str]:
    logs = info.client("logs")
    for group in ("splitter", "editor", "reporter"):
        name = f"/aws/lambda/{info.stack}-{group}"
        for page in logs.get_paginator("filter_log_events").paginate(logGroupName=name):
            for event in page["events"]:
                yield from str(event["message"]).splitlines()


def _traces(info: stack.StackInfo) -> Iterator[tuple[str, str]]:
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
    dead = info.client("sqs").receive_message(
        QueueUrl=info.outputs["DeadLetterQueueUrl"],
        MaxNumberOfMessages=10,
        MessageAttributeNames=["All"],
    )
    yield "dead letters", json.dumps(dead, default=str)
