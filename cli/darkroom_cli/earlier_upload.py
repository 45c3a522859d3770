"""What earlier uploads of a job have done already, compared with a CSV to upload now."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Self

from darkroom.csv_input.names import plain_names
from darkroom.csv_input.reader import JobRow, JobRows
from darkroom.errors import RowRejected
from darkroom.jobs import JobOptions, Run, RunState, Source
from darkroom.ports import RowLedger
from darkroom.rows import RowRecord, RowRequest, RowState
from darkroom.splitter import ResumeDecision, resume_decision
from darkroom_cli.session import Session

_BATCH_ROWS = 1_000
KEPT = (ResumeDecision.RESUMED, ResumeDecision.KEPT_FAILED)
_KEY_IN_NAME = re.compile(r"-[0-9a-f]{12}(_[0-9]+)?(?=\.[a-z]+$)")  # names.name_with_key


@dataclass(frozen=True, slots=True)
class EarlierUpload:
    """Decides like the splitter, without knowing how long results are kept."""

    ledger: RowLedger
    run: Run  # of the upload to come

    @classmethod
    def find(cls, session: Session, job: str, options: JobOptions) -> Self | None:
        """None if the job is new."""
        ledger = session.stack.ledger
        if ledger.current(job) is None:
            return None
        source, now = Source("", "", None), session.clock.now()
        return cls(ledger, Run(job, "", RunState.SPLITTING, source, options, now))

    def compare(
        self, rows: Iterable[JobRow]
    ) -> Iterator[tuple[JobRow, RowRecord | None, ResumeDecision | None]]:
        """Each row with its record, if it has one, and the decision; None: not to do."""
        for batch in batched(rows, _BATCH_ROWS, strict=False):
            records = self.ledger.get_many(self.run.job, [row.key for row in batch])
            for row in batch:
                record = records.get(row.key)
                yield row, record, self._decision(row, record)

    def _decision(self, row: JobRow, record: RowRecord | None) -> ResumeDecision | None:
        if row.skipped or isinstance(row.request, RowRejected):
            return None
        return resume_decision(record, row.request.fingerprint(), self.run)

    def edited_again(self, rows: JobRows) -> Iterator[JobRow]:
        """The rows to do whose image an earlier upload has made already.

        A row that has changed is recognised by its image's name: it is one that an earlier upload
        made, for a row that the CSV no longer has.
        """
        keys, new = set[str](), set[int]()
        for row, record, decision in self.compare(rows):
            keys.add(row.key)
            if decision is None or decision in KEPT:
                continue
            if record is not None and record.state is RowState.SUCCEEDED:
                yield row
            else:
                new.add(row.row)
        dropped = self._dropped_images(keys) if new else Counter[str]()
        for row in rows if dropped else ():
            if row.row in new and isinstance(row.request, RowRequest):
                names = _names(row, row.request)
                found = next((n for name in names if dropped[n := name.casefold()] > 0), None)
                if found is not None:
                    dropped[found] -= 1
                    yield row

    def _dropped_images(self, keys: set[str]) -> Counter[str]:
        """Names of the images of rows that the CSV no longer has."""
        prefix = f"{self.run.job}/images/"
        names = Counter[str]()
        for record in self.ledger.all(self.run.job):
            outputs = record.result.outputs if record.result else ()
            if record.key not in keys and record.state is RowState.SUCCEEDED and outputs:
                name = outputs[0].removeprefix(prefix)
                names[_KEY_IN_NAME.sub("", name).casefold()] += 1
        return names


def _names(row: JobRow, request: RowRequest) -> Sequence[str]:
    if request.output_name:
        return [request.output_name]
    return plain_names(row.row, row.key, request.images)
