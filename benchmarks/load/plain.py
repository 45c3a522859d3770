"""Load by the plain procedure of the fallback guide.

Each call is tried, retried twice from a base delay of 5 s, and then sent to the other provider.
Each process keeps its share of the limit (limit / processes), so that 429s do not slow it as well.
"""

import random
import threading
import time
from typing import Any

from benchmarks.load.driver import Load, Log, Row, drive, send
from darkroom.retry import backoff, with_jitter


def make_row(load: Load, _log: Log) -> Row:
    first, second = load["endpoints"]
    interval_seconds = 60 * load["processes"] / first["requests_per_minute"]
    next_slot, lock = 0.0, threading.Lock()

    def wait_for_slot() -> None:
        nonlocal next_slot
        with lock:
            slot = max(time.monotonic(), next_slot)
            next_slot = slot + interval_seconds
        time.sleep(max(0.0, slot - time.monotonic()))

    def row() -> dict[str, Any] | None:
        for attempt in (1, 2, 3):
            wait_for_slot()
            if _succeeds(first):
                return {"endpoint": first["name"]}
            if attempt < 3:
                time.sleep(with_jitter(backoff(attempt, 5.0), random.random))
        return {"endpoint": second["name"]} if _succeeds(second) else None

    return row


def _succeeds(endpoint: dict[str, Any]) -> bool:
    try:
        return send(endpoint["base_url"], endpoint["api_keys"][0], 60.0)[0] == 200
    except OSError:
        return False


if __name__ == "__main__":
    drive(make_row)
