"""The file for `sam local invoke --env-vars`: the environment of the deployed functions.

    python -m darkroom_local.sam_local.environment --stack darkroom > .local/env.json

Reads the stack that the AWS variables of the shell lead to, on AWS or on the one machine.
"""

import argparse
import json
import os
import sys

import boto3

# SAM CLI passes on only variables that the template names, so the template names this one, empty.
ENDPOINT = "AWS_ENDPOINT_URL"


def of_stack(
    session: boto3.Session, endpoint_url: str | None, stack: str
) -> dict[str, dict[str, str]]:
    """Variables of each function by logical id, as they are deployed. Raises botocore's errors."""
    cloudformation = session.client("cloudformation", endpoint_url=endpoint_url)
    functions = session.client("lambda", endpoint_url=endpoint_url)
    pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack)
    found: dict[str, dict[str, str]] = {}
    for page in pages:
        for resource in page["StackResourceSummaries"]:
            if resource["ResourceType"] == "AWS::Lambda::Function":
                name = resource.get("PhysicalResourceId", "")
                known = functions.get_function_configuration(FunctionName=name)
                found[resource["LogicalResourceId"]] = dict(known["Environment"]["Variables"])
    return found


def reached_at(
    functions: dict[str, dict[str, str]], here: str, there: str
) -> dict[str, dict[str, str]]:
    """The same for containers, to which the server at URL `here` has the URL `there`."""
    return {
        function: {name: value.replace(here, there) for name, value in variables.items()}
        | {ENDPOINT: there}
        for function, variables in functions.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the file for sam local invoke --env-vars.")
    parser.add_argument("--stack", default="darkroom")
    parser.add_argument(
        "--containers-reach-it-at", metavar="URL", help="for a stack on this machine"
    )
    chosen = parser.parse_args()
    here = os.environ.get(ENDPOINT) or None
    functions = of_stack(boto3.Session(), here, chosen.stack)
    if here and chosen.containers_reach_it_at:
        functions = reached_at(functions, here, chosen.containers_reach_it_at)
    json.dump(functions, sys.stdout, indent=2)
    print()  # noqa: T201 - the end of the file
    return 0


if __name__ == "__main__":
    sys.exit(main())
