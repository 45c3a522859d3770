"""The part that all peers' loads share; standard library only. peers.py runs it."""

import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

type Load = dict[str, Any]
type MakeRow = Callable[[Load], Callable[[], str | None]]


def drive(make_row: MakeRow) -> None:
    """Run the loads given as JSON on the command line, from one line of input to the next.

    In each process `make_row(load)` returns the function that edits one row, which returns None on
    success, else the error.
    """
    context = multiprocessing.get_context("fork")  # spawn would import the peer again: seconds
    go, ready = context.Event(), context.Semaphore(0)

    def run(load: Load, number: int) -> None:
        row = make_row(load)
        log = Path(load["folder"]) / f"{load['name']}-{number}.jsonl"
        with log.open("w", buffering=1) as out:

            def work() -> None:
                while True:
                    started = time.time()
                    error = row()
                    done = {"seconds": time.time() - started, "wait": None}
                    record = done if error is None else {"error": error}
                    out.write(json.dumps({"started": started} | record) + "\n")

            ready.release()
            go.wait()
            threads = [threading.Thread(target=work, daemon=True) for _ in range(load["threads"])]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    processes = [
        context.Process(target=run, args=(load, number), daemon=True)
        for load in json.loads(sys.argv[1])
        for number in range(load["processes"])
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    print("ready", flush=True)
    sys.stdin.readline()
    go.set()
    sys.stdin.readline()
    for process in processes:
        process.kill()
