"""Gemini's image models through `generate_content`, in API-key mode.

Sources of the tables: https://ai.google.dev/gemini-api/docs/troubleshooting, google-genai 3.4
(types.FinishReason and types.BlockedReason), google.rpc's error model, and error responses quoted
in the SDK's issues; read 2026-11-21.
"""

import warnings
from collections.abc import Iterator, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

import httpx2

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.csv_input.values import parse_model
from darkroom.endpoints import Endpoint
from darkroom.formatting import clean_text
from darkroom.images import codec
from darkroom.models.catalog import Model, token_cost
from darkroom.providers.adapter import SdkImageEditor
from darkroom.providers.errors import (
    Failure,
    Rule,
    decimal,
    error_body,
    error_text,
    malformed_response,
    names,
    retry_after,
    token_count,
    unusable_images,
)
from darkroom.providers.google_auth import google_credentials, refresh
from darkroom.providers.http import deadline, last_response

if TYPE_CHECKING:
    from google.genai import Client, types

_MAX_NAME = 64
BASE_URL = "https://generativelanguage.googleapis.com/"
API_VERSION = "v1"
_PLATFORM_VERSION = "v1beta1"  # of the enterprise platform
_MULTI_REGIONS = ("eu", "us")
# https://docs.cloud.google.com/gemini-enterprise-agent-platform/models/flex-paygo
_FLEX_ON_PLATFORM = {
    "X-Vertex-AI-LLM-Request-Type": "shared",
    "X-Vertex-AI-LLM-Shared-Request-Type": "flex",
}
_MODELS_OF_A_PAGE = 1000  # the most that one request returns

# `names` are the status ("resource_exhausted"), the reasons of google.rpc.ErrorInfo, and for each
# quota violated "quota:minute" or "quota:day".
GEMINI_TABLE: tuple[Rule, ...] = (
    Rule(
        Outcome.KEY_REJECTED,
        names=names(
            "api_key_invalid",
            "api_key_expired",
            "api_key_service_blocked",
            "api_key_http_referrer_blocked",
            "api_key_ip_address_blocked",
            "consumer_suspended",
            "service_disabled",
            "access_token_scope_insufficient",
        ),
    ),
    Rule(Outcome.KEY_REJECTED, statuses=(400, 401, 403), text=r"api[ _]key (?:not valid|expired)"),
    Rule(Outcome.QUOTA_SPENT, names=names("billing_disabled")),
    Rule(Outcome.QUOTA_SPENT, statuses=(402,)),
    # An ordinary rate-limit 429 also contains "check your plan and billing details".
    Rule(
        Outcome.QUOTA_SPENT,
        statuses=(400, 403, 429),
        text=r"spend(?:ing)? (?:cap|limit)|credits? (?:is|are|have been) (?:depleted|exhausted)"
        r"|prepa(?:id|yment) (?:credits?|balance)|enable billing|billing account|billed users"
        r"|limit: 0\b",
    ),
    Rule(Outcome.RATE_LIMITED, names=names("quota:day"), daily=True),
    Rule(Outcome.RATE_LIMITED, statuses=(429,), text=r"\bper day\b", daily=True),
    Rule(Outcome.RATE_LIMITED, names=names("quota:minute")),
    # The flex tier sheds load with 429 and 503 when it has no capacity: not a limit of the account.
    Rule(Outcome.UNAVAILABLE, statuses=(429,), names=names("tier:flex")),
    Rule(Outcome.RATE_LIMITED, statuses=(429,)),
    Rule(Outcome.RATE_LIMITED, names=names("resource_exhausted")),
    Rule(Outcome.KEY_REJECTED, statuses=(401,)),
    Rule(
        Outcome.KEY_REJECTED,
        statuses=(400, 403),
        text=r"location is not supported|not available in your (?:country|region|location)",
    ),
    # The endpoint's own model does not exist: another endpoint may have one that does. Where the
    # row named the model, `SdkImageEditor` rejects the row instead.
    Rule(Outcome.MODEL_UNAVAILABLE, statuses=(404,), is_json=True),
    Rule(
        Outcome.MODEL_UNAVAILABLE,
        statuses=(400, 403),
        text=r"\bmodels?\b.{0,120}?\b(?:not found|no longer available|(?:is|has been) (?:deprecated"
        r"|retired|shut ?down))",
        is_json=True,
    ),
    Rule(Outcome.KEY_REJECTED, statuses=(403,), is_json=True),
    # Below ten seconds, which `Endpoint` does not accept: what was left of a call's time.
    Rule(
        Outcome.UNAVAILABLE,
        statuses=(400,),
        text=r"deadline.{0,40}too short|minimum.{0,20}deadline",
    ),
    Rule(
        Outcome.REFUSED,
        statuses=(400,),
        text=r"violat\w{1,9} .{0,80}(?:polic|responsible ai)|prohibited (?:content|use)"
        r"|safety (?:filter|polic)",
        is_json=True,
    ),
    # The API asks to retry, and an image that was decoded here is rarely at fault.
    Rule(
        Outcome.BAD_IMAGE,
        statuses=(400,),
        text=r"unable to process input image|provided image is not valid",
        is_json=True,
        retry_once=True,
    ),
    Rule(Outcome.BAD_IMAGE, statuses=(400,), text=r"unsupported mime type", is_json=True),
    Rule(Outcome.BAD_REQUEST, statuses=(413,)),
    Rule(Outcome.BAD_REQUEST, statuses=(400, 405, 422), is_json=True),
    # 409 is ABORTED: a concurrent change, to be retried.
    Rule(Outcome.UNAVAILABLE, statuses=(408, 409, 425, 499)),
    Rule(Outcome.UNAVAILABLE, statuses=(504,), maybe_charged=True),
    Rule(Outcome.UNAVAILABLE, statuses=range(500, 600)),
    Rule(Outcome.UNAVAILABLE, statuses=range(400, 500), is_json=False),
)

