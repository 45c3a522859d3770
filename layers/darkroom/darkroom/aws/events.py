"""Events: S3 uploads in; continuations, function invocations and notifications out."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote_plus, unquote_plus

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, Field

from darkroom.errors import ServiceUnavailable
from darkroom.splitter import CsvUploaded

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_sns import SNSClient


class _Bucket(BaseModel):
    name: str


class _Object(BaseModel):
    key: str  # URL-encoded as in a form
    size: int = 0
    e_tag: str = Field(default="", alias="eTag")
    version_id: str | None = Field(default=None, alias="versionId")
    sequencer: str = ""


class _Entity(BaseModel):
    bucket: _Bucket
    object: _Object


class _Record(BaseModel):
    s3: _Entity


class _Event(BaseModel):
    # S3's test event, sent when a notification is set up, has no records.
    records: tuple[_Record, ...] = Field(default=(), alias="Records")


def uploads_in(event: Mapping[str, object]) -> Iterator[CsvUploaded]:
    """The uploads in an S3 event.

    Source of the format: "Event message structure" in the S3 user guide.
    """
    for record in _Event.model_validate(event).records:
        s3_object = record.s3.object
        yield CsvUploaded(
            bucket=record.s3.bucket.name,
            key=unquote_plus(s3_object.key),
            version_id=s3_object.version_id,
            sequencer=s3_object.sequencer,
            size=s3_object.size,
            etag=s3_object.e_tag,
        )


def continuation_event(upload: CsvUploaded) -> dict[str, object]:
    """The event from which `uploads_in` reads this upload again."""
    s3_object = {
        "key": quote_plus(upload.key),
        "size": upload.size,
        "eTag": upload.etag,
        "versionId": upload.version_id,
        "sequencer": upload.sequencer,
    }
    return {"Records": [{"s3": {"bucket": {"name": upload.bucket}, "object": s3_object}}]}


class LambdaFunctions:
    """Starts functions of the stack without waiting for them."""

    def __init__(self, client: "LambdaClient") -> None:
        self._client = client

    def start(self, function: str, event: Mapping[str, object]) -> None:
        """Invoke asynchronously. Raises ServiceUnavailable; a retry is safe then."""
        try:
            self._client.invoke(
                FunctionName=function, InvocationType="Event", Payload=json.dumps(event)
            )
        except (ClientError, BotoCoreError) as error:
            raise ServiceUnavailable(f"The function {function} cannot be started") from error


class SnsTopic:
    """The topic that is notified of finished jobs."""

    def __init__(self, client: "SNSClient", arn: str) -> None:
        self._client = client
        self._arn = arn

    def publish(self, subject: str, body: str) -> None:
        """`subject`: at most 100 ASCII characters. Raises botocore's errors."""
        self._client.publish(TopicArn=self._arn, Subject=subject, Message=body)
