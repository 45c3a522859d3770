"""Least privilege: without any one permission of a role the run fails (`make test-iam`).

The roles' policies are changed in the deployed stack; MiniStack evaluates them at every request.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from darkroom_local import stack
from tests.iam.scenario import EXPECTED, EXPECTED_OF_BATCHES, Scenario
from tests.template.functions import FUNCTIONS
from tests.template.transform import transformed

pytestmark = pytest.mark.soak


@dataclass(frozen=True, order=True)
class Permission:
    """One action of one statement; `action` None is the whole statement."""

    role: str  # logical id
    policy: str
    sid: str
    action: str | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, (self.role, self.sid, self.action)))


# Of jobs with mode=batch, which have runs of their own. Only what was revoked in a run so far;
# tests/template/test_calls_and_grants.py finds grants that nothing needs.
ROLES_OF_BATCHES = ("SubmitterRole", "CollectorRole")
REVOKED_IN_BATCHES = (
    "SubmitterRole-TakeRows",
    "SubmitterRole-HaveRowsCalledFor",
    "SubmitterRole-DeadLetterRows",
)


def permissions_of(template: Mapping[str, Any]) -> Iterator[tuple[Permission, list[str]]]:
    """Each statement that a deployment with default parameters has, with its actions."""
    for role, resource in template["Resources"].items():
        if resource["Type"] != "AWS::IAM::Role":
            continue
        for policy in resource["Properties"]["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                if "Fn::If" not in statement:  # the user's own KMS key, X-Ray: off by default
                    name = Permission(role, policy["PolicyName"], statement["Sid"])
                    yield name, _actions(statement)


def without(document: Mapping[str, Any], permission: Permission) -> dict[str, Any]:
    """The policy document without the statement, or without one of its actions."""
    kept = []
    for statement in document["Statement"]:
        if statement["Sid"] != permission.sid:
            kept.append(statement)
        elif permission.action is not None:
            remaining = [a for a in _actions(statement) if a != permission.action]
            if remaining:
                kept.append({**statement, "Action": remaining})
    return {**document, "Statement": kept}


def _actions(statement: Mapping[str, Any]) -> list[str]:
    action = statement["Action"]
    return [action] if isinstance(action, str) else list(action)


def _is_covered(permission: Permission) -> bool:
    return permission.role not in ROLES_OF_BATCHES or str(permission) in REVOKED_IN_BATCHES


STATEMENTS = dict(permissions_of(transformed()))
ACTIONS = [
    replace(statement, action=action)
    for statement, actions in STATEMENTS.items()
    if len(actions) > 1
    for action in actions
]
COVERED = [permission for permission in [*STATEMENTS, *ACTIONS] if _is_covered(permission)]
# Statements that MiniStack does not check, so that a run on it cannot fail without them.
NOT_CHECKED_HERE = {
    "WriteLogs": "MiniStack writes the functions' logs itself",
    "KeepFailedEvents": "MiniStack forwards failed events itself",
    "DistinguishMissingFromForbidden": "MiniStack's S3 always answers 404",
    "TellTheUser": "MiniStack's default topic policy lets every role of the account publish",
}
# Actions that no run of a new stack needs, and what the role has them for.
FOR_OTHER_CASES = {
    "EditorRole-TakeRows-sqs:SendMessage": "a row that has waited for ten days",
    "EditorRole-ReturnRowsToBatches": "redriven rows of jobs with mode=batch",
    "SplitterRole-RestartLostUploads": "uploads that failed three times",
    "SplitterRole-RestartLostUploads-sqs:ReceiveMessage": "the same",
    "SplitterRole-RestartLostUploads-sqs:DeleteMessage": "the same",
    "SplitterRole-ReadUploads-s3:GetObject": "uploads while versioning is suspended",
    "ReporterRole-ReadUploads-s3:GetObject": "uploads while versioning is suspended",
    "ReporterRole-ReadAndWriteResults-s3:AbortMultipartUpload": "a report abandoned half written",
    "ReporterRole-ContinueItself": "reports of millions of rows",
}


@pytest.fixture(scope="module")
def info() -> Iterator[stack.StackInfo]:
    with stack.running(stack="iam") as started:
        yield started


type Run = Callable[[str], dict[str, object]]  # of a job; returns what was observed


@pytest.fixture(scope="module")
def scenario(info: stack.StackInfo) -> Run:
    inbox = _inbox(info)
    return _timed(info, lambda seconds: Scenario(info, inbox, seconds).run, EXPECTED)


@pytest.fixture(scope="module")
def batch_scenario(info: stack.StackInfo) -> Run:
    _do_not_wait_for_more_rows(info)
    return _timed(
        info, lambda seconds: Scenario(info, "", seconds).run_in_batches, EXPECTED_OF_BATCHES
    )


def _timed(
    info: stack.StackInfo, run_within: Callable[[float], Run], expected: dict[str, object]
) -> Run:
    """The run with a little more time than it takes with all permissions."""
    run = run_within(180)
    assert run(f"warm/up-{len(expected)}") == expected
    _reset_functions(info)
    started = time.monotonic()
    assert run(f"iam/whole-{len(expected)}") == expected
    return run_within(10 + time.monotonic() - started)


def _do_not_wait_for_more_rows(info: stack.StackInfo) -> None:
    """Otherwise each batch would start after a minute."""
    functions = info.client("lambda")
    name = info.outputs["SubmitterFunctionName"]
    for alias in (name, f"{name}:live"):
        found = functions.list_event_source_mappings(FunctionName=alias)["EventSourceMappings"]
        for mapping in found:
            functions.update_event_source_mapping(
                UUID=mapping["UUID"], BatchSize=10, MaximumBatchingWindowInSeconds=0
            )


def _inbox(info: stack.StackInfo) -> str:
    """Subscribe a new queue to the jobs topic; returns its URL."""
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
def revoked(info: stack.StackInfo, permission: Permission) -> Iterator[None]:
    iam = info.client("iam")
    resource = info.client("cloudformation").describe_stack_resource(
        StackName=info.stack, LogicalResourceId=permission.role
    )
    role = resource["StackResourceDetail"]["PhysicalResourceId"]
    policy: dict[str, Any] = iam.get_role_policy(RoleName=role, PolicyName=permission.policy)
    document = policy["PolicyDocument"]
    reduced = without(document, permission)
    assert reduced != document

    def put(which: dict[str, Any]) -> None:
        name = {"RoleName": role, "PolicyName": permission.policy}
        iam.put_role_policy(**name, PolicyDocument=json.dumps(which))
        _reset_functions(info)

    put(reduced)
    try:
        yield
    finally:
        put(document)
        for queue in ("RowsQueueUrl", "BatchRowsQueueUrl"):
            info.client("sqs").purge_queue(QueueUrl=info.outputs[queue])


def _reset_functions(info: stack.StackInfo) -> None:
    """New processes and endpoint state: a warm editor would use what it has already read."""
    table, database = info.outputs["EndpointsTableName"], info.client("dynamodb")
    for item in database.scan(TableName=table)["Items"]:
        database.delete_item(TableName=table, Key={"endpoint": item["endpoint"]})
    functions = info.client("lambda")
    for function in FUNCTIONS:
        name = info.outputs[f"{function}Name"]
        functions.update_function_configuration(FunctionName=name, Description=uuid.uuid4().hex)
        version = functions.publish_version(FunctionName=name)["Version"]
        functions.update_alias(FunctionName=name, Name="live", FunctionVersion=version)


@pytest.mark.parametrize("permission", COVERED, ids=str)
def test_the_run_fails_without(
    request: pytest.FixtureRequest, info: stack.StackInfo, permission: Permission
) -> None:
    in_batches = permission.role in ROLES_OF_BATCHES
    chosen = request.getfixturevalue("batch_scenario" if in_batches else "scenario")
    with revoked(info, permission):
        observed = chosen(f"iam/{permission}")
    expected = EXPECTED_OF_BATCHES if in_batches else EXPECTED
    if permission.sid in NOT_CHECKED_HERE or str(permission) in FOR_OTHER_CASES:
        assert observed == expected, f"{permission} is checked now: remove it from the list"
    else:
        assert observed != expected


def test_the_run_still_works_with_all_permissions(scenario: Run) -> None:
    """Otherwise the failures above would have other causes."""
    assert scenario("iam/whole again") == EXPECTED


def test_batches_still_work_with_all_permissions(batch_scenario: Run) -> None:
    assert batch_scenario("iam/whole again in batches") == EXPECTED_OF_BATCHES
