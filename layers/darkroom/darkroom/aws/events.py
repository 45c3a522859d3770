"""S3's events, as the splitter gets them from S3 and, to go on with a long file, from itself."""

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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    """Source of the format: "Event message structure" in the S3 user guide."""
    for record in _Event.model_validate(event).records:
        told = record.s3.object
        yield CsvUploaded(
            bucket=record.s3.bucket.name,
            key=unquote_plus(told.key),
            version_id=told.version_id,
            sequencer=told.sequencer,
            size=told.size,
            etag=told.e_tag,
        )


def continuation_event(upload: CsvUploaded) -> dict[str, object]:
    """The event that `uploads_in` reads as this upload."""
    told = {
        "key": quote_plus(upload.key),
        "size": upload.size,
        "eTag": upload.etag,
        "versionId": upload.version_id,
        "sequencer": upload.sequencer,
    }
    return {"Records": [{"s3": {"bucket": {"name": upload.bucket}, "object": told}}]}


# Starts another function of the stack and does not wait for it.


class LambdaFunctions:
    def __init__(self, client: "LambdaClient") -> None:
        self._client = client

    def start(self, function: str, event: Mapping[str, object]) -> None:
        """Invoke `function` asynchronously. Raises ServiceUnavailable: it may be tried again."""
        try:
            self._client.invoke(
                FunctionName=function, InvocationType="Event", Payload=json.dumps(event)
            )
        except (ClientError, BotoCoreError) as error:
            raise ServiceUnavailable(f"The function {function} cannot be started") from error


# The topic that hears of finished jobs.


class SnsTopic:
    def __init__(self, client: "SNSClient", arn: str) -> None:
        self._client = client
        self._arn = arn

    def publish(self, subject: str, body: str) -> None:
        """`subject`: at most 100 ASCII characters. Raises botocore's errors."""
        self._client.publish(TopicArn=self._arn, Subject=subject, Message=body)
