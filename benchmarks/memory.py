"""The memory of one worker: ten 4K rows whose answers arrive at once, and images at every limit.

python -m benchmarks.memory [--memory 2048] [--note TEXT]

A worker process runs the real row editor, adapter, image process and memory budget, with the ledger
and the results bucket in memory. A second process answers all calls at the same moment. What counts
is the resident memory of the worker and its image process, looked at every 10 ms. Ends with an
error if the peak of the one and the limit of the other are together more than the function has.
"""

import base64
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, ImageChops
from pydantic import SecretStr

from benchmarks import harness
from darkroom.calls import EditResult
from darkroom.endpoints import Endpoint
from darkroom.images.memory import MemoryBudget
from darkroom.images.process import MEMORY_BYTES
from darkroom.ports import CallContext, DispatchResult
from darkroom.providers.gemini import GeminiImageEditor
from darkroom.rows import RowState
from darkroom_local.processes import ROOT
from tests.corpus.images import largest
from tests.fakes.editing import EditorHarness, row_message
from tests.fakes.services import FakeStore

ROWS = 10
IMAGE_PROCESS_MB = 36  # when it has started
RUNTIME_MB = 60  # boto3's clients and Lambda's runtime, which are not in this worker
EDGES = {"1K": 1024, "2K": 2048, "4K": 4096}
MODEL = "gemini-3-pro-image"
_KEY = "not-a-key-not-a-key"


def photo(edge: int, kind: str) -> bytes:
    """A detailed photo: 1.6 bytes a pixel as PNG."""
    small = Image.open(ROOT / "examples" / "photos" / "coffee.jpg")
    image = small.convert("RGB").resize((edge, edge), Image.Resampling.BICUBIC)
    image = ImageChops.add(image, Image.effect_noise((edge, edge), 18).convert("RGB"), 2)
    out = io.BytesIO()
    options = {"compress_level": 1} if kind == "PNG" else {"quality": 92}
    image.save(out, kind, **options)
    return out.getvalue()


# ---------------------------------------------------------------- the provider


def serve(answer: bytes) -> None:
    """Answer all requests that are there, once none has come for a second. Prints its port."""
    last_request = 0.0

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Not printed."""

        def do_POST(self) -> None:
            nonlocal last_request
            self.rfile.read(int(self.headers["content-length"]))
            last_request = time.monotonic()
            while time.monotonic() < last_request + 1.0:
                time.sleep(0.01)
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def answer_with(image: bytes) -> bytes:
    part = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(image).decode()}}
    body = {
        "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 2000},
        "modelVersion": "gemini-3-pro-image",
    }
    return json.dumps(body).encode()


# ---------------------------------------------------------------- the worker


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

    def dispatch(self, context: CallContext, deadline: float) -> DispatchResult:  # noqa: ARG002
        fields = {"name": "e", "provider": "gemini", "model": MODEL, "api_keys": [_KEY]}
        url = f"http://127.0.0.1:{self.port}"
        endpoint = Endpoint.model_validate({**fields, "base_url": url})
        plan = context.plan(endpoint)
        context.before_call(endpoint, plan)
        if self.port:
            result = self.editor.edit(plan, endpoint, SecretStr(_KEY), 120)
        else:
            result = EditResult((plan.images[0].data,), MODEL, 1)
        context.after_call(result)
        return DispatchResult(result, plan, endpoint, False, 1, 0, 1, ())


def work(memory_mb: int, folder: Path, resolution: str, port: int) -> None:
    """Edit a row for each image of the folder, ROWS at once. Prints a line of JSON."""
    names = sorted(path.name for path in folder.iterdir())
    worker = EditorHarness.with_job(queued=len(names))
    editor = worker.editor(
        store=NoBodies(),
        fetcher=Folder(folder),
        dispatcher=OneCall(port),
        memory=MemoryBudget.of_function(memory_mb),
    )
    started = time.monotonic()

    def edit(number: int) -> None:
        request: dict[str, Any] = {"images": (names[number],), "resolution": resolution}
        message = row_message(worker.run.run, f"{number:06}", **request)
        leases, deadline = worker.leases(), worker.clock.now() + 800
        if editor.handle(message, worker.run, f"w{number}", deadline, leases) is not None:
            raise RuntimeError(f"row {number} was not settled")

    with ThreadPoolExecutor(ROWS) as pool:
        list(pool.map(edit, range(len(names))))
    states = [row.state for row in worker.ledger.rows.values()]
    found = {
        "succeeded": states.count(RowState.SUCCEEDED),
        "failed": states.count(RowState.FAILED),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(found))


# ---------------------------------------------------------------- measuring


def resident_bytes(pid: int) -> tuple[int, int]:
    """Of a process, and of its children."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
        children = set()
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children.update((thread / "children").read_text().split())
    except OSError:  # it has ended
        return 0, 0
    return own, sum(resident_bytes(int(child))[0] for child in children)


