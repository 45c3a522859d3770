"""The simulated providers in a thread of this process, for tests and benchmarks."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from darkroom_local.processes import in_event_loop
from darkroom_local.providers.config import Config
from darkroom_local.providers.server import SimulatedProviders


class Simulator:
    """A client of a running server, in this process or in another."""

    def __init__(self, url: str) -> None:
        self.url = url

    def base_url(self, endpoint: str) -> str:
        """The `base_url` of a Darkroom endpoint, for either provider."""
        return f"{self.url}/{endpoint}"

    def stats(self) -> dict[str, Any]:
        """Counts and times of arrival since it was configured, per endpoint name."""
        return self._call("GET", "/_sim/stats")

    def configure(self, config: Config | Mapping[str, Any]) -> None:
        """Restart the endpoints that it names, counts included. Raises ValueError if invalid."""
        body = Config.model_validate(config).model_dump_json()
        self._call("POST", "/_sim/configure", body)

    def _call(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        address = self.url.removeprefix("http://")
        with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        if response.status != http.client.OK:
            raise ValueError(str(answer.get("error")))
        return answer


@contextmanager
def running(config: Config | Mapping[str, Any] | None = None, port: int = 0) -> Iterator[Simulator]:
    """Serve on a port of 127.0.0.1 (0: a free one) until the end, open requests included.

    Raises OSError when the port is in use.
    """
    checked = Config.model_validate(config or {})
    with in_event_loop(SimulatedProviders(checked).listening(port)) as bound_port:
        yield Simulator(f"http://127.0.0.1:{bound_port}")
