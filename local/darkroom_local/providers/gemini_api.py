"""Gemini's `generateContent` with image output, in API-key mode.

The rules are kept apart from Darkroom's own model catalogue, so that a mistake there fails a test.
Source: the Gemini API's image generation guide, read on 2026-11-21.
"""

import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from darkroom_local.providers.api import (
    BROKEN_IMAGE,
    MIB,
    ImageApi,
    ImageRequest,
    InputImage,
    RequestRejected,
    decode_base64,
    decode_image,
    encode_base64,
    model_rules,
    text_tokens,
    with_retry_after,
)
from darkroom_local.providers.config import Fault, FaultKind
from darkroom_local.providers.http import Request, Response

MAX_REQUEST_BYTES = 20 * MIB
_PATH = re.compile(r"/v1(?:beta|alpha)?/models/([^/:]+):generateContent")
_INPUT_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"})
_EDGES = {"512": 512, "1K": 1024, "2K": 2048, "4K": 4096}
_RPC = "type.googleapis.com/google.rpc."
_METRIC = "generativelanguage.googleapis.com/generate_content_paid_tier_requests"
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
    FaultKind.TEAPOT: (418, "TEAPOT", "I am a teapot."),
}


@dataclass(frozen=True, slots=True)
class GeminiRules:
    max_images: int
    sizes: frozenset[str]  # of imageConfig.imageSize
    output_tokens: dict[str, int]
    output_format: str
    ratios: frozenset[str] = frozenset(
        {"1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"}
    )
    input_tokens_per_image: int = 560
    thinks: bool = True


_PRO = GeminiRules(14, frozenset({"1K", "2K", "4K"}), {"1K": 1120, "2K": 1120, "4K": 2000}, "jpeg")
# A later model is accepted by the rules of the latest one of its kind.
_RULES = (
    (
        r"gemini-2\.5-flash-image",
        GeminiRules(3, frozenset(), {"1K": 1290}, "png", input_tokens_per_image=1290, thinks=False),
    ),
    (r"gemini-3-pro-image-preview|gemini-[3-9](\.\d)?-pro-image", _PRO),
    (
        r"gemini-[3-9](\.\d)?-flash-image",
        GeminiRules(
            14,
            frozenset({"512", "1K", "2K", "4K"}),
            {"512": 747, "1K": 1120, "2K": 1680, "4K": 2520},
            "jpeg",
            ratios=_PRO.ratios | {"1:4", "4:1", "1:8", "8:1"},
            input_tokens_per_image=1120,
        ),
    ),
)


class GeminiApi(ImageApi):
    label = "Gemini"
    invalid_key_status = 403

    def key(self, request: Request) -> str:
        return request.headers.get("x-goog-api-key") or request.query.get("key", "")

    def parse(self, request: Request, path: str, *, decode: bool) -> ImageRequest:
        match = _PATH.fullmatch(path)
        if not match:
            raise RequestRejected(_error(404, "NOT_FOUND", "Requested entity was not found."))
        model = match[1]
        if len(request.body) > MAX_REQUEST_BYTES:
            raise _invalid("Request payload size exceeds the limit: 20971520 bytes.")
        try:
            body = json.loads(request.body)
            parts = [part for content in body["contents"] for part in content["parts"]]
        except (ValueError, KeyError, TypeError) as error:
            raise _invalid("Invalid JSON payload received.") from error
        try:
            rules = model_rules(_RULES, model)
        except KeyError as error:
            raise RequestRejected(self.model_not_found(model)) from error
        prompt = "\n".join(part["text"] for part in parts if "text" in part)
        if not prompt.strip():
            raise _invalid("contents.parts must not be empty.")
        images = tuple(_input_image(part, decode=decode) for part in parts if "text" not in part)
        if len(images) > rules.max_images:
            raise _invalid(f"Too many images in the request: at most {rules.max_images}.")
        ratio, resolution = _image_config(body, rules)
        return ImageRequest(
            prompt=prompt,
            key=self.key(request),
            model=model,
            images=images,
            size=_pixels(ratio, resolution) if ratio else None,
            resolution=resolution,
            output_format=rules.output_format,
        )

    def output_size(self, request: ImageRequest) -> tuple[int, int]:
        if request.size:
            return request.size
        width, height = decode_image(request.images[0]).size if request.images else (1, 1)
        return _pixels(f"{width}:{height}", request.resolution)

    def success(self, request: ImageRequest, images: list[bytes], *, thoughts: bool) -> Response:
        outputs: list[dict[str, Any]] = [
            _inline_data(f"image/{request.output_format}", image) for image in images
        ]
        drafts: list[dict[str, Any]] = []
        if thoughts and model_rules(_RULES, request.model).thinks:
            drafts = [
                {"text": "Let me draft this.", "thought": True},
                {**outputs[0], "thought": True},
            ]
        return _candidate(
            request,
            drafts + outputs,
            "STOP",
            images=len(images),
            thinking_tokens=412 if drafts else 0,
        )

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
        response = _error(429, "RESOURCE_EXHAUSTED", message, details)
        return with_retry_after(response, hint, retry_after)

    def model_not_found(self, model: str) -> Response:
        message = (
            f"models/{model} is not found for API version v1, or is not supported for "
            "generateContent."
        )
        return _error(404, "NOT_FOUND", message)

    def invalid_key(self, status: int) -> Response:
        if status == HTTPStatus.BAD_REQUEST:
            info = {"@type": f"{_RPC}ErrorInfo", "reason": "API_KEY_INVALID"}
            message = "API key not valid. Please pass a valid API key."
            return _error(400, "INVALID_ARGUMENT", message, [info])
        if status == HTTPStatus.UNAUTHORIZED:
            message = "Request had invalid authentication credentials."
            return _error(401, "UNAUTHENTICATED", message)
        message = "Method doesn't allow unregistered callers. Please use API Key."
        return _error(403, "PERMISSION_DENIED", message)

    def fault_response(self, fault: Fault, request: ImageRequest) -> Response:
        if fault.kind in _ERRORS:
            status, name, message = _ERRORS[fault.kind]
            return _error(fault.status or status, name, fault.message or message)
        match fault.kind:
            case FaultKind.REFUSED if fault.blocked == "prompt":
                feedback = {"blockReason": fault.category}
                usage = {"promptTokenCount": text_tokens(request.prompt), "totalTokenCount": 9}
                return Response.json({"promptFeedback": feedback, "usageMetadata": usage})
            case FaultKind.REFUSED:
                return _candidate(request, None, fault.category)
            case FaultKind.TEXT_ONLY:
                message = fault.message or "I can see a product photo. What should I change?"
                return _candidate(request, [{"text": message}], "STOP")
            case FaultKind.BROKEN_IMAGE:
                broken = _inline_data("image/png", BROKEN_IMAGE)
                return _candidate(request, [broken], "STOP", images=1)
            case FaultKind.EMPTY:
                return Response.json({"usageMetadata": {}, "modelVersion": request.model})
        raise ValueError(f"{fault.kind} is not supported by Gemini's API")


