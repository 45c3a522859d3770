"""What `sam local invoke` is given: names of the deployed stack, and a way to reach it."""

import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from darkroom_local.sam_local import bridge
from darkroom_local.sam_local.environment import reached_at

BIG = b"x" * 3_000_000


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
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()


def test_a_forwarded_server_answers_at_the_other_address(server: str) -> None:
    with bridge.forwarded(server, "127.0.0.2") as there:
        assert there.startswith("http://127.0.0.2:")
        for body in (b"hello", BIG):
            request = urllib.request.Request(there, data=body)
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.read() == body


def test_forwarding_ends_with_its_block(server: str) -> None:
    with bridge.forwarded(server, "127.0.0.2") as there:
        pass
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(there, data=b"hello", timeout=5)


def test_containers_are_given_urls_that_they_reach() -> None:
    here, there = "http://127.0.0.1:4566", "http://172.17.0.1:9999"
    deployed = {"EditorFunction": {"ROWS_QUEUE_URL": f"{here}/0/rows", "STACK_NAME": "darkroom"}}
    assert reached_at(deployed, here, there) == {
        "EditorFunction": {
            "ROWS_QUEUE_URL": f"{there}/0/rows",
            "STACK_NAME": "darkroom",
            "AWS_ENDPOINT_URL": there,
        }
    }
