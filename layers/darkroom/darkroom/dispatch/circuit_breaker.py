"""An endpoint's health: what failures, 429s and rejected keys lead to, for all workers.

Pure functions: each returns the state after a change. `after_failure` is the only place that
decides what the outcome of a call leads to.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import log, log10

from darkroom.calls import Outcome
from darkroom.endpoint_state import SECOND, EndpointState, KeyCooldown
from darkroom.retry import backoff

# The breaker opens when failures outnumber the good answers since the first of them by 4, and by
# one more for each tenfold of the recent calls: with 5 % of failures, less than once in a hundred
# hours at any rate. So it opens only if at least half of the calls fail.
OPEN_AT_FAILURES = 4
FEW_CALLS = 4.0
MIN_FAILING_SHARE = 0.5  # of the calls sent meanwhile, answered or not
MIN_WINDOW = 120 * SECOND  # a failure this long after the last restarts the count
FAILURE_HALF_LIFE = 60 * SECOND
MAX_HALVINGS = 4
COOLDOWN_SECONDS = 10.0
MAX_COOLDOWN_SECONDS = 60.0
KEY_COOLDOWN_SECONDS = 600.0
# Of 429s that come although our own limits were kept:
MAX_PAUSE_SECONDS = 60.0  # when a longer wait is requested, the endpoint is out of service
COUNT_HALF_LIFE = 60 * SECOND  # of the recent calls and 429s
RUN_LENGTH = 3.5  # fewer recent 429s are stray ones
RUN_LENGTH_WHEN_SLOWED = 1.5  # after a run, the limit in force is more likely too high
RUN_SHARE = 0.1  # of the recent calls, and so are fewer than this
SLOWDOWN = 0.25  # share of the rate that one run of 429s withholds
MAX_SLOWDOWN = 0.95
NO_SLOWDOWN = 0.02  # below this, a slowdown is over
SLOWDOWN_HALF_LIFE_SECONDS = 120.0  # doubles with each run that follows, up to:
MAX_SLOWDOWN_HALF_LIFE_SECONDS = 1920.0
MIN_OBSERVED = 10 * SECOND  # to know the rate of an endpoint that has none configured, else:
ASSUMED_INTERVAL = SECOND // 2
SLOWDOWN_SPACING = 15 * SECOND  # 429s of calls sent within this of a slowdown belong to its run
# How long a worker may go on with what it read before an epoch began: see Selector.
EPOCH_GUARD = 5 * SECOND
_MAX_DETAIL_CHARS = 200


@dataclass(frozen=True, slots=True)
class Failure:
    """A call without a good answer, as far as its endpoint is concerned. Times in microseconds."""

    lease: str
    now: int
    sent_at: int
    outcome: Outcome  # transient, or with a key at fault
    detail: str = ""
    key_id: str = ""
    window: int = MIN_WINDOW  # twice the time-out, so that time-outs add up
    retry_after_seconds: float | None = None
    quota_until: int | None = None  # when the provider's day ends, if the day's quota is spent
    pause_seconds: float = 1.0  # of the first pause that the provider did not time
    interval: int = 0  # of the configured rate


def after_failure(state: EndpointState, failure: Failure) -> EndpointState:
    probe = state.probe == failure.lease
    state = without_lease(_counted(state, failure.now), failure.lease)
    if failure.outcome.key_at_fault:
        state = _key_rejected(state, failure)
        return closed(state, failure.now) if probe else state
    is_recent = state.failed_at >= failure.now - failure.window
    failures = max(0, state.failures - state.good) if is_recent else 0
    if not failures:
        # Of the reservations, some are for slots to come.
        ahead = state.next_slot - failure.now
        unsent = max(0, ahead // failure.interval) if failure.interval else 0
        since = replace(state, failing_since=failure.now, failing_calls=state.calls - unsent)
        state = replace(since, earlier_good=0)
    state = replace(state, failures=failures + 1, failed_at=failure.now, good=0)
    if failure.outcome is Outcome.RATE_LIMITED:
        state = _rate_limited(state, failure)
    if probe or (not state.breaker_open and _should_open(state, failure)):
        state = _opened(state, failure)
    return state


def _should_open(state: EndpointState, failure: Failure) -> bool:
    more = int(log10(max(1.0, state.volume / FEW_CALLS)))
    least = OPEN_AT_FAILURES + more
    # Calls sent before an outage are answered in it, and say little of the time since.
    if state.failures < least + min(least, state.earlier_good):
        return False
    # Failures may be known long before the good answers to calls sent at the same time.
    sent = state.calls - state.failing_calls
    if failure.interval:  # slots are reserved ahead
        sent = min(sent, (failure.now - state.failing_since) // failure.interval)
    return state.failures >= MIN_FAILING_SHARE * sent


def _opened(state: EndpointState, failure: Failure) -> EndpointState:
    until = failure.now + cooldown(state.opens + 1)
    return _out_of_service(state, failure.now, until, f"its calls fail: {failure.detail}", opens=1)


def _rate_limited(state: EndpointState, failure: Failure) -> EndpointState:
    now, wait = failure.now, failure.retry_after_seconds
    if failure.quota_until is not None:
        return _out_of_service(state, now, failure.quota_until, "the quota of the day is spent")
    if wait is not None and wait > MAX_PAUSE_SECONDS:
        cause = f"the provider asked for a pause: {failure.detail}"
        return _out_of_service(state, now, now + int(wait * SECOND), cause)
    state = replace(state, limited=state.limited + 1)
    in_a_row = net_failures(state) >= OPEN_AT_FAILURES
    length = RUN_LENGTH_WHEN_SLOWED if slowdown(state, now) else RUN_LENGTH
    is_run = state.limited >= (length if in_a_row else max(length, RUN_SHARE * state.volume))
    if is_run and failure.sent_at > state.slowed_at + SLOWDOWN_SPACING:
        state = _slowed(state, failure)
        if wait is None:
            wait = backoff(state.slowdowns, failure.pause_seconds, MAX_PAUSE_SECONDS)
    if wait:
        state = _paused(state, now, now + int(wait * SECOND))
    return state


def _slowed(state: EndpointState, failure: Failure) -> EndpointState:
    now, withheld = failure.now, slowdown(state, failure.now)
    observed = round(state.counted_span / max(1.0, state.volume))
    if state.counted_span < MIN_OBSERVED:
        observed = max(observed, ASSUMED_INTERVAL)
    return replace(
        _new_epoch(state, now),
        slowdown=min(MAX_SLOWDOWN, 1 - (1 - withheld) * (1 - SLOWDOWN)),
        slowdowns=state.slowdowns + 1 if withheld else 1,
        slowed_at=now,
        slowed_base=0 if failure.interval else (withheld and state.slowed_base) or observed,
        limited=0.0,
    )


def slowdown(state: EndpointState, now: int) -> float:
    """The share of the rate that is withheld; halved again and again since the last run of 429s."""
    half_life = backoff(
        max(1, state.slowdowns), SLOWDOWN_HALF_LIFE_SECONDS, MAX_SLOWDOWN_HALF_LIFE_SECONDS
    )
    age = max(0, now - state.slowed_at) / SECOND
    withheld = state.slowdown * 0.5 ** (age / half_life)
    return float(withheld) if withheld >= NO_SLOWDOWN else 0.0


def _counted(state: EndpointState, now: int) -> EndpointState:
    """Brings the decaying counts up to `now`."""
    counted = replace(state, counted_at=now, counted_calls=state.calls)
    if not state.counted_at:
        return counted
    age = max(1, now - state.counted_at)
    left = 0.5 ** (age / COUNT_HALF_LIFE)
    # The calls since the last count, as if evenly spread, decay too.
    span = COUNT_HALF_LIFE / log(2) * (1 - left)
    return replace(
        counted,
        volume=state.volume * left + (state.calls - state.counted_calls) / age * span,
        counted_span=state.counted_span * left + span,
        limited=state.limited * left,
    )


def _new_epoch(state: EndpointState, now: int) -> EndpointState:
    """Makes all reservations void: slots begin again after what may still be sent before."""
    begin = now + EPOCH_GUARD + state.last_interval
    return replace(state, epoch=state.epoch + 1, next_slot=min(state.next_slot, begin))


def _paused(state: EndpointState, now: int, until: int) -> EndpointState:
    """Allows no slot before `until`; never shortens a pause."""
    if state.paused_until >= until:
        return state
    return replace(_new_epoch(state, now), paused_until=until)


def _out_of_service(
    state: EndpointState, now: int, until: int, cause: str, opens: int = 0
) -> EndpointState:
    """Because calls fail or the provider demands it; never shortens an outage that is known."""
    if state.breaker_open and not state.probe and state.breaker_until >= until:
        return state
    return replace(
        _new_epoch(state, now),
        breaker_open=True,
        breaker_until=until,
        probe="",
        opens=state.opens + opens,
        cause=cause[:_MAX_DETAIL_CHARS],
    )


def _key_rejected(state: EndpointState, failure: Failure) -> EndpointState:
    """The key is not used for as long as the provider says, but at least ten minutes."""
    seconds = max(failure.retry_after_seconds or 0.0, KEY_COOLDOWN_SECONDS)
    until = failure.now + int(seconds * SECOND)
    rejected = KeyCooldown(until, failure.outcome, failure.detail[:_MAX_DETAIL_CHARS])
    live = {i: c for i, c in state.key_cooldowns.items() if c.until > failure.now}
    return replace(state, key_cooldowns=live | {failure.key_id: rejected})


def closed(state: EndpointState, _now: int) -> EndpointState:
    """After a good probe."""
    service = replace(state, breaker_open=False, breaker_until=0, probe="", opens=0, cause="")
    return replace(service, failures=0, good=0, earlier_good=0)


def probe_not_sent(state: EndpointState, now: int) -> EndpointState:
    """Leaves the turn to the next probe."""
    return replace(state, breaker_until=now, probe="")


def without_lease(state: EndpointState, lease: str) -> EndpointState:
    return replace(state, leases={i: t for i, t in state.leases.items() if i != lease})


def without_expired_leases(state: EndpointState, now: int) -> EndpointState:
    return replace(state, leases={i: until for i, until in state.leases.items() if until > now})


def is_open(state: EndpointState, now: int) -> bool:
    """False also when it is half open: then the next call is a probe."""
    return state.breaker_open and state.breaker_until > now


def cooldown(opens: int) -> int:
    """How long the breaker stays open, in microseconds, when it opens `opens` times in a row."""
    return int(backoff(opens, COOLDOWN_SECONDS, MAX_COOLDOWN_SECONDS) * SECOND)


def net_failures(state: EndpointState) -> int:
    """Recent transient failures, less the good answers in between and since."""
    return max(0, state.failures - state.good - state.earlier_good)


def recent_failures(state: EndpointState, now: int) -> float:
    """The count of failures, decaying with time."""
    age = max(0, now - state.failed_at)
    return float(net_failures(state) * 0.5 ** (age / FAILURE_HALF_LIFE))


def effective_weight(weight: float, state: EndpointState, now: int) -> float:
    """Half the weight per recent failure, at least a sixteenth."""
    return float(weight * 0.5 ** min(recent_failures(state, now), MAX_HALVINGS))


def usable_keys(
    key_ids: Iterable[str], cooldowns: Mapping[str, KeyCooldown], now: int
) -> list[str]:
    """The keys that are not cooling down, in their order."""
    return [i for i in key_ids if i not in cooldowns or cooldowns[i].until <= now]
