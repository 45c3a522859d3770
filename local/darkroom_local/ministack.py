"""MiniStack, an emulation of AWS on one machine, as a child process with its own state."""

import json
import os
import shutil
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


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
    process = spawn(
        [str(PYTHON), "-m", "ministack"],
        _environment(state, port, auth=auth) | {"MINISTACK_EDITION": token},
        state / "ministack.log",
        detached=detached,
    )
    stack = MiniStack(f"http://{LOOPBACK}:{port}", state, process, owns_state=state_dir is None)

    def ready() -> bool:
        health = _health(stack.url)
        return process.ended or (health is not None and health["edition"] == token)

    answered = wait_until(ready, START_SECONDS)
    if process.ended or not answered:
        problem = "ended at once" if process.ended else f"did not answer in {START_SECONDS:.0f} s"
        tail = process.log_tail()
        stack.stop()
        raise LocalStackError(f"MiniStack {problem}: {tail}")
    return stack


@contextmanager
def running(
    auth: bool = True,
    state_dir: Path | None = None,
    port: int = 0,
) -> Iterator[MiniStack]:
    """Run MiniStack for the length of a `with` block."""
    stack = start(auth=auth, state_dir=state_dir, port=port)
    try:
        yield stack
    finally:
        stack.stop()


def _environment(state: Path, port: int, *, auth: bool) -> dict[str, str]:
    kept = {name: os.environ[name] for name in (*PASSED_ON, *PROXIES) if name in os.environ}
    return kept | {
        "AUTH": "true" if auth else "false",
        "GATEWAY_PORT": str(port),
        "BIND_HOST": LOOPBACK,
        "MINISTACK_HOST": LOOPBACK,
        "MINISTACK_REGION": REGION,
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


def is_ready(url: str) -> bool:
    """Whether a MiniStack answers at `url`."""
    return _health(url) is not None


def _health(url: str) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"{url}/_ministack/health", timeout=2) as response:  # noqa: S310
            health: dict[str, Any] = json.load(response)
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError):
        return None
    return health if health["ready_scripts"]["status"] == "completed" else None
