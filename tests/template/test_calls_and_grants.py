"""Each role grants what its function's code can call, on the resource it calls, and no more.

A missing grant is otherwise found only by running the path that needs it: one of them sent a row's
fresh copy after ten days of waiting.
"""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from darkroom_local.ministack import REGION
from tests.template.aws_calls import AwsCall, aws_calls
from tests.template.functions import NAMES
from tests.template.test_permissions import as_list

type Grant = tuple[str, str]  # action, and logical id of the resource

# Calls whose action has another name than the API operation: AWS's "Service Authorization
# Reference" lists the actions of each service, and which operations they cover.
ACTIONS = {
    ("s3", "head_object"): ("s3:GetObject",),
    ("s3", "create_multipart_upload"): ("s3:PutObject",),
    ("s3", "upload_part"): ("s3:PutObject",),
    ("s3", "complete_multipart_upload"): ("s3:PutObject",),
    ("sqs", "send_message_batch"): ("sqs:SendMessage",),
    ("sqs", "delete_message_batch"): ("sqs:DeleteMessage",),
    ("sqs", "change_message_visibility_batch"): ("sqs:ChangeMessageVisibility",),
    ("lambda", "invoke"): ("lambda:InvokeFunction",),
    ("dynamodb", "Put"): ("dynamodb:PutItem",),
    ("dynamodb", "Update"): ("dynamodb:UpdateItem",),
    ("dynamodb", "Delete"): ("dynamodb:DeleteItem",),
    ("dynamodb", "ConditionCheck"): ("dynamodb:ConditionCheckItem",),
}
# Table.write makes the request that a Put, Update or Delete was built for.
GENERIC_WRITES = {"put_item", "update_item", "delete_item", "transact_write_items"}
# The resources that a class, or one of its calls, works on.
RESOURCES: dict[str | tuple[str, str], tuple[str, ...]] = {
    "Table": ("LedgerTable",),
    "DynamoDBEndpointStates": ("EndpointsTable",),
    "S3CsvStore": ("InputBucket",),
    "S3ObjectStore": ("ResultsBucket",),
    "SafeImageFetcher": ("InputBucket", "ResultsBucket", "ImageObjectArns"),
    "SecretsManagerSource": ("EndpointsSecret",),
    ("SqsRowQueue", "send_message"): ("DeadLetterQueue",),
    ("SqsRowQueue", "send_message_batch"): ("RowsQueue", "BatchRowsQueue"),
    "LostUploads": ("AsyncFailuresQueue",),
    "Wiring": ("JobsTopic",),
}
# The queues whose messages a function receives or counts.
QUEUES = {
    "splitter": ("RowsQueue", "BatchRowsQueue"),
    "editor": ("RowsQueue",),
    "submitter": ("BatchRowsQueue",),
}
STARTED = {
    "splitter": ("splitter", "reporter"),
    "editor": ("reporter",),
    "submitter": ("reporter",),
    "collector": ("collector", "reporter"),
    "reporter": ("reporter",),
}
# A CSV is read by its version.
READS_VERSIONS = {"S3CsvStore": ("s3:GetObjectVersion",)}
# What AWS does in the name of a role, and what no call shows.
FOR_AWS: dict[str, set[Grant]] = {
    "splitter": {("sqs:SendMessage", "AsyncFailuresQueue")},  # the failure destination
    "editor": {  # the event source of the queue
        ("sqs:ReceiveMessage", "RowsQueue"),
        ("sqs:DeleteMessage", "RowsQueue"),
        ("sqs:GetQueueAttributes", "RowsQueue"),
    },
    "submitter": {
        ("sqs:ReceiveMessage", "BatchRowsQueue"),
        ("sqs:DeleteMessage", "BatchRowsQueue"),
        ("sqs:GetQueueAttributes", "BatchRowsQueue"),
    },
    "collector": set(),
    "reporter": {("sqs:SendMessage", "AsyncFailuresQueue")},
}
# Without ListBucket S3 answers 403 for a missing object, in which no other reason can be told.
LISTED = {
    "splitter": ("InputBucket",),
    "editor": ("InputBucket", "ResultsBucket"),
    "submitter": ("InputBucket", "ResultsBucket"),
    "collector": ("ResultsBucket",),
    "reporter": ("InputBucket", "ResultsBucket"),
}
ALWAYS = {
    *(("logs:CreateLogStream", "Logs"), ("logs:PutLogEvents", "Logs")),
    *(("kms:Decrypt", "KmsKeyArn"), ("kms:GenerateDataKey", "KmsKeyArn")),
    *(("xray:PutTraceSegments", "*"), ("xray:PutTelemetryRecords", "*")),
}


def required(function: str) -> set[Grant]:
    grants = ALWAYS | FOR_AWS[function]
    grants |= {("s3:ListBucket", bucket) for bucket in LISTED[function]}
    for call in aws_calls(function):
        grants |= {
            (a, resource) for a in actions(call) for resource in resources_of(function, call)
        }
    return grants


def actions(call: AwsCall) -> tuple[str, ...]:
    if call.method == "exceptions" or (call.by == "Table" and call.method in GENERIC_WRITES):
        return ()
    more = READS_VERSIONS.get(call.by, ())
    if known := ACTIONS.get((call.service, call.method)):
        return known + more
    client: Any = boto3.client(call.service, region_name=REGION)  # type: ignore[call-overload]
    return (f"{call.service}:{client.meta.method_to_api_mapping[call.method]}", *more)


def resources_of(function: str, call: AwsCall) -> tuple[str, ...]:
    if call.service == "lambda":
        return STARTED[function]
    if call.by == "SqsRowQueue" and (call.by, call.method) not in RESOURCES:
        return QUEUES[function]
    return RESOURCES.get((call.by, call.method)) or RESOURCES[call.by]


def granted(resources: dict[str, Any], function: str) -> Iterator[Grant]:
    (policy,) = resources[f"{function.capitalize()}Role"]["Properties"]["Policies"]
    for entry in policy["PolicyDocument"]["Statement"]:
        statement = entry.get("Fn::If", (None, entry))[1]
        assert statement["Effect"] == "Allow"
        for resource in as_list(statement["Resource"]):
            for action in as_list(statement["Action"]):
                yield action, logical_id(resource)


def logical_id(resource: Any) -> str:
    """The resource that an ARN in a policy is about."""
    match resource:
        case "*":
            return "*"
        case {"Ref": str() as name} | {"Fn::GetAtt": [str() as name, _]}:
            return name
        case {"Fn::Sub": [str() as text, _]} if "-input-" in text:
            return "InputBucket"
        case {"Fn::Sub": str() as text} if ":function:" in text:
            return text.removesuffix(":live").rpartition("-")[2]
        case {"Fn::Sub": str() as text}:
            name = text.removeprefix("${").partition(".")[0]
            return "Logs" if name.endswith("Logs") else name
    raise AssertionError(f"not understood: {resource}")


@pytest.mark.parametrize("function", NAMES)
def test_no_permission_is_missing(resources: dict[str, Any], function: str) -> None:
    assert required(function) - set(granted(resources, function)) == set()


@pytest.mark.parametrize("function", NAMES)
def test_no_permission_is_unused(resources: dict[str, Any], function: str) -> None:
    assert set(granted(resources, function)) - required(function) == set()


def test_the_editors_rare_calls_are_found() -> None:
    """A row that waits for ten days is sent again; no run of a test takes that long."""
    found = {(call.by, call.method) for call in aws_calls("editor")}
    assert ("SqsRowQueue", "send_message_batch") in found
    assert ("SqsRowQueue", "send_message") in found  # to the dead-letter queue
