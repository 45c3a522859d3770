"""Do limits hold across workers? Ours and two peers against a strict sliding window.

python -m benchmarks.limits [--processes 4 12 32] [--rates 60 300 600] [--seconds 75]
                            [--systems darkroom diffgentor litellm] [--note TEXT]

Every system runs worker processes x 4 threads that want to call all the time, for all rates at once
(each rate is an endpoint of its own). Counted by the simulated provider, not by the callers.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.limits import ours, peers
from darkroom_local import ministack
from darkroom_local.processes import ROOT
from darkroom_local.providers import Simulator

THREADS = 4
LATENCY = 1.0  # of a call: 16 workers suffice for 600 a minute
WARM_UP = 10.0
RESULTS = ROOT / "benchmarks" / "results" / "limits.json"
COLUMNS = [
    "system",
    "processes",
    "rate",
    "calls",
    "refused",
    "refused_percent",
    "most_in_a_minute",
    "utilisation_percent",
    "wait_p50",
    "wait_p95",
    "bookings_per_image",
    "dynamodb_per_image",
    "errors",
]


@dataclass(frozen=True)
class Trial:
    """One system at one size; `names` gives each rate's endpoint."""

    system: str
    processes: int
    names: dict[int, str]
    folder: str
    seconds: float

    @property
    def lasts(self) -> float:
        return WARM_UP + self.seconds


@contextmanager
def simulator(config: dict[str, Any]) -> Iterator[Simulator]:
    """The simulated providers in a process of their own."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        command = [sys.executable, "-m", "darkroom_local.providers", "--config", file.name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield Simulator(json.loads(process.stdout.readline())["port"])
        finally:
            process.terminate()
            process.wait(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[4, 12, 32])
    parser.add_argument("--rates", type=int, nargs="+", default=[60, 300, 600])
    parser.add_argument("--seconds", type=float, default=75)
    parser.add_argument("--systems", nargs="+", default=["darkroom", *peers.PEERS])
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    stop_children_when_terminated()
    runs: list[dict[str, Any]] = []
    for system in chosen.systems:
        for processes in chosen.processes:
            runs += run(system, processes, chosen.rates, chosen.seconds)
            chosen.output.write_text(json.dumps(_document(chosen, runs), indent=1) + "\n")
    print(table(runs))


def stop_children_when_terminated() -> None:
    """SIGTERM ends this process the orderly way, and with it all that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run(system: str, processes: int, rates: list[int], seconds: float) -> list[dict[str, Any]]:
    """One system at one size, all rates side by side."""
    names = {rate: f"{system}-{processes}-{rate}" for rate in rates}
    with (
        tempfile.TemporaryDirectory() as folder,
        simulator({"endpoints": _fresh(names)}) as provider,
    ):
        trial = Trial(system, processes, names, folder, seconds)
        drive = _darkroom if system == "darkroom" else _peer
        began, load = drive(trial, provider)
        stats = provider.stats(arrivals=True)
        return [
            _measured(trial, rate, stats[name], began) | {"started": began, "load_average": load}
            for rate, name in names.items()
        ]


def _darkroom(trial: Trial, provider: Simulator) -> tuple[float, float]:
    with ministack.running(auth=False) as stack:
        ours.make_table(stack.url)
        fleets = [
            ours.start(
                ours.Spec(
                    name,
                    _secret(provider, name, rate),
                    stack.url,
                    trial.processes,
                    THREADS,
                    trial.folder,
                )
            )
            for rate, name in trial.names.items()
        ]
        for _processes, wait_ready, _go in fleets:
            wait_ready()
        provider.configure({"endpoints": _fresh(trial.names)})
        began = time.time()
        for _processes, _ready, go in fleets:
            go()
        time.sleep(trial.lasts)
        for members, _ready, _go in fleets:
            for member in members:
                member.kill()
        return began, os.getloadavg()[0]


