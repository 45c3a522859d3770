"""Buckets and ledger of a deleted stack belong to a new one, with what is in them."""

import uuid
from typing import Any

import pytest

from darkroom_local import attach
from darkroom_local.processes import LocalStackError
from tests.conftest import ClientFactory
from tests.tables import create_table
from tests.template.transform import transformed

SUFFIX = "0a1b2c3d4e5f"


@pytest.fixture
def stack(aws_client: ClientFactory) -> str:
    """The name of a deleted stack whose data is still there."""
    name = f"attach-{uuid.uuid4().hex[:8]}"
    for kind in ("input", "results", "logs"):
        aws_client("s3").create_bucket(Bucket=f"{name}-{kind}-{SUFFIX}")
    aws_client("s3").put_object(Bucket=f"{name}-results-{SUFFIX}", Key="jobs/p/job.json", Body=b"1")
    create_table(aws_client("dynamodb"), "ledger", f"{name}-ledger-{SUFFIX}")
    return name


def test_retained_data_is_imported_into_a_new_stack(aws_client: ClientFactory, stack: str) -> None:
    cloudformation: Any = aws_client("cloudformation")
    attach.attach(cloudformation, stack, SUFFIX, {}, poll_seconds=0)
    resources = cloudformation.describe_stack_resources(StackName=stack)["StackResources"]
    attached = {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in resources}
    assert attached == {
        "InputBucket": f"{stack}-input-{SUFFIX}",
        "ResultsBucket": f"{stack}-results-{SUFFIX}",
        "AccessLogsBucket": f"{stack}-logs-{SUFFIX}",
        "LedgerTable": f"{stack}-ledger-{SUFFIX}",
    }
    results = aws_client("s3").list_objects_v2(Bucket=attached["ResultsBucket"])
    assert [entry["Key"] for entry in results["Contents"]] == ["jobs/p/job.json"]


def test_a_wrong_suffix_is_an_error_of_cloudformation(
    aws_client: ClientFactory, stack: str
) -> None:
    with pytest.raises(LocalStackError):
        attach.attach(aws_client("cloudformation"), stack, "f" * 12, {}, poll_seconds=0)


def test_the_import_describes_exactly_what_outlives_the_stack() -> None:
    kept = {
        name
        for name, resource in transformed()["Resources"].items()
        if resource.get("DeletionPolicy", "").startswith("Retain")
        and resource["Type"] != "AWS::Lambda::Version"
    }
    assert attach.retained_template()["Resources"].keys() == kept
    names = {entry["LogicalResourceId"] for entry in attach.retained_resources("s", "x")}
    assert names == kept
