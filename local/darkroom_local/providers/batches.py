"""Simulated batches: files on disk, and batches that answer their requests after a while.

The formats of the two APIs are in `openai_batches` and `gemini_batches`.
"""

import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from darkroom_local.providers.api import ImageRequest
from darkroom_local.providers.config import BatchFault, BatchFaultKind, SimulatedBatches
from darkroom_local.providers.endpoint import EndpointState
from darkroom_local.providers.http import Request, Response

type AnswerRequest = Callable[[Request, str], Awaitable[tuple[Response, ImageRequest | None]]]
_YIELD_EVERY = 25  # requests, so that other connections are served
_TRANSIENT = Response.json(
    {"error": {"code": 500, "message": "The server had an error.", "status": "INTERNAL"}}, 500
)


@dataclass
class StoredFile:
    id: str
    path: Path
    name: str
    purpose: str
    created: float = field(default_factory=time.time)
    expected: int = -1  # bytes announced for an upload in pieces

    @property
    def size(self) -> int:
        return self.path.stat().st_size


@dataclass
class SimulatedBatch:
    """`state` is one of OpenAI's; Gemini's are derived from it."""

    id: str
    name: str
    operation: str  # OpenAI: the path of the requests; Gemini: the model
    input: StoredFile
    created: float = field(default_factory=time.time)
    metadata: dict[str, str] = field(default_factory=dict)
    state: str = "validating"
    errors: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0
    succeeded: int = 0
    failed: int = 0
    output: StoredFile | None = None
    error_output: StoredFile | None = None
    faults: dict[BatchFaultKind, BatchFault] = field(default_factory=dict)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        return self.state in ("completed", "failed", "expired", "cancelled")


class BatchFormat(Protocol):
    """What differs between the two APIs when a batch is processed."""

    error_file: bool  # failures are in a file of their own
    keeps_order: bool
    limits_when_created: bool  # the limit of what is enqueued, else when the file is validated

    def validate(self, batch: SimulatedBatch) -> list[dict[str, Any]]:
        """Why the batch fails as a whole; sets its number of requests."""

    def request(self, line: dict[str, Any], batch: SimulatedBatch) -> tuple[Request, str]:
        """The single call of a line, and its path."""

    def answer(self, line: dict[str, Any], response: Response) -> dict[str, Any]: ...

    @property
    def unanswered(self) -> Callable[[dict[str, Any], str], dict[str, Any]] | None:
        """The result of a line that a batch in this state, expired or cancelled, did not process.

        None: such a batch has no results at all.
        """


