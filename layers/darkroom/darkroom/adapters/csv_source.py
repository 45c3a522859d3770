"""The input bucket as the splitter, the reporter and the quote read it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from darkroom.errors import JobRejected, ServiceUnavailable
from darkroom.jobs import Source

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK_BYTES = 256 * 1024
_TRIES = 4  # of one read that breaks off; each goes on where the last one stopped
_GONE = ("NoSuchKey", "NoSuchVersion", "NoSuchBucket", "404", "MethodNotAllowed", "405")
_PAST_END = ("InvalidRange", "416")
_DENIED = ("AccessDenied", "403")


class S3CsvStore:
    """Reads one version of an object as a stream, again from where it broke off."""

    def __init__(self, s3: "S3Client") -> None:
        self._s3 = s3

    def metadata(self, source: Source) -> Mapping[str, str]:
        """User metadata. Raises JobRejected when the object is gone, ServiceUnavailable."""
        try:
            return self._s3.head_object(**_address(source))["Metadata"]
        except ClientError as error:
            raise _translated(error, source) from error
        except BotoCoreError as error:
            raise ServiceUnavailable(f"S3 cannot be reached: {type(error).__name__}") from error

    def read(self, source: Source, offset: int = 0) -> Iterator[bytes]:
        """Bytes from `offset` to the end. Raises JobRejected, ServiceUnavailable."""
        position, failures = offset, 0
        etag: str | None = None
        while True:
            try:
                arguments = _address(source)
                if position:
                    arguments["Range"] = f"bytes={position}-"
                if etag:
                    arguments["IfMatch"] = etag
                answer = self._s3.get_object(**arguments)
                etag = answer["ETag"]
                for chunk in _from(position, answer):
                    position += len(chunk)
                    failures = 0
                    yield chunk
            except ClientError as error:
                if _code(error) in _PAST_END:
                    return
                raise _translated(error, source) from error
            except BotoCoreError as error:  # the stream broke off: time-out, reset, too short
                failures += 1
                if failures >= _TRIES:
                    raise ServiceUnavailable(
                        f"S3 broke off at byte {position}: {type(error).__name__}"
                    ) from error
            else:
                return


def _from(position: int, answer: "GetObjectOutputTypeDef") -> Iterator[bytes]:
    """The body from `position` on, also where the server ignored Range and sent the whole.

    It may (RFC 9110, section 14.2), and MiniStack does where a version is named.
    """
    unasked = 0 if "ContentRange" in answer else position
    for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
        asked, unasked = chunk[unasked:], max(0, unasked - len(chunk))
        if asked:
            yield asked


def _address(source: Source) -> dict[str, Any]:
    version = {"VersionId": source.version_id} if source.version_id else {}
    return {"Bucket": source.bucket, "Key": source.key, **version}


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _translated(error: ClientError, source: Source) -> Exception:
    code = _code(error)
    if code in _GONE:
        return JobRejected(f"The file {source.key} is not in the bucket any more: upload it again.")
    if code == "PreconditionFailed":
        return JobRejected(f"The file {source.key} was replaced while it was read.")
    if code in _DENIED:
        return JobRejected(
            f"The file {source.key} may not be read by this stack: check its encryption key and "
            "the bucket's policy."
        )
    return ServiceUnavailable(f"S3 answered {code} for {source.key}")
