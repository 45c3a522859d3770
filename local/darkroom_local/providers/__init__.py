"""Simulated providers: Gemini's and OpenAI's image APIs on this machine, with limits and faults.

`python -m darkroom_local.providers --port 0 --config FILE`, or in a test `with running(config) as
simulator`. An endpoint NAME of the config is served at `http://127.0.0.1:PORT/NAME`, in both API
formats. `GET /_sim/stats` returns counts, `POST /_sim/configure` restarts endpoints.
"""

from darkroom_local.providers.config import Config, Fault, FaultKind, SimulatedEndpoint, When
from darkroom_local.providers.simulator import Simulator, running

__all__ = ["Config", "Fault", "FaultKind", "SimulatedEndpoint", "Simulator", "When", "running"]
