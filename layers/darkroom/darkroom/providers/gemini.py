"""Gemini's failures and finish reasons as outcomes. Sources:
https://ai.google.dev/gemini-api/docs/troubleshooting, google-genai 3.4 (types.FinishReason and
types.BlockedReason), google.rpc's error model, and answers in the SDK's issues; read 2026-11-21.
"""

from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any

import httpx2
from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome, Usage
from darkroom.endpoints import Endpoint
from darkroom.images import codec
from darkroom.models.catalog import Model, find_model, token_cost
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
    from google.genai import Client, types


# `names` has the status ("resource_exhausted"), reasons of google.rpc.ErrorInfo, and for each quota
# violated "quota:minute" or "quota:day".
GEMINI_TABLE: tuple[Rule, ...] = (
    Rule(
        Outcome.KEY_REJECTED,
        names=frozenset(
            {
                "api_key_invalid",
                "api_key_expired",
                "api_key_service_blocked",
                "api_key_http_referrer_blocked",
                "api_key_ip_address_blocked",
                "consumer_suspended",
                "service_disabled",
                "access_token_scope_insufficient",
            }
        ),
    ),
    Rule(Outcome.KEY_REJECTED, statuses=(400, 401, 403), text=r"api[ _]key (?:not valid|expired)"),
    Rule(Outcome.QUOTA_SPENT, names=frozenset({"billing_disabled"})),
    Rule(Outcome.QUOTA_SPENT, statuses=(402,)),
    # The ordinary pace 429 says "check your plan and billing details" too: that tells nothing.
    Rule(
        Outcome.QUOTA_SPENT,
        statuses=(400, 403, 429),
        text=r"spend(?:ing)? (?:cap|limit)|credits? (?:is|are|have been) (?:depleted|exhausted)"
        r"|prepa(?:id|yment) (?:credits?|balance)|enable billing|limit: 0\b",
    ),
    Rule(Outcome.RATE_LIMITED, names=frozenset({"quota:day"}), daily=True),
    Rule(Outcome.RATE_LIMITED, statuses=(429,), text=r"\bper day\b", daily=True),
    Rule(Outcome.RATE_LIMITED, statuses=(429,)),
    Rule(Outcome.RATE_LIMITED, names=frozenset({"resource_exhausted"})),
    Rule(Outcome.KEY_REJECTED, statuses=(401,)),
    Rule(Outcome.KEY_REJECTED, statuses=(403,), is_json=True),
    Rule(Outcome.KEY_REJECTED, statuses=(400,), text=r"location is not supported"),
    # The endpoint's own model is not there: another endpoint may have it. Where the row named the
    # model, `classify` makes it the row's fault.
    Rule(Outcome.KEY_REJECTED, statuses=(404,), is_json=True),
    Rule(
        Outcome.REFUSED,
        statuses=(400,),
        text=r"violat\w+ .{0,80}polic|prohibited (?:content|use)|safety (?:filter|polic)",
        is_json=True,
    ),
    Rule(Outcome.BAD_REQUEST, statuses=(413,)),
    Rule(Outcome.BAD_REQUEST, statuses=(400, 409, 422), is_json=True),
    Rule(Outcome.UNAVAILABLE, statuses=(408, 425, 499)),
    Rule(Outcome.UNAVAILABLE, statuses=(504,), maybe_charged=True),
    Rule(Outcome.UNAVAILABLE, statuses=(500, 599), span=True),
    Rule(Outcome.UNAVAILABLE, statuses=(400, 499), span=True, is_json=False),
)

# Why a candidate ended, where it has no picture. The category of a refusal is the reason's name.
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


# Gemini's image models through `generate_content`, in API-key mode.


BASE_URL = "https://generativelanguage.googleapis.com/"
API_VERSION = "v1"


