"""Streamed uploads of any size to the results bucket: the fake and S3 alike."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import pytest

from darkroom.aws.s3 import S3ObjectStore, S3Uploads
from darkroom.ports import ObjectStore, Uploads
from tests.conftest import ClientFactory
from tests.fakes.reporting import FakeUploads
from tests.fakes.services import FakeStore

MEBI = 1024 * 1024


@dataclass
class Bucket:
    uploads: Uploads
    store: ObjectStore
    unfinished: Callable[[], int]


@pytest.fixture(params=["fake", "s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    if request.param == "fake":
        store = FakeStore()
        return Bucket(FakeUploads(store), store, lambda: 0)
    client = request.getfixturevalue("aws_client")
    assert callable(client)
    return on_s3(client)


def on_s3(client: ClientFactory) -> Bucket:
    s3, name = client("s3"), f"uploads-{uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)

    def unfinished() -> int:
        return len(s3.list_multipart_uploads(Bucket=name).get("Uploads", []))

    # The smallest part size that S3 accepts, to keep the test small.
    return Bucket(S3Uploads(s3, name, 5 * MEBI), S3ObjectStore(s3, name), unfinished)


def test_an_object_of_several_parts_is_stored_complete(bucket: Bucket) -> None:
    pieces = [bytes([n]) * (MEBI // 2) for n in range(25)]  # 12.5 MiB: three parts
    with bucket.uploads.open("a/manifest.csv", "text/csv") as out:
        for piece in pieces:
            out.write(piece)
    assert bucket.store.get("a/manifest.csv") == b"".join(pieces)
    assert bucket.unfinished() == 0


@pytest.mark.parametrize("size", [0, 1, 5 * MEBI])
def test_an_object_of_any_size_is_stored_complete(bucket: Bucket, size: int) -> None:
    with bucket.uploads.open("k", "text/csv") as out:
        out.write(b"x" * size)
    assert bucket.store.get("k") == b"x" * size


@pytest.mark.parametrize("size", [1, 6 * MEBI])
def test_an_interrupted_upload_leaves_the_previous_object(bucket: Bucket, size: int) -> None:
    bucket.store.put("k", b"the last report", "text/csv")
    with suppress(ZeroDivisionError), bucket.uploads.open("k", "text/csv") as out:
        out.write(b"x" * size)
        raise ZeroDivisionError
    assert bucket.store.get("k") == b"the last report"
    assert bucket.unfinished() == 0


def test_the_content_type_is_stored(aws_client: ClientFactory) -> None:
    s3 = on_s3(aws_client)
    assert isinstance(s3.store, S3ObjectStore)
    for size in (1, 6 * MEBI):
        with s3.uploads.open("k", "text/csv; charset=utf-8") as out:
            out.write(b"x" * size)
        head = aws_client("s3").head_object(Bucket=s3.store._bucket, Key="k")
        assert head["ContentType"] == "text/csv; charset=utf-8"
