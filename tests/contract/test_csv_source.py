"""Reading uploaded CSVs from S3 (on MiniStack)."""

import gzip
import uuid
from typing import Any

import pytest

from darkroom.aws.s3 import S3CsvStore
from darkroom.errors import JobRejected
from darkroom.jobs import Source


@pytest.fixture
def bucket(aws_client: Any) -> str:
    name = f"in-{uuid.uuid4().hex[:12]}"
    s3 = aws_client("s3")
    s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


@pytest.fixture
def store(aws_client: Any) -> S3CsvStore:
    return S3CsvStore(aws_client("s3"))


def _upload(aws_client: Any, bucket: str, body: bytes, **metadata: str) -> Source:
    answer = aws_client("s3").put_object(
        Bucket=bucket, Key="jobs/a.csv", Body=body, Metadata=metadata
    )
    return Source(bucket, "jobs/a.csv", answer["VersionId"], len(body))


@pytest.mark.parametrize("offset", [0, 1, 5, 9])
def test_reading_from_an_offset_gives_the_rest_of_that_version(
    aws_client: Any, bucket: str, store: S3CsvStore, offset: int
) -> None:
    source = _upload(aws_client, bucket, b"0123456789")
    _upload(aws_client, bucket, b"a newer upload")
    assert b"".join(store.read(source, offset)) == b"0123456789"[offset:]


def test_a_large_file_is_read_from_the_middle(
    aws_client: Any, bucket: str, store: S3CsvStore
) -> None:
    body = gzip.compress(b"", 0) + bytes(range(256)) * 12_000
    source = _upload(aws_client, bucket, body)
    assert b"".join(store.read(source, 1_500_001)) == body[1_500_001:]


def test_an_offset_past_the_end_gives_nothing(
    aws_client: Any, bucket: str, store: S3CsvStore
) -> None:
    source = _upload(aws_client, bucket, b"0123")
    assert b"".join(store.read(source, 4)) == b""


def test_each_version_has_its_own_options(aws_client: Any, bucket: str, store: S3CsvStore) -> None:
    first = _upload(aws_client, bucket, b"a", **{"budget-usd": "5"})
    _upload(aws_client, bucket, b"b", **{"budget-usd": "9"})
    assert dict(store.metadata(first)) == {"budget-usd": "5"}


def test_a_deleted_file_fails_the_job_with_a_clear_reason(bucket: str, store: S3CsvStore) -> None:
    with pytest.raises(JobRejected, match="no longer in the bucket"):
        list(store.read(Source(bucket, "jobs/gone.csv", None)))
