"""`endpoints`: who may be called, with which keys, inside which limits."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from darkroom.dispatch import circuit_breaker
from darkroom.endpoint_state import SECOND, EndpointState
from darkroom.endpoints import (
    Endpoint,
    EndpointsSecret,
    endpoints_from_environment,
    key_fingerprint,
)
from darkroom.formatting import describe_validation, duration, plural
from darkroom_cli.sentences import CommandFailed, UsageMistake
from darkroom_cli.session import Session


def push(session: Session, file: Path | None, *, from_env: bool, dry_run: bool) -> None:
    if (file is None) != from_env:
        raise UsageMistake("Name a file with the endpoints (- for standard input), or --from-env.")
    secret = endpoints_from_environment(os.environ) if file is None else from_file(file)
    if not dry_run:
        session.stack.secret.write(_revealed(secret))
    count = plural(len(secret.endpoints), "endpoint")
    if dry_run:
        session.note(f"These {count} would be pushed:")
    else:
        session.note(f"Pushed {count} to {session.stack.name}; workers use it within 5 minutes.")
    _show(session, secret, {})


def from_file(file: Path) -> EndpointsSecret:
    """Endpoints of a file, `-` for standard input. Raises CommandFailed that names the field."""
    text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    return parse(text, str(file))


def parse(text: str, name: str) -> EndpointsSecret:
    """Raises CommandFailed that names the field, or the place in the JSON; never a value."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise CommandFailed(
            f"{name} is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno}, "
            f"column {error.colno}."
        ) from None
    try:
        return EndpointsSecret.model_validate(data)
    except ValidationError as error:
        raise CommandFailed(f"{describe_validation(error, name)}.") from None


def _revealed(secret: EndpointsSecret) -> str:
    """The secret's text, keys in the clear: for Secrets Manager only."""
    document: dict[str, Any] = secret.model_dump(mode="json", exclude_none=True)
    for dumped, endpoint in zip(document["endpoints"], secret.endpoints, strict=True):
        dumped["api_keys"] = [key.get_secret_value() for key in endpoint.api_keys]
    return json.dumps(document, indent=1)


def current(session: Session) -> EndpointsSecret:
    """The stack's endpoints. Raises CommandFailed when there are none, or they cannot be used."""
    text = session.stack.secret.read()
    if not text:
        raise CommandFailed(
            "The stack has no endpoints yet: `darkroom endpoints push FILE`, or --from-env."
        )
    return parse(text, "The endpoints secret")


def show(session: Session) -> None:
    secret = current(session)
    states = {e.name: session.stack.endpoint_states.read(e.name) for e in secret.endpoints}
    _show(session, secret, states)


def _show(session: Session, secret: EndpointsSecret, states: Mapping[str, EndpointState]) -> None:
    now = int(session.wiring.clock.now() * SECOND)
    ordered = [endpoint for tier in secret.tiers() for endpoint in tier]
    if session.json:
        session.print_json([_as_json(e, states.get(e.name), now) for e in ordered])
        return
    for position, endpoint in enumerate(ordered):
        if position:
            session.out.print()
        session.facts(_facts(endpoint, states.get(endpoint.name), now))


def _facts(endpoint: Endpoint, state: EndpointState | None, now: int) -> Iterator[tuple[str, str]]:
    yield "endpoint", endpoint.name
    yield "tier", f"{endpoint.tier}, {endpoint.provider.value}, weight {endpoint.weight:g}"
    yield "model", endpoint.model
    if endpoint.base_url:
        yield "base URL", endpoint.base_url
    yield "limits", _limits(endpoint)
    yield (
        "timing",
        (
            f"{endpoint.timeout_seconds:g} s per call, "
            f"{endpoint.max_retries} {'retry' if endpoint.max_retries == 1 else 'retries'}"
        ),
    )
    yield "keys", ", ".join(_key(k, state, now) for k in _fingerprints(endpoint))
    if state is not None:
        yield "state", describe_state(state, now)


def _fingerprints(endpoint: Endpoint) -> list[str]:
    return [key_fingerprint(key) for key in endpoint.api_keys]


def _limits(endpoint: Endpoint) -> str:
    parts = [f"{endpoint.requests_per_minute:,} a minute"] if endpoint.requests_per_minute else []
    if endpoint.requests_per_day:
        parts.append(f"{endpoint.requests_per_day:,} a day")
    if endpoint.max_in_flight:
        parts.append(f"{endpoint.max_in_flight:,} at a time")
    return ", ".join(parts) or "none"


def _key(fingerprint: str, state: EndpointState | None, now: int) -> str:
    rest = state.key_cooldowns.get(fingerprint) if state else None
    if rest is None or rest.until <= now:
        return fingerprint
    why = rest.reason.value.replace("_", " ")
    return f"{fingerprint} (resting for {duration((rest.until - now) / SECOND)}: {why})"


def describe_state(state: EndpointState, now: int) -> str:
    """What keeps the endpoint from being called now, in words."""
    if not state.revision:
        return "never used"
    match _breaker(state, now):
        case "open":
            rest = duration((state.breaker_until - now) / SECOND)
            parts = [f"breaker open for {rest}"]
        case "half open":
            parts = ["breaker half open, the next call is a probe"]
        case _:
            parts = ["ready"]
    in_flight = sum(until > now for until in state.leases.values())
    if in_flight:
        parts.append(f"{plural(in_flight, 'call')} in flight")
    ahead = max(state.next_slot, state.paused_until) - now
    if ahead > SECOND:
        parts.append(f"next slot in {duration(ahead / SECOND)}")
    failures = circuit_breaker.recent_failures(state, now)
    if failures >= 1:
        parts.append(f"{plural(round(failures), 'recent failure')}")
    parts.append(f"{plural(state.calls, 'call')} so far")
    return ", ".join(parts)


def _breaker(state: EndpointState, now: int) -> str:
    if not state.breaker_open:
        return "closed"
    return "open" if state.breaker_until > now else "half open"


def _as_json(endpoint: Endpoint, state: EndpointState | None, now: int) -> dict[str, Any]:
    dumped = endpoint.model_dump(mode="json", exclude={"api_keys"})
    dumped["keys"] = _fingerprints(endpoint)
    if state is not None:
        resting = {f: r for f, r in state.key_cooldowns.items() if r.until > now}
        dumped["state"] = {
            "used": bool(state.revision),
            "breaker": _breaker(state, now),
            "breaker_until": _moment(state.breaker_until) if state.breaker_open else None,
            "in_flight": sum(until > now for until in state.leases.values()),
            "next_slot": _moment(state.next_slot) if state.next_slot > now else None,
            "recent_failures": round(circuit_breaker.recent_failures(state, now), 2),
            "calls": state.calls,
            "resting_keys": {
                f: {"until": _moment(r.until), "why": r.reason.value} for f, r in resting.items()
            },
        }
    return dumped


def _moment(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / SECOND, UTC).isoformat(timespec="seconds")
