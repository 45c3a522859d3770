"""A minimal HTTP/1.1 server over asyncio, for many connections at little CPU."""

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 200 * 1024 * 1024
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_connection_numbers = itertools.count(1)


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # lower-case names
    body: bytes = field(repr=False)
    arrived: float  # event loop time when the header was complete
    connection: int  # counted from the start of the process


@dataclass(frozen=True, slots=True)
class FormPart:
    name: str
    filename: str | None
    content_type: str | None
    data: bytes = field(repr=False)


@dataclass(slots=True)
class Response:
    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    trickle_seconds: float = 0  # spread the body, or the header, over this time
    trickle_header: bool = False
    drop: bool = False  # close the connection without a response

    @staticmethod
    def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
        body = json.dumps(value, separators=(",", ":")).encode()
        return Response(status=status, body=body, headers=headers or {})

    def header(self) -> bytes:
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


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Request | None:
    """None at the end of the connection. Raises ValueError for anything but a request."""
    try:
        header = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    arrived = asyncio.get_running_loop().time()
    request_line, *lines = header[:-4].decode("latin-1").split("\r\n")
    method, target, _ = request_line.split(" ", 2)
    headers = _parse_headers(lines)
    length = int(headers.get("content-length", "0"))
    if "transfer-encoding" in headers or length > MAX_BODY_BYTES:
        raise ValueError("the simulator accepts only bodies with a content-length of up to 200 MiB")
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
    """Writes all of `data`, a few bytes at a time, at least every 0.2 seconds."""
    steps = max(2, min(len(data), int(seconds / 0.2) + 1))
    size = -(-len(data) // steps)
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await writer.drain()
        await asyncio.sleep(seconds / steps)


async def _write_response(writer: asyncio.StreamWriter, response: Response) -> bool:
    """True when the connection can be reused."""
    if response.drop:
        return False
    header, body = response.header(), response.body
    if response.trickle_header:
        await _trickle(writer, header, response.trickle_seconds)
    else:
        writer.write(header)
    if response.trickle_seconds and not response.trickle_header:
        await _trickle(writer, body, response.trickle_seconds)
    else:
        writer.write(body)
    await writer.drain()
    return True


async def serve_connection(
    handler: Callable[[Request], Awaitable[Response]],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    number = next(_connection_numbers)
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


def parse_multipart(body: bytes, content_type: str) -> list[FormPart]:
    """multipart/form-data as the OpenAI SDK sends it. Raises ValueError for anything else."""
    kind, _, parameters = content_type.partition(";")
    boundary = re.search(r'boundary="?([^";]+)"?', parameters)
    if kind.strip().lower() != "multipart/form-data" or not boundary:
        raise ValueError("not multipart/form-data")
    _, *parts = body.split(b"--" + boundary[1].encode())
    if not parts or not parts[-1].startswith(b"--"):
        raise ValueError("the multipart body is not closed")
    return [_parse_part(part) for part in parts[:-1]]


def _parse_part(part: bytes) -> FormPart:
    header, separator, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    if not separator:
        raise ValueError("a part without headers")
    headers = _parse_headers(header.decode("utf-8", "replace").split("\r\n"))
    parameters = dict(_PARAMETER.findall(headers.get("content-disposition", "")))
    return FormPart(
        name=parameters.get("name", ""),
        filename=parameters.get("filename"),
        content_type=headers.get("content-type"),
        data=data.removesuffix(b"\r\n"),
    )


def _parse_headers(lines: list[str]) -> dict[str, str]:
    """By lower-case name."""
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