# Why a candidate without an image ended. The category of a refusal is the reason's name.
FINISH_TABLE: dict[str, Outcome] = {
    "SAFETY": Outcome.REFUSED,
    "IMAGE_SAFETY": Outcome.REFUSED,
    "PROHIBITED_CONTENT": Outcome.REFUSED,
    "IMAGE_PROHIBITED_CONTENT": Outcome.REFUSED,
    "BLOCKLIST": Outcome.REFUSED,
    "SPII": Outcome.REFUSED,
    "RECITATION": Outcome.REFUSED,
    "IMAGE_RECITATION": Outcome.REFUSED,
    "ESCALATION": Outcome.REFUSED,
    "MODEL_ARMOR": Outcome.REFUSED,
    "LANGUAGE": Outcome.BAD_REQUEST,
    "MISSING_THOUGHT_SIGNATURE": Outcome.BAD_REQUEST,
    "PUP_LIMITED_DISABLED": Outcome.KEY_REJECTED,
    "STOP": Outcome.NO_IMAGE,
    "MAX_TOKENS": Outcome.NO_IMAGE,
    "NO_IMAGE": Outcome.NO_IMAGE,
    "OTHER": Outcome.NO_IMAGE,
    "IMAGE_OTHER": Outcome.NO_IMAGE,
    "FINISH_REASON_UNSPECIFIED": Outcome.NO_IMAGE,
    "CONTINUATION": Outcome.NO_IMAGE,
    "MALFORMED_FUNCTION_CALL": Outcome.NO_IMAGE,
    "UNEXPECTED_TOOL_CALL": Outcome.NO_IMAGE,
    "TOO_MANY_TOOL_CALLS": Outcome.NO_IMAGE,
    "MALFORMED_RESPONSE": Outcome.UNAVAILABLE,
}