class GeminiImageEditor:
    """Edits with up to the model's number of references; makes pictures without any. Thread-safe.

    The SDK is imported with the first call.
    """

    def __init__(self, http: httpx2.Client | None = None) -> None:
        self._http = http
        self._clients: dict[tuple[str, str], Client] = {}
        self._lock = Lock()

    def edit(
        self, plan: CallPlan, endpoint: Endpoint, key: SecretStr, timeout_seconds: float
    ) -> EditResult:
        """One call, no retries, given up after `timeout_seconds` in all. Raises CallFailed."""
        from google.genai import errors  # noqa: PLC0415 - see the class

        secret = key.get_secret_value()
        try:
            with provider_http.deadline(timeout_seconds):
                answer = self._client(endpoint).models.generate_content(
                    model=plan.model,
                    contents=_contents(plan),
                    config=_config(plan, secret, timeout_seconds),
                )
        except errors.APIError as error:
            failed = _api_failure(error, plan, endpoint, secret)
            raise failed from cause_without_key(error, secret)
        except httpx2.HTTPError as error:
            raise broken_off(error, timeout_seconds) from cause_without_key(error, secret)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            raise _misshapen(error, secret) from cause_without_key(error, secret)
        return _read(answer, plan, secret)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        with self._lock:
            self._clients.clear()
        if self._http is None:
            provider_http.close_shared_client()

    def _client(self, endpoint: Endpoint) -> "Client":
        """One per base URL; it carries no key. Kept: the SDK's own clients die with the object."""
        from google import genai  # noqa: PLC0415
        from google.genai import types  # noqa: PLC0415

        cached = (endpoint.base_url or BASE_URL, endpoint.api_version or API_VERSION)
        with self._lock:
            if cached not in self._clients:
                self._clients[cached] = genai.Client(
                    vertexai=False,
                    api_key="given-per-call",
                    http_options=types.HttpOptions(
                        base_url=cached[0],
                        api_version=cached[1],
                        httpx_client=self._http or provider_http.shared_client(),
                        # Never used; given so that the SDK does not build one with TLS and all.
                        httpx_async_client=httpx2.AsyncClient(
                            transport=httpx2.MockTransport(_never), trust_env=False
                        ),
                        retry_options=types.HttpRetryOptions(attempts=1),
                    ),
                )
            return self._clients[cached]


