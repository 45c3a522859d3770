"""Every reference of tests/corpus/urls.yaml gets its sentence, or makes its one request."""

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
from tests.fakes.internet import FakeInternet, http_answer, moved

CORPUS = yaml.safe_load((Path(__file__).parents[1] / "corpus/urls.yaml").read_text())
BASE = "s3://in/shop/jobs/"
RULES = ImageRules(("in", "out"), trusted=HostList.parse("photos.internal:8080"))
PICTURE = b"\x89PNG\r\n\x1a\n..."
TLS = ssl.create_default_context()  # takes longer to make than a fetch does
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
    """As much of the S3 client as the fetcher uses; every object is there but gone.png."""

    read: list[tuple[str, str]] = field(default_factory=list)

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        if Key.endswith("gone.png"):
            raise ClientError({"Error": {"Code": "NoSuchKey", "Message": ""}}, "GetObject")
        self.read.append((Bucket, Key))
        body = StreamingBody(io.BytesIO(PICTURE), len(PICTURE))
        return {"ContentLength": len(PICTURE), "Body": body}


@dataclass
class World:
    s3: FakeS3
    internet: FakeInternet
    fetcher: SafeImageFetcher


def made(internet: FakeInternet) -> World:
    s3 = FakeS3()
    fetcher = SafeImageFetcher(
        s3,  # type: ignore[arg-type]
        RULES,
        resolver=internet.resolve,
        network=internet,
        ssl_context=TLS,
    )
    return World(s3, internet, fetcher)


@pytest.fixture
def world() -> Iterator[World]:
    world = made(FakeInternet(NAMES, anywhere=http_answer(PICTURE)))
    yield world
    world.fetcher.close()


def test_the_corpus_is_as_large_as_promised() -> None:
    references = [reference for verdict in CORPUS.values() for reference, _ in verdict]
    assert len(references) >= 60
    assert len(set(references)) == len(references)


@pytest.mark.parametrize(("reference", "request_made"), CORPUS["loaded"])
def test_a_good_reference_makes_its_one_request(
    world: World, reference: str, request_made: str
) -> None:
    assert parse_images(reference) == (reference,)
    assert world.fetcher.fetch(reference, BASE) == PICTURE
    seen = [f"{bucket} {key}" for bucket, key in world.s3.read]
    for head, address in zip(world.internet.requests, world.internet.connected, strict=True):
        request, host, *_ = head.decode().split("\r\n")
        what = request.removesuffix(" HTTP/1.1")
        seen.append(f"{what} of {host.removeprefix('Host: ')} at {address}")
    assert seen == [request_made]


@pytest.mark.parametrize(("reference", "sentence"), CORPUS["bad_input"])
def test_a_reference_that_is_none_fails_the_row_before_it_is_queued(
    reference: str, sentence: str
) -> None:
    (row,) = rows_of(f'image_url,instruction\n"{reference}",red\n')
    assert isinstance(row.request, RowRejected)
    assert (row.request.reason, row.request.detail) == (Reason.BAD_INPUT, sentence)


@pytest.mark.parametrize(("reference", "sentence"), CORPUS["bad_image"])
def test_a_refused_reference_gets_its_sentence_and_reaches_nobody(
    world: World, reference: str, sentence: str
) -> None:
    assert parse_images(reference) == (reference,)
    with pytest.raises(RowRejected) as caught:
        world.fetcher.fetch(reference, BASE)
    assert (caught.value.reason, caught.value.detail) == (Reason.BAD_IMAGE, sentence)
    assert world.internet.connected == []
    assert world.s3.read == []


@pytest.mark.parametrize(
    "location",
    [
        reference
        for reference, _ in CORPUS["bad_image"]
        if reference.startswith("http") and reference != "https:///a.png"  # the host it came from
    ]
    + ["//169.254.169.254/latest/", "//localtest.me/a", "file:///etc/passwd", "s3://in/a.png"],
)
def test_what_a_row_may_not_name_no_redirect_may_lead_to(world: World, location: str) -> None:
    answer = moved(location.encode("ascii", "ignore").decode())
    world.internet.servers = {"93.184.215.14": answer}
    with pytest.raises(RowRejected) as caught:
        world.fetcher.fetch("https://example.com/a.png?sig=5ecret", BASE)
    assert caught.value.reason is Reason.BAD_IMAGE
    assert caught.value.detail.startswith("image 'https://example.com/a.png?…' is ")
    assert "5ecret" not in caught.value.detail
    assert world.internet.connected == ["93.184.215.14"]
    assert world.s3.read == []


ADDRESSES = st.ip_addresses().map(str) | st.sampled_from(
    ["127.0.0.1", METADATA, "10.0.0.1", "::1", "fd00:ec2::254", "::ffff:127.0.0.1", "8.8.8.8"]
)


@given(
    answers=st.lists(st.lists(ADDRESSES, max_size=4), min_size=1, max_size=4),
    location=st.sampled_from(["https://other.example/", "https://changing.example/b", "/c"])
    | ADDRESSES.map(lambda a: f"https://[{a}]/" if ":" in a else f"https://{a}/"),
)
def test_no_answer_of_a_resolver_and_no_redirect_leads_to_a_private_address(
    answers: list[list[str]], location: str
) -> None:
    names = {"changing.example": answers, "other.example": answers[::-1]}
    world = made(FakeInternet(names, anywhere=moved(location)))
    for _ in answers:
        with pytest.raises((RowRejected, RetryRow)):
            world.fetcher.fetch("https://changing.example/a", BASE)
    world.fetcher.close()
    assert all(is_public(address) for address in world.internet.connected)


@given(st.text(max_size=60) | st.text(max_size=40).map(lambda text: f"https://{text}"))
def test_whatever_is_written_ends_in_a_verdict_and_not_at_a_private_address(text: str) -> None:
    world = made(FakeInternet(NAMES, anywhere=http_answer(PICTURE)))
    with closing(world.fetcher), suppress(RowRejected):
        assert world.fetcher.fetch(text, BASE) == PICTURE
    assert all(is_public(address) for address in world.internet.connected)
