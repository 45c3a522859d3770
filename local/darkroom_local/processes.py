"""Child processes on loopback: start them, wait until they answer, stop their whole group."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from darkroom.errors import DarkroomError

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"


class LocalStackError(DarkroomError):
    """The one-machine stack could not be started; says what to do."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, *, detached: bool = False
) -> subprocess.Popen[bytes]:
    """Start `command` in a process group of its own, output to `log`.

    Unless `detached`, it ends when this process ends.
    """
    guard = () if detached else (sys.executable, "-m", "darkroom_local.guard")
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - commands of our own
            [*guard, *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until(ready: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    """Ask until `ready` says yes; False after `seconds`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def stop_group(
    group: int, process: subprocess.Popen[bytes] | None = None, grace: float = 5.0
) -> None:
    """End every process of a group: politely, and after `grace` seconds not."""

    def gone() -> bool:
        if process is not None:
            process.poll()  # reap it, or its group stays
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    for how, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        if gone():
            return
        if not seconds:
            continue
        try:
            os.killpg(group, how)
        except ProcessLookupError:
            return
        wait_until(gone, seconds)
