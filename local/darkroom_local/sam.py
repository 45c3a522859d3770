"""SAM CLI, called just as a user calls it."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from darkroom_local.ministack import aws_environment
from darkroom_local.processes import ROOT, LocalStackError

BIN = ROOT / ".venv-sam" / "bin"
SECONDS = 600
# A profile or endpoint of the shell must not lead a local deployment into a real account.
_KEPT_OUT = ("AWS_", "UV_PYTHON", "VIRTUAL_ENV", "SAM_", "DARKROOM_")


def build() -> None:
    """`sam build`; what did not change comes from the cache. Raises LocalStackError."""
    _sam(["build"], _environment())


def deploy(url: str, stack: str, parameters: Mapping[str, str]) -> None:
    """`sam deploy` of what was built to the AWS at `url`. Raises LocalStackError."""
    overrides = [f"{name}={value}" for name, value in parameters.items()]
    arguments = ["deploy", "--stack-name", stack, "--no-progressbar"]
    if overrides:
        arguments += ["--parameter-overrides", *overrides]
    _sam(arguments, _environment() | aws_environment(url))


@contextmanager
def alone() -> Iterator[None]:
    """One build or deployment at a time per checkout: they share .aws-sam/."""
    folder = ROOT / ".aws-sam"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_KEPT_OUT)}
    return kept | {
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "UV": _uv(),
        "DARKROOM_PYTHON": sys.executable,
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_CHECK_FOR_UPDATES": "0",
    }


def _uv() -> str:
    found = subprocess.run(  # noqa: S603 - our own script
        [ROOT / "scripts" / "uv"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise LocalStackError(found.stderr.strip())
    return found.stdout.strip()


def _sam(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    if not (BIN / "sam").exists():
        raise LocalStackError(f"{BIN / 'sam'} is missing: run `make setup` in {ROOT}")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        done = subprocess.run(  # noqa: S603 - our own arguments
            [BIN / "sam", *arguments],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode == 0:
            return
        output.seek(0)
        tail = "\n".join(output.read().splitlines()[-30:])
    raise LocalStackError(f"sam {' '.join(arguments)} failed in {ROOT}:\n{tail}")
