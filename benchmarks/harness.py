"""What the benchmarks share: the systems' processes, the simulated providers and the results.

A system is a module of benchmarks/load. Peers run in virtual environments of their own under
.local/bench/, made when missing.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import darkroom
from benchmarks.load.driver import Load
from darkroom_local import ministack
from darkroom_local.processes import ROOT, free_port
from darkroom_local.providers import Config, Simulator
from darkroom_local.stack import start_providers
from tests.tables import create_table

THREADS = 4  # of each process
ENVIRONMENTS = ROOT / ".local" / "bench"
# diffgentor's API pool needs Pillow alone; its other dependencies (torch, …) are left out.
PEERS = {
    "diffgentor": [["pillow"], ["--no-deps", "diffgentor==0.1.2"]],
    "litellm": [["litellm==1.106.2", "redis"]],
}


def parser(description: str | None, name: str, systems: list[str]) -> argparse.ArgumentParser:
    """The options of all benchmarks. SIGTERM then ends the program and all that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--systems", nargs="+", default=systems)
    options.add_argument("--note", default="", help="what else ran on the machine")
    results = ROOT / "benchmarks" / "results" / f"{name}.json"
    options.add_argument("--output", type=Path, default=results)
    return options


def endpoint(name: str, provider: str, rate: int, **fields: Any) -> dict[str, Any]:
    """An endpoint as in the secret, to which `measure` adds the base URL."""
    limits = {"requests_per_minute": rate, "max_in_flight": 0}
    return {"name": name, "provider": provider, "api_keys": ["k"], **limits, **fields}


@dataclass(frozen=True, slots=True)
class Measurement:
    began: float  # Unix time
    lines: dict[str, list[dict[str, Any]]]  # logged by the processes, by the load's name
    stats: dict[str, Any]  # counted by the simulated providers, by the endpoint's name
    load_average: float  # of the machine, at the end


def measure(
    system: str, loads: list[Load], seconds: float, simulated: Mapping[str, Any]
) -> Measurement:
    """Run a system with all loads side by side.

    A load: `name` of its log, `processes`, and `endpoints`. `simulated`: the configuration of the
    simulated endpoints, whose rates are those of the loads.
    """
    with ExitStack() as services:
        folder = services.enter_context(tempfile.TemporaryDirectory())
        process, url = start_providers(Path(folder), Config())
        services.callback(process.stop)
        provider, config = Simulator(url), {}
        for load in loads:
            load |= {"threads": THREADS, "folder": folder}
            for target in load["endpoints"]:
                name, rate = target["name"], target["requests_per_minute"]
                target["base_url"] = provider.base_url(name)
                config[name] = {"requests_per_minute": rate, "mode": "fast", **simulated[name]}
        with _started(system, loads) as start:
            provider.configure({"endpoints": config})
            began = time.time()
            start()
            time.sleep(seconds)
            load_average = os.getloadavg()[0]
        lines = {load["name"]: _logged(folder, load["name"]) for load in loads}
        return Measurement(began, lines, provider.stats(), load_average)


@contextmanager
def _started(system: str, loads: list[Load]) -> Iterator[Callable[[], None]]:
    """The system's processes, all ready: the yielded function starts their calls."""
    with ExitStack() as services:
        shared: Load = {}
        if system == "darkroom":
            shared["dynamodb_url"] = services.enter_context(ministack.running(auth=False)).url
            client = darkroom.dynamodb(shared["dynamodb_url"], threads=1)
            create_table(client, "endpoints", darkroom.TABLE)
        if system == "litellm":
            shared["redis_port"] = services.enter_context(_redis())
        process = subprocess.Popen(
            [
                _python_of(system),
                *("-m", f"benchmarks.load.{system}"),
                json.dumps([shared | load for load in loads]),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # LiteLLM would fetch a price list over the network at import.
            env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        lines = process.stdin

        def send_line() -> None:
            lines.write("\n")
            lines.flush()

        try:
            if "ready" not in process.stdout.readline():
                raise RuntimeError(f"{system} did not start; its errors are above")
            yield send_line
            send_line()
            process.wait(20)
        finally:
            process.kill()
            process.wait()


def _python_of(system: str) -> str:
    """The interpreter; installs a peer from PyPI the first time."""
    if system not in PEERS:
        return sys.executable
    environment = ENVIRONMENTS / system
    python = str(environment / "bin" / "python")
    if not Path(python).exists():
        print(f"installing {system} into {environment}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        for arguments in PEERS[system]:
            subprocess.run([python, "-m", "pip", "install", "-q", *arguments], check=True)
    return python


@contextmanager
def _redis() -> Iterator[int | None]:
    """The port of a Redis for LiteLLM's instances to share; None where there is no redis-server."""
    server = shutil.which("redis-server")
    if server is None:
        print("no redis-server (apt-get install redis-server): LiteLLM runs without", flush=True)
        yield None
        return
    port = free_port()
    process = subprocess.Popen(
        [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"],
        stdout=subprocess.DEVNULL,
    )
    try:
        time.sleep(1)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _logged(folder: str, name: str) -> list[dict[str, Any]]:
    """The lines of the load's processes, except those cut off when the processes ended."""
    return [
        json.loads(line)
        for file in Path(folder).glob(f"{name}-*.jsonl")
        for line in file.read_text().splitlines()
        if line.endswith("}")
    ]


def save(chosen: argparse.Namespace, facts: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """Write a JSON document with one run per line."""
    head = {
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "python": platform.python_version(),
        "also_running": chosen.note,
        "threads_per_process": THREADS,
    } | facts
    lines = ",\n".join(json.dumps(run) for run in runs)
    chosen.output.write_text(f'{json.dumps(head)[:-1]},\n"runs": [\n{lines}\n]}}\n')


def print_table(runs: list[dict[str, Any]], *, without: set[str]) -> None:
    """As Markdown, for docs/benchmarks.md."""
    columns = [name for name in runs[0] if name not in without]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for run in runs:
        cells = ("" if run[name] is None else str(run[name]) for name in columns)
        print("| " + " | ".join(cells) + " |")
