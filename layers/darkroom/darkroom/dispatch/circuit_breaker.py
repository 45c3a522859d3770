"""An endpoint's health, shared by all workers: breaker, recent failures, resting keys."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from darkroom.calls import Outcome
from darkroom.endpoint_state import SECOND, EndpointState, Health, KeyCooldown, Report

TRIP_AT = 4  # recent failures that open the breaker
FORGET_AFTER = 120 * SECOND  # a failure this long after the last one starts the count again
FADE = 60 * SECOND  # a failure weighs half after this time
COOL_DOWN = 10 * SECOND  # doubled each time a probe fails
MAX_COOL_DOWN = 60 * SECOND
KEY_REST = 600 * SECOND
MAX_HALVINGS = 4


def cool_down(opens: int) -> int:
    """How long the breaker stays open when it opens for the `opens`-th time in a row."""
    return min(MAX_COOL_DOWN, COOL_DOWN << min(max(0, opens - 1), 10))


def recent_failures(state: EndpointState, now: int) -> float:
    """Failures, faded with time."""
    age = max(0, now - state.failed_at)
    return float(max(0, state.failures) * 0.5 ** (age / FADE))


def effective_weight(weight: float, state: EndpointState, now: int) -> float:
    """Half the weight per recent failure, at least a sixteenth."""
    return float(weight * 0.5 ** min(recent_failures(state, now), MAX_HALVINGS))


def should_trip(state: EndpointState) -> bool:
    return state.failures >= TRIP_AT and not state.tripped


def settled(state: EndpointState, report: Report) -> EndpointState:
    """The state after a booking's end; the table does the same in one conditional update."""
    leases = {i: until for i, until in state.leases.items() if i != report.lease}
    after = replace(state, leases=leases, rev=state.rev + 1)
    if report.health is Health.UNTOLD:
        # A probe that was never sent leaves the next one to somebody else.
        return replace(after, breaker_until=report.now) if report.probe else after
    if report.health is Health.GOOD:
        if report.probe:
            return replace(after, tripped=False, breaker_until=0, opens=0, failures=0)
        recovers = after.failures > 0 and report.sent_at > state.failed_at
        return replace(after, failures=after.failures - 1) if recovers else after
    fresh = state.failed_at >= report.now - FORGET_AFTER
    after = replace(after, failures=state.failures + 1 if fresh else 1, failed_at=report.now)
    if report.probe:
        after = replace(after, breaker_until=report.reopen_until, opens=state.opens + 1)
    return after


def tripped(state: EndpointState, until: int) -> EndpointState:
    """The breaker opens after failures."""
    return replace(
        state, tripped=True, breaker_until=until, opens=state.opens + 1, rev=state.rev + 1
    )


def resting(state: EndpointState, until: int) -> EndpointState:
    """The provider itself asked for a long rest: nobody calls, then one probe."""
    return replace(state, tripped=True, breaker_until=until, rev=state.rev + 1)


def usable(fingerprints: Iterable[str], keys: Mapping[str, KeyCooldown], now: int) -> list[str]:
    """The keys that do not rest, in their order."""
    return [f for f in fingerprints if f not in keys or keys[f].until <= now]


def rest_of(outcome: Outcome, retry_after: float | None, now: int) -> KeyCooldown:
    """How long a key that was turned away rests: what the provider asks for, or ten minutes."""
    asked = 0 if retry_after is None else int(retry_after * SECOND)
    return KeyCooldown(now + max(asked, KEY_REST), outcome)
