"""A web server on loopback whose handler controls every byte of a response, with or without TLS."""

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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
    server: ssl.SSLContext
    client: ssl.SSLContext  # trusts the server's


def certificates(folder: Path, *names: str) -> Certificates:
    """A self-signed certificate for host names or addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([_alternative(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{names[0]}.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.create_default_context(
        cadata=certificate.public_bytes(serialization.Encoding.PEM).decode()
    )
    client.verify_flags &= ~ssl.VERIFY_X509_STRICT  # it is its own authority
    return Certificates(server, client)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
