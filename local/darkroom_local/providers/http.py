"""A minimal HTTP/1.1 server over asyncio, for many connections at little CPU."""

import asyncio
import itertools
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

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
    content_type: str
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
        return Response(status, body, headers=headers or {})

    def header(self) -> bytes:
        phrase = HTTPStatus(self.status).phrase if self.status in HTTPStatus else "Unknown"
        headers = {
            "content-type": self.content_type,
            "content-length": len(self.body),
            **self.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} {phrase}\r\n{lines}\r\n".encode("latin-1")


async def serve_connection(
    handler: Callable[[Request], Awaitable[Response]],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    number = next(_connection_numbers)
    try:
        while True:
            request = await _read_request(reader, number)
            response = await handler(request)
            if response.drop:
                break
            await _write_response(writer, response)
            if request.headers.get("connection", "").lower() == "close":
                break
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        pass
    finally:
        writer.close()
        with suppress(ConnectionError, OSError):
            await writer.wait_closed()


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Request:
    """Raises IncompleteReadError at the end, ValueError for anything but a request."""
    header = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    arrived = asyncio.get_running_loop().time()
    request_line, _, lines = header.partition("\r\n")
    method, target, _ = request_line.split(" ", 2)
    headers = _parse_headers(lines)
    length = int(headers.get("content-length", "0"))
    if "transfer-encoding" in headers or length > MAX_BODY_BYTES:
        raise ValueError("the simulator accepts only bodies with a content-length of up to 200 MiB")
    body = await reader.readexactly(length)
    url = urlsplit(target)
    query = dict(parse_qsl(url.query))
    return Request(method, unquote(url.path), query, headers, body, arrived, connection)


async def _write_response(writer: asyncio.StreamWriter, response: Response) -> None:
    seconds, trickle_header = response.trickle_seconds, response.trickle_header
    await _write(writer, response.header(), seconds if trickle_header else 0)
    await _write(writer, response.body, 0 if trickle_header else seconds)


async def _write(writer: asyncio.StreamWriter, data: bytes, seconds: float) -> None:
    """Write all of `data`, over `seconds` a few bytes at a time, at least every 0.2 seconds."""
    steps = max(2, min(len(data), int(seconds / 0.2) + 1)) if seconds else 1
    size = max(1, -(-len(data) // steps))
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await writer.drain()
        if seconds:
            await asyncio.sleep(seconds / steps)


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
    headers = _parse_headers(header.decode("utf-8", "replace"))
    parameters = dict(_PARAMETER.findall(headers.get("content-disposition", "")))
    mime = headers.get("content-type", "application/octet-stream")
    data = data.removesuffix(b"\r\n")
    return FormPart(parameters.get("name", ""), parameters.get("filename"), mime, data)


def _parse_headers(lines: str) -> dict[str, str]:
    """By lower-case name."""
    pairs = (line.partition(":") for line in lines.split("\r\n") if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
