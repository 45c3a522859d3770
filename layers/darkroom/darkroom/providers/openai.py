"""OpenAI's images API, and what is compatible with it: Azure OpenAI and other base URLs.

Sources of the table: https://developers.openai.com/api/docs/guides/error-codes, Azure OpenAI's
content filter codes, and error responses quoted in the SDK's issue tracker; read 2026-11-21.
"""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import httpx2

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome, SourceImage
from darkroom.endpoints import Endpoint
from darkroom.images import codec
from darkroom.models.catalog import Model, find_model, planned_image_price, token_cost
from darkroom.providers.adapter import SdkImageEditor
from darkroom.providers.errors import Failure, Rule, names, retry_after, safe_text, unusable_images
from darkroom.providers.registry import Provider

if TYPE_CHECKING:
    from openai import OpenAI

BASE_URL = "https://api.openai.com/v1"
_EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}

_REFUSALS = names(
    "moderation_blocked",
    "content_policy_violation",
    "content_filter",
    "contentfilter",
    "responsibleaipolicyviolation",
    "image_generation_user_error",
)

OPENAI_TABLE: tuple[Rule, ...] = (
    # These are refusals whatever their status.
    Rule(Outcome.REFUSED, names=names("moderation_blocked", "content_policy_violation")),
    Rule(Outcome.REFUSED, names=_REFUSALS, statuses=(400, 403, 422)),
    Rule(
        Outcome.REFUSED,
        statuses=(400, 403),
        text=r"safety system|content policy|content management policy|safety_violations",
        is_json=True,
    ),
    # A spent budget is not a rate limit, though both are a 429.
    Rule(
        Outcome.QUOTA_SPENT,
        names=names(
            "insufficient_quota",
            "billing_hard_limit_reached",
            "billing_not_active",
            "quota_exceeded",
        ),
    ),
    Rule(Outcome.QUOTA_SPENT, statuses=(402,)),
    Rule(Outcome.QUOTA_SPENT, statuses=(429,), text=r"check your plan and billing"),
    Rule(
        Outcome.RATE_LIMITED,
        statuses=(429,),
        text=r"\bper day\b|\b(?:RPD|IPD|TPD)\b",
        daily=True,
    ),
    Rule(Outcome.RATE_LIMITED, statuses=(429,)),
    Rule(Outcome.RATE_LIMITED, names=names("rate_limit_exceeded")),
    Rule(Outcome.KEY_REJECTED, statuses=(401,)),
    Rule(Outcome.KEY_REJECTED, names=names("invalid_api_key", "account_deactivated")),
    Rule(Outcome.KEY_REJECTED, statuses=(403,), is_json=True),
    # The endpoint's own model or path does not exist: another key or endpoint may have it. Where
    # the row named the model, `classify` rejects the row instead.
    Rule(Outcome.KEY_REJECTED, statuses=(404,), is_json=True),
    Rule(Outcome.BAD_REQUEST, statuses=(413,)),
    Rule(Outcome.BAD_REQUEST, statuses=(400, 409, 415, 422), is_json=True),
    Rule(Outcome.UNAVAILABLE, statuses=(408, 425)),
    # The gateway gave up on work that may continue behind it.
    Rule(Outcome.UNAVAILABLE, statuses=(504, 522, 524), maybe_charged=True),
    Rule(Outcome.UNAVAILABLE, statuses=range(500, 600)),
    Rule(Outcome.UNAVAILABLE, statuses=range(400, 500), is_json=False),
)


