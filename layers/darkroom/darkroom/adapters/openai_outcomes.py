"""OpenAI's failures as outcomes. Sources: https://developers.openai.com/api/docs/guides/error-codes,
Azure OpenAI's content filter codes, and answers seen in the SDK's issue tracker; read 2026-11-21.
"""

from darkroom.adapters.outcomes import Rule
from darkroom.calls import Outcome

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
