"""S3 as the command needs it: list, upload, download."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from darkroom_cli.ports import StoredObject

_SINGLE_PUT_MAX = 64 * 1024 * 1024  # above: multipart


class S3Bucket:
    """ports.Bucket. Thread-safe."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self.name = client, name

    def list(self, prefix: str, *, shallow: bool = False) -> Iterator[StoredObject]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix, **({"Delimiter": "/"} if shallow else {})
        )
        for page in pages:
            for entry in page.get("Contents", ()):
                yield StoredObject(
                    entry["Key"], entry["Size"], entry["ETag"].strip('"'), entry["LastModified"]
                )

    def metadata(self, key: str) -> Mapping[str, str] | None:
        try:
            return dict(self._client.head_object(Bucket=self.name, Key=key)["Metadata"])
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return None
            raise

    def put_file(
        self, key: str, path: Path, content_type: str, metadata: Mapping[str, str]
    ) -> str | None:
        if path.stat().st_size > _SINGLE_PUT_MAX:
            return self._put_in_parts(key, path, content_type, metadata)
        with path.open("rb") as body:
            answer = self._client.put_object(
                Bucket=self.name,
                Key=key,
                Body=body,
                ContentType=content_type,
                Metadata=dict(metadata),
            )
        version = answer.get("VersionId")
        return None if version is None else str(version)

    def _put_in_parts(
        self, key: str, path: Path, content_type: str, metadata: Mapping[str, str]
    ) -> str | None:
        extra = {"ContentType": content_type, "Metadata": dict(metadata)}
        self._client.upload_file(str(path), self.name, key, ExtraArgs=extra)
        version = self._client.head_object(Bucket=self.name, Key=key).get("VersionId")
        return None if version is None else str(version)

    def fetch(self, key: str, target: Path) -> None:
        # Its own threads off: the caller has many objects under way.
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415 - only for downloads

        with target.open("wb") as body:
            self._client.download_fileobj(
                self.name, key, body, Config=TransferConfig(use_threads=False)
            )
            body.flush()
            os.fsync(body.fileno())