class OpenAIImageEditor(SdkImageEditor["OpenAI"]):
    """Edits with one or many images and a mask; generates without any."""

    sdk = "openai"
    table = OPENAI_TABLE

    def _new_client(self, *address: str | None) -> "OpenAI":
        import openai  # noqa: PLC0415 - see SdkImageEditor

        url, version, deployment = address
        options: Any = {"api_key": "given-per-call", "max_retries": 0, "http_client": self._http}
        if version is None:
            return openai.OpenAI(base_url=url, **options)
        options |= {"azure_endpoint": url, "azure_deployment": deployment}
        return openai.AzureOpenAI(api_version=version, **options)

    def _call(
        self, plan: CallPlan, endpoint: Endpoint, key: str, timeout_seconds: float
    ) -> EditResult:
        version = endpoint.api_version
        deployment = None if version is None else plan.model
        client = self._client(endpoint.base_url or BASE_URL, version, deployment)
        response = _send(client.with_options(api_key=key, timeout=timeout_seconds), plan)
        return self._read(response, plan)

    def _error_response(self, error: Exception) -> Failure | None:
        import openai  # noqa: PLC0415 - see SdkImageEditor

        if not isinstance(error, openai.APIStatusError):
            return None
        is_json = isinstance(error.body, dict)
        body: Any = error.body if is_json else {}
        inner = body.get("innererror")
        inner_code = inner.get("code") if isinstance(inner, dict) else None
        text = str(body.get("message") or error.message if is_json else error.response.text)
        return Failure(
            status=error.status_code,
            names=names(error.code, error.type, inner_code),
            text=text,
            is_json=is_json,
            retry_after_seconds=retry_after(error.response.headers, text),
        )

    def _read(self, response: Any, plan: CallPlan) -> EditResult:
        if isinstance(response, str):  # a 200 that is not JSON
            raise CallFailed(
                Outcome.UNAVAILABLE,
                f"a page instead of a response of the API: {safe_text(response, '')}",
                maybe_charged=True,
            )
        if not hasattr(response, "data") or not isinstance(response.data, list | None):
            raise TypeError("no list of images")
        model = find_model(Provider.OPENAI, plan.model)
        data: Sequence[Any] = response.data or ()
        cost = _cost(model, plan, getattr(response, "usage", None), len(data))
        if not data:
            raise CallFailed(Outcome.NO_IMAGE, "a response without an image", cost_micro_usd=cost)
        with unusable_images(cost):
            images = tuple(self._image(item) for item in data)
        return EditResult(images, plan.model, cost)

    def _image(self, item: Any) -> bytes:
        """One image, decoded in full. Raises ValueError (binascii's error is one too)."""
        url = item.url or ""
        if item.b64_json or url.startswith("data:"):
            image = base64.b64decode(item.b64_json or url.partition(",")[2], validate=True)
        elif url:  # some compatible services store the image; the key is not sent there
            response = self._http.get(url)
            if response.status_code != httpx2.codes.OK:
                raise ValueError(f"its URL returned {response.status_code}")
            image = response.content
        else:
            raise ValueError("it has neither data nor a URL")
        codec.verify(image)
        return image


def _send(client: "OpenAI", plan: CallPlan) -> Any:
    model = find_model(Provider.OPENAI, plan.model)
    options: dict[str, Any] = {
        **plan.settings,
        "size": plan.size,
        "quality": plan.quality,
        "output_format": plan.output_format,
        "n": plan.n if plan.n > 1 else None,
        "response_format": "b64_json" if model.needs_response_format else None,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if not plan.images:
        return client.images.generate(model=plan.model, prompt=plan.prompt, **options)
    files = [_file(image, f"image-{i}") for i, image in enumerate(plan.images)]
    if plan.mask is not None:
        options["mask"] = _file(plan.mask, "mask")
    # A list is sent as `image[]`, which a model that takes one image rejects.
    image = files if model.max_images > 1 else files[0]
    return client.images.edit(model=plan.model, prompt=plan.prompt, image=image, **options)


def _file(image: SourceImage, stem: str) -> tuple[str, bytes, str]:
    """Bytes alone would be sent as octet-stream, which the API rejects."""
    return f"{stem}.{_EXTENSIONS.get(image.mime, 'png')}", image.data, image.mime


def _cost(model: Model, plan: CallPlan, usage: Any, images: int) -> int | None:
    """In micro-USD by the tokens counted, or by the image where the response counts none."""
    output = getattr(usage, "output_tokens", None)
    if not isinstance(output, int) or model.token_prices is None:
        if not images:
            return None
        price = planned_image_price(model, plan)
        return None if price is None else price * images
    input_details = getattr(usage, "input_tokens_details", None)
    output_details = getattr(usage, "output_tokens_details", None)
    text_in = getattr(input_details, "text_tokens", None) or 0
    text_out = getattr(output_details, "text_tokens", None) or 0
    return token_cost(
        model,
        text_in=text_in,
        image_in=max(0, (getattr(usage, "input_tokens", None) or 0) - text_in),
        text_out=text_out,
        image_out=max(0, output - text_out),
    )
