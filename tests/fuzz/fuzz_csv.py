"""Coverage-guided fuzzing of the CSV reader, with atheris (PyPI; not among the dev dependencies).

    python -m tests.fuzz.fuzz_csv -max_total_time=300 build/fuzz/csv

Inputs that reach new code are stored in the given folder, which starts with tests/corpus/csv. Every
input is a file. Whatever it contains, it yields rows or JobRejected with a sentence: the same rows
in other chunks and compressed, the same remaining rows from any row on, and requests that stay the
same in a queue.
"""

import gzip
import importlib
import sys
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # not installed for the type checker

with atheris.instrument_imports(include=["darkroom"], enable_loader_override=False):
    from darkroom.csv_input.reader import JobRow, JobRows, read_job_rows
    from darkroom.errors import JobRejected
    from darkroom.jobs import JobOptions
    from darkroom.rows import RowMessage, RowRequest

from tests.corpus.csv.binary import CSVS  # noqa: E402 - instrument darkroom first
from tests.fakes.csv_files import comparable, opened  # noqa: E402

_LONGEST_INPUT = 4_096  # bytes; limits on length have unit tests
_OPTIONS = (JobOptions(), JobOptions(filter_rows="1:3", quality="low", aspect_ratio="1:1"))


def read(data: bytes, chunk: int, options: JobOptions) -> tuple[JobRows | None, str | list[JobRow]]:
    try:
        rows = read_job_rows(opened(data, chunk), options)
        return rows, list(map(comparable, rows))
    except JobRejected as rejected:
        return None, str(rejected)


def check_file(data: bytes) -> None:
    options = _OPTIONS[len(data) % 2]
    rows, outcome = read(data, 4_096, options)
    if rows is None or isinstance(outcome, str):
        if not str(outcome).endswith("."):
            raise AssertionError(f"not a sentence: {outcome!r}")
        return
    if (again := read(data, 7, options)[1]) != outcome:
        raise AssertionError(f"other rows in other chunks: {outcome!r} {again!r}")
    if not data.startswith(b"\x1f\x8b") and read(gzip.compress(data, 1), 50, options)[1] != outcome:
        raise AssertionError("other rows when compressed")
    for number, row in enumerate(outcome):
        following = list(map(comparable, rows.from_row(number + 1)))
        if following != outcome[number + 1 :]:
            raise AssertionError(f"other rows from row {number + 1} on")
        if isinstance(row.request, RowRequest):
            check_message(row.key, row.request)


def check_message(key: str, request: RowRequest) -> None:
    message = RowMessage(job="j", run="r", row=0, key=key, base="s3://b/", request=request)
    if RowMessage.model_validate_json(message.model_dump_json().encode()) != message:
        raise AssertionError("the queue returns another request")


def write_seeds(folder: Path) -> None:
    """Write the corpus as the first inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in CSVS.items():
        data = make()
        if len(data) <= _LONGEST_INPUT:
            (folder / name).write_bytes(data)


def main(arguments: list[str]) -> None:
    for argument in arguments[1:]:
        if not argument.startswith("-"):
            write_seeds(Path(argument))
            break
    atheris.Setup([*arguments, f"-max_len={_LONGEST_INPUT}"], check_file)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
