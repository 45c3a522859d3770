"""The simulated providers in a thread of this process, for tests and benchmarks."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from darkroom_local.processes import in_event_loop
from darkroom_local.providers.config import Config
from darkroom_local.providers.server import SimulatedProviders


class Simulator:
    """A running server, told and asked over HTTP, in this process or in another."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def base_url(self, endpoint: str) -> str:
        """What goes into an endpoint's `base_url`, for either provider."""
        return f"{self.url}/{endpoint}"

    def stats(self, *, arrivals: bool = False) -> dict[str, Any]:
        """Counts per endpoint name; with `arrivals`, their times since it was configured."""
        found = self._call("GET", f"/_sim/stats?arrivals={int(arrivals)}")
        endpoints: dict[str, Any] = found["endpoints"]
        return endpoints

    def configure(self, config: Config | Mapping[str, Any]) -> None:
        """The endpoints named start afresh, counts included. Raises ValueError when it is wrong."""
        if not isinstance(config, Config):
            config = Config.model_validate(config)
        self._call("POST", "/_sim/configure", config.model_dump_json())

    def _call(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            found: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ValueError(str(found.get("error")))
        return found


@contextmanager
def running(config: Config | Mapping[str, Any] | None = None, port: int = 0) -> Iterator[Simulator]:
    """Start on a free port of 127.0.0.1, and stop at the end, hanging requests included.

    Raises OSError when the port is taken.
    """
    checked = config if isinstance(config, Config) else Config.model_validate(config or {})
    with in_event_loop(lambda: SimulatedProviders(checked).listening(port)) as chosen:
        yield Simulator(chosen)
