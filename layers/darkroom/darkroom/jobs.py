"""A job: one CSV, its options, its runs (one per upload) and the paths of its results."""

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field

from darkroom.errors import Waiting
from darkroom.rows import EditSettings, Mode, StatusCounts

BatchFallback = Literal["live", "batch"]
STOPPED_DETAIL = "the job was stopped: upload the CSV again to continue"  # of a row
CSV_SUFFIXES = (".csv.gz", ".csv", ".CSV")  # whose uploads start a job: events in template.yaml


def job_id(key: str) -> str:
    """`jobs/products.csv` -> `jobs/products` (also for `.csv.gz` and `.CSV`)."""
    return next((key[: -len(s)] for s in CSV_SUFFIXES if key.endswith(s)), key)


class JobOptions(EditSettings):
    """User metadata of the uploaded CSV, names as in S3 with dashes as underscores."""

    filter_rows: str | None = None
    resume: bool = True
    retry_failed: bool = False
    fallback: bool = True
    mode: Mode = "live"
    batch_fallback: BatchFallback = "live"
    instruction: str | None = None  # for rows without one; may contain {column}
    instruction_column: str | None = None
    output_name_column: str | None = None
    budget_usd: float | None = Field(default=None, ge=0)
    max_attempts: int = Field(default=5, ge=1, le=50)
    give_up_after_hours: int = Field(default=24, ge=1, le=336)

    @property
    def budget_micro_usd(self) -> int | None:
        return None if self.budget_usd is None else round(self.budget_usd * 1_000_000)


@dataclass(frozen=True, slots=True)
class Source:
    """The uploaded CSV, pinned to one version of the object."""

    bucket: str
    key: str
    version_id: str | None
    size: int = 0

    @property
    def base(self) -> str:
        """What relative image paths are resolved against: `s3://bucket/folder/`."""
        parent = PurePosixPath(self.key).parent.as_posix()
        return f"s3://{self.bucket}/" + ("" if parent == "." else f"{parent}/")


class RunState(StrEnum):
    SPLITTING = "splitting"
    RUNNING = "running"
    REPORTING = "reporting"
    DONE = "done"
    FAILED = "failed"  # the file could not be used; `reason` says why
    STOPPED = "stopped"  # by the user; unfinished rows end as `failed: stopped`


@dataclass(frozen=True, slots=True)
class Totals:
    """What the splitter did with the CSV's data rows. The others add up to `rows`."""

    rows: int = 0
    queued: int = 0
    resumed: int = 0  # succeeded in an earlier upload, unchanged
    kept_failed: int = 0  # failed in an earlier upload, unchanged, and retry-failed is off
    invalid: int = 0  # `failed: bad_input` without being queued
    skipped: int = 0  # outside filter-rows


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the splitter continues."""

    row: int = 0  # the next data row
    continuations: int = 0
    totals: Totals = Totals()


@dataclass(frozen=True, slots=True)
class RejectedUpload:
    """A later upload that could not be used, and so did not replace a run under way."""

    key: str
    version_id: str | None
    reason: str  # a sentence for users
    rejected_at: float  # Unix seconds
    run: str = ""  # the id it would have had


@dataclass(frozen=True, slots=True)
class Run:
    """One upload of a job's CSV. Times in Unix seconds."""

    job: str
    run: str
    state: RunState
    source: Source
    options: JobOptions
    started_at: float
    sequencer: str = ""  # hex string that orders S3's events for one key
    etag: str = ""  # of the uploaded object
    split_done: bool = False
    totals: Totals = Totals()
    checkpoint: Checkpoint = Checkpoint()
    reason: str | None = None  # why it FAILED
    finished_at: float | None = None  # once set, only a redrive changes the run
    warnings: tuple[str, ...] = ()
    number: int = 0  # 1 for the job's first run; assigned by the ledger
    spent_before: int = 0  # micro-USD spent by earlier runs without a budget
    waiting: Waiting | None = None
    rejected_uploads: tuple[RejectedUpload, ...] = ()  # the last ones while this run was under way
    lost: int = (
        0  # queued rows without an outcome: the run was stopped, or messages and CSV are gone
    )


@dataclass(frozen=True, slots=True)
class Counters(StatusCounts):
    """A run's totals: the rows settled in it, and their cost."""

    fallback: int = 0
    attempts: int = 0
    cost_micro_usd: int = 0
    possible_duplicate_charges: int = 0
    unpriced: int = 0  # rows whose cost is not known
    transitions: int = 0  # changes ever made to these sums; a report is made for one value

    def __neg__(self) -> "Counters":
        return Counters(*(-getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class ResultPaths:
    """Keys in the results bucket for one job."""

    job: str

    @property
    def manifest(self) -> str:
        return f"{self.job}/manifest.csv"

    @property
    def report(self) -> str:
        return f"{self.job}/report.html"

    @property
    def summary(self) -> str:
        return f"{self.job}/job.json"

    @property
    def write_check(self) -> str:
        """An empty object, written to prove that results can be stored."""
        return f"{self.job}/thumbs/.write-check"

    @property
    def failed_rows(self) -> str:
        return f"{self.job}/failed.csv"

    @property
    def problems(self) -> str:
        """The page of all rows that failed."""
        return f"{self.job}/report-problems.html"

    def report_state(self, run: str, changes: int) -> str:
        """Of a report that is being made, for one value of Counters.transitions."""
        return f"{self.job}/reports/{run}/{changes}.json"

    def report_page(self, page: int) -> str:
        """Page 1 is `report.html`, the others are next to it."""
        return self.report if page == 1 else f"{self.job}/report-{page:03d}.html"

    def image(self, name: str, copy: int = 0) -> str:
        """`name` is relative to images/, with its extension; `copy` > 0 for further images of n."""
        path = PurePosixPath(name)
        stem = path.with_suffix("").as_posix()
        return f"{self.job}/images/{stem}{f'-{copy}' if copy else ''}{path.suffix}"

    def thumb(self, image: str, side: str) -> str:
        """Of the (first) image with the key `image`; `side` is "before" or "after"."""
        name = image.removeprefix(f"{self.job}/images/")
        return f"{self.job}/thumbs/{name}-{side}.webp"
