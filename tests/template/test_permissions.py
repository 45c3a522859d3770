"""Least privilege: a role per function, and wildcards only where AWS supports nothing finer."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest

from darkroom.jobs import ResultPaths
from tests.template.functions import FUNCTIONS

# AWS: "Actions, resources, and condition keys for AWS X-Ray": no resource types for these two.
WITHOUT_RESOURCE_TYPES = {"xray:PutTraceSegments", "xray:PutTelemetryRecords"}


def statements(resources: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, resource in resources.items():
        if resource["Type"] == "AWS::IAM::Role":
            for policy in resource["Properties"]["Policies"]:
                for statement in policy["PolicyDocument"]["Statement"]:
                    yield name, statement.get("Fn::If", [None, statement])[1]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_every_function_has_its_own_role_and_sam_adds_none(resources: dict[str, Any]) -> None:
    roles = [resources[f]["Properties"]["Role"]["Fn::GetAtt"][0] for f in FUNCTIONS]
    assert sorted(roles) == sorted(f"{f.removesuffix('Function')}Role" for f in FUNCTIONS)
    assert {name for name, r in resources.items() if r["Type"] == "AWS::IAM::Role"} == set(roles)
    for role in roles:
        assert "ManagedPolicyArns" not in resources[role]["Properties"]


def test_no_action_is_a_wildcard(resources: dict[str, Any]) -> None:
    actions = [(role, a) for role, s in statements(resources) for a in as_list(s["Action"])]
    assert [(role, action) for role, action in actions if "*" in action] == []


def test_every_resource_is_named_where_aws_supports_it(resources: dict[str, Any]) -> None:
    unnamed = [s for _, s in statements(resources) if "*" in as_list(s["Resource"])]
    anything = [set(as_list(statement["Action"])) for statement in unnamed]
    assert anything, "tracing needs it"
    assert all(actions == WITHOUT_RESOURCE_TYPES for actions in anything)


def test_every_statement_has_a_unique_id(resources: dict[str, Any]) -> None:
    named = [(role, statement["Sid"]) for role, statement in statements(resources)]
    assert len(named) == len(set(named))


def test_only_functions_that_call_providers_read_keys(resources: dict[str, Any]) -> None:
    read = "secretsmanager:GetSecretValue"
    readers = {role for role, s in statements(resources) if read in as_list(s["Action"])}
    assert readers == {"EditorRole", "SubmitterRole", "CollectorRole"}


def test_no_function_deletes_a_users_data(resources: dict[str, Any]) -> None:
    actions = {a for _, s in statements(resources) for a in as_list(s["Action"])}
    assert {a for a in actions if "Delete" in a} == {"sqs:DeleteMessage"}


def test_no_function_writes_to_the_input_bucket(resources: dict[str, Any]) -> None:
    for _, statement in statements(resources):
        if "s3:PutObject" in as_list(statement["Action"]):
            assert all("ResultsBucket" in str(r) for r in as_list(statement["Resource"]))


@pytest.mark.parametrize("role", ["EditorRole", "SubmitterRole", "CollectorRole"])
def test_a_compromised_editor_cannot_replace_a_report(resources: dict[str, Any], role: str) -> None:
    """They decode images from outside, and users open report.html and manifest.csv."""
    writable = [
        resource["Fn::Sub"]
        for of_role, statement in statements(resources)
        if of_role == role and "s3:PutObject" in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    ]
    paths = ResultPaths("jobs/products")
    assert may_write(writable, paths.thumb("000000", "after"))
    assert may_write(writable, paths.image("shoe.png")) is (role != "SubmitterRole")
    for report in (paths.manifest, paths.summary, paths.report_page(1), paths.report_page(2)):
        assert not may_write(writable, report)


def may_write(patterns: list[str], key: str) -> bool:
    """IAM's wildcards: * matches any characters, slashes included."""
    return any(fnmatchcase(key, p.removeprefix("${ResultsBucket.Arn}/")) for p in patterns)


def test_the_users_key_is_used_through_the_services_of_the_stack_only(
    resources: dict[str, Any],
) -> None:
    found = [s for _, s in statements(resources) if "kms:Decrypt" in as_list(s["Action"])]
    assert len(found) == len(FUNCTIONS)
    for statement in found:
        services = statement["Condition"]["StringEquals"]["kms:ViaService"]
        names = {service["Fn::Sub"].partition(".")[0] for service in services}
        assert names == {"dynamodb", "lambda", "s3", "secretsmanager", "sns", "sqs"}
