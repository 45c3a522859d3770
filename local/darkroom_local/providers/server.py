"""The simulated providers as one HTTP server: routing, limits, faults, images and statistics."""

import asyncio
import functools
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from pydantic import ValidationError

from darkroom_local.processes import listening
from darkroom_local.providers import effects, http
from darkroom_local.providers.api import ImageRequest, RequestRejected
from darkroom_local.providers.batches import BatchStore
from darkroom_local.providers.config import Config, Fault, FaultKind
from darkroom_local.providers.endpoint import EndpointState
from darkroom_local.providers.gemini_api import GeminiApi
from darkroom_local.providers.gemini_batches import GeminiBatchApi
from darkroom_local.providers.http import Request, Response
from darkroom_local.providers.openai_api import OpenAIApi
from darkroom_local.providers.openai_batches import OpenAIBatchApi

_HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
# Faults of the transmission: the image is made, and billed.
_DAMAGES = {"drop_after", "trickle", "trickle_headers", "cut_json"}
_GEMINI, _OPENAI = GeminiApi(), OpenAIApi()
type Api = GeminiApi | OpenAIApi


class SimulatedProviders:
    """All methods run in one event loop; images are decoded and rendered in threads."""

    def __init__(self, config: Config) -> None:
        self._initial = config
        self._endpoints: dict[str, EndpointState] = {}
        self._stores: dict[str, BatchStore] = {}

    @asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[int]:
        """Listen on 127.0.0.1 during the block; port 0 uses a free one.

        Yields the port. At the end every connection is closed, also in the middle of a request,
        whose task the event loop cancels when it ends.
        """
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2, thread_name_prefix="images"))
        self._configure(self._initial)
        serve = functools.partial(http.serve_connection, self._handle)
        server = await asyncio.start_server(
            serve, "127.0.0.1", port, limit=1024 * 1024, backlog=512
        )
        try:
            async with listening(server) as found:
                yield found
        finally:
            for store in self._stores.values():
                store.close()

    def _configure(self, config: Config) -> None:
        """Restart the endpoints that `config` names; the others stay as they are."""
        now = asyncio.get_running_loop().time()
        for name, endpoint in config.endpoints.items():
            state = self._endpoints[name] = EndpointState(name, endpoint, config.seed, now)
            if name in self._stores:
                self._stores[name].close()
            self._stores[name] = BatchStore(state, functools.partial(_answer_in_batch, state))

    async def _handle(self, request: Request) -> Response:
        if request.path.startswith("/_sim/"):
            return self._control(request)
        _, name, *path = request.path.split("/", 2)
        state = self._endpoints.get(name)
        rest = "/" + "".join(path)
        if state is not None and request.method == "GET" and rest.endswith("/models"):
            return _list_models(state, request)
        if state is not None:
            batch_api = _batch_api(self._stores[name], request, rest)
            if batch_api.handles(rest):
                return _serve_batches(state, batch_api, request, rest)
        if state is None or request.method != "POST":
            return Response.json({"error": {"message": "no such simulated endpoint"}}, 404)
        response = await _serve(state, request, rest)
        state.stats.statuses[response.status] += 1
        return response

    def _control(self, request: Request) -> Response:
        match request.method, request.path:
            case "GET", "/_sim/stats":
                return Response.json({n: s.stats.as_json() for n, s in self._endpoints.items()})
            case "POST", "/_sim/configure":
                try:
                    self._configure(Config.model_validate_json(request.body))
                except ValidationError as error:
                    return Response.json({"error": str(error)}, 400)
                return Response.json({"ok": True})
        return Response.json({"error": "unknown"}, 404)


def _list_models(state: EndpointState, request: Request) -> Response:
    """The models of a key. Both formats have the same path: the header with the key differs."""
    api: Api = _GEMINI if "x-goog-api-key" in request.headers else _OPENAI
    key = api.key(request)
    if not key or (state.config.keys and key not in state.config.keys):
        return api.invalid_key(400 if api is _GEMINI and key else 401)
    return api.models(state.config.models)


def _batch_api(store: BatchStore, request: Request, path: str) -> GeminiBatchApi | OpenAIBatchApi:
    """Pieces of Gemini's uploads come without a key, to a URL that nobody else knows."""
    is_gemini = "x-goog-api-key" in request.headers or path.startswith("/upload/")
    return GeminiBatchApi(store) if is_gemini else OpenAIBatchApi(store)


def _serve_batches(
    state: EndpointState,
    batch_api: GeminiBatchApi | OpenAIBatchApi,
    request: Request,
    path: str,
) -> Response:
    api = batch_api.api
    key = api.key(request)
    in_upload = path.startswith("/upload/") and "x-goog-upload-offset" in request.headers
    if not in_upload and (not key or (state.config.keys and key not in state.config.keys)):
        return api.invalid_key(400 if isinstance(api, GeminiApi) and key else 401)
    try:
        return batch_api.handle(request, path)
    except RequestRejected as rejected:
        return rejected.response


