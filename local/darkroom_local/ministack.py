"""MiniStack, the AWS of one machine, as a child process with a state of its own."""

import json
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkroom_local.processes import (
    LOOPBACK,
    ROOT,
    LocalStackError,
    free_port,
    spawn,
    stop_group,
    wait_until,
)

PYTHON = ROOT / ".venv-ministack" / "bin" / "python"
REGION = "us-east-1"
ACCESS_KEY = "test"
SECRET_KEY = "test"  # noqa: S105 - MiniStack's root credentials, no secret
START_SECONDS = 60.0
# What may reach MiniStack, and so the functions, from the shell that starts it. Anything else (keys
# above all) stays out: the functions must find in their environment what the template says.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(slots=True)
class MiniStack:
    """A running MiniStack. `stop()` ends it and its function workers, and removes its state."""

    url: str
    state_dir: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    owns_state: bool = True

    @property
    def pid(self) -> int:
        """Also the id of its process group."""
        return self.process.pid

    @property
    def log(self) -> Path:
        return self.state_dir / "ministack.log"

    def environment(self) -> dict[str, str]:
        """What a user would export to reach it with the aws command, SAM CLI or an SDK."""
        return aws_environment(self.url)

    def stop(self) -> None:
        # It would wait for open connections, and has nothing to save.
        stop_group(self.process.pid, self.process, grace=0)
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.owns_state:
            shutil.rmtree(self.state_dir, ignore_errors=True)


def aws_environment(url: str) -> dict[str, str]:
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
    state = state_dir or Path(tempfile.mkdtemp(prefix="darkroom-ministack-"))
    (state / "tmp").mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    token = uuid.uuid4().hex  # tells our MiniStack from another one that has the port already
    process = spawn(
        [str(PYTHON), "-m", "ministack"],
        _environment(state, port, auth=auth) | {"MINISTACK_EDITION": token},
        state / "ministack.log",
        detached=detached,
    )
    stack = MiniStack(f"http://{LOOPBACK}:{port}", state, process, owns_state=state_dir is None)

    def answered() -> bool:
        health = _health(stack.url)
        return process.poll() is not None or (health is not None and health["edition"] == token)

    if not wait_until(answered, START_SECONDS):
        _give_up(stack, f"did not answer within {START_SECONDS:.0f} s")
    if process.poll() is not None:
        _give_up(stack, "ended at once")
    return stack


@contextmanager
def running(
    auth: bool = True,
    state_dir: Path | None = None,
    port: int = 0,
) -> Iterator[MiniStack]:
    """MiniStack for the length of a `with` block."""
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
        "IOT_MTLS_ENABLED": "false",  # it would take a fixed port
        "SFTP_ENABLED": "false",
        "DOCKER_HOST": f"unix://{state}/no-docker.sock",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def answers(url: str) -> bool:
    """Whether a MiniStack is at `url` and ready."""
    return _health(url) is not None


def _health(url: str) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"{url}/_ministack/health", timeout=2) as answer:  # noqa: S310
            health: dict[str, Any] = json.load(answer)
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError):
        return None
    return health if health["ready_scripts"]["status"] == "completed" else None


def _give_up(stack: MiniStack, what: str) -> None:
    tail = stack.log.read_text(errors="replace").splitlines()[-5:] if stack.log.exists() else []
    stack.stop()
    raise LocalStackError(f"MiniStack {what}: {' / '.join(tail) or 'it printed nothing'}")
