"""The fetcher with real sockets, TLS and S3: what loads, what is rejected, and time limits."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import boto3
import httpcore2
import httpx2
import pytest
from botocore.config import Config
from PIL import Image
from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult
from darkroom.endpoints import Endpoint
from darkroom.errors import Reason, RetryRow, RowRejected
from darkroom.fetcher import FetchLimits, SafeImageFetcher, WebImageFetcher
from darkroom.images.references import HostList, ImageRules
from darkroom.providers.http import HostUnknown, new_client, resolve
from darkroom.providers.openai import OpenAIImageEditor
from darkroom.providers.registry import Provider
from darkroom.settings import Settings
from tests.corpus.images import saved
from tests.fakes.network import FakeNetwork, http_response, redirect_to
from tests.fakes.web_server import (
    Certificates,
    Exchange,
    Handler,
    WebServer,
    certificates,
    disconnect,
    web_server,
)

PUBLIC, OTHER, PRIVATE = "93.184.215.14", "93.184.215.15", "10.0.0.7"
HOST, CDN = "photos.example.com", "cdn.example.com"
BASE = "s3://in/jobs/"
GONE = "a-bucket-that-is-gone"
LIMITS = FetchLimits(max_bytes=100_000)
SHORT_LIMITS = FetchLimits(total_seconds=0.6, connect_seconds=0.6, read_seconds=0.6)
MARGIN_SECONDS = 3.0  # for a busy machine
SECRET = "X-Amz-Signature=5ecret"
IMAGE = saved(Image.linear_gradient("L"), "PNG")


def respond(response: bytes) -> Handler:
    return lambda exchange: exchange.send(response)


SERVE_IMAGE = respond(http_response(IMAGE))


@pytest.fixture(scope="session")
def trusted() -> Certificates:
    return certificates(HOST, CDN, PUBLIC, "2606:4700::1111")


@dataclass
class Harness:
    """A fetcher and servers at public addresses; `network` records the connections."""

    stack: ExitStack
    tls: Certificates
    network: FakeNetwork = field(default_factory=FakeNetwork)
    rules: ImageRules = field(default_factory=lambda: ImageRules(("in",)))
    limits: FetchLimits = LIMITS
    s3: Any = None
    _fetcher: SafeImageFetcher | None = None

    def serve(
        self, handle: Handler = SERVE_IMAGE, address: str = PUBLIC, tls: Certificates | None = None
    ) -> WebServer:
        server = self.stack.enter_context(web_server(handle, (tls or self.tls).server))
        self.network.servers = {**self.network.servers, address: server.port}
        return server

    def web(self) -> WebImageFetcher:
        return WebImageFetcher(
            self.rules,
            self.limits,
            resolver=self.network.resolve,
            network=self.network,
            ssl_context=self.tls.client,
        )

    @property
    def fetcher(self) -> SafeImageFetcher:
        if self._fetcher is None:
            self._fetcher = SafeImageFetcher(self.s3, self.web())
            self.stack.callback(self._fetcher.close)
        return self._fetcher

    def fetch(self, path: str = "/a.png", host: str = HOST) -> bytes:
        return self.fetcher.fetch(f"https://{host}{path}", BASE)

    def rejection(self, path: str = "/a.png") -> str:
        """The detail of a permanent failure."""
        rejected = self._failure(RowRejected, path)
        assert rejected.reason is Reason.BAD_IMAGE
        return rejected.detail

    def unavailable(self, path: str = "/a.png") -> RetryRow:
        """The error of a transient failure."""
        retry = self._failure(RetryRow, path)
        assert retry.reason is Reason.IMAGE_UNAVAILABLE
        return retry

    def timed_out(self) -> RetryRow:
        began = time.monotonic()
        error = self.unavailable()
        assert time.monotonic() - began < self.limits.total_seconds + MARGIN_SECONDS
        return error

    def _failure[E: RowRejected | RetryRow](self, kind: type[E], path: str) -> E:
        with pytest.raises(kind) as caught:
            self.fetch(f"{path}?{SECRET}")
        assert "5ecret" not in caught.value.detail
        return caught.value


@pytest.fixture
def harness(trusted: Certificates) -> Iterator[Harness]:
    with ExitStack() as stack:
        harness = Harness(stack, trusted)
        harness.network.names = {
            HOST: [[PUBLIC]],
            CDN: [[OTHER]],
            "inside.example.com": [[PRIVATE]],
        }
        yield harness


# --- what loads ------------------------------------------------------------------------------


def test_an_image_is_loaded_byte_for_byte(harness: Harness) -> None:
    server = harness.serve(respond(http_response(IMAGE, "Content-Type: text/html")))
    assert harness.fetch("/a.png?sig=1") == IMAGE
    (head,) = server.heads
    assert head.startswith(f"GET /a.png?sig=1 HTTP/1.1\r\nHost: {HOST}\r\n")
    assert "cookie" not in head.lower()
    assert "authorization" not in head.lower()


@pytest.mark.parametrize("host", [PUBLIC, "[2606:4700::1111]"])
def test_an_address_as_host_loads_with_its_own_certificate(harness: Harness, host: str) -> None:
    server = harness.serve(SERVE_IMAGE, host.strip("[]"))
    assert harness.fetch(host=host) == IMAGE
    assert f"\r\nHost: {host}\r\n" in server.heads[0]


def test_a_chunked_body_and_one_that_ends_with_the_connection_load(harness: Harness) -> None:
    def handle(exchange: Exchange) -> None:
        if exchange.path == "/chunked":
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(IMAGE), IMAGE)
            exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
            return
        exchange.send(b"HTTP/1.1 200 OK\r\n\r\n" + IMAGE)
        disconnect(exchange)

    harness.serve(handle)
    assert harness.fetch("/chunked") == harness.fetch("/open") == IMAGE


def test_connections_are_reused_for_further_images_of_a_host(harness: Harness) -> None:
    server = harness.serve()
    for _ in range(5):
        harness.fetch()
    assert (server.connections, len(server.heads)) == (1, 5)


def test_a_redirect_to_another_public_host_is_followed(harness: Harness) -> None:
    harness.serve(respond(redirect_to(f"https://{CDN}/b.png")))
    server = harness.serve(address=OTHER)
    assert harness.fetch() == IMAGE
    assert f"\r\nHost: {CDN}\r\n" in server.heads[0]


def test_loopback_is_read_only_at_a_trusted_host_and_port_with_the_real_resolver() -> None:
    with web_server(SERVE_IMAGE) as server:
        port = server.port
        no_s3: Any = None
        rules = ImageRules(("in",), trusted=HostList.parse(f"127.0.0.1:{port}"))
        with closing(SafeImageFetcher(no_s3, WebImageFetcher(rules, LIMITS))) as fetcher:
            assert fetcher.fetch(f"http://127.0.0.1:{port}/a.png", BASE) == IMAGE
            with pytest.raises(RowRejected, match="not encrypted"):
                fetcher.fetch(f"http://127.0.0.2:{port}/a.png", BASE)
            for host in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
                with pytest.raises(RowRejected, match="no public address"):
                    fetcher.fetch(f"https://{host}/a.png", BASE)
        assert server.connections == 1


def test_the_real_resolver_returns_addresses_unchanged_and_reports_missing_names() -> None:
    assert resolve("127.0.0.1", 443) == ["127.0.0.1"]
    assert resolve("::ffff:127.0.0.1", 443) == ["::ffff:127.0.0.1"]
    with pytest.raises((HostUnknown, httpcore2.ConnectError)):
        resolve("nowhere.invalid", 443)  # ConnectError without any network
    with pytest.raises(HostUnknown):
        resolve("a" * 64 + ".example", 443)


# --- private addresses are not reached ---------------------------------------------------------


@pytest.mark.parametrize("header", ["Connection: keep-alive", "Connection: close"])
def test_a_name_that_becomes_private_is_rejected_when_reconnecting(
    harness: Harness, header: str
) -> None:
    """A connection goes to the address that was checked, without another lookup."""
    harness.network.names = {HOST: [[PUBLIC], [PRIVATE]]}
    harness.serve(respond(http_response(IMAGE, header)))
    inside = harness.serve(address=PRIVATE)
    assert harness.fetch() == IMAGE
    assert harness.network.lookups == [HOST]
    if header.endswith("close"):
        assert "no public address" in harness.rejection()
        assert harness.network.lookups == [HOST, HOST]
    assert harness.network.connected == [PUBLIC]
    assert inside.connections == 0


def test_only_the_public_addresses_of_a_host_are_tried(harness: Harness) -> None:
    harness.network.names = {HOST: [[PRIVATE, "::1", OTHER, PUBLIC]]}
    harness.serve()
    inside = harness.serve(address=PRIVATE)
    assert harness.fetch() == IMAGE
    assert harness.network.connected == [OTHER, PUBLIC]  # nothing listens at the first
    assert inside.connections == 0


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("https://inside.example.com/", "is on inside.example.com, which has no public address"),
        (f"https://{PRIVATE}/", f"is on {PRIVATE}, which has no public address"),
        ("https://169.254.169.254/latest/meta-data/", "which has no public address"),
        ("https://[::ffff:10.0.0.7]/", "which has no public address"),
        (f"http://{HOST}/a.png", f"is redirected: image 'http://{HOST}/a.png' is not encrypted"),
        (f"https://{HOST}:8443/", "is redirected: image"),
        ("file:///etc/passwd", "is redirected: image 'file:///etc/passwd' is not an https:// URL"),
        ("s3://in/a.png", "is redirected: image 's3://in/a.png' is not an https:// URL"),
        ("//[x", "is redirected: image '//[x' is not a valid URL"),
        ("", "is redirected, but its server does not give the new location"),
    ],
)
@pytest.mark.parametrize("redirects", [0, 2])
def test_redirects_are_checked(
    harness: Harness, location: str, problem: str, redirects: int
) -> None:
    def handle(exchange: Exchange) -> None:
        count = int(exchange.path.strip("/") or 0)
        exchange.send(redirect_to(f"/{count + 1}" if count < redirects else location))

    server = harness.serve(handle)
    inside = harness.serve(address=PRIVATE)
    detail = harness.rejection("/0")
    assert detail.startswith(f"image 'https://{HOST}/0?…' ")
    assert problem in detail
    assert len(server.heads) == redirects + 1
    assert set(harness.network.connected) == {PUBLIC}
    assert inside.connections == 0


def test_a_redirect_may_not_leave_the_allowed_hosts(harness: Harness) -> None:
    harness.rules = ImageRules(("in",), allowed=HostList.parse(HOST))
    harness.serve(respond(redirect_to(f"https://{CDN}/b.png?sig=5ecret")))
    assert f"is on the host {CDN}, which AllowedImageHosts does not list" in harness.rejection()
    assert harness.network.lookups == [HOST]


@pytest.mark.parametrize(("redirects", "step"), [(5, 1), (6, 1), (6, 0)], ids=["5", "6", "a loop"])
def test_five_redirects_are_followed_but_not_six(
    harness: Harness, redirects: int, step: int
) -> None:
    def handle(exchange: Exchange) -> None:
        count = int(exchange.path.strip("/"))
        follow = redirect_to(f"/{count + step}")
        exchange.send(follow if count < redirects else http_response(IMAGE))

    server = harness.serve(handle)
    if redirects == 5:
        assert harness.fetch("/0") == IMAGE
    else:
        assert "is redirected more than 5 times" in harness.rejection("/0")
    assert len(server.heads) == 6


# --- size and time ---------------------------------------------------------------------------


def test_a_body_announced_as_too_large_is_rejected_unread(harness: Harness) -> None:
    harness.serve(respond(b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n" + IMAGE))
    assert "is larger than" in harness.rejection()


@pytest.mark.parametrize("form", ["chunked", "to the end"])
def test_a_body_of_unannounced_size_is_cut_off_at_the_limit(harness: Harness, form: str) -> None:
    sent = 0

    def handle(exchange: Exchange) -> None:
        nonlocal sent
        head = b"Transfer-Encoding: chunked\r\n" if form == "chunked" else b""
        exchange.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
        piece = b"x" * 10_000
        while sent < 50_000_000:
            exchange.send(b"2710\r\n%b\r\n" % piece if form == "chunked" else piece)
            sent += len(piece)

    harness.serve(handle)
    assert "is larger than" in harness.rejection()
    assert sent < 10_000_000  # what the system's buffers hold when the connection is closed


def test_the_limit_itself_is_allowed(harness: Harness) -> None:
    body = IMAGE + bytes(LIMITS.max_bytes - len(IMAGE))
    harness.serve(respond(http_response(body)))
    assert harness.fetch() == body


def _byte_by_byte(data: bytes) -> Callable[[Exchange], None]:
    def handle(exchange: Exchange) -> None:
        for byte in data:
            exchange.send(bytes([byte]))
            exchange.pause(0.05)

    return handle


def _slow_redirects(exchange: Exchange) -> None:
    exchange.pause(0.25)
    exchange.send(redirect_to("/again"))


@pytest.mark.parametrize(
    "handle",
    [
        _byte_by_byte(http_response(IMAGE)),
        lambda exchange: (
            exchange.send(b"HTTP/1.1 200 OK\r\n\r\n"),
            _byte_by_byte(IMAGE)(exchange),
        ),
        lambda exchange: exchange.pause(20),
        lambda exchange: (exchange.send(http_response(IMAGE)[:-9]), exchange.pause(20)),
        _slow_redirects,
    ],
    ids=["slow head", "slow body", "silence", "stops before the end", "slow redirects"],
)
def test_the_total_time_bounds_the_slowest_server(harness: Harness, handle: Handler) -> None:
    harness.limits = SHORT_LIMITS
    harness.serve(handle)
    error = harness.timed_out()
    assert f"was not loaded in time: {HOST} is slow or does not respond" in error.detail


def test_a_server_without_a_tls_handshake_times_out(harness: Harness) -> None:
    with web_server(disconnect) as plain:  # waits for the end of a plain request's head
        harness.limits = SHORT_LIMITS
        harness.network.servers = {PUBLIC: plain.port}
        assert "in time" in harness.timed_out().detail


# --- what failures mean ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        ("404 Not Found", "does not exist (its server returned 404)"),
        ("410 Gone", "does not exist (its server returned 410)"),
        ("401 No", "may not be read (its server returned 401); a signed URL may have expired"),
        ("403 No", "may not be read (its server returned 403); a signed URL may have expired"),
        *(
            (f"{code} Other", f"could not be loaded: its server returned {code}")
            for code in (204, 206, 300, 400, 418)
        ),
    ],
)
def test_a_permanent_status_rejects_the_row(harness: Harness, status: str, problem: str) -> None:
    body = b"" if status.startswith("204") else b"sorry"
    harness.serve(respond(http_response(body, "Connection: close", status=status)))
    assert harness.rejection() == f"image 'https://{HOST}/a.png?…' {problem}"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_a_transient_status_costs_an_attempt(harness: Harness, status: int) -> None:
    harness.serve(respond(http_response(b"", "Retry-After: 7", status=f"{status} Later")))
    error = harness.unavailable()
    assert error.detail.endswith(f"could not be loaded: its server returned {status}")
    assert error.delay_seconds == 7


@pytest.mark.parametrize(
    ("value", "seconds"), [("99999999", 900), ("soon", 0), ("Wed, 21 Oct 2026", 0), ("-5", 0)]
)
def test_a_retry_after_header_is_capped(harness: Harness, value: str, seconds: float) -> None:
    harness.serve(respond(http_response(b"", f"Retry-After: {value}", status="503 Later")))
    assert harness.unavailable().delay_seconds == seconds


def _disconnect_after(data: bytes) -> Handler:
    def handle(exchange: Exchange) -> None:
        exchange.send(data)
        disconnect(exchange)

    return handle


@pytest.mark.parametrize(
    "handle",
    [
        None,
        disconnect,
        _disconnect_after(http_response(IMAGE)[:-9]),
        _disconnect_after(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        _disconnect_after(b"\x16\x03\x01 this is no HTTP\r\n\r\n"),
        _disconnect_after(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
    ],
    ids=["nothing listens", "disconnects", "cut body", "bad chunk", "no HTTP", "bad length"],
)
def test_a_broken_connection_costs_an_attempt(harness: Harness, handle: Handler | None) -> None:
    if handle is not None:
        harness.serve(handle)
    assert f"could not be loaded: {HOST} cannot be reached" in harness.unavailable().detail


def test_a_resolver_that_fails_costs_an_attempt(harness: Harness) -> None:
    def failing(host: str, port: int) -> list[str]:
        raise httpcore2.ConnectError("name resolution failed: try again")

    harness.network.resolve = failing  # type: ignore[method-assign]
    assert "cannot be reached" in harness.unavailable().detail


def test_a_name_that_does_not_exist_rejects_the_row(harness: Harness) -> None:
    harness.network.names = {}
    assert harness.rejection().endswith(f"is on the host {HOST}, which does not exist")


@pytest.mark.parametrize("host", [HOST, "else.example.com"])
def test_a_certificate_not_valid_for_the_host_rejects_the_row(harness: Harness, host: str) -> None:
    """The first host's is from an unknown issuer, the second's is for other names."""
    harness.network.names = {host: [[PUBLIC]]}
    tls = certificates(HOST) if host == HOST else None
    server = harness.serve(tls=tls)
    with pytest.raises(RowRejected) as caught:
        harness.fetch(f"/a.png?{SECRET}", host)
    assert caught.value.reason is Reason.BAD_IMAGE
    problem = f"is on {host}, whose certificate is not valid for it"
    assert caught.value.detail == f"image 'https://{host}/a.png?…' {problem}"
    assert server.heads == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "is empty"),
        (b"<!doctype html><title>Sign in</title>", "is a web page, not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
        (b"just words", "is not an image"),
    ],
)
def test_the_content_type_header_is_ignored(harness: Harness, body: bytes, problem: str) -> None:
    harness.serve(respond(http_response(body, "Content-Type: image/png")))
    assert problem in harness.rejection()


def test_rejections_leave_no_connections_open(harness: Harness) -> None:
    server = harness.serve(respond(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n"))
    for _ in range(40):  # more than the pool holds
        harness.rejection()
    assert server.connections == 40


# --- S3 --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bucket(aws_client: Any) -> str:
    name = f"fetch-{uuid4().hex[:8]}"
    aws_client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3_harness(harness: Harness, aws_client: Any, bucket: str) -> Harness:
    harness.s3 = aws_client("s3")
    harness.rules = ImageRules((bucket, GONE))
    return harness


def test_objects_load_by_url_and_by_path(s3_harness: Harness, bucket: str) -> None:
    s3_harness.s3.put_object(Bucket=bucket, Key="jobs/photos/ä b%20.png", Body=IMAGE)
    fetch = s3_harness.fetcher.fetch
    assert fetch("photos/ä b%20.png", f"s3://{bucket}/jobs/") == IMAGE
    assert fetch(f"s3://{bucket}/jobs/photos/ä b%20.png", "s3://x/") == IMAGE
    assert fetch("../jobs/photos/ä b%20.png", f"s3://{bucket}/jobs/") == IMAGE


@pytest.mark.parametrize(
    ("name", "body", "problem"),
    [
        (f"s3://{GONE}/a.png", b"", "was not found in bucket"),
        ("missing.png", b"", "was not found in bucket"),
        ("a.png", b"", "is empty"),
        ("a.png", IMAGE + bytes(100_000), "is larger than"),
        ("a.png", b"<html>", "is a web page"),
    ],
)
def test_an_unusable_object_rejects_the_row(
    s3_harness: Harness, bucket: str, name: str, body: bytes, problem: str
) -> None:
    s3_harness.s3.put_object(Bucket=bucket, Key="unusable/a.png", Body=body)
    with pytest.raises(RowRejected, match=problem) as caught:
        s3_harness.fetcher.fetch(name, f"s3://{bucket}/unusable/")
    assert caught.value.reason is Reason.BAD_IMAGE


def test_an_unreachable_s3_costs_an_attempt(s3_harness: Harness, bucket: str) -> None:
    s3_harness.s3 = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1),
    )
    with closing(s3_harness.s3), pytest.raises(RetryRow) as caught:
        s3_harness.fetcher.fetch("a.png", f"s3://{bucket}/")
    assert caught.value.reason is Reason.IMAGE_UNAVAILABLE


def test_only_the_buckets_of_image_object_arns_may_be_read(aws_client: Any, bucket: str) -> None:
    required = (name for name, field in Settings.model_fields.items() if field.is_required())
    names = dict.fromkeys(required, "x")
    granted = names | {"image_object_arns": f"arn:aws:s3:::{bucket}/photos/*"}
    with_grant, without_grant = (
        SafeImageFetcher.from_settings(aws_client("s3"), Settings.model_validate(settings))
        for settings in (granted, names)
    )
    aws_client("s3").put_object(Bucket=bucket, Key="photos/a.png", Body=IMAGE)
    reference = f"s3://{bucket}/photos/a.png"
    with closing(with_grant), closing(without_grant):
        assert with_grant.fetch(reference, "s3://x/") == IMAGE
        with pytest.raises(RowRejected, match=bucket):
            without_grant.fetch(reference, "s3://x/")


# --- images that a provider's answer names by a URL ---------------------------------------------


def answer_with(harness: Harness, url: str) -> EditResult:
    """A compatible service answers with a URL of an image, at a price of one image."""
    body = {"created": 1, "data": [{"url": url}]}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=body))
    fields = {"name": "e", "provider": "openai", "api_keys": ["k"], "model": "dall-e-3"}
    endpoint = Endpoint.model_validate(fields | {"base_url": "https://compatible.example/v1"})
    plan = CallPlan(Provider.OPENAI, endpoint.model, "a boat", size="1024x1024", quality="hd")
    with (
        closing(new_client(transport)) as http,
        closing(OpenAIImageEditor(http, harness.web())) as editor,
    ):
        return editor.edit(plan, endpoint, SecretStr("k"), 20)


def test_an_answers_url_is_loaded_without_the_key(harness: Harness) -> None:
    server = harness.serve()
    assert answer_with(harness, f"https://{HOST}/made.png").images == (IMAGE,)
    assert "authorization" not in server.heads[0].lower()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1:9001/2018-06-01/runtime/invocation/next", "is not encrypted"),
        ("https://127.0.0.1/", "has no public address"),
        ("https://inside.example.com/", "has no public address"),
        ("https://169.254.169.254/latest/meta-data/", "has no public address"),
        (f"https://{HOST}:8443/", "uses port 8443"),
        ("s3://in/a.png", "is not an https:// URL"),
        (f"https://{HOST}/gone?{SECRET}", "does not exist"),
    ],
)
def test_an_answers_url_inside_the_network_is_not_loaded_and_the_image_is_still_paid(
    harness: Harness, url: str, problem: str
) -> None:
    harness.serve(respond(http_response(b"no", status="404 Not Found")))
    inside = harness.serve(address=PRIVATE)
    with pytest.raises(CallFailed, match=problem) as caught:
        answer_with(harness, url)
    assert inside.connections == 0
    assert caught.value.maybe_charged
    assert caught.value.cost_micro_usd == 80_000
    assert "5ecret" not in caught.value.detail


def test_whatever_a_server_makes_the_library_raise_is_an_unavailable_image(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_anything(*_: object, **__: object) -> None:
        raise KeyError("undocumented")

    monkeypatch.setattr(harness.network, "connect_tcp", raise_anything)
    assert "cannot be reached" in harness.unavailable().detail
