"""OpenAI's images API, and what is compatible with it: Azure OpenAI and other base URLs.

Sources of the table: https://developers.openai.com/api/docs/guides/error-codes, Azure OpenAI's
content filter codes, and error responses quoted in the SDK's issue tracker; read 2026-11-21.
"""

import base64
import os
import re
from collections.abc import Mapping
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx2

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome, ProviderLimits, SourceImage
from darkroom.endpoints import Endpoint
from darkroom.errors import RowError
from darkroom.fetcher import WebImageFetcher
from darkroom.formatting import clean_text
from darkroom.images import codec
from darkroom.images.references import ImageRules
from darkroom.models.catalog import Model, planned_image_price, token_cost
from darkroom.providers.adapter import SdkImageEditor
from darkroom.providers.errors import (
    Failure,
    Rule,
    classify,
    error_body,
    error_text,
    names,
    retry_after,
    token_count,
    unusable_images,
)
from darkroom.providers.http import last_response

if TYPE_CHECKING:
    from openai import OpenAI

BASE_URL = "https://api.openai.com/v1"
_EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}

# Sources of the rules: tests/corpus/answers.yaml has the bodies, each with where it was seen.
OPENAI_TABLE: tuple[Rule, ...] = (
    # Azure blocks the whole resource for what its rows contained together. Not the row's.
    Rule(Outcome.KEY_REJECTED, text=r"resource has been temporarily blocked"),
    # These are refusals whatever their status. The type `image_generation_user_error` is not one by
    # itself: unknown models, invalid images and unsupported parameters have it too.
    Rule(Outcome.REFUSED, names=names("moderation_blocked", "content_policy_violation")),
    Rule(
        Outcome.REFUSED,
        names=names("content_filter", "contentfilter", "responsibleaipolicyviolation"),
        statuses=(400, 403, 422),
    ),
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
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
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
    Rule(Outcome.RATE_LIMITED, names=names("rate_limit_exceeded", "rate_limit_error", "slow_down")),
    Rule(Outcome.KEY_REJECTED, statuses=(401,)),
    Rule(Outcome.KEY_REJECTED, names=names("invalid_api_key", "account_deactivated")),
    # Azure's path without a deployment of that name; a retired model at OpenAI is a 400.
    Rule(Outcome.MODEL_UNAVAILABLE, names=names("model_not_found", "deploymentnotfound")),
    Rule(Outcome.MODEL_UNAVAILABLE, statuses=(400, 404), names=names("param:model")),
    Rule(
        Outcome.MODEL_UNAVAILABLE,
        statuses=(400, 403, 404, 410),
        text=r"\b(?:model|deployment)\b.{0,120}?\b(?:does not exist|not found|do(?:es)? not have"
        r" access|no longer available|(?:is|has been) (?:deprecated|retired|shut ?down))"
        r"|\bmust be verified to use the model\b",
        is_json=True,
    ),
    Rule(Outcome.KEY_REJECTED, statuses=(403,), is_json=True),
    # The endpoint's own path does not exist.
    Rule(Outcome.MODEL_UNAVAILABLE, statuses=(404,), is_json=True),
    Rule(
        Outcome.BAD_IMAGE,
        names=names(
            "invalid_image_file",
            "invalid_image",
            "invalid_image_format",
            "image_parse_error",
            "unsupported_file_mimetype",
            "image_too_large",
            "image_too_small",
            "image_file_too_large",
            "empty_image_file",
            "failed_to_download_image",
            "image_file_not_found",
            "invalid_base64_image",
        ),
        statuses=(400, 413, 415, 422),
    ),
    Rule(
        Outcome.BAD_IMAGE, statuses=(400,), text=r"invalid image file|image file is (?:corrupt|inv)"
    ),
    Rule(Outcome.BAD_REQUEST, statuses=(413,)),
    Rule(Outcome.BAD_REQUEST, statuses=(400, 405, 415, 422), is_json=True),
    # 409: a lock that another request holds; the SDK retries it, as it does 408.
    Rule(Outcome.UNAVAILABLE, statuses=(408, 409, 425)),
    # The gateway gave up on work that may continue behind it.
    Rule(Outcome.UNAVAILABLE, statuses=(504, 522, 524), maybe_charged=True),
    Rule(Outcome.UNAVAILABLE, statuses=range(500, 600)),
    Rule(Outcome.UNAVAILABLE, statuses=range(400, 500), is_json=False),
)


