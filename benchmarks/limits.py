"""Do limits hold across workers? Darkroom and two peers against a strict sliding window.

python -m benchmarks.limits [--processes 4 12 32] [--rates 60 300 600] [--seconds 75]
                            [--variants plain 429s 503s in-flight two-tiers]
                            [--systems darkroom diffgentor litellm] [--note TEXT]

Every system runs worker processes x 4 threads that try to call all the time, for all rates at once
(each rate is an endpoint of its own). Counted by the simulated provider, not by the callers.
"""

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks import harness
from benchmarks.load.driver import Load

LATENCY_SECONDS = 1.0  # of a call: 16 workers suffice for 600 a minute
WARM_UP_SECONDS = 10.0
LATENCY = {"kind": "fixed", "seconds": LATENCY_SECONDS}
# Darkroom alone, with the fewest processes: stray faults, a limit of calls in flight (4 of 1 s each
# are 240 a minute), and a fallback tier, which a busy first tier must not use.
VARIANTS = ["plain", "429s", "503s", "in-flight", "two-tiers"]
MAX_IN_FLIGHT = 4
FAULTS = {
    "429s": [{"kind": "rate_limited", "hint": "none", "when": {"rate": 0.01}}],
    "503s": [{"kind": "overloaded", "when": {"rate": 0.01}}],
}


def main() -> None:
    parser = harness.parser(__doc__, "limits", ["darkroom", *harness.PEERS])
    parser.add_argument("--processes", type=int, nargs="+", default=[4, 12, 32])
    parser.add_argument("--rates", type=int, nargs="+", default=[60, 300, 600])
    parser.add_argument("--seconds", type=float, default=75)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    chosen = parser.parse_args()
    facts = {
        "call_latency_seconds": LATENCY_SECONDS,
        "warm_up_seconds": WARM_UP_SECONDS,
        "window_seconds": chosen.seconds,
    }
    runs: list[dict[str, Any]] = []
    for system, variant, processes in _chosen_runs(chosen):
        runs += _run(system, variant, processes, chosen.rates, chosen.seconds)
        harness.save(chosen, facts, runs)
    harness.print_table(runs, without={"started", "load_average"})


def _chosen_runs(chosen: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """(system, variant, processes). The peers run without the variants."""
    for system in chosen.systems:
        for variant in chosen.variants if system == "darkroom" else ["plain"]:
            for processes in chosen.processes if variant == "plain" else chosen.processes[:1]:
                yield system, variant, processes


def _run(
    system: str, variant: str, processes: int, rates: list[int], seconds: float
) -> list[dict[str, Any]]:
    """One system with `processes` processes, all rates side by side."""
    names = {rate: f"{system}-{variant}-{processes}-{rate}" for rate in rates}
    fields: dict[str, Any] = {"tier": 1, "timeout_seconds": 30}
    if variant == "in-flight":
        fields["max_in_flight"] = MAX_IN_FLIGHT
    loads: list[Load] = []
    simulated: dict[str, Any] = {}
    for rate, name in names.items():
        endpoints = [harness.endpoint(name, "openai", rate, **fields)]
        if variant == "two-tiers":
            second = f"{name}-fallback"
            endpoints.append(harness.endpoint(second, "openai", rate, tier=2, timeout_seconds=30))
            simulated[second] = {"latency": LATENCY}
        loads.append({"name": name, "processes": processes, "endpoints": endpoints})
        simulated[name] = {"latency": LATENCY, "faults": FAULTS.get(variant, [])}
    run = harness.measure(system, loads, WARM_UP_SECONDS + seconds, simulated)
    return [
        {"system": system, "variant": variant, "processes": processes, "rate": rate}
        | _measured(run.lines[name], rate, run.stats[name], run.began, seconds)
        | {"started": run.began, "load_average": run.load_average}
        for rate, name in names.items()
    ]


def _measured(
    lines: list[dict[str, Any]], rate: int, stats: dict[str, Any], began: float, seconds: float
) -> dict[str, Any]:
    """Calls of the whole run; the rate over the `seconds` after the warm-up."""
    end = WARM_UP_SECONDS + seconds
    allowed = [t for t in stats["allowed_arrivals"] if WARM_UP_SECONDS <= t < end]
    rows = [line for line in lines if "seconds" in line]
    waits = sorted(row.get("wait", row["seconds"] - LATENCY_SECONDS) for row in rows)
    return {
        "calls": stats["calls"],
        "refused": stats["refused"],
        "refused_percent": round(100 * stats["refused"] / max(1, stats["calls"]), 1),
        "most_in_a_minute": stats["max_in_window"],
        "utilisation_percent": round(100 * len(allowed) / (rate * seconds / 60), 1),
        "wait_p50": round(statistics.median(waits), 2) if waits else None,
        "wait_p95": round(waits[int(0.95 * (len(waits) - 1))], 2) if waits else None,
        **_requests_per_image(lines, began + WARM_UP_SECONDS, began + end),
        "errors": sum("error" in line for line in lines),
    }


def _requests_per_image(
    lines: list[dict[str, Any]], start: float, end: float
) -> dict[str, float | None]:
    """DynamoDB requests in the window over images made in it: the steady state.

    A process that starts cold reads each endpoint once more.
    """
    requests = [r["request"] for r in lines if "request" in r and start <= r["at"] < end]
    images = sum(start <= r["started"] + r["seconds"] < end for r in lines if "seconds" in r)
    if not (requests and images):
        return {"reservations_per_image": None, "dynamodb_per_image": None}
    return {
        # Each image has one update after its call; the others are reservations and lost races.
        "reservations_per_image": round(requests.count("UpdateItem") / images - 1, 3),
        "dynamodb_per_image": round(len(requests) / images, 3),
    }


if __name__ == "__main__":
    main()
