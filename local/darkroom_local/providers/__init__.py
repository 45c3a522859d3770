"""Simulated providers: Gemini's and OpenAI's image APIs on this machine, with limits and faults.

`python -m darkroom_local.providers --port 0 --config FILE`, or in a test `with running(config) as
simulator`. An endpoint NAME of the config answers under `http://127.0.0.1:PORT/NAME`, in both wire
formats. `GET /_sim/stats` counts what happened, `POST /_sim/configure` starts endpoints afresh.
"""

from darkroom_local.providers.config import (
    Config,
    Fault,
    FaultKind,
    Fixed,
    Lognormal,
    SimulatedEndpoint,
    When,
)
from darkroom_local.providers.simulator import Simulator, running

__all__ = [
    "Config",
    "Fault",
    "FaultKind",
    "Fixed",
    "Lognormal",
    "SimulatedEndpoint",
    "Simulator",
    "When",
    "running",
]
