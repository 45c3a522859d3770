"""One suite for the results bucket in memory and in S3 (on MiniStack)."""

from collections.abc import Iterator
from contextlib import suppress

import pytest

from darkroom.aws.s3 import PART_BYTES, S3ObjectStore
from darkroom.ports import ObjectStore
from tests.conftest import ClientFactory
from tests.fakes.services import FakeStore


@pytest.fixture(scope="module")
def bucket(aws_client: ClientFactory) -> str:
    aws_client("s3").create_bucket(Bucket="contract-results")
    return "contract-results"


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    if request.param == "memory":
        return FakeStore()
    client: ClientFactory = request.getfixturevalue("aws_client")
    return S3ObjectStore(client("s3"), request.getfixturevalue("bucket"))


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return f"jobs/{request.node.name}/images/größe 1.png"


def test_a_stored_object_can_be_read(store: ObjectStore, key: str) -> None:
    assert store.get(key) is None
    assert store.metadata(key) is None
    assert store.put(key, b"png", "image/png", {"row": "000000"})
    assert store.get(key) == b"png"
    metadata = store.metadata(key)
    assert metadata is not None
    assert metadata["row"] == "000000"
    assert store.put(key, b"again", "image/png")
    assert store.get(key) == b"again"


def test_metadata_keeps_every_character(store: ObjectStore, key: str) -> None:
    written = {"warnings": "größer 🎩 100% \x01 | zwei\nZeilen", "model": "gemini-3-pro-image"}
    store.put(key, b"png", "image/png", written)
    metadata = store.metadata(key)
    assert metadata is not None
    assert {name: metadata[name] for name in written} == written


def test_only_if_new_stores_once(store: ObjectStore, key: str) -> None:
    assert store.put(key, b"first", "image/png", only_if_new=True)
    assert not store.put(key, b"second", "image/png", only_if_new=True)
    assert store.get(key) == b"first"


def test_replacing_needs_the_etag_of_the_current_object(store: ObjectStore, key: str) -> None:
    store.put(key, b"first", "image/png")
    current = store.metadata(key)
    assert current is not None
    store.put(key, b"second", "image/png")
    assert not store.put(key, b"third", "image/png", replaces=current["etag"])
    assert store.get(key) == b"second"
    current = store.metadata(key)
    assert current is not None
    assert store.put(key, b"third", "image/png", replaces=current["etag"])
    assert store.get(key) == b"third"


def test_replacing_a_missing_object_does_nothing(store: ObjectStore, key: str) -> None:
    assert not store.put(key, b"third", "image/png", replaces='"0123"')
    assert store.get(key) is None


def test_metadata_is_cut_to_the_limit_of_s3(
    aws_client: ClientFactory, bucket: str, key: str
) -> None:
    store = S3ObjectStore(aws_client("s3"), bucket)
    store.put(key, b"png", "image/png", {"row": "000000", "warnings": "größe " * 1000})
    metadata = store.metadata(key)
    assert metadata is not None
    assert metadata["row"] == "000000"
    assert metadata["warnings"].startswith("größe größe")


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, 2 * PART_BYTES + 1])
def test_an_upload_of_any_size_is_stored_complete(store: ObjectStore, key: str, size: int) -> None:
    pieces = [bytes([n % 256]) * (1 << 20) for n in range(size >> 20)] + [b"x" * (size % (1 << 20))]
    store.upload(key, iter(pieces), "text/csv")
    assert store.get(key) == b"".join(pieces)


@pytest.mark.parametrize("size", [1, PART_BYTES + 1])
def test_an_interrupted_upload_leaves_the_previous_object(
    store: ObjectStore, aws_client: ClientFactory, bucket: str, key: str, size: int
) -> None:
    def interrupted() -> Iterator[bytes]:
        yield b"x" * size
        raise ZeroDivisionError

    store.put(key, b"the last report", "text/csv")
    with suppress(ZeroDivisionError):
        store.upload(key, interrupted(), "text/csv")
    assert store.get(key) == b"the last report"
    assert "Uploads" not in aws_client("s3").list_multipart_uploads(Bucket=bucket)


@pytest.mark.parametrize("size", [1, PART_BYTES + 1])
def test_an_upload_stores_its_content_type(
    aws_client: ClientFactory, bucket: str, key: str, size: int
) -> None:
    client = aws_client("s3")
    S3ObjectStore(client, bucket).upload(key, iter([b"x" * size]), "text/csv; charset=utf-8")
    head = client.head_object(Bucket=bucket, Key=key)
    assert head["ContentType"] == "text/csv; charset=utf-8"
