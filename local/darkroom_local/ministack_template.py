"""The built template, adapted to MiniStack: `python -m darkroom_local.ministack_template FILE`.

Prints JSON. template.yaml is written for AWS alone; all that MiniStack 1.5.33 cannot do is here.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cfnlint.decode.cfn_yaml import load

# MiniStack asks IAM for these calls by their own names; AWS has only the singular.
_BATCH_CALLS = ("sqs:SendMessage", "sqs:ChangeMessageVisibility", "sqs:DeleteMessage")


def adapted(template: Path, parameters: Mapping[str, str]) -> dict[str, Any]:
    """The template at `template`, for a deployment with `parameters`."""
    source: dict[str, Any] = json.loads(json.dumps(load(str(template))))
    resources: dict[str, Any] = source["Resources"]
    for name in [name for name, resource in resources.items() if _is_metric_math(resource)]:
        del resources[name]  # "Metrics" is an unknown parameter there
    for statement in _statements(resources):
        _allow_plain_http(statement)
        _name_batch_calls(statement)
    defaults = {name: parameter["Default"] for name, parameter in source["Parameters"].items()}
    _use_numbers(resources, defaults | dict(parameters))
    return source


def _is_metric_math(resource: Mapping[str, Any]) -> bool:
    return resource["Type"] == "AWS::CloudWatch::Alarm" and "Metrics" in resource["Properties"]


def _statements(resources: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of all policies of roles, queues and buckets."""
    for resource in resources.values():
        properties = resource.get("Properties", {})
        documents = [p["PolicyDocument"] for p in properties.get("Policies", ())]
        if "PolicyDocument" in properties:
            documents.append(properties["PolicyDocument"])
        for document in documents:
            for statement in document["Statement"]:
                yield statement.get("Fn::If", (None, statement))[1]


def _allow_plain_http(statement: dict[str, Any]) -> None:
    """MiniStack listens on loopback without TLS, and enforces aws:SecureTransport."""
    condition = statement.get("Condition", {})
    if "aws:SecureTransport" in condition.get("Bool", {}):
        statement["Condition"] = condition | {"NotIpAddress": {"aws:SourceIp": "127.0.0.0/8"}}


def _name_batch_calls(statement: dict[str, Any]) -> None:
    actions = statement["Action"]
    actions = [actions] if isinstance(actions, str) else actions
    statement["Action"] = [*actions, *(f"{a}Batch" for a in actions if a in _BATCH_CALLS)]


def _use_numbers(resources: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """A MaximumConcurrency by Ref arrives as a string, at which MiniStack's poller stops."""
    for resource in resources.values():
        for event in resource.get("Properties", {}).get("Events", {}).values():
            scaling = event["Properties"].get("ScalingConfig", {})
            match scaling.get("MaximumConcurrency"):
                case {"Ref": str() as name}:
                    scaling["MaximumConcurrency"] = int(parameters[name])


def main() -> None:
    sys.stdout.write(json.dumps(adapted(Path(sys.argv[1]), {}), indent=1) + "\n")


if __name__ == "__main__":
    main()
