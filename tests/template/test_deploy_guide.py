"""docs/deploy.md: its policies cover the template, and what it names exists."""

import json
import re
from typing import Any

import pytest

from darkroom_local.processes import ROOT

GUIDE = (ROOT / "docs" / "deploy.md").read_text()
# IAM's prefix of the services whose names differ in CloudFormation's resource types.
PREFIXES = {"Logs": "logs", "S3": "s3", "Lambda": "lambda", "IAM": "iam", "DynamoDB": "dynamodb"}


def policies() -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)]


@pytest.fixture(scope="module")
def key_policy() -> dict[str, dict[str, Any]]:
    (found,) = [p for p in policies() if "kms:" in str(p)]
    return {statement["Sid"]: statement for statement in found["Statement"]}


def actions(policy: dict[str, Any]) -> list[str]:
    found = [s["Action"] for s in policy["Statement"]]
    return [a for entry in found for a in (entry if isinstance(entry, list) else [entry])]


def test_the_deploy_role_may_create_every_resource_of_the_template(
    resources: dict[str, Any],
) -> None:
    (policy,) = [p for p in policies() if "iam:PassRole" in str(p)]
    allowed = {action.partition(":")[0] for action in actions(policy)}
    services = {resource["Type"].split("::")[1] for resource in resources.values()}
    assert {PREFIXES.get(service, service.lower()) for service in services} <= allowed


def test_the_deploy_role_may_tag_the_event_source_and_delete_the_roles() -> None:
    """CloudFormation puts the stack's tags on it, and lists a role's policies to delete it.

    https://docs.aws.amazon.com/lambda/latest/dg/tags-esm.html
    """
    (policy,) = [p for p in policies() if "iam:PassRole" in str(p)]
    statements = {statement["Sid"]: statement for statement in policy["Statement"]}
    assert statements["Functions"]["Action"] == "lambda:*"
    event_sources = "arn:aws:lambda:REGION:ACCOUNT:event-source-mapping:*"
    assert event_sources in statements["Functions"]["Resource"]
    assert {"iam:ListRolePolicies", "iam:ListAttachedRolePolicies"} <= set(
        statements["Roles"]["Action"]
    )


def test_the_deploy_role_may_use_no_service_that_the_template_lacks(
    resources: dict[str, Any],
) -> None:
    (policy,) = [p for p in policies() if "iam:PassRole" in str(p)]
    services = {resource["Type"].split("::")[1] for resource in resources.values()}
    expected = {PREFIXES.get(service, service.lower()) for service in services}
    assert {a.partition(":")[0] for a in actions(policy)} == expected | {"cloudformation"}


def test_cloudwatch_logs_may_use_the_key_of_the_logs_in_its_region(
    key_policy: dict[str, dict[str, Any]],
) -> None:
    """https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/encrypt-log-data-kms.html"""
    logs = key_policy["EncryptLogs"]
    assert logs["Principal"] == {"Service": "logs.REGION.amazonaws.com"}
    assert "kms:GenerateDataKey*" in logs["Action"]
    alarms = key_policy["DeliverAlarms"]
    assert alarms["Principal"] == {"Service": "cloudwatch.amazonaws.com"}


def test_the_parameter_asks_for_the_same_services(template: dict[str, Any]) -> None:
    description = template["Parameters"]["KmsKeyArn"]["Description"]
    assert "logs.REGION.amazonaws.com and cloudwatch.amazonaws.com" in description
    assert "docs/deploy.md" in description


def test_every_parameter_that_the_guide_names_exists(template: dict[str, Any]) -> None:
    named = set(re.findall(r"\b([A-Z][a-z][A-Za-z]+)=\S", GUIDE))
    named |= set(re.findall(r"`([A-Z][A-Za-z]+(?:Usd|Days|Arn|Processes))`", GUIDE))
    assert named <= template["Parameters"].keys()
    assert {"DailySpendAlarmUsd", "ReserveConcurrency", "DataSuffix"} <= named


def test_the_cost_of_waiting_workers_is_named_where_they_are_explained(
    template: dict[str, Any],
) -> None:
    """$0.0000166667 per GB-second: https://aws.amazon.com/lambda/pricing/"""
    gigabytes = template["Resources"]["EditorFunction"]["Properties"]["MemorySize"] / 1024
    cost = f"${gigabytes * 0.0000166667 * 3600:.2f} an hour"
    assert cost in template["Parameters"]["WorkerProcesses"]["Description"]
    assert cost in GUIDE
