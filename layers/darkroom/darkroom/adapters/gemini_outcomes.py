"""Gemini's failures and finish reasons as outcomes. Sources:
https://ai.google.dev/gemini-api/docs/troubleshooting, google-genai 3.4 (types.FinishReason and
types.BlockedReason), google.rpc's error model, and answers in the SDK's issues; read 2026-11-21.
"""

from darkroom.adapters.outcomes import Rule
from darkroom.calls import Outcome

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
