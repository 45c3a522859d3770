"""The deadline of a call with servers that misbehave below HTTP: raw sockets, no simulator."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import httpx2
import pytest

from darkroom.providers import http as provider_http

DEADLINE = 0.4
LATE = DEADLINE + 1


@contextmanager
def server(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """Calls `handle` with one connection; yields the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def run() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                handle(connection)
            except OSError:
                return
            ended.wait(5)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.close()
        thread.join()


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with closing(provider_http.new_client()) as client:
        yield client


def error_at_deadline(client: httpx2.Client, url: str, body: bytes = b"") -> Exception:
    before = time.monotonic()
    with pytest.raises(httpx2.TransportError) as caught, provider_http.deadline(DEADLINE):
        client.post(url, content=body, timeout=60)
    assert DEADLINE - 0.1 <= time.monotonic() - before <= LATE
    return caught.value


def test_a_server_that_never_reads_the_request_times_out(client: httpx2.Client) -> None:
    with server(lambda connection: None) as address:
        error = error_at_deadline(client, f"http://{address}/", b"x" * 30_000_000)
    assert isinstance(error, httpx2.WriteTimeout)


def test_a_server_that_never_answers_the_handshake_times_out(client: httpx2.Client) -> None:
    with server(lambda connection: None) as address:
        error = error_at_deadline(client, f"https://{address}/")
    assert isinstance(error, httpx2.ConnectTimeout)


def drip(connection: socket.socket, head: bytes, chunk: bytes) -> None:
    connection.recv(65_536)
    connection.sendall(head)
    for _ in range(400):
        connection.sendall(chunk)
        threading.Event().wait(0.05)


def test_an_endless_body_times_out_while_bytes_keep_arriving(client: httpx2.Client) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    with server(lambda connection: drip(connection, head, b"1\r\nx\r\n")) as address:
        error = error_at_deadline(client, f"http://{address}/")
    assert isinstance(error, httpx2.ReadTimeout)


def test_endless_interim_responses_time_out(client: httpx2.Client) -> None:
    chunk = b"HTTP/1.1 102 Processing\r\n\r\n"
    with server(lambda connection: drip(connection, b"", chunk)) as address:
        error = error_at_deadline(client, f"http://{address}/")
    assert isinstance(error, httpx2.ReadTimeout)


def test_a_response_larger_than_any_image_is_cut_off(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_http, "MAX_RESPONSE_BYTES", 1_000_000)

    def flood(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n")
        connection.sendall(b"x" * 3_000_000)

    with (
        server(flood) as address,
        pytest.raises(httpx2.ReadError, match="larger"),
        provider_http.deadline(20),
    ):
        client.post(f"http://{address}/")


def test_a_redirect_is_not_followed(client: httpx2.Client) -> None:
    """It would carry the key along."""

    def redirect(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(
            b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:9/\r\n"
            b"content-length: 0\r\n\r\n"
        )

    with server(redirect) as address, provider_http.deadline(20):
        assert client.post(f"http://{address}/").status_code == 307


def test_without_a_deadline_the_time_out_per_read_applies(client: httpx2.Client) -> None:
    with server(lambda connection: None) as address, pytest.raises(httpx2.ReadTimeout):
        client.post(f"http://{address}/", timeout=0.2)
