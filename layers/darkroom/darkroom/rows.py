"""What a row of the CSV asks for, and the message that carries it."""

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

AspectRatio = Literal["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"]
Resolution = Literal["1K", "2K", "4K"]
Background = Literal["transparent", "opaque", "auto"]


class RowRequest(BaseModel):
    """A row's wish, independent of any provider. Image references are as written in the CSV."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruction: str = Field(min_length=1)
    images: tuple[str, ...] = ()
    mask: str | None = None
    aspect_ratio: AspectRatio | None = None
    resolution: Resolution | None = None
    size: str | None = None
    quality: str | None = None
    background: Background | None = None  # OpenAI's newer models
    n: int = Field(default=1, ge=1, le=10)
    output_name: str | None = None
    model: str | None = None

    def fingerprint(self) -> str:
        """Hex digest of what the row asks for: a changed row has another one."""
        canonical = self.model_dump_json(exclude_defaults=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:24]


class RowMessage(BaseModel):
    """One row on its way through the queue.

    `generation` counts redrives: the copy in the dead-letter queue carries one more than the row
    died with, so that a redriven message can be told from an old one delivered twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    job: str
    run: str
    row: int = Field(ge=0)  # position in the CSV, the first data row is 0
    key: str  # the row's identity in the ledger and in file names: "000000", or its index column
    base: str  # "s3://bucket/folder/" that relative image paths start from
    request: RowRequest
    redo: bool = False  # resume=false: edit again although an earlier upload succeeded
    generation: int = 0
