"""Gemini answers 503 from second 10 to 70: what becomes of the rows?

python -m benchmarks.outage [--processes 4] [--note TEXT]

Ours, with the real DynamoDB adapter on MiniStack, against the plain way of the fallback guide: each
call is tried, retried twice from a base delay of 5 s, and then sent to OpenAI. Same workers, same
simulated providers, same sender; the plain way gets its share of the limit per process (limit /
processes), so that it does not suffer from 429s as well.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.limits import ours
from benchmarks.limits.__main__ import simulator, stop_children_when_terminated
from benchmarks.limits.sender import send
from darkroom_local import ministack
from darkroom_local.processes import ROOT
from darkroom_local.providers import Simulator

THREADS = 4
DOWN = (10.0, 70.0)
LASTS = 100.0
LATENCY = 3.0
GEMINI_RATE = 60
OPENAI_RATE = 600
RESULTS = ROOT / "benchmarks" / "results" / "outage.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--systems", nargs="+", default=["darkroom", "plain"])
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    stop_children_when_terminated()
    runs = []
    for system in chosen.systems:
        runs.append(_run(system, chosen.processes))
        print(runs[-1], flush=True)
    document = {
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "also_running": chosen.note,
        "down_seconds": DOWN,
        "workers": f"{chosen.processes} processes x {THREADS} threads",
        "call_latency_seconds": LATENCY,
        "runs": runs,
    }
    chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    print(table(runs))


def _config() -> dict[str, Any]:
    latency = {"kind": "fixed", "seconds": LATENCY}
    outage = {"kind": "overloaded", "when": {"from_second": DOWN[0], "until_second": DOWN[1]}}
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
        began = drive(provider, processes, folder)
        stats = provider.stats(arrivals=True)
        rows = [
            json.loads(line)
            for file in Path(folder).glob("*.jsonl")
            for line in file.read_text().splitlines()
            if '"took"' in line and line.endswith("}")
        ]
    return {"system": system} | _measured(rows, began, stats)


def _darkroom(provider: Simulator, processes: int, folder: str) -> float:
    with ministack.running(auth=False) as stack:
        ours.make_table(stack.url)
        spec = ours.Spec("outage", _secret(provider), stack.url, processes, THREADS, folder)
        members, wait_ready, go = ours.start(spec)
        wait_ready()
        provider.configure(_config())
        began = time.time()
        go()
        time.sleep(LASTS)
        for member in members:
            member.kill()
        return began


class _Pace:
    """A process's own share of the limit: slots an equal time apart."""

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
    """Threads in this process stand for the processes: they share nothing but the interpreter."""
    stop = threading.Event()
    provider.configure(_config())
    began = time.time()
    threads = []
    for number in range(processes):
        pace = _Pace(GEMINI_RATE / processes)
        for thread in range(THREADS):
            log = Path(folder) / f"plain-{number}-{thread}.jsonl"
            arguments = (provider, pace, log, stop)
            threads.append(threading.Thread(target=_plain_worker, args=arguments, daemon=True))
    for each in threads:
        each.start()
    time.sleep(LASTS)
    stop.set()
    return began


def _plain_worker(provider: Simulator, pace: _Pace, log: Path, stop: threading.Event) -> None:
    with log.open("w", buffering=1) as out:
        while not stop.is_set():
            begun = time.time()
            endpoint = _plain_row(provider, pace)
            if endpoint and not stop.is_set():
                line = {"begun": begun, "took": time.time() - begun, "endpoint": endpoint}
                out.write(json.dumps(line) + "\n")


def _plain_row(provider: Simulator, pace: _Pace) -> str | None:
    """Two retries from 5 s, doubling, 30 % jitter; then the other provider."""
    for tries in range(3):
        pace.wait()
        if _sent(provider.base_url("first")):
            return "first"
        if tries < 2:
            time.sleep(min(60.0, 5.0 * 2**tries) * random.uniform(0.7, 1.3))
    return "second" if _sent(provider.base_url("second")) else None


def _sent(url: str) -> bool:
    try:
        return send(url, "k", 60.0)[0] == 200
    except OSError:
        return False


def _measured(rows: list[dict[str, Any]], began: float, stats: dict[str, Any]) -> dict[str, Any]:
    start, end = began + DOWN[0], began + DOWN[1]
    ended = sorted((r["begun"] + r["took"], r["endpoint"]) for r in rows)
    during = [r for r in rows if start <= r["begun"] + r["took"] < end]
    # Rows that began in the outage, however long they took; those that never ended do not count.
    began_in = [r["took"] for r in rows if start <= r["begun"] < end]
    by_fallback = [t for t, endpoint in ended if endpoint == "second" and t >= start]
    wasted_at = [
        round(t - DOWN[0], 1) for t in stats["first"]["arrivals"] if DOWN[0] <= t < DOWN[1]
    ]
    wasted = len(wasted_at)
    back = [r["begun"] + r["took"] for r in rows if r["endpoint"] == "first"]
    recovered = [t for t in back if t >= end + LATENCY]
    return {
        "seconds_to_first_image_after_it_began": (
            round(min(by_fallback) - start, 2) if by_fallback else None
        ),
        "images_per_minute_in_outage": round(len(during) * 60 / (DOWN[1] - DOWN[0]), 1),
        "calls_wasted_per_minute": round(wasted * 60 / (DOWN[1] - DOWN[0]), 1),
        "row_seconds_p50": round(statistics.median(began_in), 2),
        "row_seconds_p95": round(sorted(began_in)[int(0.95 * (len(began_in) - 1))], 2),
        "healthy_fallback_call_seconds": LATENCY,
        "seconds_until_first_tier_is_back": round(min(recovered) - end, 1) if recovered else None,
        "refused": stats["first"]["refused"] + stats["second"]["refused"],
        "seconds_of_wasted_calls": wasted_at,
    }


def table(runs: list[dict[str, Any]]) -> str:
    columns = [c for c in runs[0] if c != "seconds_of_wasted_calls"]
    head = "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)
    return "\n".join([head, *("| " + " | ".join(str(r[c]) for c in columns) + " |" for r in runs)])


if __name__ == "__main__":
    main()
