"""An endpoint's health: when its breaker opens, how failures lower its weight, key cooldowns.

Functions named by a participle (`opened`) return the state after that change.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from darkroom.calls import Outcome
from darkroom.endpoint_state import SECOND, EndpointState, Health, KeyCooldown, Settlement
from darkroom.retry import backoff

OPEN_AT_FAILURES = 4
FAILURES_EXPIRE_AFTER = 120 * SECOND  # a failure this long after the last restarts the count
FAILURE_HALF_LIFE = 60 * SECOND
MAX_HALVINGS = 4
COOLDOWN_SECONDS = 10.0
MAX_COOLDOWN_SECONDS = 60.0
KEY_COOLDOWN_SECONDS = 600.0


def cooldown(opens: int) -> int:
    """How long the breaker stays open, in microseconds, when it opens `opens` times in a row."""
    return int(backoff(opens, COOLDOWN_SECONDS, MAX_COOLDOWN_SECONDS) * SECOND)


def is_open(state: EndpointState, now: int) -> bool:
    """False also when it is half open: then the next call is a probe."""
    return state.breaker_open and state.breaker_until > now


def should_open(state: EndpointState) -> bool:
    return state.failures >= OPEN_AT_FAILURES and not state.breaker_open


def opened(state: EndpointState, now: int) -> EndpointState:
    """Opens the breaker; unchanged when it is open already."""
    if state.breaker_open:
        return state
    opens = state.opens + 1
    return replace(state, breaker_open=True, breaker_until=now + cooldown(opens), opens=opens)


def suspended(state: EndpointState, until: int) -> EndpointState:
    """Takes the endpoint out of service as the provider demands; never shortens a suspension."""
    if state.breaker_until >= until:
        return state
    return replace(state, breaker_open=True, breaker_until=until)


def failed(state: EndpointState, now: int) -> EndpointState:
    """Counts a transient failure."""
    recent = state.failed_at >= now - FAILURES_EXPIRE_AFTER
    return replace(state, failures=state.failures + 1 if recent else 1, failed_at=now)


def probed(state: EndpointState, settlement: Settlement) -> EndpointState:
    """Ends a probe. One that was never sent leaves its turn to the next."""
    now = settlement.now
    leases = {i: until for i, until in state.leases.items() if i != settlement.lease}
    state = replace(state, leases=leases)
    if settlement.health is Health.NOT_CALLED:
        return replace(state, breaker_until=now)
    if settlement.health is Health.GOOD:
        return replace(state, breaker_open=False, breaker_until=0, opens=0, failures=0)
    opens = state.opens + 1
    return replace(failed(state, now), breaker_until=now + cooldown(opens), opens=opens)


def recent_failures(state: EndpointState, now: int) -> float:
    """The count of failures, decaying with time."""
    age = max(0, now - state.failed_at)
    return float(max(0, state.failures) * 0.5 ** (age / FAILURE_HALF_LIFE))


def effective_weight(weight: float, state: EndpointState, now: int) -> float:
    """Half the weight per recent failure, at least a sixteenth."""
    return float(weight * 0.5 ** min(recent_failures(state, now), MAX_HALVINGS))


def usable_keys(
    fingerprints: Iterable[str], cooldowns: Mapping[str, KeyCooldown], now: int
) -> list[str]:
    """The keys that are not cooling down, in their order."""
    return [f for f in fingerprints if f not in cooldowns or cooldowns[f].until <= now]


def key_cooldown(outcome: Outcome, retry_after_seconds: float | None, now: int) -> KeyCooldown:
    """How long a rejected key is not used: as the provider says, but at least ten minutes."""
    seconds = max(retry_after_seconds or 0.0, KEY_COOLDOWN_SECONDS)
    return KeyCooldown(now + int(seconds * SECOND), outcome)
