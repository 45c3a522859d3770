"""Containers reach servers on loopback: forwarding and the environment they are given."""

import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from darkroom_local import sam_local
from darkroom_local.forwarding import forwarded
from darkroom_local.processes import serving
from darkroom_local.sam_local import for_containers
from tests.sam_local.engine import Engine

LARGE = b"x" * 3_000_000


class _Echo(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _Echo)) as url:
        yield url


def test_a_forwarded_server_answers_at_the_other_address(server: str) -> None:
    with forwarded(server, "127.0.0.2") as url:
        assert url.startswith("http://127.0.0.2:")
        for body in (b"hello", LARGE):
            request = urllib.request.Request(url, data=body)
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.read() == body


def test_forwarding_ends_with_its_block(server: str) -> None:
    with forwarded(server, "127.0.0.2") as url:
        pass
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, data=b"hello", timeout=60)


def test_containers_get_urls_that_they_can_reach() -> None:
    url, forwarded_url = "http://127.0.0.1:4566", "http://172.17.0.1:9999"
    deployed = {"ROWS_QUEUE_URL": f"{url}/0/rows", "STACK_NAME": "darkroom"}
    assert for_containers(deployed, url, forwarded_url) == {
        "ROWS_QUEUE_URL": f"{forwarded_url}/0/rows",
        "STACK_NAME": "darkroom",
        "AWS_ENDPOINT_URL": forwarded_url,
    }


@pytest.mark.parametrize(
    ("configured", "expected"),
    [("172.17.0.0/16 172.17.0.1", "172.17.0.1"), ("10.200.4.0/24 ", "10.200.4.1")],
)
def test_gateway_of_a_network_that_does_not_list_one_is_its_first_address(
    monkeypatch: pytest.MonkeyPatch, configured: str, expected: str
) -> None:
    monkeypatch.setattr(sam_local, "run", lambda *_, **__: f"{configured}\n")
    assert Engine().gateway() == expected
