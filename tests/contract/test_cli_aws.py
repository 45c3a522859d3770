"""The command against the APIs of CloudFormation, S3, SQS, DynamoDB and Secrets Manager."""

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from darkroom.aws.ledger_table import LedgerTable
from darkroom.jobs import JobOptions, Run, RunState, Source, Totals
from darkroom_cli.main import app
from darkroom_cli.stack import Outputs
from darkroom_local import ministack
from tests.conftest import ClientFactory
from tests.fakes.command import PNG_SIGNATURE

_BUCKETS = ("InputBucket", "ResultsBucket")
_QUEUES = ("RowsQueue", "DeadLetterQueue", "LostEventsQueue")


def template() -> str:
    """The resources that the command uses, with the outputs of the real template."""
    tables = {"LedgerTable": ("job", "item"), "EndpointsTable": ("endpoint",)}
    resources: dict[str, Any] = {
        name: {
            "Type": "AWS::S3::Bucket",
            "Properties": {"VersioningConfiguration": {"Status": "Enabled"}},
        }
        for name in _BUCKETS
    }
    resources |= {name: {"Type": "AWS::SQS::Queue"} for name in _QUEUES}
    resources["Secret"] = {"Type": "AWS::SecretsManager::Secret", "Properties": {}}
    for name, keys in tables.items():
        resources[name] = {
            "Type": "AWS::DynamoDB::Table",
            "Properties": {
                "BillingMode": "PAY_PER_REQUEST",
                "AttributeDefinitions": [
                    {"AttributeName": key, "AttributeType": "S"} for key in keys
                ],
                "KeySchema": [
                    {"AttributeName": key, "KeyType": kind}
                    for key, kind in zip(keys, ("HASH", "RANGE"), strict=False)
                ],
            },
        }
    outputs: dict[str, Any] = {name: {"Value": "none"} for name in Outputs.__dataclass_fields__}
    outputs |= {f"{name}Name": {"Value": {"Ref": name}} for name in (*_BUCKETS, *tables)}
    outputs |= {f"{name}Url": {"Value": {"Ref": name}} for name in _QUEUES}
    outputs["EndpointsSecretArn"] = {"Value": {"Ref": "Secret"}}
    return json.dumps({"Resources": resources, "Outputs": outputs})


