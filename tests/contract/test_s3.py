"""CSVs in S3 (on MiniStack); and the results bucket, in memory and in S3 alike."""

import gzip
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from darkroom.aws.s3 import PART_BYTES, S3CsvStore, S3ObjectStore
from darkroom.errors import JobRejected
from darkroom.jobs import Source
from darkroom.ports import ObjectStore
from tests.conftest import ClientFactory
from tests.fakes.services import FakeStore


class S3Harness:
    """A versioned bucket."""

    def __init__(self, s3: Any) -> None:
        self.s3 = s3
        self.bucket = f"contract-{uuid4().hex[:12]}"
        self.csvs = S3CsvStore(s3)
        s3.create_bucket(Bucket=self.bucket)
        versioning = {"Status": "Enabled"}
        s3.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration=versioning)

    def upload(self, body: bytes, **metadata: str) -> Source:
        key = "jobs/a.csv"
        response = self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, Metadata=metadata)
        return Source(self.bucket, key, response["VersionId"], len(body))

    def read(self, source: Source, offset: int = 0) -> bytes:
        return b"".join(self.csvs.read(source, offset))


@pytest.fixture
def harness(aws_client: ClientFactory) -> S3Harness:
    return S3Harness(aws_client("s3"))


@pytest.mark.parametrize("offset", [0, 1, 5, 9, 10])
def test_reading_from_an_offset_gives_the_remaining_bytes_of_that_version(
    harness: S3Harness, offset: int
) -> None:
    source = harness.upload(b"0123456789")
    harness.upload(b"a newer upload")
    assert harness.read(source, offset) == b"0123456789"[offset:]


def test_a_large_file_is_read_from_the_middle(harness: S3Harness) -> None:
    body = gzip.compress(b"", 0) + bytes(range(256)) * 12_000
    assert harness.read(harness.upload(body), 1_500_001) == body[1_500_001:]


def test_each_version_has_its_own_options(harness: S3Harness) -> None:
    first = harness.upload(b"a", **{"budget-usd": "5"})
    harness.upload(b"b", **{"budget-usd": "9"})
    assert dict(harness.csvs.metadata(first)) == {"budget-usd": "5"}


def test_a_deleted_file_fails_the_job_with_a_clear_reason(harness: S3Harness) -> None:
    with pytest.raises(JobRejected, match="no longer in the bucket"):
        harness.read(Source(harness.bucket, "jobs/gone.csv", None))


@dataclass
class Results:
    store: ObjectStore
    s3: S3Harness | None = None

    def metadata(self, key: str) -> dict[str, str]:
        metadata = self.store.metadata(key)
        assert metadata is not None
        return dict(metadata)

    def unfinished_uploads(self) -> list[Any]:
        if self.s3 is None:
            return []
        found = self.s3.s3.list_multipart_uploads(Bucket=self.s3.bucket)
        return list(found.get("Uploads", []))


def on_s3(harness: S3Harness) -> Results:
    return Results(S3ObjectStore(harness.s3, harness.bucket), harness)


@pytest.fixture(params=["memory", "s3"])
def results(request: pytest.FixtureRequest) -> Results:
    if request.param == "memory":
        return Results(FakeStore())
    return on_s3(request.getfixturevalue("harness"))


KEY = "jobs/a/images/größe 1.png"


def test_a_stored_object_can_be_read(results: Results) -> None:
    store = results.store
    assert store.get(KEY) is None
    assert store.metadata(KEY) is None
    assert store.put(KEY, b"png", "image/png", {"row": "000000"})
    assert store.get(KEY) == b"png"
    assert results.metadata(KEY)["row"] == "000000"
    assert store.put(KEY, b"again", "image/png")
    assert store.get(KEY) == b"again"


def test_metadata_keeps_every_character(results: Results) -> None:
    written = {"warnings": "größer 🎩 100% \x01 | zwei\nZeilen", "model": "gemini-3-pro-image"}
    results.store.put(KEY, b"png", "image/png", written)
    assert written.items() <= results.metadata(KEY).items()


def test_only_if_new_stores_once(results: Results) -> None:
    assert results.store.put(KEY, b"first", "image/png", only_if_new=True)
    assert not results.store.put(KEY, b"second", "image/png", only_if_new=True)
    assert results.store.get(KEY) == b"first"


def test_replacing_needs_the_etag_of_the_current_object(results: Results) -> None:
    store = results.store
    assert not store.put(KEY, b"third", "image/png", replaces='"0123"')
    assert store.get(KEY) is None
    store.put(KEY, b"first", "image/png")
    stale = results.metadata(KEY)["etag"]
    store.put(KEY, b"second", "image/png")
    assert not store.put(KEY, b"third", "image/png", replaces=stale)
    assert store.get(KEY) == b"second"
    assert store.put(KEY, b"third", "image/png", replaces=results.metadata(KEY)["etag"])
    assert store.get(KEY) == b"third"


def test_metadata_is_cut_to_the_limit_of_s3(harness: S3Harness) -> None:
    results = on_s3(harness)
    long = {"row": "000000", "warnings": "größe " * 1000}
    results.store.put(KEY, b"png", "image/png", long)
    assert results.metadata(KEY)["row"] == "000000"
    assert results.metadata(KEY)["warnings"].startswith("größe größe")


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, 2 * PART_BYTES + 1])
def test_an_upload_of_any_size_is_stored_complete(results: Results, size: int) -> None:
    body = bytes(n % 251 for n in range(1000)) * (size // 1000 + 1)
    pieces = (body[start : min(start + 500_000, size)] for start in range(0, size, 500_000))
    results.store.upload("a/manifest.csv", pieces, "text/csv")
    assert results.store.get("a/manifest.csv") == body[:size]
    assert results.unfinished_uploads() == []


@pytest.mark.parametrize("size", [1, PART_BYTES + 1])
def test_an_interrupted_upload_leaves_the_previous_object(results: Results, size: int) -> None:
    def interrupted() -> Iterator[bytes]:
        yield b"x" * size
        raise ZeroDivisionError

    results.store.put("k", b"the last report", "text/csv")
    with suppress(ZeroDivisionError):
        results.store.upload("k", interrupted(), "text/csv")
    assert results.store.get("k") == b"the last report"
    assert results.unfinished_uploads() == []


@pytest.mark.parametrize("size", [1, PART_BYTES + 1])
def test_the_content_type_is_stored(harness: S3Harness, size: int) -> None:
    body = iter([b"x" * size])
    on_s3(harness).store.upload("k", body, "text/csv; charset=utf-8")
    head = harness.s3.head_object(Bucket=harness.bucket, Key="k")
    assert head["ContentType"] == "text/csv; charset=utf-8"
