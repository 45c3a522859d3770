"""Small fakes of the other ports: time, telemetry, the queue, the results bucket."""

import hashlib
import heapq
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from darkroom.errors import ServiceUnavailable, UploadLost
from darkroom.metrics import Metric
from darkroom.ports import MIN_PART_BYTES, Clock
from darkroom.rows import Received, RowMessage


def fail_once(port: object, method: str) -> None:
    """Make the next call of a port's method raise ServiceUnavailable."""
    original = getattr(port, method)

    def fail(*_: object, **__: object) -> None:
        setattr(port, method, original)
        raise ServiceUnavailable("throttled")

    setattr(port, method, fail)


@dataclass
class FakeClock:
    """Time passes only by `sleep`, or when a test sets it."""

    time: float = 1_000_000.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


@dataclass
class FakeTelemetry:
    """Records metrics and events. `metrics` sums the values by name."""

    metrics: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_endpoint: dict[tuple[str, str | None], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    events: list[tuple[str, str, dict[str, object]]] = field(default_factory=list)
    on_flush: Callable[[], object] = lambda: None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def metric(self, metric: Metric, value: float = 1, *, endpoint: str | None = None) -> None:
        with self.lock:
            self.metrics[metric] += value
            self.by_endpoint[metric, endpoint] += value

    def info(self, event: str, **fields: object) -> None:
        self.events.append(("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.events.append(("warning", event, fields))

    def error(self, event: str, **fields: object) -> None:
        self.events.append(("error", event, fields))

    def flush(self) -> None:
        self.on_flush()

    def exception(self, event: str, **fields: object) -> None:
        self.events.append(("exception", event, fields))

    @contextmanager
    def bound(self, **fields: object) -> Iterator[None]:
        yield

    def logged(self, level: str) -> list[str]:
        return [event for at, event, _ in self.events if at == level]


@dataclass
class _Queued:
    message_id: str
    body: str
    sent_at: float
    visible_at: float
    receives: int = 0
    receipt: str = ""


@dataclass
class FakeQueue:
    """RowQueue in memory. Also records what it is called with.

    The message that has been visible for longest is received first, by any of the requests that
    wait: SQS promises no order of these. A receipt is valid until the message is received again.
    `requests` counts requests as SQS bills them.
    """

    clock: Clock = field(default_factory=FakeClock)
    sent: list[RowMessage] = field(default_factory=list)
    dead: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    visibility: dict[str, int] = field(default_factory=dict)  # seconds, by receipt
    deleted: list[str] = field(default_factory=list)  # receipts
    messages: dict[str, _Queued] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    poll_seconds: float = 0.25
    request_seconds: float = 0.0  # of a receive
    extra_backlog: int = 0  # messages that others have received
    rng: random.Random = field(default_factory=lambda: random.Random(5), repr=False)
    _by_receipt: dict[str, _Queued] = field(default_factory=dict)
    _order: list[tuple[float, int, str]] = field(default_factory=list)  # heap of message ids
    _numbers: Iterator[int] = field(default_factory=count, repr=False)

    def send(self, messages: Sequence[RowMessage], *, delay_seconds: int = 0) -> None:
        self.requests["send"] += -(-len(messages) // 10)
        self.sent.extend(messages)
        now = self.clock.now()
        for message in messages:
            message_id = f"message-{next(self._numbers)}"
            body = message.model_dump_json(exclude_defaults=True)
            queued = self.messages[message_id] = _Queued(message_id, body, now, 0.0)
            self._hide(queued, now + delay_seconds)

    def receive(self, limit: int, *, hide_seconds: int, wait_seconds: int) -> Sequence[Received]:
        self.requests["receive"] += 1
        until = self.clock.now() + wait_seconds
        while True:
            now = self.clock.now()
            taken = list[Received]()
            while len(taken) < min(limit, 10) and (message := self._next_visible(now)):
                taken.append(self._take(message, now + hide_seconds))
            if taken or now >= until:
                if self.request_seconds:
                    self.clock.sleep(self.request_seconds)
                return taken
            pause = self.poll_seconds * self.rng.uniform(0.5, 1.5)
            self.clock.sleep(min(pause, until - now))

    def dead_letter(self, body: str, attributes: Mapping[str, str]) -> None:
        self.requests["dead_letter"] += 1
        self.dead.append((body, dict(attributes)))

    def extend(self, receipts: Sequence[str], seconds: int) -> None:
        self.requests["extend"] += -(-len(receipts) // 10)
        self.visibility.update(dict.fromkeys(receipts, seconds))
        for receipt in receipts:
            if receipt in self._by_receipt:
                self._hide(self._by_receipt[receipt], self.clock.now() + seconds)

    def delete(self, receipts: Sequence[str]) -> None:
        self.requests["delete"] += -(-len(receipts) // 10)
        self.deleted.extend(receipts)
        for receipt in receipts:
            if message := self._by_receipt.pop(receipt, None):
                del self.messages[message.message_id]

    def backlog(self) -> int:
        self.requests["backlog"] += 1
        return len(self.messages) + self.extra_backlog

    def has_visible(self) -> bool:
        message = self._next_visible(self.clock.now())
        if message is not None:
            self._hide(message, message.visible_at)
        return message is not None

    def _hide(self, message: _Queued, until: float) -> None:
        message.visible_at = until
        heapq.heappush(self._order, (until, next(self._numbers), message.message_id))

    def _next_visible(self, now: float) -> _Queued | None:
        while self._order and self._order[0][0] <= now:
            visible_at, _, message_id = heapq.heappop(self._order)
            message = self.messages.get(message_id)
            if message is not None and message.visible_at == visible_at:
                return message
        return None

    def _take(self, message: _Queued, visible_at: float) -> Received:
        self._by_receipt.pop(message.receipt, None)
        message.receives += 1
        message.receipt = f"{message.message_id}/{message.receives}"
        self._by_receipt[message.receipt] = message
        self._hide(message, visible_at)
        return Received(
            message.message_id, message.receipt, message.body, message.receives, message.sent_at
        )


@dataclass
class FakeUpload:
    key: str
    content_type: str
    metadata: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


@dataclass
class FakeStore:
    """ObjectStore in a dict: `objects` holds body, content type and metadata by key."""

    objects: dict[str, tuple[bytes, str, dict[str, str]]] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)  # keys
    failures: list[Exception] = field(default_factory=list)  # of the next puts
    refused: set[str] = field(default_factory=set)  # keys that cannot be written

    uploads: dict[str, FakeUpload] = field(default_factory=dict)  # unfinished, by id
    _numbers: Iterator[int] = field(default_factory=count, repr=False)

    def fail(self, error: Exception, *, times: int) -> None:
        """Raise `error` in the next puts."""
        self.failures = [error] * times

    def put(
        self,
        key: str,
        body: bytes,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
        *,
        only_if_new: bool = False,
        replaces: str | None = None,
    ) -> bool:
        self.puts.append(key)
        if self.failures:
            raise self.failures.pop()
        if key in self.refused:
            raise ValueError(f"{key} cannot be written")
        stored = self.metadata(key)
        if only_if_new and stored is not None:
            return False
        if replaces is not None and (stored is None or stored["etag"] != replaces):
            return False
        self.objects[key] = (body, content_type, dict(metadata or {}))
        return True

    def create_upload(
        self, key: str, content_type: str, metadata: Mapping[str, str] | None = None
    ) -> str:
        upload = f"upload-{next(self._numbers)}"
        self.uploads[upload] = FakeUpload(key, content_type, dict(metadata or {}))
        return upload

    def upload_part(self, key: str, upload: str, number: int, body: bytes) -> str:
        if upload not in self.uploads:
            raise UploadLost(f"the upload of {key} is gone")
        self.uploads[upload].parts[number] = body
        return _etag(body)

    def complete_upload(
        self, key: str, upload: str, etags: Sequence[str], *, replaces: str | None
    ) -> bool:
        found = self.uploads.get(upload)
        if found is None:
            return False
        numbers = range(1, len(etags) + 1)
        bodies = [found.parts[number] for number in numbers]
        assert [_etag(body) for body in bodies] == list(etags)
        assert bodies, "an upload has at least one part"
        assert all(len(body) >= MIN_PART_BYTES for body in bodies[:-1])
        body, condition = b"".join(bodies), {"only_if_new": replaces is None, "replaces": replaces}
        if not self.put(key, body, found.content_type, found.metadata, **condition):  # type: ignore[arg-type]  # mixed types
            return False
        del self.uploads[upload]
        return True

    def abort_upload(self, key: str, upload: str) -> None:
        self.uploads.pop(upload, None)

    def metadata(self, key: str) -> Mapping[str, str] | None:
        if key not in self.objects:
            return None
        body, _, metadata = self.objects[key]
        return {**metadata, "etag": _etag(body)}

    def get(self, key: str) -> bytes | None:
        return self.objects[key][0] if key in self.objects else None
