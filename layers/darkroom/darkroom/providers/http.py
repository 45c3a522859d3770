"""HTTP with a total deadline per call, and the one client of all provider calls in a process.

httpx's time-outs are per phase and start again with every byte that arrives, so a server that sends
a byte now and then could occupy a worker for ever. Here each wait on the network is cut to what is
left of the deadline. The image fetcher uses the same back end, with a check of the addresses.

A response is read completely, up to a limit that counts its bytes after decompression. Responses
are parsed one at a time: an SDK holds an image as JSON, as text, in base64 and as bytes at once.
Only inside a `deadline` with `streamed` is the body of a success left to the caller, by pieces.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpcore2
import httpx2

MAX_RESPONSE_BYTES = 256 * 1024 * 1024  # ten 4K images in base64
MAX_CONNECTIONS = 64
MAX_LOOKUPS = 32  # of host names at a time
RESOLVE_SECONDS = 20.0
_WRITE_BYTES = 64 * 1024
_parsing = threading.RLock()  # held from the end of a response to the end of its deadline


@dataclass(slots=True)
class Exchange:
    """The network traffic inside a `deadline`: what an SDK did before it returned or raised."""

    end: float  # by time.monotonic()
    sent: bool = False  # a request was handed to the network
    response: httpx2.Response | None = None  # the last one, read completely
    streamed: bool = False  # the caller reads bodies piece by piece, and bounds them itself
    _parses: bool = False

    def begin_parsing(self) -> None:
        """Wait until no other thread parses a response."""
        if not self._parses:
            _parsing.acquire()
            self._parses = True

    def end_parsing(self) -> None:
        if self._parses:
            self._parses = False
            _parsing.release()


_exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)

type SocketOptions = Iterable[Any] | None
type AddressLookup = Callable[[str, int], Sequence[str]]


@contextmanager
def deadline(seconds: float, *, streamed: bool = False) -> Iterator[Exchange]:
    """Bounds all requests of this thread inside the block, in seconds from now.

    A body that is `streamed` is read inside blocks of its own.

    When the time is up they raise a subclass of httpcore2.TimeoutException or, with `new_client`,
    of httpx2.TimeoutException. Within another deadline, the earlier end counts.
    """
    outer = _exchange.get()
    end = time.monotonic() + seconds
    exchange = Exchange(end if outer is None else min(end, outer.end), streamed=streamed)
    token = _exchange.set(exchange)
    try:
        yield exchange
    finally:
        _exchange.reset(token)
        exchange.end_parsing()


def time_left(
    timeout: float | None = None,
    expired: type[httpcore2.TimeoutException] = httpcore2.ReadTimeout,
) -> float | None:
    """The shorter of `timeout` and what is left of the deadline. Raises `expired` at its end."""
    exchange = _exchange.get()
    if exchange is None:
        return timeout
    left = exchange.end - time.monotonic()
    if left <= 0:
        raise expired("the call's deadline has passed")
    return left if timeout is None else min(timeout, left)


def last_response() -> httpx2.Response | None:
    """The last response inside the current deadline, as the SDK got it."""
    exchange = _exchange.get()
    return None if exchange is None else exchange.response


def _is_streamed() -> bool:
    exchange = _exchange.get()
    return exchange is not None and exchange.streamed


class HostUnknown(httpcore2.ConnectError):
    """The host name does not exist."""


_lookups = threading.BoundedSemaphore(MAX_LOOKUPS)


def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, from the system's resolver, within the deadline.

    The resolver cannot be interrupted, so it runs in a thread that is abandoned when the time is
    up. Raises HostUnknown, httpcore2.ConnectError, or ConnectTimeout.
    """
    timeout = time_left(RESOLVE_SECONDS, httpcore2.ConnectTimeout)
    ended = threading.Event()
    found: list[Sequence[str] | Exception] = []

    def look_up() -> None:
        try:
            found.append(_addresses(host, port))
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            found.append(error)
        finally:
            _lookups.release()
            ended.set()

    if not _lookups.acquire(timeout=timeout):
        raise httpcore2.ConnectTimeout("too many name lookups are waiting for the resolver")
    threading.Thread(target=look_up, name="lookup", daemon=True).start()
    if not ended.wait(time_left(timeout, httpcore2.ConnectTimeout)):
        raise httpcore2.ConnectTimeout(f"the address of {host} was not found in time")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _addresses(host: str, port: int) -> Sequence[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            raise HostUnknown(host) from error
        raise httpcore2.ConnectError(f"name resolution failed: {error.strerror}") from error
    except UnicodeError as error:
        raise HostUnknown(host) from error
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class _Stream(httpcore2.NetworkStream):
    """A connection whose every wait ends at the deadline, and every response at a size."""

    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner
        self._received = 0  # bytes since the last request

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._inner.read(max_bytes, time_left(timeout, httpcore2.ReadTimeout))
        self._received += len(data)
        if self._received > MAX_RESPONSE_BYTES and not _is_streamed():
            raise httpcore2.ReadError("the response is larger than any image can be")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._received = 0
        view = memoryview(buffer)
        for start in range(0, len(view), _WRITE_BYTES):
            part = bytes(view[start : start + _WRITE_BYTES])
            self._inner.write(part, time_left(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        left = time_left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class DeadlineBackend(httpcore2.NetworkBackend):
    """Connections bounded by the deadline.

    A host is connected to only at the addresses that `lookup` returns, tried in order; it may
    refuse the host by raising.
    """

    def __init__(
        self, lookup: AddressLookup = resolve, inner: httpcore2.NetworkBackend | None = None
    ) -> None:
        self._lookup = lookup
        self._inner = inner or httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore2.NetworkStream:
        failure: Exception = httpcore2.ConnectError(f"no address of {host} can be used")
        for address in self._lookup(host, port):
            left = time_left(timeout, httpcore2.ConnectTimeout)
            try:
                return _Stream(
                    self._inner.connect_tcp(address, port, left, local_address, socket_options)
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


class _DeadlineTransport(httpx2.HTTPTransport):
    """httpx2's own transport over the deadline-bounded back end."""

    def __init__(self) -> None:
        # In place of httpx2's own pool, whose back end cannot be chosen.
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_CONNECTIONS,
            keepalive_expiry=5.0,
            network_backend=DeadlineBackend(),
        )


class _BoundedTransport(httpx2.BaseTransport):
    """Reads responses completely, within the size limit, and records them in the exchange."""

    def __init__(self, inner: httpx2.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        exchange = _exchange.get()
        if exchange is not None:
            exchange.end_parsing()
            exchange.sent = True
        received = self._inner.handle_request(request)
        if received.is_success and _is_streamed():
            return received
        body = _decoded_body(received)
        if exchange is not None:
            exchange.begin_parsing()
        response = httpx2.Response(
            received.status_code,
            headers=[h for h in received.headers.raw if h[0].lower() not in _OF_ENCODED_BODIES],
            content=bytes(body),
            request=request,
        )
        if exchange is not None:
            exchange.response = response
        return response

    def close(self) -> None:
        self._inner.close()


_OF_ENCODED_BODIES = (b"content-encoding", b"content-length", b"transfer-encoding")


def _decoded_body(response: httpx2.Response) -> bytearray:
    """The decompressed body. httpx2 decompresses at most 1 MiB at a time."""
    body = bytearray()
    try:
        for piece in response.iter_bytes():
            body += piece
            if len(body) > MAX_RESPONSE_BYTES:
                raise httpx2.ReadError("the response is larger than any image can be")
    finally:
        response.close()
    return body


def new_client(transport: httpx2.BaseTransport | None = None) -> httpx2.Client:
    """Follows no redirects (they would carry the key along), uses no proxies of the environment."""
    return httpx2.Client(
        transport=_BoundedTransport(transport or _DeadlineTransport()),
        follow_redirects=False,
        trust_env=False,
        timeout=60,
        headers={"accept-encoding": "identity"},  # images do not compress
    )


@cache
def shared_client() -> httpx2.Client:
    """The client of this process, built at the first call."""
    return new_client()


def close_shared_client() -> None:
    """Closes its connections; the next call builds another."""
    if shared_client.cache_info().currsize:
        shared_client().close()
        shared_client.cache_clear()
