"""`sam local invoke` of the three functions with the files in events/, in the order of a job.

One job's life, so the tests build on each other and run in their order.
"""

import io
import json

import pytest
from PIL import Image

from darkroom_local.sam_local import prepare
from tests.sam_local.conftest import Bench

JOB = "jobs/sam local"


@pytest.fixture(scope="module", autouse=True)
def uploaded(bench: Bench) -> None:
    photo = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(photo, "JPEG")
    csv = (prepare.EVENTS / "sam-local.csv").read_bytes()
    bucket = bench.stack.outputs["InputBucketName"]
    for key, body in ((f"{JOB}.csv", csv), ("jobs/photo.jpg", photo.getvalue())):
        bench.stack.client("s3").put_object(Bucket=bucket, Key=key, Body=body)


def queued(bench: Bench) -> list[str]:
    """Bodies of the messages in the rows queue, which stay there."""
    answer = bench.stack.client("sqs").receive_message(
        QueueUrl=bench.stack.outputs["RowsQueueUrl"], MaxNumberOfMessages=10, VisibilityTimeout=0
    )
    return sorted(message["Body"] for message in answer.get("Messages", ()))


def expected(bench: Bench) -> list[str]:
    return sorted(record["body"] for record in bench.event("editor-sqs-batch.json")["Records"])


def test_the_splitter_queues_the_rows_that_the_batch_holds(bench: Bench) -> None:
    answer = bench.invoke("SplitterFunction", "splitter-s3-put.json")
    assert answer.value is None
    assert [json.loads(body) for body in queued(bench)] == [json.loads(b) for b in expected(bench)]


def test_the_splitter_told_again_queues_nothing_more(bench: Bench) -> None:
    assert bench.invoke("SplitterFunction", "splitter-continue.json").value is None
    assert len(queued(bench)) == 2


def test_the_editor_edits_the_batch(bench: Bench) -> None:
    answer = bench.invoke("EditorFunction", "editor-sqs-batch.json")
    assert answer.value == {"batchItemFailures": []}
    for name in ("lighthouse.png", "000001.png"):
        image = Image.open(io.BytesIO(bench.result(f"{JOB}/images/{name}")))
        assert image.format == "PNG"
    assert bench.provider("gemini-main")["paid_images"] == 2


def test_the_editor_given_the_batch_again_calls_nobody(bench: Bench) -> None:
    answer = bench.invoke("EditorFunction", "editor-sqs-batch.json")
    assert answer.value == {"batchItemFailures": []}
    assert bench.provider("gemini-main")["calls"] == 2


def test_the_reporter_writes_the_report(bench: Bench) -> None:
    answer = bench.invoke("ReporterFunction", "reporter-job.json")
    assert answer.value == {"job": JOB, "outcome": "made"}
    summary = json.loads(bench.result(f"{JOB}/job.json"))
    assert summary["counts"]["succeeded"] == 2
    assert bench.result(f"{JOB}/manifest.csv").count(b"succeeded") == 2
    assert b"<html" in bench.result(f"{JOB}/report.html")
