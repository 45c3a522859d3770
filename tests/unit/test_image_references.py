"""Image references: what each resolves to, which hosts and addresses may be read, file types.

Every reference in tests/corpus/urls.yaml gets its error, or makes its one request.
"""

import io
import ssl
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError
from botocore.response import StreamingBody
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from darkroom.csv_input.values import parse_images
from darkroom.editor.image_loading import load_images
from darkroom.errors import ConfigurationError, Reason, RetryRow, RowRejected
from darkroom.fetcher import SafeImageFetcher, WebImageFetcher
from darkroom.images.file_types import describe_unsupported, is_image
from darkroom.images.references import HostList, ImageRules, StoredImage, WebImage, is_public
from darkroom.rows import RowRequest
from tests.fakes.csv_files import rows_of
from tests.fakes.network import FakeNetwork, http_response, redirect_to

CORPUS = yaml.safe_load((Path(__file__).parents[1] / "corpus/urls.yaml").read_text())
BASE = "s3://in/shop/jobs/"
RULES = ImageRules(("in", "out"), trusted=HostList.parse("photos.internal:8080"))
IMAGE = b"\x89PNG\r\n\x1a\n..."
TLS = ssl.create_default_context()  # slow to build
METADATA = "169.254.169.254"
NAMES = {
    "example.com": [["93.184.215.14"]],
    "xn--bcher-kva.example": [["93.184.215.15"]],
    "half-private.example": [["10.0.0.7", "::1", "93.184.215.16"]],
    "photos.internal": [["10.1.2.3"]],
    "metadata.google.internal": [[METADATA]],
    "169.254.169.254.nip.io": [[METADATA]],
    "localtest.me": [["127.0.0.1", "::1"]],
}


@dataclass
class FakeS3:
    """The part of the S3 client that the fetcher uses; every object exists except gone.png."""

    read: list[tuple[str, str]] = field(default_factory=list)

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        if Key.endswith("gone.png"):
            raise ClientError({"Error": {"Code": "NoSuchKey", "Message": ""}}, "GetObject")
        self.read.append((Bucket, Key))
        body = StreamingBody(io.BytesIO(IMAGE), len(IMAGE))
        return {"ContentLength": len(IMAGE), "Body": body}


class Harness:
    """A fetcher with a fake network and a fake S3."""

    def __init__(self, network: FakeNetwork) -> None:
        self.s3, self.network = FakeS3(), network
        s3: Any = self.s3
        web = WebImageFetcher(RULES, resolver=network.resolve, network=network, ssl_context=TLS)
        self.fetcher = SafeImageFetcher(s3, web)


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(FakeNetwork(NAMES, anywhere=http_response(IMAGE)))
    with closing(harness.fetcher):
        yield harness


def test_the_corpus_has_at_least_200_distinct_references() -> None:
    references = [reference for group in CORPUS.values() for reference, _ in group]
    assert len(references) >= 200
    assert len(set(references)) == len(references)


@pytest.mark.parametrize(("reference", "request_made"), CORPUS["loaded"])
def test_a_valid_reference_makes_one_request(
    harness: Harness, reference: str, request_made: str
) -> None:
    assert parse_images(reference) == (reference,)
    assert harness.fetcher.fetch(reference, BASE) == IMAGE
    requests = [f"{bucket} {key}" for bucket, key in harness.s3.read]
    for head, address in zip(harness.network.requests, harness.network.connected, strict=True):
        request, host, *_ = head.decode().split("\r\n")
        requests.append(
            f"{request.removesuffix(' HTTP/1.1')} of {host.removeprefix('Host: ')} at {address}"
        )
    assert requests == [request_made]


@pytest.mark.parametrize(("reference", "detail"), CORPUS["bad_input"])
def test_an_invalid_reference_fails_the_row_before_queuing(reference: str, detail: str) -> None:
    (row,) = rows_of(f'image_url,instruction\n"{reference}",red\n')
    assert isinstance(row.request, RowRejected)
    assert (row.request.reason, row.request.detail) == (Reason.BAD_INPUT, detail)


@pytest.mark.parametrize(("reference", "detail"), CORPUS["bad_image"])
def test_a_rejected_reference_gets_its_error_and_no_connection(
    harness: Harness, reference: str, detail: str
) -> None:
    assert parse_images(reference) == (reference,)
    with pytest.raises(RowRejected) as caught:
        harness.fetcher.fetch(reference, BASE)
    assert (caught.value.reason, caught.value.detail) == (Reason.BAD_IMAGE, detail)
    assert harness.network.connected == []
    assert harness.s3.read == []


