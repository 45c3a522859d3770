"""The fetcher against real sockets, real TLS and S3: what loads, what is refused, and by when."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpcore2
import pytest
from PIL import Image

from darkroom.errors import Reason, RetryRow, RowRejected
from darkroom.fetcher import FetchLimits, HostUnknown, SafeImageFetcher, resolve
from darkroom.images.references import HostList, ImageRules
from darkroom.settings import Settings
from tests.fakes.internet import FakeInternet, http_answer, moved
from tests.fakes.web import Certificates, Line, Talk, Web, certificates, hang_up, web

PUBLIC, OTHER, PRIVATE = "93.184.215.14", "93.184.215.15", "10.0.0.7"
HOST, CDN = "photos.example.com", "cdn.example.com"
BASE = "s3://in/jobs/"
LIMITS = FetchLimits(max_bytes=100_000)
HASTE = FetchLimits(total_seconds=0.6, connect_seconds=0.6, read_seconds=0.6)
LATE = 3.0  # what a busy machine may add
SECRET = "X-Amz-Signature=5ecret"


def png() -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").save(out, "PNG")
    return out.getvalue()


PICTURE = png()


def say(answer: bytes) -> Talk:
    return lambda line: line.send(answer)


@pytest.fixture(scope="session")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("tls"), HOST, CDN, PUBLIC, "2606:4700::1111")


@pytest.fixture(scope="session")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("tls"), HOST)


@dataclass
class World:
    """Servers at public addresses; what the fetcher connects to is kept in `internet`."""

    stack: ExitStack
    tls: Certificates
    internet: FakeInternet = field(default_factory=FakeInternet)
    rules: ImageRules = field(default_factory=lambda: ImageRules(("in",)))
    limits: FetchLimits = LIMITS
    s3: Any = None
    _fetcher: SafeImageFetcher | None = None

    def serve(self, talk: Talk, address: str = PUBLIC, tls: Certificates | None = None) -> Web:
        server = self.stack.enter_context(web(talk, (tls or self.tls).server))
        self.internet.servers = {**self.internet.servers, address: server.port}
        return server

    @property
    def fetcher(self) -> SafeImageFetcher:
        if self._fetcher is None:
            self._fetcher = SafeImageFetcher(
                self.s3,
                self.rules,
                self.limits,
                resolver=self.internet.resolve,
                network=self.internet,
                ssl_context=self.tls.client,
            )
            self.stack.callback(self._fetcher.close)
        return self._fetcher

    def fetch(self, path: str = "/a.png", host: str = HOST) -> bytes:
        return self.fetcher.fetch(f"https://{host}{path}", BASE)

    def refused(self, path: str = "/a.png") -> str:
        """The sentence of a permanent refusal."""
        with pytest.raises(RowRejected) as caught:
            self.fetch(f"{path}?{SECRET}")
        assert caught.value.reason is Reason.BAD_IMAGE
        assert "5ecret" not in caught.value.detail
        return caught.value.detail

    def put_off(self, path: str = "/a.png") -> RetryRow:
        """The error of a failure that may pass."""
        with pytest.raises(RetryRow) as caught:
            self.fetch(f"{path}?{SECRET}")
        assert caught.value.reason is Reason.IMAGE_UNAVAILABLE
        assert "5ecret" not in caught.value.detail
        return caught.value


@pytest.fixture
def world(trusted: Certificates) -> Iterator[World]:
    with ExitStack() as stack:
        world = World(stack, trusted)
        world.internet.names = {HOST: [[PUBLIC]], CDN: [[OTHER]], "inside.example.com": [[PRIVATE]]}
        yield world


# --- what loads ------------------------------------------------------------------------------


def test_a_picture_comes_byte_for_byte(world: World) -> None:
    server = world.serve(say(http_answer(PICTURE, "Content-Type: text/html")))
    assert world.fetch("/a.png?sig=1") == PICTURE
    (head,) = server.heads
    assert head.startswith(f"GET /a.png?sig=1 HTTP/1.1\r\nHost: {HOST}\r\n")
    assert "cookie" not in head.lower()
    assert "authorization" not in head.lower()


@pytest.mark.parametrize("host", [PUBLIC, "[2606:4700::1111]"])
def test_an_address_as_host_loads_with_its_own_certificate(world: World, host: str) -> None:
    server = world.serve(say(http_answer(PICTURE)), host.strip("[]"))
    assert world.fetch(host=host) == PICTURE
    assert f"\r\nHost: {host}\r\n" in server.heads[0]


def test_a_body_in_chunks_and_one_that_ends_with_the_connection_load(world: World) -> None:
    def talk(line: Line) -> None:
        if line.path == "/chunked":
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(PICTURE), PICTURE)
            line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
            return
        line.send(b"HTTP/1.1 200 OK\r\n\r\n" + PICTURE)
        hang_up(line)

    world.serve(talk)
    assert world.fetch("/chunked") == world.fetch("/open") == PICTURE


def test_connections_are_kept_for_further_pictures_of_a_host(world: World) -> None:
    server = world.serve(say(http_answer(PICTURE)))
    for _ in range(5):
        world.fetch()
    assert (server.connections, len(server.heads)) == (1, 5)


def test_a_redirect_to_another_public_host_is_followed(world: World) -> None:
    world.serve(say(moved(f"https://{CDN}/b.png")))
    server = world.serve(say(http_answer(PICTURE)), OTHER)
    assert world.fetch() == PICTURE
    assert f"\r\nHost: {CDN}\r\n" in server.heads[0]


def test_a_trusted_host_loads_over_http_from_loopback_by_the_real_resolver() -> None:
    with web(say(http_answer(PICTURE))) as server:
        rules = ImageRules(("in",), trusted=HostList.parse(f"127.0.0.1:{server.port}"))
        with closing(SafeImageFetcher(None, rules, LIMITS)) as fetcher:  # type: ignore[arg-type]
            assert fetcher.fetch(f"http://127.0.0.1:{server.port}/a.png", BASE) == PICTURE
            with pytest.raises(RowRejected, match="not encrypted"):
                fetcher.fetch(f"http://127.0.0.2:{server.port}/a.png", BASE)


def test_without_trust_loopback_is_out_of_reach_by_the_real_resolver() -> None:
    with web(say(http_answer(PICTURE))) as server:
        rules = ImageRules(("in",), trusted=HostList.parse("elsewhere:80"))
        with closing(SafeImageFetcher(None, rules, LIMITS)) as fetcher:  # type: ignore[arg-type]
            for host in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
                with pytest.raises(RowRejected, match="no public address"):
                    fetcher.fetch(f"https://{host}/a.png", BASE)
        assert server.connections == 0


def test_the_real_resolver_gives_addresses_as_they_are_and_knows_what_does_not_exist() -> None:
    assert resolve("127.0.0.1", 443) == ["127.0.0.1"]
    assert resolve("::ffff:127.0.0.1", 443) == ["::ffff:127.0.0.1"]
    with pytest.raises((HostUnknown, httpcore2.ConnectError)):
        resolve("nowhere.invalid", 443)  # without any network, a resolver cannot know
    with pytest.raises(HostUnknown):
        resolve("a" * 64 + ".example", 443)


# --- nothing inside is reached ---------------------------------------------------------------


def test_a_name_that_changes_between_check_and_use_is_used_as_it_was_checked(world: World) -> None:
    world.internet.names = {HOST: [[PUBLIC], [PRIVATE]]}
    world.serve(say(http_answer(PICTURE)))
    inside = world.serve(say(http_answer(PICTURE)), PRIVATE)
    assert world.fetch() == PICTURE
    assert world.internet.lookups == [HOST]
    assert world.internet.connected == [PUBLIC]
    assert inside.connections == 0


def test_a_name_that_turns_private_is_refused_at_the_next_connection(world: World) -> None:
    world.internet.names = {HOST: [[PUBLIC], [PRIVATE]]}
    world.serve(say(http_answer(PICTURE, "Connection: close")))
    inside = world.serve(say(http_answer(PICTURE)), PRIVATE)
    assert world.fetch() == PICTURE
    assert "no public address" in world.refused()
    assert world.internet.lookups == [HOST, HOST]
    assert world.internet.connected == [PUBLIC]
    assert inside.connections == 0


def test_of_mixed_answers_only_the_public_addresses_are_tried(world: World) -> None:
    world.internet.names = {HOST: [[PRIVATE, "::1", OTHER, PUBLIC]]}
    world.serve(say(http_answer(PICTURE)))
    inside = world.serve(say(http_answer(PICTURE)), PRIVATE)
    assert world.fetch() == PICTURE
    assert world.internet.connected == [OTHER, PUBLIC]  # nothing listens at the first
    assert inside.connections == 0


@pytest.mark.parametrize(
    ("location", "says"),
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
@pytest.mark.parametrize("hops", [0, 2])
def test_every_hop_of_a_redirect_is_checked(
    world: World, location: str, says: str, hops: int
) -> None:
    def talk(line: Line) -> None:
        hop = int(line.path.strip("/") or 0)
        line.send(moved(f"/{hop + 1}" if hop < hops else location))

    server = world.serve(talk)
    inside = world.serve(say(http_answer(PICTURE)), PRIVATE)
    sentence = world.refused("/0")
    assert sentence.startswith(f"image 'https://{HOST}/0?…' ")
    assert says in sentence
    assert len(server.heads) == hops + 1
    assert set(world.internet.connected) == {PUBLIC}
    assert inside.connections == 0


def test_a_redirect_leaves_the_allowed_hosts_no_more_than_a_row_does(world: World) -> None:
    world.rules = ImageRules(("in",), allowed=HostList.parse(HOST))
    world.serve(say(moved(f"https://{CDN}/b.png?sig=5ecret")))
    assert f"is on the host {CDN}, which AllowedImageHosts does not list" in world.refused()
    assert world.internet.lookups == [HOST]


@pytest.mark.parametrize("hops", [5, 6])
def test_five_redirects_are_followed_and_not_six(world: World, hops: int) -> None:
    def talk(line: Line) -> None:
        hop = int(line.path.strip("/"))
        line.send(moved(f"/{hop + 1}") if hop < hops else http_answer(PICTURE))

    world.serve(talk)
    if hops == 5:
        assert world.fetch("/0") == PICTURE
    else:
        assert "is redirected more than 5 times" in world.refused("/0")


def test_a_redirect_loop_ends(world: World) -> None:
    server = world.serve(say(moved("/a.png")))
    assert "is redirected more than 5 times" in world.refused()
    assert len(server.heads) == 6


# --- size and time ---------------------------------------------------------------------------


def test_an_announced_size_is_refused_unread(world: World) -> None:
    world.serve(say(b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n" + PICTURE))
    assert "is larger than" in world.refused()


@pytest.mark.parametrize("form", ["chunked", "to the end"])
def test_an_unannounced_size_is_cut_off_at_the_limit(world: World, form: str) -> None:
    sent = 0

    def talk(line: Line) -> None:
        nonlocal sent
        head = b"Transfer-Encoding: chunked\r\n" if form == "chunked" else b""
        line.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
        piece = b"x" * 10_000
        while sent < 50_000_000:
            line.send(b"2710\r\n%b\r\n" % piece if form == "chunked" else piece)
            sent += len(piece)

    world.serve(talk)
    assert "is larger than" in world.refused()
    assert sent < 10_000_000  # what lies in the system's buffers when the connection is closed


def test_the_limit_itself_is_allowed(world: World) -> None:
    body = PICTURE + bytes(LIMITS.max_bytes - len(PICTURE))
    world.serve(say(http_answer(body)))
    assert world.fetch() == body


def _trickle(data: bytes) -> Callable[[Line], None]:
    def talk(line: Line) -> None:
        for byte in data:
            line.send(bytes([byte]))
            line.pause(0.05)

    return talk


def _slow_redirects(line: Line) -> None:
    line.pause(0.25)
    line.send(moved("/again"))


@pytest.mark.parametrize(
    "talk",
    [
        _trickle(http_answer(PICTURE)),
        lambda line: (line.send(b"HTTP/1.1 200 OK\r\n\r\n"), _trickle(PICTURE)(line)),
        lambda line: line.pause(20),
        lambda line: (line.send(http_answer(PICTURE)[:-9]), line.pause(20)),
        _slow_redirects,
    ],
    ids=["trickled head", "trickled body", "silence", "stops before the end", "slow redirects"],
)
def test_one_total_time_bounds_the_slowest_server(world: World, talk: Talk) -> None:
    world.limits = HASTE
    world.serve(talk)
    began = time.monotonic()
    error = world.put_off()
    assert time.monotonic() - began < HASTE.total_seconds + LATE
    assert f"was not loaded in time: {HOST} is slow or does not respond" in error.detail


def test_a_server_that_never_shakes_hands_is_given_up_in_time(world: World) -> None:
    with web(lambda line: None) as plain:  # waits for a request in the clear, and says nothing
        world.limits = HASTE
        world.internet.servers = {PUBLIC: plain.port}
        began = time.monotonic()
        assert "in time" in world.put_off().detail
        assert time.monotonic() - began < HASTE.total_seconds + LATE


# --- what failures mean ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("404 Not Found", "does not exist (its server answered 404)"),
        ("410 Gone", "does not exist (its server answered 410)"),
        ("401 No", "may not be read (its server answered 401); a signed URL may have expired"),
        ("403 No", "may not be read (its server answered 403); a signed URL may have expired"),
        ("400 Bad", "could not be loaded: its server answered 400"),
        ("204 Nothing", "could not be loaded: its server answered 204"),
        ("206 Part", "could not be loaded: its server answered 206"),
        ("300 Choose", "could not be loaded: its server answered 300"),
        ("418 Teapot", "could not be loaded: its server answered 418"),
    ],
)
def test_a_permanent_status_ends_the_row(world: World, status: str, says: str) -> None:
    body = b"" if status.startswith("204") else b"sorry"
    world.serve(say(http_answer(body, "Connection: close", status=status)))
    assert world.refused() == f"image 'https://{HOST}/a.png?…' {says}"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_a_passing_status_costs_an_attempt(world: World, status: int) -> None:
    world.serve(say(http_answer(b"", "Retry-After: 7", status=f"{status} Later")))
    error = world.put_off()
    assert error.detail.endswith(f"could not be loaded: its server answered {status}")
    assert error.delay_seconds == 7


@pytest.mark.parametrize(
    ("value", "seconds"), [("99999999", 900), ("soon", 0), ("Wed, 21 Oct 2026", 0), ("-5", 0)]
)
def test_a_server_cannot_put_a_row_off_for_ever(world: World, value: str, seconds: float) -> None:
    world.serve(say(http_answer(b"", f"Retry-After: {value}", status="503 Later")))
    assert world.put_off().delay_seconds == seconds


def _hang_up_after(data: bytes) -> Talk:
    def talk(line: Line) -> None:
        line.send(data)
        hang_up(line)

    return talk


@pytest.mark.parametrize(
    "talk",
    [
        hang_up,
        _hang_up_after(http_answer(PICTURE)[:-9]),
        _hang_up_after(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        _hang_up_after(b"\x16\x03\x01 this is no HTTP\r\n\r\n"),
        _hang_up_after(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
    ],
    ids=["hangs up", "cut body", "bad chunk", "no HTTP", "bad length"],
)
def test_a_broken_connection_costs_an_attempt(world: World, talk: Talk) -> None:
    world.serve(talk)
    assert f"could not be loaded: {HOST} cannot be reached" in world.put_off().detail


def test_a_host_where_nothing_listens_costs_an_attempt(world: World) -> None:
    assert "cannot be reached" in world.put_off().detail


def test_a_resolver_that_fails_costs_an_attempt(world: World) -> None:
    def failing(host: str, port: int) -> list[str]:
        raise httpcore2.ConnectError("name resolution failed: try again")

    world.internet.resolve = failing  # type: ignore[method-assign]
    assert "cannot be reached" in world.put_off().detail


def test_a_name_that_does_not_exist_ends_the_row(world: World) -> None:
    world.internet.names = {}
    assert world.refused().endswith(f"is on the host {HOST}, which does not exist")


def test_a_certificate_of_another_authority_ends_the_row(
    world: World, unknown: Certificates
) -> None:
    server = world.serve(say(http_answer(PICTURE)), tls=unknown)
    assert world.refused().endswith(f"is on {HOST}, whose certificate is not valid for it")
    assert server.heads == []


def test_a_certificate_for_another_host_ends_the_row(world: World) -> None:
    world.internet.names = {"else.example.com": [[PUBLIC]]}
    server = world.serve(say(http_answer(PICTURE)))
    with pytest.raises(RowRejected, match="certificate is not valid for it"):
        world.fetch(host="else.example.com")
    assert server.heads == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "is empty"),
        (b"<!doctype html><title>Sign in</title>", "is a web page, not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
        (b"just words", "is not an image"),
    ],
)
def test_content_is_sniffed_and_not_believed(world: World, body: bytes, says: str) -> None:
    world.serve(say(http_answer(body, "Content-Type: image/png")))
    assert says in world.refused()


def test_nothing_is_left_open_after_refusals(world: World) -> None:
    server = world.serve(say(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n"))
    for _ in range(40):  # more than the pool holds
        world.refused()
    assert server.connections == 40


# --- S3 --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bucket(aws_client: Any) -> str:
    name = f"fetch-{uuid4().hex[:8]}"
    aws_client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def stored(world: World, aws_client: Any, bucket: str) -> Callable[[str, bytes], None]:
    world.s3 = aws_client("s3")
    world.rules = ImageRules((bucket, "a-bucket-that-is-gone"))

    def put(key: str, body: bytes) -> None:
        world.s3.put_object(Bucket=bucket, Key=key, Body=body)

    return put


type Put = Callable[[str, bytes], None]


def test_objects_load_by_url_and_by_path(world: World, bucket: str, stored: Put) -> None:
    stored("jobs/photos/ä b%20.png", PICTURE)
    fetch = world.fetcher.fetch
    assert fetch("photos/ä b%20.png", f"s3://{bucket}/jobs/") == PICTURE
    assert fetch(f"s3://{bucket}/jobs/photos/ä b%20.png", "s3://x/") == PICTURE
    assert fetch("../jobs/photos/ä b%20.png", f"s3://{bucket}/jobs/") == PICTURE


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (None, "does not exist in the bucket"),
        (b"", "is empty"),
        (PICTURE + bytes(100_000), "is larger than"),
        (b"<html>", "is a web page"),
    ],
)
def test_an_object_that_cannot_be_used_ends_the_row(
    world: World, bucket: str, stored: Put, body: bytes | None, says: str
) -> None:
    key = f"{uuid4()}.png"
    if body is not None:
        stored(key, body)
    with pytest.raises(RowRejected, match=says) as caught:
        world.fetcher.fetch(key, f"s3://{bucket}/")
    assert caught.value.reason is Reason.BAD_IMAGE


def test_a_bucket_that_is_gone_ends_the_row(world: World, stored: Put) -> None:
    with pytest.raises(RowRejected, match="does not exist"):
        world.fetcher.fetch("s3://a-bucket-that-is-gone/a.png", BASE)


def test_s3_out_of_reach_costs_an_attempt(world: World, aws_client: Any, bucket: str) -> None:
    import boto3  # noqa: PLC0415 - a client of its own, for a port where nobody listens
    from botocore.config import Config  # noqa: PLC0415

    client = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1),
    )
    world.s3 = client
    world.rules = ImageRules((bucket,))
    with closing(client), pytest.raises(RetryRow) as caught:
        world.fetcher.fetch("a.png", f"s3://{bucket}/")
    assert caught.value.reason is Reason.IMAGE_UNAVAILABLE


def test_a_bucket_that_the_operator_named_may_be_read_and_no_other(
    aws_client: Any, bucket: str
) -> None:
    names = dict.fromkeys(Settings.model_fields, "x") | {"on_unknown_outcome": "retry"}
    names |= {"allowed_image_hosts": "", "trusted_image_hosts": "", "rows_per_worker": "1"}
    granted = names | {"image_object_arns": f"arn:aws:s3:::{bucket}/photos/*"}
    aws_client("s3").put_object(Bucket=bucket, Key="photos/a.png", Body=PICTURE)
    reference = f"s3://{bucket}/photos/a.png"
    fetcher = SafeImageFetcher.from_settings(aws_client("s3"), Settings.model_validate(granted))
    assert fetcher.fetch(reference, "s3://x/") == PICTURE
    fetcher.close()
    stranger = SafeImageFetcher.from_settings(aws_client("s3"), Settings.model_validate(names))
    with pytest.raises(RowRejected, match=bucket):
        stranger.fetch(reference, "s3://x/")
    stranger.close()
