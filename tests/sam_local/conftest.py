"""A deployed stack whose own functions are disabled, and containers that can reach it."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from darkroom_local import sam, sam_local, stack
from darkroom_local.forwarding import forwarded
from darkroom_local.processes import ROOT, LocalStackError, wait_until
from darkroom_local.sam_local import VARIABLES, disable_triggers, for_containers
from tests.e2e.harness import StackHarness
from tests.sam_local import __main__ as make
from tests.sam_local.engine import Engine

INVOKE_SECONDS = 180
# SAM CLI calls a container three times within a second. Docker's proxy accepts the connections even
# before the function's runtime listens; SAM CLI then prints this, and does not end.
NO_RESPONSE, TRIES = "No response from invoke container", 6


@dataclass(frozen=True)
class SamLocalHarness:
    """Runs `sam local invoke` and reads the effects from the deployed stack."""

    engine: Engine
    image: str | None  # in place of AWS's own image
    template: Path
    stack: StackHarness
    events: Path  # prepared for this stack

    def invoke(self, function: str, event: str) -> Any:
        """What the function returned. Raises LocalStackError when SAM CLI fails."""
        command: list[str | Path] = [
            sam.BIN / "sam",
            "local",
            "invoke",
            function,
            "--template",
            self.template,
        ]
        command += ["--event", self.events / event, "--env-vars", self.events / VARIABLES]
        if self.image:
            command += ["--skip-pull-image", "--invoke-image", self.image]
        environment = self.engine.environment() | self.stack.info.environment()
        for _ in range(TRIES):
            done = _run(command, environment | {"SAM_CLI_TELEMETRY": "0"})
            if NO_RESPONSE not in done.stderr:
                break
        else:
            reason = f"SAM CLI got no response from a container in {TRIES} tries"
            if os.environ.get(make.REQUIRED_VARIABLE):
                raise LocalStackError(reason)
            pytest.skip(reason)
        if done.returncode != 0:
            raise LocalStackError(f"sam local invoke {function} failed: {done.stderr[-2000:]}")
        # The function's log is on stderr, its answer is the last line of stdout.
        return json.loads((done.stdout.strip().splitlines() or ["null"])[-1])


@pytest.fixture(scope="session")
def engine() -> Engine:
    if make.HOST_VARIABLE not in os.environ:
        pytest.skip("`make test-sam-local` sets up a container engine and runs these")
    return Engine(os.environ[make.HOST_VARIABLE] or None)


def _run(
    command: list[str | Path], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run SAM CLI to its end, or until it has no response. Raises LocalStackError when it hangs."""
    with tempfile.TemporaryDirectory() as folder, (log := Path(folder, "log")).open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=file, text=True
        )
        ended = wait_until(
            lambda: process.poll() is not None or NO_RESPONSE in log.read_text(), INVOKE_SECONDS
        )
        process.kill()
        out, _ = process.communicate()
        if not ended:
            raise LocalStackError(f"sam local invoke did not end: {log.read_text()[-2000:]}")
        return subprocess.CompletedProcess(command, process.returncode, out, log.read_text())


@pytest.fixture(scope="session")
def harness(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SamLocalHarness]:
    gateway = engine.gateway()
    with (
        stack.running() as info,
        forwarded(info.url, gateway) as aws_url,
        forwarded(str(info.providers_url), gateway) as providers_url,
    ):
        disable_triggers(info)
        info.push_secret(stack.endpoints_secret(providers_url))
        deployed = sam_local.deployed_variables(info.session(), info.url, info.stack)
        files = sam_local.prepared_events(for_containers(deployed, info.url, aws_url))
        events = sam_local.write(files, tmp_path_factory.mktemp("events"))
        image = os.environ.get(make.IMAGE_VARIABLE) or None
        build = tmp_path_factory.mktemp("sam") / "build"
        with sam.exclusive():  # a copy, which no later build changes
            shutil.copytree(ROOT / ".aws-sam" / "build", build)
        yield SamLocalHarness(engine, image, build / "template.yaml", StackHarness(info), events)
