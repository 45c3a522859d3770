"""Gemini's `generateContent` with image output, in API-key mode."""

import base64
import json
import re
from http import HTTPStatus
from typing import Any

from darkroom_local.providers import rules
from darkroom_local.providers.config import Fault, FaultKind
from darkroom_local.providers.http import Request, Response
from darkroom_local.providers.wire import (
    EditAsk,
    Picture,
    Rejected,
    decode_base64,
    open_picture,
    text_tokens,
)

PATH = re.compile(r"/v1(?:beta|alpha)?/models/([^/:]+):generateContent")
_RPC = "type.googleapis.com/google.rpc."
_ERRORS = {
    FaultKind.QUOTA_SPENT: (
        429,
        "RESOURCE_EXHAUSTED",
        "Your project has exceeded its monthly spending cap. Please go to AI Studio to manage it.",
    ),
    FaultKind.SERVER_ERROR: (500, "INTERNAL", "An internal error has occurred. Please retry."),
    FaultKind.OVERLOADED: (
        503,
        "UNAVAILABLE",
        "The model is overloaded. Please try again later.",
    ),
    FaultKind.BAD_REQUEST: (400, "INVALID_ARGUMENT", "Request contains an invalid argument."),
    FaultKind.TEAPOT: (418, "TEAPOT", "I am a teapot."),
}
_EDGE = {"512": 512, "1K": 1024, "2K": 2048, "4K": 4096}


def error(
    status: int, name: str, message: str, details: list[dict[str, Any]] | None = None
) -> Response:
    body: dict[str, Any] = {"code": status, "message": message, "status": name}
    if details:
        body["details"] = details
    return Response.of({"error": body}, status)


def _invalid(message: str) -> Rejected:
    return Rejected(error(400, "INVALID_ARGUMENT", message))


class GeminiWire:
    label = "Gemini"

    def key(self, request: Request) -> str:
        return request.headers.get("x-goog-api-key") or request.query.get("key", "")

    def read(self, request: Request, path: str, *, decode: bool) -> EditAsk:
        found = PATH.fullmatch(path)
        if not found:
            raise Rejected(error(404, "NOT_FOUND", "Requested entity was not found."))
        model = found[1]
        if len(request.body) > rules.GEMINI_INLINE_BYTES:
            raise _invalid("Request payload size exceeds the limit: 20971520 bytes.")
        try:
            body = json.loads(request.body)
            parts = [p for content in body["contents"] for p in content["parts"]]
        except (ValueError, KeyError, TypeError) as problem:
            raise _invalid("Invalid JSON payload received.") from problem
        limits = rules.GEMINI.get(rules.base_model(model))
        if limits is None:
            raise Rejected(self.not_found(model))
        prompt = "\n".join(p["text"] for p in parts if "text" in p)
        if not prompt.strip():
            raise _invalid("contents.parts must not be empty.")
        images = tuple(_picture(p, decode=decode) for p in parts if "text" not in p)
        if len(images) > limits.most_images:
            raise _invalid(f"Too many images in the request: at most {limits.most_images}.")
        ratio, resolution = _image_config(body, limits)
        return EditAsk(
            prompt=prompt,
            key=self.key(request),
            model=model,
            images=images,
            size=_pixels(ratio, resolution) if ratio else None,
            resolution=resolution,
            output=limits.answer_mime.removeprefix("image/"),
        )

    def output_size(self, ask: EditAsk) -> tuple[int, int]:
        if ask.size:
            return ask.size
        if not ask.images:
            return _pixels("1:1", ask.resolution)
        width, height = open_picture(ask.images[0]).size
        return _pixels(f"{width}:{height}", ask.resolution)

    def answer(self, ask: EditAsk, pictures: list[bytes], *, thoughts: bool) -> Response:
        mime = f"image/{ask.output}"
        parts: list[dict[str, Any]] = []
        thoughts = thoughts and rules.GEMINI[rules.base_model(ask.model)].thinks
        if thoughts:
            interim = {"inlineData": {"mimeType": mime, "data": _b64(pictures[0])}}
            parts.append({"text": "Let me draft this.", "thought": True})
            parts.append({**interim, "thought": True})
        parts += [{"inlineData": {"mimeType": mime, "data": _b64(p)}} for p in pictures]
        return _candidate(ask, parts, "STOP", images=len(pictures), thinking=412 * thoughts)

    def failure(self, fault: Fault, ask: EditAsk) -> Response:
        match fault.kind:
            case FaultKind.RATE_LIMITED:
                return self.limited(fault.hint, fault.retry_after, fault.per)
            case FaultKind.KEY_REJECTED:
                return self.bad_key(fault.status or 403)
            case FaultKind.MODEL_RETIRED:
                return self.not_found(ask.model)
            case kind if kind in _ERRORS:
                status, name, message = _ERRORS[kind]
                return error(fault.status or status, name, fault.message or message)
        return _hollow(fault, ask)

    def limited(self, hint: str, retry_after: float, per: str) -> Response:
        periods = {"minute": ("Minute",), "day": ("Day",), "both": ("Minute", "Day")}[per]
        metric = "generativelanguage.googleapis.com/generate_content_paid_tier_requests"
        violations = [
            {"quotaMetric": metric, "quotaId": f"GenerateRequestsPer{p}PerProjectPerModel"}
            for p in periods
        ]
        details: list[dict[str, Any]] = [{"@type": f"{_RPC}QuotaFailure", "violations": violations}]
        if hint == "body":
            details.append({"@type": f"{_RPC}RetryInfo", "retryDelay": f"{retry_after:.3f}s"})
        message = "You exceeded your current quota, please check your plan and billing details."
        if hint == "none" and per == "minute":
            message, details = "Resource has been exhausted (e.g. check quota).", []
        response = error(429, "RESOURCE_EXHAUSTED", message, details)
        if hint == "header":
            response.headers = {"retry-after": f"{retry_after:.0f}"}
        return response

    def not_found(self, model: str) -> Response:
        message = (
            f"models/{model} is not found for API version v1, or is not supported for "
            "generateContent."
        )
        return error(404, "NOT_FOUND", message)

    def bad_key(self, status: int) -> Response:
        if status == HTTPStatus.BAD_REQUEST:
            info = {"@type": f"{_RPC}ErrorInfo", "reason": "API_KEY_INVALID"}
            message = "API key not valid. Please pass a valid API key."
            return error(400, "INVALID_ARGUMENT", message, [info])
        if status == HTTPStatus.UNAUTHORIZED:
            message = "Request had invalid authentication credentials."
            return error(401, "UNAUTHENTICATED", message)
        message = "Method doesn't allow unregistered callers. Please use API Key."
        return error(403, "PERMISSION_DENIED", message)


