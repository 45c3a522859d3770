"""A container engine: the one that runs, else Debian's own, started for the time of the tests."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from darkroom.errors import DarkroomError
from darkroom_local.processes import ROOT, LocalStackError, run, spawn, wait_until
from darkroom_local.sam_local import docker_gateway

DATA = ROOT / ".local" / "docker"  # images are kept between runs; `make clean` removes them
START_SECONDS = 60.0
APT_SECONDS = 240.0


class CannotRunHere(DarkroomError):
    """This machine cannot run containers: the tests are skipped, with the message as the reason."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker engine that answers. `host` is the value of DOCKER_HOST; None: the default one."""

    host: str | None = None

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | ({"DOCKER_HOST": self.host} if self.host else {})

    def docker(self, *arguments: str, stdin: Path | None = None, seconds: float = 120) -> str:
        """Run the docker command and return its output. Raises LocalStackError."""
        with (stdin or Path(os.devnull)).open("rb") as source:
            command = ["docker", *arguments]
            return run(command, self.environment(), timeout_seconds=seconds, stdin=source.fileno())

    def responds(self) -> bool:
        try:
            self.docker("version", "--format", "{{.Server.Version}}", seconds=20)
        except (LocalStackError, OSError):
            return False
        return True

    def remove_containers(self) -> None:
        """Remove all containers: one that outlives its engine keeps its address on the bridge,
        and connections to the next engine's container with that address end there.
        """
        with suppress(LocalStackError):  # an engine that does not respond has to be stopped anyway
            if containers := self.docker("ps", "--all", "--quiet").split():
                self.docker("rm", "--force", *containers)

    def gateway(self) -> str:
        """The address at which containers reach this machine."""
        return docker_gateway(self.environment())


@contextmanager
def running() -> Iterator[Engine]:
    """An engine for the length of a `with` block. Raises CannotRunHere."""
    if (default := Engine()).responds():
        yield default
        return
    _install()
    with _own_engine() as engine:
        yield engine


@contextmanager
def _own_engine() -> Iterator[Engine]:
    """Plain `dockerd` with its own socket and data, separate from any other engine."""
    folder = Path(tempfile.mkdtemp(prefix="darkroom-docker-"))  # short: socket paths end at 108
    DATA.mkdir(parents=True, exist_ok=True)
    engine = Engine(f"unix://{folder}/docker.sock")
    command = ["dockerd", "--host", str(engine.host), "--data-root", str(DATA)]
    command += ["--exec-root", str(folder / "exec"), "--pidfile", str(folder / "docker.pid")]
    process = spawn(command, os.environ, folder / "dockerd.log")
    try:
        responded = wait_until(lambda: process.ended or engine.responds(), START_SECONDS)
        if process.ended:
            raise CannotRunHere(f"dockerd does not start here: {process.log_tail(1)}")
        if not responded:
            raise CannotRunHere(f"dockerd did not respond within {START_SECONDS:.0f} s")
        yield engine
    finally:
        engine.remove_containers()
        process.stop(grace_seconds=15)
        shutil.rmtree(folder, ignore_errors=True)


def _install() -> None:
    """Install Debian's packages where that is possible. Raises CannotRunHere."""
    if os.geteuid() != 0:
        raise CannotRunHere("no container engine runs, and only root may start one")
    if shutil.which("dockerd") and shutil.which("docker"):
        return
    if not shutil.which("apt-get"):
        raise CannotRunHere("no container engine runs, and this is not Debian: start one")
    # Up to Debian 12 docker.io contains the client; later it is a package of its own.
    apt_install("docker.io", "iptables", optional=("docker-cli",))


def apt_install(*packages: str, optional: tuple[str, ...] = ()) -> None:
    """Install packages of the distribution. Raises CannotRunHere."""
    environment = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}

    def apt_get(*arguments: str) -> None:
        # Another apt (a machine's unattended upgrades) may hold the lock for a while.
        command = ["apt-get", "-qy", "-o", "DPkg::Lock::Timeout=120", *arguments]
        run(command, environment, timeout_seconds=APT_SECONDS)

    try:
        apt_get("update")
        show = ["apt-cache", "show"]
        found = [
            package
            for package in optional
            if not subprocess.run([*show, package], capture_output=True, check=False).returncode
        ]
        apt_get("install", "--no-install-recommends", *packages, *found)
    except LocalStackError as error:
        raise CannotRunHere(f"{' '.join(packages)} cannot be installed: {error}") from error
