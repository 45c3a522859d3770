"""Servers on loopback and child processes: start them, wait until they answer, stop them.

`python -m darkroom_local.processes COMMAND ...` runs a command that must not outlive its parent
process; `spawn` starts its commands that way.
"""

import asyncio
import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import TCPServer

from darkroom.errors import DarkroomError

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
MEMORY = Path("/dev/shm")  # noqa: S108 - only private folders are created in it
MEMORY_NEEDED_BYTES = 6 * 2**30
SCRATCH_PREFIX = "darkroom-scratch-"


class LocalStackError(DarkroomError):
    """The one-machine stack could not be started; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ChildProcess:
    """A server started by `spawn`, in a process group of its own."""

    process: subprocess.Popen[bytes] = field(repr=False)
    log: Path

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self.process.pid

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def log_tail(self, lines: int = 5) -> str:
        text = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        return " / ".join(text.splitlines()[-lines:]) or "it printed nothing"

    def stop(self, grace_seconds: float = 5.0) -> None:
        stop_group(self.pid, grace_seconds)
        self.process.wait(timeout=10)  # reap it
        if self.process.stdin is not None:
            self.process.stdin.close()


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, *, detached: bool = False
) -> ChildProcess:
    """Start `command` in a process group of its own, with its output appended to `log`.

    Unless `detached`, it ends when this process ends.
    """
    watchdog = () if detached else (sys.executable, "-m", "darkroom_local.processes")
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            [*watchdog, *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return ChildProcess(process, log)


def run(
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    *,
    timeout_seconds: float,
    stdin: int = subprocess.DEVNULL,
    error_lines: int = 1,
) -> str:
    """Run a command to its end in the project's folder and return its standard output.

    Raises LocalStackError, with the last lines it printed, when it fails or takes too long.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own commands
            command,
            cwd=ROOT,
            env=environment,
            stdin=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LocalStackError(
            f"{_shown(command)} took longer than {timeout_seconds:.0f} s"
        ) from error
    if done.returncode != 0:
        printed = (done.stderr.strip() or done.stdout.strip()).splitlines()[-error_lines:]
        reason = "\n".join(printed) or "it printed nothing"
        raise LocalStackError(f"{_shown(command)} failed in {ROOT}: {reason}")
    return done.stdout


def _shown(command: Sequence[str | Path]) -> str:
    name, *arguments = map(str, command)
    return shlex.join([Path(name).name, *arguments[:2]])


def scratch_folder(prefix: str) -> Path:
    """A new folder for the state of a server: in memory where possible, else on disk.

    Every function is unpacked to some 9,000 files, which takes up to a minute on a slow disk.
    """
    if not _memory_is_usable():
        return Path(tempfile.mkdtemp(prefix=prefix))
    for path in MEMORY.glob(f"{SCRATCH_PREFIX}*/lock"):
        # Remove what killed processes left: nothing else frees that memory.
        with suppress(OSError), path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process runs
            shutil.rmtree(path.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY))
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # held until this process ends, however it ends
    return folder.rename(MEMORY / f"{SCRATCH_PREFIX}{folder.name}")


def _memory_is_usable() -> bool:
    if not MEMORY.is_dir() or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return False  # functions load shared libraries from there
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, shutil.disk_usage(MEMORY).free) >= MEMORY_NEEDED_BYTES


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(server: TCPServer) -> Iterator[str]:
    """Run a server in a thread for the length of the block; yields its URL."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://{LOOPBACK}:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def in_event_loop[T](manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter an asynchronous context manager in the event loop of a new thread.

    At the end of the block it is left, and whatever tasks it started are cancelled.
    """
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        value = asyncio.run_coroutine_threadsafe(manager.__aenter__(), loop).result()
        try:
            yield value
        finally:
            left = manager.__aexit__(None, None, None)
            asyncio.run_coroutine_threadsafe(left, loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        runner.close()


@asynccontextmanager
async def listening(server: asyncio.Server) -> AsyncIterator[int]:
    """The port of a server, which is closed with its connections at the end of the block."""
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        server.abort_clients()
        await server.wait_closed()


def wait_until(ready: Callable[[], bool], seconds: float, pause_seconds: float = 0.05) -> bool:
    """Poll until `ready` returns True; False after `seconds`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_seconds)
    return True


def stop_group(group: int, grace_seconds: float = 5.0) -> None:
    """End every process of a group: SIGTERM, and SIGKILL after `grace_seconds` (0: at once)."""
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
        if seconds and group_exists(group):
            with suppress(ProcessLookupError):
                os.killpg(group, number)
            wait_until(lambda: not group_exists(group), seconds)


def group_exists(group: int) -> bool:
    """Whether a process of the group is running. Zombies do not count: some inits reap slowly."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    statuses = [_process_status(path) for path in Path("/proc").glob("[0-9]*/stat")]
    if not statuses:
        return True  # a system without /proc
    return any(pgid == str(group) and state not in "ZX" for state, pgid in statuses)


def _process_status(path: Path) -> tuple[str, str]:
    """State and process group of a process, from its /proc/PID/stat."""
    try:
        state, _parent, group, *_ = path.read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return "X", ""  # it has just ended
    return state, group


def main() -> int:
    """The parent watchdog: runs a command, and kills its process group when the parent has died.

    The parent holds the other end of standard input; however it dies, the pipe closes.
    """

    def kill_when_parent_dies() -> None:
        os.read(sys.stdin.fileno(), 1)  # nothing is ever written: returns when the pipe closes
        os.killpg(0, signal.SIGKILL)

    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)  # noqa: S603 - our own command
    threading.Thread(target=kill_when_parent_dies, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