@pytest.mark.parametrize(
    "location",
    [
        reference
        for reference, _ in CORPUS["bad_image"]
        if reference.startswith("http") and not reference.startswith("https:///")  # the same host
    ]
    + ["//169.254.169.254/latest/", "//localtest.me/a", "file:///etc/passwd", "s3://in/a.png"],
)
def test_a_redirect_may_not_lead_where_a_row_may_not(harness: Harness, location: str) -> None:
    response = redirect_to(location.encode("ascii", "ignore").decode())
    harness.network.servers = {"93.184.215.14": response}
    with pytest.raises(RowRejected) as caught:
        harness.fetcher.fetch("https://example.com/a.png?sig=5ecret", BASE)
    assert caught.value.reason is Reason.BAD_IMAGE
    assert caught.value.detail.startswith("image 'https://example.com/a.png?…' is ")
    assert "5ecret" not in caught.value.detail
    assert harness.network.connected == ["93.184.215.14"]
    assert harness.s3.read == []


ADDRESSES = st.ip_addresses().map(str) | st.sampled_from(
    ["127.0.0.1", METADATA, "10.0.0.1", "::1", "fd00:ec2::254", "::ffff:127.0.0.1", "8.8.8.8"]
)


@given(
    lookups=st.lists(st.lists(ADDRESSES, max_size=4), min_size=1, max_size=4),
    location=st.sampled_from(["https://other.example/", "https://changing.example/b", "/c"])
    | ADDRESSES.map(lambda a: f"https://[{a}]/" if ":" in a else f"https://{a}/"),
)
def test_neither_a_resolver_nor_a_redirect_leads_to_a_private_address(
    lookups: list[list[str]], location: str
) -> None:
    names = {"changing.example": lookups, "other.example": lookups[::-1]}
    harness = Harness(FakeNetwork(names, anywhere=redirect_to(location)))
    for _ in lookups:
        with pytest.raises((RowRejected, RetryRow)):
            harness.fetcher.fetch("https://changing.example/a", BASE)
    harness.fetcher.close()
    assert all(is_public(address) for address in harness.network.connected)


@given(st.text(max_size=60) | st.text(max_size=40).map(lambda text: f"https://{text}"))
def test_no_text_crashes_the_fetcher_or_leads_to_a_private_address(text: str) -> None:
    harness = Harness(FakeNetwork(NAMES, anywhere=http_response(IMAGE)))
    with closing(harness.fetcher), suppress(RowRejected):
        assert harness.fetcher.fetch(text, BASE) == IMAGE
    assert all(is_public(address) for address in harness.network.connected)


# --- hosts and paths ---------------------------------------------------------------------------


def rules(allowed: str = "", trusted: str = "") -> ImageRules:
    return ImageRules(("in",), HostList.parse(allowed), HostList.parse(trusted))


def rejection(rules: ImageRules, url: str) -> str:
    with pytest.raises(RowRejected) as caught:
        rules.resolve(url, BASE)
    return caught.value.detail


NOT_LISTED = "is on the host {host}, which AllowedImageHosts does not list"


@pytest.mark.parametrize(
    ("allowed", "host", "problem"),
    [
        ("example.com", "example.com", None),
        ("example.com", "cdn.example.com", NOT_LISTED),
        ("example.com", "badexample.com", NOT_LISTED),
        ("example.com", "example.com.evil.org", NOT_LISTED),
        ("example.com", "example.com:8443", "uses port 8443"),
        ("example.com:8443", "example.com:8443", "uses port"),
        ("example.com:8443", "example.com", NOT_LISTED),
        ("*.example.com, other.org", "a.b.example.com", None),
        ("*.example.com, other.org", "other.org", None),
        ("*.example.com, other.org", "example.com", NOT_LISTED),
        ("*.example.com, other.org", "badexample.com", NOT_LISTED),
    ],
)
def test_only_allowed_hosts_are_read(allowed: str, host: str, problem: str | None) -> None:
    url = f"https://{host}/a.png"
    if problem is None:
        assert rules(allowed).resolve(url, BASE)
    else:
        assert problem.format(host=host) in rejection(rules(allowed), url)


