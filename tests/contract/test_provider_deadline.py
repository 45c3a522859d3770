"""The deadline of a call, with servers that misbehave below HTTP."""

import gzip
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import date
from pathlib import Path

import httpcore2
import httpx2
import pytest
from pydantic import SecretStr

from darkroom.calls import CallPlan, EditResult
from darkroom.endpoints import Endpoint
from darkroom.providers import http as provider_http
from darkroom.providers.adapter import SdkImageEditor
from darkroom.providers.errors import Failure
from darkroom.providers.registry import Provider
from tests.fakes.network import http_response
from tests.fakes.web_server import Exchange, Handler, disconnect, web_server

DEADLINE = 0.4
LATE = DEADLINE + 1


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with closing(provider_http.new_client()) as client:
        yield client


def silence(exchange: Exchange) -> None:
    exchange.pause(5)
    disconnect(exchange)


def drip(head: bytes, chunk: bytes) -> Handler:
    """Sends the chunk every 50 ms."""

    def handle(exchange: Exchange) -> None:
        exchange.send(head)
        for _ in range(400):
            exchange.send(chunk)
            exchange.pause(0.05)

    return handle


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("handle", "scheme", "body", "error"),
    [
        (silence, "http", b"x" * 30_000_000, httpx2.WriteTimeout),
        (silence, "https", b"", httpx2.ConnectTimeout),
        (drip(CHUNKED, b"1\r\nx\r\n"), "http", b"", httpx2.ReadTimeout),
        (drip(b"", b"HTTP/1.1 102 Processing\r\n\r\n"), "http", b"", httpx2.ReadTimeout),
    ],
    ids=["body not read", "no TLS handshake", "endless body", "endless interim responses"],
)
def test_a_call_ends_at_its_deadline(
    client: httpx2.Client, handle: Handler, scheme: str, body: bytes, error: type[Exception]
) -> None:
    with web_server(handle) as server:
        before = time.monotonic()
        with pytest.raises(httpx2.TransportError) as caught, provider_http.deadline(DEADLINE):
            client.post(f"{scheme}://127.0.0.1:{server.port}/", content=body, timeout=60)
        assert DEADLINE - 0.1 <= time.monotonic() - before <= LATE
    assert isinstance(caught.value, error)


def test_a_response_larger_than_any_image_is_cut_off(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_http, "MAX_RESPONSE_BYTES", 1_000_000)
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n"
    with (
        web_server(lambda exchange: exchange.send(head + b"x" * 3_000_000)) as server,
        pytest.raises(httpx2.ReadError, match="larger"),
        provider_http.deadline(20),
    ):
        client.post(f"http://127.0.0.1:{server.port}/")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip"])
