"""S3: the input bucket's CSVs as streams, and the results bucket's objects and uploads."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote

from botocore.exceptions import BotoCoreError, ClientError

from darkroom.aws.errors import (
    DENIED_CODES,
    GONE_CODES,
    MISSING_CODES,
    error_code,
    translate_errors,
)
from darkroom.errors import JobRejected, ServiceUnavailable, UploadLost
from darkroom.jobs import Source
from darkroom.retry import while_unavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK_BYTES = 256 * 1024
_READ_TRIES = 4  # of one read that is cut off; each resumes where the last one stopped
_MAX_TRIES = 20
_METADATA_BYTES = 2000  # S3 accepts 2 KB in total, names included
_SERVICE = "the results bucket (S3)"
_PAST_END_CODES = frozenset({"InvalidRange", "416"})
_CONDITION_FAILED_CODES = frozenset({"PreconditionFailed", "412"})
_CONFLICT_CODES = frozenset({"ConditionalRequestConflict", "409"})
_UPLOAD_GONE = "NoSuchUpload"
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
        return JobRejected(
            f"The file {source.key} was not found in bucket {source.bucket}: upload it again."
        )
    if code == "PreconditionFailed":
        return JobRejected(f"The file {source.key} was replaced while it was being read.")
    if code in DENIED_CODES:
        return JobRejected(
            f"The file {source.key} cannot be read by this stack: check its encryption key and "
            "the bucket's policy."
        )
    return ServiceUnavailable(f"S3 returned {code} for {source.key}")


class S3ObjectStore:
    """Implements ports.ObjectStore. Metadata that is not printable ASCII is percent-encoded.

    All methods raise ServiceUnavailable for transient errors that last for longer than
    `patience_seconds`.
    """

    def __init__(
        self,
        s3: "S3Client",
        bucket: str,
        *,
        patience_seconds: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._patience_seconds = patience_seconds
        self._sleep = sleep

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
            self._answered(
                lambda: self._s3.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=body,
                    ContentType=content_type,
                    Metadata=_encoded(metadata or {}),
                    **condition,
                )
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
            head = self._answered(lambda: self._s3.head_object(Bucket=self._bucket, Key=key))
        except ClientError as error:
            if error_code(error) in MISSING_CODES:
                return None
            raise
        found = {name: unquote(value) for name, value in head["Metadata"].items()}
        return {**found, "etag": head["ETag"]}

    def get(self, key: str) -> bytes | None:
        def read() -> bytes:
            return self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()

        try:
            return self._answered(read)
        except ClientError as error:
            if error_code(error) in MISSING_CODES:
                return None
            raise

    def create_upload(
        self, key: str, content_type: str, metadata: Mapping[str, str] | None = None
    ) -> str:
        response = self._answered(
            lambda: self._s3.create_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                ContentType=content_type,
                Metadata=_encoded(metadata or {}),
            )
        )
        return response["UploadId"]

    def upload_part(self, key: str, upload: str, number: int, body: bytes) -> str:
        try:
            response = self._answered(
                lambda: self._s3.upload_part(
                    Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=body
                )
            )
        except ClientError as error:
            if error_code(error) == _UPLOAD_GONE:
                raise UploadLost(f"the upload of {key} is gone") from error
            raise
        return response["ETag"]

    def complete_upload(
        self, key: str, upload: str, etags: Sequence[str], *, replaces: str | None
    ) -> bool:
        # The condition is checked against the object at the time of this call (botocore's service
        # model of S3, CompleteMultipartUpload). After a 412 the upload can still be completed.
        condition: dict[str, Any] = {"IfMatch": replaces} if replaces else {"IfNoneMatch": "*"}
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        try:
            self._answered(
                lambda: self._s3.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=key,
                    UploadId=upload,
                    MultipartUpload={"Parts": cast("Any", parts)},
                    **condition,
                )
            )
        except ClientError as error:
            code = error_code(error)
            if code in _CONDITION_FAILED_CODES | MISSING_CODES | {_UPLOAD_GONE}:
                return False
            if code in _CONFLICT_CODES:  # S3 asks for the parts again then
                raise UploadLost(f"{key} was written at the same time") from error
            raise
        return True

    def abort_upload(self, key: str, upload: str) -> None:
        try:
            self._answered(
                lambda: self._s3.abort_multipart_upload(
                    Bucket=self._bucket, Key=key, UploadId=upload
                )
            )
        except ClientError as error:
            if error_code(error) != _UPLOAD_GONE:
                raise

    def _answered[T](self, request: Callable[[], T]) -> T:
        """Make a request again while it is not answered, for up to `patience_seconds`."""

        def attempt() -> T:
            with translate_errors(_SERVICE):
                return request()

        return while_unavailable(
            attempt,
            tries=_MAX_TRIES,
            patience_seconds=self._patience_seconds,
            sleep=self._sleep,
        )


def _encoded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Header-safe and within S3's limit: the longest values are shortened first."""
    encoded = {name: quote(value, safe=_PLAIN).strip() for name, value in metadata.items()}
    while sum(len(n) + len(v) for n, v in encoded.items()) > _METADATA_BYTES:
        longest = max(encoded, key=lambda name: len(encoded[name]))
        cut = metadata[longest][: len(unquote(encoded[longest])) * 3 // 4]
        encoded[longest] = quote(cut, safe=_PLAIN).strip()
    return encoded
