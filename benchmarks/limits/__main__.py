"""Are limits kept over all workers? Darkroom and two peers against a strict sliding window.

python -m benchmarks.limits [--processes 4 12 32] [--rates 60 300 600] [--seconds 75]
                            [--systems darkroom diffgentor litellm] [--note TEXT]

Each system runs worker processes of 4 threads that try to call all the time, for all rates at once
(each rate is an endpoint of its own). The simulated provider counts, not the callers.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from benchmarks.limits import darkroom_load, peers
from darkroom_local import ministack
from darkroom_local.providers import Simulator

THREADS = 4
LATENCY = 1.0  # of a call, in seconds: 16 workers suffice for 600 a minute
WARM_UP = 10.0
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
    "reservations_per_image",
    "dynamodb_per_image",
    "errors",
]

type Load = darkroom_load.DarkroomLoad | peers.PeerLoad


@dataclass(frozen=True)
class Trial:
    """One system at one size; `names` gives each rate's endpoint."""

    system: str
    processes: int
    names: dict[int, str]
    folder: str
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[4, 12, 32])
    parser.add_argument("--rates", type=int, nargs="+", default=[60, 300, 600])
    parser.add_argument("--seconds", type=float, default=75)
    parser.add_argument("--systems", nargs="+", default=["darkroom", *peers.PEERS])
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--output", type=Path, default=RESULTS / "limits.json")
    options = parser.parse_args()
    exit_on_sigterm()
    runs: list[dict[str, Any]] = []
    for system in options.systems:
        for processes in options.processes:
            runs += run(system, processes, options.rates, options.seconds)
            conditions = {
                "also_running": options.note,
                "threads_per_process": THREADS,
                "call_latency_seconds": LATENCY,
                "warm_up_seconds": WARM_UP,
                "window_seconds": options.seconds,
            }
            write_results(options.output, conditions, runs)
    print(markdown_table(COLUMNS, runs))


def run(system: str, processes: int, rates: list[int], seconds: float) -> list[dict[str, Any]]:
    """One system at one size, all rates side by side."""
    names = {rate: f"{system}-{processes}-{rate}" for rate in rates}
    config = {"endpoints": {name: _endpoint_config(rate) for rate, name in names.items()}}
    with tempfile.TemporaryDirectory() as folder, simulator(config) as provider:
        trial = Trial(system, processes, names, folder, seconds)
        start = _darkroom if system == "darkroom" else _peer
        with start(trial, provider) as loads:
            for load in loads:
                load.wait_ready()
            provider.configure(config)
            started = time.time()
            for load in loads:
                load.go()
            time.sleep(WARM_UP + seconds)
            for load in loads:
                load.stop()
        load_average = os.getloadavg()[0]
        stats = provider.stats(arrivals=True)
        return [
            _figures(trial, rate, stats[name], started)
            | {"started": started, "load_average": load_average}
            for rate, name in names.items()
        ]


@contextmanager
def _darkroom(trial: Trial, provider: Simulator) -> Iterator[list[Load]]:
    with ministack.running(auth=False) as stack:
        darkroom_load.create_table(stack.url)
        yield [
            darkroom_load.DarkroomLoad(
                darkroom_load.Spec(
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


@contextmanager
def _peer(trial: Trial, provider: Simulator) -> Iterator[list[Load]]:
    with peers.redis() as port:
        specs = [
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
        yield [peers.start(trial.system, specs)]


def _endpoint_config(rate: int) -> dict[str, Any]:
    latency = {"kind": "fixed", "seconds": LATENCY}
    return {"requests_per_minute": rate, "mode": "fast", "latency": latency}


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


def _figures(trial: Trial, rate: int, stats: dict[str, Any], started: float) -> dict[str, Any]:
    """Calls of the whole run; the rate over the `seconds` after the warm-up."""
    seconds = trial.seconds
    allowed = [t for t in stats["allowed_arrivals"] if WARM_UP <= t < WARM_UP + seconds]
    rows = records(trial.folder, f"{trial.names[rate]}-*.jsonl")
    done = [r for r in rows if "seconds" in r]
    waits = sorted(r["wait"] if r["wait"] is not None else r["seconds"] - LATENCY for r in done)
    requests = _requests_per_image(rows, started, seconds) if trial.system == "darkroom" else {}
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
        "reservations_per_image": requests.get("reservations"),
        "dynamodb_per_image": requests.get("all"),
        "errors": len([r for r in rows if "error" in r]),
    }


def _requests_per_image(
    rows: list[dict[str, Any]], started: float, seconds: float
) -> dict[str, float]:
    """DynamoDB requests per image in the window: the steady state, without cold reads."""
    start, end = started + WARM_UP, started + WARM_UP + seconds
    requests = [r["request"] for r in rows if "request" in r and start <= r["at"] < end]
    done = [r["started"] + r["seconds"] for r in rows if "seconds" in r]
    images = len([at for at in done if start <= at < end])
    if not images:
        return {}
    # One update per image is its settlement; the others are reservations and lost races.
    return {
        "reservations": round(requests.count("UpdateItem") / images - 1, 3),
        "all": round(len(requests) / images, 3),
    }


if __name__ == "__main__":
    main()
