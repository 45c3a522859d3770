"""Prepares `sam local invoke`: `python -m darkroom_local.sam_local --stack darkroom`.

The files in events/ contain the names of an example stack. This replaces them with the names of the
stack that the AWS variables of the shell lead to, and writes the result, with the environment of
its functions, to .local/sam-local/.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import boto3

from darkroom.aws.events import uploads_in
from darkroom_local.processes import ROOT

EVENTS = ROOT / "events"
PREPARED = ROOT / ".local" / "sam-local"
VARIABLES = "env.json"
UPLOAD = "splitter-s3-put.json"
# SAM CLI passes on only variables that the template names, so the template names this one, empty.
ENDPOINT = "AWS_ENDPOINT_URL"
GLOBAL = "Parameters"  # SAM CLI's key for variables of all functions


def deployed_variables(
    session: boto3.Session, endpoint_url: str | None, stack: str
) -> dict[str, str]:
    """The environment of the stack's functions, which is the same for all."""
    cloudformation = session.client("cloudformation", endpoint_url=endpoint_url)
    editor = cloudformation.describe_stack_resource(
        StackName=stack, LogicalResourceId="EditorFunction"
    )["StackResourceDetail"]
    configuration = session.client("lambda", endpoint_url=endpoint_url).get_function_configuration(
        FunctionName=editor.get("PhysicalResourceId", "")
    )
    return dict(configuration["Environment"]["Variables"])


def prepared_events(deployed: Mapping[str, str], events: Path = EVENTS) -> dict[str, str]:
    """Each event with the names of the deployed stack, and its env.json: contents by file name."""
    example: dict[str, str] = json.loads((events / VARIABLES).read_text())[GLOBAL]
    names = {
        value: deployed[variable]
        for variable, value in example.items()
        if value and variable in deployed and variable != "STACK_NAME"
    }
    upload = (events / UPLOAD).read_text()
    run = {_run_id(upload): _run_id(_replace_all(upload, names))}
    files = {
        path.name: _replace_all(path.read_text(), names | run)
        for path in sorted(events.glob("*.json"))
        if path.name != VARIABLES
    }
    return files | {VARIABLES: json.dumps({GLOBAL: dict(deployed)}, indent=2) + "\n"}


def write(files: dict[str, str], folder: Path = PREPARED) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def _replace_all(text: str, names: dict[str, str]) -> str:
    for old in sorted(names, key=len, reverse=True):
        text = text.replace(old, names[old])
    return text


def _run_id(event: str) -> str:
    """The run that this upload starts: its id depends on the bucket's name."""
    (upload,) = uploads_in(json.loads(event))
    return upload.run


def main() -> int:
    parser = argparse.ArgumentParser(description="Fit events/ to a deployed stack.")
    parser.add_argument("--stack", default="darkroom")
    stack = parser.parse_args().stack
    deployed = deployed_variables(boto3.Session(), os.environ.get(ENDPOINT) or None, stack)
    sys.stdout.write(f"{write(prepared_events(deployed))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
