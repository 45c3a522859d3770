"""OpenAI's `images/edits` and `images/generations`, also under Azure's paths.

The rules are kept apart from Darkroom's own model catalogue, so that a mistake there fails a test.
Source: the OpenAI Images API reference as shipped in the openai package 3.52 (image_edit_params,
image_generate_params), read on 2026-11-21.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from math import inf
from typing import Any

from darkroom_local.providers.api import (
    BROKEN_IMAGE,
    MIB,
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
from darkroom_local.providers.http import FormPart, Request, Response, parse_multipart

_PATH = re.compile(
    r"(?:/v1|/openai/v1)?/images/(edits|generations)"
    r"|/openai/deployments/([^/]+)/images/(edits|generations)"
)
_COMMON_FIELDS = {"model", "prompt", "n", "size", "quality", "user", "safety_identifier"}
_GPT_FIELDS = _COMMON_FIELDS | {"background", "output_format", "output_compression", "moderation"}
_DALL_E_FIELDS = _COMMON_FIELDS | {"response_format", "style"}
_INPUT_TYPES = ("image/jpeg", "image/png", "image/webp")
_MAX_EDGE, _MIN_PIXELS, _MAX_PIXELS = 3840, 655_360, 8_294_400
_SQUARE_RATIOS = (0.9, 1.1)
_CREATED = 1_790_000_000
_MAX_URL_CHARACTERS = 20_971_520
_INPUT_IMAGE_TOKENS = 323
_OUTPUT_TOKENS = {"low": 272, "medium": 1056, "high": 4160, "xhigh": 6240, "max": 8320}
_AZURE_REFUSAL = "The response was filtered due to the prompt triggering Azure's content policy."
_REFUSAL = (
    "Your request was rejected by the safety system. If you believe this is an error, contact us "
    "at help.openai.com and include the request ID."
)
_QUOTA_SPENT = "You exceeded your current quota, please check your plan and billing."
_BLOCKED = (  # Azure's: https://github.com/pollinations/pollinations/issues/9319
    "Your resource has been temporarily blocked because we detected behavior that may violate our "
    "content policy."
)
_INVALID = "invalid_request_error"
_USER_ERROR = "image_generation_user_error"
_INVALID_IMAGE = "Invalid image file or mode for image 1, please check your image file."
_ERRORS = {
    FaultKind.QUOTA_SPENT: (429, "insufficient_quota", "insufficient_quota", _QUOTA_SPENT),
    FaultKind.SERVER_ERROR: (500, "server_error", None, "The server had an error. Sorry!"),
    FaultKind.OVERLOADED: (503, "server_error", None, "The engine is currently overloaded."),
    FaultKind.BAD_REQUEST: (400, _INVALID, "invalid_value", "Invalid value: 'size'."),
    FaultKind.BAD_IMAGE: (400, _USER_ERROR, "invalid_image_file", _INVALID_IMAGE),
    FaultKind.ACCOUNT_BLOCKED: (403, _INVALID, "Forbidden", _BLOCKED),
    FaultKind.CONFLICT: (409, _INVALID, None, "Another request holds a lock. Please retry."),
    FaultKind.TEAPOT: (418, "teapot", None, "I am a teapot."),
}


@dataclass(frozen=True, slots=True)
class OpenAIRules:
    sizes: frozenset[str] = frozenset({"auto", "1024x1024", "1536x1024", "1024x1536"})
    qualities: frozenset[str] = frozenset({"auto", "low", "medium", "high"})
    free_sizes: bool = False
    edits: bool = True
    gpt: bool = True  # always base64; background, output_format; no response_format
    max_images: int = 16
    max_bytes: int = 50 * MIB
    max_n: int = 10
    prompt_characters: int = 32_000
    input_fidelity: bool = True

    def accepts_size(self, size: str) -> bool:
        if size in self.sizes:
            return True
        match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", size)
        if not self.free_sizes or not match:
            return False
        width, height = int(match[1]), int(match[2])
        return (
            width % 16 == 0
            and height % 16 == 0
            and max(width, height) <= _MAX_EDGE
            and max(width, height) <= 3 * min(width, height)
            and _MIN_PIXELS <= width * height <= _MAX_PIXELS
        )


_GPT = OpenAIRules()
_GPT_2 = replace(_GPT, free_sizes=True, input_fidelity=False)
_GPT_25 = replace(_GPT_2, qualities=_GPT.qualities | {"xhigh", "max"})
_DALL_E_2 = OpenAIRules(
    frozenset({"256x256", "512x512", "1024x1024"}),
    frozenset({"standard"}),
    gpt=False,
    max_images=1,
    max_bytes=4 * MIB,
    prompt_characters=1000,
)
_DALL_E_3 = OpenAIRules(
    frozenset({"1024x1024", "1792x1024", "1024x1792"}),
    frozenset({"standard", "hd"}),
    edits=False,
    gpt=False,
    max_n=1,
    prompt_characters=4000,
)


class OpenAIApi(ModelRules[OpenAIRules]):
    label = "OpenAI"
    invalid_key_status = 401
    # A later model is accepted by the rules of the latest one.
    rules = (
        (r"gpt-image-1(\.5|-mini)?|chatgpt-image-latest", _GPT),
        (r"gpt-image-2", _GPT_2),
        (r"gpt-image-[2-9](\.\d)?(-\w+)?", _GPT_25),
        (r"dall-e-2", _DALL_E_2),
        (r"dall-e-3", _DALL_E_3),
    )

    def key(self, request: Request) -> str:
        azure = request.headers.get("api-key")
        return azure or request.headers.get("authorization", "").removeprefix("Bearer ")

    def models(self, listed: Mapping[str, str | None]) -> Response:
        owned = {"object": "model", "created": 1_776_729_600, "owned_by": "system"}
        data = [{"id": name, **owned, "shutdown_date": end} for name, end in listed.items()]
        return Response.json({"object": "list", "data": data})

    def parse(
        self, request: Request, path: str, endpoint: SimulatedEndpoint, *, decode: bool
    ) -> ImageRequest:
        match = _PATH.fullmatch(path)
        if not match:
            raise RequestRejected(openai_error(404, "Invalid URL"))
        if match[2] and "api-version" not in request.query:
            raise RequestRejected(openai_error(404, "Resource not found", code="404"))
        edits = (match[1] or match[3]) == "edits"
        fields, files = _parse_edit(request) if edits else (_parse_json(request), [])
        model = match[2] or str(fields.get("model", "dall-e-2"))
        if match[2] and endpoint.deployments:
            model = _deployed(match[2], endpoint)
        self.check_not_retired(model, endpoint.retired_models)
        rules = self.rules_for(model)
        if edits and not rules.edits:
            raise _invalid(f"Model {model} does not support this operation.", "model")
        _check_fields(fields, rules, edits=edits)
        images, mask = _input_images(files, rules, decode=decode) if edits else ((), None)
        size = str(fields.get("size") or "auto")
        width, _, height = size.partition("x")
        return ImageRequest(
            fields["prompt"],
            self.key(request),
            model,
            images,
            mask,
            size=None if size == "auto" else (int(width), int(height)),
            n=int(fields.get("n") or 1),
            quality=str(fields.get("quality") or "auto"),
            output_format=str(fields.get("output_format") or "png"),
            transparent=fields.get("background") == "transparent",
            as_url=not rules.gpt and fields.get("response_format") != "b64_json",
        )

    def output_size(self, request: ImageRequest) -> tuple[int, int]:
        if request.size:
            return request.size
        if not request.images:
            return 1024, 1024
        width, height = request.images[0].decode().size
        if _SQUARE_RATIOS[0] < width / height < _SQUARE_RATIOS[1]:
            return 1024, 1024
        return (1536, 1024) if width > height else (1024, 1536)

    def success(self, request: ImageRequest, images: list[bytes], *, thoughts: bool) -> Response:  # noqa: ARG002 - this API shows none
        if request.as_url:
            return _images([{"url": f"https://images.invalid/{i}.png"} for i in range(len(images))])
        data = [{"b64_json": encode_base64(image)} for image in images]
        if not self.rules_for(request.model).gpt:
            return _images(data)
        usage = _usage(request, len(images))
        return _images(data, output_format=request.output_format, usage=usage)

    def rate_limited(self, hint: str, retry_after: float, per: str) -> Response:
        unit = "images per min" if per == "minute" else "requests per day"
        wait = f" Please try again in {retry_after:g}s." if hint == "body" else ""
        message = f"Rate limit reached for gpt-image on {unit}: Limit 5, Used 5, Requested 1.{wait}"
        headers = retry_after_header(hint, retry_after)
        return openai_error(
            429, message, kind="requests", code="rate_limit_exceeded", headers=headers
        )

    def too_many_images(
        self, hint: str, unit: str, window: SlidingWindow, count: int, wait: float
    ) -> Response:
        message = (
            f"Rate limit reached for gpt-image (for limit gpt-image) in organization org-1 on "
            f"{unit} per min: Limit {window.limit}, Used {window.used}, Requested {count}."
        )
        if wait == inf:
            return openai_error(429, message, kind=unit, code="rate_limit_exceeded")
        message += f" Please try again in {wait:g}s." if hint == "body" else ""
        headers = retry_after_header(hint, wait)
        return openai_error(429, message, kind=unit, code="rate_limit_exceeded", headers=headers)

    def limit_headers(self, endpoint: SimulatedEndpoint) -> dict[str, str]:
        limits = {
            "requests": endpoint.requests_per_minute,
            "images": endpoint.images_per_minute,
            "input-images": endpoint.input_images_per_minute,
        }
        return {f"x-ratelimit-limit-{unit}": str(n) for unit, n in limits.items() if n}

    def model_not_found(self, model: str) -> Response:
        """https://github.com/openai/codex/issues/25966"""
        message = f"The model '{model}' does not exist."
        return openai_error(400, message, kind=_USER_ERROR, code="invalid_value", param="model")

    def invalid_key(self, status: int) -> Response:
        if status == HTTPStatus.FORBIDDEN:
            message = "You do not have access to the project tied to the API key."
            return openai_error(403, message, code="invalid_project")
        message = "Incorrect API key provided. You can find your API key in your account settings."
        return openai_error(status, message, code="invalid_api_key")

    def failure(self, fault: Fault, request: ImageRequest) -> Response:
        if fault.kind in _ERRORS:
            status, kind, code, message = _ERRORS[fault.kind]
            code = fault.code or code
            return openai_error(
                fault.status or status, fault.message or message, kind=kind, code=code
            )
        match fault.kind:
            case FaultKind.REFUSED if fault.category == "content_filter":
                return openai_error(400, _AZURE_REFUSAL, code="content_filter", param="prompt")
            case FaultKind.REFUSED:
                message = f"{_REFUSAL} safety_violations=[{fault.category}]."
                return openai_error(400, message, kind=_USER_ERROR, code="moderation_blocked")
            case FaultKind.TEXT_ONLY:
                return _images([])
            case FaultKind.EMPTY:
                return _images(None)
            case FaultKind.BROKEN_IMAGE:
                broken = {"b64_json": encode_base64(BROKEN_IMAGE)}
                return _images([broken], usage=_usage(request, 1))
        raise ValueError(f"{fault.kind} is not supported by OpenAI's API")


