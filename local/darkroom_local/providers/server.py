"""The simulated providers as one HTTP server: limits, script of faults, picture, statistics."""

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from pydantic import ValidationError

from darkroom_local.providers import artist, gemini_wire, http, openai_wire, rules
from darkroom_local.providers.config import (
    Config,
    Fault,
    FaultKind,
    Fixed,
    SimulatedEndpoint,
)
from darkroom_local.providers.faults import Ask, FaultScript
from darkroom_local.providers.http import Request, Response
from darkroom_local.providers.limits import SlidingWindow
from darkroom_local.providers.stats import EndpointStats, marker_of
from darkroom_local.providers.wire import EditAsk, Rejected, Wire, open_picture

DAY_SECONDS = 86_400
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


class EndpointState:
    """One endpoint at run time: its windows, script, dice and counts."""

    def __init__(self, name: str, config: SimulatedEndpoint, seed: int, now: float) -> None:
        self.name = name
        self.config = config
        self.since = now
        self.minute = SlidingWindow(config.requests_per_minute, config.window_seconds)
        self.day = SlidingWindow(config.requests_per_day, DAY_SECONDS)
        self.script = FaultScript(config, f"{seed}/{name}/faults")
        self.dice = random.Random(f"{seed}/{name}/latency")  # noqa: S311 - no secret
        self.stats = EndpointStats(window_seconds=config.window_seconds)

    def latency(self) -> float:
        shape = self.config.latency
        if isinstance(shape, Fixed):
            return shape.seconds
        return min(shape.most, shape.median * self.dice.lognormvariate(0, shape.sigma))


