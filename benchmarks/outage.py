"""Gemini answers 503 from second 10 to 70: what happens to the rows?

python -m benchmarks.outage [--processes 4] [--systems darkroom plain] [--note TEXT]

Darkroom, with the real DynamoDB adapter on MiniStack, against the plain procedure of the fallback
guide (benchmarks/load/plain.py): same workers, same simulated providers, same sender.
"""

import statistics
from typing import Any

from benchmarks import harness

DOWN_SECONDS = (10.0, 70.0)  # from, until
DURATION_SECONDS = 100.0
LATENCY_SECONDS = 3.0


def main() -> None:
    parser = harness.parser(__doc__, "outage", ["darkroom", "plain"])
    parser.add_argument("--processes", type=int, default=4)
    chosen = parser.parse_args()
    facts = {
        "processes": chosen.processes,
        "down_seconds": DOWN_SECONDS,
        "call_latency_seconds": LATENCY_SECONDS,
    }
    runs = []
    for system in chosen.systems:
        runs.append(_run(system, chosen.processes))
        print(runs[-1], flush=True)
    harness.save(chosen, facts, runs)
    harness.print_table(runs, without={"seconds_of_wasted_calls"})


def _run(system: str, processes: int) -> dict[str, Any]:
    latency = {"kind": "fixed", "seconds": LATENCY_SECONDS}
    when = {"from_second": DOWN_SECONDS[0], "until_second": DOWN_SECONDS[1]}
    simulated = {
        "first": {"latency": latency, "faults": [{"kind": "overloaded", "when": when}]},
        "second": {"latency": latency},
    }
    endpoints = [
        harness.endpoint("first", "gemini", rate=60),
        harness.endpoint("second", "openai", rate=600),
    ]
    load = {"name": "outage", "processes": processes, "endpoints": endpoints}
    run = harness.measure(system, [load], DURATION_SECONDS, simulated)
    rows = [line for line in run.lines["outage"] if "seconds" in line]
    return {"system": system} | _measured(rows, run.began, run.stats)


def _measured(rows: list[dict[str, Any]], began: float, stats: dict[str, Any]) -> dict[str, Any]:
    minutes = (DOWN_SECONDS[1] - DOWN_SECONDS[0]) / 60
    start, end = (began + second for second in DOWN_SECONDS)
    ended = [(row["started"] + row["seconds"], row["endpoint"]) for row in rows]
    by_fallback = [t for t, endpoint in ended if endpoint == "second" and t >= start]
    recovered = [t for t, endpoint in ended if endpoint == "first" and t >= end + LATENCY_SECONDS]
    # Rows that began in the outage, however long they took; those that never ended do not count.
    durations = sorted(row["seconds"] for row in rows if start <= row["started"] < end)
    wasted = [
        round(t - DOWN_SECONDS[0], 1)
        for t in stats["first"]["arrivals"]
        if DOWN_SECONDS[0] <= t < DOWN_SECONDS[1]
    ]
    return {
        "seconds_to_first_image_after_it_began": (
            round(min(by_fallback) - start, 2) if by_fallback else None
        ),
        "images_per_minute_in_outage": round(sum(start <= t < end for t, _ in ended) / minutes, 1),
        "calls_wasted_per_minute": round(len(wasted) / minutes, 1),
        "row_seconds_p50": round(statistics.median(durations), 2),
        "row_seconds_p95": round(durations[int(0.95 * (len(durations) - 1))], 2),
        "healthy_fallback_call_seconds": LATENCY_SECONDS,
        "seconds_until_first_tier_is_back": round(min(recovered) - end, 1) if recovered else None,
        "refused": stats["first"]["refused"] + stats["second"]["refused"],
        "seconds_of_wasted_calls": wasted,
    }


if __name__ == "__main__":
    main()
