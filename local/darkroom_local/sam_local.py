"""Prepares `sam local invoke`, which reads the environment of the functions from .local/sam-local/.

`make sam-local` starts a stack on this machine with the names that the files in events/ contain, as
they are after the upload of events/sam-local.csv. Its triggers are off, its providers simulated.

`make sam-local STACK=darkroom` is for a stack on AWS: it writes copies of the events with the names
of that stack.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import boto3

from darkroom.aws.events import uploads_in
from darkroom_local import stack
from darkroom_local.processes import ROOT, LocalStackError, run, spawn, wait_until

EVENTS = ROOT / "events"
PREPARED = ROOT / ".local" / "sam-local"
VARIABLES = "env.json"
UPLOAD = "splitter-s3-put.json"
# SAM CLI passes on only variables that the template names, so the template names this one, empty.
ENDPOINT = "AWS_ENDPOINT_URL"
GLOBAL = "Parameters"  # SAM CLI's key for variables of all functions
STATE = PREPARED / "stack.json"
EXAMPLE_SUFFIX = "0a1b2c3d4e5f"  # of the names in events/
CSV, PHOTO = EVENTS / "sam-local.csv", ROOT / "examples" / "photos"
FORWARDING_SECONDS = 30.0


def start() -> stack.StackInfo:
    """The stack for events/, and .local/sam-local/env.json. Raises LocalStackError."""
    info = stack.current(STATE)
    if info is None:
        # sam local passes on the credentials of the shell, whatever they are.
        info = stack.up(
            state=STATE,
            parameters={"DataSuffix": EXAMPLE_SUFFIX},
            auth=False,
            progress=_print_step,
        )
        info = _prepare(info)
    return info


def _print_step(step: str) -> None:
    sys.stdout.write(f"{step}\n")


def _prepare(info: stack.StackInfo) -> stack.StackInfo:
    disable_triggers(info)
    info, (url, providers_url) = _reachable(info)
    info.push_secret(stack.endpoints_secret(providers_url))
    with closing(info.client("s3")) as s3:
        bucket = info.outputs["InputBucketName"]
        s3.put_object(Bucket=bucket, Key="jobs/sam local.csv", Body=CSV.read_bytes())
        photo = min(PHOTO.glob("*.jpg")).read_bytes()
        s3.put_object(Bucket=bucket, Key="jobs/photo.jpg", Body=photo)
    with closing(info.client("lambda")) as functions:
        splitter = info.outputs["SplitterFunctionName"]
        functions.invoke(FunctionName=splitter, Payload=(EVENTS / UPLOAD).read_bytes())
    deployed = deployed_variables(info.session(), info.url, info.stack)
    variables = for_containers(deployed, info.url, url)
    write({VARIABLES: json.dumps({GLOBAL: variables}, indent=2) + "\n"})
    return info


def _reachable(info: stack.StackInfo) -> tuple[stack.StackInfo, list[str]]:
    """The URLs at which containers reach the stack and its providers; a process forwards them."""
    if platform.system() != "Linux":
        # Only there do containers reach this machine by an IP address; under a host name the SDK
        # puts the bucket into the name.
        raise LocalStackError("it needs Docker on Linux; for a stack on AWS use STACK=NAME")
    urls = [info.url, str(info.providers_url)]
    module = [sys.executable, "-m", "darkroom_local.forwarding"]
    log = Path(info.work) / "forwarding.log"
    process = spawn([*module, docker_gateway(), *urls], os.environ, log, detached=True)
    info = replace(info, groups=(*info.groups, process.pid))
    stack.record(info, STATE)
    if not wait_until(lambda: process.ended or bool(log.read_text()), FORWARDING_SECONDS):
        raise LocalStackError("the forwarding for containers did not start")
    if process.ended:
        raise LocalStackError(f"the forwarding for containers ended: {process.log_tail()}")
    return info, json.loads(log.read_text())


def docker_gateway(environment: Mapping[str, str] | None = None) -> str:
    """The address at which containers reach this machine. Raises LocalStackError without Docker.

    `network inspect` leaves the gateway empty unless it was configured or docker0 existed before
    the engine started. It is then the first address of the subnet, Docker's default.
    """
    template = "{{with index .IPAM.Config 0}}{{.Subnet}} {{.Gateway}}{{end}}"
    command = ["docker", "network", "inspect", "bridge", "--format", template]
    try:
        network = run(command, environment, timeout_seconds=60).split()
    except OSError as error:
        raise LocalStackError("sam local needs Docker: install and start it") from error
    return network[1] if len(network) > 1 else str(ip_network(network[0])[1])


def disable_triggers(info: stack.StackInfo) -> None:
    """Uploads, messages and finished jobs no longer start the deployed functions."""
    with closing(info.client("s3")) as s3:
        s3.put_bucket_notification_configuration(
            Bucket=info.outputs["InputBucketName"], NotificationConfiguration={}
        )
    with closing(info.client("lambda")) as functions:
        for source in functions.list_event_source_mappings()["EventSourceMappings"]:
            functions.update_event_source_mapping(UUID=source["UUID"], Enabled=False)
        reporter = info.outputs["ReporterFunctionName"]
        # Unlike AWS, MiniStack applies the reserved concurrency to $LATEST alone.
        functions.update_alias(FunctionName=reporter, Name="live", FunctionVersion="$LATEST")
        functions.put_function_concurrency(FunctionName=reporter, ReservedConcurrentExecutions=0)


def for_containers(variables: Mapping[str, str], url: str, forwarded_url: str) -> dict[str, str]:
    """The environment for containers, which reach the AWS at `url` by `forwarded_url`."""
    replaced = {name: value.replace(url, forwarded_url) for name, value in variables.items()}
    return replaced | {ENDPOINT: forwarded_url}


READY = """\
Ready. In this folder, with .venv-sam/bin on your PATH:
  sam local invoke EditorFunction -e events/editor-sqs-batch.json
"""
WARNING = """\
Ready, with the credentials of your shell. This spends money: it edits rows in the stack {stack}.
  sam local invoke EditorFunction -e .local/sam-local/editor-sqs-batch.json
"""


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
    parser = argparse.ArgumentParser(prog="make sam-local", description=__doc__)
    parser.add_argument("--stack", default="", help="a stack on AWS; default: one on this machine")
    parser.add_argument("--down", action="store_true", help="stop the stack on this machine")
    options = parser.parse_args()
    try:
        if options.down:
            stack.down(STATE)
        elif options.stack:
            _prepare_for_aws(options.stack)
        else:
            start()
            sys.stdout.write(READY)
    except LocalStackError as error:
        sys.stderr.write(f"make sam-local: {error}\n")
        return 1
    return 0


def _prepare_for_aws(name: str) -> None:
    deployed = deployed_variables(boto3.Session(), os.environ.get(ENDPOINT) or None, name)
    write(prepared_events(deployed))
    sys.stdout.write(WARNING.format(stack=name))


if __name__ == "__main__":
    sys.exit(main())
