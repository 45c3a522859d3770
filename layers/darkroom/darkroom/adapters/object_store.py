"""The results bucket in S3."""

from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from botocore.exceptions import ClientError

from darkroom.adapters.aws_errors import code_of, translated
from darkroom.errors import ServiceUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SERVICE = "the results bucket (S3)"
_MISSING = ("404", "NoSuchKey", "NotFound")
_EXISTS = ("PreconditionFailed", "412")
_MEANWHILE = ("ConditionalRequestConflict", "409")
_METADATA_BYTES = 2000  # S3 takes 2 KB in all, names included
_PLAIN = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")


class S3ObjectStore:
    """ObjectStore. Metadata is percent-encoded where it is not printable ASCII."""

    def __init__(self, s3: "S3Client", bucket: str) -> None:
        self._s3 = s3
        self._bucket = bucket

    def put(
        self,
        key: str,
        body: bytes | IO[bytes],
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
            with translated(_SERVICE):
                self._s3.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=body,
                    ContentType=content_type,
                    Metadata=_encoded(metadata or {}),
                    **condition,
                )
        except ClientError as error:
            if code_of(error) in _EXISTS or (replaces and code_of(error) in _MISSING):
                return False
            if code_of(error) in _MEANWHILE:
                raise ServiceUnavailable(f"{key} is being written by another worker") from error
            raise
        return True

    def metadata(self, key: str) -> Mapping[str, str] | None:
        try:
            with translated(_SERVICE):
                head = self._s3.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if code_of(error) in _MISSING:
                return None
            raise
        found = {name: unquote(value) for name, value in head["Metadata"].items()}
        return {**found, "etag": head["ETag"]}

    def get(self, key: str) -> bytes | None:
        try:
            with translated(_SERVICE):
                return self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except ClientError as error:
            if code_of(error) in _MISSING:
                return None
            raise


def _encoded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Header-safe, and within S3's limit: the longest values are cut first."""
    encoded = {name: quote(value, safe=_PLAIN).strip() for name, value in metadata.items()}
    while sum(len(n) + len(v) for n, v in encoded.items()) > _METADATA_BYTES:
        longest = max(encoded, key=lambda name: len(encoded[name]))
        cut = metadata[longest][: len(unquote(encoded[longest])) * 3 // 4]
        encoded[longest] = quote(cut, safe=_PLAIN).strip()
    return encoded
