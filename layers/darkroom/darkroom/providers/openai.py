"""OpenAI's failures as outcomes. Sources: https://developers.openai.com/api/docs/guides/error-codes,
Azure OpenAI's content filter codes, and answers seen in the SDK's issue tracker; read 2026-11-21.
"""

import base64
import json
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import httpx2
from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome, SourceImage, Usage
from darkroom.endpoints import Endpoint
from darkroom.images import codec
from darkroom.models.catalog import Model, find_model, planned_image_price, token_cost
from darkroom.providers import http as provider_http
from darkroom.providers.errors import (
    Failure,
    Rule,
    broken_off,
    cause_without_key,
    classify,
    delay_of,
    names,
    safe_text,
)
from darkroom.providers.registry import Provider

if TYPE_CHECKING:
    from openai import OpenAI


REFUSALS = frozenset(
    {
        "moderation_blocked",
        "content_policy_violation",
        "content_filter",
        "contentfilter",
        "responsibleaipolicyviolation",
        "image_generation_user_error",
    }
)
OPENAI_TABLE: tuple[Rule, ...] = (
    # A refusal is a refusal whatever its status.
    Rule(Outcome.REFUSED, names=frozenset({"moderation_blocked", "content_policy_violation"})),
    Rule(Outcome.REFUSED, names=REFUSALS, statuses=(400, 403, 422)),
    Rule(
        Outcome.REFUSED,
        statuses=(400, 403),
        text=r"safety system|content policy|content management policy|safety_violations",
        is_json=True,
    ),
    # Spent money is not pace, though both are a 429.
    Rule(
        Outcome.QUOTA_SPENT,
        names=frozenset(
            {
                "insufficient_quota",
                "billing_hard_limit_reached",
                "billing_not_active",
                "quota_exceeded",
            }
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
    Rule(Outcome.RATE_LIMITED, names=frozenset({"rate_limit_exceeded"})),
    Rule(Outcome.KEY_REJECTED, statuses=(401,)),
    Rule(Outcome.KEY_REJECTED, names=frozenset({"invalid_api_key", "account_deactivated"})),
    Rule(Outcome.KEY_REJECTED, statuses=(403,), is_json=True),
    # The endpoint's own model or path is not there: another key or endpoint may have it. Where the
    # row named the model, `classify` makes it the row's fault.
    Rule(Outcome.KEY_REJECTED, statuses=(404,), is_json=True),
    Rule(Outcome.BAD_REQUEST, statuses=(413,)),
    Rule(Outcome.BAD_REQUEST, statuses=(400, 409, 415, 422), is_json=True),
    Rule(Outcome.UNAVAILABLE, statuses=(408, 425)),
    # The gateway gave up on work that may go on behind it.
    Rule(Outcome.UNAVAILABLE, statuses=(504, 522, 524), maybe_charged=True),
    Rule(Outcome.UNAVAILABLE, statuses=(500, 599), span=True),
    Rule(Outcome.UNAVAILABLE, statuses=(400, 499), span=True, is_json=False),
)


# OpenAI's images API, and what speaks it: Azure OpenAI and compatible base URLs.


BASE_URL = "https://api.openai.com/v1"
_EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


class OpenAIImageEditor:
    """Edits with one or many images and a mask; makes pictures without any. Thread-safe.

    The SDK is imported with the first call: 400 ms that only a fallback needs.
    """

    def __init__(self, http: httpx2.Client | None = None) -> None:
        self._http = http
        self._clients: dict[tuple[str, str, str], OpenAI] = {}
        self._lock = Lock()

    def edit(
        self, plan: CallPlan, endpoint: Endpoint, key: SecretStr, timeout_seconds: float
    ) -> EditResult:
        """One call, no retries, given up after `timeout_seconds` in all. Raises CallFailed."""
        import openai  # noqa: PLC0415 - see the class

        secret = key.get_secret_value()
        try:
            with provider_http.deadline(timeout_seconds):
                client = self._client(endpoint, plan.model).with_options(
                    api_key=secret, timeout=timeout_seconds
                )
                answer = self._send(client, plan)
                return self._read(answer, plan)
        except CallFailed:
            raise
        except openai.APIStatusError as error:
            failed = _status_failure(error, plan, endpoint, secret)
            raise failed from cause_without_key(error, secret)
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            wrapped = error.__cause__ if isinstance(error, openai.APIError) else error
            raise broken_off(wrapped, timeout_seconds) from cause_without_key(error, secret)
        except (openai.APIError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise CallFailed(
                Outcome.UNAVAILABLE,
                f"the answer is not what this API gives: {safe_text(str(error), secret)}",
                maybe_charged=True,
                unknown=not isinstance(error, json.JSONDecodeError),
            ) from cause_without_key(error, secret)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        with self._lock:
            self._clients.clear()
        if self._http is None:
            provider_http.close_shared_client()

    def _client(self, endpoint: Endpoint, model: str) -> "OpenAI":
        """One per base URL; it carries no key."""
        import openai  # noqa: PLC0415

        azure = endpoint.api_version is not None
        cached = (endpoint.base_url or BASE_URL, endpoint.api_version or "", model if azure else "")
        with self._lock:
            if cached in self._clients:
                return self._clients[cached]
            http = self._http or provider_http.shared_client()
            if endpoint.api_version is not None:
                client: OpenAI = openai.AzureOpenAI(
                    azure_endpoint=cached[0],
                    api_version=endpoint.api_version,
                    azure_deployment=model,
                    api_key="given-per-call",
                    max_retries=0,
                    http_client=http,
                )
            else:
                client = openai.OpenAI(
                    base_url=cached[0], api_key="given-per-call", max_retries=0, http_client=http
                )
            self._clients[cached] = client
            return client

    def _send(self, client: "OpenAI", plan: CallPlan) -> Any:
        model = find_model(Provider.OPENAI, plan.model)
        options: dict[str, Any] = {
            "size": plan.size,
            "quality": plan.quality,
            "background": plan.background,
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
        # A list goes out as `image[]`, which a model of one image does not know.
        image = files if model.max_images > 1 else files[0]
        return client.images.edit(model=plan.model, prompt=plan.prompt, image=image, **options)

    def _read(self, answer: Any, plan: CallPlan) -> EditResult:
        if isinstance(answer, str):  # a 200 that was no JSON
            raise CallFailed(
                Outcome.UNAVAILABLE,
                f"a page instead of an answer: {safe_text(answer, '')}",
                maybe_charged=True,
            )
        if not hasattr(answer, "data") or not isinstance(answer.data, list | None):
            raise TypeError("no list of images")
        model = find_model(Provider.OPENAI, plan.model)
        usage = getattr(answer, "usage", None)
        data: Sequence[Any] = answer.data or ()
        cost = _cost(model, plan, usage, len(data))
        if not data:
            raise CallFailed(Outcome.NO_IMAGE, "an answer without an image", cost_micro_usd=cost)
        images = tuple(self._image(item, cost) for item in data)
        return EditResult(
            images=images,
            model=plan.model,
            usage=Usage(
                getattr(usage, "input_tokens", None), getattr(usage, "output_tokens", None)
            ),
            cost_micro_usd=cost,
            text=getattr(data[0], "revised_prompt", None) or "",
        )

    def _image(self, item: Any, cost: int | None) -> bytes:
        """One picture, decoded in full."""
        try:
            if item.b64_json:
                image = base64.b64decode(item.b64_json, validate=True)
            else:
                image = self._download(item.url or "")
            codec.verify(image)
        except ValueError as error:  # binascii's is one too
            raise CallFailed(
                Outcome.UNAVAILABLE,
                f"the answer's image cannot be used: {error}",
                maybe_charged=True,
                cost_micro_usd=cost,
            ) from error
        return image

    def _download(self, url: str) -> bytes:
        """Where a compatible service stores its pictures; no key goes there."""
        if not url:
            raise ValueError("it has neither data nor a URL")
        if url.startswith("data:"):
            return base64.b64decode(url.partition(",")[2], validate=True)
        answer = (self._http or provider_http.shared_client()).get(url)
        if answer.status_code != httpx2.codes.OK:
            raise ValueError(f"its URL answered {answer.status_code}")
        return answer.content


def _file(image: SourceImage, stem: str) -> tuple[str, bytes, str]:
    """Bare bytes would go out as octet-stream, which the API rejects."""
    return f"{stem}.{_EXTENSIONS.get(image.mime, 'png')}", image.data, image.mime


def _status_failure(error: Any, plan: CallPlan, endpoint: Endpoint, key: str) -> CallFailed:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("innererror")
    inner_code = inner.get("code") if isinstance(inner, dict) else None
    is_json = isinstance(error.body, dict)
    text = str(body.get("message") or error.message if is_json else error.response.text)
    failure = Failure(
        status=error.status_code,
        names=names(error.code, error.type, inner_code),
        text=text,
        is_json=is_json,
    )
    return classify(
        OPENAI_TABLE,
        failure,
        model_is_the_rows=plan.model != endpoint.model,
        retry_after_seconds=delay_of(error.response.headers, text),
        key=key,
    )


def _cost(model: Model, plan: CallPlan, usage: Any, pictured: int) -> int | None:
    """By the tokens counted; by the picture where the answer counts none."""
    counted = getattr(usage, "output_tokens", None)
    if not isinstance(counted, int) or model.token_prices is None:
        if not pictured:
            return None
        price = planned_image_price(model, plan)
        return None if price is None else price * pictured
    read = getattr(usage, "input_tokens_details", None)
    made = getattr(usage, "output_tokens_details", None)
    text_in = getattr(read, "text_tokens", None) or 0
    text_out = getattr(made, "text_tokens", None) or 0
    return token_cost(
        model,
        text_in=text_in,
        image_in=max(0, (getattr(usage, "input_tokens", None) or 0) - text_in),
        text_out=text_out,
        image_out=max(0, counted - text_out),
    )
