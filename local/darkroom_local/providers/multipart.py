"""multipart/form-data as the OpenAI SDK sends it."""

import re
from dataclasses import dataclass, field

_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    filename: str | None
    content_type: str | None
    data: bytes = field(repr=False)


def parse(body: bytes, content_type: str) -> list[Part]:
    """Raises ValueError for what is not multipart/form-data."""
    kind, _, rest = content_type.partition(";")
    found = re.search(r'boundary="?([^";]+)"?', rest)
    if kind.strip().lower() != "multipart/form-data" or not found:
        raise ValueError("not multipart/form-data")
    delimiter = b"--" + found.group(1).encode()
    _, *pieces = body.split(delimiter)
    if not pieces or not pieces[-1].startswith(b"--"):
        raise ValueError("the multipart body is not closed")
    return [_part(piece) for piece in pieces[:-1]]


def _part(piece: bytes) -> Part:
    head, separator, data = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    if not separator:
        raise ValueError("a part without headers")
    headers = {}
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    parameters = dict(_PARAMETER.findall(headers.get("content-disposition", "")))
    return Part(
        name=parameters.get("name", ""),
        filename=parameters.get("filename"),
        content_type=headers.get("content-type"),
        data=data.removesuffix(b"\r\n"),
    )
