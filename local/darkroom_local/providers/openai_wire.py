"""OpenAI's `images/edits` and `images/generations`, plain and by Azure's paths."""

import base64
import json
import re
from http import HTTPStatus
from typing import Any

from darkroom_local.providers import multipart, rules
from darkroom_local.providers.config import Fault, FaultKind
from darkroom_local.providers.http import Request, Response
from darkroom_local.providers.wire import EditAsk, Picture, Rejected, open_picture, text_tokens

PATH = re.compile(
    r"(?:/v1|/openai/v1)?/images/(edits|generations)"
    r"|/openai/deployments/([^/]+)/images/(edits|generations)"
)
_COMMON = {"model", "prompt", "n", "size", "quality", "user", "safety_identifier"}
_GPT = _COMMON | {"background", "output_format", "output_compression", "moderation"}
_OLD = _COMMON | {"response_format", "style"}
_MIMES = ("image/jpeg", "image/png", "image/webp")
_ERRORS = {
    FaultKind.QUOTA_SPENT: (
        429,
        "insufficient_quota",
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing.",
    ),
    FaultKind.SERVER_ERROR: (
        500,
        "server_error",
        None,
        "The server had an error. Sorry about that!",
    ),
    FaultKind.OVERLOADED: (503, "server_error", None, "The engine is currently overloaded."),
    FaultKind.BAD_REQUEST: (
        400,
        "invalid_request_error",
        "invalid_value",
        "Invalid value: 'size'.",
    ),
    FaultKind.TEAPOT: (418, "teapot", None, "I am a teapot."),
}
_NEARLY_SQUARE = (0.9, 1.1)
_TOKENS = {"low": 272, "medium": 1056, "high": 4160, "xhigh": 6240, "max": 8320}


def error(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    **extra: Any,
) -> Response:
    body = {"message": message, "type": kind, "param": param, "code": code, **extra}
    return Response.of({"error": body}, status, {"x-request-id": "req_simulated"})


def _invalid(message: str, param: str, code: str = "invalid_value") -> Rejected:
    return Rejected(error(400, message, code=code, param=param))


class OpenAIWire:
    label = "OpenAI"

    def key(self, request: Request) -> str:
        azure = request.headers.get("api-key")
        return azure or request.headers.get("authorization", "").removeprefix("Bearer ")

    def read(self, request: Request, path: str, *, decode: bool) -> EditAsk:
        found = PATH.fullmatch(path)
        if not found:
            raise Rejected(error(404, "Invalid URL"))
        if found[2] and "api-version" not in request.query:
            raise Rejected(error(404, "Resource not found", code="404"))
        edits = (found[1] or found[3]) == "edits"
        fields, files = _edit_form(request) if edits else (_generation_form(request), [])
        model = found[2] or str(fields.get("model", "dall-e-2"))
        limits = rules.OPENAI.get(rules.base_model(model))
        if limits is None:
            raise Rejected(self.not_found(model))
        if not (limits.edits if edits else limits.generates):
            raise _invalid(f"Model {model} does not support this operation.", "model")
        _check_fields(fields, limits, edits=edits)
        images, mask = _pictures(files, limits, decode=decode) if edits else ((), None)
        size = str(fields.get("size") or "auto")
        return EditAsk(
            prompt=str(fields["prompt"]),
            key=self.key(request),
            model=model,
            images=images,
            mask=mask,
            size=None if size == "auto" else _split(size),
            n=int(fields.get("n") or 1),
            quality=str(fields.get("quality") or "auto"),
            output=str(fields.get("output_format") or "png"),
            transparent=fields.get("background") == "transparent",
            as_url=not limits.gpt and fields.get("response_format") != "b64_json",
        )

    def output_size(self, ask: EditAsk) -> tuple[int, int]:
        if ask.size:
            return ask.size
        if not ask.images:
            return 1024, 1024
        width, height = open_picture(ask.images[0]).size
        if _NEARLY_SQUARE[0] < width / height < _NEARLY_SQUARE[1]:
            return 1024, 1024
        return (1536, 1024) if width > height else (1024, 1536)

    def answer(self, ask: EditAsk, pictures: list[bytes], *, thoughts: bool) -> Response:
        del thoughts  # this API shows none
        if ask.as_url:
            data = [{"url": f"https://images.invalid/{i}.png"} for i in range(len(pictures))]
            return Response.of({"created": 1_790_000_000, "data": data})
        data = [{"b64_json": base64.b64encode(p).decode()} for p in pictures]
        body: dict[str, Any] = {"created": 1_790_000_000, "data": data}
        if rules.OPENAI[rules.base_model(ask.model)].gpt:
            body |= {"output_format": ask.output, "usage": _usage(ask, len(pictures))}
        return Response.of(body)

    def failure(self, fault: Fault, ask: EditAsk) -> Response:
        match fault.kind:
            case FaultKind.RATE_LIMITED:
                return self.limited(fault.hint, fault.retry_after, fault.per)
            case FaultKind.KEY_REJECTED:
                return self.bad_key(fault.status or 401)
            case FaultKind.MODEL_RETIRED:
                return self.not_found(ask.model)
            case FaultKind.REFUSED:
                return _refusal(fault)
            case kind if kind in _ERRORS:
                status, name, code, message = _ERRORS[kind]
                said = fault.message or message
                return error(fault.status or status, said, kind=name, code=code)
        return _hollow(fault, ask)

    def limited(self, hint: str, retry_after: float, per: str) -> Response:
        unit = {"minute": "images per min", "day": "requests per day"}.get(per, "requests per day")
        wait = f" Please try again in {retry_after:g}s." if hint == "body" else ""
        message = f"Rate limit reached for gpt-image on {unit}: Limit 5, Used 5, Requested 1.{wait}"
        response = error(429, message, kind="requests", code="rate_limit_exceeded")
        if hint == "header":
            response.headers = {"retry-after": f"{retry_after:.0f}"}
        return response

    def not_found(self, model: str) -> Response:
        message = f"The model `{model}` does not exist or you do not have access to it."
        return error(404, message, code="model_not_found")

    def bad_key(self, status: int) -> Response:
        if status == HTTPStatus.FORBIDDEN:
            message = "You do not have access to the project tied to the API key."
            return error(403, message, code="invalid_project")
        message = "Incorrect API key provided. You can find your API key in your account settings."
        return error(status, message, code="invalid_api_key")