class BatchStore:
    """The files and batches of one endpoint. All methods run in the event loop."""

    def __init__(self, state: EndpointState, answer: AnswerRequest) -> None:
        self._state = state
        self._answer = answer
        self._directory = tempfile.TemporaryDirectory(prefix="simulated-batches-")
        self._numbers = itertools.count(1)
        self._drawn: dict[int, int] = {}
        self._rng = random.Random(f"{state.name}/batches")  # noqa: S311 - reproducible, not secret
        self._tasks: set[asyncio.Task[None]] = set()
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, SimulatedBatch] = {}

    @property
    def config(self) -> SimulatedBatches:
        return self._state.config.batches

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._directory.cleanup()

    # --- files ------------------------------------------------------------------------------------

    def new_file(self, prefix: str, name: str, purpose: str) -> StoredFile:
        number = next(self._numbers)
        path = Path(self._directory.name) / f"{number}.jsonl"
        path.touch()
        file = StoredFile(f"{prefix}{number:08d}", path, name, purpose)
        self.files[file.id] = file
        self._state.stats.files = len(self.files)
        return file

    def delete_file(self, file: StoredFile) -> None:
        file.path.unlink(missing_ok=True)
        del self.files[file.id]
        self._state.stats.files = len(self.files)

    def download(self, file: StoredFile, request: Request) -> Response:
        response = Response(file=file.path, content_type="application/octet-stream")
        wanted = request.headers.get("range", "")
        if wanted and not self.config.ignores_ranges:
            response.start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            size = file.size
            if response.start >= size:
                return Response(416, b"", "text/plain", {"content-range": f"bytes */{size}"})
            response.status = 206
            shown = f"bytes {response.start}-{size - 1}/{size}"
            response.headers = {"content-range": shown}
        response.cut = self.draw(BatchFaultKind.CUT_DOWNLOAD) is not None
        return response

    # --- batches ----------------------------------------------------------------------------------

    def submit(self, batch: SimulatedBatch, api: BatchFormat) -> bool:
        """Start the batch; False when its creator is not to be told. Raises ConnectionError."""
        elsewhere = {BatchFaultKind.CUT_DOWNLOAD}
        if api.limits_when_created:
            elsewhere.add(BatchFaultKind.ENQUEUED_LIMIT)
        drawn = {kind: self.draw(kind) for kind in BatchFaultKind if kind not in elsewhere}
        batch.faults = {kind: fault for kind, fault in drawn.items() if fault is not None}
        if BatchFaultKind.NOT_CREATED in batch.faults:
            raise ConnectionError("not created")
        self.batches[batch.id] = batch
        self._state.stats.batches += 1
        task = asyncio.get_running_loop().create_task(self._run(batch, api))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return BatchFaultKind.LOST_ANSWER not in batch.faults

    def next_id(self, prefix: str) -> str:
        return f"{prefix}{next(self._numbers):08d}"

    def listed(self) -> list[SimulatedBatch]:
        """Newest first, as both providers list them."""
        now = time.time()
        return [
            batch
            for batch in reversed(self.batches.values())
            if (hidden := batch.faults.get(BatchFaultKind.HIDDEN)) is None
            or now >= batch.created + hidden.seconds
        ]

    def enqueued_too_much(self, requests: int) -> bool:
        under_way = sum(b.requests for b in self.batches.values() if not b.ended)
        limit = self.config.max_enqueued_requests
        return bool(limit) and under_way + requests > limit

    def cancel(self, batch: SimulatedBatch) -> None:
        batch.state = "cancelling"
        batch.cancelled.set()

    async def _run(self, batch: SimulatedBatch, api: BatchFormat) -> None:
        await asyncio.sleep(self.config.validation_seconds)
        batch.errors = await asyncio.to_thread(api.validate, batch)
        self._state.stats.batch_requests += batch.requests
        if batch.errors:
            batch.state = "failed"
            return
        batch.state = "cancelling" if batch.cancelled.is_set() else "in_progress"
        slow, expired = (batch.faults.get(k) for k in (BatchFaultKind.SLOW, BatchFaultKind.EXPIRED))
        seconds = slow.seconds if slow else self.config.seconds
        since = time.monotonic()
        state, done = ("expired", expired.done) if expired else ("completed", 1.0)
        try:
            await asyncio.wait_for(batch.cancelled.wait(), seconds)
            state, done = "cancelled", min(1.0, (time.monotonic() - since) / max(seconds, 1e-6))
        except TimeoutError:
            pass
        if state == "completed" or api.unanswered:
            await self._process(batch, api, int(batch.requests * done), state)
        batch.state = state

    async def _process(
        self, batch: SimulatedBatch, api: BatchFormat, done: int, state: str
    ) -> None:
        output, errors = self._writer("results"), self._writer("errors")
        for number, line in enumerate(_lines(batch.input.path)):
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            if number >= done and api.unanswered:
                written, good = api.unanswered(line, state), False
            else:
                written, good = await self._line(batch, api, line)
            batch.succeeded += good
            batch.failed += not good
            if not self._hits(batch, BatchFaultKind.UNANSWERED):
                to = output if good or not api.error_file else errors
                self._write(batch, to, written)
        shuffled = not api.keeps_order or BatchFaultKind.SHUFFLED in batch.faults
        batch.output = self._finished(output, shuffled=shuffled)
        batch.error_output = self._finished(errors, shuffled=shuffled)

    async def _line(
        self, batch: SimulatedBatch, api: BatchFormat, line: dict[str, Any]
    ) -> tuple[dict[str, Any], bool]:
        if self._hits(batch, BatchFaultKind.ERROR_LINES):
            return api.answer(line, _TRANSIENT), False
        response, paid = await self._answer(*api.request(line, batch))
        if paid is not None:
            self._state.record_paid_images(paid, in_batch=True)
        return api.answer(line, response), response.status == 200  # noqa: PLR2004

    def _write(self, batch: SimulatedBatch, file: StoredFile, answer: dict[str, Any]) -> None:
        text = json.dumps(answer, separators=(",", ":")).encode()
        if self._hits(batch, BatchFaultKind.BROKEN_LINES):
            text = text[: len(text) // 2]
        copies = 2 if self._hits(batch, BatchFaultKind.DUPLICATE_LINES) else 1
        with file.path.open("ab") as out:
            out.write((text + b"\n") * copies)

    def _writer(self, name: str) -> StoredFile:
        number = next(self._numbers)
        path = Path(self._directory.name) / f"{name}-{number}.jsonl"
        path.touch()
        return StoredFile(f"file-{number:08d}", path, f"{name}.jsonl", "batch_output")

    def _finished(self, written: StoredFile, *, shuffled: bool) -> StoredFile | None:
        """The file, stored; None for one without content."""
        if not written.size:
            return None
        if shuffled:
            _shuffle(written.path, self._rng)
        self.files[written.id] = written
        self._state.stats.files = len(self.files)
        return written

    def draw(self, kind: BatchFaultKind) -> BatchFault | None:
        """The first configured fault of the kind that applies now."""
        for index, fault in enumerate(self.config.faults):
            if fault.kind is not kind:
                continue
            of_requests = kind in _OF_REQUESTS
            drawn = self._drawn[index] = self._drawn.get(index, 0) + 1
            spent = fault.count is not None and drawn > fault.skip + fault.count
            hit = of_requests or self._rng.random() < fault.rate
            if drawn > fault.skip and not spent and hit:
                return fault
        return None

    def _hits(self, batch: SimulatedBatch, kind: BatchFaultKind) -> bool:
        """For one request of the batch."""
        fault = batch.faults.get(kind)
        return fault is not None and self._rng.random() < fault.rate


_OF_REQUESTS = {
    BatchFaultKind.UNANSWERED,
    BatchFaultKind.ERROR_LINES,
    BatchFaultKind.DUPLICATE_LINES,
    BatchFaultKind.BROKEN_LINES,
}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _shuffle(path: Path, rng: random.Random) -> None:
    """In blocks of lines, read one at a time: the file may be larger than memory."""
    spans, start = [], 0
    with path.open("rb") as file:
        for line in file:
            spans.append((start, len(line)))
            start += len(line)
        rng.shuffle(spans)
        shuffled = path.with_suffix(".shuffled")
        with shuffled.open("wb") as out:
            for begin, length in spans:
                file.seek(begin)
                out.write(file.read(length))
    shuffled.replace(path)
