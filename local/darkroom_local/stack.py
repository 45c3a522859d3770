"""The real template on this machine: MiniStack, SAM CLI, simulated providers.

`running()` for the length of a with block; `up()` and `down()` for one in the background.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config as ClientConfig

from darkroom_local import ministack, sam, simulation
from darkroom_local.processes import ROOT, stop_group
from darkroom_local.providers.config import Config

STATE = ROOT / ".local" / "stack.json"
DEFAULT_STACK = "darkroom"
DEFAULT_PARAMETERS = {
    # As many rows at once as by default, in half as many processes: each takes seconds to start.
    "WorkerProcesses": "2",
    "RowsPerWorker": "8",
    # Images may come from this machine; the default allows public hosts over https only.
    "TrustedImageHosts": "127.0.0.1",
}
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StackInfo:
    """A deployed one-machine stack, and how to reach it."""

    stack: str
    url: str  # the AWS API
    access_key: str
    secret_key: str
    region: str
    providers_url: str | None  # None: the real ones
    outputs: Mapping[str, str]
    work: str  # folder with logs, state and configuration
    groups: tuple[int, ...]  # process groups to end

    def client(self, service: str) -> Any:
        """A boto3 client with root credentials."""
        return boto3.client(  # type: ignore[call-overload]
            service,
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=ClientConfig(s3={"addressing_style": "path"}),
        )

    def environment(self) -> dict[str, str]:
        """What to export so that the aws and darkroom commands reach it."""
        return ministack.aws_environment(self.url) | {"DARKROOM_STACK": self.stack}

    def push_secret(self, secret: Mapping[str, Any]) -> None:
        client = self.client("secretsmanager")
        client.put_secret_value(
            SecretId=self.outputs["EndpointsSecretArn"], SecretString=json.dumps(secret)
        )
        client.close()


@contextmanager
def running(
    *,
    stack: str = DEFAULT_STACK,
    config: Config = simulation.DEFAULT_CONFIG,
    secret: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    parameters: Mapping[str, str] | None = None,
    auth: bool = True,
    simulate: bool = True,
    say: Say = lambda _: None,
) -> Iterator[StackInfo]:
    """A stack of its own, gone with everything it made at the end of the block.

    `config` scripts the simulated providers, `overrides` are fields of their endpoints in the
    secret; a `secret` of your own takes the place of theirs. Without `simulate` none of them is
    there, and without a `secret` none is pushed. Raises LocalStackError.
    """
    work = Path(tempfile.mkdtemp(prefix="darkroom-stack-"))
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, work, ignore_errors=True)
        simulated = config if simulate else None
        plan = _Plan(stack, work, simulated, secret, overrides or {}, parameters or {}, auth=auth)
        yield _start(plan, say, cleanup, detached=False)


def up(
    *,
    stack: str = DEFAULT_STACK,
    config: Config = simulation.DEFAULT_CONFIG,
    secret: Mapping[str, Any] | None = None,
    parameters: Mapping[str, str] | None = None,
    say: Say = lambda _: None,
) -> StackInfo:
    """Start the background stack of this checkout, or return the one that runs already.

    It lives until `down()`; logs lie in `.local/stack/`. Raises LocalStackError.
    """
    if (found := current()) is not None:
        return found
    down()
    work = STATE.parent / "stack"
    work.mkdir(parents=True)
    with ExitStack() as cleanup:
        plan = _Plan(stack, work, config, secret, {}, parameters or {}, auth=True)
        info = _start(plan, say, cleanup, detached=True)
        STATE.write_text(json.dumps(asdict(info), indent=2))
        cleanup.pop_all()  # it stays
    return info


def down() -> bool:
    """Stop the background stack and remove its state and logs; False if there was none."""
    found = STATE.exists()
    if found:
        for group in _read().groups:
            stop_group(group)
        STATE.unlink()
    shutil.rmtree(STATE.parent / "stack", ignore_errors=True)
    return found


def current() -> StackInfo | None:
    """The background stack of this checkout, if it answers."""
    if not STATE.exists():
        return None
    info = _read()
    return info if ministack.answers(info.url) else None


def _read() -> StackInfo:
    state = json.loads(STATE.read_text())
    return StackInfo(**{**state, "groups": tuple(state["groups"])})


@dataclass(frozen=True, slots=True)
class _Plan:
    stack: str
    work: Path
    config: Config | None  # None: no simulated providers
    secret: Mapping[str, Any] | None
    overrides: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, str]
    auth: bool


def _start(plan: _Plan, say: Say, cleanup: ExitStack, *, detached: bool) -> StackInfo:
    say("starting MiniStack")
    state = plan.work / "ministack"
    aws = ministack.start(auth=plan.auth, state_dir=state, detached=detached)
    cleanup.callback(aws.stop)
    providers = None
    if plan.config is not None:
        say("starting the simulated providers")
        providers = simulation.start(plan.work, plan.config, detached=detached)
        cleanup.callback(providers.stop)
    with sam.alone():
        say("building the layers and functions (sam build)")
        sam.build()
        say("deploying the template (sam deploy)")
        sam.deploy(aws.url, plan.stack, {**DEFAULT_PARAMETERS, **plan.parameters})
    groups = (aws.pid,) if providers is None else (aws.pid, providers.pid)
    info = StackInfo(
        plan.stack,
        aws.url,
        ministack.ACCESS_KEY,
        ministack.SECRET_KEY,
        ministack.REGION,
        providers.url if providers else None,
        _outputs(aws.url, plan.stack),
        str(plan.work),
        groups,
    )
    _number_the_concurrency(info)
    secret = plan.secret
    if secret is None and providers is not None and plan.config is not None:
        secret = simulation.secret_for(providers.url, plan.config, plan.overrides)
    if secret is not None:
        say("pushing the endpoints secret")
        info.push_secret(secret)
    return info


def _outputs(url: str, stack: str) -> dict[str, str]:
    client = boto3.client(
        "cloudformation",
        endpoint_url=url,
        aws_access_key_id=ministack.ACCESS_KEY,
        aws_secret_access_key=ministack.SECRET_KEY,
        region_name=ministack.REGION,
    )
    answer = client.describe_stacks(StackName=stack)["Stacks"][0]
    client.close()
    return {output["OutputKey"]: output["OutputValue"] for output in answer["Outputs"]}


def _number_the_concurrency(info: StackInfo) -> None:
    """MiniStack 1.5.33 takes a MaximumConcurrency from a parameter as text and its poller stops."""
    client = info.client("lambda")
    for mapping in client.list_event_source_mappings()["EventSourceMappings"]:
        most = mapping.get("ScalingConfig", {}).get("MaximumConcurrency")
        if most is not None:
            client.update_event_source_mapping(
                UUID=mapping["UUID"], ScalingConfig={"MaximumConcurrency": int(most)}
            )
    client.close()