def _error(
    status: int, name: str, message: str, details: list[dict[str, Any]] | None = None
) -> Response:
    body: dict[str, Any] = {"code": status, "message": message, "status": name}
    if details:
        body["details"] = details
    return Response.json({"error": body}, status)


def _invalid(message: str) -> RequestRejected:
    return RequestRejected(_error(400, "INVALID_ARGUMENT", message))


def _inline_data(mime: str, data: bytes) -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime, "data": encode_base64(data)}}


def _input_image(part: dict[str, Any], *, decode: bool) -> InputImage:
    inline = part.get("inlineData") or part.get("inline_data")
    if not isinstance(inline, dict):
        raise _invalid("A part must have text or inline_data.")
    mime = inline.get("mimeType") or inline.get("mime_type") or ""
    if mime not in _INPUT_TYPES:
        raise _invalid(f"Unsupported MIME type: {mime}")
    if not decode:
        return InputImage(b"", mime)
    try:
        image = InputImage(decode_base64(inline.get("data", "")), mime)
        decode_image(image)
    except ValueError as error:
        raise _invalid("Unable to process input image. Please retry or report.") from error
    return image


def _image_config(body: dict[str, Any], rules: GeminiRules) -> tuple[str | None, str | None]:
    generation = body.get("generationConfig") or body.get("generation_config") or {}
    config = generation.get("imageConfig") or generation.get("image_config") or {}
    config = {re.sub(r"_(\w)", lambda m: m[1].upper(), k): v for k, v in config.items()}
    if unknown := sorted(set(config) - {"aspectRatio", "imageSize"}):
        raise _invalid(
            f'Invalid JSON payload received. Unknown name "{unknown[0]}" at '
            "'generation_config.image_config': Cannot find field."
        )
    ratio, size = config.get("aspectRatio"), config.get("imageSize")
    if ratio is not None and ratio not in rules.ratios:
        raise _invalid(f"aspect_ratio must be one of {sorted(rules.ratios)}")
    if size is not None and size not in rules.sizes:
        raise _invalid(f"image_size {size} is not supported by this model.")
    return ratio, size


def _pixels(ratio: str, resolution: str | None) -> tuple[int, int]:
    across, down = (int(x) for x in ratio.split(":"))
    height = (_EDGES[resolution or "1K"] ** 2 * down / across) ** 0.5
    return max(1, round(height * across / down / 32)) * 32, max(1, round(height / 32)) * 32


def _candidate(
    request: ImageRequest,
    parts: list[dict[str, Any]] | None,
    finish_reason: str,
    *,
    images: int = 0,
    thinking_tokens: int = 0,
) -> Response:
    rules = model_rules(_RULES, request.model)
    image_tokens = images * rules.output_tokens[request.resolution or "1K"]
    texts = [part["text"] for part in parts or () if "text" in part and "thought" not in part]
    output_tokens = image_tokens + sum(map(text_tokens, texts))
    images_in = len(request.images) * rules.input_tokens_per_image
    text_in = text_tokens(request.prompt)
    input_details = [{"modality": "TEXT", "tokenCount": text_in}]
    if images_in:
        input_details.append({"modality": "IMAGE", "tokenCount": images_in})
    usage: dict[str, Any] = {
        "promptTokenCount": text_in + images_in,
        "candidatesTokenCount": output_tokens,
        "totalTokenCount": text_in + images_in + output_tokens + thinking_tokens,
        "promptTokensDetails": input_details,
    }
    if image_tokens:
        usage["candidatesTokensDetails"] = [{"modality": "IMAGE", "tokenCount": image_tokens}]
    if thinking_tokens:
        usage["thoughtsTokenCount"] = thinking_tokens
    candidate: dict[str, Any] = {"finishReason": finish_reason, "index": 0}
    if parts is not None:
        candidate["content"] = {"role": "model", "parts": parts}
    return Response.json(
        {"candidates": [candidate], "usageMetadata": usage, "modelVersion": request.model}
    )
