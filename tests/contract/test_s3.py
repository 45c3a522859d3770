"""CSVs in S3 (on MiniStack); and the results bucket, in memory and in S3 alike."""

import gzip
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from darkroom.aws.s3 import S3CsvStore, S3ObjectStore, S3Uploads
from darkroom.errors import JobRejected
from darkroom.jobs import Source
from darkroom.ports import ObjectStore, Uploads
from tests.conftest import ClientFactory
from tests.fakes.reporting import FakeUploads
from tests.fakes.services import FakeStore

MEBI = 1024 * 1024


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
    uploads: Uploads
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
    # The smallest part size that S3 accepts, to keep the test small.
    uploads = S3Uploads(harness.s3, harness.bucket, 5 * MEBI)
    return Results(S3ObjectStore(harness.s3, harness.bucket), uploads, harness)


@pytest.fixture(params=["memory", "s3"])
def results(request: pytest.FixtureRequest) -> Results:
    if request.param == "memory":
        store = FakeStore()
        return Results(store, FakeUploads(store))
    return on_s3(request.getfixturevalue("harness"))


KEY = "jobs/a/images/größe 1.png"


def test_a_stored_object_can_be_read(results: Results) -> None:
    store = results.store
    assert store.get(KEY) is None
    assert store.metadata(KEY) is None
    assert store.put(KEY, b"png", "image/png", {"row": "000000"})
    assert store.get(KEY) == b"png"
    assert results.metadata(KEY)["row"] == "000000"
    assert store.put(KEY, io.BytesIO(b"again"), "image/png")
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


def test_an_object_of_several_parts_is_stored_complete(results: Results) -> None:
    pieces = [bytes([n]) * (MEBI // 2) for n in range(25)]  # 12.5 MiB: three parts
    with results.uploads.open("a/manifest.csv", "text/csv") as out:
        for piece in pieces:
            out.write(piece)
    assert results.store.get("a/manifest.csv") == b"".join(pieces)
    assert results.unfinished_uploads() == []


@pytest.mark.parametrize("size", [0, 1, 5 * MEBI])
def test_an_object_of_any_size_is_stored_complete(results: Results, size: int) -> None:
    with results.uploads.open("k", "text/csv") as out:
        out.write(b"x" * size)
    assert results.store.get("k") == b"x" * size


@pytest.mark.parametrize("size", [1, 6 * MEBI])
def test_an_interrupted_upload_leaves_the_previous_object(results: Results, size: int) -> None:
    results.store.put("k", b"the last report", "text/csv")
    with suppress(ZeroDivisionError), results.uploads.open("k", "text/csv") as out:
        out.write(b"x" * size)
        raise ZeroDivisionError
    assert results.store.get("k") == b"the last report"
    assert results.unfinished_uploads() == []


@pytest.mark.parametrize("size", [1, 6 * MEBI])
def test_the_content_type_is_stored(harness: S3Harness, size: int) -> None:
    with on_s3(harness).uploads.open("k", "text/csv; charset=utf-8") as out:
        out.write(b"x" * size)
    head = harness.s3.head_object(Bucket=harness.bucket, Key="k")
    assert head["ContentType"] == "text/csv; charset=utf-8"
