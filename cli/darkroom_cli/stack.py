"""What the command uses of a deployed stack. darkroom_cli.aws implements it; tests replace it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from darkroom.ports import BatchLedger, EndpointStates, RowLedger, RunLedger

PARALLEL_TRANSFERS = 16  # uploads or downloads at a time


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs that the command uses, named as in the template."""

    InputBucketName: str
    ResultsBucketName: str
    EndpointsSecretArn: str
    RowsQueueUrl: str
    DeadLetterQueueUrl: str
    LostEventsQueueUrl: str
    LedgerTableName: str
    EndpointsTableName: str
    SplitterFunctionName: str
    EditorFunctionName: str
    SubmitterFunctionName: str
    CollectorFunctionName: str
    ReporterFunctionName: str


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An entry of a bucket's listing."""

    key: str
    size: int  # bytes
    etag: str  # without quotes; the MD5 of the body for a single-part upload without a KMS key
    modified: datetime


class Bucket(Protocol):
    @property
    def name(self) -> str: ...

    def list(self, prefix: str, *, shallow: bool = False) -> Iterator[StoredObject]:
        """Objects under `prefix`; `shallow` leaves out those in folders below it."""

    def metadata(self, key: str) -> Mapping[str, str] | None:
        """User metadata, or None if the object does not exist."""

    def put_file(
        self, key: str, path: Path, content_type: str, metadata: Mapping[str, str]
    ) -> str | None:
        """Upload a file of any size. Returns the version id if the bucket is versioned."""

    def fetch(self, key: str, target: Path) -> None:
        """Write the object's body to `target`, overwriting it."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A received message of the dead-letter queue, hidden from other consumers for a while."""

    id: str
    receipt: str
    body: str
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def job(self) -> str:
        """The row's job, "" if the body is not a row message."""
        try:
            body = json.loads(self.body)
        except ValueError:
            return ""
        return str(body.get("job", "")) if isinstance(body, dict) else ""

    @property
    def reason(self) -> str:
        """Why the row is dead, "" if SQS itself moved the message here."""
        return self.attributes.get("reason", "")


class DeadLetterQueue(Protocol):
    """The dead-letter queue, with the rows queue as the target of its messages."""

    def count(self) -> int:
        """Messages in the queue, hidden ones included; approximate, as SQS counts."""

    def receive(self) -> Sequence[DeadLetter]:
        """Up to 10 messages; none if the queue has no visible ones."""

    def requeue(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        """Send copies of up to 10 to the rows queue. Returns those it accepted."""

    def delete(self, letters: Sequence[DeadLetter]) -> None: ...

    def release(self, letters: Sequence[DeadLetter]) -> None:
        """Make messages visible again at once."""

    def move_all(self) -> Iterator[int] | None:
        """Have SQS move every message: yields the number moved so far. None if SQS cannot."""


@dataclass(frozen=True, slots=True)
class LostEvent:
    """An asynchronous event that its function failed to handle three times."""

    id: str
    receipt: str = field(repr=False)
    function: str  # its name; "" if the message is not of that kind
    payload: Mapping[str, Any]
    failed_at: str  # ISO 8601
    error: str


class LostEvents(Protocol):
    """The queue of lost events."""

    def receive(self) -> Sequence[LostEvent]:
        """Up to 10 events, hidden from other consumers; none if no visible ones are left."""

    def replay(self, event: LostEvent) -> None:
        """Start its function again. Raises CommandFailed if it is not one of the stack."""

    def delete(self, event: LostEvent) -> None: ...

    def release(self, events: Sequence[LostEvent]) -> None:
        """Make events visible again at once."""


class Ledger(RunLedger, RowLedger, Protocol):
    """Jobs, their runs and their rows."""


class Stack(Protocol):
    """A deployed stack."""

    @property
    def name(self) -> str: ...
    @property
    def outputs(self) -> Outputs: ...
    @property
    def workers(self) -> int | None:
        """Rows in work at once, from the stack's parameters; None without such parameters."""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def batches(self) -> BatchLedger: ...
    @property
    def input_bucket(self) -> Bucket: ...
    @property
    def results_bucket(self) -> Bucket: ...
    @property
    def dead_letters(self) -> DeadLetterQueue: ...
    @property
    def lost_events(self) -> LostEvents: ...
    @property
    def endpoint_states(self) -> EndpointStates: ...
    def queue_state(self, function: str) -> str:
        """Of the event source of `editor` or `submitter`, in words.

        Raises CommandFailed if it is disabled.
        """

    def invoke(self, function: str, event: Mapping[str, object]) -> str:
        """Run a function, such as `editor`, with the event; the detail of its success.

        Raises CommandFailed with what it failed with.
        """

    def read_secret(self) -> str | None:
        """The text of the endpoints secret, or None if it has never been written."""

    def secret_written_at(self) -> float | None:
        """When the secret was last written, in Unix seconds; None if it never was."""

    def write_secret(self, text: str) -> None: ...
