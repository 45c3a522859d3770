"""Shared by the benchmarks of limits and of an outage."""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from darkroom_local.processes import ROOT
from darkroom_local.providers import Simulator

RESULTS = ROOT / "benchmarks" / "results"


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


def exit_on_sigterm() -> None:
    """Lets SIGTERM run the `finally` blocks, which stop the processes that were started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def write_results(file: Path, conditions: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """JSON, a line per run: when and where it was measured, under which conditions, the figures."""
    document = {
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "python": platform.python_version(),
        **conditions,
    }
    head = json.dumps(document, indent=1).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(run) for run in runs)
    file.write_text(f'{head},\n "runs": [\n  {lines}\n ]\n}}\n')


def records(folder: str, pattern: str = "*.jsonl") -> list[dict[str, Any]]:
    """The lines of the workers' logs, without those cut off when a worker was killed."""
    return [
        json.loads(line)
        for file in Path(folder).glob(pattern)
        for line in file.read_text().splitlines()
        if line.endswith("}")
    ]


def markdown_table(columns: Sequence[str], runs: list[dict[str, Any]]) -> str:
    """For docs/benchmarks.md."""
    lines = [[("" if run[c] is None else str(run[c])) for c in columns] for run in runs]
    table = [list(columns), ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)
