"""The tables that classify providers' failures as outcomes, rule by rule."""

from datetime import UTC, datetime

import httpx2
import pytest
from google.genai import types

from darkroom.calls import CallFailed, CallPlan, Outcome, timeout_of_call
from darkroom.endpoints import Endpoint
from darkroom.formatting import clean_text
from darkroom.providers.errors import (
    TRANSPORT_TABLE,
    Failure,
    Rule,
    cause_without_key,
    classify,
    delay_in_text,
    names,
    retry_after,
    transport_failed,
)
from darkroom.providers.gemini import FINISH_TABLE, GEMINI_TABLE
from darkroom.providers.openai import OPENAI_TABLE
from darkroom.providers.openai_batch import OPENAI_BATCH_TABLE
from darkroom.providers.registry import Provider

KEY = "sk-proj-abcdefgh12345678"


def classified(
    table: tuple[Rule, ...],
    status: int,
    *found: str,
    text: str = "",
    is_json: bool = True,
) -> CallFailed:
    failure = Failure(status, names(*found), text, is_json)
    return classify(table, failure, key=KEY)


BILLING = "You exceeded your current quota, please check your plan and billing details."
OPENAI_CASES = [
    (400, ["moderation_blocked", "image_generation_user_error"], "", Outcome.REFUSED),
    (400, ["content_policy_violation"], "", Outcome.REFUSED),
    (400, ["content_filter"], "", Outcome.REFUSED),
    (400, ["400", "ResponsibleAIPolicyViolation"], "", Outcome.REFUSED),
    (400, [], "Your request was rejected as a result of our safety system.", Outcome.REFUSED),
    (400, ["invalid_value"], "Invalid value: 'size'", Outcome.BAD_REQUEST),
    (400, ["billing_hard_limit_reached"], "", Outcome.QUOTA_SPENT),
    (401, ["invalid_api_key"], "", Outcome.KEY_REJECTED),
    (402, [], "", Outcome.QUOTA_SPENT),
    (403, ["unsupported_country_region_territory"], "", Outcome.KEY_REJECTED),
    (403, ["forbidden"], "Your resource has been temporarily blocked", Outcome.KEY_REJECTED),
    (400, ["invalid_value"], "The model 'x' does not exist.", Outcome.MODEL_UNAVAILABLE),
    (400, ["invalid_value", "param:model"], "Invalid value: 'x'.", Outcome.MODEL_UNAVAILABLE),
    (404, ["model_not_found"], "", Outcome.MODEL_UNAVAILABLE),
    (404, [], "Invalid URL", Outcome.MODEL_UNAVAILABLE),
    (400, ["invalid_image_file"], "", Outcome.BAD_IMAGE),
    (400, ["invalid_value"], "Invalid image file or mode", Outcome.BAD_IMAGE),
    (408, [], "", Outcome.UNAVAILABLE),
    (409, [], "", Outcome.UNAVAILABLE),
    (413, [], "", Outcome.BAD_REQUEST),
    (415, [], "", Outcome.BAD_REQUEST),
    (422, [], "", Outcome.BAD_REQUEST),
    (429, ["insufficient_quota"], BILLING, Outcome.QUOTA_SPENT),
    (429, [], BILLING, Outcome.QUOTA_SPENT),
    (429, ["rate_limit_exceeded"], "Rate limit reached on images per min", Outcome.RATE_LIMITED),
    (429, [], "Rate limit reached on requests per day (RPD)", Outcome.RATE_LIMITED),
    (429, ["429"], "Please retry after 10 seconds.", Outcome.RATE_LIMITED),
    (500, ["server_error"], "", Outcome.UNAVAILABLE),
    (502, [], "", Outcome.UNAVAILABLE),
    (503, [], "Slow down", Outcome.UNAVAILABLE),
    (504, [], "", Outcome.UNAVAILABLE),
    (524, [], "", Outcome.UNAVAILABLE),
]
GEMINI_CASES = [
    (400, ["invalid_argument", "api_key_invalid"], "", Outcome.KEY_REJECTED),
    (400, ["invalid_argument"], "API key expired. Please renew it.", Outcome.KEY_REJECTED),
    (400, ["invalid_argument"], "image_size 8K is not supported", Outcome.BAD_REQUEST),
    (400, ["failed_precondition"], "User location is not supported", Outcome.KEY_REJECTED),
    (400, ["failed_precondition"], "Please enable billing on your project", Outcome.QUOTA_SPENT),
    (400, ["invalid_argument"], "The prompt violates Google's policies", Outcome.REFUSED),
    (401, ["unauthenticated"], "", Outcome.KEY_REJECTED),
    (402, [], "", Outcome.QUOTA_SPENT),
    (403, ["permission_denied"], "", Outcome.KEY_REJECTED),
    (403, ["permission_denied", "consumer_suspended"], "", Outcome.KEY_REJECTED),
    (403, ["permission_denied", "billing_disabled"], "", Outcome.QUOTA_SPENT),
    (404, ["not_found"], "", Outcome.MODEL_UNAVAILABLE),
    (400, ["failed_precondition"], "This model is no longer available", Outcome.MODEL_UNAVAILABLE),
    (400, ["invalid_argument"], "Manually set deadline 1s is too short.", Outcome.UNAVAILABLE),
    (400, ["invalid_argument"], "Unable to process input image.", Outcome.BAD_IMAGE),
    (400, ["invalid_argument"], "Unsupported MIME type: image/tiff", Outcome.BAD_IMAGE),
    (409, ["aborted"], "", Outcome.UNAVAILABLE),
    (413, [], "", Outcome.BAD_REQUEST),
    (429, ["resource_exhausted", "quota:minute"], BILLING, Outcome.RATE_LIMITED),
    (429, ["resource_exhausted", "quota:day"], BILLING, Outcome.RATE_LIMITED),
    (429, ["resource_exhausted"], "Resource has been exhausted", Outcome.RATE_LIMITED),
    (429, ["resource_exhausted"], "exceeded its monthly spending cap", Outcome.QUOTA_SPENT),
    (429, ["resource_exhausted"], "Your prepayment credits are depleted", Outcome.QUOTA_SPENT),
    (429, ["resource_exhausted"], "Quota exceeded, limit: 0, model: x", Outcome.QUOTA_SPENT),
    (429, ["resource_exhausted", "tier:flex"], "Resource exhausted", Outcome.UNAVAILABLE),
    (499, ["cancelled"], "", Outcome.UNAVAILABLE),
    (500, ["internal"], "", Outcome.UNAVAILABLE),
    (503, ["unavailable"], "The model is overloaded", Outcome.UNAVAILABLE),
    (504, ["deadline_exceeded"], "", Outcome.UNAVAILABLE),
]