# Headers: https://developers.openai.com/api/docs/guides/rate-limits; those of images: OpenAI's own
# description of its API, https://github.com/openai/openai-java/pull/1039. The text of a 429: "on
# input-images per min: Limit 5, Used 5, Requested 1".
_LIMIT_HEADERS = {
    "x-ratelimit-limit-requests": "requests_per_minute",
    "x-ratelimit-limit-images": "images_per_minute",
    "x-ratelimit-limit-input-images": "input_images_per_minute",
}
_LIMIT_IN_TEXT = re.compile(
    r"\bon (?P<unit>requests|images|input-images) per min\b.{0,40}?\blimit:? (?P<n>[\d,]{1,12})",
    re.IGNORECASE | re.ASCII,
)


class OpenAIImageEditor(SdkImageEditor["OpenAI"]):
    """Edits with one or many images and a mask; generates without any.

    `web` loads images that a compatible service answers with a URL of.
    """

    sdk = "openai"
    table = OPENAI_TABLE

    def __init__(
        self, http: httpx2.Client | None = None, web: WebImageFetcher | None = None
    ) -> None:
        super().__init__(http)
        self._given_web = web

    def close(self) -> None:
        super().close()
        if "_web" in vars(self):
            self._web.close()

    @cached_property
    def _web(self) -> WebImageFetcher:
        return self._given_web or WebImageFetcher(ImageRules(buckets=()))

    def _new_client(self, *address: str | None) -> "OpenAI":
        import openai  # noqa: PLC0415 - see SdkImageEditor

        url, version, deployment = address
        options: Any = {
            "api_key": "given-per-call",
            "max_retries": 0,
            "http_client": self._http,
            "default_headers": _without_environment(),
        }
        if version is None:
            client = openai.OpenAI(base_url=url, **options)
        else:
            options |= {"azure_endpoint": url, "azure_deployment": deployment}
            client = openai.AzureOpenAI(api_version=version, **options)
        client.organization = client.project = None  # of the environment
        return client

    def _call(
        self, plan: CallPlan, endpoint: Endpoint, key: str, timeout_seconds: float
    ) -> EditResult:
        version = endpoint.api_version
        deployment = None if version is None else plan.model
        client = self._client(endpoint.base_url or BASE_URL, version, deployment)
        model = self._model(endpoint, plan)
        options = request_options(plan, model) | {
            "extra_headers": headers_of_call(endpoint, key),
            "timeout": timeout_seconds,
        }
        response = _send(client, plan, model, options)
        return self._read(response, plan, endpoint, key)

    def _list_models(
        self, endpoint: Endpoint, key: str, timeout_seconds: float
    ) -> Mapping[str, date | None]:
        client = self._client(endpoint.base_url or BASE_URL, endpoint.api_version, None)
        headers = headers_of_call(endpoint, key)
        listed = client.models.list(extra_headers=headers, timeout=timeout_seconds).data
        return {model.id: _date(getattr(model, "shutdown_date", None)) for model in listed}

    def _failure(self, response: httpx2.Response, endpoint: Endpoint) -> Failure:  # noqa: ARG002
        body = error_body(response) or {}
        # Compatible servers also write {"error": "…"}, {"message": "…"} and {"detail": "…"}.
        error = body.get("error", body)
        fields = error if isinstance(error, dict) else {"message": error}
        inner = fields.get("innererror")
        code = inner.get("code") if isinstance(inner, dict) else None
        text = error_text(response, fields.get("message"), body.get("detail"))
        of_model = "param:model" if fields.get("param") == "model" else None
        return Failure(
            status=response.status_code,
            names=names(fields.get("code"), fields.get("type"), code, of_model),
            text=text,
            is_json=bool(body),
            retry_after_seconds=retry_after(response.headers, text),
        )

    def _limits_in(self, response: httpx2.Response) -> ProviderLimits:
        found = {
            field: int(value)
            for header, field in _LIMIT_HEADERS.items()
            if (value := response.headers.get(header, "")[:9]).isascii() and value.isdecimal()
        }
        if response.status_code == httpx2.codes.TOO_MANY_REQUESTS:
            text = error_text(response)
            for limit in _LIMIT_IN_TEXT.finditer(text):
                unit = limit["unit"].lower().replace("-", "_")
                found[f"{unit}_per_minute"] = int(limit["n"].replace(",", "") or 0)
        return ProviderLimits(**{name: value for name, value in found.items() if value > 0})

    def _read(self, response: Any, plan: CallPlan, endpoint: Endpoint, key: str) -> EditResult:
        if isinstance(response, str):  # a 200 that is not JSON
            raise CallFailed(
                Outcome.UNAVAILABLE,
                f"not a response of this API: {clean_text(response, key) or 'an empty body'}",
                maybe_charged=True,
            )
        data = getattr(response, "data", None)
        if not data:
            self._raise_error_of_200(endpoint, key)
        if not isinstance(data, list | None) or not hasattr(response, "data"):
            raise TypeError("no list of images")
        cost = _cost(
            self._model(endpoint, plan), plan, getattr(response, "usage", None), len(data or ())
        )
        if not data:
            detail = "a response without an image"
            raise CallFailed(Outcome.NO_IMAGE, detail, cost_micro_usd=cost, retry_once=True)
        with unusable_images(cost):
            images = tuple(self._image(item) for item in data[: plan.n])
        return EditResult(images, plan.model, cost)

    def _raise_error_of_200(self, endpoint: Endpoint, key: str) -> None:
        """Raises CallFailed if the body is an error: seen with rate limits, status 200."""
        response = last_response()
        if response is None or not isinstance((error_body(response) or {}).get("error"), dict):
            return
        failure = self._failure(response, endpoint)
        raise classify(self.table, failure, key=key)

    def _image(self, item: Any) -> bytes:
        """One image, decoded in full. Raises ValueError (binascii's error is one too)."""
        url = item.url or ""
        if item.b64_json or url.startswith("data:"):
            image = base64.b64decode(item.b64_json or url.partition(",")[2], validate=True)
        elif url:  # some compatible services store the image; the key is not sent there
            try:
                image = self._web.fetch(url)
            except RowError as error:
                raise ValueError(f"the {error.detail}") from error
        else:
            raise ValueError("it has neither data nor a URL")
        codec.verify(image)
        return image


