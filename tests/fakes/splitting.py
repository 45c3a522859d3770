"""The splitter with its bucket, ledger and queue in memory, and a crash at any of its calls."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from darkroom.errors import Reason, ServiceUnavailable
from darkroom.jobs import Run, Source
from darkroom.rows import Claim, NotSent, RowMessage, RowResult, RowState
from darkroom.splitter import BATCH_ROWS, CsvUploaded, Splitter
from tests.fakes.csv_files import opened
from tests.fakes.ledger import FakeBatchLedger, FakeLedger
from tests.fakes.services import FakeClock, FakeQueue, FakeTelemetry

JOB = "jobs/products"


class Crash(BaseException):
    """The process dies: nothing handles this."""


@dataclass
class CsvBucket:
    """CsvStore: versions of the CSV with their metadata."""

    versions: dict[str | None, tuple[bytes, Mapping[str, str]]] = field(default_factory=dict)

    def metadata(self, source: Source) -> Mapping[str, str]:
        return self.versions[source.version_id][1]

    def read(self, source: Source, offset: int = 0) -> Iterator[bytes]:
        return opened(self.versions[source.version_id][0], 1000)(offset)


@dataclass
class FaultInjector:
    """Counts calls of the ports, and fails the one with number `at`, before or after its effect."""

    at: int = -1
    after: bool = False
    error: Callable[[], BaseException] = Crash
    calls: int = 0

    def run(self, call: Callable[[], Any]) -> Any:
        number = self.calls
        self.calls += 1
        if number == self.at and not self.after:
            raise self.error()
        result = call()
        if number == self.at:
            raise self.error()
        return result


class _FaultyPort:
    def __init__(self, port: Any, faults: FaultInjector) -> None:
        self._port = port
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        return lambda *a, **k: self._faults.run(lambda: method(*a, **k))

    def __call__(self, *args: Any) -> Any:
        return self._faults.run(lambda: self._port(*args))


@dataclass
class SplitterHarness:
    clock: FakeClock = field(default_factory=FakeClock)
    bucket: CsvBucket = field(default_factory=CsvBucket)
    queue: FakeQueue = field(default_factory=FakeQueue)
    edited: int = 0  # messages of the queue
    telemetry: FakeTelemetry = field(default_factory=FakeTelemetry)
    faults: FaultInjector = field(default_factory=FaultInjector)
    invoked: list[CsvUploaded] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    progress: list[str] = field(default_factory=list)
    retention_seconds: float = inf
    checks: list[str] = field(default_factory=list)
    outcome: Callable[[RowMessage], RowResult] = lambda _: RowResult(RowState.SUCCEEDED)

    def __post_init__(self) -> None:
        self.ledger = FakeLedger(self.clock)
        self.batches = FakeBatchLedger(self.ledger)
        self.batch_queue = FakeQueue(self.clock)
        self._owners = itertools.count()

    def upload(self, text: str | bytes, key: str = f"{JOB}.csv", **options: str) -> CsvUploaded:
        number = len(self.bucket.versions) + 1
        data = text.encode() if isinstance(text, str) else text
        metadata = {name.replace("_", "-"): value for name, value in options.items()}
        self.bucket.versions[f"v{number}"] = (data, metadata)
        return CsvUploaded("in", key, f"v{number}", f"{number:016X}", len(data))

    def split(self, upload: CsvUploaded, remaining: Callable[[], float] = lambda: 900.0) -> None:
        """One invocation."""
        Splitter(
            runs=self.faulty(self.ledger),
            rows=self.faulty(self.ledger),
            queue=self.faulty(self.queue),
            batch_queue=self.faulty(self.batch_queue),
            store=self.bucket,
            clock=self.clock,
            telemetry=self.telemetry,
            continue_later=self.faulty(self.invoked.append),
            request_report=self.faulty(self.reports.append),
            show_progress=self.faulty(self.progress.append),
            retention_seconds=self.retention_seconds,
            check_complete=self.faulty(self.checks.append),
        ).split(upload, remaining)
        assert (self.queue.dead, self.queue.visibility) == ([], {}), "the splitter only sends"

    def faulty(self, port: Any) -> Any:
        return _FaultyPort(port, self.faults)

    def split_with_continuations(self, upload: CsvUploaded, batches: int) -> int:
        """Invoke the splitter for `batches` batches each, until it no longer invokes itself."""
        invocations = enough = 0
        pending = [upload]

        def remaining() -> float:
            return 900.0 if len(self.queue.sent) < enough else 0.0

        while pending:
            enough = len(self.queue.sent) + batches * BATCH_ROWS
            self.split(pending.pop(), remaining)
            invocations += 1
            pending, self.invoked = self.invoked, []
        return invocations

    def split_with_retries(self, upload: CsvUploaded) -> int:
        """Retry a minute after each crash, twice at most, as Lambda does. Returns the crashes."""
        for crashes in range(3):
            try:
                self.split(upload)
            except (Crash, ServiceUnavailable):
                self.clock.time += 60
            else:
                return crashes
        raise AssertionError("one crash must not fail three attempts")

    def edit(self, count: int | None = None) -> None:
        """Editors process the next `count` messages, or all."""
        messages = self.queue.sent[self.edited :][:count]
        self.edited += len(messages)
        for message in messages:
            run = self.ledger.current_run(message.job)
            claim = self.ledger.claim(message, run, f"editor-{next(self._owners)}", 90)
            if isinstance(claim, Claim):
                sent = self.ledger.mark_sent(claim, "gemini-main")
                assert not isinstance(sent, NotSent)
                self.ledger.settle(sent, self.outcome(message))

    def edit_csv(self, text: str, **options: str) -> None:
        """An earlier upload whose rows are all edited."""
        self.split(self.upload(text, **options))
        self.edit()
        self.queue.sent.clear()
        self.edited = 0

    @property
    def run(self) -> Run:
        return self.ledger.current_run(JOB)

    def is_settled(self) -> bool:
        return self.ledger.report_due(JOB)


def failing(reason: Reason, row: int) -> Callable[[RowMessage], RowResult]:
    failed, succeeded = RowResult(RowState.FAILED, reason), RowResult(RowState.SUCCEEDED)
    return lambda message: failed if message.row == row else succeeded