def test_an_allowed_host_still_requires_https() -> None:
    assert "use https://" in rejection(rules("example.com"), "http://example.com/a.png")


def test_s3_references_need_no_allowed_host() -> None:
    assert rules("example.com").resolve("a.png", BASE) == StoredImage("in", "shop/jobs/a.png")


def test_a_trusted_host_may_use_http_any_port_and_a_plain_name() -> None:
    trusting = rules(allowed="example.com", trusted="photos, 10.0.0.7:8080, [fd00::1]")
    assert trusting.resolve("http://photos/a.png", BASE) == WebImage("http", "photos", 80, "/a.png")
    assert trusting.resolve("http://photos:81/a", BASE)
    assert trusting.resolve("http://10.0.0.7:8080/a", BASE)
    assert trusting.resolve("http://[fd00::1]:9/a", BASE)
    assert "not encrypted" in rejection(trusting, "http://10.0.0.7:8081/a")


@pytest.mark.parametrize(
    "entry", ["https://example.com", "example.com/a", "*", "ex ample.com", "a.com:x", "bücher.de"]
)
def test_an_invalid_host_is_a_configuration_error_that_names_it(entry: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^AllowedImageHosts: ") as caught:
        HostList.parse(f"example.com,{entry}")
    assert entry in str(caught.value)


def test_a_list_of_empty_entries_is_empty() -> None:
    assert not HostList.parse(" , ")


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b.png", "https://example.com/b.png"),
        ("b.png?x=1", "https://example.com/photos/b.png?x=1"),
        ("//cdn.example.com/b.png", "https://cdn.example.com/b.png"),
        ("https://other.org:443/b.png", "https://other.org/b.png"),
        ("../../../b.png", "https://example.com/b.png"),
    ],
)
def test_a_redirect_is_resolved_relative_to_its_origin(location: str, url: str) -> None:
    origin = rules().check_url("https://example.com/photos/a.png?sig=1")
    assert rules().redirect(origin, location).url == url


def test_a_host_header_has_the_port_only_where_it_is_not_the_default() -> None:
    trusting = rules(trusted="photos,[fd00::1]")
    authorities = [
        trusting.check_url(url).authority
        for url in ("https://photos/", "http://photos/", "http://photos:81/", "http://[fd00::1]:9/")
    ]
    assert authorities == ["photos", "photos", "photos:81", "[fd00::1]:9"]


def test_a_key_too_long_for_s3_is_rejected() -> None:
    assert rules().resolve("a" * 1_014, BASE)
    assert "cannot be the key of an object" in rejection(rules(), "a" * 1_015)
    assert "cannot be the key of an object" in rejection(rules(), "ä" * 508)


def test_a_csv_at_the_root_of_the_bucket_has_no_parent_folder() -> None:
    assert rules().resolve("a.png", "s3://in/") == StoredImage("in", "a.png")
    with pytest.raises(RowRejected, match="leads outside"):
        rules().resolve("../a.png", "s3://in/")


def test_an_empty_reference_is_reported_as_empty() -> None:
    assert rejection(rules(), " ") == "image ' ' is empty"


@pytest.mark.parametrize(
    "head",
    [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"BM" + bytes(12) + b"\x28\0\0\0",
        b"II*\0",
        b"MM\0*",
        b"RIFF\0\0\0\0WEBP",
        b"\0\0\0\x1cftypavif",
        b"\0\0\0\x18ftypheic",
        b"\0\0\0\x18ftyphevc",
    ],
)
def test_images_are_detected_by_their_first_bytes(head: bytes) -> None:
    assert is_image(head)


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html>", "is a web page, not an image: does its URL"),
        (b"<HTML>", "is a web page"),
        (b"<svg xmlns", "is an SVG drawing"),
        (b'<?xml version="1.0"?>\n<!-- x --><svg>', "is an SVG drawing"),
        (b"<?xml version='1.0'?><Error>", "is an XML file"),
        (b'{"error": "no"}', "is JSON"),
        (b"[1]", "is JSON"),
        (b"%PDF-1.7", "is a PDF"),
        (b"PK\x03\x04", "is a zip file"),
        (b"\x1f\x8b\x08", "is a gzip file"),
        (b"8BPS\0\1", "is a Photoshop file"),
        (b"\xff\x0a", "is JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "is JPEG 2000"),
        (b"\0\0\1\0\1\0", "is an icon"),
        (b"\0\0\0\x20ftypisom", "is a video"),
        (b"\x1aE\xdf\xa3", "is a video"),
        (b"RIFF\0\0\0\0WAVE", "is not an image"),
        (b"hello", "is not an image"),
        (b"BMW drives, and other text", "is not an image"),
        (b"\0" * 64, "is not an image"),
    ],
)
def test_other_file_types_are_described(head: bytes, sentence: str) -> None:
    assert not is_image(head)
    assert describe_unsupported(head).startswith(sentence)


