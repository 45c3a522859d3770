"""Every CSV of tests/corpus/csv yields the rows, or the error, listed in expected.yaml.

A string is the reason that the job fails with. A list contains the rows: `key {request}` or
`key ! reason`, and warnings as `warning: …`.
"""

import gzip
import json
from pathlib import Path

import pytest
import yaml

from darkroom.csv_input.reader import JobRow
from darkroom.errors import JobRejected
from darkroom.rows import RowRequest
from tests.corpus.csv.binary import FILES
from tests.fakes.csv_files import job_rows

CORPUS = Path(__file__).parent.parent / "corpus" / "csv"
EXPECTED = yaml.safe_load((CORPUS / "expected.yaml").read_text())
CSVS = {path.stem: path.read_bytes for path in sorted(CORPUS.glob("*.csv"))} | dict(FILES)


def outcome(data: bytes) -> str | list[str]:
    try:
        rows = job_rows(data)
        for _ in rows.check():
            pass
        return [*map(line, rows), *(f"warning: {warning}" for warning in rows.columns.warnings)]
    except JobRejected as error:
        return str(error)


def line(row: JobRow) -> str:
    if not isinstance(row.request, RowRequest):
        return f"{row.key} ! {row.request.detail}"
    request = row.request.model_dump(exclude_defaults=True, mode="json")
    return f"{row.key} {json.dumps(request, ensure_ascii=False)}"


def test_expected_yaml_lists_exactly_the_files_of_the_corpus() -> None:
    assert set(EXPECTED) == set(CSVS)
    assert len(CSVS) >= 40


@pytest.mark.parametrize("name", sorted(CSVS))
def test_a_csv_yields_the_expected_rows_or_error_also_when_compressed(name: str) -> None:
    data = CSVS[name]()
    assert outcome(data) == EXPECTED[name]
    if "gzip" not in name:
        assert outcome(gzip.compress(data)) == EXPECTED[name]
