"""A fake network of names, addresses and servers for the fetcher, on this machine only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import httpcore2

from darkroom.providers.http import HostUnknown, SocketOptions

type Server = int | bytes  # a port on loopback, or a fixed response


@dataclass
class FakeNetwork(httpcore2.NetworkBackend):
    """Scripts `resolver` and `network` of SafeImageFetcher and records how they were called.

    `names`: the successive lookups of a name; the last one repeats. `servers`: the server at an
    address; `anywhere` is at every other address, where nothing listens if it is None.
    """

    names: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    servers: Mapping[str, Server] = field(default_factory=dict)
    anywhere: Server | None = None
    lookups: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)

    def resolve(self, host: str, port: int) -> Sequence[str]:
        self.lookups.append(host)
        try:
            return [str(ip_address(host))]
        except ValueError:
            pass
        if host not in self.names:
            raise HostUnknown(host)
        lookups = self.names[host]
        return lookups[min(self.lookups.count(host), len(lookups)) - 1]

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore2.NetworkStream:
        self.connected.append(host)
        server = self.servers.get(host, self.anywhere)
        if server is None:
            raise httpcore2.ConnectError(f"nothing listens at {host}")
        if isinstance(server, bytes):
            return _FixedResponse(server, self.requests.append)
        return httpcore2.SyncBackend().connect_tcp(
            "127.0.0.1", server, timeout, local_address, socket_options
        )


class _FixedResponse(httpcore2.MockStream):
    """Returns the same bytes to every request; without TLS."""

    def __init__(self, response: bytes, record: Callable[[bytes], None]) -> None:
        super().__init__([response])
        self._record = record

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            self._record(buffer)


def http_response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def redirect_to(location: str) -> bytes:
    return http_response(b"", f"Location: {location}", status="302 Found")
