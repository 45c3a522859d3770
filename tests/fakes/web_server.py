"""A web server on loopback whose handler controls every byte of a response, with or without TLS."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import trustme

type Handler = Callable[["Exchange"], None]


@dataclass
class Exchange:
    """One request on a connection, and the means to respond."""

    connection: socket.socket
    head: str
    closing: threading.Event  # set when the server stops, which ends pauses

    @property
    def path(self) -> str:
        return self.head.split(" ", 2)[1].partition("?")[0]

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def pause(self, seconds: float) -> None:
        self.closing.wait(seconds)


@dataclass
class WebServer:
    port: int
    heads: list[str] = field(default_factory=list)  # of every request
    connections: int = 0


@contextmanager
def web_server(handle: Handler, tls: ssl.SSLContext | None = None) -> Iterator[WebServer]:
    """Calls `handle` for every request; a connection stays open until it raises or disconnects."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = WebServer(listener.getsockname()[1])
    closing = threading.Event()
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            secured = tls.wrap_socket(connection, server_side=True) if tls else connection
            with secured:
                while head := _head(secured):
                    server.heads.append(head)
                    handle(Exchange(secured, head, closing))

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(10)
                server.connections += 1
                thread = threading.Thread(target=serve, args=(connection,))
                thread.start()
                threads.append(thread)

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield server
    finally:
        closing.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def _head(connection: socket.socket) -> str:
    """A request's head; "" when the client has disconnected."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        if not piece:
            return ""
        data += piece
    return data.decode("latin-1")


def disconnect(_: Exchange) -> None:
    raise ConnectionAbortedError


@dataclass(frozen=True, slots=True)
class Certificates:
    """A server's certificate, and a client that trusts its issuer."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def certificates(*names: str) -> Certificates:
    """A certificate for host names or addresses, from an issuer of its own."""
    issuer = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    issuer.issue_cert(*names).configure_cert(server)
    issuer.configure_trust(client)
    return Certificates(server, client)
