"""The worker of benchmarks/memory.py: edits a row for each image of a folder, ten at once.

python -m benchmarks.memory_worker MEMORY_MB FOLDER RESOLUTION PORT

A process of its own, which loads what the deployed function loads: its handler's module, its boto3
clients and both SDKs. The ledger and the results bucket are in memory.
"""

import importlib
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from darkroom.bootstrap import Wiring
from darkroom.calls import EditResult
from darkroom.endpoints import Endpoint
from darkroom.images.memory import MemoryBudget
from darkroom.ports import CallContext, DispatchResult
from darkroom.providers.gemini import GeminiImageEditor
from darkroom.rows import RowState
from darkroom.settings import Settings
from tests.fakes.editing import EditorHarness, row_message
from tests.fakes.services import FakeStore, FakeTelemetry

ROWS = 10
MODEL = "gemini-3-pro-image"
_KEY = "not-a-key-not-a-key"
_ADDRESS = "http://127.0.0.1:9/"  # of services that are not called


class NoBodies(FakeStore):
    """A results bucket that keeps what is known of an image, not the image."""

    def put(self, key: str, *args: Any, **options: Any) -> bool:
        return super().put(key, b"", *args[1:], **options)


@dataclass
class Folder:
    """An ImageFetcher: each row has an image of its own in memory."""

    path: Path

    def fetch(self, reference: str, base: str) -> bytes:  # noqa: ARG002 - the port's
        return (self.path / reference).read_bytes()


@dataclass
class OneCall:
    """A dispatcher that makes one call per row, without limits, to the provider on `port`.

    Without one, the answer is the row's own image.
    """

    port: int
    editor: GeminiImageEditor = field(default_factory=GeminiImageEditor)
    calls: int = 0  # under way
    most_calls: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def dispatch(self, context: CallContext, deadline: float) -> DispatchResult:  # noqa: ARG002
        fields = {"name": "e", "provider": "gemini", "model": MODEL, "api_keys": [_KEY]}
        url = f"http://127.0.0.1:{self.port}" if self.port else None
        endpoint = Endpoint.model_validate({**fields, "base_url": url})
        plan = context.plan(endpoint)
        context.before_call(endpoint, plan)
        with self.lock:
            self.calls += 1
            self.most_calls = max(self.most_calls, self.calls)
        if self.port:
            result = self.editor.edit(plan, endpoint, SecretStr(_KEY), 120)
        else:
            result = EditResult((plan.images[0].data,), MODEL, 1)
        with self.lock:
            self.calls -= 1
        context.after_call(result)
        return DispatchResult(result, plan, endpoint, False, 1, 0, 1, ())


def load_function() -> None:
    """Import and build what the deployed function has when it starts its first call."""
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    texts = dict.fromkeys(Settings.model_fields, "x") | dict.fromkeys(
        ("rows_queue_url", "dead_letter_queue_url", "lost_events_queue_url"), _ADDRESS
    )
    wanted = {n: v for n, v in texts.items() if Settings.model_fields[n].is_required()}
    assert Wiring(Settings.model_validate(wanted), FakeTelemetry()).editor
    for module in ("google.genai.types", "openai"):
        importlib.import_module(module)


def work(memory_mb: int, folder: Path, resolution: str, port: int) -> None:
    """Edit a row for each image of the folder, ROWS at once. Prints a line of JSON."""
    load_function()
    names = sorted(path.name for path in folder.iterdir())
    worker, dispatcher = EditorHarness.with_job(queued=len(names)), OneCall(port)
    editor = worker.editor(
        store=NoBodies(),
        fetcher=Folder(folder),
        dispatcher=dispatcher,
        memory=MemoryBudget.of_function(memory_mb),
    )
    started, started_cpu = time.monotonic(), time.process_time()

    def edit(number: int) -> None:
        request: dict[str, Any] = {"images": (names[number],), "resolution": resolution}
        message = row_message(worker.run.run, f"{number:06}", **request)
        leases, deadline = worker.leases(), worker.clock.now() + 800
        if editor.handle(message, worker.run, f"w{number}", deadline, leases) is not None:
            raise RuntimeError(f"row {number} was not settled: {worker.telemetry.events}")

    with ThreadPoolExecutor(ROWS) as pool:
        list(pool.map(edit, range(len(names))))
    states = [row.state for row in worker.ledger.rows.values()]
    found = {
        "succeeded": states.count(RowState.SUCCEEDED),
        "failed": states.count(RowState.FAILED),
        "calls_at_once": dispatcher.most_calls,
        "seconds": round(time.monotonic() - started, 1),
        "start_cpu_seconds": started_cpu,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