def _peer(trial: Trial, provider: Simulator) -> tuple[float, float]:
    with peers.redis() as port:
        loads = [
            {
                "name": name,
                "url": provider.base_url(name),
                "rate": rate,
                "processes": trial.processes,
                "threads": THREADS,
                "folder": trial.folder,
                "redis_port": port,
            }
            for rate, name in trial.names.items()
        ]
        load = peers.start(trial.system, loads)
        load.wait_ready()
        provider.configure({"endpoints": _fresh(trial.names)})
        began = time.time()
        load.tell()
        time.sleep(trial.lasts)
        load.stop()
        return began, os.getloadavg()[0]


def _fresh(names: dict[int, str]) -> dict[str, Any]:
    latency = {"kind": "fixed", "seconds": LATENCY}
    return {
        name: {"requests_per_minute": rate, "mode": "fast", "latency": latency}
        for rate, name in names.items()
    }


def _secret(provider: Simulator, name: str, rate: int) -> str:
    endpoint = {
        "name": name,
        "provider": "openai",
        "tier": 1,
        "api_keys": ["k"],
        "base_url": provider.base_url(name),
        "requests_per_minute": rate,
        "max_in_flight": 0,
        "timeout_seconds": 30,
    }
    return json.dumps({"endpoints": [endpoint]})


def _measured(trial: Trial, rate: int, stats: dict[str, Any], began: float) -> dict[str, Any]:
    """Calls of the whole run; the rate over the `seconds` after the warm-up."""
    seconds = trial.seconds
    allowed = [t for t in stats["allowed_arrivals"] if WARM_UP <= t < WARM_UP + seconds]
    rows = [
        json.loads(line)
        for file in Path(trial.folder).glob(f"{trial.names[rate]}-*.jsonl")
        for line in file.read_text().splitlines()
        if line.endswith("}")
    ]
    done = [r for r in rows if "took" in r]
    waits = sorted(r["wait"] if r["wait"] is not None else r["took"] - LATENCY for r in done)
    requests = _requests_per_image(rows, began, seconds) if trial.system == "darkroom" else {}
    return {
        "system": trial.system,
        "processes": trial.processes,
        "rate": rate,
        "calls": stats["calls"],
        "refused": stats["refused"],
        "refused_percent": round(100 * stats["refused"] / max(1, stats["calls"]), 1),
        "most_in_a_minute": stats["max_in_window"],
        "utilisation_percent": round(100 * len(allowed) / (rate * seconds / 60), 1),
        "wait_p50": round(statistics.median(waits), 2) if waits else None,
        "wait_p95": round(waits[int(0.95 * (len(waits) - 1))], 2) if waits else None,
        "bookings_per_image": requests.get("bookings"),
        "dynamodb_per_image": requests.get("all"),
        "errors": len([r for r in rows if "error" in r]),
    }


def _requests_per_image(
    rows: list[dict[str, Any]], began: float, seconds: float
) -> dict[str, float]:
    """DynamoDB requests in the window over images made in it: the steady state. A process that
    starts cold reads each endpoint once more."""
    start, end = began + WARM_UP, began + WARM_UP + seconds
    made = [r["request"] for r in rows if "request" in r and start <= r["at"] < end]
    images = len([r for r in rows if "took" in r and start <= r["begun"] + r["took"] < end])
    if not images:
        return {}
    # Every image has one update after its call; the other updates are bookings and lost races.
    return {
        "bookings": round(made.count("UpdateItem") / images - 1, 3),
        "all": round(len(made) / images, 3),
    }


def _document(chosen: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "python": platform.python_version(),
        "also_running": chosen.note,
        "threads_per_process": THREADS,
        "call_latency_seconds": LATENCY,
        "warm_up_seconds": WARM_UP,
        "window_seconds": chosen.seconds,
        "runs": runs,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """As Markdown, for docs/limits.md."""
    head = "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)
    lines = [
        "| " + " | ".join("" if r[c] is None else str(r[c]) for c in COLUMNS) + " |" for r in runs
    ]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    main()
