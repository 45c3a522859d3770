"""A container engine: the one that runs, else Debian's own, started for as long as we need it."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from darkroom_local.processes import ROOT, LocalStackError, spawn, stop_group, wait_until
from darkroom_local.sam_local import CannotRunHere

DATA = ROOT / ".local" / "docker"  # images stay here between runs; `make clean` may remove it
START_SECONDS = 40.0
APT_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker engine that answers. `host` is for DOCKER_HOST; None: the default one."""

    host: str | None = None

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | ({"DOCKER_HOST": self.host} if self.host else {})

    def docker(self, *arguments: str, stdin: Path | None = None, seconds: float = 120) -> str:
        """Run the docker command and return what it printed. Raises LocalStackError."""
        with (stdin or Path(os.devnull)).open("rb") as source:
            return run(["docker", *arguments], self.environment(), seconds, stdin=source.fileno())

    def answers(self) -> bool:
        try:
            self.docker("version", "--format", "{{.Server.Version}}", seconds=20)
        except (LocalStackError, OSError):
            return False
        return True

    def gateway(self) -> str:
        """The address under which containers reach this machine."""
        form = "{{(index .IPAM.Config 0).Gateway}}"
        return self.docker("network", "inspect", "bridge", "--format", form).strip()


@contextmanager
def running() -> Iterator[Engine]:
    """An engine for the length of a `with` block. Raises CannotRunHere."""
    if (default := Engine()).answers():
        yield default
        return
    _install()
    with _own_engine() as engine:
        yield engine


@contextmanager
def _own_engine() -> Iterator[Engine]:
    """Plain `dockerd` with a socket and a store of its own, so that it meets nobody else's."""
    place = Path(tempfile.mkdtemp(prefix="darkroom-docker-"))  # short: socket paths end at 108
    DATA.mkdir(parents=True, exist_ok=True)
    engine = Engine(f"unix://{place}/docker.sock")
    command = ("dockerd", "--host", f"{engine.host}", "--data-root", str(DATA))
    own = ("--exec-root", str(place / "exec"), "--pidfile", str(place / "docker.pid"))
    log = place / "dockerd.log"
    process = spawn([*command, *own], os.environ, log)
    try:
        if not wait_until(lambda: process.poll() is not None or engine.answers(), START_SECONDS):
            raise CannotRunHere(f"dockerd did not answer within {START_SECONDS:.0f} s")
        if process.poll() is not None:
            raise CannotRunHere(f"dockerd does not start here: {_last_line(log)}")
        yield engine
    finally:
        stop_group(process.pid, process)
        if process.stdin is not None:
            process.stdin.close()
        shutil.rmtree(place, ignore_errors=True)


def _install() -> None:
    """Debian's packages, where we may install them. Raises CannotRunHere."""
    if shutil.which("dockerd") and shutil.which("docker"):
        return _need_root("start one")
    _need_root("install one")
    if not shutil.which("apt-get"):
        raise CannotRunHere("no container engine runs, and this is not Debian: start one")
    apt_install("docker.io", "iptables", "docker-cli" if _known("docker-cli") else "docker.io")
    return None


def apt_install(*packages: str) -> None:
    """Install packages of the distribution, without starting their services."""
    environment = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        run(["apt-get", "update", "-q"], environment, APT_SECONDS)
        get = ["apt-get", "install", "-qy", "--no-install-recommends", *packages]
        run(get, environment, APT_SECONDS)
    except LocalStackError as error:
        raise CannotRunHere(f"{' '.join(packages)} cannot be installed: {error}") from error


def _need_root(to_do: str) -> None:
    if os.geteuid() != 0:
        raise CannotRunHere(f"no container engine runs, and only root may {to_do}")


def _known(package: str) -> bool:
    found = subprocess.run(  # noqa: S603 - a fixed command
        ["apt-cache", "show", package],  # noqa: S607
        capture_output=True,
        check=False,
    )
    return found.returncode == 0


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    seconds: float,
    *,
    stdin: int = subprocess.DEVNULL,
) -> str:
    """Standard output of a command that must succeed. Raises LocalStackError."""
    try:
        done = subprocess.run(  # noqa: S603 - commands of our own
            command,
            env=dict(environment),
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LocalStackError(f"{' '.join(command[:2])} took over {seconds:.0f} s") from error
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it printed nothing"]
        raise LocalStackError(f"{' '.join(command[:2])} failed: {tail[0]}")
    return done.stdout


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it printed nothing"