def measure(memory_mb: int, folder: Path, resolution: str, port: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "work"]
    options = [str(memory_mb), str(folder), resolution, str(port)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # as in template.yaml
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env=environment
    ) as worker:
        peak = peak_of_worker = peak_of_images = 0
        while worker.poll() is None:
            own, images = resident_bytes(worker.pid)
            peak = max(peak, own + images)
            peak_of_worker, peak_of_images = max(peak_of_worker, own), max(peak_of_images, images)
            time.sleep(0.01)
        printed = worker.stdout.read() if worker.stdout else ""
    if worker.returncode:
        raise SystemExit(f"the worker ended with status {worker.returncode}")
    return {
        "peak_mb": round(peak / 2**20) + RUNTIME_MB,
        "worker_mb": round(peak_of_worker / 2**20) + RUNTIME_MB,
        "image_process_mb": round(peak_of_images / 2**20),
        **json.loads(printed),
    }


def rows_at_once(memory_mb: int, resolution: str, folder: Path) -> dict[str, Any]:
    edge = EDGES[resolution]
    source, answer = photo(edge, "JPEG"), answer_with(photo(edge, "PNG"))
    for number in range(ROWS):
        (folder / f"{number}.jpg").write_bytes(source)
    command = [sys.executable, "-m", "benchmarks.memory", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as provider:
        if provider.stdin is None or provider.stdout is None:
            raise RuntimeError("no pipes")
        try:
            provider.stdin.write(answer)
            provider.stdin.close()
            port = int(provider.stdout.readline())
            measured = measure(memory_mb, folder, resolution, port)
        finally:
            provider.kill()
    return {"rows": f"{ROWS} of {resolution}, answers of {len(answer) >> 20} MiB"} | measured


def images_at_every_limit(memory_mb: int, folder: Path) -> dict[str, Any]:
    for name, data in largest():
        (folder / name).write_bytes(data)
    return {"rows": "images at every limit"} | measure(memory_mb, folder, "1K", 0)


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["serve"]:
        serve(sys.stdin.buffer.read())
    if arguments[:1] == ["work"]:
        work(int(arguments[1]), Path(arguments[2]), arguments[3], int(arguments[4]))
        return 0
    parser = harness.parser(__doc__, "memory", ["darkroom"])
    parser.add_argument("--memory", type=int, default=2048)
    chosen = parser.parse_args(arguments)
    runs = []
    for resolution in EDGES:
        with TemporaryDirectory() as folder:
            runs.append(rows_at_once(chosen.memory, resolution, Path(folder)))
        print(runs[-1], flush=True)
    with TemporaryDirectory() as folder:
        runs.append(images_at_every_limit(chosen.memory, Path(folder)))
    harness.save(chosen, {"memory_mb": chosen.memory}, runs)
    harness.print_table(runs, without=set())
    # Whatever the worker does, the image process may be at its limit at that moment.
    room = chosen.memory - (MEMORY_BYTES >> 20) - IMAGE_PROCESS_MB
    return int(any(run["worker_mb"] > room for run in runs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
