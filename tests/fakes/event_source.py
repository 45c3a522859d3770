"""Lambda's event source mapping of a queue on the virtual clock, and what it bills.

Sources: "Configuring scaling behavior for SQS event source mappings" in the Lambda developer guide:
long polling, five batches at first, up to 300 more pollers a minute while messages are available,
no more invocations at once than MaximumConcurrency. "Lambda pricing": duration is billed by the
millisecond, initialisation included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from darkroom.editor.batch import EditorBatch
from darkroom.rows import Received
from tests.fakes.services import FakeQueue
from tests.fakes.virtual_time import VirtualTime

FIRST_POLLERS = 5
POLLERS_PER_SECOND = 5
POLL_SECONDS = 20
VISIBILITY_SECONDS = 5400
TIMEOUT_SECONDS = 900.0
RESERVE_SECONDS = 20.0  # as in the function's handler
COLD_START_SECONDS = 1.5
OVERHEAD_SECONDS = 0.1  # of an invocation, with its requests of SQS and DynamoDB


@dataclass
class EventSource:
    """Polls until `is_done`. `environment` makes the editor of a new execution environment."""

    time: VirtualTime
    queue: FakeQueue
    environment: Callable[[int], EditorBatch]
    batch_size: int
    max_concurrency: int
    is_done: Callable[[], bool]
    billed_seconds: float = 0.0
    invocations: int = 0
    cold_starts: int = 0
    most_at_once: int = 0
    _idle: list[EditorBatch] = field(default_factory=list)
    _pollers: int = 0
    _running: int = 0

    def start(self) -> None:
        """Start its workers on the virtual clock."""
        for _ in range(min(FIRST_POLLERS, self.max_concurrency)):
            self._start_poller(stays=True)
        self.time.start(self._scale)

    def _start_poller(self, *, stays: bool) -> None:
        self._pollers += 1
        self.time.start(lambda: self._poll(stays=stays))

    def _scale(self) -> None:
        while not self.is_done():
            self.time.sleep(1.0)
            if self._running == self._pollers and self.queue.has_visible():
                more = min(POLLERS_PER_SECOND, self.max_concurrency - self._pollers)
                for _ in range(more):
                    self._start_poller(stays=False)

    def _poll(self, *, stays: bool) -> None:
        while not self.is_done():
            wait = POLL_SECONDS if stays else 1
            received = self.queue.receive(
                self.batch_size, hide_seconds=VISIBILITY_SECONDS, wait_seconds=wait
            )
            if received:
                kept = self._invoke(received)
                self.queue.delete([r.receipt for r in received if r.message_id not in kept])
            elif not stays:
                break
        self._pollers -= 1

    def _invoke(self, received: Sequence[Received]) -> list[str]:
        began_at = self.time.at
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        self.invocations += 1
        if self._idle:
            editor = self._idle.pop()
        else:
            editor = self.environment(self.cold_starts)
            self.cold_starts += 1
            self.time.sleep(COLD_START_SECONDS)
        self.time.sleep(OVERHEAD_SECONDS)
        deadline = began_at + TIMEOUT_SECONDS - RESERVE_SECONDS
        kept = editor.handle(received, deadline, f"invocation-{self.invocations}")
        self._idle.append(editor)
        self._running -= 1
        self.billed_seconds += self.time.at - began_at
        return kept
