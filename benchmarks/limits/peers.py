"""The peers, each in a virtual environment of its own under .local/bench/, created when missing."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkroom_local.processes import ROOT, free_port

ENVIRONMENTS = ROOT / ".local" / "bench"
# diffgentor's API pool needs Pillow alone; its other dependencies (torch, …) are left out.
PEERS = {
    "diffgentor": [["pillow"], ["--no-deps", "diffgentor==0.1.2"]],
    "litellm": [["litellm==1.106.2", "redis"]],
}


@dataclass
class PeerLoad:
    """A peer's driver process, started and stopped by a line of input each."""

    process: subprocess.Popen[str]

    def wait_ready(self) -> None:
        if self.process.stdout is None or "ready" not in self.process.stdout.readline():
            raise RuntimeError("the peer did not start; its errors are above")

    def go(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        self.go()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def python_of(peer: str) -> Path:
    """The peer's interpreter; installs the peer from PyPI the first time."""
    environment = ENVIRONMENTS / peer
    python = environment / "bin" / "python"
    if not python.exists():
        print(f"installing {peer} into {environment}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        for arguments in PEERS[peer]:
            subprocess.run([str(python), "-m", "pip", "install", "-q", *arguments], check=True)
    return python


def start(peer: str, loads: list[dict[str, Any]]) -> PeerLoad:
    script = Path(__file__).parent / f"peer_{peer}.py"
    process = subprocess.Popen(
        [str(python_of(peer)), str(script), json.dumps(loads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # LiteLLM would fetch a price list over the network at import.
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
    return PeerLoad(process)


@contextmanager
def redis() -> Iterator[int | None]:
    """The port of a Redis that LiteLLM's instances share; None without a redis-server."""
    server = shutil.which("redis-server")
    if server is None:
        print(
            "no redis-server here (apt-get install redis-server): LiteLLM runs without", flush=True
        )
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
