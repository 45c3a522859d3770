"""The statements of the functions' roles, and a role's policy without one of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Permission:
    """One action of one statement; `action` None stands for the whole statement."""

    role: str  # logical id
    policy: str
    sid: str
    action: str | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, (self.role, self.sid, self.action)))


def of_template(template: Mapping[str, Any]) -> Iterator[tuple[Permission, list[str]]]:
    """Each statement that a deployment with default parameters has, with its actions."""
    for role, resource in template["Resources"].items():
        if resource["Type"] != "AWS::IAM::Role":
            continue
        for policy in resource["Properties"]["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                if "Fn::If" not in statement:  # a key of the user's own, X-Ray: off by default
                    name = Permission(role, policy["PolicyName"], statement["Sid"])
                    yield name, _actions(statement)


def without(document: Mapping[str, Any], permission: Permission) -> dict[str, Any]:
    """The policy document less the statement, or less one action of it."""
    kept = []
    for statement in document["Statement"]:
        if statement["Sid"] != permission.sid:
            kept.append(statement)
        elif permission.action is not None:
            left = [a for a in _actions(statement) if a != permission.action]
            if left:
                kept.append({**statement, "Action": left})
    return {**document, "Statement": kept}


def _actions(statement: Mapping[str, Any]) -> list[str]:
    action = statement["Action"]
    return [action] if isinstance(action, str) else list(action)
