"""The image that functions run in: AWS's own where it can be pulled, else a stand-in built here.

The stand-in is a minimal Debian with this Python 3.13, AWS's runtime interface client and boto3 at
the paths they have in the Lambda image. SAM CLI adds the real runtime interface emulator.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from darkroom_local import sam
from darkroom_local.processes import LocalStackError, run
from tests.sam_local.engine import CannotRunHere, Engine, apt_install

ARCHITECTURE = {"x86_64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), "")
LAMBDA_IMAGE = f"public.ecr.aws/lambda/python:3.13-{ARCHITECTURE}"
STAND_IN = "darkroom/lambda-stand-in"
PULL_SECONDS = 90
# Libraries that the interpreter's own modules link against.
LIBRARIES = (
    "ca-certificates,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,zlib1g,libreadline8,libuuid1"
)
# Parts of a Python that no function uses, over half of its size.
UNUSED = ("test", "idlelib", "tkinter", "turtledemo", "site-packages", "ensurepip", "config-3.13*")
BOOTSTRAP = """#!/bin/sh
export LD_LIBRARY_PATH=/var/lang/lib PYTHONHOME=/var/lang
export PYTHONPATH=/var/task:/opt/python:/var/runtime
exec /var/lang/bin/python3.13 -m awslambdaric "$_HANDLER"
"""


def prepare(engine: Engine) -> str | None:
    """Pull or build the image: None for AWS's own, else the name for `--invoke-image`.

    Raises CannotRunHere.
    """
    if any(_succeeds(engine, *c, LAMBDA_IMAGE) for c in (("image", "inspect"), ("pull", "-q"))):
        return None
    # The tag changes with everything the stand-in is built from.
    parts = (sys.version, Path(__file__).read_text(), _debian_release())
    name = f"{STAND_IN}:{hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:12]}"
    if not _succeeds(engine, "image", "inspect", name):
        _build(engine, name)
    return name


def _succeeds(engine: Engine, *arguments: str) -> bool:
    try:
        engine.docker(*arguments, seconds=PULL_SECONDS)
    except LocalStackError:
        return False
    return True


def _debian_release() -> str:
    """The release of this Debian: this Python was built with its libraries."""
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian" or "VERSION_CODENAME" not in release:
        raise CannotRunHere(
            "the Lambda image cannot be pulled, and only Debian can build a stand-in"
        )
    return release["VERSION_CODENAME"]


def _build(engine: Engine, name: str) -> None:
    if os.geteuid() != 0:
        raise CannotRunHere("the Lambda image cannot be pulled, and only root can build a stand-in")
    if not shutil.which("debootstrap"):
        apt_install("debootstrap")
    with tempfile.TemporaryDirectory(prefix="darkroom-image-") as scratch:
        root, packed = Path(scratch) / "root", Path(scratch) / "root.tar"
        _add_debian(root)
        _add_python(root)
        _add_runtime(root)
        run(["tar", "-C", root, "-cf", packed, "."], timeout_seconds=120)
        changes = ["WORKDIR /var/task", "ENV PATH=/var/lang/bin:/usr/bin:/bin"]
        options = [option for change in changes for option in ("--change", change)]
        engine.docker("import", *options, "-", name, stdin=packed)


def _add_debian(root: Path) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={LIBRARIES}", _debian_release()]
    try:
        run([*command, root], timeout_seconds=300)
    except LocalStackError as error:
        raise CannotRunHere(f"no minimal Debian for the image: {error}") from error
    for unused in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(root / unused, ignore_errors=True)


def _add_python(root: Path) -> None:
    """Copy this interpreter to the path that it has in the Lambda image."""
    here, there = Path(sys.base_prefix), root / "var" / "lang"
    (there / "bin").mkdir(parents=True)
    shutil.copy2(here / "bin" / "python3.13", there / "bin" / "python3.13")
    libraries = there / "lib"
    ignore = shutil.ignore_patterns(*UNUSED)
    shutil.copytree(here / "lib" / "python3.13", libraries / "python3.13", ignore=ignore)
    for shared in (here / "lib").glob("libpython3*.so*"):
        shutil.copy2(shared, libraries / shared.name)


def _add_runtime(root: Path) -> None:
    runtime = root / "var" / "runtime"
    for folder in (runtime, root / "var" / "task", root / "opt"):
        folder.mkdir(parents=True, exist_ok=True)
    boto3 = f"boto3=={importlib.metadata.version('boto3')}"
    python = Path(sys.base_prefix) / "bin" / "python3.13"
    options = ["--quiet", "--python", str(python), "--target", str(runtime)]
    environment = {**os.environ, "UV_SYSTEM_CERTS": "1"}
    command = [sam.uv(), "pip", "install", *options, "awslambdaric", boto3]
    run(command, environment, timeout_seconds=180)
    bootstrap = runtime / "bootstrap"
    bootstrap.write_text(BOOTSTRAP)
    bootstrap.chmod(0o755)