# An answer that another call may not repeat: one more try at the same endpoint, none at another.
BY_CHANCE = frozenset({"NO_IMAGE", "IMAGE_OTHER", "OTHER", "MALFORMED_FUNCTION_CALL"})


class GeminiImageEditor(SdkImageEditor["Client"]):
    """Edits with up to the model's number of references; generates without any.

    An endpoint with a `location` is on Google's enterprise platform: the Google Cloud project and
    the credentials, or an API key of that platform, take the place of a Gemini API key.
    """

    sdk = "google.genai"
    table = GEMINI_TABLE

    def _new_client(self, *address: str | None) -> "Client":
        base_url, version, project, location, credentials = address
        account: dict[str, Any] = {"api_key": "given-per-call"}
        if credentials is not None:
            account = {"credentials": google_credentials(credentials)}
        if location is not None and project is not None:  # a key alone belongs to one project
            account |= {"project": project, "location": location}
        account["vertexai"] = location is not None
        return new_genai_client(self._http, account, base_url=base_url, api_version=version)

    def _call(
        self, plan: CallPlan, endpoint: Endpoint, key: str, timeout_seconds: float
    ) -> EditResult:
        # The client must outlive the call: it closes its connections when it is deleted.
        client = self._authenticated(endpoint, key, timeout_seconds)
        response = generate(client, plan, config_of_call(plan, endpoint, key, timeout_seconds))
        return self._read(response, plan, endpoint, key)

    def _list_models(
        self, endpoint: Endpoint, key: str, timeout_seconds: float
    ) -> Mapping[str, date | None]:
        from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

        client = self._authenticated(endpoint, key, timeout_seconds)
        options = http_options(endpoint, key, timeout_seconds)
        config = types.ListModelsConfig(page_size=_MODELS_OF_A_PAGE, http_options=options)
        return {
            (model.name or "").rpartition("/")[2]: None
            for model in client.models.list(config=config).page
        }

    def _authenticated(self, endpoint: Endpoint, key: str, timeout_seconds: float) -> "Client":
        ignore_warnings()
        location = endpoint.location
        credentials = None if endpoint.credentials is None else key
        # Always given: the SDK would read them from the environment.
        client = self._client(
            endpoint.base_url or (BASE_URL if location is None else _platform_url(location)),
            endpoint.api_version or (API_VERSION if location is None else _PLATFORM_VERSION),
            endpoint.project,
            location,
            credentials,
        )
        if credentials is not None:
            with deadline(timeout_seconds):  # of its own, so that it does not count as the call
                refresh(google_credentials(credentials), self._http)
        return client

    def _read(
        self,
        response: "types.GenerateContentResponse",
        plan: CallPlan,
        endpoint: Endpoint,
        key: str,
        body: Mapping[str, Any] | None = None,
    ) -> EditResult:
        """The images outside the thoughts, decoded in full. Raises CallFailed.

        `body` is the response's JSON, by default that of the last HTTP response.
        """
        parts = list(_parts(response))
        blobs = [p.inline_data for p in parts if p.inline_data is not None]
        images = tuple(b.data for b in blobs if (b.mime_type or "image/").startswith("image/"))
        model, usage = self._model(endpoint, plan), response.usage_metadata
        cost = _cost(model, usage, has_images=bool(images))
        if not images:
            texts = [p.text for p in parts if p.text] + [_finish_message(body)]
            raise _no_image_failure(response, clean_text(" ".join(texts), key), cost, key)
        with unusable_images(cost):
            for image in images:
                codec.verify(image or b"")
        return EditResult(images, _model_name(response.model_version, key) or plan.model, cost)

    def _failure(self, response: httpx2.Response, endpoint: Endpoint) -> Failure:
        body = error_body(response) or {}
        error = body.get("error")
        fields = error if isinstance(error, dict) else {}
        details = fields.get("details")
        details = [d for d in details if isinstance(d, dict)] if isinstance(details, list) else []
        text = error_text(response, fields.get("message"))
        delay = _retry_delay(details)
        tier = endpoint.service_tier and f"tier:{endpoint.service_tier}"
        return Failure(
            status=response.status_code,
            names=names(fields.get("status"), tier, *_reasons(details)),
            text=text,
            is_json=bool(fields),
            retry_after_seconds=retry_after(response.headers, text) if delay is None else delay,
        )


