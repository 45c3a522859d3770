"""What `sam local invoke --env-vars` is given: the environment of the deployed functions."""

import boto3

# SAM CLI passes on only variables that the template names, so the template names this one, empty.
ENDPOINT = "AWS_ENDPOINT_URL"

type Environments = dict[str, dict[str, str]]  # variables by the logical id of their function


def of_stack(session: boto3.Session, endpoint_url: str | None, stack: str) -> Environments:
    """Variables of each function by logical id, as they are deployed. Raises botocore's errors."""
    cloudformation = session.client("cloudformation", endpoint_url=endpoint_url)
    functions = session.client("lambda", endpoint_url=endpoint_url)
    pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack)
    found: Environments = {}
    for page in pages:
        for resource in page["StackResourceSummaries"]:
            if resource["ResourceType"] == "AWS::Lambda::Function":
                name = resource.get("PhysicalResourceId", "")
                known = functions.get_function_configuration(FunctionName=name)
                found[resource["LogicalResourceId"]] = dict(known["Environment"]["Variables"])
    return found


def reached_at(functions: Environments, here: str, there: str) -> Environments:
    """The same for containers, to which the server at URL `here` has the URL `there`."""
    return {
        function: {name: value.replace(here, there) for name, value in variables.items()}
        | {ENDPOINT: there}
        for function, variables in functions.items()
    }