class SimulatedProviders:
    """Routes requests. All methods run in one event loop; pictures are painted in threads."""

    def __init__(self, config: Config) -> None:
        self._painters = ThreadPoolExecutor(max_workers=2, thread_name_prefix="painter")
        self._endpoints: dict[str, EndpointState] = {}
        self._seed = config.seed
        self._initial = config
        self._gemini = gemini_wire.GeminiWire()
        self._openai = openai_wire.OpenAIWire()
        self._connections: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[int]:
        """Listen on 127.0.0.1 for the length of the block; port 0 takes a free one.

        Yields the port. At the end every connection is closed, also one in the middle of a request.
        """
        self._configure(self._initial)
        server = await asyncio.start_server(
            self._connected, "127.0.0.1", port, limit=1024 * 1024, backlog=512
        )
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            server.abort_clients()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await server.wait_closed()
            self._painters.shutdown(cancel_futures=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:  # pragma: no cover - start_server runs this in a task
            return
        self._connections.add(task)
        try:
            await http.serve_connection(self._handle, reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._connections.discard(task)

    def _configure(self, config: Config) -> None:
        """The endpoints that `config` names start afresh; the others stay as they are."""
        now = asyncio.get_running_loop().time()
        for name, endpoint in config.endpoints.items():
            self._endpoints[name] = EndpointState(name, endpoint, config.seed, now)

    async def _handle(self, request: Request) -> Response:
        if request.path.startswith("/_sim/"):
            return self._control(request)
        _, name, *rest = request.path.split("/", 2)
        state = self._endpoints.get(name)
        if state is None or request.method != "POST":
            return Response.of({"error": {"message": "no such simulated endpoint"}}, 404)
        state.stats.in_flight += 1
        state.stats.most_in_flight = max(state.stats.most_in_flight, state.stats.in_flight)
        try:
            response = await self._serve(state, request, "/" + "".join(rest))
        finally:
            state.stats.in_flight -= 1
        state.stats.statuses[response.status] += 1
        return response

    def _control(self, request: Request) -> Response:
        match request.method, request.path:
            case "GET", "/_sim/stats":
                arrivals = request.query.get("arrivals", "") not in {"", "0"}
                shown = {n: s.stats.as_json(arrivals=arrivals) for n, s in self._endpoints.items()}
                return Response.of({"endpoints": shown})
            case "GET", "/_sim/health":
                return Response.of({"ok": True})
            case "POST", "/_sim/configure":
                try:
                    self._configure(Config.model_validate_json(request.body))
                except ValidationError as error:
                    return Response.of({"error": str(error)}, 400)
                return Response.of({"ok": True})
        return Response.of({"error": "unknown"}, 404)

    async def _serve(self, state: EndpointState, request: Request, path: str) -> Response:
        stats, config = state.stats, state.config
        wire: Wire = self._gemini if ":generateContent" in path else self._openai
        stats.calls += 1
        stats.connections.add(request.connection)
        stats.arrivals.append(request.arrived - state.since)
        key = wire.key(request)
        stats.keys[key] += 1
        if not key or (config.keys and key not in config.keys):
            return wire.bad_key(400 if wire is self._gemini and key else 401)
        if (refusal := _over_limit(state, wire, request.arrived)) is not None:
            stats.refused += 1
            return refusal
        stats.allowed += 1
        stats.allowed_arrivals.append(request.arrived - state.since)
        paints = config.mode == "paint"
        try:
            read = functools.partial(wire.read, request, path, decode=paints)
            ask = await self._in_thread(read) if paints else read()
        except Rejected as rejected:
            return rejected.response
        stats.models[ask.model] += 1
        if (marker := marker_of(ask.prompt)) is not None:
            stats.calls_by_marker[marker] += 1
        if rules.base_model(ask.model) in config.retired_models:
            return wire.not_found(ask.model)
        return await self._respond(state, wire, ask, request.arrived)

    async def _respond(
        self, state: EndpointState, wire: Wire, ask: EditAsk, arrived: float
    ) -> Response:
        loop = asyncio.get_running_loop()
        met = Ask(prompt=ask.prompt, key=ask.key, model=ask.model)
        fault = state.script.meet(met, loop.time() - state.since)
        if fault is not None:
            state.stats.faults[fault.kind.value] += 1
            if fault.kind is FaultKind.HANG:
                await asyncio.sleep(fault.seconds)
                return Response(drop=True)
            if fault.kind not in _DAMAGED:
                await asyncio.sleep(max(0.0, arrived + state.latency() - loop.time()))
                if fault.kind is FaultKind.BROKEN_IMAGE:
                    _bill(state, ask)
                return _undone(fault, wire, ask)
        response = await self._picture(state, wire, ask)
        await asyncio.sleep(max(0.0, arrived + state.latency() - loop.time()))
        _bill(state, ask)
        return response if fault is None else _damage(response, fault)

    async def _picture(self, state: EndpointState, wire: Wire, ask: EditAsk) -> Response:
        thoughts = state.config.thoughts
        if state.config.mode == "fast":
            return wire.answer(ask, [artist.canned(ask.output)] * ask.n, thoughts=thoughts)
        label = f"{wire.label} · {state.name}"
        return await self._in_thread(
            lambda: wire.answer(ask, _paint(wire, ask, label), thoughts=thoughts)
        )

    def _in_thread[T](self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._painters, work)


_DAMAGED = {
    FaultKind.DROP_AFTER,
    FaultKind.TRICKLE,
    FaultKind.TRICKLE_HEADERS,
    FaultKind.CUT_JSON,
}


def _over_limit(state: EndpointState, wire: Wire, arrived: float) -> Response | None:
    config = state.config
    if config.max_in_flight and state.stats.in_flight > config.max_in_flight:
        return wire.limited(config.limit_hint, 1, "minute")
    if (wait := state.minute.take(arrived)) > 0:
        return wire.limited(config.limit_hint, wait, "minute")
    if (wait := state.day.take(arrived)) > 0:
        return wire.limited(config.limit_hint, wait, "day")
    return None


def _bill(state: EndpointState, ask: EditAsk) -> None:
    state.stats.paid_images += ask.n
    if (marker := marker_of(ask.prompt)) is not None:
        state.stats.paid_by_marker[marker] += ask.n


def _paint(wire: Wire, ask: EditAsk, label: str) -> list[bytes]:
    images = [open_picture(p) for p in ask.images]
    mask = open_picture(ask.mask) if ask.mask else None
    size = wire.output_size(ask)
    picture = artist.paint(ask.prompt, images, size, mask=mask, label=label)
    if ask.transparent:
        picture.putalpha(230)
    return [artist.encode(picture, ask.output)] * ask.n


def _undone(fault: Fault, wire: Wire, ask: EditAsk) -> Response:
    match fault.kind:
        case FaultKind.DROP:
            return Response(drop=True)
        case FaultKind.HTML:
            return Response(fault.status or 502, _HTML, "text/html")
        case FaultKind.ODD_JSON:
            return Response.of(["an", "answer", "of", "another", "shape"])
    return wire.failure(fault, ask)


def _damage(response: Response, fault: Fault) -> Response:
    """A good answer that does not arrive well."""
    match fault.kind:
        case FaultKind.DROP_AFTER:
            response.drop = True
        case FaultKind.CUT_JSON:
            response.body = response.body[: len(response.body) // 2]
        case FaultKind.TRICKLE | FaultKind.TRICKLE_HEADERS:
            response.trickle_seconds = fault.seconds
            response.trickle_head = fault.kind is FaultKind.TRICKLE_HEADERS
    return response
