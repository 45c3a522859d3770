"""HTTP that connects only to addresses it has checked, and ends when its time is up.

A host name is looked up once per connection and the very address that was checked is connected to,
so an answer that changes between check and use changes nothing. TLS still verifies the certificate
against the host name. Kept connections go to checked addresses, too, so they may be used again.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpcore2

from darkroom.errors import DarkroomError
from darkroom.images.addresses import is_public

_MOST_ADDRESSES = 4  # of one name that are tried
_MAX_CONNECTIONS = 32
_KEPT_CONNECTIONS = 16
_KEEP_SECONDS = 20.0

SocketOptions = Iterable[Any] | None
Resolver = Callable[[str, int], Sequence[str]]
MayConnect = Callable[[str, int], bool]


class NotPublic(DarkroomError):
    """The host has no public address."""


class HostUnknown(DarkroomError):
    """The host name does not exist."""


class OutOfTime(httpcore2.TimeoutException):
    """The request's total time is up."""


def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, as the system's resolver gives them.

    Raises HostUnknown, or httpcore2.ConnectError when the resolver fails for the moment.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            raise HostUnknown(host) from error
        raise httpcore2.ConnectError(f"name resolution failed: {error.strerror}") from error
    except UnicodeError as error:
        raise HostUnknown(host) from error
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class Deadline:
    """The end of the current request, for each thread its own. Times by the monotonic clock."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._of_thread = threading.local()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        self._of_thread.end = self._monotonic() + seconds
        try:
            yield
        finally:
            self._of_thread.end = None

    def shorten(self, timeout: float | None) -> float | None:
        """What is left of the total, if that is less. Raises OutOfTime when nothing is."""
        end = getattr(self._of_thread, "end", None)
        if end is None:
            return timeout
        left = float(end - self._monotonic())
        if left <= 0:
            raise OutOfTime
        return left if timeout is None else min(timeout, left)


class _TimedStream(httpcore2.NetworkStream):
    """Every read and write ends at the deadline, however slowly the bytes trickle."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.shorten(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.shorten(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        limit = self._deadline.shorten(timeout)
        stream = self._stream.start_tls(ssl_context, server_hostname, limit)
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class CheckedBackend(httpcore2.NetworkBackend):
    """Connects by checked address; `may_be_private(host, port)` exempts trusted hosts."""

    def __init__(
        self,
        deadline: Deadline,
        may_be_private: MayConnect,
        resolver: Resolver = resolve,
        inner: httpcore2.NetworkBackend | None = None,
    ) -> None:
        self._deadline = deadline
        self._may_be_private = may_be_private
        self._resolver = resolver
        self._inner = inner or httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore2.NetworkStream:
        found = self._resolver(host, port)
        usable = found if self._may_be_private(host, port) else [a for a in found if is_public(a)]
        if not usable:
            raise NotPublic(host)
        failure: Exception | None = None
        for address in usable[:_MOST_ADDRESSES]:
            try:
                stream = self._inner.connect_tcp(
                    address, port, self._deadline.shorten(timeout), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        raise failure or httpcore2.ConnectError(host)


def open_pool(
    backend: httpcore2.NetworkBackend, ssl_context: ssl.SSLContext | None = None
) -> httpcore2.ConnectionPool:
    """A thread-safe pool. It follows no redirects and reads no proxy from the environment."""
    return httpcore2.ConnectionPool(
        ssl_context=ssl_context or ssl.create_default_context(),
        max_connections=_MAX_CONNECTIONS,
        max_keepalive_connections=_KEPT_CONNECTIONS,
        keepalive_expiry=_KEEP_SECONDS,
        network_backend=backend,
    )
