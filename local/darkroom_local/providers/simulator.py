"""The simulated providers in a thread of this process, for tests and benchmarks."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


async def _serve(config: Config, port: int, started: threading.Event, ports: list[int]) -> None:
    """Serve until cancelled."""
    providers = SimulatedProviders(config)
    server = await providers.start(port)
    try:
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        await asyncio.Event().wait()
    finally:
        server.close()
        await providers.stop()


@contextmanager
def running(config: Config | Mapping[str, Any] | None = None, port: int = 0) -> Iterator[Simulator]:
    """Start on a free port of 127.0.0.1, and stop at the end, hanging requests included."""
    checked = config if isinstance(config, Config) else Config.model_validate(config or {})
    loop = asyncio.new_event_loop()
    started, ports = threading.Event(), list[int]()
    main = loop.create_task(_serve(checked, port, started, ports))

    def run() -> None:
        try:
            loop.run_until_complete(main)
        except asyncio.CancelledError:
            pass
        finally:
            started.set()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=run, name="simulated-providers", daemon=True)
    thread.start()
    started.wait(10)
    if not ports:
        thread.join(1)
        raise OSError(f"the simulated providers did not start on port {port}")
    try:
        yield Simulator(ports[0])
    finally:
        loop.call_soon_threadsafe(main.cancel)
        thread.join(10)
