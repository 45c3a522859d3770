"""Forwards connections, so that containers reach servers that listen on loopback only.

`python -m darkroom_local.forwarding ADDRESS URL ...` runs until it is ended, and prints the
forwarded URLs as a JSON list.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from urllib.parse import urlsplit

from darkroom_local.processes import in_event_loop, listening

CHUNK_BYTES = 64 * 1024


@contextmanager
def forwarded(url: str, address: str) -> Iterator[str]:
    """Forward a free port of `address` to the server at `url`; yields the forwarded URL."""
    with in_event_loop(_forwarding(url, address)) as port:
        yield f"http://{address}:{port}"


@asynccontextmanager
async def _forwarding(url: str, address: str) -> AsyncIterator[int]:
    target = urlsplit(url)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(target.hostname, target.port)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(reader, back))
                both.create_task(_copy(there, writer))
        except asyncio.CancelledError:
            back.transport.abort()

    async with listening(await asyncio.start_server(forward, address, 0)) as port:
        yield port


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
    sink.close()


def main(address: str, urls: list[str]) -> None:
    with ExitStack() as stack:
        found = [stack.enter_context(forwarded(url, address)) for url in urls]
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
