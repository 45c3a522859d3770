"""What the command needs of a deployed stack, as small Protocols; aws.py implements them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from darkroom.endpoint_state import EndpointState
from darkroom.ports import RowLedger, RunLedger


@dataclass(frozen=True, slots=True)
class Outputs:
    """The stack's outputs, named as in the template."""

    InputBucketName: str
    ResultsBucketName: str
    EndpointsSecretArn: str
    RowsQueueUrl: str
    DeadLetterQueueUrl: str
    LedgerTableName: str
    EndpointsTableName: str
    SplitterFunctionName: str
    EditorFunctionName: str
    ReporterFunctionName: str
    JobsTopicArn: str
    DashboardName: str


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An entry of a bucket's listing."""

    key: str
    size: int  # bytes
    etag: str  # without quotes; the MD5 of the body for a plain upload without a KMS key
    modified: datetime


class Bucket(Protocol):
    @property
    def name(self) -> str: ...

    def list(self, prefix: str, *, shallow: bool = False) -> Iterator[StoredObject]:
        """Objects under `prefix`; `shallow` leaves out what lies in folders below it."""

    def metadata(self, key: str) -> Mapping[str, str] | None:
        """User metadata, or None when there is no such object."""

    def put_file(
        self, key: str, path: Path, content_type: str, metadata: Mapping[str, str]
    ) -> str | None:
        """Upload a file of any size; returns the version id where the bucket keeps versions."""

    def fetch(self, key: str, target: Path) -> None:
        """Write the object's body to `target`, overwriting it."""


class SecretStore(Protocol):
    def read(self) -> str | None:
        """The secret's text, or None when it was never written."""

    def write(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message in the dead-letter queue, received and invisible to others for a while."""

    id: str
    receipt: str
    body: str
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def job(self) -> str:
        """The row's job, "" where the body is no row message."""
        try:
            body = json.loads(self.body)
        except ValueError:
            return ""
        return str(body.get("job", "")) if isinstance(body, dict) else ""

    @property
    def reason(self) -> str:
        """Why it died, "" where SQS itself moved it here."""
        return self.attributes.get("reason", "")


class DeadLetters(Protocol):
    """The dead-letter queue, and the way back to the rows queue."""

    def count(self) -> int:
        """Messages waiting; approximate, as SQS counts."""

    def receive(self) -> Sequence[DeadLetter]:
        """Up to 10 messages; none when the queue is (for now) empty."""

    def send_back(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        """Up to 10 copies into the rows queue; returns those the queue accepted."""

    def delete(self, letters: Sequence[DeadLetter]) -> None: ...

    def release(self, letters: Sequence[DeadLetter]) -> None:
        """Make messages visible again at once."""

    def move_all(self) -> Iterator[int] | None:
        """Let SQS move everything: yields messages moved so far; None where SQS cannot."""


class EndpointStates(Protocol):
    def read(self, endpoint: str) -> EndpointState:
        """Its default for an endpoint never used."""


class Stack(Protocol):
    """A deployed stack. Clients are made when first used."""

    @property
    def name(self) -> str: ...
    @property
    def outputs(self) -> Outputs: ...
    @property
    def workers(self) -> int | None:
        """Rows in work at once, from the stack's parameters; None where they do not say."""

    @property
    def runs(self) -> RunLedger: ...
    @property
    def rows(self) -> RowLedger: ...
    @property
    def inputs(self) -> Bucket: ...
    @property
    def results(self) -> Bucket: ...
    @property
    def secret(self) -> SecretStore: ...
    @property
    def dead_letters(self) -> DeadLetters: ...
    @property
    def endpoint_states(self) -> EndpointStates: ...