EXPIRED = "This request could not be executed before the completion window expired."
ENQUEUED = "Enqueued token limit reached for gpt-image-2 in organization org-1. Limit: 900,000."
NO_FILE = "Cannot find file file-7wY, or organization org-bfa does not have access to it."
OPENAI_BATCH_CASES = [
    *OPENAI_CASES,
    (400, ["invalid_request"], NO_FILE, Outcome.UNAVAILABLE),
    (0, ["batch_expired"], EXPIRED, Outcome.UNAVAILABLE),
    (0, ["batch_cancelled"], "", Outcome.UNAVAILABLE),
    (0, ["request_timeout"], "", Outcome.UNAVAILABLE),
    (400, ["token_limit_exceeded"], ENQUEUED, Outcome.RATE_LIMITED),
    (400, [], ENQUEUED, Outcome.RATE_LIMITED),  # as other codes have it
    (400, ["duplicate_custom_id"], "", Outcome.BAD_REQUEST),
    (400, ["invalid_json_line"], "This line is not parseable.", Outcome.BAD_REQUEST),
    (400, ["model_not_found"], "The provided model is not supported.", Outcome.MODEL_UNAVAILABLE),
    (400, ["billing_hard_limit_reached"], "", Outcome.QUOTA_SPENT),
]

all_tables = pytest.mark.parametrize(
    "table",
    [OPENAI_TABLE, OPENAI_BATCH_TABLE, GEMINI_TABLE],
    ids=["openai", "openai-batch", "gemini"],
)


@pytest.mark.parametrize(
    ("table", "status", "found", "text", "outcome"),
    [(OPENAI_TABLE, *case) for case in OPENAI_CASES]
    + [(OPENAI_BATCH_TABLE, *case) for case in OPENAI_BATCH_CASES]
    + [(GEMINI_TABLE, *case) for case in GEMINI_CASES],
)
def test_failures_are_classified_by_the_providers_table(
    table: tuple[Rule, ...], status: int, found: list[str], text: str, outcome: Outcome
) -> None:
    assert classified(table, status, *found, text=text).outcome is outcome


