"""The command against the APIs of CloudFormation, S3, SQS, DynamoDB and Secrets Manager."""

import json
import uuid
from collections.abc import Callable, Iterator
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

Command = Callable[..., Result]
_BUCKETS = ("InputBucket", "ResultsBucket")
_QUEUES = ("RowsQueue", "DeadLetterQueue")


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


@pytest.fixture
def stack(aws_client: ClientFactory) -> Iterator[str]:
    name = f"cli-{uuid.uuid4().hex[:8]}"
    cloudformation = aws_client("cloudformation")
    cloudformation.create_stack(StackName=name, TemplateBody=template())
    cloudformation.get_waiter("stack_create_complete").wait(
        StackName=name, WaiterConfig={"Delay": 0, "MaxAttempts": 1000}
    )
    yield name
    cloudformation.delete_stack(StackName=name)


@pytest.fixture
def outputs(aws_client: ClientFactory, stack: str) -> dict[str, str]:
    found = aws_client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]["Outputs"]
    return {o["OutputKey"]: o["OutputValue"] for o in found}


@pytest.fixture
def darkroom(aws_endpoint: str, stack: str) -> Command:
    environment = ministack.aws_environment(aws_endpoint) | {"DARKROOM_STACK": stack}

    def invoke(*arguments: object) -> Result:
        result = CliRunner(env=environment).invoke(app, [str(a) for a in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


def test_a_missing_stack_is_reported_in_one_sentence(darkroom: Command) -> None:
    result = darkroom("list", "--stack", "nothing")
    assert result.exit_code == 1
    assert "There is no stack named nothing in us-east-1" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_submit_uploads_csv_options_and_images_but_no_image_twice(
    darkroom: Command, aws_client: ClientFactory, outputs: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(12):
        (tmp_path / f"photos/{n}.png").write_bytes(bytes([n]) * 100)
    csv = tmp_path / "products.csv"
    rows = "".join(f"photos/{n}.png,warm\n" for n in range(12))
    csv.write_text(f"image_url,Änderung\n{rows}", encoding="utf-8")
    options = ("--instruction-column", "Änderung", "--filter-rows", "0:11", "--json")
    first = darkroom("submit", csv, *options)
    assert first.exit_code == 0, first.stderr
    answer = json.loads(first.stdout)
    assert (answer["job"], answer["images_uploaded"]) == ("jobs/products", 11)
    s3 = aws_client("s3")
    bucket = outputs["InputBucketName"]
    head = s3.head_object(Bucket=bucket, Key="jobs/products.csv")
    assert head["VersionId"] == answer["version"]
    assert head["Metadata"]["filter-rows"] == "0:11"
    assert s3.head_object(Bucket=bucket, Key="jobs/photos/3.png")["ContentType"] == "image/png"
    again = json.loads(darkroom("submit", csv, *options).stdout)
    assert (again["images_uploaded"], again["images_unchanged"]) == (0, 11)
    assert again["version"] != answer["version"]


def test_download_fetches_all_results_and_nothing_twice(
    darkroom: Command, aws_client: ClientFactory, outputs: dict[str, str], tmp_path: Path
) -> None:
    names = [f"images/{n:06d}.png" for n in range(30)] + ["manifest.csv", "report.html", "job.json"]
    for name in names:
        aws_client("s3").put_object(
            Bucket=outputs["ResultsBucketName"], Key=f"jobs/p/{name}", Body=name.encode()
        )
    first = json.loads(darkroom("download", "jobs/p", tmp_path, "--json").stdout)
    assert first["downloaded"] == len(names)
    assert all((tmp_path / name).read_text() == name for name in names)
    second = json.loads(darkroom("download", "jobs/p", tmp_path, "--json").stdout)
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


def test_a_redrive_by_reason_moves_those_and_leaves_the_others_visible(
    darkroom: Command, aws_client: ClientFactory, outputs: dict[str, str]
) -> None:
    sqs = aws_client("sqs")
    send_dead_letters(sqs, outputs["DeadLetterQueueUrl"], 30)
    answer = json.loads(darkroom("redrive", "--reason", "quota_spent", "--json").stdout)
    assert answer["redriven"] == 15
    moved = drain(sqs, outputs["RowsQueueUrl"])
    assert {json.loads(m["Body"])["row"] for m in moved} == set(range(1, 30, 2))
    left = drain(sqs, outputs["DeadLetterQueueUrl"])
    assert {json.loads(m["Body"])["row"] for m in left} == set(range(0, 30, 2))


def test_an_unfiltered_redrive_works_without_sqs_move_tasks(
    darkroom: Command, aws_client: ClientFactory, outputs: dict[str, str]
) -> None:
    sqs = aws_client("sqs")
    send_dead_letters(sqs, outputs["DeadLetterQueueUrl"], 23)
    result = darkroom("redrive")
    assert "Redrove 23 rows: 12 unavailable, 11 quota_spent." in result.stdout, result.stderr
    moved = drain(sqs, outputs["RowsQueueUrl"])
    assert {json.loads(m["Body"])["row"] for m in moved} == set(range(23))
    assert {m["Attributes"]["MessageGroupId"] for m in moved} == {"jobs/a_b", "jobs/_"}
    assert drain(sqs, outputs["DeadLetterQueueUrl"]) == []


def test_pushed_endpoints_are_in_the_secret_and_shown_as_never_used(
    darkroom: Command, aws_client: ClientFactory, outputs: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "endpoints.json"
    empty = darkroom("endpoints", "show")
    assert "no endpoints yet" in empty.stderr
    file.write_text(
        '{"endpoints": [{"name": "g", "provider": "gemini", "api_keys": ["AIza-secret-1"]}]}'
    )
    assert darkroom("endpoints", "push", file).exit_code == 0
    secret = aws_client("secretsmanager").get_secret_value(SecretId=outputs["EndpointsSecretArn"])
    assert json.loads(secret["SecretString"])["endpoints"][0]["api_keys"] == ["AIza-secret-1"]
    shown = darkroom("endpoints", "show")
    assert "state: never used" in shown.stdout
    assert "AIza-secret-1" not in shown.output


def test_status_list_and_stop_read_the_ledger(
    darkroom: Command, aws_client: ClientFactory, outputs: dict[str, str]
) -> None:
    ledger = LedgerTable(aws_client("dynamodb"), outputs["LedgerTableName"])
    source = Source(outputs["InputBucketName"], "jobs/p.csv", "v1")
    run = Run("jobs/p", "run-1", RunState.SPLITTING, source, JobOptions(), started_at=1.0)
    started = ledger.start(run, 60)
    assert started is not None
    ledger.finish_split(started, Totals(rows=3, queued=2, invalid=1), ["A warning."])
    aws_client("s3").put_object(Bucket=outputs["InputBucketName"], Key="jobs/p.csv", Body=b"x")
    answer = json.loads(darkroom("status", "jobs/p", "--json").stdout)
    assert (answer["state"], answer["rows"], answer["failed"]) == ("running", 3, 1)
    assert answer["warnings"] == ["A warning."]
    assert json.loads(darkroom("list", "--json").stdout)[0]["job"] == "jobs/p"
    assert darkroom("stop", "jobs/p").exit_code == 0
    assert darkroom("status", "jobs/p", "--watch").exit_code == 1
    assert darkroom("failures", "jobs/p").exit_code == 0
