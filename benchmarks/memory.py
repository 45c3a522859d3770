"""The memory of one worker: ten 4K rows whose answers arrive at once, and images at every limit.

python -m benchmarks.memory [--memory 1536] [--note TEXT]

A worker process (memory_worker.py) runs the real row editor, adapter, image process and memory
budget. A second process answers all calls at the same moment. What counts is the resident memory of
the worker and its image process, looked at every 10 ms. Ends with an error if the peak of the one
and the limit of the other are together more than the function has.
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, ImageChops

from benchmarks import harness
from benchmarks.memory_worker import ROWS
from darkroom.images.process import MEMORY_BYTES
from darkroom_local.processes import ROOT
from tests.corpus.images import largest

IMAGE_PROCESS_MB = 36  # when it has started
RUNTIME_MB = 30  # Lambda's runtime, which is not in this worker
EDGES = {"1K": 1024, "2K": 2048, "4K": 4096}


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
    command = [sys.executable, "-m", "benchmarks.memory_worker"]
    options = [str(memory_mb), str(folder), resolution, str(port)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # as in template.yaml
    cpu_before = _cpu_seconds_of_children()
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
    found = json.loads(printed)
    cpu = _cpu_seconds_of_children() - cpu_before - found.pop("start_cpu_seconds")
    return {
        "peak_mb": round(peak / 2**20) + RUNTIME_MB,
        "worker_mb": round(peak_of_worker / 2**20) + RUNTIME_MB,
        "image_process_mb": round(peak_of_images / 2**20),
        **found,
        "cpu_seconds_per_row": round(cpu / (found["succeeded"] + found["failed"]), 2),
    }


def _cpu_seconds_of_children() -> float:
    """Of those that have ended, and of their own children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    parser = harness.parser(__doc__, "memory", ["darkroom"])
    parser.add_argument("--memory", type=int, default=1536)
    parser.add_argument("--sizes", nargs="*", choices=EDGES, default=[*EDGES])
    chosen = parser.parse_args(arguments)
    runs = []
    for resolution in chosen.sizes:
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
