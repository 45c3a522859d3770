"""Sentences for users: why an endpoint is out of service, and what to do."""

from datetime import UTC, datetime

from darkroom.calls import Outcome
from darkroom.dispatch.state_cache import Availability
from darkroom.endpoint_state import SECOND, EndpointState, RejectionReason
from darkroom.endpoints import Endpoint
from darkroom.errors import Reason

_KEYS = {
    Outcome.KEY_REJECTED: "every key of {} was rejected",
    Outcome.QUOTA_SPENT: "the account of every key of {} has no quota left",
    Outcome.MODEL_UNAVAILABLE: "the model of {} is not available",
}


def describe(
    endpoint: Endpoint, state: EndpointState, availability: Availability, now: int
) -> tuple[Reason, str]:
    """(reason, sentence) of an endpoint that is out of service."""
    name = endpoint.name
    if availability.reason is RejectionReason.KEYS:
        cooldowns = [state.key_cooldowns[i] for i in endpoint.key_ids() if i in state.key_cooldowns]
        if cooldowns:
            last = max(cooldowns, key=lambda cooldown: cooldown.until)
            what = _KEYS.get(last.reason, _KEYS[Outcome.KEY_REJECTED]).format(name)
            detail = f" ({last.detail})" if last.detail else ""
            advice = "correct the endpoints secret with `darkroom endpoints push`"
            return Reason(last.reason.value), f"{what}{detail}: {advice}"
    until = datetime.fromtimestamp(max(availability.available_at, now) / SECOND, UTC)
    when = f"{until:%H:%M} UTC"
    if availability.reason is RejectionReason.DAY:
        return (
            Reason.RATE_LIMITED,
            f"{name} is out of service until {when} (its requests_per_day are used up)",
        )
    return Reason.UNAVAILABLE, f"{name} is out of service until {when} ({state.cause})"
