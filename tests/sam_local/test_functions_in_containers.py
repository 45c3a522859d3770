"""`sam local invoke` of the three functions with the files in events/, in the order of a job."""

import io
import json

import pytest
from PIL import Image

from darkroom_local.sam_local import EVENTS
from tests.sam_local.conftest import SamLocalHarness

JOB = "jobs/sam local"


@pytest.fixture(scope="module", autouse=True)
def uploaded(harness: SamLocalHarness) -> None:
    photo = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(photo, "JPEG")
    csv = (EVENTS / "sam-local.csv").read_bytes()
    bucket = harness.stack.outputs["InputBucketName"]
    for key, body in ((f"{JOB}.csv", csv), ("jobs/photo.jpg", photo.getvalue())):
        harness.stack.client("s3").put_object(Bucket=bucket, Key=key, Body=body)


def queued(harness: SamLocalHarness) -> list[str]:
    """Bodies of the messages in the rows queue, which stay there."""
    answer = harness.stack.client("sqs").receive_message(
        QueueUrl=harness.stack.outputs["RowsQueueUrl"], MaxNumberOfMessages=10, VisibilityTimeout=0
    )
    return sorted(message["Body"] for message in answer.get("Messages", ()))


def test_each_function_does_its_part_of_a_job(harness: SamLocalHarness) -> None:
    assert harness.invoke("SplitterFunction", "splitter-s3-put.json") is None
    records = json.loads((harness.events / "editor-sqs-batch.json").read_text())["Records"]
    expected = sorted(record["body"] for record in records)
    assert [json.loads(body) for body in queued(harness)] == [json.loads(b) for b in expected]

    # The continuation of an upload that was already split queues nothing.
    assert harness.invoke("SplitterFunction", "splitter-continue.json") is None
    assert len(queued(harness)) == 2

    editor = ("EditorFunction", "editor-sqs-batch.json")
    assert harness.invoke(*editor) == {"batchItemFailures": []}
    for name in ("lighthouse.png", "000001.png"):
        image = Image.open(io.BytesIO(harness.result(f"{JOB}/images/{name}")))
        assert image.format == "PNG"
    assert harness.endpoint_stats("gemini-main")["paid_images"] == 2

    # The same batch again calls no provider.
    assert harness.invoke(*editor) == {"batchItemFailures": []}
    assert harness.endpoint_stats("gemini-main")["calls"] == 2

    reported = harness.invoke("ReporterFunction", "reporter-job.json")
    assert reported == {"job": JOB, "outcome": "made"}
    summary = json.loads(harness.result(f"{JOB}/job.json"))
    assert summary["counts"]["succeeded"] == 2
    assert harness.result(f"{JOB}/manifest.csv").count(b"succeeded") == 2
    assert b"<html" in harness.result(f"{JOB}/report.html")
