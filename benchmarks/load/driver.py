"""Processes of threads that send one row after another; standard library only.

Each system's module passes `drive` a function, and runs in the system's own environment: see
benchmarks/harness.py.
"""

import http.client
import json
import multiprocessing
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

START_SECONDS = 180
_BODY = json.dumps({"model": "gpt-image-1.5", "prompt": "make it red"}).encode()
_local = threading.local()

type Load = dict[str, Any]  # see harness.started
type Log = Callable[[dict[str, Any]], None]
type Row = Callable[[], dict[str, Any] | None]
type MakeRow = Callable[[Load, Log], Row]


def drive(make_row: MakeRow) -> None:
    """Run the loads given as JSON on the command line, from one line of standard input to the next.

    In each process `make_row` returns the function that edits one row. It returns what to log of a
    success, or None for a row that does not count; an exception is logged as an error.
    """
    loads: list[Load] = json.loads(sys.argv[1])
    context = multiprocessing.get_context("fork")  # after the system's import: it can take seconds
    barrier = context.Barrier(sum(load["processes"] for load in loads) + 1)
    processes = [
        context.Process(target=_run, args=(make_row, load, number, barrier), daemon=True)
        for load in loads
        for number in range(load["processes"])
    ]
    for process in processes:
        process.start()
    barrier.wait(START_SECONDS)
    print("ready", flush=True)
    sys.stdin.readline()
    barrier.wait(START_SECONDS)
    sys.stdin.readline()
    for process in processes:
        process.kill()


def _run(make_row: MakeRow, load: Load, number: int, barrier: Barrier) -> None:
    path = Path(load["folder"]) / f"{load['name']}-{number}.jsonl"
    with path.open("w", buffering=1) as out:

        def log(line: dict[str, Any]) -> None:
            out.write(json.dumps(line) + "\n")

        row = make_row(load, log)
        barrier.wait()  # all processes are ready
        barrier.wait()  # the harness starts the load
        threads = [threading.Thread(target=_work, args=(row, log)) for _ in range(load["threads"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _work(row: Row, log: Log) -> None:
    while True:
        started = time.time()
        try:
            facts = row()
        except Exception as error:  # noqa: BLE001 - whatever the system raises counts as an error
            log({"started": started, "error": f"{type(error).__name__}: {error}"[:200]})
        else:
            if facts is not None:
                log({"started": started, "seconds": time.time() - started} | facts)


def send(base_url: str, key: str, timeout: float) -> tuple[int, float | None]:
    """POST images/generations; returns the status and Retry-After. Raises OSError.

    Used in place of an SDK, so that the machine's cores are not spent on one.
    """
    address = urllib.parse.urlsplit(base_url)
    connections = _local.__dict__.setdefault("connections", {})
    if address.netloc not in connections:
        connections[address.netloc] = http.client.HTTPConnection(address.netloc, timeout=timeout)
    connection = connections[address.netloc]
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", f"{address.path}/images/generations", _BODY, headers)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise OSError(str(error)) from error
    retry_after = response.headers.get("Retry-After")
    return response.status, float(retry_after) if retry_after else None
