"""A deployed stack whose own functions are disabled, and containers that can reach it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from darkroom_local import sam, sam_local, stack
from darkroom_local.processes import ROOT, LocalStackError
from darkroom_local.providers import Simulator
from darkroom_local.sam_local import ENDPOINT, VARIABLES
from tests.sam_local import __main__ as make
from tests.sam_local.engine import Engine
from tests.sam_local.forwarding import forwarded

INVOKE_SECONDS = 180


@dataclass(frozen=True)
class Answer:
    """What the function returned (None: nothing), and all that it and SAM CLI logged."""

    value: Any
    log: str


@dataclass(frozen=True)
class SamLocalHarness:
    """Runs `sam local invoke` and reads the effects from the deployed stack."""

    engine: Engine
    image: str | None  # in place of AWS's own image
    template: Path
    stack: stack.StackInfo
    events: Path  # prepared for this stack

    def invoke(self, function: str, event: str) -> Answer:
        """Raises LocalStackError when SAM CLI fails or prints no JSON."""
        done = subprocess.run(
            self._command(function, event),
            env=self.engine.environment() | self.stack.environment() | {"SAM_CLI_TELEMETRY": "0"},
            capture_output=True,
            text=True,
            timeout=INVOKE_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise LocalStackError(f"sam local invoke {function} failed: {done.stderr[-2000:]}")
        # The function's log is on stderr, its answer is the last line of stdout.
        last = (done.stdout.strip().splitlines() or ["null"])[-1]
        try:
            return Answer(json.loads(last), done.stderr)
        except ValueError as error:
            raise LocalStackError(f"sam local invoke {function} printed {last[:200]}") from error

    def _command(self, function: str, event: str) -> list[str | Path]:
        options = {"--event": self.events / event, "--env-vars": self.events / VARIABLES}
        command: list[str | Path] = [sam.BIN / "sam", "local", "invoke", function]
        command += ["--template", self.template]
        command += [part for option in options.items() for part in option]
        return command + (["--skip-pull-image", "--invoke-image", self.image] if self.image else [])

    def event(self, name: str) -> Any:
        return json.loads((self.events / name).read_text())

    def result(self, key: str) -> bytes:
        bucket = self.stack.outputs["ResultsBucketName"]
        content: bytes = self.stack.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def endpoint_stats(self, name: str) -> dict[str, Any]:
        """The counts of the simulated endpoint."""
        stats: dict[str, Any] = Simulator(str(self.stack.providers_url)).stats()[name]
        return stats


@pytest.fixture(scope="session")
def engine() -> Engine:
    if make.HOST_VARIABLE not in os.environ:
        pytest.skip("`make test-sam-local` sets up a container engine and runs these")
    return Engine(os.environ[make.HOST_VARIABLE] or None)


@pytest.fixture(scope="session")
def harness(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SamLocalHarness]:
    gateway = engine.gateway()
    with (
        stack.running() as info,
        forwarded(info.url, gateway) as aws_url,
        forwarded(str(info.providers_url), gateway) as providers_url,
    ):
        _disable_triggers(info)
        info.push_secret(stack.endpoints_secret(providers_url))
        deployed = sam_local.deployed_variables(info.session(), info.url, info.stack)
        files = sam_local.prepared_events(for_containers(deployed, info.url, aws_url))
        events = sam_local.write(files, tmp_path_factory.mktemp("events"))
        image = os.environ.get(make.IMAGE_VARIABLE) or None
        template = _copy_of_build(tmp_path_factory.mktemp("sam") / "build")
        yield SamLocalHarness(engine, image, template, info, events)


def for_containers(variables: Mapping[str, str], url: str, forwarded_url: str) -> dict[str, str]:
    """The environment for containers, which reach the AWS at `url` by `forwarded_url`."""
    replaced = {name: value.replace(url, forwarded_url) for name, value in variables.items()}
    return replaced | {ENDPOINT: forwarded_url}


def _disable_triggers(info: stack.StackInfo) -> None:
    """Uploads, messages and finished jobs no longer start the deployed functions."""
    info.client("s3").put_bucket_notification_configuration(
        Bucket=info.outputs["InputBucketName"], NotificationConfiguration={}
    )
    functions = info.client("lambda")
    for source in functions.list_event_source_mappings()["EventSourceMappings"]:
        functions.update_event_source_mapping(UUID=source["UUID"], Enabled=False)
    functions.put_function_concurrency(
        FunctionName=info.outputs["ReporterFunctionName"], ReservedConcurrentExecutions=0
    )


def _copy_of_build(folder: Path) -> Path:
    """The built template, in a folder that no later build changes."""
    with sam.exclusive():
        shutil.copytree(ROOT / ".aws-sam" / "build", folder)
    return folder / "template.yaml"