def _hollow(fault: Fault, ask: EditAsk) -> Response:
    """A 200 that has no usable picture."""
    match fault.kind:
        case FaultKind.TEXT_ONLY:
            return Response.of({"created": 1_790_000_000, "data": []})
        case FaultKind.EMPTY:
            return Response.of({"created": 1_790_000_000, "data": None})
        case FaultKind.BROKEN_IMAGE:
            data = [{"b64_json": base64.b64encode(b"\x89PNG no").decode()}]
            return Response.of({"created": 1_790_000_000, "data": data, "usage": _usage(ask, 1)})
    raise ValueError(f"{fault.kind} has no form in OpenAI's format")


def _refusal(fault: Fault) -> Response:
    if fault.category == "content_filter":  # Azure's word for it
        message = "The response was filtered due to the prompt triggering Azure's content policy."
        return error(400, message, code="content_filter", param="prompt")
    message = (
        "Your request was rejected by the safety system. If you believe this is an error, contact "
        f"us at help.openai.com and include the request ID. safety_violations=[{fault.category}]."
    )
    return error(400, message, kind="image_generation_user_error", code="moderation_blocked")


def _generation_form(request: Request) -> dict[str, Any]:
    try:
        fields = json.loads(request.body)
    except ValueError as problem:
        raise _invalid("We could not parse the JSON body of your request.", "body") from problem
    if not isinstance(fields, dict):
        raise _invalid("The body must be an object.", "body")
    return fields


def _edit_form(request: Request) -> tuple[dict[str, Any], list[multipart.Part]]:
    try:
        parts = multipart.parse(request.body, request.headers.get("content-type", ""))
    except ValueError as problem:
        raise _invalid("Invalid multipart form body.", "body") from problem
    fields = {p.name: p.data.decode("utf-8", "replace") for p in parts if p.filename is None}
    return fields, [p for p in parts if p.filename is not None]


