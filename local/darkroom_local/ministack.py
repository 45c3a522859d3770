"""MiniStack, an emulation of AWS on one machine, as a child process with its own state."""

import json
import os
import shutil
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3

from darkroom_local.processes import (
    LOOPBACK,
    ROOT,
    ChildProcess,
    LocalStackError,
    free_port,
    scratch_folder,
    spawn,
    wait_until,
)

PYTHON = ROOT / ".venv-ministack" / "bin" / "python"
REGION = "us-east-1"
ACCESS_KEY = "test"
SECRET_KEY = "test"  # noqa: S105 - MiniStack's well-known root credentials
START_SECONDS = 60.0
# The variables of the shell that MiniStack, and so the functions, inherit. No others (above all no
# API keys): the functions' environment must be what the template defines.
INHERITED = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)


@dataclass(frozen=True, slots=True)
class MiniStack:
    """A running MiniStack. `stop()` ends it and its function workers, and removes its state."""

    url: str
    state_dir: Path
    process: ChildProcess
    owns_state: bool = True

    def stop(self) -> None:
        # With time to end, it would wait for open connections; there is nothing to save.
        self.process.stop(grace_seconds=0)
        if self.owns_state:
            shutil.rmtree(self.state_dir, ignore_errors=True)


def session() -> boto3.Session:
    """A session with MiniStack's root credentials."""
    return boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION)


def aws_environment(url: str) -> dict[str, str]:
    """Variables that lead the aws command, SAM CLI or an SDK to the MiniStack at `url`."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def start(
    *, auth: bool = True, state_dir: Path | None = None, port: int = 0, detached: bool = False
) -> MiniStack:
    """Start MiniStack on loopback and wait until it answers; port 0 picks a free one.

    With `auth` it enforces the functions' IAM roles. Unless `detached`, it ends with this process.
    Raises LocalStackError.
    """
    if not PYTHON.exists():
        raise LocalStackError(f"{PYTHON} is missing: run `make setup` in {ROOT}")
    state = state_dir or scratch_folder("ministack-")
    (state / "tmp").mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    token = uuid.uuid4().hex  # distinguishes ours from another MiniStack on the same port
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | {
        "AUTH": "true" if auth else "false",
        "GATEWAY_PORT": str(port),
        "BIND_HOST": LOOPBACK,
        "MINISTACK_HOST": LOOPBACK,
        "MINISTACK_REGION": REGION,
        "MINISTACK_EDITION": token,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "TMPDIR": str(state / "tmp"),
        "STATE_DIR": str(state / "state"),
        "S3_DATA_DIR": str(state / "s3"),
        "LAMBDA_EXECUTOR": "local",
        "IOT_MTLS_ENABLED": "false",  # would listen on a fixed port
        "SFTP_ENABLED": "false",
        "DOCKER_HOST": f"unix://{state}/no-docker.sock",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command, log = [str(PYTHON), "-m", "ministack"], state / "ministack.log"
    process = spawn(command, environment, log, detached=detached)
    stack = MiniStack(f"http://{LOOPBACK}:{port}", state, process, owns_state=state_dir is None)

    answered = wait_until(lambda: process.ended or edition(stack.url) == token, START_SECONDS)
    if process.ended or not answered:
        problem = "ended at once" if process.ended else f"did not answer in {START_SECONDS:.0f} s"
        tail = process.log_tail()
        stack.stop()
        raise LocalStackError(f"MiniStack {problem}: {tail}")
    return stack


@contextmanager
def running(*, auth: bool = True) -> Iterator[MiniStack]:
    """Run MiniStack for the length of a `with` block."""
    stack = start(auth=auth)
    try:
        yield stack
    finally:
        stack.stop()


def edition(url: str) -> str | None:
    """The edition of the MiniStack at `url`; None until it is ready."""
    try:
        with urllib.request.urlopen(f"{url}/_ministack/health", timeout=2) as response:  # noqa: S310
            health = json.load(response)
    except (OSError, ValueError):
        return None
    return health["edition"] if health["ready_scripts"]["status"] == "completed" else None
