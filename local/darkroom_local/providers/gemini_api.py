"""Gemini's `generateContent` with image output, in API-key mode.

The rules are kept apart from Darkroom's own model catalogue, so that a mistake there fails a test.
Source: the Gemini API's image generation guide, read on 2026-11-21.
"""

import base64
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from darkroom_local.providers.api import (
    BROKEN_IMAGE,
    ImageRequest,
    InputImage,
    ModelRules,
    RequestRejected,
    encode_base64,
    retry_after_header,
    text_tokens,
)
from darkroom_local.providers.config import Fault, FaultKind, SimulatedEndpoint
from darkroom_local.providers.endpoint import SlidingWindow
from darkroom_local.providers.http import Request, Response

MAX_REQUEST_BYTES = 100_000_000  # since 2026-01-08
_PATH = re.compile(r"/v1(?:beta|alpha)?/models/([^/:]+):generateContent")
_INPUT_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"})
_URL_SAFE = str.maketrans("-_", "+/")
_EDGES = {"512": 512, "1K": 1024, "2K": 2048, "4K": 4096}
_RPC = "type.googleapis.com/google.rpc."
_METRIC = "generativelanguage.googleapis.com/generate_content_paid_tier_requests"
_REQUEST_FIELDS = {
    *("contents", "generationConfig", "safetySettings", "systemInstruction", "serviceTier"),
    *("tools", "toolConfig", "cachedContent", "labels"),
}
_GENERATION_FIELDS = {
    *("responseModalities", "imageConfig", "seed", "thinkingConfig", "temperature", "topP", "topK"),
    *("candidateCount", "maxOutputTokens", "stopSequences", "mediaResolution"),
}
_SERVICE_TIERS = frozenset({"standard", "flex", "priority"})
_PERIODS = {"minute": ("Minute",), "day": ("Day",), "both": ("Minute", "Day")}
_ERRORS = {
    FaultKind.QUOTA_SPENT: (
        429,
        "RESOURCE_EXHAUSTED",
        "Your project has exceeded its monthly spending cap. Please go to AI Studio to manage it.",
    ),
    FaultKind.SERVER_ERROR: (500, "INTERNAL", "An internal error has occurred. Please retry."),
    FaultKind.OVERLOADED: (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    FaultKind.BAD_REQUEST: (400, "INVALID_ARGUMENT", "Request contains an invalid argument."),
    FaultKind.BAD_IMAGE: (
        400,
        "INVALID_ARGUMENT",
        "Unable to process input image. Please retry or report.",
    ),
    FaultKind.ACCOUNT_BLOCKED: (
        403,
        "PERMISSION_DENIED",
        "Your API key was reported as leaked. Please use another API key.",
    ),
    FaultKind.CONFLICT: (409, "ABORTED", "The operation was aborted."),
    FaultKind.TEAPOT: (418, "TEAPOT", "I am a teapot."),
}


@dataclass(frozen=True, slots=True)
class GeminiRules:
    max_images: int
    output_tokens: dict[str, int]
    output_format: str = "jpeg"
    ratios: frozenset[str] = frozenset(
        {"1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"}
    )
    sizes: frozenset[str] = frozenset({"1K", "2K", "4K"})  # of imageConfig.imageSize
    input_tokens_per_image: int = 560
    thinking: bool = True
    thinking_levels: frozenset[str] = frozenset()


_FLASH_25 = GeminiRules(
    3, {"1K": 1290}, "png", sizes=frozenset(), input_tokens_per_image=1290, thinking=False
)
_PRO = GeminiRules(14, {"1K": 1120, "2K": 1120, "4K": 2000})
_FLASH = GeminiRules(
    14,
    {"512": 747, "1K": 1120, "2K": 1680, "4K": 2520},
    ratios=_PRO.ratios | {"1:4", "4:1", "1:8", "8:1"},
    sizes=_PRO.sizes | {"512"},
    input_tokens_per_image=1120,
    thinking_levels=frozenset({"MINIMAL", "HIGH"}),
)


_FLASH_LITE = replace(
    _PRO,
    output_tokens={"1K": 1120},
    sizes=frozenset({"1K"}),
    thinking_levels=_FLASH.thinking_levels,
)
_NANO_BANANA_2_1 = replace(
    _FLASH,
    output_tokens={"1K": 1120, "2K": 1680, "4K": 3780},
    sizes=_PRO.sizes,
    thinking_levels=frozenset({"MINIMAL", "MEDIUM", "HIGH"}),
)


class GeminiApi(ModelRules[GeminiRules]):
    label = "Gemini"
    invalid_key_status = 403
    # A later model is accepted by the rules of the latest one of its kind.
    rules = (
        (r"gemini-2\.5-flash-image", _FLASH_25),
        (r"gemini-3-pro-image-preview|gemini-[3-9](\.\d)?-pro-image", _PRO),
        (r"gemini-[3-9](\.\d)?-flash-image", _FLASH),
        (r"gemini-[3-9](\.\d)?-flash-lite-image", _FLASH_LITE),
        (r"gemini-nano-banana-2\.\d", _NANO_BANANA_2_1),
    )

    def key(self, request: Request) -> str:
        return request.headers.get("x-goog-api-key") or request.query.get("key", "")

    def models(self, listed: Mapping[str, str | None]) -> Response:
        actions = ["generateContent", "countTokens", "batchGenerateContent"]
        models = [
            {"name": f"models/{name}", "supportedGenerationMethods": actions} for name in listed
        ]
        return Response.json({"models": models})

    def parse(
        self, request: Request, path: str, endpoint: SimulatedEndpoint, *, decode: bool
    ) -> ImageRequest:
        match = _PATH.fullmatch(path)
        if not match:
            raise RequestRejected(gemini_error(404, "NOT_FOUND", "Requested entity was not found."))
        self.check_not_retired(match[1], endpoint.retired_models)
        if len(request.body) > MAX_REQUEST_BYTES:
            raise gemini_invalid(
                f"Request payload size exceeds the limit: {MAX_REQUEST_BYTES} bytes."
            )
        _check_deadline(request, endpoint.min_server_timeout)
        try:
            body = json.loads(request.body, object_hook=camel_case)
            parts = [part for content in body["contents"] for part in content["parts"]]
        except (ValueError, KeyError, TypeError) as error:
            raise gemini_invalid("Invalid JSON payload received.") from error
        rules = self.rules_for(match[1])
        prompt = "\n".join(part["text"] for part in parts if "text" in part)
        if not prompt.strip():
            raise gemini_invalid("contents.parts must not be empty.")
        images = tuple(_input_image(part, decode=decode) for part in parts if "text" not in part)
        if len(images) > rules.max_images:
            raise gemini_invalid(f"Too many images in the request: at most {rules.max_images}.")
        ratio, resolution = _settings(body, rules)
        return ImageRequest(
            prompt,
            self.key(request),
            match[1],
            images,
            size=_pixels(ratio, resolution) if ratio else None,
            resolution=resolution,
            output_format=rules.output_format,
            service_tier=_service_tier(body),
        )

    def output_size(self, request: ImageRequest) -> tuple[int, int]:
        if request.size:
            return request.size
        width, height = request.images[0].decode().size if request.images else (1, 1)
        return _pixels(f"{width}:{height}", request.resolution)

    def success(self, request: ImageRequest, images: list[bytes], *, thoughts: bool) -> Response:
        outputs = [_inline_data(f"image/{request.output_format}", image) for image in images]
        if not (thoughts and self.rules_for(request.model).thinking):
            return self._candidate(request, outputs, images=len(images))
        drafts = [{"text": "Let me draft this."}, outputs[0]]
        parts = [*({**part, "thought": True} for part in drafts), *outputs]
        return self._candidate(request, parts, images=len(images), thinking_tokens=412)

    def rate_limited(self, hint: str, retry_after: float, per: str) -> Response:
        violations = [
            {"quotaMetric": _METRIC, "quotaId": f"GenerateRequestsPer{period}PerProjectPerModel"}
            for period in _PERIODS[per]
        ]
        details: list[dict[str, Any]] = [{"@type": f"{_RPC}QuotaFailure", "violations": violations}]
        if hint == "body":
            details.append({"@type": f"{_RPC}RetryInfo", "retryDelay": f"{retry_after:.3f}s"})
        message = "You exceeded your current quota, please check your plan and billing details."
        if hint == "none" and per == "minute":
            message, details = "Resource has been exhausted (e.g. check quota).", []
        headers = retry_after_header(hint, retry_after)
        return gemini_error(429, "RESOURCE_EXHAUSTED", message, details, headers)

    def too_many_images(
        self,
        hint: str,
        unit: str,  # noqa: ARG002 - this API names no figures
        window: SlidingWindow,
        count: int,  # noqa: ARG002
        wait: float,
    ) -> Response:
        return self.rate_limited(hint, min(wait, window.seconds), "minute")

    def limit_headers(self, endpoint: SimulatedEndpoint) -> dict[str, str]:  # noqa: ARG002
        return {}  # this API has none

    def model_not_found(self, model: str) -> Response:
        message = (
            f"models/{model} is not found for API version v1, or is not supported for "
            "generateContent."
        )
        return gemini_error(404, "NOT_FOUND", message)

    def invalid_key(self, status: int) -> Response:
        if status == HTTPStatus.BAD_REQUEST:
            info = {"@type": f"{_RPC}ErrorInfo", "reason": "API_KEY_INVALID"}
            message = "API key not valid. Please pass a valid API key."
            return gemini_error(400, "INVALID_ARGUMENT", message, [info])
        if status == HTTPStatus.UNAUTHORIZED:
            message = "Request had invalid authentication credentials."
            return gemini_error(401, "UNAUTHENTICATED", message)
        message = "Method doesn't allow unregistered callers. Please use API Key."
        return gemini_error(403, "PERMISSION_DENIED", message)

    def failure(self, fault: Fault, request: ImageRequest) -> Response:
        if fault.kind in _ERRORS:
            status, name, message = _ERRORS[fault.kind]
            return gemini_error(fault.status or status, name, fault.message or message)
        match fault.kind:
            case FaultKind.REFUSED if fault.blocked == "prompt":
                feedback = {"blockReason": fault.category}
                usage = {"promptTokenCount": text_tokens(request.prompt), "totalTokenCount": 9}
                return Response.json({"promptFeedback": feedback, "usageMetadata": usage})
            case FaultKind.REFUSED:
                return self._candidate(request, None, fault.category, message=fault.message)
            case FaultKind.TEXT_ONLY:
                message = fault.message or "I can see a product photo. What should I change?"
                return self._candidate(request, [{"text": message}])
            case FaultKind.BROKEN_IMAGE:
                return self._candidate(request, [_inline_data("image/png", BROKEN_IMAGE)], images=1)
            case FaultKind.EMPTY:
                return Response.json({"usageMetadata": {}, "modelVersion": request.model})
        raise ValueError(f"{fault.kind} is not supported by Gemini's API")

    def _candidate(
        self,
        request: ImageRequest,
        parts: list[dict[str, Any]] | None,
        finish_reason: str = "STOP",
        *,
        message: str | None = None,
        images: int = 0,
        thinking_tokens: int = 0,
    ) -> Response:
        rules = self.rules_for(request.model)
        image_tokens = images * rules.output_tokens[request.resolution or "1K"]
        texts = [part["text"] for part in parts or () if "text" in part and "thought" not in part]
        output_tokens = image_tokens + sum(map(text_tokens, texts))
        images_in = len(request.images) * rules.input_tokens_per_image
        text_in = text_tokens(request.prompt)
        usage: dict[str, Any] = {
            "promptTokenCount": text_in + images_in,
            "candidatesTokenCount": output_tokens,
            "totalTokenCount": text_in + images_in + output_tokens + thinking_tokens,
            "promptTokensDetails": _token_counts(TEXT=text_in, IMAGE=images_in),
        }
        if image_tokens:
            usage["candidatesTokensDetails"] = _token_counts(IMAGE=image_tokens)
        if thinking_tokens:
            usage["thoughtsTokenCount"] = thinking_tokens
        candidate: dict[str, Any] = {"finishReason": finish_reason, "index": 0}
        if message is not None:
            candidate["finishMessage"] = message
        if parts is not None:
            candidate["content"] = {"role": "model", "parts": parts}
        return Response.json(
            {"candidates": [candidate], "usageMetadata": usage, "modelVersion": request.model}
        )


def _token_counts(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": name, "tokenCount": count} for name, count in counts.items() if count]


def gemini_error(
    status: int,
    name: str,
    message: str,
    details: Sequence[dict[str, Any]] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    body: dict[str, Any] = {"code": status, "message": message, "status": name}
    if details:
        body["details"] = details
    return Response.json({"error": body}, status, headers)


def _settings(body: dict[str, Any], rules: GeminiRules) -> tuple[str | None, str | None]:
    """The aspect ratio and the resolution. Raises RequestRejected for what the model refuses."""
    generation = body.get("generationConfig") or {}
    config = generation.get("imageConfig") or {}
    check_names(body, _REQUEST_FIELDS)
    check_names(generation, _GENERATION_FIELDS)
    check_names(config, {"aspectRatio", "imageSize"})
    _check_thinking(generation.get("thinkingConfig") or {}, rules)
    if "IMAGE" not in generation.get("responseModalities", ["IMAGE"]):
        raise gemini_invalid("The requested response modalities do not include IMAGE.")
    ratio, resolution = config.get("aspectRatio"), config.get("imageSize")
    if ratio is not None and ratio not in rules.ratios:
        raise gemini_invalid(f"aspect_ratio must be one of {sorted(rules.ratios)}")
    if resolution is not None and resolution not in rules.sizes:
        raise gemini_invalid(f"image_size {resolution} is not supported by this model.")
    return ratio, resolution


def _service_tier(body: dict[str, Any]) -> str:
    tier = str(body.get("serviceTier", "standard")).lower()
    if tier not in _SERVICE_TIERS:
        raise gemini_invalid("Invalid value at 'service_tier'.")
    return tier


def _check_thinking(config: dict[str, Any], rules: GeminiRules) -> None:
    check_names(config, {"thinkingLevel", "includeThoughts"})
    level = config.get("thinkingLevel")
    if level is not None and str(level).upper() not in rules.thinking_levels:
        raise gemini_invalid(f"Thinking level {level} is not supported for this model.")


def check_names(fields: dict[str, Any], known: Collection[str]) -> None:
    if unknown := sorted(fields.keys() - known):
        raise gemini_invalid(
            f'Invalid JSON payload received. Unknown name "{unknown[0]}": Cannot find field.'
        )


def _check_deadline(request: Request, least: float) -> None:
    """The text: quoted in several public repositories."""
    seconds = request.headers.get("x-server-timeout", "")
    if seconds.isdecimal() and int(seconds) < least:
        limit = f"Minimum allowed deadline is {least:g}s."
        raise gemini_invalid(f"Manually set deadline {seconds}s is too short. {limit}")


def gemini_invalid(message: str) -> RequestRejected:
    return RequestRejected(gemini_error(400, "INVALID_ARGUMENT", message))


def _inline_data(mime: str, data: bytes) -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime, "data": encode_base64(data)}}


def camel_case(fields: dict[str, Any]) -> dict[str, Any]:
    """The API accepts names in camel case and with underscores."""
    return {re.sub(r"_(\w)", lambda m: m[1].upper(), name): v for name, v in fields.items()}


def _input_image(part: dict[str, Any], *, decode: bool) -> InputImage:
    inline = part.get("inlineData")
    if not isinstance(inline, dict):
        raise gemini_invalid("A part must have text or inline_data.")
    mime, text = inline.get("mimeType", ""), inline.get("data", "")
    if mime not in _INPUT_TYPES:
        raise gemini_invalid(f"Unsupported MIME type: {mime}")
    if not decode:
        return InputImage(b"", mime)
    try:
        padded = text.translate(_URL_SAFE) + "=" * (-len(text) % 4)
        image = InputImage(base64.b64decode(padded, validate=True), mime)
        image.decode()
    except ValueError as error:
        raise gemini_invalid("Unable to process input image. Please retry or report.") from error
    return image


def _pixels(ratio: str, resolution: str | None) -> tuple[int, int]:
    across, down = (int(x) for x in ratio.split(":"))
    height = (_EDGES[resolution or "1K"] ** 2 * down / across) ** 0.5
    return max(1, round(height * across / down / 32)) * 32, max(1, round(height / 32)) * 32