@all_tables
def test_each_rule_decides_at_least_one_case(table: tuple[Rule, ...]) -> None:
    """For each rule there is a failure that it matches and no rule before it does."""
    of_openai = OPENAI_CASES if table is OPENAI_TABLE else OPENAI_BATCH_CASES
    cases = GEMINI_CASES if table is GEMINI_TABLE else of_openai
    failures = [Failure(s, names(*n), t) for s, n, t, _ in cases]
    failures += [Failure(status, frozenset(), "page", is_json=False) for status in (404, 403)]
    # Names without their usual status:
    alone = ("rate_limit_exceeded", "resource_exhausted", "invalid_api_key", "quota:day")
    failures += [Failure(299, frozenset({name}), "") for name in alone]
    failures.append(Failure(429, frozenset(), "10 requests per day"))
    deciding = {
        next((i for i, rule in enumerate(table) if rule.matches(failure)), None)
        for failure in failures
    }
    assert set(range(len(table))) <= deciding


def test_a_daily_limit_is_distinguished_from_one_per_minute() -> None:
    assert classified(OPENAI_TABLE, 429, text="requests per day (RPD)").daily
    assert not classified(OPENAI_TABLE, 429, text="images per min (IPM)").daily
    assert classified(GEMINI_TABLE, 429, "quota:minute", "quota:day", text=BILLING).daily
    assert not classified(GEMINI_TABLE, 429, "quota:minute", text=BILLING).daily


@all_tables
@pytest.mark.parametrize("status", [400, 403, 404, 422, 502, 503])
def test_a_proxys_page_blames_neither_key_nor_row(table: tuple[Rule, ...], status: int) -> None:
    page = "<html><head><title>403 Forbidden</title></head><body>cloudflare</body></html>"
    failed = classified(table, status, text=page, is_json=False)
    assert failed.outcome is Outcome.UNAVAILABLE
    assert failed.detail == "403 Forbidden"


@all_tables
def test_a_missing_model_is_the_endpoints_by_the_tables(table: tuple[Rule, ...]) -> None:
    failed = classified(table, 404, "model_not_found", text="no such model")
    assert failed.outcome is Outcome.MODEL_UNAVAILABLE


@all_tables
@pytest.mark.parametrize("status", [302, 418, 451, 299])
def test_a_response_that_no_rule_matches_is_unavailable_and_unknown_with_its_text(
    table: tuple[Rule, ...], status: int
) -> None:
    failed = classified(table, status, text="something new")
    assert failed.outcome is Outcome.UNAVAILABLE
    assert failed.unknown
    assert "something new" in failed.detail
    assert str(status) in failed.detail


def test_every_finish_reason_of_the_sdk_has_an_outcome() -> None:
    assert set(FINISH_TABLE) == {reason.value for reason in types.FinishReason}


def test_only_finish_reasons_about_policy_are_refusals() -> None:
    refusals = {reason for reason, outcome in FINISH_TABLE.items() if outcome is Outcome.REFUSED}
    assert {"SAFETY", "IMAGE_SAFETY", "PROHIBITED_CONTENT", "IMAGE_PROHIBITED_CONTENT"} <= refusals
    assert {"BLOCKLIST", "SPII", "RECITATION", "IMAGE_RECITATION"} <= refusals
    assert not refusals & {"STOP", "NO_IMAGE", "MAX_TOKENS", "OTHER", "IMAGE_OTHER"}


def test_every_transport_error_is_unavailable_and_charged_unless_it_was_not_sent() -> None:
    not_sent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.WriteError, httpx2.PoolTimeout)
    lost = (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError)
    for kind, _, _ in TRANSPORT_TABLE:
        failed = transport_failed(kind("x"), 60)
        assert failed.outcome is Outcome.UNAVAILABLE
        assert failed.outcome.transient
    assert not any(transport_failed(kind("x"), 1).maybe_charged for kind in not_sent)
    assert all(transport_failed(kind("x"), 1).maybe_charged for kind in lost)
    assert transport_failed(None, 1).maybe_charged


