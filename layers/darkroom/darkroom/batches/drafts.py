"""Batches in the making: their items in the ledger and their files, until a provider has them.

A batch's item is written before its first row is marked as submitted, and its rows are marked
before the provider is called. A submitter that dies at any point leaves an item whose rows are
known; the collector finds the batch at the provider by its name, or queues the rows again.
"""

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

from darkroom.batches.endpoints import BatchAccess, BatchEndpoints, Choice
from darkroom.batches.provider_batch import BatchGroup
from darkroom.batches.returns import Answerless
from darkroom.calls import CallFailed, Outcome
from darkroom.editor.row_editor import RowCallContext
from darkroom.errors import Ineligible, ServiceUnavailable
from darkroom.ledger import batches
from darkroom.ledger.batches import BatchRecord, custom_id
from darkroom.ports import BatchLedger, Clock, Telemetry
from darkroom.rows import Submission

MIB = 1024 * 1024
MAX_FILE_BYTES = 200 * MIB  # what OpenAI accepts; an upload of more would take too long
MAX_DISK_BYTES = 1024 * MIB  # of all files together: half of the function's storage
LEASE_GRACE_SECONDS = 60.0  # after the invocation's time limit
CREATE_SECONDS = 240.0  # for the upload of a file and the start of its batch
MIN_CREATE_SECONDS = 30.0
# With its job's name and its request, a row's item must stay below the 400 KB of DynamoDB.
MAX_MESSAGE_BYTES = 300_000


@dataclass(slots=True)
class _Draft:
    record: BatchRecord
    access: BatchAccess
    group: BatchGroup
    file: BinaryIO
    rows: int = 0
    size: int = 0