class CuttingFetcher:
    """An ImageFetcher whose images are cut off, except those with good in their name."""

    def fetch(self, reference: str, base: str) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (9, 9)).save(out, "PNG")
        return out.getvalue() if "good" in reference else out.getvalue()[:40]


def test_warnings_and_image_names_contain_no_url_signature() -> None:
    signed = "?X-Amz-Signature=5ecret"
    images = (f"https://h/a.png{signed}", f"https://h/good.png{signed}")
    request = RowRequest(instruction="warm", images=images)
    loaded = load_images(request, BASE, CuttingFetcher(), last_attempt=True)
    assert [image.name for image in loaded.images] == ["https://h/good.png?…"]
    assert len(loaded.warnings) == 1
    assert "5ecret" not in loaded.warnings[0]
    alone = RowRequest(instruction="warm", images=images[:1])
    with pytest.raises(RowRejected) as caught:
        load_images(alone, BASE, CuttingFetcher(), last_attempt=True)
    assert caught.value.detail == "https://h/a.png?… is damaged or cut off"


# --- addresses, compared with the registries' lists ---------------------------------------------

# IANA IPv4 and IPv6 Special-Purpose Address Registries, and multicast.
SPECIAL = """\
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24
224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
::/128 ::1/128 ::ffff:0:0/104 ::ffff:127.0.0.0/104 ::ffff:169.254.0.0/112 ::ffff:10.0.0.0/104
::/96 64:ff9b::7f00:0/104 64:ff9b::a9fe:0/112 64:ff9b::a00:0/104 64:ff9b:1::/48 100::/64
2001::/23 2001::/32 2001:2::/48 2001:10::/28 2001:20::/28 2001:db8::/32 2002::/16 2620:4f:8000::/48
3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
""".split()  # noqa: SIM905 - in the order of the registries


@pytest.mark.parametrize("text", SPECIAL)
def test_no_address_of_a_special_network_is_public(text: str) -> None:
    network = ip_network(text)
    for address in (network[0], network[network.num_addresses // 2], network[-1]):
        assert not is_public(str(address))


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",  # EC2 and other clouds' metadata
        "169.254.170.2",  # ECS credentials
        "169.254.169.253",  # the VPC's resolver
        "fd00:ec2::254",  # EC2 metadata over IPv6
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "fe80::1%eth0",
    ],
)
def test_metadata_services_are_not_public(address: str) -> None:
    assert not is_public(address)


ORDINARY = """\
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 172.15.255.255 172.32.0.0
223.255.255.255 2606:4700::1111 2a00:1450:4001:800::200e ::ffff:8.8.8.8 64:ff9b::8.8.8.8
""".split()  # noqa: SIM905 - like SPECIAL


@pytest.mark.parametrize("address", ORDINARY)
def test_ordinary_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("text", ["", "example.com", "127.1", "0x7f.1", "1.2.3.4 ", "[::1]", "::g"])
def test_text_that_is_not_an_address_is_not_public(text: str) -> None:
    assert not is_public(text)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_ipv6_is_treated_as_itself(address: IPv4Address) -> None:
    mapped = IPv6Address(0xFFFF_0000_0000 + int(address))
    translated = IPv6Address(int(IPv6Address("64:ff9b::")) + int(address))
    assert is_public(str(mapped)) == is_public(str(translated)) == is_public(str(address))


# Networks whose inner IPv4 address decides.
WRAPPERS = (ip_network("64:ff9b::/96"), ip_network("::ffff:0:0/96"))


@given(st.ip_addresses())
def test_no_address_special_to_python_is_public(address: IPv4Address | IPv6Address) -> None:
    special = address.is_private or address.is_multicast or address.is_reserved
    if special and not any(address in wrapper for wrapper in WRAPPERS):
        assert not is_public(str(address))