def test_every_transport_error_of_httpx_is_in_the_table() -> None:
    listed = tuple(kind for kind, _, _ in TRANSPORT_TABLE)
    for name in httpx2.__all__:
        kind = getattr(httpx2, name, None)
        if isinstance(kind, type) and issubclass(kind, httpx2.RequestError):
            assert issubclass(kind, listed), name


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Please try again in 1.5s.", 1.5),
        ("Please try again in 20ms.", 0.02),
        ("Please try again in 6m1.5s.", 361.5),
        ("Please try again in 1h2m.", 3720),
        ("Please retry after 10 seconds.", 10),
        ("Please retry in 57.83s.", 57.83),
        ("Please try again later.", None),
        ("", None),
    ],
)
def test_a_delay_is_read_from_the_text(text: str, seconds: float | None) -> None:
    assert delay_in_text(text) == seconds


def test_a_delay_is_read_from_the_headers_first() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert retry_after({"retry-after": "7"}, "try again in 3s") == 7
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}, "") == 0.25
    assert retry_after({"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT"}, "", now) == 30
    assert retry_after({"retry-after": "Sat, 21 Nov 2026 11:00:00 GMT"}, "", now) == 0
    for unusable in ("soon", "\N{SUPERSCRIPT TWO}", f"Sat, 21 Nov {9**30} 12:00:30 GMT"):
        assert retry_after({"retry-after": unusable, "retry-after-ms": unusable}, "") is None
    assert retry_after({}, "") is None


def test_a_detail_contains_no_key_no_image_data_and_no_markup() -> None:
    text = f"<b>Bad</b> key {KEY}, also sk-ab***********yz and AIzaSyA-1234567890abc: {'QUJD' * 60}"
    safe = clean_text(text, KEY)
    assert KEY not in safe
    assert safe == "Bad key [key], also [key] and [key]: [data]"
    assert len(clean_text("word " * 1000)) <= 500


def test_an_error_is_not_chained_to_one_that_contains_the_key() -> None:
    assert cause_without_key(ValueError(f"key {KEY} is bad"), KEY) is None
    outer = ValueError("harmless")
    outer.__cause__ = RuntimeError(KEY)
    assert cause_without_key(outer, KEY) is None
    harmless = ValueError("harmless")
    assert cause_without_key(harmless, KEY) is harmless


def test_a_wait_is_finite_and_at_most_a_day() -> None:
    def wait(seconds: float) -> float | None:
        failed = CallFailed(Outcome.RATE_LIMITED, "429", retry_after_seconds=seconds)
        return failed.retry_after_seconds

    assert [wait(s) for s in (0, 7, 86_400, 3e8, float("inf"))] == [0, 7, 86_400, 86_400, 86_400]
    assert wait(-1) is None
    assert wait(float("nan")) is None
    assert wait(retry_after({"retry-after": "9" * 400}, "") or -1) == 86_400


@pytest.mark.parametrize(
    ("text", "too_large"),
    [
        ("on input-images per min: Limit 5, Used 0, Requested 8. Please try again in 12s.", True),
        ("on input-images per min: Limit 5, Used 5, Requested 1. Please try again in 12s.", False),
        ("on images per min (IPM): Limit: 5, Used: 3, Requested: 5", False),
        ("Limit " + "9" * 400 + ", Requested 8", False),
        ("no figures", False),
    ],
)
def test_a_request_above_the_limit_can_never_pass_at_that_endpoint(
    text: str, too_large: bool
) -> None:
    failed = classified(OPENAI_TABLE, 429, "rate_limit_exceeded", text=text)
    assert failed.too_large_for_limit is too_large
    assert failed.outcome is (Outcome.BAD_REQUEST if too_large else Outcome.RATE_LIMITED)


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({"resolution": "1K"}, 60),
        ({"resolution": "2K"}, 90),
        ({"resolution": "4K"}, 180),
        ({"size": "1024x1536"}, 60),
        ({"size": "3840x2160"}, 90),
        ({"size": "auto"}, 60),
    ],
)
def test_a_larger_image_has_more_time(settings: dict[str, str], seconds: float) -> None:
    fields = {"name": "e", "provider": "gemini", "api_keys": ["k"]}
    plan = CallPlan(Provider.GEMINI, "m", "p", **settings)  # type: ignore[arg-type]
    assert timeout_of_call(plan, Endpoint.model_validate(fields)) == seconds
    flex = Endpoint.model_validate({**fields, "service_tier": "flex"})
    assert timeout_of_call(plan, flex) == 780
    slow = Endpoint.model_validate({**fields, "timeout_seconds": 780})
    assert timeout_of_call(plan, slow) == 780
