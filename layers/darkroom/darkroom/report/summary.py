"""job.json: what became of a job, for scripts. docs/results.md shows one.

Money in US dollars, times in UTC (ISO 8601), durations in seconds, latencies in milliseconds.
"""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from darkroom.jobs import JobOptions, Run


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RowCounts(_Value):
    """Lines of the manifest by status: the four statuses add up to `rows`."""

    rows: int = 0
    succeeded: int = Field(default=0, description="includes `resumed`")
    failed: int = Field(default=0, description="`failed` and `dead` include `kept_failed`")
    dead: int = 0
    skipped: int = 0
    resumed: int = Field(default=0, description="succeeded in an earlier upload, not done again")
    kept_failed: int = Field(
        default=0, description="failed or dead since an earlier upload, not tried again"
    )


class Cost(_Value):
    """`this_run_usd` is what the rows this upload settled cost; unknown prices count as 0."""

    this_run_usd: float = 0.0
    earlier_runs_usd: float = Field(default=0.0, description="rows resumed or kept")
    total_usd: float = 0.0
    unpriced_rows: int = Field(default=0, description="made by models whose price is not known")


class Fallback(_Value):
    """Rows of this upload that another tier than the first one made."""

    rows: int = 0
    rate: float = Field(default=0.0, description="share of the rows this upload made, 0 to 1")


class EndpointSummary(_Value):
    """What one endpoint did for this upload."""

    endpoint: str
    provider: str
    succeeded: int = 0
    failed: int = 0
    dead: int = 0
    fallback: int = Field(default=0, description="of `succeeded`")
    cost_usd: float = 0.0
    latency_ms_p50: int | None = Field(default=None, description="within 5 %")
    latency_ms_p95: int | None = Field(default=None, description="within 5 %")


class ErrorClass(_Value):
    """Rows that ended alike, with one example."""

    status: str
    reason: str
    rows: int
    what_to_do: str
    example_row: int
    example_detail: str


class WarningSummary(_Value):
    """A warning and how many rows it concerns; 0 rows: it concerns the job."""

    text: str
    rows: int = 0


class TimelineBar(_Value):
    """Rows settled from `start` on, for `Timeline.bar_seconds`."""

    start: datetime
    succeeded: int
    failed: int
    dead: int


class TimelineSummary(_Value):
    bar_seconds: int = 1
    bars: tuple[TimelineBar, ...] = ()


class Results(_Value):
    """Keys in the results bucket."""

    manifest: str | None = None
    report: str
    pages: tuple[str, ...] = Field(default=(), description="of the gallery, the first is `report`")
    images: str = Field(description="prefix of the pictures")


class SourceSummary(_Value):
    bucket: str
    key: str
    version_id: str | None = None


class JobSummary(_Value):
    """The content of job.json. Its presence with the run's id means that the report is complete."""

    version: Literal[1] = 1
    job: str
    run: str = Field(description="one upload of the CSV")
    revision: int = Field(default=1, description="2 and up: made again, after a redrive")
    state: Literal["done", "failed", "stopped"]
    reason: str | None = Field(default=None, description="why the file was rejected")
    source: SourceSummary
    options: JobOptions
    started_at: datetime
    finished_at: datetime
    duration_seconds: float
    counts: RowCounts = RowCounts()
    by_reason: dict[str, int] = Field(default_factory=dict, description="failed and dead rows")
    cost: Cost = Cost()
    fallback: Fallback = Fallback()
    attempts: int = Field(default=0, description="of the rows this upload settled")
    possible_duplicate_charges: int = Field(
        default=0, description="calls whose answer a crash hid, and which were made again"
    )
    endpoints: tuple[EndpointSummary, ...] = ()
    models: dict[str, int] = Field(default_factory=dict, description="rows succeeded, by model")
    errors: tuple[ErrorClass, ...] = ()
    warnings: tuple[WarningSummary, ...] = ()
    timeline: TimelineSummary = TimelineSummary()
    results: Results

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=2).encode()


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds, 3), UTC)


def source_of(run: Run) -> SourceSummary:
    return SourceSummary(
        bucket=run.source.bucket, key=run.source.key, version_id=run.source.version_id
    )
