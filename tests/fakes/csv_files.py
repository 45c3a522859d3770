"""CSVs in memory, read like an object in S3: from any offset, in chunks of any size."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from darkroom.csv_input.reader import JobRow, JobRows, read_job_rows
from darkroom.csv_input.text import OpenBytes
from darkroom.jobs import JobOptions
from darkroom.rows import RowRequest

HEADER = "image_url,instruction\n"


def opened(data: bytes, chunk: int = 4096) -> OpenBytes:
    """`chunk`: bytes per piece; the last one may be shorter."""

    def open_bytes(offset: int) -> Iterator[bytes]:
        for start in range(offset, len(data), chunk):
            yield data[start : start + chunk]

    return open_bytes


def job_rows(text: str | bytes, **options: object) -> JobRows:
    data = text.encode() if isinstance(text, str) else text
    return read_job_rows(opened(data), JobOptions.model_validate(options))


def rows_of(text: str | bytes, **options: object) -> list[JobRow]:
    rows = job_rows(text, **options)
    rows.check()
    return list(rows)


def comparable(row: JobRow) -> JobRow:
    """The row with its rejection as text: two RowRejected of the same text are not equal."""
    request: Any = rejection(row) or row.request
    return replace(row, request=request)


def rejection(row: JobRow) -> str:
    """Why the row is rejected; empty if it is not."""
    return "" if isinstance(row.request, RowRequest) else row.request.detail