def ignore_warnings() -> None:
    """The SDK warns of values it does not know, with the provider's text."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"google\.genai")


def new_genai_client(http: httpx2.Client, account: dict[str, Any], **options: Any) -> "Client":
    """A client of the SDK over `http`, without retries; `options` are those of HttpOptions."""
    from google import genai  # noqa: PLC0415 - see SdkImageEditor
    from google.genai import types  # noqa: PLC0415

    return genai.Client(
        **account,
        http_options=types.HttpOptions(
            httpx_client=http,
            # Never used; without it the SDK builds one with its own TLS context.
            httpx_async_client=httpx2.AsyncClient(
                transport=httpx2.MockTransport(_unsupported), trust_env=False
            ),
            retry_options=types.HttpRetryOptions(attempts=1),
            **options,
        ),
    )


def _platform_url(location: str) -> str:
    """Of Google's enterprise platform: global, a multi-region or a region."""
    if location == "global":
        return "https://aiplatform.googleapis.com/"
    if location in _MULTI_REGIONS:
        return f"https://aiplatform.{location}.rep.googleapis.com/"
    return f"https://{location}-aiplatform.googleapis.com/"


def _unsupported(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.UnsupportedProtocol("Darkroom makes no asynchronous calls", request=request)


def generate(client: "Client", plan: CallPlan, config: "types.GenerateContentConfig") -> Any:
    """Sends the plan; the response as the SDK has read it."""
    from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

    images: Any = (types.Part.from_bytes(data=i.data, mime_type=i.mime) for i in plan.images)
    return client.models.generate_content(
        model=plan.model, contents=[plan.prompt, *images], config=config
    )


def config_of_call(
    plan: CallPlan, endpoint: Endpoint, key: str, timeout_seconds: float
) -> "types.GenerateContentConfig":
    from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

    image_config = None
    if plan.aspect_ratio is not None or plan.resolution is not None:
        image_config = types.ImageConfig(aspect_ratio=plan.aspect_ratio, image_size=plan.resolution)
    tier = endpoint.service_tier if endpoint.location is None else None  # else in the headers
    settings: dict[str, Any] = dict(plan.settings)
    if level := settings.pop("thinking_level", None):
        settings["thinking_config"] = types.ThinkingConfig(thinking_level=level)
    return types.GenerateContentConfig(
        **settings,
        response_modalities=["IMAGE"],
        image_config=image_config,
        service_tier=tier and types.ServiceTier(tier),
        automatic_continuation=False,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        http_options=http_options(endpoint, key, timeout_seconds),
    )


def http_options(endpoint: Endpoint, key: str, timeout_seconds: float) -> "types.HttpOptions":
    from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

    headers = {name: value.get_secret_value() for name, value in endpoint.headers.items()}
    if endpoint.location is not None and endpoint.service_tier is not None:
        headers = _FLEX_ON_PLATFORM | headers
    if endpoint.credentials is None:
        headers["x-goog-api-key"] = key
    return types.HttpOptions(timeout=max(1, int(timeout_seconds * 1000)), headers=headers)


def _model_name(version: str | None, key: str) -> str | None:
    """None for what is not a model's name: it becomes metadata of the stored image."""
    try:
        name = parse_model(version or "")
    except ValueError:
        return None
    return name if clean_text(name, key) == name else None


def _parts(response: Any) -> Iterator[Any]:
    """Without thoughts: one may contain an interim image, which is not the result."""
    for candidate in response.candidates or ():
        content = candidate.content
        for part in (content.parts if content is not None else None) or ():
            if not part.thought:
                yield part


def _finish_message(body: Mapping[str, Any] | None) -> str:
    """The first candidate's `finishMessage`, which says why. The SDK leaves it out."""
    response = last_response()
    if body is None:
        body = (response and error_body(response)) or {}
    candidates = body.get("candidates")
    first = candidates[0] if isinstance(candidates, list) and candidates else None
    message = first.get("finishMessage") if isinstance(first, dict) else None
    return message if isinstance(message, str) else ""


def _no_image_failure(response: Any, text: str, cost: int | None, key: str) -> CallFailed:
    """A refusal, a text in place of an image, or a malformed response."""
    feedback = response.prompt_feedback
    ended = any(c.finish_reason or c.content for c in response.candidates or ())
    if not ended and feedback is None and response.usage_metadata is None:
        return malformed_response(ValueError("neither candidates nor feedback"), "")
    if feedback is not None and feedback.block_reason is not None:
        message = clean_text(feedback.block_reason_message or "", key) or text
        detail = f"the prompt was blocked: {_name(feedback.block_reason)}"
        detail += f" ({message})" if message else ""
        return CallFailed(Outcome.REFUSED, detail, cost_micro_usd=cost)
    candidates = response.candidates or ()
    reasons = [_name(c.finish_reason) for c in candidates if c.finish_reason]
    reason = reasons[0] if reasons else "STOP"
    outcome = FINISH_TABLE.get(reason)
    if outcome is None:
        return CallFailed(
            Outcome.UNAVAILABLE,
            f"ended for an unknown reason: {reason} {text}".strip(),
            maybe_charged=True,
            cost_micro_usd=cost,
            unknown=True,
        )
    if outcome is Outcome.REFUSED:
        detail = f"refused: {reason}" + (f" ({text})" if text else "")
    elif outcome is Outcome.NO_IMAGE:
        detail = ("" if reason == "STOP" else f"{reason}: ") + (text or "an empty response")
    else:
        detail = f"ended by {reason}"
    by_chance = reason in BY_CHANCE
    return CallFailed(outcome, detail, cost_micro_usd=cost, retry_once=by_chance)


def _name(reason: Any) -> str:
    """An enum's value, or the text of a value that the SDK does not define yet."""
    return clean_text(str(getattr(reason, "value", reason))).upper()[:_MAX_NAME]


def _cost(model: Model, usage: Any, *, has_images: bool) -> int | None:
    """By the tokens counted, in micro-USD; None without counts or without a price."""
    prompt = token_count(usage, "prompt_token_count")
    if prompt is None:
        return None
    output = token_count(usage, "candidates_token_count") or 0
    image_output = sum(
        token_count(detail, "token_count") or 0
        for detail in usage.candidates_tokens_details or ()
        if _name(detail.modality) == "IMAGE"
    )
    if has_images and not image_output:
        image_output = output
    return token_cost(
        model,
        image_in=prompt + (token_count(usage, "tool_use_prompt_token_count") or 0),
        image_out=image_output,
        text_out=max(0, output - image_output) + (token_count(usage, "thoughts_token_count") or 0),
    )


def _reasons(details: list[dict[str, Any]]) -> Iterator[str]:
    """The reasons of google.rpc.ErrorInfo, and the period of each quota violated."""
    for detail in details:
        if isinstance(detail.get("reason"), str):
            yield detail["reason"]
        violations = detail.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            quota = str(violation.get("quotaId", "")) if isinstance(violation, dict) else ""
            if "perday" in quota.lower():
                yield "quota:day"
            elif "perminute" in quota.lower():
                yield "quota:minute"


def _retry_delay(details: list[dict[str, Any]]) -> float | None:
    """Seconds of google.rpc.RetryInfo, "17.5s"."""
    for detail in details:
        if (delay := decimal(str(detail.get("retryDelay", "")).removesuffix("s"))) is not None:
            return delay
    return None
