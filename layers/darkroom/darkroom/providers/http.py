"""One HTTP client for all provider calls of a process, with a total deadline per call.

httpx's time-outs are per phase and start anew with every byte that arrives: a server that trickles
holds a worker for ever. Here each wait on the network is cut to what the call's deadline leaves.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import TracebackType
from typing import Any

import httpcore2
import httpx2

MAX_ANSWER_BYTES = 256 * 1024 * 1024  # ten 4K pictures in base64
MAX_CONNECTIONS = 64
_WRITE_BYTES = 64 * 1024
_deadline: ContextVar[float | None] = ContextVar("provider_call_deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Calls of this thread inside the block end within `seconds`, as httpx2.TimeoutException."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def _left(timeout: float | None, expired: type[Exception]) -> float | None:
    """The shorter of the phase's time-out and what is left of the deadline, in seconds."""
    end = _deadline.get()
    if end is None:
        return timeout
    left = end - time.monotonic()
    if left <= 0:
        raise expired("the call's deadline has passed")
    return left if timeout is None else min(timeout, left)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        for start in range(0, len(view), _WRITE_BYTES):
            part = bytes(view[start : start + _WRITE_BYTES])
            self._inner.write(part, _left(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = _left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore2.NetworkBackend):
    def __init__(self) -> None:
        self._inner = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        left = _left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(host, port, left, local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


@contextmanager
def _as_httpx_errors(request: httpx2.Request) -> Iterator[None]:
    """httpx2 has an error of the same name for each public one of httpcore2."""
    try:
        yield
    except (
        httpcore2.TimeoutException,
        httpcore2.NetworkError,
        httpcore2.ProtocolError,
        httpcore2.ProxyError,
        httpcore2.UnsupportedProtocol,
    ) as error:
        kind = getattr(httpx2, type(error).__name__, httpx2.TransportError)
        raise kind(str(error), request=request) from error


class _Body(httpx2.SyncByteStream):
    def __init__(self, inner: Any, request: httpx2.Request) -> None:
        self._inner = inner
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        with _as_httpx_errors(self._request):
            for part in self._inner:
                received += len(part)
                if received > MAX_ANSWER_BYTES:
                    raise httpcore2.ReadError("the answer is larger than any picture can be")
                yield part

    def close(self) -> None:
        with _as_httpx_errors(self._request):
            self._inner.close()


class DeadlineTransport(httpx2.BaseTransport):
    """A connection pool that honours `deadline`; otherwise as httpx2's own transport."""

    def __init__(self) -> None:
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_CONNECTIONS,
            keepalive_expiry=5.0,
            network_backend=_Backend(),
        )

    def __enter__(self) -> "DeadlineTransport":
        self._pool.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._pool.__exit__(exc_type, exc_value, traceback)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        asked = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx_errors(request):
            answer = self._pool.handle_request(asked)
        return httpx2.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_Body(answer.stream, request),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        self._pool.close()


def new_client() -> httpx2.Client:
    """No redirects (they would carry the key along) and no proxies from the environment."""
    return httpx2.Client(
        transport=DeadlineTransport(), follow_redirects=False, trust_env=False, timeout=60
    )


@cache
def shared_client() -> httpx2.Client:
    """The process's client, built at the first call."""
    return new_client()


def close_shared_client() -> None:
    """Close its connections; the next call builds another."""
    if shared_client.cache_info().currsize:
        shared_client().close()
        shared_client.cache_clear()
