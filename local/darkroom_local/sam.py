"""SAM CLI, called just as a user calls it."""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from darkroom_local.ministack import aws_environment
from darkroom_local.processes import ROOT, LocalStackError

BIN = ROOT / ".venv-sam" / "bin"
BUILT = ROOT / ".aws-sam" / "build" / ".sources"  # gone when another `sam build` ran
SECONDS = 600
# A profile or endpoint of the shell must not lead a local deployment into a real account.
_KEPT_OUT = ("AWS_", "UV_PYTHON", "VIRTUAL_ENV", "SAM_", "DARKROOM_")


def build() -> None:
    """`sam build`, unless nothing changed since the last one. Raises LocalStackError."""
    sources = _digest()
    if BUILT.exists() and BUILT.read_text() == sources:
        return
    BUILT.unlink(missing_ok=True)
    _sam(["build"], _environment())
    BUILT.write_text(sources)


def deploy(url: str, stack: str, parameters: Mapping[str, str]) -> None:
    """`sam deploy` of what was built to the AWS at `url`. Raises LocalStackError."""
    overrides = [f"{name}={value}" for name, value in parameters.items()]
    arguments = ["deploy", "--stack-name", stack, "--no-progressbar"]
    if overrides:
        arguments += ["--parameter-overrides", *overrides]
    _sam(arguments, _environment() | aws_environment(url))


def _digest() -> str:
    """Of everything that `sam build` reads."""
    digest = hashlib.sha256()
    files = [ROOT / "template.yaml", ROOT / "samconfig.toml"]
    for folder in ("layers", "functions"):
        files += sorted((ROOT / folder).rglob("*"))
    for path in files:
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


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
        "UV": uv(),
        "DARKROOM_PYTHON": sys.executable,
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_CHECK_FOR_UPDATES": "0",
    }


def uv() -> str:
    """Path of a uv that runs. Raises LocalStackError."""
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
