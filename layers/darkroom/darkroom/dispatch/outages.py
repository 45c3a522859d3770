"""Sentences for users: why an endpoint is out of service, and what to do."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from darkroom.calls import Outcome
from darkroom.dispatch.state_cache import Availability
from darkroom.endpoint_state import SECOND, EndpointState, KeyCooldown, RejectionReason
from darkroom.endpoints import Endpoint, key_fingerprint
from darkroom.errors import Reason

_KEYS = {
    Outcome.KEY_REJECTED: "every key of {name} was rejected",
    Outcome.QUOTA_SPENT: "the account of every key of {name} has no quota left",
    Outcome.MODEL_UNAVAILABLE: "model {model} of {name} was not found",
}
_ADVICE = "correct the endpoints secret with `darkroom endpoints push`"
_FALLBACK = {
    Outcome.KEY_REJECTED: "{name} rejected its key ({keys})",
    Outcome.QUOTA_SPENT: "{name} has no quota left ({keys})",
    Outcome.MODEL_UNAVAILABLE: "{name} answered that model {model} was not found ({keys})",
}


class Outage(NamedTuple):
    """Why an endpoint is out of service."""

    reason: Reason
    cause: str
    advice: str = ""


def describe_outages(outages: Sequence[Outage]) -> str:
    """The causes, then each piece of advice once."""
    causes = "; ".join(outage.cause for outage in outages)
    advice = dict.fromkeys(outage.advice for outage in outages if outage.advice)
    return ": ".join([causes, *advice])


def outage_of(
    endpoint: Endpoint, state: EndpointState, availability: Availability, now: int
) -> Outage:
    """Of an endpoint that is out of service."""
    name = endpoint.name
    if availability.reason is RejectionReason.KEYS:
        last = _longest_cooldown(endpoint, state)
        if last:
            sentence = _KEYS.get(last.reason, _KEYS[Outcome.KEY_REJECTED])
            what = sentence.format(name=name, model=endpoint.model)
            detail = f" ({last.detail})" if last.detail else ""
            # The detail of a model that was not found says which one to name.
            advised = last.reason is Outcome.MODEL_UNAVAILABLE and bool(last.detail)
            return Outage(Reason(last.reason.value), f"{what}{detail}", "" if advised else _ADVICE)
    until = datetime.fromtimestamp(max(availability.available_at, now) / SECOND, UTC)
    when = f"{until:%H:%M} UTC"
    if availability.reason is RejectionReason.DAY:
        cause = f"{name} is out of service until {when} (its requests_per_day are used up)"
        return Outage(Reason.RATE_LIMITED, cause)
    return Outage(Reason.UNAVAILABLE, f"{name} is out of service until {when} ({state.cause})")


def fallback_cause(endpoint: Endpoint, outcome: Outcome) -> str:
    """Why another tier made the image, when `outcome` put the endpoint's keys on cooldown."""
    sentence = _FALLBACK.get(outcome, _FALLBACK[Outcome.KEY_REJECTED])
    keys = ", ".join(map(key_fingerprint, endpoint.keys))
    return sentence.format(name=endpoint.name, model=endpoint.model, keys=keys)


def cooldown_outcome(endpoint: Endpoint, state: EndpointState) -> Outcome:
    """Why the endpoint's keys are on cooldown: the reason of the longest one."""
    longest = _longest_cooldown(endpoint, state)
    return longest.reason if longest else Outcome.KEY_REJECTED


def _longest_cooldown(endpoint: Endpoint, state: EndpointState) -> KeyCooldown | None:
    cooldowns = [state.key_cooldowns[i] for i in endpoint.key_ids() if i in state.key_cooldowns]
    return max(cooldowns, key=lambda cooldown: cooldown.until, default=None)
