"""S3's events, as the splitter gets them from S3 and, to go on with a long file, from itself."""

from collections.abc import Iterator, Mapping
from urllib.parse import quote_plus, unquote_plus

from pydantic import BaseModel, Field

from darkroom.intake.splitting import CsvUploaded


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


def as_event(upload: CsvUploaded) -> dict[str, object]:
    """The event that `uploads_in` reads as this upload."""
    told = {
        "key": quote_plus(upload.key),
        "size": upload.size,
        "eTag": upload.etag,
        "versionId": upload.version_id,
        "sequencer": upload.sequencer,
    }
    return {"Records": [{"s3": {"bucket": {"name": upload.bucket}, "object": told}}]}