def _check_fields(fields: dict[str, Any], limits: rules.OpenAIRules, *, edits: bool) -> None:
    allowed = _GPT if limits.gpt else _OLD
    if edits and limits.input_fidelity:
        allowed = allowed | {"input_fidelity"}
    if unknown := sorted(set(fields) - allowed):
        raise _invalid(f"Unknown parameter: '{unknown[0]}'.", unknown[0], "unknown_parameter")
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        message = "Missing required parameter: 'prompt'."
        raise _invalid(message, "prompt", "missing_required_parameter")
    if len(prompt) > limits.prompt_characters:
        raise _invalid("Invalid 'prompt': string too long.", "prompt", "string_above_max_length")
    size = fields.get("size")
    if size is not None and not limits.takes_size(str(size)):
        raise _invalid(f"Invalid value: '{size}'. Supported values: see the docs.", "size")
    quality = fields.get("quality")
    if quality is not None and quality not in limits.qualities:
        raise _invalid(f"Invalid value: '{quality}'.", "quality")
    if not 1 <= int(fields.get("n") or 1) <= limits.most_n:
        raise _invalid(f"Invalid 'n': must be between 1 and {limits.most_n}.", "n")
    output = fields.get("output_format", "png")
    if output not in {"png", "jpeg", "webp"}:
        raise _invalid(f"Invalid value: '{output}'.", "output_format")
    if fields.get("background") == "transparent" and output == "jpeg":
        raise _invalid("Transparent background is not supported for JPEG output.", "background")


def _pictures(
    files: list[multipart.Part], limits: rules.OpenAIRules, *, decode: bool
) -> tuple[tuple[Picture, ...], Picture | None]:
    names = {"image", "image[]"} if limits.gpt else {"image"}
    if strange := [f.name for f in files if f.name not in names | {"mask"}]:
        raise _invalid(f"Unknown parameter: '{strange[0]}'.", strange[0], "unknown_parameter")
    images = tuple(_picture(f, limits, decode=decode) for f in files if f.name in names)
    if not images:
        message = "Missing required parameter: 'image'."
        raise _invalid(message, "image", "missing_required_parameter")
    if len(images) > limits.most_images:
        raise _invalid(f"Too many images: at most {limits.most_images}.", "image")
    masks = [_picture(f, limits, decode=decode) for f in files if f.name == "mask"]
    if masks and decode:
        _check_mask(masks[0], images[0])
    return images, masks[0] if masks else None


def _picture(part: multipart.Part, limits: rules.OpenAIRules, *, decode: bool) -> Picture:
    mime = part.content_type or "application/octet-stream"
    allowed = _MIMES if limits.gpt else ("image/png",)
    if mime not in allowed:
        raise _invalid(
            f"Invalid file '{part.name}': unsupported mimetype ('{mime}'). Supported file formats "
            f"are {', '.join(allowed)}.",
            part.name,
            "unsupported_file_mimetype",
        )
    if len(part.data) >= limits.most_bytes:
        raise _invalid("The image is too large.", part.name, "image_too_large")
    picture = Picture(part.data, mime)
    if decode:
        try:
            image = open_picture(picture)
        except ValueError as problem:
            raise _invalid(
                "Invalid image file or mode for image, please check your image file.",
                part.name,
                "invalid_image_file",
            ) from problem
        square = image.width == image.height and image.mode in {"RGBA", "LA", "L", "RGB"}
        if not limits.gpt and not square:
            raise _invalid("Uploaded image must be square and in RGBA, LA or L.", part.name)
    return picture


def _check_mask(mask: Picture, image: Picture) -> None:
    opened = open_picture(mask)
    if mask.mime != "image/png" or len(mask.data) >= 4 * rules.MIB:
        raise _invalid("The mask must be a PNG of less than 4 MB.", "mask", "invalid_mask")
    if "A" not in opened.getbands():
        raise _invalid("The mask must have an alpha channel.", "mask", "invalid_mask_image_format")
    if opened.size != open_picture(image).size:
        message = "The mask must have the same size as the image."
        raise _invalid(message, "mask", "invalid_mask_size")


def _split(size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    return int(width), int(height)


def _usage(ask: EditAsk, count: int) -> dict[str, Any]:
    width, height = ask.size or (1024, 1024)
    each = _TOKENS.get(ask.quality, 1056) * width * height // (1024 * 1024)
    read, asked = 323 * len(ask.images), text_tokens(ask.prompt)
    return {
        "input_tokens": read + asked,
        "input_tokens_details": {"image_tokens": read, "text_tokens": asked},
        "output_tokens": each * count,
        "output_tokens_details": {"image_tokens": each * count, "text_tokens": 0},
        "total_tokens": read + asked + each * count,
    }
