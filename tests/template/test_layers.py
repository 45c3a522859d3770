"""The dependency layer is what uv.lock says, for Lambda's platform, and builds with uv or pip."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from darkroom_local.processes import ROOT, run
from darkroom_local.sam import uv
from tests.template.aws_calls import aws_calls
from tests.template.functions import NAMES

LAYER = ROOT / "layers" / "dependencies"
REQUIREMENTS = LAYER / "requirements.txt"
# Packages without dependencies, one built for an old glibc and one for a recent one.
SAMPLE = ("jiter", "pillow")


def pinned() -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", REQUIREMENTS.read_text(), re.MULTILINE))


def blocks() -> list[str]:
    """The requirements with their hashes."""
    return re.split(r"\n(?=\S)", REQUIREMENTS.read_text().strip())


def test_the_layer_is_pinned_to_what_uv_lock_says_with_hashes() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "UV_PYTHON"}
    options = "--quiet --frozen --only-group lambda --no-emit-project --no-header --no-annotate"
    exported = run([uv(), "export", *options.split()], environment, timeout_seconds=60)
    assert exported == REQUIREMENTS.read_text(), "run `make lock`"
    assert len(blocks()) == len(pinned())
    assert all("--hash=sha256:" in block for block in blocks())


def test_the_layer_holds_the_packages_of_the_lambda_group_with_the_tested_boto3() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    required = {re.split(r"[>=]", r)[0] for r in project["dependency-groups"]["lambda"]}
    assert required <= pinned().keys()
    # The runtime has a boto3 of its own, which would import the layer's urllib3.
    for package in ("boto3", "botocore", "urllib3"):
        assert pinned()[package] == version(package)
    assert "aiohttp" not in pinned(), "it would cost every cold start 80 ms"


def test_the_layer_keeps_the_aws_services_that_the_functions_use() -> None:
    (line,) = re.findall(r"SERVICES_USED := (.*)", (LAYER / "Makefile").read_text())
    used = {call.service for name in NAMES for call in aws_calls(name)}
    assert set(line.split()) == used | {"sts"}


def test_every_wheel_exists_for_both_processors() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    wanted = pinned()
    for package in lock["package"]:
        if wanted.get(package["name"]) != package["version"]:
            continue
        files = [wheel["url"].rpartition("/")[2] for wheel in package.get("wheels", [])]
        for machine in ("x86_64", "aarch64"):
            fitting = [f for f in files if "none-any" in f or (machine in f and "linux" in f)]
            assert fitting, f"{package['name']} has no wheel for {machine}"


def build(folder: Path, installer: str, requirements: str) -> subprocess.CompletedProcess[str]:
    """Build a layer for arm64 as `sam build` does, with only Python 3.13 and the installer."""
    path, source = folder / "bin", folder / "source"
    path.mkdir()
    source.mkdir()
    python = Path(sys.base_prefix) / "bin" / "python3.13"
    for tool in ("make", "env", "find", "rm", "seq", "sh", "test"):
        (path / tool).symlink_to(str(shutil.which(tool)))
    (path / "python3.13").symlink_to(python)
    if installer == "uv":
        (path / "uv").symlink_to(uv())
    elif subprocess.run([python, "-m", "pip"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no pip")
    (source / "requirements.txt").write_text(requirements + "\n")
    shutil.copy(LAYER / "Makefile", source)
    excluded = {"DARKROOM_PYTHON", "UV", "UV_PYTHON", "VIRTUAL_ENV"}
    environment = {k: v for k, v in os.environ.items() if k not in excluded}
    settings = {"ARTIFACTS_DIR": str(folder / "built"), "DARKROOM_ARCHITECTURE": "arm64"}
    return subprocess.run(
        ["make", "build-DependenciesLayer"],
        cwd=source,
        env=environment | settings | {"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_the_layer_builds_for_lambda_with_byte_code(installer: str, tmp_path: Path) -> None:
    sample = "\n".join(block for block in blocks() if block.startswith(SAMPLE))
    done = build(tmp_path, installer, sample)
    assert done.returncode == 0, done.stderr
    assert ("-m pip" in done.stdout) is (installer == "pip")
    built = tmp_path / "built" / "python"
    installed = {path.name.partition("-")[0] for path in built.glob("*.dist-info")}
    assert installed == set(SAMPLE)
    native = [path.name for path in built.rglob("*.so")]
    assert native
    assert all("aarch64" in name for name in native)
    compiled = built / "PIL" / "__pycache__" / "Image.cpython-313.pyc"
    assert compiled.read_bytes()[4] == 1, "unpacking changes time stamps: hash, unchecked"
    assert not (built / "bin").exists()


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_the_layer_takes_only_packages_with_the_locked_hash(installer: str, tmp_path: Path) -> None:
    (block,) = (block for block in blocks() if block.startswith(SAMPLE[0]))
    tampered = re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", block)
    done = build(tmp_path, installer, tampered)
    assert done.returncode != 0
    assert "hash" in done.stderr.lower()


def test_the_domain_layer_contains_the_templates_of_the_gallery(tmp_path: Path) -> None:
    domain = ROOT / "layers" / "darkroom"
    command = ("make", "-C", domain, "build-DarkroomLayer", f"ARTIFACTS_DIR={tmp_path}")
    environment = dict(os.environ) | {"DARKROOM_PYTHON": sys.executable}
    run(command, environment, timeout_seconds=120)
    templates = Path("darkroom") / "report" / "templates"
    contents = {path.name: path.read_bytes() for path in (domain / templates).iterdir()}
    assert {"base.html", "card.html", "gallery.css"} <= set(contents)
    built = (tmp_path / "python" / templates).iterdir()
    assert {path.name: path.read_bytes() for path in built} == contents
