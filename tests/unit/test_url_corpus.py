"""Every reference in tests/corpus/urls.yaml gets its error, or makes its one request."""

import io
import ssl
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError
from botocore.response import StreamingBody
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input.values import parse_images
from darkroom.errors import Reason, RetryRow, RowRejected
from darkroom.fetcher import SafeImageFetcher
from darkroom.images.references import HostList, ImageRules, is_public
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


@dataclass
class Harness:
    s3: FakeS3
    network: FakeNetwork
    fetcher: SafeImageFetcher


def fetch_harness(network: FakeNetwork) -> Harness:
    s3 = FakeS3()
    fetcher = SafeImageFetcher(
        s3,  # type: ignore[arg-type]
        RULES,
        resolver=network.resolve,
        network=network,
        ssl_context=TLS,
    )
    return Harness(s3, network, fetcher)


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = fetch_harness(FakeNetwork(NAMES, anywhere=http_response(IMAGE)))
    yield harness
    harness.fetcher.close()


def test_the_corpus_has_at_least_60_distinct_references() -> None:
    references = [reference for group in CORPUS.values() for reference, _ in group]
    assert len(references) >= 60
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
        if reference.startswith("http") and reference != "https:///a.png"  # the same host
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
    harness = fetch_harness(FakeNetwork(names, anywhere=redirect_to(location)))
    for _ in lookups:
        with pytest.raises((RowRejected, RetryRow)):
            harness.fetcher.fetch("https://changing.example/a", BASE)
    harness.fetcher.close()
    assert all(is_public(address) for address in harness.network.connected)


@given(st.text(max_size=60) | st.text(max_size=40).map(lambda text: f"https://{text}"))
def test_no_text_crashes_the_fetcher_or_leads_to_a_private_address(text: str) -> None:
    harness = fetch_harness(FakeNetwork(NAMES, anywhere=http_response(IMAGE)))
    with closing(harness.fetcher), suppress(RowRejected):
        assert harness.fetcher.fetch(text, BASE) == IMAGE
    assert all(is_public(address) for address in harness.network.connected)
