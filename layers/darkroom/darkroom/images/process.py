"""A child process that decodes images, with a limit on its memory and on the time of each image.

Image libraries decode hostile bytes in C: no check of a header bounds what every format may take,
and a decoder that crashes or runs for minutes would take the worker and its rows along. The process
is started at the first image, and again after it was lost.

A request is a JSON object and the image's bytes; so is a reply.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from darkroom.errors import DarkroomError, ServiceUnavailable

MEMORY_BYTES = 512 * 1024 * 1024  # of address space, beside what the started process has
CPU_SECONDS = 30  # for one operation
_WALL_SECONDS = 240.0  # for one operation that waits; CPU_SECONDS bounds what it works
_START_SECONDS = 60.0
_TRIES = 2  # another image or another process may have been at fault
_READY = b"ready"
_START = [sys.executable, "-P", "-W", "ignore", "-m", __name__]
# What a freed image occupied goes back to the system at once; one thread needs one arena.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


class Rejected(DarkroomError):
    """The image cannot be used. `str()`: the end of a sentence that starts with its name."""


class Reply(NamedTuple):
    """What an operation returns besides bytes, and the bytes (the ones that came, if unchanged)."""

    value: Any
    data: bytes


class _Lost(Exception):
    """The process ended during an operation."""


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    connection: "Connection[Any, Any]"

    def end(self) -> int:
        """Kill it. Returns its exit status."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()


@dataclass(slots=True)
class ImageProcess:
    """Runs the operations of pillow_codec, one at a time. Thread-safe."""

    memory_bytes: int = MEMORY_BYTES
    cpu_seconds: int = CPU_SECONDS
    _child: _Child | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, operation: str, data: bytes, arguments: Mapping[str, Any]) -> Reply:
        """Raises Rejected, ServiceUnavailable."""
        with self._lock:
            for _ in range(_TRIES):
                with suppress(_Lost):
                    return self._exchange(operation, data, arguments)
        raise Rejected("makes the decoder crash: save it in another format")

    def close(self) -> None:
        """End the process; the next image starts another."""
        with self._lock:
            self._end()

    def _exchange(self, operation: str, data: bytes, arguments: Mapping[str, Any]) -> Reply:
        if self._child is None:
            self._child = self._start()
        connection = self._child.connection
        try:
            connection.send_bytes(json.dumps([operation, arguments]).encode())
            connection.send_bytes(data)
            if not connection.poll(_WALL_SECONDS):
                self._end()
                raise Rejected(self._too_long)
            problem, value, changed = json.loads(connection.recv_bytes())
            result = connection.recv_bytes() if changed else data
        except (OSError, EOFError) as error:
            if self._end() == -signal.SIGXCPU:
                raise Rejected(self._too_long) from error
            raise _Lost from error
        if problem is not None:
            raise Rejected(problem)
        return Reply(value, result)

    @property
    def _too_long(self) -> str:
        return f"takes more than {self.cpu_seconds} s to decode: save it again, or smaller"

    def _end(self) -> int:
        child, self._child = self._child, None
        return child.end() if child is not None else 0

    def _start(self) -> _Child:
        """The process gets no AWS credentials. Raises ServiceUnavailable."""
        ours, theirs = socket.socketpair()
        limits = [str(theirs.fileno()), str(self.memory_bytes), str(self.cpu_seconds)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        environment |= _ALLOCATOR | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            try:
                process = subprocess.Popen(  # noqa: S603  # our own module
                    [*_START, *limits],
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            except OSError as error:
                ours.close()
                raise ServiceUnavailable(f"the image process cannot start: {error}") from error
        child = _Child(process, Connection(ours.detach()))
        with suppress(OSError, EOFError):
            if child.connection.poll(_START_SECONDS) and child.connection.recv_bytes() == _READY:
                return child
        raise ServiceUnavailable(f"the image process does not start: status {child.end()}")


def serve(connection: "Connection[Any, Any]", memory_bytes: int, cpu_seconds: int) -> None:
    """The child's loop, until the parent closes its end."""
    from darkroom.images import pillow_codec  # noqa: PLC0415 - Pillow is loaded in the child only

    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), sys.stderr.fileno())  # libraries print what images contain
    _limit_memory(memory_bytes)
    connection.send_bytes(_READY)
    while True:
        operation, arguments = json.loads(connection.recv_bytes())
        data = connection.recv_bytes()
        _limit_cpu_time(cpu_seconds)
        problem, result = None, data
        value: object = None
        try:
            found = pillow_codec.run(operation, data, arguments)
        except pillow_codec.Undecodable as error:
            problem = str(error)
        else:
            if isinstance(found, pillow_codec.Encoded):
                result, value = found.data, found[1:]
            elif isinstance(found, bytes):
                result = found
            else:
                value = found
            del found
        changed = result is not data
        connection.send_bytes(json.dumps([problem, value, changed]).encode())
        if changed:
            connection.send_bytes(result)
        del data, result  # not kept while the next image is awaited


def _limit_memory(more_bytes: int) -> None:
    """Let this process allocate so much more; any amount where the system has no such limit."""
    import resource  # noqa: PLC0415 - Windows, where the command runs too, has no such module

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        with open("/proc/self/statm") as statm:  # noqa: PTH123
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more_bytes, used + more_bytes))


def _limit_cpu_time(more_seconds: int) -> None:
    """SIGXCPU ends this process after so much more CPU time."""
    import resource  # noqa: PLC0415 - see _limit_memory

    used = ceil(sum(os.times()[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + more_seconds, resource.RLIM_INFINITY))


def main(arguments: list[str]) -> None:
    """`arguments`: the socket's file descriptor, and the limits on memory and CPU time."""
    descriptor, memory_bytes, cpu_seconds = map(int, arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when it ends
    with suppress(EOFError, OSError), Connection(descriptor) as connection:
        serve(connection, memory_bytes, cpu_seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