def openai_error(
    status: int,
    message: str,
    *,
    kind: str = _INVALID,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    body = {"message": message, "type": kind, "param": param, "code": code}
    headers = {"x-request-id": "req_simulated", **(headers or {})}
    return Response.json({"error": body}, status, headers)


def _deployed(deployment: str, endpoint: SimulatedEndpoint) -> str:
    if deployment in endpoint.deployments:
        return endpoint.deployments[deployment]
    message = "The API deployment for this resource does not exist."
    raise RequestRejected(openai_error(404, message, code="DeploymentNotFound"))


def _invalid(message: str, param: str, code: str = "invalid_value") -> RequestRejected:
    return RequestRejected(openai_error(400, message, code=code, param=param))


def _missing(param: str) -> RequestRejected:
    message = f"Missing required parameter: '{param}'."
    return _invalid(message, param, "missing_required_parameter")


def _unknown(param: str) -> RequestRejected:
    return _invalid(f"Unknown parameter: '{param}'.", param, "unknown_parameter")


def _images(data: list[dict[str, str]] | None, **extra: Any) -> Response:
    return Response.json({"created": _CREATED, "data": data, **extra})


def _parse_json(request: Request) -> dict[str, Any]:
    try:
        fields = json.loads(request.body)
    except ValueError as error:
        raise _invalid("We could not parse the JSON body of your request.", "body") from error
    if not isinstance(fields, dict):
        raise _invalid("The body must be an object.", "body")
    return fields


def _parse_edit(request: Request) -> tuple[dict[str, Any], list[FormPart]]:
    """A form with files, or JSON with `images`: ImageInputReferenceParam of openai 3.52."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        return _parse_form(request)
    fields = _parse_json(request)
    images, mask = fields.pop("images", None), fields.pop("mask", None)
    if not isinstance(images, list) or not images:
        raise _missing("images")
    files = [_referenced(image, "image[]") for image in images]
    return fields, files + ([_referenced(mask, "mask")] if mask is not None else [])


def _referenced(reference: Any, name: str) -> FormPart:
    """The maxLength of image_url: OpenAI's description of its API, quoted by many clients."""
    if not isinstance(reference, dict) or reference.keys() != {"image_url"}:
        raise _invalid("Provide exactly one of 'image_url' or 'file_id'.", name)
    url = str(reference["image_url"])
    if len(url) > _MAX_URL_CHARACTERS:
        raise _invalid("Invalid 'image_url': string too long.", name, "string_above_max_length")
    found = re.fullmatch(r"data:(image/\w+);base64,([A-Za-z0-9+/]+={0,2})", url)
    if not found:
        raise _invalid("Invalid base64 image.", name, "invalid_base64_image")
    return FormPart(name, name, found[1], base64.b64decode(found[2]))


def _parse_form(request: Request) -> tuple[dict[str, Any], list[FormPart]]:
    try:
        parts = parse_multipart(request.body, request.headers.get("content-type", ""))
    except ValueError as error:
        raise _invalid("Invalid multipart form body.", "body") from error
    fields = {p.name: p.data.decode("utf-8", "replace") for p in parts if p.filename is None}
    return fields, [p for p in parts if p.filename is not None]


def _check_fields(fields: dict[str, Any], rules: OpenAIRules, *, edits: bool) -> None:
    allowed = _GPT_FIELDS if rules.gpt else _DALL_E_FIELDS
    if edits and rules.input_fidelity:
        allowed = allowed | {"input_fidelity"}
    if unknown := sorted(set(fields) - allowed):
        raise _unknown(unknown[0])
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise _missing("prompt")
    if len(prompt) > rules.prompt_characters:
        raise _invalid("Invalid 'prompt': string too long.", "prompt", "string_above_max_length")
    if not 1 <= int(fields.get("n") or 1) <= rules.max_n:
        raise _invalid(f"Invalid 'n': must be between 1 and {rules.max_n}.", "n")
    for name, accepts in (
        ("size", rules.accepts_size),
        ("quality", rules.qualities.__contains__),
        ("output_format", {"png", "jpeg", "webp"}.__contains__),
    ):
        if (value := fields.get(name)) is not None and not accepts(str(value)):
            raise _invalid(f"Invalid value: '{value}'.", name)
    if fields.get("background") == "transparent" and fields.get("output_format") == "jpeg":
        raise _invalid("Transparent background is not supported for JPEG output.", "background")


def _input_images(
    files: list[FormPart], rules: OpenAIRules, *, decode: bool
) -> tuple[tuple[InputImage, ...], InputImage | None]:
    names = {"image", "image[]", "mask"} if rules.gpt else {"image", "mask"}
    if unknown := [f.name for f in files if f.name not in names]:
        raise _unknown(unknown[0])
    images = tuple(_input_image(f, rules, decode=decode) for f in files if f.name != "mask")
    if not images:
        raise _missing("image")
    if len(images) > rules.max_images:
        raise _invalid(f"Too many images: at most {rules.max_images}.", "image")
    masks = [_input_image(f, rules, decode=decode) for f in files if f.name == "mask"]
    if masks and decode:
        _check_mask(masks[0], images[0])
    return images, masks[0] if masks else None


def _input_image(part: FormPart, rules: OpenAIRules, *, decode: bool) -> InputImage:
    allowed = _INPUT_TYPES if rules.gpt else ("image/png",)
    if part.content_type not in allowed:
        message = f"Invalid file '{part.name}': unsupported mimetype ('{part.content_type}')."
        raise _invalid(message, part.name, "unsupported_file_mimetype")
    if len(part.data) >= rules.max_bytes:
        raise _invalid("The image is too large.", part.name, "image_too_large")
    image = InputImage(part.data, part.content_type)
    if decode:
        try:
            decoded = image.decode()
        except ValueError as error:
            failed = openai_error(400, _INVALID_IMAGE, kind=_USER_ERROR, code="invalid_image_file")
            raise RequestRejected(failed) from error
        square = decoded.width == decoded.height and decoded.mode in {"RGBA", "LA", "L", "RGB"}
        if not rules.gpt and not square:
            raise _invalid("Uploaded image must be square and in RGBA, LA or L.", part.name)
    return image


def _check_mask(mask: InputImage, image: InputImage) -> None:
    decoded = mask.decode()
    if mask.mime != "image/png" or len(mask.data) >= 4 * MIB:
        raise _invalid("The mask must be a PNG of less than 4 MB.", "mask", "invalid_mask")
    if "A" not in decoded.getbands():
        raise _invalid("The mask must have an alpha channel.", "mask", "invalid_mask_image_format")
    if decoded.size != image.decode().size:
        message = "The mask must have the same size as the image."
        raise _invalid(message, "mask", "invalid_mask_size")


def _usage(request: ImageRequest, images: int) -> dict[str, Any]:
    width, height = request.size or (1024, 1024)
    tokens_per_image = _OUTPUT_TOKENS.get(request.quality, 1056) * width * height // (1024 * 1024)
    images_out = tokens_per_image * images
    images_in, text_in = _INPUT_IMAGE_TOKENS * len(request.images), text_tokens(request.prompt)
    return {
        "input_tokens": images_in + text_in,
        "input_tokens_details": {"image_tokens": images_in, "text_tokens": text_in},
        "output_tokens": images_out,
        "output_tokens_details": {"image_tokens": images_out, "text_tokens": 0},
        "total_tokens": images_in + text_in + images_out,
    }
