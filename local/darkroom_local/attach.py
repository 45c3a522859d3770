"""`make attach`: a new stack with the buckets and the ledger that a deleted one left behind.

    make attach SUFFIX=0a1b2c3d4e5f
    make deploy ARGS=DataSuffix=0a1b2c3d4e5f

SUFFIX is the last part of their names. The first command imports them into a stack with nothing
else in it, because an import may create nothing; the second adds the rest.
https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/resource-import-new-stack.html
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError, WaiterError
from cfnlint.decode.cfn_yaml import load

from darkroom_local.deploy import configured_stack
from darkroom_local.processes import ROOT, LocalStackError

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_cloudformation.type_defs import ResourceToImportTypeDef

# Logical id, the end of its name, and the property that identifies it.
_RETAINED = (
    ("InputBucket", "input", "BucketName"),
    ("ResultsBucket", "results", "BucketName"),
    ("AccessLogsBucket", "logs", "BucketName"),
    ("LedgerTable", "ledger", "TableName"),
)
_CHANGE_SET = "attach"


def retained_template(template: Path = ROOT / "template.yaml") -> dict[str, Any]:
    """The part of the template that describes the retained resources."""
    source: dict[str, Any] = json.loads(json.dumps(load(str(template))))
    resources = {name: dict(source["Resources"][name]) for name, _, _ in _RETAINED}
    for resource in resources.values():
        resource.pop("DependsOn", None)  # on what the next deployment adds
        resource["DeletionPolicy"] = "Retain"  # also if the import fails
    parts = ("AWSTemplateFormatVersion", "Parameters", "Conditions")
    return {name: source[name] for name in parts} | {"Resources": resources}


def retained_resources(stack: str, suffix: str) -> "list[ResourceToImportTypeDef]":
    template = retained_template()["Resources"]
    return [
        {
            "ResourceType": template[logical_id]["Type"],
            "LogicalResourceId": logical_id,
            "ResourceIdentifier": {identifier: f"{stack}-{kind}-{suffix}"},
        }
        for logical_id, kind, identifier in _RETAINED
    ]


def attach(
    client: "CloudFormationClient",
    stack: str,
    suffix: str,
    parameters: Mapping[str, str],
    *,
    poll_seconds: int = 5,
) -> None:
    """Raises LocalStackError with what CloudFormation says."""
    values = {**parameters, "DataSuffix": suffix}
    polls: Any = {"Delay": poll_seconds, "MaxAttempts": 720}
    try:
        client.create_change_set(
            StackName=stack,
            ChangeSetName=_CHANGE_SET,
            ChangeSetType="IMPORT",
            TemplateBody=json.dumps(retained_template()),
            Parameters=[{"ParameterKey": n, "ParameterValue": v} for n, v in values.items()],
            ResourcesToImport=retained_resources(stack, suffix),
        )
        name: Any = {"StackName": stack, "ChangeSetName": _CHANGE_SET}
        client.get_waiter("change_set_create_complete").wait(**name, WaiterConfig=polls)
        client.execute_change_set(**name)
        client.get_waiter("stack_import_complete").wait(StackName=stack, WaiterConfig=polls)
    except ClientError as error:
        raise LocalStackError(str(error)) from error
    except WaiterError as error:
        response: Mapping[str, Any] = error.last_response
        reason = response.get("StatusReason") or "see the events of the stack"
        raise LocalStackError(f"the import failed: {reason}") from error


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make attach", description=__doc__)
    parser.add_argument("suffix", help="the last part of the names of the buckets and the ledger")
    parser.add_argument("--stack-name", default=configured_stack("default"))
    parser.add_argument("--kms-key-arn", default="", help="KmsKeyArn of the deleted stack")
    parser.add_argument("--region")
    options = parser.parse_args(arguments)
    client = boto3.Session(region_name=options.region).client("cloudformation")
    try:
        attach(client, options.stack_name, options.suffix, {"KmsKeyArn": options.kms_key_arn})
    except LocalStackError as error:
        sys.stderr.write(f"make attach: {error}\n")
        return 1
    sys.stdout.write(f"Next: make deploy ARGS=DataSuffix={options.suffix}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
