"""Jobs with mode=batch at size: with faults and processes that die, and the memory they take.

    python -m benchmarks.batches crashes [rows] [--provider gemini]
    python -m benchmarks.batches memory [rows ...] [--provider openai]

The real submitter, collector and adapters, over HTTP against the simulated providers.

`crashes`: 10 % of each kind of fault, on AWS in memory and a virtual clock. A process dies before a
call of an outside service (a port of AWS, a request to the provider), at each kind of call at least
once if it is made often enough. Ends with an error if a row is lost or paid twice, or if the budget
is not kept.

`memory`: no faults. The submitter and the collector are processes of their own, and AWS is in
memory of this one, so what is printed is theirs: the peak of the resident memory (VmHWM).
"""

import argparse
import io
import itertools
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, cast

from PIL import Image

from darkroom.ledger.batches import BatchRecord, BatchState
from darkroom.providers.registry import Provider
from darkroom_local.providers import Config, Simulator, running
from darkroom_local.stack import start_providers
from tests.contract.batch_jobs import (
    TENTHS,
    JobHarness,
    RandomKills,
    instructions,
    run_to_the_end,
)
from tests.fakes.batching import BatchHarness
from tests.fakes.editing import JOB, row_message
from tests.fakes.ledger import FakeBatchLedger

PORTS = ("ledger", "batches", "store", "queue", "batch_queue")
MESSAGES = 300  # of one invocation of the submitter, as in template.yaml
MESSAGES_WITH_FAULTS = 40  # more batches, so that each kind of fault has its share
BUDGET_USD = 500.0
AUTHENTICATION = b"benchmark"
PHOTO = "photo.jpg"
EDITED = 10  # of so many rows one has an input image, for its share of the machine's time


# ---------------------------------------------------------------- crashes


def crashes(provider: Provider, rows: int) -> bool:
    """Print what became of a job, and return whether it is as it should be."""
    began = time.monotonic()
    kills = RandomKills(random.Random(7), rate=0.002, first_rate=0.25)
    with running() as simulator:
        harness = JobHarness(simulator, provider)
        harness.configure(*TENTHS, seconds=0.01)
        options: dict[str, Any] = {
            "batch_fallback": "batch",
            "max_attempts": 20,
            "budget_usd": BUDGET_USD,
        }
        harness.upload_rows(*instructions(rows), **options)
        run_to_the_end(harness, kills, messages=MESSAGES_WITH_FAULTS)
        stats, cost = harness.stats(), harness.cost()
    paid = stats["paid_by_marker"]
    prices = {r.result.cost_micro_usd for r in harness.ledger.all(JOB) if r.result}
    found = {
        "provider": provider.value,
        "rows": rows,
        "by_state": harness.by_state(),
        "lost": rows - harness.by_state().get("succeeded", 0),
        "paid_images": stats["paid_images"],
        "paid_twice": sum(count > 1 for count in paid.values()),
        "cost_usd": cost / 1e6,
        "sum_of_rows_usd": rows * (prices.pop() or 0) / 1e6 if len(prices) == 1 else None,
        "counted_in_budget_usd": harness.ledger.committed[JOB] / 1e6,
        "left_reserved_usd": harness.ledger.reserved[JOB] / 1e6,
        "budget_usd": BUDGET_USD,
        "batches_in_ledger": len(harness.batches.batches),
        "batches_at_provider": stats["batches"],
        "killed": sum(kills.kills.values()),
        "killed_before": dict(kills.kills.most_common()),
        "never_killed_before": {c: n for c, n in kills.calls.items() if not kills.kills[c]},
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(found, indent=2), flush=True)
    money = {found[k] for k in ("cost_usd", "sum_of_rows_usd", "counted_in_budget_usd")}
    return (
        (found["lost"], found["paid_twice"], found["left_reserved_usd"]) == (0, 0, 0)
        and len(paid) == rows
        and len(money) == 1
        and cost <= BUDGET_USD * 1e6
    )


# ---------------------------------------------------------------- memory


class _BatchTable(FakeBatchLedger):
    """With the conditional write of the real table, because no function can be sent to it."""

    def swap(self, old: BatchRecord, new: BatchRecord) -> BatchRecord | None:
        return self.update(old.name, lambda found: new if found == old else None)


class _RemoteBatchTable:
    """BatchLedger of a worker."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def update(
        self, name: str, transition: Callable[[BatchRecord], BatchRecord | None]
    ) -> BatchRecord | None:
        old = self._table.read(name)
        new = transition(old)
        return None if new is None else self._table.swap(old, new)


class _Services(BaseManager):
    """AWS's fakes, in the process that measures."""


