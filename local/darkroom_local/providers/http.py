"""Just enough HTTP/1.1 over asyncio for many connections at little CPU."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 200 * 1024 * 1024


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # lower-case names
    body: bytes = field(repr=False)
    arrived: float  # event loop time when the request's head was complete
    connection: int  # counted from the start of the process


@dataclass(slots=True)
class Response:
    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    trickle_seconds: float = 0  # spread the body, or the head, over this time
    trickle_head: bool = False
    cut_at: int | None = None  # close the connection after so many bytes of the body
    drop: bool = False  # close without a word

    @staticmethod
    def of(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
        body = json.dumps(value, separators=(",", ":")).encode()
        return Response(status=status, body=body, headers=headers or {})

    def head(self) -> bytes:
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [
            f"HTTP/1.1 {self.status} {phrase}",
            f"content-type: {self.content_type}",
            f"content-length: {len(self.body)}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


_connections = itertools.count(1)
Handler = Callable[[Request], Awaitable[Response]]


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Request | None:
    """None at the end of the connection. Raises ValueError for what is no request."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    arrived = asyncio.get_running_loop().time()
    request_line, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = request_line.split(" ", 2)
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", "0"))
    if "transfer-encoding" in headers or length > MAX_BODY_BYTES:
        raise ValueError("the simulator takes bodies with a content-length of up to 200 MiB")
    body = await reader.readexactly(length) if length else b""
    parts = urlsplit(target)
    return Request(
        method=method,
        path=unquote(parts.path),
        query=dict(parse_qsl(parts.query)),
        headers=headers,
        body=body,
        arrived=arrived,
        connection=connection,
    )


async def _trickle(writer: asyncio.StreamWriter, data: bytes, seconds: float) -> None:
    """All of `data`, a few bytes at a time, never silent for longer than a fifth of a second."""
    steps = max(2, min(len(data), int(seconds / 0.2) + 1))
    size = -(-len(data) // steps)
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await writer.drain()
        await asyncio.sleep(seconds / steps)


async def _write_response(writer: asyncio.StreamWriter, response: Response) -> bool:
    """True when the connection can be used again."""
    if response.drop:
        return False
    head, body = response.head(), response.body
    if response.trickle_head:
        await _trickle(writer, head, response.trickle_seconds)
    else:
        writer.write(head)
    if response.cut_at is not None:
        writer.write(body[: response.cut_at])
        await writer.drain()
        return False
    if response.trickle_seconds and not response.trickle_head:
        await _trickle(writer, body, response.trickle_seconds)
    else:
        writer.write(body)
    await writer.drain()
    return True


async def serve_connection(
    handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    number = next(_connections)
    try:
        while (request := await _read_request(reader, number)) is not None:
            response = await handler(request)
            if not await _write_response(writer, response):
                break
            if request.headers.get("connection", "").lower() == "close":
                break
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await writer.wait_closed()
