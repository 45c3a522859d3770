"""Least privilege, proven: take one statement from a role, and the run fails (`make test-iam`).

The roles' policies are changed in the deployed stack; MiniStack evaluates them at every request.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from darkroom_local import stack
from darkroom_local.transform import transformed
from tests.iam.permissions import Permission, of_template, without
from tests.iam.scenario import EXPECTED, Scenario

pytestmark = pytest.mark.soak

STATEMENTS = dict(of_template(transformed()))
ACTIONS = [
    replace(statement, action=action)
    for statement, actions in STATEMENTS.items()
    if len(actions) > 1
    for action in actions
]
# What MiniStack does itself, without asking the role, so that no run on it can fail for it.
NOT_ASKED_HERE = {
    "WriteLogs": "MiniStack writes the functions' logs itself",
    "KeepFailedEvents": "MiniStack hands failed events on itself",
    "DistinguishMissingFromForbidden": "MiniStack's S3 tells a missing object to everybody",
}
# Actions that no run of a new stack needs, and why the role has them all the same.
FOR_OTHER_DAYS = {
    "SplitterRole-ReadUploads-s3:GetObject": "uploads while versioning is suspended",
    "ReporterRole-ReadUploads-s3:GetObject": "uploads while versioning is suspended",
    "ReporterRole-ReadAndWriteResults-s3:AbortMultipartUpload": "a report given up half written",
}


@pytest.fixture(scope="module")
def info() -> Iterator[stack.StackInfo]:
    with stack.running(stack="iam") as started:
        yield started


@pytest.fixture(scope="module")
def scenario(info: stack.StackInfo) -> Scenario:
    inbox = _inbox(info)
    full = Scenario(info, inbox, seconds=180)
    assert full.run("warm/up") == EXPECTED
    _start_afresh(info)
    started = time.monotonic()
    assert full.run("iam/whole") == EXPECTED
    return Scenario(info, inbox, seconds=10 + time.monotonic() - started)


def _inbox(info: stack.StackInfo) -> str:
    """A queue that gets what the jobs topic publishes."""
    sqs, topic = info.client("sqs"), info.outputs["JobsTopicArn"]
    url = str(sqs.create_queue(QueueName="inbox")["QueueUrl"])
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": arn["QueueArn"],
        "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
    info.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn["QueueArn"])
    return url


@contextmanager
def taken_away(info: stack.StackInfo, permission: Permission) -> Iterator[None]:
    iam = info.client("iam")
    role = _physical(info, permission.role)
    policy: dict[str, Any] = iam.get_role_policy(RoleName=role, PolicyName=permission.policy)
    document = policy["PolicyDocument"]
    less = without(document, permission)
    assert less != document

    def put(which: dict[str, Any]) -> None:
        iam.put_role_policy(
            RoleName=role, PolicyName=permission.policy, PolicyDocument=json.dumps(which)
        )
        _start_afresh(info)

    put(less)
    try:
        yield
    finally:
        put(document)
        info.client("sqs").purge_queue(QueueUrl=info.outputs["RowsQueueUrl"])


def _start_afresh(info: stack.StackInfo) -> None:
    """New processes and endpoints: a warm editor has read its secret, and seeded its endpoints."""
    table, database = info.outputs["EndpointsTableName"], info.client("dynamodb")
    for item in database.scan(TableName=table)["Items"]:
        database.delete_item(TableName=table, Key={"endpoint": item["endpoint"]})
    functions = info.client("lambda")
    for output in ("SplitterFunctionName", "EditorFunctionName", "ReporterFunctionName"):
        functions.update_function_configuration(FunctionName=info.outputs[output], Timeout=900)


def _physical(info: stack.StackInfo, logical: str) -> str:
    found = info.client("cloudformation").describe_stack_resource(
        StackName=info.stack, LogicalResourceId=logical
    )
    return str(found["StackResourceDetail"]["PhysicalResourceId"])


@pytest.mark.parametrize("permission", [*STATEMENTS, *ACTIONS], ids=str)
def test_the_run_fails_without(
    scenario: Scenario, info: stack.StackInfo, permission: Permission
) -> None:
    with taken_away(info, permission):
        seen = scenario.run(f"iam/{permission}")
    if permission.sid in NOT_ASKED_HERE or str(permission) in FOR_OTHER_DAYS:
        assert seen == EXPECTED, f"{permission} is asked for now: take it from the list"
    else:
        assert seen != EXPECTED


def test_the_run_still_works_with_all_permissions(scenario: Scenario) -> None:
    """Else the failures above would have other causes."""
    assert scenario.run("iam/whole again") == EXPECTED