def test_the_size_limit_counts_decompressed_bytes(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """20 MB of zeros are 19 kB of gzip, and less when that is compressed again."""
    monkeypatch.setattr(provider_http, "MAX_RESPONSE_BYTES", 1_000_000)
    body = bytes(20_000_000)
    for coding in encoding.split(", "):
        body = zlib.compress(body) if coding == "deflate" else gzip.compress(body)
    assert len(body) < 100_000
    response = http_response(body, f"content-encoding: {encoding}")
    with (
        web_server(lambda exchange: exchange.send(response)) as server,
        pytest.raises(httpx2.ReadError, match="larger"),
        provider_http.deadline(20),
    ):
        client.post(f"http://127.0.0.1:{server.port}/")


def test_a_compressed_response_is_read_and_recorded(client: httpx2.Client) -> None:
    response = http_response(gzip.compress(b'{"a": 1}'), "content-encoding: gzip")
    with (
        web_server(lambda exchange: exchange.send(response)) as server,
        provider_http.deadline(20) as exchange,
    ):
        assert client.post(f"http://127.0.0.1:{server.port}/").json() == {"a": 1}
        assert "accept-encoding: identity" in server.heads[0].lower()
    assert exchange.sent
    assert exchange.response is not None
    assert exchange.response.content == b'{"a": 1}'


def test_responses_are_parsed_one_at_a_time(client: httpx2.Client) -> None:
    """Ten answers of 4K that arrive at once would be in memory four times over."""
    both_sent, events = threading.Barrier(3, timeout=20), list[str]()
    first_parses, first_may_end = threading.Event(), threading.Event()

    def call() -> None:
        with provider_http.deadline(20):
            client.post(f"http://127.0.0.1:{server.port}/")
            events.append("begins")
            first_parses.set()
            first_may_end.wait(20)
            with provider_http.deadline(20):  # of credentials that are refreshed, say
                client.post(f"http://127.0.0.1:{server.port}/token")
            events.append("ends")

    def answer(exchange: Exchange) -> None:
        if "/token" not in server.heads[-1]:
            both_sent.wait()
        exchange.send(http_response(b"{}"))

    with web_server(answer) as server:
        threads = [threading.Thread(target=call) for _ in range(2)]
        for thread in threads:
            thread.start()
        both_sent.wait()
        assert first_parses.wait(20)
        first_may_end.wait(0.3)  # time for the second, were it not to wait
        assert events == ["begins"]
        first_may_end.set()
        for thread in threads:
            thread.join(20)
    assert events == ["begins", "ends"] * 2


def test_a_call_that_failed_lets_the_next_response_be_parsed(client: httpx2.Client) -> None:
    with web_server(lambda exchange: exchange.send(http_response(b"{}"))) as server:
        url = f"http://127.0.0.1:{server.port}/"
        with suppress(ZeroDivisionError), provider_http.deadline(20):
            client.post(url)
            raise ZeroDivisionError
        found: list[int] = []

        def call() -> None:
            with provider_http.deadline(20):
                found.append(client.post(url).status_code)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(20)
    assert found == [200]


def test_the_earlier_of_two_deadlines_counts() -> None:
    with provider_http.deadline(0.0), provider_http.deadline(60):  # noqa: SIM117 - the inner one
        with pytest.raises(httpcore2.ReadTimeout):
            provider_http.time_left()


def test_looking_up_a_host_name_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver cannot be interrupted."""
    answered = threading.Event()

    def never(*_: object, **__: object) -> list[object]:
        answered.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", never)
    before = time.monotonic()
    with pytest.raises(httpcore2.ConnectTimeout), provider_http.deadline(DEADLINE):
        provider_http.resolve("slow.example", 443)
    assert time.monotonic() - before < LATE
    answered.set()


def test_a_redirect_is_not_followed(client: httpx2.Client) -> None:
    """It would carry the key along."""
    redirect = (
        b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:9/\r\n"
        b"content-length: 0\r\nconnection: close\r\n\r\n"
    )
    with (
        web_server(lambda exchange: exchange.send(redirect)) as server,
        provider_http.deadline(20),
    ):
        assert client.post(f"http://127.0.0.1:{server.port}/").status_code == 307


def test_without_a_deadline_the_time_out_per_read_applies(client: httpx2.Client) -> None:
    with web_server(silence) as server, pytest.raises(httpx2.ReadTimeout):
        client.post(f"http://127.0.0.1:{server.port}/", timeout=0.2)


class SlowSdkEditor(SdkImageEditor[None]):
    sdk = "slow_sdk"
    table = ()

    def _new_client(self, *address: str | None) -> None:
        raise NotImplementedError

    def _call(
        self, plan: CallPlan, endpoint: Endpoint, key: str, timeout_seconds: float
    ) -> EditResult:
        __import__(self.sdk)
        provider_http.time_left()
        return EditResult((), plan.model)

    def _list_models(self, *_: object) -> dict[str, date | None]:
        raise NotImplementedError

    def _failure(self, response: httpx2.Response, endpoint: Endpoint) -> Failure:
        raise NotImplementedError


def test_the_import_of_an_sdk_takes_nothing_from_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_sdk.py").write_text(f"import time\ntime.sleep({DEADLINE + 0.1})\n")
    monkeypatch.syspath_prepend(tmp_path)
    plan = CallPlan(Provider.GEMINI, "model", "make it warm")
    endpoint = Endpoint.model_validate({"name": "e", "provider": "gemini", "api_keys": ["k"]})
    result = SlowSdkEditor().edit(plan, endpoint, SecretStr("k"), DEADLINE)
    assert result == EditResult((), "model")
