"""The image that functions run in: AWS's own where it can be had, else a stand-in made here.

The stand-in is a minimal Debian with this Python 3.13, AWS's runtime interface client and boto3 in
the places where the Lambda image has them. SAM CLI adds the real runtime interface emulator.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from darkroom_local.processes import ROOT, LocalStackError
from darkroom_local.sam_local import CannotRunHere
from darkroom_local.sam_local.engine import Engine, apt_install, run

ARCHITECTURE = {"x86_64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), "")
REAL = f"public.ecr.aws/lambda/python:3.13-{ARCHITECTURE}"
STAND_IN = "darkroom/lambda-stand-in"
PULL_SECONDS = 90
# What the interpreter's own modules link against.
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


def ready(engine: Engine) -> str | None:
    """Make sure of an image: None for AWS's own, else the name for `--invoke-image`.

    Raises CannotRunHere.
    """
    if _present(engine, REAL) or _pulled(engine):
        return None
    name = f"{STAND_IN}:{_version()}"
    if not _present(engine, name):
        _build(engine, name)
    return name


def _present(engine: Engine, image: str) -> bool:
    try:
        engine.docker("image", "inspect", image)
    except LocalStackError:
        return False
    return True


def _pulled(engine: Engine) -> bool:
    try:
        engine.docker("pull", "--quiet", REAL, seconds=PULL_SECONDS)
    except LocalStackError:
        return False
    return True


def _version() -> str:
    """Changes with whatever the stand-in is made of."""
    made_of = (sys.version, Path(__file__).read_text(), _suite())
    return hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:12]


def _suite() -> str:
    """The release of this Debian: its libraries are those that this Python was built with."""
    facts = platform.freedesktop_os_release()
    if facts.get("ID") != "debian" or "VERSION_CODENAME" not in facts:
        raise CannotRunHere("the Lambda image cannot be pulled, and only Debian can make another")
    return facts["VERSION_CODENAME"]


def _build(engine: Engine, name: str) -> None:
    if os.geteuid() != 0:
        raise CannotRunHere("the Lambda image cannot be pulled, and only root can make another")
    if not shutil.which("debootstrap"):
        apt_install("debootstrap")
    with tempfile.TemporaryDirectory(prefix="darkroom-image-") as scratch:
        root = Path(scratch) / "root"
        _debian(root)
        _python(root)
        _runtime(root)
        packed = Path(scratch) / "root.tar"
        run(["tar", "-C", str(root), "-cf", str(packed), "."], os.environ, 120)
        changes = (
            "--change",
            "WORKDIR /var/task",
            "--change",
            "ENV PATH=/var/lang/bin:/usr/bin:/bin",
        )
        engine.docker("import", *changes, "-", name, stdin=packed)


def _debian(root: Path) -> None:
    options = ("--variant=minbase", f"--include={LIBRARIES}")
    try:
        run(["debootstrap", *options, _suite(), str(root)], os.environ, 240)
    except LocalStackError as error:
        raise CannotRunHere(f"no minimal Debian for the image: {error}") from error
    for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(root / waste, ignore_errors=True)


def _python(root: Path) -> None:
    """This interpreter, moved to where the Lambda image has its own."""
    here, there = Path(sys.base_prefix), root / "var" / "lang"
    (there / "bin").mkdir(parents=True)
    shutil.copy2(here / "bin" / "python3.13", there / "bin" / "python3.13")
    libraries = there / "lib"
    skip = shutil.ignore_patterns(*UNUSED)
    shutil.copytree(here / "lib" / "python3.13", libraries / "python3.13", ignore=skip)
    for shared in (here / "lib").glob("libpython3*.so*"):
        shutil.copy2(shared, libraries / shared.name)


def _runtime(root: Path) -> None:
    runtime = root / "var" / "runtime"
    for folder in (runtime, root / "var" / "task", root / "opt"):
        folder.mkdir(parents=True, exist_ok=True)
    boto3 = f"boto3=={importlib.metadata.version('boto3')}"
    tools = str(ROOT / ".tools" / "bin")
    uv = shutil.which("uv", path=os.pathsep.join((tools, os.environ["PATH"])))
    python = str(Path(sys.base_prefix) / "bin" / "python3.13")
    pip = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    environment = {**os.environ, "UV_SYSTEM_CERTS": "1"}
    run([*pip, "--quiet", "--target", str(runtime), "awslambdaric", boto3], environment, 180)
    start = runtime / "bootstrap"
    start.write_text(BOOTSTRAP)
    start.chmod(0o755)
