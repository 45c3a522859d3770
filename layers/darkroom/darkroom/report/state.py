"""What a report has done so far, kept as JSON between the invocations that make it."""

from dataclasses import dataclass, field
from functools import cache
from typing import Self

from pydantic import TypeAdapter, ValidationError

from darkroom.report.sampling import GallerySelection
from darkroom.report.staging import StagedObject
from darkroom.report.summary import Aggregate

# Unfinished uploads are removed after 7 days (template.yaml); a state must not outlive its uploads.
_MAX_AGE_SECONDS = 6 * 86_400.0


@dataclass(slots=True)
class ReportState:
    """The pass over the rows: where it continues, and what it has collected.

    Its size depends on the gallery's sample, not on the number of rows: at most about 30 MB.
    """

    created_at: float  # Unix seconds
    manifest: StagedObject
    selection: GallerySelection
    failed_rows: StagedObject | None = None  # None without the CSV
    aggregate: Aggregate = field(default_factory=Aggregate)
    row: int = 0  # the next row to read
    without_csv: bool = False  # the CSV is gone: rows come from the ledger alone
    rows_done: bool = False
    continuations: int = 0

    def staged(self) -> tuple[StagedObject, ...]:
        return (self.manifest, self.failed_rows) if self.failed_rows else (self.manifest,)

    def to_json(self) -> bytes:
        return _adapter().dump_json(self)

    @classmethod
    def from_json(cls, body: bytes, now: float) -> Self | None:
        """None if it is too old, or was written by another version of this package."""
        try:
            state = _adapter().validate_json(body)
        except ValidationError:
            return None
        return state if now - state.created_at < _MAX_AGE_SECONDS else None  # type: ignore[return-value]  # of this class


@cache
def _adapter() -> TypeAdapter[ReportState]:
    return TypeAdapter(ReportState)