def _date(text: Any) -> date | None:
    """None also for what is not a date."""
    try:
        return date.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def _without_environment() -> dict[str, Any]:
    """Removes the headers that the SDK takes from OPENAI_CUSTOM_HEADERS and sends to any server."""
    from openai import Omit  # noqa: PLC0415 - see SdkImageEditor

    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    return {name.strip(): Omit() for name, colon, _ in (x.partition(":") for x in lines) if colon}


def headers_of_call(endpoint: Endpoint, key: str) -> dict[str, str]:
    """Those of one call: the key, the account, and the endpoint's own."""
    authentication = {"Authorization": f"Bearer {key}"}
    if endpoint.api_version is not None:
        authentication = {"api-key": key}
    account = {"OpenAI-Organization": endpoint.organization, "OpenAI-Project": endpoint.project}
    return {
        **authentication,
        **{name: value for name, value in account.items() if value is not None},
        **{name: value.get_secret_value() for name, value in endpoint.headers.items()},
    }


def request_options(plan: CallPlan, model: Model) -> dict[str, Any]:
    """The fields of a request beside its images."""
    options: dict[str, Any] = {
        **plan.settings,
        "model": plan.model,
        "prompt": plan.prompt,
        "size": plan.size,
        "quality": plan.quality,
        "output_format": plan.output_format,
        "n": plan.n if plan.n > 1 else None,
        "response_format": "b64_json" if model.needs_response_format else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _send(client: "OpenAI", plan: CallPlan, model: Model, options: dict[str, Any]) -> Any:
    if not plan.images:
        return client.images.generate(**options)
    files = [_file(image, f"image-{i}") for i, image in enumerate(plan.images)]
    if plan.mask is not None:
        options["mask"] = _file(plan.mask, "mask")
    # A list is sent as `image[]`, which a model that takes one image rejects.
    return client.images.edit(image=files if model.max_images > 1 else files[0], **options)


def _file(image: SourceImage, stem: str) -> tuple[str, bytes, str]:
    """Bytes alone would be sent as octet-stream, which the API rejects."""
    return f"{stem}.{_EXTENSIONS.get(image.mime, 'png')}", image.data, image.mime


def _cost(model: Model, plan: CallPlan, usage: Any, images: int) -> int | None:
    """In micro-USD by the tokens counted, or by the image where the response counts none."""
    output = token_count(usage, "output_tokens")
    if output is None or model.token_prices is None:
        if not images:
            return None
        price = planned_image_price(model, plan)
        return None if price is None else price * images
    input_details = getattr(usage, "input_tokens_details", None)
    output_details = getattr(usage, "output_tokens_details", None)
    text_in = token_count(input_details, "text_tokens") or 0
    text_out = token_count(output_details, "text_tokens") or 0
    return token_cost(
        model,
        text_in=text_in,
        image_in=max(0, (token_count(usage, "input_tokens") or 0) - text_in),
        text_out=text_out,
        image_out=max(0, output - text_out),
    )
