"""A CSV on this machine: what its rows name, and a copy with other image references."""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from darkroom.csv_input.reader import JobRows, read_job_rows
from darkroom.csv_input.values import parse_images
from darkroom.errors import RowRejected
from darkroom.jobs import JobOptions
from darkroom_cli.sentences import UsageMistake

_PIECE = 1 << 20
_SUFFIXES = (".csv", ".csv.gz")


def object_name(path: Path) -> str:
    """The name to upload a CSV under. Raises UsageMistake for what would start no job."""
    for suffix in reversed(_SUFFIXES):
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)] + suffix
    raise UsageMistake(f"{path}: the name must end in .csv or .csv.gz, or no job would start.")


def open_rows(path: Path, options: JobOptions) -> JobRows:
    """Read the header. Raises JobRejected with the sentence that the job would end with."""

    def open_bytes(offset: int) -> Iterator[bytes]:
        with path.open("rb") as body:
            body.seek(offset)
            while piece := body.read(_PIECE):
                yield piece

    return read_job_rows(open_bytes, options)


@dataclass(slots=True)
class Survey:
    """What a job's rows name. `invalid`: the sentence for each row that will fail, first ones."""

    rows: int = 0
    skipped: int = 0
    invalid: int = 0
    first_invalid: list[str] = field(default_factory=list)
    references: dict[str, None] = field(default_factory=dict)  # in order, each once


def survey(rows: JobRows, show: int = 3) -> Survey:
    """Read the whole file. Raises JobRejected where it cannot be read, or has no rows to do."""
    for _ in rows.check():
        pass
    found = Survey()
    for row in rows:
        found.rows += 1
        if row.skipped:
            found.skipped += 1
        elif isinstance(row.request, RowRejected):
            found.invalid += 1
            if len(found.first_invalid) < show:
                found.first_invalid.append(f"row {row.row}: {row.request.detail}")
        else:
            found.references.update(dict.fromkeys(row.request.images))
            if row.request.mask:
                found.references[row.request.mask] = None
    return found


def write_renamed(rows: JobRows, renamed: Mapping[str, str], target: Path) -> None:
    """The same CSV, in UTF-8, with image references replaced; all other cells stay."""
    delimiter = rows.csv.delimiter
    with _open_text(target) as text:
        writer = csv.writer(text, delimiter=delimiter)
        writer.writerow(rows.csv.header)
        for record in rows.csv.records():
            writer.writerow(_replaced(rows, record.cells, renamed))


def _open_text(target: Path) -> IO[str]:
    if target.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(target, "wb"), encoding="utf-8", newline="")
    return target.open("w", encoding="utf-8", newline="")


def _replaced(rows: JobRows, cells: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    changed = list(cells)
    images = rows.columns.positions.get("images")
    if images is not None and images < len(cells):
        changed[images] = _replaced_list(cells[images], renamed)
    mask = rows.columns.positions.get("mask")
    if mask is not None and mask < len(cells):
        changed[mask] = renamed.get(cells[mask].strip(), cells[mask])
    return changed


def _replaced_list(cell: str, renamed: Mapping[str, str]) -> str:
    try:
        references = parse_images(cell.strip())
    except ValueError:
        return cell  # the row will fail with this problem
    if not any(reference in renamed for reference in references):
        return cell
    after = [renamed.get(reference, reference) for reference in references]
    return json.dumps(after, ensure_ascii=False)
