"""A stack whose own functions stay still, and containers that can reach it."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from darkroom_local import sam, simulation, stack
from darkroom_local.processes import ROOT
from darkroom_local.providers import Simulator
from darkroom_local.sam_local import __main__ as make
from darkroom_local.sam_local import bridge, environment, prepare
from darkroom_local.sam_local.engine import Engine
from darkroom_local.sam_local.invoke import Answer, SamLocal


@dataclass(frozen=True)
class Bench:
    """What the tests work with."""

    sam: SamLocal
    stack: stack.StackInfo
    events: Path  # prepared for this stack

    def invoke(self, function: str, event: str) -> Answer:
        return self.sam.invoke(function, self.events / event, self.events / prepare.VARIABLES)

    def event(self, name: str) -> Any:
        return json.loads((self.events / name).read_text())

    def result(self, key: str) -> bytes:
        bucket = self.stack.outputs["ResultsBucketName"]
        content: bytes = self.stack.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def provider(self, name: str) -> dict[str, Any]:
        """What the simulated endpoint counted."""
        port = int(str(self.stack.providers_url).rpartition(":")[2])
        counted: dict[str, Any] = Simulator(port).stats()[name]
        return counted


@pytest.fixture(scope="session")
def engine() -> Engine:
    if make.HOST not in os.environ:
        pytest.skip("`make test-sam-local` sets up a container engine and runs these")
    return Engine(os.environ[make.HOST] or None)


@pytest.fixture(scope="session")
def bench(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    gateway = engine.gateway()
    with (
        stack.running() as info,
        bridge.forwarded(info.url, gateway) as reached,
        bridge.forwarded(str(info.providers_url), gateway) as called,
    ):
        _hold_still(info)
        info.push_secret(simulation.secret_for(called))
        session = boto3.Session(info.access_key, info.secret_key, region_name=info.region)
        deployed = environment.of_stack(session, info.url, info.stack)
        files = prepare.prepared(environment.reached_at(deployed, info.url, reached))
        events = prepare.write(files, tmp_path_factory.mktemp("events"))
        image = os.environ.get(make.IMAGE) or None
        template = _built(tmp_path_factory.mktemp("sam") / "build")
        yield Bench(SamLocal(engine, template, info.environment(), image), info, events)


def _hold_still(info: stack.StackInfo) -> None:
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


def _built(folder: Path) -> Path:
    """The template as built, in a folder that no other build changes meanwhile."""
    with sam.alone():
        shutil.copytree(ROOT / ".aws-sam" / "build", folder)
    return folder / "template.yaml"
