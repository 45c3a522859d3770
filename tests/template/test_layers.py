"""The dependency layer is what uv.lock says, wheels for Lambda only, and small enough."""

import os
import re
import subprocess
import tomllib

from darkroom_local.processes import ROOT
from darkroom_local.sam import uv

REQUIREMENTS = ROOT / "layers" / "dependencies" / "requirements.txt"


def pinned() -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", REQUIREMENTS.read_text(), re.MULTILINE))


def test_the_layer_is_pinned_to_what_uv_lock_says() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "UV_PYTHON"}
    options = "--quiet --frozen --only-group lambda --no-emit-project --no-header --no-annotate"
    exported = subprocess.run(
        [uv(), "export", *options.split()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert exported == REQUIREMENTS.read_text(), "run `make lock`"


def test_every_requirement_has_hashes() -> None:
    blocks = re.split(r"\n(?=\S)", REQUIREMENTS.read_text().strip())
    assert len(blocks) == len(pinned())
    assert all("--hash=sha256:" in block for block in blocks)


def test_the_layer_holds_the_packages_of_the_lambda_group_and_no_boto3() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {re.split(r"[>=]", r)[0] for r in project["dependency-groups"]["lambda"]}
    assert asked <= pinned().keys()
    assert not {"boto3", "botocore"} & pinned().keys(), "the runtime brings them"
    assert "aiohttp" not in pinned(), "it would cost every cold start 80 ms"


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