def _never(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.UnsupportedProtocol("Darkroom makes no asynchronous calls", request=request)


def _contents(plan: CallPlan) -> list[Any]:
    from google.genai import types  # noqa: PLC0415

    return [
        plan.prompt,
        *(types.Part.from_bytes(data=i.data, mime_type=i.mime) for i in plan.images),
    ]


def _config(plan: CallPlan, key: str, timeout_seconds: float) -> "types.GenerateContentConfig":
    from google.genai import types  # noqa: PLC0415

    shaped = plan.aspect_ratio is not None or plan.resolution is not None
    return types.GenerateContentConfig(
        response_modalities=["TEXT", "IMAGE"],
        image_config=types.ImageConfig(aspect_ratio=plan.aspect_ratio, image_size=plan.resolution)
        if shaped
        else None,
        automatic_continuation=False,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        http_options=types.HttpOptions(
            timeout=max(1, int(timeout_seconds * 1000)), headers={"x-goog-api-key": key}
        ),
    )


def _read(answer: Any, plan: CallPlan, key: str) -> EditResult:
    """The pictures that are no thoughts, decoded in full. Raises CallFailed."""
    model = find_model(Provider.GEMINI, plan.model)
    parts = list(_parts(answer))
    found = [p.inline_data for p in parts if p.inline_data is not None]
    images = tuple(blob.data for blob in found if (blob.mime_type or "image/").startswith("image/"))
    text = safe_text(" ".join(p.text for p in parts if p.text), key)
    cost = _cost(model, answer.usage_metadata, pictured=bool(images))
    if not images:
        raise _without_image(answer, text, cost)
    for image in images:
        try:
            codec.verify(image or b"")
        except ValueError as error:
            raise CallFailed(
                Outcome.UNAVAILABLE,
                f"the answer's image cannot be used: {error}",
                maybe_charged=True,
                cost_micro_usd=cost,
            ) from error
    usage = answer.usage_metadata
    return EditResult(
        images=images,
        model=answer.model_version or plan.model,
        usage=Usage(
            getattr(usage, "prompt_token_count", None),
            getattr(usage, "candidates_token_count", None),
        ),
        cost_micro_usd=cost,
        text=text,
    )


def _parts(answer: Any) -> Iterator[Any]:
    """What the model means to say; a thought may carry an interim picture, which is not it."""
    for candidate in answer.candidates or ():
        content = candidate.content
        for part in (content.parts if content is not None else None) or ():
            if not part.thought:
                yield part


def _without_image(answer: Any, text: str, cost: int | None) -> CallFailed:
    """Refused, or words instead of a picture."""
    feedback = answer.prompt_feedback
    if not answer.candidates and feedback is None and answer.usage_metadata is None:
        return _misshapen(ValueError("neither candidates nor feedback"), "")
    if feedback is not None and feedback.block_reason is not None:
        reason = _name(feedback.block_reason)
        said = feedback.block_reason_message or text
        detail = f"the prompt was blocked: {reason}" + (f" ({said})" if said else "")
        return CallFailed(Outcome.REFUSED, detail, cost_micro_usd=cost)
    reasons = [_name(c.finish_reason) for c in answer.candidates or () if c.finish_reason]
    reason = reasons[0] if reasons else "STOP"
    outcome = FINISH_TABLE.get(reason)
    if outcome is None:
        return CallFailed(
            Outcome.UNAVAILABLE,
            f"ended for a reason that is not known: {reason} {text}".strip(),
            maybe_charged=True,
            cost_micro_usd=cost,
            unknown=True,
        )
    words = {Outcome.REFUSED: f"refused: {reason}", Outcome.NO_IMAGE: text or "an empty answer"}
    detail = words.get(outcome, f"ended by {reason}")
    if outcome is Outcome.NO_IMAGE and reason != "STOP":
        detail = f"{reason}: {detail}"
    if outcome is Outcome.REFUSED and text:
        detail = f"{detail} ({text})"
    return CallFailed(outcome, detail, cost_micro_usd=cost)


def _name(reason: Any) -> str:
    """An enum's value, or the bare word of one that the SDK does not know yet."""
    return str(getattr(reason, "value", reason)).upper()


def _cost(model: Model, usage: Any, *, pictured: bool) -> int | None:
    """By the tokens counted; None where there are no counts, or no price."""
    if usage is None or usage.prompt_token_count is None:
        return None
    made = usage.candidates_token_count or 0
    drawn = sum(
        detail.token_count or 0
        for detail in usage.candidates_tokens_details or ()
        if _name(detail.modality) == "IMAGE"
    )
    if pictured and not drawn:
        drawn = made
    return token_cost(
        model,
        image_in=usage.prompt_token_count + (usage.tool_use_prompt_token_count or 0),
        image_out=drawn,
        text_out=max(0, made - drawn) + (usage.thoughts_token_count or 0),
    )


def _api_failure(error: Any, plan: CallPlan, endpoint: Endpoint, key: str) -> CallFailed:
    body = error.details if isinstance(error.details, dict) else {}
    inner = body.get("error")
    is_json = isinstance(inner, dict)
    details = (inner.get("details") if isinstance(inner, dict) else None) or ()
    details = [d for d in details if isinstance(d, dict)]
    text = str(error.message or "")
    failure = Failure(
        status=int(error.code or 0),
        names=names(error.status, *_reasons(details)),
        text=text,
        is_json=is_json,
    )
    headers = error.response.headers if error.response is not None else {}
    return classify(
        GEMINI_TABLE,
        failure,
        model_is_the_rows=plan.model != endpoint.model,
        retry_after_seconds=_retry_delay(details) or delay_of(headers, text),
        key=key,
    )


def _reasons(details: list[dict[str, Any]]) -> Iterator[str]:
    """google.rpc.ErrorInfo's reasons, and the period of each quota violated."""
    for detail in details:
        if isinstance(detail.get("reason"), str):
            yield detail["reason"]
        for violation in detail.get("violations") or ():
            quota = str(violation.get("quotaId", "")) if isinstance(violation, dict) else ""
            if "perday" in quota.lower():
                yield "quota:day"
            elif "perminute" in quota.lower():
                yield "quota:minute"


def _retry_delay(details: list[dict[str, Any]]) -> float | None:
    """Seconds of google.rpc.RetryInfo, "17.5s"."""
    for detail in details:
        delay = str(detail.get("retryDelay", "")).removesuffix("s")
        if delay.replace(".", "", 1).isdigit():
            return float(delay)
    return None


def _misshapen(error: Exception, key: str) -> CallFailed:
    """A 200 that is no answer: cut JSON, a proxy's page, another shape."""
    cut_or_page = type(error).__name__ in {"JSONDecodeError", "UnknownApiResponseError"}
    return CallFailed(
        Outcome.UNAVAILABLE,
        f"the answer is not what this API gives: {safe_text(str(error), key)}",
        maybe_charged=True,
        unknown=not cut_or_page,
    )
