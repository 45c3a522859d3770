"""A deployed stack whose own functions are disabled, and containers that can reach it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from darkroom_local import sam, sam_local, stack
from darkroom_local.forwarding import forwarded
from darkroom_local.processes import ROOT, LocalStackError
from darkroom_local.sam_local import VARIABLES, disable_triggers, for_containers
from tests.e2e.harness import StackHarness
from tests.sam_local import __main__ as make
from tests.sam_local.engine import Engine

INVOKE_SECONDS = 180


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
        try:
            done = subprocess.run(
                command,
                env=environment | {"SAM_CLI_TELEMETRY": "0"},
                capture_output=True,
                text=True,
                timeout=INVOKE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as late:  # its output is bytes, also in text mode
            log = (late.stderr or b"")[-2000:].decode(errors="replace")
            raise LocalStackError(f"sam local invoke {function} did not end: {log}") from late
        if done.returncode != 0:
            raise LocalStackError(f"sam local invoke {function} failed: {done.stderr[-2000:]}")
        # The function's log is on stderr, its answer is the last line of stdout.
        return json.loads((done.stdout.strip().splitlines() or ["null"])[-1])


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
