"""A minimal HTTP/1.1 server over asyncio, for many connections at little CPU."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_BODY_BYTES = 512 * 1024 * 1024
_PIECE_BYTES = 256 * 1024
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
    header_seconds: float = 0  # spread the header over this time
    body_seconds: float = 0
    drop: bool = False  # close the connection without a response
    file: Path | None = None  # the body is this file, from byte `start` on
    start: int = 0
    cut: bool = False  # close the connection after half of the file

    @staticmethod
    def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
        body = json.dumps(value, separators=(",", ":")).encode()
        return Response(status, body, headers=headers or {})

    def header(self) -> bytes:
        phrase = HTTPStatus(self.status).phrase if self.status in HTTPStatus else "Unknown"
        headers = {
            "content-type": self.content_type,
            "content-length": self._length,
            **self.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} {phrase}\r\n{lines}\r\n".encode("latin-1")

    @property
    def _length(self) -> int:
        return self.file.stat().st_size - self.start if self.file else len(self.body)

    def pieces(self) -> Iterator[bytes]:
        """The content of `file`, piece by piece."""
        if self.file is None:
            return
        left = self._length // 2 if self.cut else self._length
        with self.file.open("rb") as file:
            file.seek(self.start)
            while left and (piece := file.read(min(left, _PIECE_BYTES))):
                left -= len(piece)
                yield piece


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
            await _write(writer, response.header(), response.header_seconds)
            await _write(writer, response.body, response.body_seconds)
            for piece in response.pieces():
                writer.write(piece)
                await writer.drain()
            if response.cut:
                break
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
    pairs = (line.partition(":") for line in lines.split("\r\n") if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    length = int(headers.get("content-length", "0"))
    if "transfer-encoding" in headers or length > MAX_BODY_BYTES:
        raise ValueError("the simulator accepts only bodies with a content-length of up to 512 MiB")
    body = await reader.readexactly(length)
    url = urlsplit(target)
    query = dict(parse_qsl(url.query))
    return Request(method, unquote(url.path), query, headers, body, arrived, connection)


async def _write(writer: asyncio.StreamWriter, data: bytes, seconds: float) -> None:
    """Write all of `data`, over `seconds` a few bytes at a time, at least every 0.2 seconds."""
    steps = max(2, min(len(data), int(seconds / 0.2) + 1)) if seconds else 1
    size = max(1, -(-len(data) // steps))
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await writer.drain()
        if seconds:
            await asyncio.sleep(seconds / steps)


def parse_upload(body: bytes, content_type: str) -> tuple[dict[str, str], FormPart | None]:
    """The fields and the one file of a form that may be large. Raises ValueError."""
    _, found, boundary = content_type.partition("boundary=")
    if not found:
        raise ValueError("not multipart/form-data")
    mark = b"--" + boundary.strip('"').encode()
    fields: dict[str, str] = {}
    file = None
    for part in body.split(b"\r\n" + mark)[:-1]:
        header, _, data = part.removeprefix(mark).partition(b"\r\n\r\n")
        disposition = message_from_bytes(header.strip() + b"\r\n\r\n")
        name = str(disposition.get_param("name", "", "content-disposition"))
        if (filename := disposition.get_filename()) is None:
            fields[name] = data.decode()
        else:
            file = FormPart(name, filename, disposition.get_content_type(), data)
    return fields, file


def parse_multipart(body: bytes, content_type: str) -> list[FormPart]:
    """multipart/form-data as the OpenAI SDK sends it. Raises ValueError for anything else."""
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    if message.get_content_type() != "multipart/form-data" or message.defects:
        raise ValueError("not multipart/form-data, or not closed")
    return [_form_part(part) for part in message.walk() if part is not message]


def _form_part(part: Message) -> FormPart:
    data: Any = part.get_payload(decode=True)  # None for a part that consists of parts
    name = part.get_param("name", "", "content-disposition")
    mime = part.get("content-type", "application/octet-stream")
    return FormPart(str(name), part.get_filename(), mime, data or b"")
