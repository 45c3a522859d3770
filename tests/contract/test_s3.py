"""CSVs in S3 (on MiniStack); and the results bucket, in memory and in S3 alike."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError

from darkroom.aws.s3 import S3CsvStore, S3ObjectStore
from darkroom.errors import JobRejected, ServiceUnavailable, UploadLost
from darkroom.jobs import Source
from darkroom.ports import MIN_PART_BYTES, ObjectStore
from tests.conftest import ClientFactory
from tests.fakes.services import FakeClock, FakeStore


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
    with pytest.raises(JobRejected, match="was not found in bucket"):
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


PARTS = (b"a" * MIN_PART_BYTES, b"b" * (MIN_PART_BYTES + 7), b"the end")


def upload_parts(results: Results, *parts: bytes) -> tuple[str, list[str]]:
    """An uncompleted upload to KEY, and its etags."""
    store = results.store
    upload = store.create_upload(KEY, "text/csv; charset=utf-8", {"report-run": "größe 3"})
    return upload, [store.upload_part(KEY, upload, n, body) for n, body in enumerate(parts, 1)]


@pytest.mark.parametrize("parts", [(b"",), (b"x",), PARTS])
def test_an_upload_in_parts_appears_whole_when_it_is_completed(
    results: Results, parts: tuple[bytes, ...]
) -> None:
    upload, etags = upload_parts(results, *parts)
    assert results.store.get(KEY) is None
    assert results.store.complete_upload(KEY, upload, etags, replaces=None)
    assert results.store.get(KEY) == b"".join(parts)
    assert results.metadata(KEY)["report-run"] == "größe 3"
    assert results.unfinished_uploads() == []


def test_a_part_uploaded_again_replaces_the_first_one(results: Results) -> None:
    upload, _ = upload_parts(results, b"first")
    etags = [results.store.upload_part(KEY, upload, 1, b"second")]
    assert results.store.complete_upload(KEY, upload, etags, replaces=None)
    assert results.store.get(KEY) == b"second"


def test_an_upload_is_completed_only_over_the_object_it_names(results: Results) -> None:
    store = results.store
    upload, etags = upload_parts(results, b"report 2")
    assert not store.complete_upload(KEY, upload, etags, replaces='"0123"')
    store.put(KEY, b"report 1", "text/csv")
    stale = results.metadata(KEY)["etag"]
    assert not store.complete_upload(KEY, upload, etags, replaces=None)
    store.put(KEY, b"report 1, again", "text/csv")
    assert not store.complete_upload(KEY, upload, etags, replaces=stale)
    assert store.get(KEY) == b"report 1, again"
    assert store.complete_upload(KEY, upload, etags, replaces=results.metadata(KEY)["etag"])
    assert store.get(KEY) == b"report 2"


def test_an_aborted_upload_is_gone(results: Results) -> None:
    store = results.store
    upload, etags = upload_parts(results, b"x")
    store.abort_upload(KEY, upload)
    store.abort_upload(KEY, upload)
    assert results.unfinished_uploads() == []
    with pytest.raises(UploadLost):
        store.upload_part(KEY, upload, 2, b"y")
    assert not store.complete_upload(KEY, upload, etags, replaces=None)
    assert store.get(KEY) is None


def test_the_content_type_of_an_upload_is_stored(harness: S3Harness) -> None:
    results = on_s3(harness)
    upload, etags = upload_parts(results, b"x")
    results.store.complete_upload(KEY, upload, etags, replaces=None)
    head = harness.s3.head_object(Bucket=harness.bucket, Key=KEY)
    assert head["ContentType"] == "text/csv; charset=utf-8"


FAILED = ClientError({"Error": {"Code": "SlowDown"}}, "GetObject")


def unreliable(
    harness: S3Harness, monkeypatch: pytest.MonkeyPatch, clock: FakeClock, failures: int
) -> S3ObjectStore:
    """The results bucket when that many requests of each operation fail before one is answered."""
    client = harness.s3
    for operation in (
        "put_object",
        "head_object",
        "get_object",
        "create_multipart_upload",
        "upload_part",
        "complete_multipart_upload",
        "abort_multipart_upload",
    ):
        answers = chain(repeat(FAILED, failures), repeat(getattr(client, operation)))

        def request(answers: Iterator[Any] = answers, **arguments: Any) -> Any:
            answer = next(answers)
            if answer is FAILED:
                raise FAILED
            return answer(**arguments)

        monkeypatch.setattr(client, operation, request)
    return S3ObjectStore(client, harness.bucket, patience_seconds=30.0, sleep=clock.sleep)


def test_requests_that_s3_does_not_answer_are_repeated(
    harness: S3Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report makes thousands of requests and needs the answer to each."""
    store = unreliable(harness, monkeypatch, FakeClock(), failures=5)
    assert store.put("a", b"small", "text/plain")
    assert store.metadata("a") is not None
    assert store.get("a") == b"small"
    upload = store.create_upload("b", "text/plain")
    etag = store.upload_part("b", upload, 1, b"staged")
    assert store.complete_upload("b", upload, [etag], replaces=None)
    assert store.get("b") == b"staged"
    store.abort_upload("c", store.create_upload("c", "text/plain"))
    assert on_s3(harness).unfinished_uploads() == []


def test_s3_that_does_not_answer_for_long_is_unavailable(
    harness: S3Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    with pytest.raises(ServiceUnavailable, match=r"the results bucket .S3. is unavailable"):
        unreliable(harness, monkeypatch, clock, failures=10_000).get("a")
    assert 20 < sum(clock.slept) < 60
