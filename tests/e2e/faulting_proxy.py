"""A proxy in front of MiniStack that fails as AWS does: throttling, 500s, lost responses.

Each request to DynamoDB, S3 or SQS gets at most one fault, chosen at random with the given rates. A
lost response is the worst: the work was done, and the caller sees a failure.
"""

import http.client
import json
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

from darkroom_local.processes import LOOPBACK, serving

_SCOPE = re.compile(r"Credential=[^/]+/\d+/[^/]+/([a-z0-9]+)/aws4_request")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
_TIMEOUT = 60.0
_SERVICES = frozenset({"dynamodb", "s3", "sqs"})


class AwsFault(StrEnum):
    THROTTLED = "throttled"  # rejected for its rate, nothing done
    FAILED = "failed"  # 500, nothing done
    DROPPED = "dropped"  # the connection is closed, nothing done
    LOST_RESPONSE = "lost_response"  # done, then the connection is closed
    FALSE_FAILURE = "false_failure"  # done, then answered with a 500


@dataclass(slots=True)
class FaultingProxy:
    """`rates` by fault; they may be changed while it runs. `operations` are of all requests."""

    url: str
    rates: dict[AwsFault, float]
    counts: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _rng: random.Random = field(default_factory=lambda: random.Random(0), repr=False)

    @property
    def requests(self) -> int:
        with self._lock:
            return sum(n for name, n in self.counts.items() if name.endswith("requests"))

    def draw(self, service: str, operation: str) -> AwsFault | None:
        with self._lock:
            self.operations[f"{service}: {operation}"] += 1
            self.counts[f"{service}: requests"] += 1
            if service not in _SERVICES:
                return None
            remaining = self._rng.random()
            for fault, rate in self.rates.items():
                remaining -= rate
                if remaining < 0:
                    self.counts[f"{service}: {fault.value}"] += 1
                    return fault
        return None


@contextmanager
def running(target: str, rates: Mapping[AwsFault, float]) -> Iterator[FaultingProxy]:
    """A proxy to `target` on a free port, in threads of this process."""

    class Handler(_Handler):
        address = urlsplit(target).netloc

    with serving(_Server((LOOPBACK, 0), Handler)) as url:
        Handler.proxy = FaultingProxy(url, dict(rates))
        yield Handler.proxy


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore it: callers are killed in the middle of requests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: ClassVar[FaultingProxy]
    address: ClassVar[str]  # of the target

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""

    def do_GET(self) -> None:
        body = self._body()
        found = _SCOPE.search(self.headers.get("Authorization", ""))
        service = found[1] if found else "other"
        operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2] or self.command
        fault = self.proxy.draw(service, operation)
        if fault is AwsFault.DROPPED:
            return self._drop()
        if fault in (AwsFault.THROTTLED, AwsFault.FAILED):
            return self._fail(service, throttled=fault is AwsFault.THROTTLED)
        status, headers, content = self._call_target(body)
        if fault is AwsFault.LOST_RESPONSE:
            return self._drop()
        if fault is AwsFault.FALSE_FAILURE:
            return self._fail(service, throttled=False)
        return self._respond(status, headers, content)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _call_target(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=_TIMEOUT)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Send the response; that to HEAD keeps the length of the body it does not have."""
        length = {n.lower(): v for n, v in headers}.get("content-length")
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP and name.lower() != "content-length":
                self.send_header(name, value)
        is_head = self.command == "HEAD" and length is not None
        self.send_header("Content-Length", str(length if is_head else len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, service: str, *, throttled: bool) -> None:
        """Send the error in the form of each service."""
        status, code, kind, body = _error(service, throttled=throttled)
        headers = [("Content-Type", kind)]
        if service == "sqs":
            headers.append(("x-amzn-query-error", f"{code};Sender"))
        self._respond(status, headers, body)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _error(service: str, *, throttled: bool) -> tuple[int, str, str, bytes]:
    if service == "s3":
        status, code = (503, "SlowDown") if throttled else (500, "InternalError")
        text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>"
        return status, code, "application/xml", text.encode()
    status, code = (500, "InternalServerError")
    if throttled:
        status = 400
        code = "RequestThrottled" if service == "sqs" else "ProvisionedThroughputExceededException"
    space = "com.amazonaws.sqs" if service == "sqs" else "com.amazonaws.dynamodb.v20120810"
    document = {"__type": f"{space}#{code}", "message": "injected"}
    return status, code, "application/x-amz-json-1.0", json.dumps(document).encode()
