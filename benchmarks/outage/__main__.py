"""Gemini answers 503 from second 10 to 70: what happens to the rows?

python -m benchmarks.outage [--processes 4] [--note TEXT]

Darkroom, with the real DynamoDB adapter on MiniStack, against the plain procedure of the fallback
guide: each call is tried, retried twice from a base delay of 5 s, and then sent to OpenAI. Same
workers, same simulated providers, same sender. A process of the plain procedure keeps its share of
the limit (limit / processes), so that it does not suffer from 429s as well.
"""

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.common import (
    RESULTS,
    exit_on_sigterm,
    markdown_table,
    records,
    simulator,
    write_results,
)
from benchmarks.limits import darkroom_load
from benchmarks.limits.sender import send
from darkroom.retry import backoff, with_jitter
from darkroom_local import ministack
from darkroom_local.providers import Simulator

THREADS = 4
OUTAGE = (10.0, 70.0)
DURATION = 100.0
LATENCY = 3.0
GEMINI_RATE = 60
OPENAI_RATE = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--systems", nargs="+", default=["darkroom", "plain"])
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--output", type=Path, default=RESULTS / "outage.json")
    options = parser.parse_args()
    exit_on_sigterm()
    runs = []
    for system in options.systems:
        runs.append(_run(system, options.processes))
        print(runs[-1], flush=True)
    conditions = {
        "also_running": options.note,
        "down_seconds": OUTAGE,
        "workers": f"{options.processes} processes x {THREADS} threads",
        "call_latency_seconds": LATENCY,
    }
    write_results(options.output, conditions, runs)
    columns = [c for c in runs[0] if c != "seconds_of_wasted_calls"]
    print(markdown_table(columns, runs))


def _config() -> dict[str, Any]:
    latency = {"kind": "fixed", "seconds": LATENCY}
    outage = {"kind": "overloaded", "when": {"from_second": OUTAGE[0], "until_second": OUTAGE[1]}}
    return {
        "endpoints": {
            "first": {
                "requests_per_minute": GEMINI_RATE,
                "mode": "fast",
                "latency": latency,
                "faults": [outage],
            },
            "second": {"requests_per_minute": OPENAI_RATE, "mode": "fast", "latency": latency},
        }
    }


def _secret(provider: Simulator) -> str:
    shared = {"api_keys": ["k"], "max_in_flight": 0}
    first = {
        "name": "first",
        "provider": "gemini",
        "base_url": provider.base_url("first"),
        "requests_per_minute": GEMINI_RATE,
    }
    second = {
        "name": "second",
        "provider": "openai",
        "base_url": provider.base_url("second"),
        "requests_per_minute": OPENAI_RATE,
    }
    return json.dumps({"endpoints": [shared | first, shared | second]})


def _run(system: str, processes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, simulator(_config()) as provider:
        drive = _darkroom if system == "darkroom" else _plain
        started = drive(provider, processes, folder)
        stats = provider.stats(arrivals=True)
        rows = [record for record in records(folder) if "seconds" in record]
    return {"system": system} | _figures(rows, started, stats)


def _darkroom(provider: Simulator, processes: int, folder: str) -> float:
    with ministack.running(auth=False) as stack:
        darkroom_load.create_table(stack.url)
        secret = _secret(provider)
        load = darkroom_load.DarkroomLoad(
            darkroom_load.Spec("outage", secret, stack.url, processes, THREADS, folder)
        )
        load.wait_ready()
        provider.configure(_config())
        started = time.time()
        load.go()
        time.sleep(DURATION)
        load.stop()
        return started


class _ProcessLimiter:
    """Keeps a process's share of the limit: slots at equal intervals."""

    def __init__(self, per_minute: float) -> None:
        self._interval = 60 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            slot = max(time.monotonic(), self._next)
            self._next = slot + self._interval
        time.sleep(max(0.0, slot - time.monotonic()))


def _plain(provider: Simulator, processes: int, folder: str) -> float:
    """Threads of this process stand for the processes; they share only the interpreter."""
    stop = threading.Event()
    provider.configure(_config())
    started = time.time()
    threads = []
    for number in range(processes):
        limiter = _ProcessLimiter(GEMINI_RATE / processes)
        for thread in range(THREADS):
            log = Path(folder) / f"plain-{number}-{thread}.jsonl"
            arguments = (provider, limiter, log, stop)
            threads.append(threading.Thread(target=_plain_worker, args=arguments, daemon=True))
    for worker in threads:
        worker.start()
    time.sleep(DURATION)
    stop.set()
    return started


def _plain_worker(
    provider: Simulator, limiter: _ProcessLimiter, log: Path, stop: threading.Event
) -> None:
    with log.open("w", buffering=1) as out:
        while not stop.is_set():
            started = time.time()
            endpoint = _plain_row(provider, limiter)
            if endpoint and not stop.is_set():
                seconds = time.time() - started
                record = {"started": started, "seconds": seconds, "endpoint": endpoint}
                out.write(json.dumps(record) + "\n")


def _plain_row(provider: Simulator, limiter: _ProcessLimiter) -> str | None:
    """Two retries from 5 s, doubling, 30 % jitter; then the other provider."""
    for attempt in (1, 2, 3):
        limiter.wait()
        if _succeeds(provider.base_url("first")):
            return "first"
        if attempt <= 2:
            time.sleep(with_jitter(backoff(attempt, 5.0), random.random))
    return "second" if _succeeds(provider.base_url("second")) else None


def _succeeds(url: str) -> bool:
    try:
        return send(url, "k", 60.0)[0] == 200
    except OSError:
        return False


def _figures(rows: list[dict[str, Any]], started: float, stats: dict[str, Any]) -> dict[str, Any]:
    start, end = started + OUTAGE[0], started + OUTAGE[1]
    ends = sorted((r["started"] + r["seconds"], r["endpoint"]) for r in rows)
    during = [at for at, _ in ends if start <= at < end]
    # Rows that started in the outage, however long they took; those that never ended do not count.
    durations = sorted(r["seconds"] for r in rows if start <= r["started"] < end)
    by_fallback = [at for at, endpoint in ends if endpoint == "second" and at >= start]
    recovered = [at for at, endpoint in ends if endpoint == "first" and at >= end + LATENCY]
    arrivals = stats["first"]["arrivals"]
    wasted = [round(t - OUTAGE[0], 1) for t in arrivals if OUTAGE[0] <= t < OUTAGE[1]]
    per_minute = 60 / (OUTAGE[1] - OUTAGE[0])
    return {
        "seconds_to_first_image_after_it_began": (
            round(by_fallback[0] - start, 2) if by_fallback else None
        ),
        "images_per_minute_in_outage": round(len(during) * per_minute, 1),
        "calls_wasted_per_minute": round(len(wasted) * per_minute, 1),
        "row_seconds_p50": round(statistics.median(durations), 2),
        "row_seconds_p95": round(durations[int(0.95 * (len(durations) - 1))], 2),
        "healthy_fallback_call_seconds": LATENCY,
        "seconds_until_first_tier_is_back": round(recovered[0] - end, 1) if recovered else None,
        "refused": stats["first"]["refused"] + stats["second"]["refused"],
        "seconds_of_wasted_calls": wasted,
    }


if __name__ == "__main__":
    main()
