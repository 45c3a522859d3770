"""A call's deadline against servers that misbehave below HTTP: raw sockets, no simulator."""

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
def server(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """Does `talk` with one connection; gives the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def run() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                talk(connection)
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


def given_up_in_time(client: httpx2.Client, url: str, body: bytes = b"") -> Exception:
    before = time.monotonic()
    with pytest.raises(httpx2.TransportError) as caught, provider_http.deadline(DEADLINE):
        client.post(url, content=body, timeout=60)
    assert DEADLINE - 0.1 <= time.monotonic() - before <= LATE
    return caught.value


def test_a_server_that_never_reads_the_request_is_given_up(client: httpx2.Client) -> None:
    with server(lambda connection: None) as address:
        error = given_up_in_time(client, f"http://{address}/", b"x" * 30_000_000)
    assert isinstance(error, httpx2.WriteTimeout)


def test_a_server_that_never_answers_the_handshake_is_given_up(client: httpx2.Client) -> None:
    with server(lambda connection: None) as address:
        error = given_up_in_time(client, f"https://{address}/")
    assert isinstance(error, httpx2.ConnectTimeout)


def drip(connection: socket.socket, head: bytes, drop: bytes) -> None:
    connection.recv(65_536)
    connection.sendall(head)
    for _ in range(400):
        connection.sendall(drop)
        threading.Event().wait(0.05)


def test_a_body_without_end_is_given_up_though_bytes_keep_coming(client: httpx2.Client) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    with server(lambda connection: drip(connection, head, b"1\r\nx\r\n")) as address:
        error = given_up_in_time(client, f"http://{address}/")
    assert isinstance(error, httpx2.ReadTimeout)


def test_interim_answers_without_end_are_given_up(client: httpx2.Client) -> None:
    drop = b"HTTP/1.1 102 Processing\r\n\r\n"
    with server(lambda connection: drip(connection, b"", drop)) as address:
        error = given_up_in_time(client, f"http://{address}/")
    assert isinstance(error, httpx2.ReadTimeout)


def test_an_answer_larger_than_any_picture_is_cut_off(
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


def test_without_a_deadline_the_time_out_per_read_holds(client: httpx2.Client) -> None:
    with server(lambda connection: None) as address, pytest.raises(httpx2.ReadTimeout):
        client.post(f"http://{address}/", timeout=0.2)
