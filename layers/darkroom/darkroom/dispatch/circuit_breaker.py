"""An endpoint's health: when its breaker opens, how failures lower its weight, key cooldowns."""

from collections.abc import Iterable, Mapping

from darkroom.calls import Outcome
from darkroom.endpoint_state import SECOND, EndpointState, KeyCooldown
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