@dataclass(frozen=True)
class DeployedStack:
    """A stack on MiniStack, and the command as a user runs it there."""

    environment: Mapping[str, str]
    client: ClientFactory
    outputs: Mapping[str, str]

    def run(self, *arguments: object) -> Result:
        result = CliRunner(env=self.environment).invoke(app, [str(a) for a in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    def json(self, *arguments: object) -> Any:
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture
def stack(aws_client: ClientFactory, aws_endpoint: str) -> Iterator[DeployedStack]:
    name = f"cli-{uuid.uuid4().hex[:8]}"
    cloudformation = aws_client("cloudformation")
    cloudformation.create_stack(StackName=name, TemplateBody=template())
    cloudformation.get_waiter("stack_create_complete").wait(
        StackName=name, WaiterConfig={"Delay": 0, "MaxAttempts": 1000}
    )
    (described,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    outputs = {o["OutputKey"]: o["OutputValue"] for o in described["Outputs"]}
    environment = ministack.aws_environment(aws_endpoint) | {"DARKROOM_STACK": name}
    yield DeployedStack(environment, aws_client, outputs)
    cloudformation.delete_stack(StackName=name)


def test_a_missing_stack_is_reported_in_one_sentence(stack: DeployedStack) -> None:
    result = stack.run("list", "--stack", "nothing")
    assert result.exit_code == 1
    assert "There is no stack named nothing in us-east-1" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_submit_uploads_csv_options_and_new_images(stack: DeployedStack, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(12):
        (tmp_path / f"photos/{n}.png").write_bytes(PNG_SIGNATURE + bytes([n]) * 100)
    csv = tmp_path / "products.csv"
    rows = "".join(f"photos/{n}.png,warm\n" for n in range(12))
    csv.write_text(f"image_url,Änderung\n{rows}", encoding="utf-8")
    arguments = ("submit", csv, "--instruction-column", "Änderung", "--filter-rows", "0:11")
    first = stack.json(*arguments)
    assert (first["job"], first["images_uploaded"]) == ("jobs/products", 11)
    s3, bucket = stack.client("s3"), stack.outputs["InputBucketName"]
    head = s3.head_object(Bucket=bucket, Key="jobs/products.csv")
    assert head["VersionId"] == first["version"]
    assert head["Metadata"]["filter-rows"] == "0:11"
    assert s3.head_object(Bucket=bucket, Key="jobs/photos/3.png")["ContentType"] == "image/png"
    second = stack.json(*arguments)
    assert (second["images_uploaded"], second["images_unchanged"]) == (0, 11)
    assert second["version"] != first["version"]


def test_download_fetches_each_result_once(stack: DeployedStack, tmp_path: Path) -> None:
    names = [f"images/{n:06d}.png" for n in range(30)] + ["manifest.csv", "report.html", "job.json"]
    s3, bucket = stack.client("s3"), stack.outputs["ResultsBucketName"]
    for name in names:
        s3.put_object(Bucket=bucket, Key=f"jobs/p/{name}", Body=name.encode())
    assert stack.json("download", "jobs/p", tmp_path)["downloaded"] == len(names)
    assert all((tmp_path / name).read_text() == name for name in names)
    second = stack.json("download", "jobs/p", tmp_path)
    assert (second["files"], second["downloaded"]) == (len(names), 0)


def send_dead_letters(sqs: Any, url: str, count: int) -> None:
    for n in range(count):
        reason = ("unavailable", "quota_spent")[n % 2]
        body = json.dumps({"job": "jobs/a b" if n % 3 else "jobs/ü", "row": n})
        sqs.send_message(
            QueueUrl=url,
            MessageBody=body,
            MessageAttributes={"reason": {"DataType": "String", "StringValue": reason}},
        )


def drain(sqs: Any, url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while batch := sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["MessageGroupId"]
    ).get("Messages"):
        found += batch
        for message in batch:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return found


def test_a_redrive_by_reason_leaves_the_other_messages_visible(stack: DeployedStack) -> None:
    sqs = stack.client("sqs")
    send_dead_letters(sqs, stack.outputs["DeadLetterQueueUrl"], 30)
    assert stack.json("redrive", "--yes", "--reason", "quota_spent")["redriven"] == 15
    moved = drain(sqs, stack.outputs["RowsQueueUrl"])
    assert {json.loads(m["Body"])["row"] for m in moved} == set(range(1, 30, 2))
    left = drain(sqs, stack.outputs["DeadLetterQueueUrl"])
    assert {json.loads(m["Body"])["row"] for m in left} == set(range(0, 30, 2))


def test_an_unfiltered_redrive_works_without_sqs_move_tasks(stack: DeployedStack) -> None:
    sqs = stack.client("sqs")
    send_dead_letters(sqs, stack.outputs["DeadLetterQueueUrl"], 23)
    result = stack.run("redrive", "--yes")
    assert "Redrove 23 rows: 12 unavailable, 11 quota_spent." in result.stdout, result.stderr
    moved = drain(sqs, stack.outputs["RowsQueueUrl"])
    assert {json.loads(m["Body"])["row"] for m in moved} == set(range(23))
    assert {m["Attributes"]["MessageGroupId"] for m in moved} == {"jobs/a_b", "jobs/_"}
    assert drain(sqs, stack.outputs["DeadLetterQueueUrl"]) == []


def test_lost_events_are_listed_and_stay_visible(stack: DeployedStack) -> None:
    sqs, url = stack.client("sqs"), stack.outputs["LostEventsQueueUrl"]
    for job in ("jobs/a", "jobs/b"):
        record = {
            "timestamp": "2026-11-21T09:00:00Z",
            "requestContext": {
                "functionArn": "arn:aws:lambda:us-east-1:000000000000:function:x-reporter:live",
                "condition": "RetriesExhausted",
            },
            "requestPayload": {"job": job},
            "responsePayload": {"errorMessage": "out of memory"},
        }
        sqs.send_message(QueueUrl=url, MessageBody=json.dumps(record))
    for _ in range(2):
        listed = stack.json("lost-events")
        assert {entry["event"] for entry in listed} == {"report of jobs/a", "report of jobs/b"}
        assert {(e["function"], e["error"]) for e in listed} == {("x-reporter", "out of memory")}
    # The functions of this stack have other names: nothing is started, nothing removed.
    assert "not one of this stack" in stack.run("lost-events", "--replay").stderr
    assert len(drain(sqs, url)) == 2


def test_a_dry_run_of_a_redrive_leaves_every_message_visible(stack: DeployedStack) -> None:
    sqs, dead = stack.client("sqs"), stack.outputs["DeadLetterQueueUrl"]
    send_dead_letters(sqs, dead, 14)
    counted = stack.json("redrive", "--reason", "quota_spent", "--dry-run")
    assert (counted["would_redrive"], counted["of"]) == (7, 14)
    assert len(drain(sqs, dead)) == 14
    assert drain(sqs, stack.outputs["RowsQueueUrl"]) == []


def test_pushed_endpoints_are_shown_as_never_used(stack: DeployedStack, tmp_path: Path) -> None:
    assert "no endpoints yet" in stack.run("endpoints", "show").stderr
    file = tmp_path / "endpoints.json"
    endpoint = {"name": "g", "provider": "gemini", "api_keys": ["AIza-secret-1"]}
    file.write_text(json.dumps({"endpoints": [endpoint]}))
    assert stack.run("endpoints", "push", file).exit_code == 0
    secrets, arn = stack.client("secretsmanager"), stack.outputs["EndpointsSecretArn"]
    document = json.loads(secrets.get_secret_value(SecretId=arn)["SecretString"])
    assert document["endpoints"][0]["api_keys"] == ["AIza-secret-1"]
    shown = stack.run("endpoints", "show")
    assert "state: never used" in shown.stdout
    assert "in use by all workers by" in shown.stderr
    assert "AIza-secret-1" not in shown.output


def test_status_list_and_stop_read_the_ledger(stack: DeployedStack) -> None:
    ledger = LedgerTable(stack.client("dynamodb"), stack.outputs["LedgerTableName"])
    bucket = stack.outputs["InputBucketName"]
    source = Source(bucket, "jobs/p.csv", "v1")
    run = Run("jobs/p", "run-1", RunState.SPLITTING, source, JobOptions(), started_at=1.0)
    started = ledger.start(run, 60)
    assert started is not None
    ledger.finish_split(started, Totals(rows=3, queued=2, invalid=1), ["A warning."])
    stack.client("s3").put_object(Bucket=bucket, Key="jobs/p.csv", Body=b"x")
    status = stack.json("status", "jobs/p")
    assert (status["state"], status["rows"], status["failed"]) == ("running", 3, 1)
    assert status["warnings"] == ["A warning."]
    assert stack.json("list")[0]["job"] == "jobs/p"
    assert stack.run("stop", "jobs/p").exit_code == 0
    assert stack.run("status", "jobs/p", "--watch").exit_code == 1
    assert stack.run("failures", "jobs/p").exit_code == 0