def _hollow(fault: Fault, ask: EditAsk) -> Response:
    """A 200 that has no usable picture."""
    match fault.kind:
        case FaultKind.REFUSED if fault.blocked == "prompt":
            feedback = {"blockReason": fault.category}
            usage = {"promptTokenCount": text_tokens(ask.prompt), "totalTokenCount": 9}
            return Response.of({"promptFeedback": feedback, "usageMetadata": usage})
        case FaultKind.REFUSED:
            return _candidate(ask, None, fault.category, images=0)
        case FaultKind.TEXT_ONLY:
            message = fault.message or "I can see a product photo. What should I change?"
            return _candidate(ask, [{"text": message}], "STOP", images=0)
        case FaultKind.BROKEN_IMAGE:
            broken = {"inlineData": {"mimeType": "image/png", "data": _b64(b"\x89PNG no")}}
            return _candidate(ask, [broken], "STOP", images=1)
        case FaultKind.EMPTY:
            return Response.of({"usageMetadata": {}, "modelVersion": ask.model})
    raise ValueError(f"{fault.kind} has no form in Gemini's format")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _picture(part: dict[str, Any], *, decode: bool) -> Picture:
    inline = part.get("inlineData") or part.get("inline_data")
    if not isinstance(inline, dict):
        raise _invalid("A part must have text or inline_data.")
    mime = inline.get("mimeType") or inline.get("mime_type") or ""
    if mime not in rules.GEMINI_INPUT_TYPES:
        raise _invalid(f"Unsupported MIME type: {mime}")
    if not decode:
        return Picture(b"", mime)
    try:
        picture = Picture(decode_base64(inline.get("data", "")), mime)
        open_picture(picture)
    except ValueError as problem:
        raise _invalid("Unable to process input image. Please retry or report.") from problem
    return picture


def _image_config(body: dict[str, Any], limits: rules.GeminiRules) -> tuple[str | None, str | None]:
    generation = body.get("generationConfig") or body.get("generation_config") or {}
    config = generation.get("imageConfig") or generation.get("image_config") or {}
    config = {re.sub(r"_(\w)", lambda m: m[1].upper(), k): v for k, v in config.items()}
    if unknown := sorted(set(config) - {"aspectRatio", "imageSize"}):
        raise _invalid(
            f'Invalid JSON payload received. Unknown name "{unknown[0]}" at '
            "'generation_config.image_config': Cannot find field."
        )
    ratio, size = config.get("aspectRatio"), config.get("imageSize")
    if ratio is not None and ratio not in limits.ratios:
        raise _invalid(f"aspect_ratio must be one of {sorted(limits.ratios)}")
    if size is not None and size not in limits.sizes:
        raise _invalid(f"image_size {size} is not supported by this model.")
    return ratio, size


def _pixels(ratio: str, resolution: str | None) -> tuple[int, int]:
    across, down = (int(x) for x in ratio.split(":"))
    area = _EDGE[resolution or "1K"] ** 2
    height = (area * down / across) ** 0.5
    return max(1, round(height * across / down / 32)) * 32, max(1, round(height / 32)) * 32


def _candidate(
    ask: EditAsk,
    parts: list[dict[str, Any]] | None,
    finish: str,
    *,
    images: int,
    thinking: int = 0,
) -> Response:
    limits = rules.GEMINI[rules.base_model(ask.model)]
    pictured = images * limits.output_tokens[ask.resolution or "1K"]
    said = sum(text_tokens(p["text"]) for p in parts or () if "text" in p and "thought" not in p)
    read = len(ask.images) * limits.input_tokens_per_image
    prompt = text_tokens(ask.prompt) + read
    usage: dict[str, Any] = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": pictured + said,
        "totalTokenCount": prompt + pictured + said + thinking,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt - read}]
        + ([{"modality": "IMAGE", "tokenCount": read}] if read else []),
    }
    if pictured:
        usage["candidatesTokensDetails"] = [{"modality": "IMAGE", "tokenCount": pictured}]
    if thinking:
        usage["thoughtsTokenCount"] = thinking
    candidate: dict[str, Any] = {"finishReason": finish, "index": 0}
    if parts is not None:
        candidate["content"] = {"role": "model", "parts": parts}
    return Response.of(
        {"candidates": [candidate], "usageMetadata": usage, "modelVersion": ask.model}
    )
