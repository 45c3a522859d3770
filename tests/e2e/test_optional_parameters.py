"""Every optional parameter at once: a KMS key, tracing, e-mail, expiry, further image buckets.

What MiniStack ignores in a template (encryption of buckets, reserved concurrency) is checked in
tests/template alone.
"""

from typing import Any

import pytest

from darkroom_local import sam
from tests.conftest import ClientFactory

pytestmark = pytest.mark.e2e

STACK = "darkroom-optional"
IMAGES = ["arn:aws:s3:::my-photos/in/*", "arn:aws:s3:::other-photos/*"]


@pytest.fixture(scope="module")
def key(aws_client: ClientFactory) -> str:
    return str(aws_client("kms").create_key()["KeyMetadata"]["Arn"])


@pytest.fixture(scope="module")
def resources(aws_endpoint: str, aws_client: ClientFactory, key: str) -> dict[str, str]:
    """Deploys; returns physical ids by logical id."""
    parameters = {
        "KmsKeyArn": key,
        "TracingMode": "Active",
        "NotificationEmail": "someone@example.com",
        "ResultsRetentionDays": "30",
        "LogRetentionDays": "7",
        "ImageObjectArns": ",".join(IMAGES),
        "WorkerProcesses": "3",
        "RowsPerWorker": "2",
    }
    with sam.exclusive():
        sam.build()
        sam.deploy(aws_endpoint, STACK, parameters)
    pages = aws_client("cloudformation").get_paginator("list_stack_resources")
    return {
        resource["LogicalResourceId"]: resource["PhysicalResourceId"]
        for page in pages.paginate(StackName=STACK)
        for resource in page["StackResourceSummaries"]
    }


@pytest.fixture
def editor(aws_client: ClientFactory, resources: dict[str, str]) -> Any:
    name = resources["EditorFunction"]
    return aws_client("lambda").get_function_configuration(FunctionName=name)


def test_the_given_key_encrypts_queues_and_logs(
    aws_client: ClientFactory, resources: dict[str, str], key: str
) -> None:
    for queue in ("RowsQueue", "BatchRowsQueue", "DeadLetterQueue", "AsyncFailuresQueue"):
        attributes = aws_client("sqs").get_queue_attributes(
            QueueUrl=resources[queue], AttributeNames=["All"]
        )["Attributes"]
        assert attributes["KmsMasterKeyId"] == key
    groups = aws_client("logs").describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{STACK}-")
    assert len(groups["logGroups"]) == 5
    assert {group["retentionInDays"] for group in groups["logGroups"]} == {7}


@pytest.mark.parametrize("name", ["Splitter", "Editor", "Submitter", "Collector", "Reporter"])
def test_roles_may_use_the_key_send_traces_and_read_the_further_images(
    aws_client: ClientFactory, resources: dict[str, str], key: str, name: str
) -> None:
    document = aws_client("iam").get_role_policy(
        RoleName=resources[f"{name}Role"], PolicyName=name.lower()
    )
    statements = {s["Sid"]: s for s in document["PolicyDocument"]["Statement"]}
    assert statements["UseKey"]["Resource"] == key
    assert "xray:PutTraceSegments" in statements["Trace"]["Action"]
    if name in ("Editor", "Submitter"):
        assert statements["ReadFurtherImages"]["Resource"] == IMAGES


def test_tracing_image_arns_and_the_concurrency_limit_follow_their_parameters(
    aws_client: ClientFactory, resources: dict[str, str], editor: dict[str, Any]
) -> None:
    assert editor["TracingConfig"] == {"Mode": "Active"}
    assert editor["Environment"]["Variables"]["IMAGE_OBJECT_ARNS"] == ",".join(IMAGES)
    (source,) = aws_client("lambda").list_event_source_mappings(
        FunctionName=resources["EditorFunction"]
    )["EventSourceMappings"]
    assert source["BatchSize"] == 2
    assert int(source["ScalingConfig"]["MaximumConcurrency"]) == 3


def test_both_topics_notify_the_address(
    aws_client: ClientFactory, resources: dict[str, str]
) -> None:
    for topic in ("JobsTopic", "AlarmsTopic"):
        found = aws_client("sns").list_subscriptions_by_topic(TopicArn=resources[topic])
        targets = [(s["Protocol"], s["Endpoint"]) for s in found["Subscriptions"]]
        assert targets == [("email", "someone@example.com")]