class _Worker(JobHarness):
    """The submitter or the collector, with AWS in another process."""

    def __init__(self, services: _Services, simulator: Simulator, provider: Provider) -> None:
        super().__init__(simulator, provider)
        for port in PORTS:
            setattr(self, port, getattr(services, port)())
        self.batches = cast("FakeBatchLedger", _RemoteBatchTable(self.batches))
        self.telemetry.events = cast("Any", deque(maxlen=100))
        self.fetcher.files[PHOTO] = _photo()

    def submit_all(self) -> Iterator[int]:
        while batch := self.receive_many(MESSAGES):
            self.delete(batch, self.submit(batch))
            yield len(batch)

    def collect_all(self) -> Iterator[int]:
        """Looks at the batches until none is open."""
        while open_before := len(list(self.batches.open())):
            self.collect()
            yield open_before


def _photo() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((160, 160), 40).convert("RGB").save(out, "JPEG")
    return out.getvalue()


def peak_mb() -> float:
    """The most resident memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)


def work(role: str, address: str, url: str, provider: Provider) -> None:
    """The worker process: prints what it took."""
    services = _Services(address, AUTHENTICATION)
    services.connect()
    worker = _Worker(services, Simulator(url), provider)
    loops = worker.submit_all() if role == "submitter" else worker.collect_all()
    before, began, cpu = peak_mb(), time.monotonic(), time.process_time()
    peaks = [peak_mb() for _ in loops]
    logged = sorted({event for level, event, _ in worker.telemetry.events if level != "info"})
    found = {
        "before_mb": before,
        "after_first_mb": peaks[0],
        "peak_mb": peak_mb(),
        "invocations": len(peaks),
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "warnings": logged,
    }
    print(json.dumps(found))


def memory(provider: Provider, rows: int) -> bool:
    with ExitStack() as stack:
        # The manager removes its socket too, when this process ends.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        process, url = start_providers(folder, Config())
        stack.callback(process.stop)
        harness = JobHarness(Simulator(url), provider)
        harness.configure(seconds=0)
        harness.batches = _BatchTable(harness.ledger)
        _upload(harness, rows)
        address = str(folder / "services")
        _serve(harness, address)
        found: dict[str, Any] = {"provider": provider.value, "rows": rows}
        for role in ("submitter", "collector"):
            command = [sys.executable, "-m", "benchmarks.batches", "work"]
            options = ["--role", role, "--address", address, "--url", url]
            done = subprocess.run(
                [*command, *options, "--provider", provider.value],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found[role] = json.loads(done.stdout.splitlines()[-1])
        stats = harness.stats()
        found["batches"] = stats["batches"]
        found["paid_images"] = stats["paid_images"]
        found["by_state"] = harness.by_state()
        closed = [b.state is BatchState.CLOSED for b in harness.batches.batches.values()]
    print(json.dumps(found, indent=2), flush=True)
    return found["by_state"] == {"succeeded": rows} and stats["paid_images"] == rows and all(closed)


def _upload(harness: BatchHarness, rows: int) -> None:
    harness.upload(queued=rows, mode="batch")
    run = harness.run.run
    harness.batch_queue.send(
        [
            row_message(
                run,
                f"{row:06d}",
                instruction=instruction,
                images=() if row % EDITED else (PHOTO,),
            )
            for row, instruction in enumerate(instructions(rows))
        ]
    )
    harness.batch_queue.sent.clear()


def _serve(harness: BatchHarness, address: str) -> None:
    """Serve the ports to the workers, on a Unix socket."""
    for port in PORTS:
        _Services.register(port, callable=partial(getattr, harness, port))
    server = _Services(address, AUTHENTICATION).get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=["crashes", "memory", "work"], nargs="?")
    options.add_argument("rows", type=int, nargs="*")
    options.add_argument("--provider", type=Provider, choices=list(Provider))
    for internal in ("--role", "--address", "--url"):  # of the worker
        options.add_argument(internal, help=argparse.SUPPRESS)
    given = options.parse_args()
    providers = [given.provider] if given.provider else list(Provider)
    if given.what == "work":
        for port in PORTS:
            _Services.register(port)
        work(given.role, given.address, given.url, given.provider)
        return 0
    sizes = {"crashes": [2_000], "memory": [5_000, 50_000]}
    parts = {"crashes": crashes, "memory": memory}
    good = [
        parts[part](provider, rows)
        for part in ([given.what] if given.what else parts)
        for provider, rows in itertools.product(providers, given.rows or sizes[part])
    ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