async def _answer_in_batch(
    state: EndpointState, http_request: Request, path: str
) -> tuple[Response, ImageRequest | None]:
    """The response to one request of a batch, and the request if it has to be paid."""
    api: Api = _GEMINI if ":generateContent" in path else _OPENAI
    decode = state.config.mode == "effects"
    parse = functools.partial(api.parse, http_request, path, state.config, decode=decode)
    try:
        request = await asyncio.to_thread(parse) if decode else parse()
    except RequestRejected as rejected:
        return rejected.response, None
    state.record_request(request)
    elapsed = asyncio.get_running_loop().time() - state.since
    fault = state.faults.next_fault(request, elapsed)
    if fault is not None and fault.kind not in _DAMAGES:
        paid = fault.kind is FaultKind.BROKEN_IMAGE
        return _failure(fault, api, request), request if paid else None
    size = state.config.batches.image_bytes
    image = effects.large_image(size) if size else await _output_image(state, api, request)
    images = [image] * request.n
    return api.success(request, images, thoughts=state.config.thoughts), request


async def _serve(state: EndpointState, http_request: Request, path: str) -> Response:
    config = state.config
    api: Api = _GEMINI if ":generateContent" in path else _OPENAI
    key = api.key(http_request)
    state.record_arrival(http_request.arrived, http_request.connection, key)
    if not key or (config.keys and key not in config.keys):
        return api.invalid_key(400 if api is _GEMINI and key else 401)
    if (exceeded := state.exceeded_limit(http_request.arrived)) is not None:
        return api.rate_limited(config.limit_hint, *exceeded)
    decode = config.mode == "effects"
    parse = functools.partial(api.parse, http_request, path, config, decode=decode)
    try:
        request = await asyncio.to_thread(parse) if decode else parse()
    except RequestRejected as rejected:
        return rejected.response
    if (over := state.exceeded_image_limit(http_request.arrived, request)) is not None:
        return api.too_many_images(config.limit_hint, *over)
    state.record_request(request)
    response = await _respond(state, api, request, http_request.arrived)
    response.headers = {**api.limit_headers(config), **response.headers}
    return response


async def _respond(
    state: EndpointState, api: Api, request: ImageRequest, arrived: float
) -> Response:
    loop = asyncio.get_running_loop()
    fault = state.faults.next_fault(request, loop.time() - state.since)
    if fault is not None and fault.kind is FaultKind.HANG:
        await asyncio.sleep(fault.seconds)
        return Response(drop=True)
    if fault is None or fault.kind in _DAMAGES:
        image = await _output_image(state, api, request)
        response = api.success(request, [image] * request.n, thoughts=state.config.thoughts)
        paid = True
    else:
        dropped = fault.kind is FaultKind.DROP
        response = Response(drop=True) if dropped else _failure(fault, api, request)
        paid = fault.kind is FaultKind.BROKEN_IMAGE
    await asyncio.sleep(max(0.0, arrived + state.latency() - loop.time()))
    if paid:
        state.record_paid_images(request)
    return response if fault is None else _damage(response, fault)


async def _output_image(state: EndpointState, api: Api, request: ImageRequest) -> bytes:
    if state.config.mode == "fast":
        return effects.fixed_image(request.output_format)
    return await asyncio.to_thread(_render, api, request, f"{api.label} · {state.name}")


def _render(api: Api, request: ImageRequest, label: str) -> bytes:
    images = [image.decode() for image in request.images]
    mask = request.mask.decode() if request.mask else None
    output = effects.render(request.prompt, images, mask, api.output_size(request), label)
    if request.transparent:
        output.putalpha(230)
    return effects.encode(output, request.output_format)


def _failure(fault: Fault, api: Api, request: ImageRequest) -> Response:
    match fault.kind:
        case FaultKind.HTML:
            return Response(fault.status or 502, _HTML, "text/html")
        case FaultKind.ODD_JSON:
            return Response.json(["a", "response", "of", "another", "shape"])
        case FaultKind.RATE_LIMITED:
            return api.rate_limited(fault.hint, fault.retry_after, fault.per)
        case FaultKind.KEY_REJECTED:
            return api.invalid_key(fault.status or api.invalid_key_status)
        case FaultKind.MODEL_RETIRED:
            return api.model_not_found(request.model)
    return api.failure(fault, request)


def _damage(response: Response, fault: Fault) -> Response:
    """A response that does not arrive intact, for the faults that do that."""
    match fault.kind:
        case FaultKind.DROP_AFTER:
            response.drop = True
        case FaultKind.CUT_JSON:
            response.body = response.body[: len(response.body) // 2]
        case FaultKind.TRICKLE:
            response.body_seconds = fault.seconds
        case FaultKind.TRICKLE_HEADERS:
            response.header_seconds = fault.seconds
    return response
