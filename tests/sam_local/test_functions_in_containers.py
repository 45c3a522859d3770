"""`sam local invoke` of the three functions with the files in events/, in the order of a job."""

import io
import json
from typing import Any

import pytest
from PIL import Image

from darkroom_local.sam_local import EVENTS
from tests.e2e.harness import Results, encoded_image
from tests.sam_local.conftest import SamLocalHarness

JOB = "jobs/sam local"


@pytest.fixture(scope="module", autouse=True)
def uploaded(harness: SamLocalHarness) -> None:
    harness.stack.put(f"{JOB}.csv", (EVENTS / "sam-local.csv").read_bytes())
    harness.stack.put("jobs/photo.jpg", encoded_image(kind="JPEG"))


def queued(harness: SamLocalHarness) -> list[str]:
    """Bodies of the messages in the rows queue, which stay there."""
    queue = harness.stack.info.outputs["RowsQueueUrl"]
    answer = harness.stack.info.client("sqs").receive_message(
        QueueUrl=queue, MaxNumberOfMessages=10, VisibilityTimeout=0
    )
    return sorted(message["Body"] for message in answer.get("Messages", ()))


def without_time(body: str) -> dict[str, Any]:
    """A row's message without the time of its upload, which the events do not have."""
    message: dict[str, Any] = json.loads(body)
    del message["queued_at"]
    return message


def test_each_function_does_its_part_of_a_job(harness: SamLocalHarness) -> None:
    assert harness.invoke("SplitterFunction", "splitter-s3-put.json") is None
    records = json.loads((harness.events / "editor-sqs-batch.json").read_text())["Records"]
    expected = sorted(record["body"] for record in records)
    assert [without_time(body) for body in queued(harness)] == [json.loads(b) for b in expected]

    # The continuation of an upload that was already split queues nothing.
    assert harness.invoke("SplitterFunction", "splitter-continue.json") is None
    assert len(queued(harness)) == 2

    editor = ("EditorFunction", "editor-sqs-batch.json")
    assert harness.invoke(*editor) == {"batchItemFailures": []}
    bucket = harness.stack.info.outputs["ResultsBucketName"]
    results = Results(harness.stack.s3, bucket, JOB)
    for name in ("lighthouse.png", "photo.png"):
        assert Image.open(io.BytesIO(results.read(f"images/{name}"))).format == "PNG"
    assert harness.stack.simulator.stats()["gemini-main"]["paid_images"] == 2

    # The same batch again calls no provider.
    assert harness.invoke(*editor) == {"batchItemFailures": []}
    assert harness.stack.simulator.stats()["gemini-main"]["calls"] == 2

    reported = harness.invoke("ReporterFunction", "reporter-job.json")
    assert reported == {"job": JOB, "outcome": "made"}
    assert results.summary["counts"]["succeeded"] == 2
    assert results.read("manifest.csv").count(b"succeeded") == 2
    assert b"<html" in results.read("report.html")
