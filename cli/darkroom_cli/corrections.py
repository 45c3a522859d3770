"""`darkroom submit failed.csv --job JOB`: puts corrected rows back into the CSV of their job."""

import csv
import posixpath
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from darkroom.csv_input.fields import normalize_name
from darkroom.csv_input.reader import CsvInput, JobRows
from darkroom.formatting import quoted
from darkroom_cli.error_messages import CommandFailed
from darkroom_cli.local_files import open_csv, open_for_writing, read_chunks
from darkroom_cli.row_names import describe_row
from darkroom_cli.session import Session
from darkroom_cli.status import Progress, find_run
from darkroom_cli.submit import Upload, submit

_NOT_KEPT = ("resume", "retry-failed")  # options of one upload, not of the job


def submit_corrections(session: Session, upload: Upload, job: str) -> Progress | None:
    """Submit the job's own CSV again, with the rows of `upload` in place of those they correct.

    Rows are found by `index`, which failed.csv gives for each. Other rows stay as they are, so that
    the job keeps their results, and so do the options of the last upload, unless they are given
    again. Raises CommandFailed if a row is not the job's.
    """
    bucket, source = session.stack.input_bucket, find_run(session, job).source
    stored = bucket.metadata(source.key)
    if stored is None:
        raise CommandFailed(
            f"{source.key} was not found in bucket {source.bucket}: submit the whole CSV again."
        )
    before: dict[str, object] = {
        name.replace("-", "_"): value for name, value in stored.items() if name not in _NOT_KEPT
    }
    options = before | dict(upload.options)
    with tempfile.TemporaryDirectory(prefix="darkroom-") as scratch:
        original = Path(scratch, f"original-{posixpath.basename(source.key)}")
        bucket.fetch(source.key, original)
        merged = Path(scratch, posixpath.basename(source.key))
        # With the options of that upload: a template's columns are part of the rows' identity.
        _merge(open_csv(original, before), _read(upload.path), merged, upload.path.name)
        to = posixpath.dirname(source.key)
        again = replace(upload, path=merged, to=to, options=options, images_beside=upload.path)
        return submit(session, again)


def _read(path: Path) -> dict[str, dict[str, str]]:
    """The corrected cells, by column, of each row by its index."""
    opened = CsvInput.open(partial(read_chunks, path))
    names = [normalize_name(name) for name in opened.header]
    index = next((names.index(name) for name in ("index", "id") if name in names), None)
    if index is None:
        raise CommandFailed(
            f"{path.name} has no column index, which says for each row which row of the job it "
            "replaces: start from the failed.csv beside the job's manifest."
        )
    rows = {}
    for number, cells in enumerate(opened.records()):
        if len(cells) <= index or not (key := cells[index].strip()):
            raise CommandFailed(f"{path.name}: {describe_row(number)} has no index.")
        rows[key] = dict(zip(opened.header, cells, strict=False))
    return rows


def _merge(job: JobRows, corrections: dict[str, dict[str, str]], path: Path, name: str) -> None:
    known = {normalize_name(column) for column in job.header}
    given = {column: None for cells in corrections.values() for column in cells}
    added = [c for c in given if normalize_name(c) not in known | {"index", "id"}]
    left = set(corrections)
    with open_for_writing(path) as text:
        writer = csv.writer(text, delimiter=job.csv.delimiter)
        writer.writerow((*job.header, *added))
        for row in job:
            left.discard(row.key)
            writer.writerow(_corrected(job.header, row.cells, corrections.get(row.key), added))
    if left:
        raise CommandFailed(
            f"{name}: the job has no row with the index {quoted(min(left))}. Keep the column index "
            "as it is in failed.csv."
        )


def _corrected(
    header: Sequence[str],
    cells: Sequence[str],
    correction: Mapping[str, str] | None,
    added: Sequence[str],
) -> list[str]:
    if correction is None:
        return [*cells, *("" for _ in added)]
    by_name = {normalize_name(column): cell for column, cell in correction.items()}
    kept = zip(header, cells, strict=True)
    return [
        *(by_name.get(normalize_name(column), cell) for column, cell in kept),
        *(correction.get(column, "") for column in added),
    ]
