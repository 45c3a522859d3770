"""S3 upload events, and asynchronous invocations of the stack's functions."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote_plus, unquote_plus

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import AfterValidator, AliasPath, BaseModel, Field

from darkroom.aws.errors import translate_errors
from darkroom.errors import ServiceUnavailable
from darkroom.splitter import CsvUploaded

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_sqs import SQSClient

# Of one upload: a restart every five to ten minutes, for about a day.
MAX_RESTARTS = 200
_MAX_RECEIVES = 20  # of up to ten events, in one sweep
_HIDDEN_SECONDS = 60  # longer than a sweep reads the queue

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


class LostUploads:
    """Implements ports.LostEvents: uploads among the events that failed three times, in SQS.

    An event is deleted once the splitter was started with it, so at worst it runs twice. It carries
    how often that was: what fails for a day stays in the queue. Events without an upload stay too:
    the sweep finds what they were for.
    """

    def __init__(
        self, sqs: "SQSClient", url: str, start: Callable[[Mapping[str, object]], None]
    ) -> None:
        self._sqs, self._url, self._start = sqs, url, start

    def restart_uploads(self) -> int:
        restarted = 0
        for _ in range(_MAX_RECEIVES):
            with translate_errors("the queue of lost events (SQS)"):
                received = self._sqs.receive_message(
                    QueueUrl=self._url, MaxNumberOfMessages=10, VisibilityTimeout=_HIDDEN_SECONDS
                ).get("Messages", [])
            for message in received:
                event = _again(message["Body"])
                if event is not None:
                    self._start(event)
                    with translate_errors("the queue of lost events (SQS)"):
                        self._sqs.delete_message(
                            QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"]
                        )
                    restarted += 1
            if not received:
                break
        return restarted


def _again(body: str) -> dict[str, object] | None:
    """The upload event in the record of a failed invocation; None: it is not to be repeated.

    Its format: "Invocation record" in
    https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
    """
    try:
        event = json.loads(body)["requestPayload"]
        restarts = int(event.get("restarts", 0))
        uploads = list(uploads_in(event))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return {**event, "restarts": restarts + 1} if uploads and restarts < MAX_RESTARTS else None


def start_function(client: "LambdaClient", function: str, event: Mapping[str, object]) -> None:
    """Invoke asynchronously. Raises ServiceUnavailable; a retry is safe then."""
    try:
        client.invoke(FunctionName=function, InvocationType="Event", Payload=json.dumps(event))
    except (ClientError, BotoCoreError) as error:
        raise ServiceUnavailable(f"The function {function} cannot be started") from error
