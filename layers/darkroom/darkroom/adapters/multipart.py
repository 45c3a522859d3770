"""Objects of unknown size streamed to S3, a part at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 8 * 1024 * 1024  # S3 takes 10,000 parts of at least 5 MiB: up to 80 GB


class S3Uploads:
    """Implements `report.reporting.Uploads` on one bucket. Holds one part in memory."""

    def __init__(self, client: "S3Client", bucket: str, part_bytes: int = PART_BYTES) -> None:
        self._client = client
        self._bucket = bucket
        self._part_bytes = part_bytes

    @contextmanager
    def open(self, key: str, content_type: str) -> Iterator["_Upload"]:
        """A sink for bytes. The object appears at the end, or, after an error, not at all."""
        upload = _Upload(self._client, self._bucket, key, content_type, self._part_bytes)
        try:
            yield upload
            upload.finish()
        except BaseException:
            upload.abort()
            raise


class _Upload:
    def __init__(
        self, client: "S3Client", bucket: str, key: str, content_type: str, part_bytes: int
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._content_type = content_type
        self._part_bytes = part_bytes
        self._buffer = bytearray()
        self._upload_id: str | None = None
        self._parts: list[CompletedPartTypeDef] = []

    def write(self, data: bytes, /) -> None:
        self._buffer += data
        if len(self._buffer) >= self._part_bytes:
            self._send_part()

    def finish(self) -> None:
        if self._upload_id is None:  # small: one plain put
            self._client.put_object(
                Bucket=self._bucket,
                Key=self._key,
                Body=bytes(self._buffer),
                ContentType=self._content_type,
            )
            return
        if self._buffer:
            self._send_part()
        self._client.complete_multipart_upload(
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self._upload_id,
            MultipartUpload={"Parts": self._parts},
        )

    def abort(self) -> None:
        """Give the parts back; the bucket's lifecycle rule does it for a worker that was killed."""
        if self._upload_id is not None:
            self._client.abort_multipart_upload(
                Bucket=self._bucket, Key=self._key, UploadId=self._upload_id
            )

    def _send_part(self) -> None:
        if self._upload_id is None:
            started = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=self._key, ContentType=self._content_type
            )
            self._upload_id = started["UploadId"]
        number = len(self._parts) + 1
        sent = self._client.upload_part(
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self._upload_id,
            PartNumber=number,
            Body=bytes(self._buffer),
        )
        self._parts.append({"ETag": sent["ETag"], "PartNumber": number})
        self._buffer.clear()
