"""Harness for tests of the command: a stack whose buckets, secret and queues are in memory."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from darkroom_cli.error_messages import CommandFailed
from darkroom_cli.main import app
from darkroom_cli.options import Target
from darkroom_cli.session import Wiring
from darkroom_cli.stack import DeadLetter, LostEvent, Outputs, Stack, StoredObject
from tests.fakes.endpoint_states import InMemoryEndpointStates
from tests.fakes.ledger import FakeBatchLedger, FakeLedger
from tests.fakes.services import FakeClock

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
UPLOADED_AT = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@dataclass
class FakeObject:
    body: bytes
    content_type: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    modified: datetime = UPLOADED_AT


@dataclass
class FakeBucket:
    name: str
    objects: dict[str, FakeObject] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)  # keys, in order
    fetches: list[str] = field(default_factory=list)
    encrypted: bool = False  # with a KMS key: ETags are not MD5s

    def list(self, prefix: str, *, shallow: bool = False) -> Iterator[StoredObject]:
        for key in sorted(self.objects):
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and not (shallow and "/" in name):
                stored = self.objects[key]
                etag = "opaque" if self.encrypted else hashlib.md5(stored.body).hexdigest()
                yield StoredObject(key, len(stored.body), etag, stored.modified)

    def metadata(self, key: str) -> Mapping[str, str] | None:
        return dict(self.objects[key].metadata) if key in self.objects else None

    def put_file(
        self, key: str, path: Path, content_type: str, metadata: Mapping[str, str]
    ) -> str | None:
        self.objects[key] = FakeObject(path.read_bytes(), content_type, dict(metadata))
        self.puts.append(key)
        return f"v{len(self.puts)}"

    def fetch(self, key: str, target: Path) -> None:
        self.fetches.append(key)
        target.write_bytes(self.objects[key].body)


@dataclass
class FakeDeadLetterQueue:
    """Implements DeadLetterQueue with SQS's visibility: received messages are hidden."""

    visible: list[DeadLetter] = field(default_factory=list)
    hidden: list[DeadLetter] = field(default_factory=list)
    batches: list[Sequence[DeadLetter]] = field(default_factory=list)  # sent to the rows queue
    has_move_task: bool = False
    refused: set[str] = field(default_factory=set)  # ids that the rows queue does not accept
    interrupt_after: int | None = None  # requests to the rows queue

    @property
    def rows_queue(self) -> list[DeadLetter]:
        return [letter for batch in self.batches for letter in batch]

    def count(self) -> int:
        return len(self.visible) + len(self.hidden)

    def receive(self) -> Sequence[DeadLetter]:
        batch, self.visible = self.visible[:10], self.visible[10:]
        self.hidden += batch
        return batch

    def requeue(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        if self.interrupt_after is not None:
            self.interrupt_after -= 1
            if self.interrupt_after < 0:
                raise KeyboardInterrupt
        accepted = [letter for letter in letters if letter.id not in self.refused]
        self.batches.append(accepted)
        return accepted

    def delete(self, letters: Sequence[DeadLetter]) -> None:
        self.hidden = [letter for letter in self.hidden if letter not in letters]

    def release(self, letters: Sequence[DeadLetter]) -> None:
        self.hidden = [letter for letter in self.hidden if letter not in letters]
        self.visible += letters

    def move_all(self) -> Iterator[int] | None:
        if not self.has_move_task:
            return None
        self.batches.append(self.visible)
        moved, self.visible = len(self.visible), []
        return iter([moved])


@dataclass
class FakeLostEvents:
    """Implements LostEvents with SQS's visibility."""

    visible: list[LostEvent] = field(default_factory=list)
    hidden: list[LostEvent] = field(default_factory=list)
    started: list[LostEvent] = field(default_factory=list)

    def receive(self) -> Sequence[LostEvent]:
        batch, self.visible = self.visible[:10], self.visible[10:]
        self.hidden += batch
        return batch

    def replay(self, event: LostEvent) -> None:
        if not event.function:
            raise CommandFailed(f"The event {event.id} is for no function")
        self.started.append(event)

    def delete(self, event: LostEvent) -> None:
        self.hidden.remove(event)

    def release(self, events: Sequence[LostEvent]) -> None:
        self.hidden = [event for event in self.hidden if event not in events]
        self.visible += events


@dataclass
class ScriptedClock(FakeClock):
    """`on_sleep` is called after each sleep: what happens while the command waits."""

    on_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.on_sleep()


@dataclass
class CliHarness:
    """The command as a user in a pipe runs it, with files in `folder`. Implements Stack."""

    folder: Path
    clock: ScriptedClock = field(default_factory=ScriptedClock)
    targets: list[Target] = field(default_factory=list)  # that the command connected to
    connection_error: Exception | None = None
    name: str = "darkroom"
    workers: int | None = 16
    outputs: Outputs = field(
        default_factory=lambda: Outputs(**{n: n for n in Outputs.__dataclass_fields__})
    )
    ledger: FakeLedger = field(init=False)
    batches: FakeBatchLedger = field(init=False)
    input_bucket: FakeBucket = field(default_factory=lambda: FakeBucket("in"))
    results_bucket: FakeBucket = field(default_factory=lambda: FakeBucket("out"))
    secret: str | None = None
    pushed_at: float | None = None  # when the command wrote the secret
    dead_letters: FakeDeadLetterQueue = field(default_factory=FakeDeadLetterQueue)
    lost_events: FakeLostEvents = field(default_factory=FakeLostEvents)
    failing: dict[str, str] = field(
        default_factory=dict
    )  # error by function, or "editor queue" for the state of its queue
    invoked: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)  # URLs, in the browser
    endpoint_states: InMemoryEndpointStates = field(default_factory=InMemoryEndpointStates)

    def __post_init__(self) -> None:
        self.ledger = FakeLedger(self.clock)
        self.batches = FakeBatchLedger(self.ledger)

    def connect(self, target: Target) -> Stack:
        self.targets.append(target)
        if self.connection_error:
            raise self.connection_error
        return self

    def queue_state(self, function: str) -> str:
        if f"{function} queue" in self.failing:
            raise CommandFailed(self.failing[f"{function} queue"])
        return "its event source is enabled"

    def invoke(self, function: str, event: Mapping[str, object]) -> str:
        self.invoked.append((function, event))
        if function in self.failing:
            raise CommandFailed(self.failing[function])
        return "version 1 runs"

    def read_secret(self) -> str | None:
        return self.secret

    def secret_written_at(self) -> float | None:
        return self.pushed_at

    def write_secret(self, text: str) -> None:
        self.secret, self.pushed_at = text, self.clock.now()

    def run(self, *arguments: object, stdin: str | None = None) -> Result:
        wiring = Wiring(self.connect, self.clock, self.opened.append)
        return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, obj=wiring)

    def succeed(self, *arguments: object, stdin: str | None = None) -> Result:
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.stderr
        return result

    def json(self, *arguments: object) -> Any:
        """What a successful command prints with --json."""
        return json.loads(self.succeed(*arguments, "--json").stdout)

    def error(self, *arguments: object, exit_code: int = 1) -> str:
        """The one line that a failing command prints, on standard error."""
        result = self.run(*arguments)
        assert (result.exit_code, result.stdout) == (exit_code, ""), result.stderr
        (line,) = result.stderr.splitlines()
        return line

    def push_endpoints(self, *endpoints: dict[str, Any]) -> None:
        self.secret = json.dumps({"endpoints": endpoints})

    def write(self, name: str, content: bytes | str = b"image") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def image(self, name: str, content: bytes = b"") -> Path:
        """A file that begins as a PNG does; that much is checked before it is uploaded."""
        return self.write(name, PNG_SIGNATURE + content)

    def csv(self, *rows: str, name: str = "p.csv", header: str = "image_url,instruction") -> Path:
        return self.write(name, "".join(f"{line}\n" for line in (header, *rows)))
