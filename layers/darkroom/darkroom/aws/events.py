"""S3 upload events, and asynchronous invocations of the stack's functions."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote_plus, unquote_plus

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import AfterValidator, AliasPath, BaseModel, Field

from darkroom.errors import ServiceUnavailable
from darkroom.splitter import CsvUploaded

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient


_OBJECT = ("s3", "object")


class _Record(BaseModel):
    """What CsvUploaded contains of a record in an S3 event."""

    bucket: str = Field(validation_alias=AliasPath("s3", "bucket", "name"))
    key: Annotated[str, AfterValidator(unquote_plus)] = Field(
        validation_alias=AliasPath(*_OBJECT, "key")
    )
    size: int = Field(default=0, validation_alias=AliasPath(*_OBJECT, "size"))
    etag: str = Field(default="", validation_alias=AliasPath(*_OBJECT, "eTag"))
    version_id: str | None = Field(default=None, validation_alias=AliasPath(*_OBJECT, "versionId"))
    sequencer: str = Field(default="", validation_alias=AliasPath(*_OBJECT, "sequencer"))


class _Event(BaseModel):
    # S3's test event, sent when a notification is set up, has no records.
    records: tuple[_Record, ...] = Field(default=(), alias="Records")


def uploads_in(event: Mapping[str, object]) -> Iterator[CsvUploaded]:
    """The uploads in an S3 event.

    Source of the format: "Event message structure" in the S3 user guide.
    """
    for record in _Event.model_validate(event).records:
        yield CsvUploaded(**record.model_dump())


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


def start_function(client: "LambdaClient", function: str, event: Mapping[str, object]) -> None:
    """Invoke asynchronously. Raises ServiceUnavailable; a retry is safe then."""
    try:
        client.invoke(FunctionName=function, InvocationType="Event", Payload=json.dumps(event))
    except (ClientError, BotoCoreError) as error:
        raise ServiceUnavailable(f"The function {function} cannot be started") from error
