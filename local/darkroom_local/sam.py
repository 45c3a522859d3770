"""SAM CLI, called as a user calls it."""

import fcntl
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from darkroom_local.ministack import aws_environment
from darkroom_local.ministack_template import adapted
from darkroom_local.processes import ROOT, LocalStackError, run

BIN = ROOT / ".venv-sam" / "bin"
BUILD = ROOT / ".aws-sam" / "build"
MACHINE = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
SOURCES_DIGEST = BUILD / ".sources"  # gone when another `sam build` ran
TIMEOUT_SECONDS = 600
# A profile or endpoint of the shell must not lead a local deployment into a real account.
_EXCLUDED_PREFIXES = ("AWS_", "UV_PYTHON", "VIRTUAL_ENV", "SAM_", "DARKROOM_")


def build() -> None:
    """`sam build`, unless nothing changed since the last one. Raises LocalStackError."""
    if SOURCES_DIGEST.exists() and SOURCES_DIGEST.read_text() == _sources_digest():
        return
    _sam("build", DARKROOM_ARCHITECTURE=MACHINE)
    record_build(MACHINE)


def record_build(architecture: str) -> None:
    """Note what the last `sam build` was made from, so that `build` does not repeat it.

    MiniStack runs the functions on this machine: a build for another processor does not count.
    """
    if architecture == MACHINE:
        SOURCES_DIGEST.write_text(_sources_digest())
    else:
        SOURCES_DIGEST.unlink(missing_ok=True)


def deploy(url: str, stack: str, parameters: Mapping[str, str]) -> None:
    """`sam deploy` of the last build to the MiniStack at `url`. Raises LocalStackError."""
    template = BUILD / "ministack.json"  # beside the code, to which its paths are relative
    template.write_text(json.dumps(adapted(BUILD / "template.yaml", parameters)))
    overrides = [f"{name}={value}" for name, value in parameters.items()]
    options = ["--parameter-overrides", *overrides] if overrides else []
    command = ("deploy", "--template-file", str(template), "--stack-name", stack)
    config = ("--config-file", str(ROOT / "samconfig.toml"))
    _sam(*command, *config, "--no-progressbar", *options, **aws_environment(url))


@contextmanager
def exclusive() -> Iterator[None]:
    """One build or deployment at a time per checkout: they share .aws-sam/."""
    folder = ROOT / ".aws-sam"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def uv() -> str:
    """Path of a working uv. Raises LocalStackError."""
    return run([ROOT / "scripts" / "uv"], timeout_seconds=TIMEOUT_SECONDS).strip()


def toolchain() -> dict[str, str]:
    """Variables with which SAM CLI and the layers' Makefiles use the tools of this checkout."""
    return {
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "UV": uv(),
        "DARKROOM_PYTHON": sys.executable,
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_CHECK_FOR_UPDATES": "0",
    }


def _sources_digest() -> str:
    """A digest of every file that `sam build` reads."""
    digest = hashlib.sha256()
    files = [ROOT / "template.yaml", ROOT / "samconfig.toml"]
    for folder in ("layers", "functions"):
        files += sorted((ROOT / folder).rglob("*"))
    for path in files:
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _sam(*arguments: str, **variables: str) -> None:
    if not (BIN / "sam").exists():
        raise LocalStackError(f"{BIN / 'sam'} is missing: run `make setup` in {ROOT}")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_EXCLUDED_PREFIXES)}
    environment = inherited | toolchain() | variables
    run([BIN / "sam", *arguments], environment, timeout_seconds=TIMEOUT_SECONDS, error_lines=30)
