"""The simulated providers as a child process, and the secret that sends the functions there."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkroom_local.processes import LocalStackError, spawn, stop_group, wait_until
from darkroom_local.providers.config import Config, Fixed, SimulatedEndpoint

START_SECONDS = 30.0
LATENCY = Fixed(seconds=0.3)  # as patient as a demo wants; the real ones take 5 s to 60 s
DEFAULT_CONFIG = Config(
    endpoints={
        "gemini-main": SimulatedEndpoint(latency=LATENCY),
        "openai-main": SimulatedEndpoint(latency=LATENCY),
    }
)


@dataclass(slots=True)
class Simulation:
    """Running simulated providers: `{url}/{endpoint name}/` speaks either wire format."""

    url: str
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """Also the id of its process group."""
        return self.process.pid

    def stop(self) -> None:
        stop_group(self.process.pid, self.process)
        if self.process.stdin is not None:
            self.process.stdin.close()


def start(work: Path, config: Config = DEFAULT_CONFIG, *, detached: bool = False) -> Simulation:
    """Start them on a free port, logs and configuration in `work`. Raises LocalStackError."""
    settings, log = work / "providers.json", work / "providers.log"
    settings.write_text(config.model_dump_json(indent=2))
    log.unlink(missing_ok=True)
    environment = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
    process = spawn(
        [
            sys.executable,
            "-m",
            "darkroom_local.providers",
            "--port",
            "0",
            "--config",
            str(settings),
        ],
        environment,
        log,
        detached=detached,
    )
    found: list[str] = []

    def announced() -> bool:
        lines = log.read_text(errors="replace").splitlines()
        found[:] = [line for line in lines if line.startswith('{"port"')]
        return bool(found) or process.poll() is not None

    if not wait_until(announced, START_SECONDS) or not found:
        stop_group(process.pid, process)
        raise LocalStackError(f"The simulated providers did not start: see {log}")
    return Simulation(json.loads(found[0])["url"], process)


def secret_for(
    url: str,
    config: Config = DEFAULT_CONFIG,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """An endpoints secret for the simulated endpoints, provider and tier by name.

    A name that starts with "openai" is OpenAI's and the second tier, any other Gemini's and the
    first. `overrides` are fields of the secret by endpoint name.
    """
    return {
        "endpoints": [
            {
                "name": name,
                "provider": "openai" if name.startswith("openai") else "gemini",
                "base_url": f"{url}/{name}" + ("/v1" if name.startswith("openai") else ""),
                "api_keys": list(endpoint.keys) or [f"simulated-key-of-{name}"],
                "requests_per_minute": endpoint.requests_per_minute,
                "max_in_flight": endpoint.max_in_flight or 16,
                **(overrides or {}).get(name, {}),
            }
            for name, endpoint in config.endpoints.items()
        ]
    }