@dataclass(slots=True)
class Drafts:
    """The drafts of one invocation at a time. `new_name` gives a batch a unique name."""

    ledger: BatchLedger
    endpoints: BatchEndpoints
    clock: Clock
    telemetry: Telemetry
    new_name: Callable[[], str]
    max_disk_bytes: int = MAX_DISK_BYTES
    _open: dict[tuple[str, str, BatchGroup], _Draft] = field(default_factory=dict)
    _started: set[str] = field(default_factory=set)  # jobs
    _failed: list[tuple[BatchRecord, Answerless]] = field(default_factory=list)
    _candidates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _owner: str = ""
    _deadline: float = 0.0

    def begin(
        self, candidates: Mapping[str, Sequence[str]], invocation: str, deadline: float
    ) -> None:
        """Start an invocation that ends by `deadline`; `candidates` are its row keys by job."""
        self.endpoints.draw()
        self._candidates, self._owner, self._deadline = candidates, invocation, deadline

    def add(self, context: RowCallContext, choice: Choice, warnings: Sequence[str]) -> None:
        """Put the row's request into the file of its batch, and mark the row as submitted.

        Raises Ineligible (too large for any batch), and what RowCallContext.submit does.
        """
        claim, plan, message = context.claim, choice.plan, context.message
        if len(message.model_dump_json().encode()) > MAX_MESSAGE_BYTES:
            raise Ineligible("its instruction and its image URLs are too long for a batch")
        name = custom_id(self._candidates[claim.job].index(claim.key))
        line = choice.access.provider.request_line(name, plan)
        limit = min(choice.access.provider.limits.max_file_bytes, MAX_FILE_BYTES)
        if len(line) > limit:
            raise Ineligible(f"its request is larger than the {limit // MIB} MiB of a batch's file")
        draft = self._draft_for(claim.job, claim.run, choice, len(line), limit)
        submission = Submission(
            message=message,
            model=plan.model,
            n=plan.n,
            size=plan.size,
            resolution=plan.resolution,
            quality=plan.quality,
            fallback=choice.fallback,
            warnings=tuple(dict.fromkeys((*warnings, *plan.warnings))),
            at=self.clock.now(),
        )
        draft.file.write(line)
        try:
            context.submit(choice.access.endpoint, plan, draft.record.name, submission)
        except BaseException:
            draft.file.seek(draft.size)
            draft.file.truncate()
            raise
        draft.rows, draft.size = draft.rows + 1, draft.size + len(line)

    def submit_all(self) -> set[str]:
        """Have the providers start all batches. One that fails is left to the collector.

        Returns the jobs of those that were started since the last time.
        """
        while self._open:
            _, draft = self._open.popitem()
            self._submit(draft)
        started, self._started = self._started, set()
        return started

    def take_failed(self) -> list[tuple[BatchRecord, Answerless]]:
        """Batches that no provider has, and why: their rows are to be given back."""
        failed, self._failed = self._failed, []
        return failed

    def close(self, batch: BatchRecord) -> None:
        """The rows of the batch were given back."""
        self.ledger.update(batch.name, lambda record: batches.closed(record, self._owner))

    def _draft_for(self, job: str, run: str, choice: Choice, size: int, limit: int) -> _Draft:
        """The batch that the request fits into; full ones are submitted."""
        key = (job, choice.access.endpoint.name, choice.group)
        draft = self._open.get(key)
        max_requests = choice.access.provider.limits.max_requests
        if draft is not None and (draft.rows >= max_requests or draft.size + size > limit):
            self._submit(self._open.pop(key))
            draft = None
        while self._open and size + sum(d.size for d in self._open.values()) > self.max_disk_bytes:
            largest = max(self._open, key=lambda k: self._open[k].size)
            self._submit(self._open.pop(largest))
        draft = self._open.get(key) or self._new_draft(job, run, choice)
        self._open[key] = draft
        return draft

    def _new_draft(self, job: str, run: str, choice: Choice) -> _Draft:
        access, now = choice.access, self.clock.now()
        record = BatchRecord(
            name=self.new_name(),
            job=job,
            run=run,
            endpoint=access.endpoint.name,
            key_id=access.key_id,
            model=choice.plan.model,
            created_at=now,
            owner=self._owner,
            lease_until=self._deadline + LEASE_GRACE_SECONDS,
        )
        self.ledger.create(record, self._candidates[job])
        file = tempfile.TemporaryFile()  # noqa: SIM115  # closed when it was submitted
        return _Draft(record, access, choice.group, file)

    def _submit(self, draft: _Draft) -> None:
        try:
            self._create(draft)
        except (
            ServiceUnavailable
        ) as error:  # AWS: the collector takes over when the lease has ended
            self.telemetry.warning("batch_left", batch=draft.record.name, error=str(error))
        except Exception:  # noqa: BLE001  # the other batches are submitted all the same
            self.telemetry.exception("batch_crashed", batch=draft.record.name)
        finally:
            draft.file.close()

    def _create(self, draft: _Draft) -> None:
        name = draft.record.name
        if not draft.rows:  # a row may be marked all the same: the ledger's answer was lost
            self._fail(draft, CallFailed(Outcome.UNAVAILABLE, "the batch has no requests"))
            return
        seconds = min(CREATE_SECONDS, self._deadline - self.clock.now())
        if seconds < MIN_CREATE_SECONDS:
            late = CallFailed(Outcome.UNAVAILABLE, "there was no time left to submit the batch")
            self._fail(draft, late)
            return
        draft.file.seek(0)
        try:
            created = draft.access.provider.create(name, draft.group, draft.file, seconds)
        except CallFailed as failed:
            self.endpoints.failed(draft.access, failed)
            if not failed.maybe_charged:
                self._fail(draft, failed)
                return
            # The provider may have it: the collector looks for its name.
            now = self.clock.now()
            self.ledger.update(name, lambda r: batches.end_lease(r, self._owner, until=now))
            return
        now = self.clock.now()
        submit = partial(batches.submitted, batch_id=created.id, rows=draft.rows, now=now)
        known = self.ledger.update(name, lambda r: submit(r, self._owner))
        self.endpoints.succeeded(draft.access.endpoint.name)
        self._started.add(draft.record.job)
        self.telemetry.info(
            "batch_submitted",
            batch=name,
            batch_id=created.id,
            job=draft.record.job,
            endpoint=draft.record.endpoint,
            rows=draft.rows,
            bytes=draft.size,
            lease_lost=known is None,
        )

    def _fail(self, draft: _Draft, failed: CallFailed) -> None:
        record, refund = draft.record, not failed.outcome.row_at_fault
        why = Answerless(record.name, record.endpoint, failed, refund_attempt=refund)
        self._failed.append((record, why))

    def discard(self) -> None:
        """Drafts of an invocation that failed: the collector queues their rows again."""
        for draft in self._open.values():
            with contextlib.suppress(OSError):
                draft.file.close()
        self._open.clear()
        self._failed.clear()
