"""A stack for tests of the command: buckets, secret and dead letters in memory."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from typer.testing import CliRunner, Result

from darkroom.endpoint_state import EndpointState
from darkroom_cli.main import app
from darkroom_cli.ports import DeadLetter, Outputs, StoredObject
from darkroom_cli.session import Wiring
from tests.fakes.ledger import FakeLedger
from tests.fakes.services import FakeClock

MOMENT = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@dataclass
class Held:
    body: bytes
    content_type: str
    metadata: dict[str, str]
    modified: datetime = MOMENT


@dataclass
class FakeBucket:
    """ports.Bucket. `puts` and `fetches` keep the keys in order; `opaque` hides the MD5s (KMS)."""

    name: str
    objects: dict[str, Held] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    fetches: list[str] = field(default_factory=list)
    opaque: bool = False

    def list(self, prefix: str, *, shallow: bool = False) -> Iterator[StoredObject]:
        for key in sorted(self.objects):
            rest = key.removeprefix(prefix)
            if key.startswith(prefix) and not (shallow and "/" in rest):
                held = self.objects[key]
                etag = "opaque" if self.opaque else hashlib.md5(held.body).hexdigest()
                yield StoredObject(key, len(held.body), etag, held.modified)

    def metadata(self, key: str) -> Mapping[str, str] | None:
        return dict(self.objects[key].metadata) if key in self.objects else None

    def put_file(
        self, key: str, path: Path, content_type: str, metadata: Mapping[str, str]
    ) -> str | None:
        self.objects[key] = Held(path.read_bytes(), content_type, dict(metadata))
        self.puts.append(key)
        return f"v{len(self.puts)}"

    def fetch(self, key: str, target: Path) -> None:
        self.fetches.append(key)
        target.write_bytes(self.objects[key].body)


@dataclass
class FakeSecret:
    text: str | None = None

    def read(self) -> str | None:
        return self.text

    def write(self, text: str) -> None:
        self.text = text


@dataclass
class FakeDeadLetters:
    """ports.DeadLetters with SQS's visibility: a received message is hidden until released."""

    waiting: list[DeadLetter] = field(default_factory=list)
    hidden: list[DeadLetter] = field(default_factory=list)
    rows_queue: list[DeadLetter] = field(default_factory=list)
    moves: bool = False  # whether the queue can move all by itself
    refused: set[str] = field(default_factory=set)  # ids the rows queue does not take
    break_after: int | None = None  # sends until the network breaks

    def count(self) -> int:
        return len(self.waiting) + len(self.hidden)

    def receive(self) -> Sequence[DeadLetter]:
        batch, self.waiting = self.waiting[:10], self.waiting[10:]
        self.hidden += batch
        return batch

    def send_back(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        if self.break_after is not None:
            self.break_after -= 1
            if self.break_after < 0:
                raise KeyboardInterrupt
        taken = [letter for letter in letters if letter.id not in self.refused]
        self.rows_queue += taken
        return taken

    def delete(self, letters: Sequence[DeadLetter]) -> None:
        self.hidden = [letter for letter in self.hidden if letter not in letters]

    def release(self, letters: Sequence[DeadLetter]) -> None:
        self.hidden = [letter for letter in self.hidden if letter not in letters]
        self.waiting += letters

    def move_all(self) -> Iterator[int] | None:
        if not self.moves:
            return None
        self.rows_queue += self.waiting
        moved, self.waiting = len(self.waiting), []
        return iter([moved])


@dataclass
class FakeStates:
    states: dict[str, EndpointState] = field(default_factory=dict)

    def read(self, endpoint: str) -> EndpointState:
        return self.states.get(endpoint, EndpointState())


@dataclass
class FakeStack:
    """darkroom_cli.ports.Stack."""

    clock: FakeClock
    name: str = "darkroom"
    workers: int | None = 16
    outputs: Outputs = field(
        default_factory=lambda: Outputs(**{n: n for n in Outputs.__dataclass_fields__})
    )
    ledger: FakeLedger = field(init=False)
    inputs: FakeBucket = field(default_factory=lambda: FakeBucket("in"))
    results: FakeBucket = field(default_factory=lambda: FakeBucket("out"))
    secret: FakeSecret = field(default_factory=FakeSecret)
    dead_letters: FakeDeadLetters = field(default_factory=FakeDeadLetters)
    endpoint_states: FakeStates = field(default_factory=FakeStates)

    def __post_init__(self) -> None:
        self.ledger = FakeLedger(self.clock)

    @property
    def runs(self) -> FakeLedger:
        return self.ledger

    @property
    def rows(self) -> FakeLedger:
        return self.ledger


def run(stack: FakeStack, *arguments: object, typed: str | None = None) -> Result:
    """The command as a user in a pipe sees it."""
    wiring = Wiring(connect=lambda _: stack, clock=stack.clock)
    return CliRunner().invoke(app, [str(a) for a in arguments], input=typed, obj=wiring)
