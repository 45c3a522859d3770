"""Every CSV of tests/corpus/csv leads to the rows or the sentence that expected.yaml tells.

A string is the sentence the job fails with. A list holds the rows: `key {what it asks for}`, or
`key ! why it fails`, and warnings as `warning: …`.
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
        return [*map(line, rows), *(f"warning: {warning}" for warning in rows.warnings)]
    except JobRejected as error:
        return str(error)


def line(row: JobRow) -> str:
    if not isinstance(row.request, RowRequest):
        return f"{row.key} ! {row.request.detail}"
    asked = row.request.model_dump(exclude_defaults=True, mode="json")
    return f"{row.key} {json.dumps(asked, ensure_ascii=False)}"


def test_every_file_is_in_the_table_and_the_other_way_round() -> None:
    assert set(EXPECTED) == set(CSVS)
    assert len(CSVS) >= 40


@pytest.mark.parametrize("name", sorted(CSVS))
def test_a_csv_leads_to_what_the_table_tells(name: str) -> None:
    assert outcome(CSVS[name]()) == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(name for name in CSVS if "gzip" not in name))
def test_compressed_it_leads_to_the_same(name: str) -> None:
    data = CSVS[name]()
    assert outcome(gzip.compress(data)) == EXPECTED[name]
