"""S3: the input bucket's CSVs as streams, and the results bucket's objects and uploads."""

import sys
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote

from botocore.exceptions import BotoCoreError, ClientError

from darkroom.aws.errors import (
    DENIED_CODES,
    GONE_CODES,
    MISSING_CODES,
    error_code,
    translate_errors,
)
from darkroom.errors import JobRejected, ServiceUnavailable
from darkroom.jobs import Source

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK_BYTES = 256 * 1024
PART_BYTES = 8 * 1024 * 1024  # S3 accepts 10,000 parts of at least 5 MiB: up to 80 GB
_READ_TRIES = 4  # of one read that is cut off; each resumes where the last one stopped
_METADATA_BYTES = 2000  # S3 accepts 2 KB in total, names included
_SERVICE = "the results bucket (S3)"
_PAST_END_CODES = frozenset({"InvalidRange", "416"})
_CONDITION_FAILED_CODES = frozenset({"PreconditionFailed", "412"})
_CONFLICT_CODES = frozenset({"ConditionalRequestConflict", "409"})
_PLAIN = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")


class S3CsvStore:
    """Reads one version of an object as a stream; resumes a read that was cut off."""

    def __init__(self, s3: "S3Client") -> None:
        self._s3 = s3

    def metadata(self, source: Source) -> Mapping[str, str]:
        try:
            return self._s3.head_object(**_address(source))["Metadata"]
        except ClientError as error:
            raise _csv_error(error, source) from error
        except BotoCoreError as error:
            raise ServiceUnavailable(f"S3 cannot be reached: {type(error).__name__}") from error

    def read(self, source: Source, offset: int = 0) -> Iterator[bytes]:
        position, failures = offset, 0
        arguments = _address(source)
        while True:
            try:
                if position:
                    arguments["Range"] = f"bytes={position}-"
                response = self._s3.get_object(**arguments)
                arguments["IfMatch"] = response["ETag"]
                for chunk in _from(position, response):
                    position += len(chunk)
                    failures = 0
                    yield chunk
            except ClientError as error:
                if error_code(error) in _PAST_END_CODES:
                    return
                raise _csv_error(error, source) from error
            except BotoCoreError as error:  # cut off: time-out, reset, too short
                failures += 1
                if failures >= _READ_TRIES:
                    raise ServiceUnavailable(
                        f"S3 closed the connection at byte {position}: {type(error).__name__}"
                    ) from error
            else:
                return


def _from(position: int, response: "GetObjectOutputTypeDef") -> Iterator[bytes]:
    """The body from `position` on, even if the server ignored Range and sent the whole object.

    It may (RFC 9110, section 14.2), and MiniStack does when a version is named.
    """
    surplus = 0 if "ContentRange" in response else position
    for chunk in response["Body"].iter_chunks(CHUNK_BYTES):
        wanted, surplus = chunk[surplus:], max(0, surplus - len(chunk))
        if wanted:
            yield wanted


def _address(source: Source) -> dict[str, Any]:
    version = {"VersionId": source.version_id} if source.version_id else {}
    return {"Bucket": source.bucket, "Key": source.key, **version}


def _csv_error(error: ClientError, source: Source) -> Exception:
    code = error_code(error)
    if code in GONE_CODES:
        return JobRejected(f"The file {source.key} is no longer in the bucket: upload it again.")
    if code == "PreconditionFailed":
        return JobRejected(f"The file {source.key} was replaced while it was being read.")
    if code in DENIED_CODES:
        return JobRejected(
            f"The file {source.key} cannot be read by this stack: check its encryption key and "
            "the bucket's policy."
        )
    return ServiceUnavailable(f"S3 returned {code} for {source.key}")


class S3ObjectStore:
    """Implements ports.ObjectStore. Metadata that is not printable ASCII is percent-encoded."""

    def __init__(self, s3: "S3Client", bucket: str) -> None:
        self._s3 = s3
        self._bucket = bucket

    def put(
        self,
        key: str,
        body: bytes,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
        *,
        only_if_new: bool = False,
        replaces: str | None = None,
    ) -> bool:
        condition: dict[str, Any] = {}
        if only_if_new:
            condition["IfNoneMatch"] = "*"
        elif replaces is not None:
            condition["IfMatch"] = replaces
        try:
            with translate_errors(_SERVICE):
                self._s3.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=body,
                    ContentType=content_type,
                    Metadata=_encoded(metadata or {}),
                    **condition,
                )
        except ClientError as error:
            code = error_code(error)
            if code in _CONDITION_FAILED_CODES or (replaces and code in MISSING_CODES):
                return False
            if code in _CONFLICT_CODES:
                raise ServiceUnavailable(f"{key} is being written by another worker") from error
            raise
        return True

    def metadata(self, key: str) -> Mapping[str, str] | None:
        try:
            with translate_errors(_SERVICE):
                head = self._s3.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if error_code(error) in MISSING_CODES:
                return None
            raise
        found = {name: unquote(value) for name, value in head["Metadata"].items()}
        return {**found, "etag": head["ETag"]}

    def get(self, key: str) -> bytes | None:
        try:
            with translate_errors(_SERVICE):
                return self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error_code(error) in MISSING_CODES:
                return None
            raise

    def upload(self, key: str, chunks: Iterator[bytes], content_type: str) -> None:
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415 - for the reporter alone

        self._s3.upload_fileobj(
            cast("IO[bytes]", _ChunkReader(chunks)),  # boto3 calls nothing but read
            self._bucket,
            key,
            ExtraArgs={"ContentType": content_type},
            # Without threads, no more than one part is in memory.
            Config=TransferConfig(
                multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False
            ),
        )


def _encoded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Header-safe and within S3's limit: the longest values are shortened first."""
    encoded = {name: quote(value, safe=_PLAIN).strip() for name, value in metadata.items()}
    while sum(len(n) + len(v) for n, v in encoded.items()) > _METADATA_BYTES:
        longest = max(encoded, key=lambda name: len(encoded[name]))
        cut = metadata[longest][: len(unquote(encoded[longest])) * 3 // 4]
        encoded[longest] = quote(cut, safe=_PLAIN).strip()
    return encoded


class _ChunkReader:
    """The chunks as a file that boto3 reads one part at a time."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray()

    def read(self, size: int = sys.maxsize) -> bytes:
        while len(self._buffer) < size and (chunk := next(self._chunks, None)) is not None:
            self._buffer += chunk
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data
