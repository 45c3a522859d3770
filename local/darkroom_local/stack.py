"""The real template on this machine: MiniStack, SAM CLI and the simulated providers.

`running()` for the length of a `with` block; `up()` and `down()` for a stack in the background.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config as ClientConfig
from pydantic import TypeAdapter

from darkroom.models.catalog import MODELS
from darkroom.providers.registry import Provider
from darkroom_local import ministack, sam
from darkroom_local.processes import (
    ROOT,
    ChildProcess,
    LocalStackError,
    scratch_folder,
    spawn,
    stop_group,
    wait_until,
)
from darkroom_local.providers.config import Config, Fixed, SimulatedEndpoint

STATE = ROOT / ".local" / "stack.json"
DEFAULT_STACK = "darkroom"
DEFAULT_PARAMETERS = {
    # In half as many processes as by default: each takes seconds to start.
    "WorkerProcesses": "2",
    "RowsPerWorker": "8",
    # Images may come from this machine; the default allows public hosts over https only.
    "TrustedImageHosts": "127.0.0.1",
}
PROVIDERS_START_SECONDS = 30.0
LATENCY = Fixed(seconds=0.3)  # short enough for a demo; real providers take 5 s to 60 s
_PROVIDERS = {"gemini-main": Provider.GEMINI, "openai-main": Provider.OPENAI}
# As the real providers do, it rejects keys and models that it does not know.
DEFAULT_CONFIG = Config(
    endpoints={
        name: SimulatedEndpoint(
            latency=LATENCY,
            keys=(f"simulated-key-of-{name}",),
            models={model.name: None for model in MODELS if model.provider is provider},
        )
        for name, provider in _PROVIDERS.items()
    }
)
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StackInfo:
    """A deployed one-machine stack, and how to reach it."""

    stack: str
    url: str  # the AWS API
    providers_url: str | None  # None: the real ones
    outputs: Mapping[str, str]
    work: str  # folder with logs, state and configuration
    groups: tuple[int, ...]  # process groups to end

    def client(self, service: str) -> Any:
        """A boto3 client with root credentials."""
        config = ClientConfig(s3={"addressing_style": "path"})
        return self.session().client(service, endpoint_url=self.url, config=config)  # type: ignore[call-overload]

    def session(self) -> boto3.Session:
        return ministack.session()

    def environment(self) -> dict[str, str]:
        """Variables that lead the aws and darkroom commands to this stack."""
        return ministack.aws_environment(self.url) | {"DARKROOM_STACK": self.stack}

    def push_secret(self, secret: Mapping[str, Any]) -> None:
        with closing(self.client("secretsmanager")) as client:
            client.put_secret_value(
                SecretId=self.outputs["EndpointsSecretArn"], SecretString=json.dumps(secret)
            )


@contextmanager
def running(
    *,
    stack: str = DEFAULT_STACK,
    config: Config = DEFAULT_CONFIG,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    parameters: Mapping[str, str] | None = None,
    simulate: bool = True,
    progress: Progress = lambda _: None,
) -> Iterator[StackInfo]:
    """Run a separate stack, removed with everything it created at the end of the block.

    `config` scripts the simulated providers, `overrides` are fields of their endpoints in the
    secret; `parameters` are added to the default ones. Without `simulate` there are no simulated
    providers, and no secret is pushed. Raises LocalStackError.
    """
    work = scratch_folder("stack-")
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, work, ignore_errors=True)
        simulated = config if simulate else None
        yield _start(
            stack,
            work,
            simulated,
            overrides,
            parameters=parameters,
            progress=progress,
            cleanup=cleanup,
            detached=False,
        )


def up(
    *,
    stack: str = DEFAULT_STACK,
    state: Path = STATE,
    parameters: Mapping[str, str] | None = None,
    auth: bool = True,
    progress: Progress = lambda _: None,
) -> StackInfo:
    """Start the background stack of this checkout, or return the one that already runs.

    It runs until `down()`; its logs are in `.local/stack/`. Another file for its `state` is another
    stack. `parameters` are added to the default ones; without `auth` any credentials will do.
    Raises LocalStackError.
    """
    if (info := current(state)) is not None:
        return info
    down(state)
    work = state.with_suffix("")
    work.mkdir(parents=True)
    with ExitStack() as cleanup:
        info = _start(
            stack,
            work,
            DEFAULT_CONFIG,
            None,
            parameters=parameters,
            auth=auth,
            progress=progress,
            cleanup=cleanup,
            detached=True,
        )
        record(info, state)
        cleanup.pop_all()  # started: keep it running
    return info


def record(info: StackInfo, state: Path = STATE) -> None:
    """Remember a background stack for `current` and `down`."""
    state.write_bytes(TypeAdapter(StackInfo).dump_json(info, indent=2))


def down(state: Path = STATE) -> bool:
    """Stop the background stack and remove its state and logs; False if there was none."""
    existed = state.exists()
    if existed:
        for group in _read_state(state).groups:
            stop_group(group)
        state.unlink()
    shutil.rmtree(state.with_suffix(""), ignore_errors=True)
    return existed


def current(state: Path = STATE) -> StackInfo | None:
    """The background stack of this checkout, if it answers."""
    if not state.exists():
        return None
    info = _read_state(state)
    return info if ministack.edition(info.url) else None


def _read_state(state: Path) -> StackInfo:
    return TypeAdapter(StackInfo).validate_json(state.read_text())


def _start(
    stack: str,
    work: Path,
    config: Config | None,  # None: no simulated providers
    overrides: Mapping[str, Mapping[str, Any]] | None,
    *,
    parameters: Mapping[str, str] | None = None,
    auth: bool = True,
    progress: Progress,
    cleanup: ExitStack,
    detached: bool,
) -> StackInfo:
    progress("starting MiniStack")
    aws = ministack.start(auth=auth, state_dir=work / "ministack", detached=detached)
    cleanup.callback(aws.stop)
    groups = [aws.process.pid]
    providers_url = None
    if config is not None:
        progress("starting the simulated providers")
        process, providers_url = start_providers(work, config, detached=detached)
        cleanup.callback(process.stop)
        groups.append(process.pid)
    with sam.exclusive():
        progress("building the layers and functions (sam build)")
        sam.build()
        progress("deploying the template (sam deploy)")
        sam.deploy(aws.url, stack, DEFAULT_PARAMETERS | dict(parameters or {}))
    info = StackInfo(
        stack=stack,
        url=aws.url,
        providers_url=providers_url,
        outputs=_outputs(aws.url, stack),
        work=str(work),
        groups=tuple(groups),
    )
    if config is not None and providers_url is not None:
        progress("pushing the endpoints secret")
        info.push_secret(endpoints_secret(providers_url, config, overrides))
    return info


def start_providers(
    work: Path, config: Config, *, detached: bool = False
) -> tuple[ChildProcess, str]:
    """Start the simulated providers on a free port, with logs and configuration in `work`.

    Returns the process and its URL; `{url}/{endpoint name}/` serves either wire format. Raises
    LocalStackError.
    """
    settings, log = work / "providers.json", work / "providers.log"
    settings.write_text(config.model_dump_json(indent=2))
    log.unlink(missing_ok=True)
    environment = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
    module = [sys.executable, "-m", "darkroom_local.providers"]
    command = [*module, "--port", "0", "--config", str(settings)]
    process = spawn(command, environment, log, detached=detached)

    def announcement() -> str:
        lines = log.read_text(errors="replace").splitlines()
        return next((x for x in lines if x.startswith('{"port"') and x.endswith("}")), "")

    wait_until(lambda: bool(announcement()) or process.ended, PROVIDERS_START_SECONDS)
    if not (line := announcement()):
        process.stop()
        raise LocalStackError(f"The simulated providers did not start: {process.log_tail()}")
    return process, json.loads(line)["url"]


def endpoints_secret(
    url: str,
    config: Config = DEFAULT_CONFIG,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """An endpoints secret for the simulated endpoints at `url`; provider and tier follow the name.

    A name that starts with "openai" is an OpenAI endpoint in tier 2, any other a Gemini endpoint in
    tier 1. `overrides` are fields of the secret by endpoint name.
    """
    return {
        "endpoints": [
            {
                "name": name,
                "provider": "openai" if name.startswith("openai") else "gemini",
                "base_url": f"{url}/{name}" + ("/v1" if name.startswith("openai") else ""),
                "api_keys": list(endpoint.keys) or [f"simulated-key-of-{name}"],
                "requests_per_minute": endpoint.requests_per_minute,
                "max_in_flight": 16,
                **(overrides or {}).get(name, {}),
            }
            for name, endpoint in config.endpoints.items()
        ]
    }


def _outputs(url: str, stack: str) -> dict[str, str]:
    with closing(ministack.session().client("cloudformation", endpoint_url=url)) as client:
        description = client.describe_stacks(StackName=stack)["Stacks"][0]
    return {output["OutputKey"]: output["OutputValue"] for output in description["Outputs"]}
