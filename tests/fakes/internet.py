"""An internet of names, addresses and servers, for the fetcher: no packet leaves this machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import httpcore2

from darkroom.fetcher import HostUnknown
from darkroom.providers.http import SocketOptions

type Server = int | bytes  # a port on loopback, or the bytes that it answers with


@dataclass
class FakeInternet(httpcore2.NetworkBackend):
    """Scripts `resolver` and `network` of SafeImageFetcher and keeps what was asked of them.

    `names`: the answers a name gives, one after the other; the last one stays. `servers`: what
    lies behind an address; `anywhere` behind every other one, where nothing listens if it is None.
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
        answers = self.names[host]
        return answers[min(self.lookups.count(host), len(answers)) - 1]

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
            return _Canned(server, self.requests.append)
        return httpcore2.SyncBackend().connect_tcp(
            "127.0.0.1", server, timeout, local_address, socket_options
        )


class _Canned(httpcore2.MockStream):
    """Answers with the same bytes whatever it is asked; speaks no TLS."""

    def __init__(self, answer: bytes, heard: Callable[[bytes], None]) -> None:
        super().__init__([answer])
        self._heard = heard

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            self._heard(buffer)


def http_answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def moved(location: str) -> bytes:
    return http_answer(b"", f"Location: {location}", status="302 Found")
