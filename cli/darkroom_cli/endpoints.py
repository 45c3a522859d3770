"""`darkroom endpoints`: push the endpoints secret, and show the endpoints with their state."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from datetime import UTC, date, datetime
from difflib import get_close_matches
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from darkroom.calls import Outcome
from darkroom.dispatch import circuit_breaker
from darkroom.endpoint_state import SECOND, EndpointState, KeyCooldown, StatesUnavailable
from darkroom.endpoints import (
    Endpoint,
    EndpointsSecret,
    endpoints_from_environment,
    environment_notes,
    key_fingerprint,
    parse_endpoints,
)
from darkroom.errors import ConfigurationError
from darkroom.formatting import duration, plural
from darkroom.models.catalog import MODELS, find_model, retirement_notice
from darkroom.providers.registry import PROVIDERS, provider_of
from darkroom_cli.error_messages import CommandFailed, UsageMistake, as_sentence
from darkroom_cli.session import Session

_COOLDOWNS = {
    Outcome.KEY_REJECTED: "was rejected recently and is paused",
    Outcome.QUOTA_SPENT: "its account has no quota left, paused",
    Outcome.MODEL_UNAVAILABLE: "model {model} not found, paused",
}
# From a push until every worker uses the new secret: the age of its cache, and a wait for a slot.
_TAKEOVER_SECONDS = 60.0
# What `reset` keeps of an EndpointState: what enforces the limits, and orders the writes.
_KEPT = frozenset(
    {"next_slot", "calls", "day", "day_calls", "leases", "revision"}
    | {"last_interval", "epoch", "slowed_base", "volume"}
    | {"counted_at", "counted_calls", "counted_span"}
)


def push(session: Session, file: Path | None, *, from_env: bool, dry_run: bool) -> None:
    if (file is None) != from_env:
        raise UsageMistake("Give a file with the endpoints (- for standard input), or --from-env.")
    secret = endpoints_from_environment(os.environ) if file is None else load_file(file)
    _reject_foreign_models(secret)
    count = plural(len(secret.endpoints), "endpoint")
    if dry_run:
        session.note(f"Would push {count}:")
    else:
        previous = _previous(session)
        session.stack.write_secret(_with_keys(secret))
        until = _time_of_day(session.clock.now() + _TAKEOVER_SECONDS)
        session.note(
            f"Pushed {count} to {session.stack.name}: in use by all workers by {until}. Until then "
            "some may still use the previous secret."
        )
        _clear_cooldowns(session, previous, secret)
    _print(session, secret, {})
    if file is None:
        for note in environment_notes(os.environ, secret):
            session.warn(note)
    _warn(session, secret)


def show(session: Session) -> None:
    secret = load_current(session)
    states = {e.name: session.stack.endpoint_states.read(e.name) for e in secret.endpoints}
    _print(session, secret, states)
    written_at = session.stack.secret_written_at()
    if written_at and session.clock.now() < written_at + _TAKEOVER_SECONDS:
        session.note(
            f"The secret was pushed at {_time_of_day(written_at)}: in use by all workers by "
            f"{_time_of_day(written_at + _TAKEOVER_SECONDS)}. Until then some may still use the "
            "previous one."
        )
    _warn(session, secret)


def _time_of_day(at: float) -> str:
    """Local time, rounded up to a second."""
    return f"{datetime.fromtimestamp(ceil(at)):%H:%M:%S}"  # noqa: DTZ006 - for people


def _previous(session: Session) -> Mapping[str, Endpoint]:
    """The endpoints by name before a push; none if there are no valid ones."""
    try:
        current = session.stack.read_secret()
        secret = parse_endpoints(current) if current else None
    except ConfigurationError:
        return {}
    return {endpoint.name: endpoint for endpoint in secret.endpoints} if secret else {}


def _clear_cooldowns(
    session: Session, previous: Mapping[str, Endpoint], secret: EndpointsSecret
) -> None:
    """End the cooldowns of endpoints that the push changed: they need no longer apply."""
    cleared = list[str]()
    for endpoint in secret.endpoints:
        before = previous.get(endpoint.name)
        if before == endpoint:
            continue
        try:
            states = session.stack.endpoint_states.report(
                endpoint.name, lambda state: replace(state, key_cooldowns={})
            )
        except StatesUnavailable:
            session.warn(
                f"The cooldowns of {endpoint.name} could not be ended: run "
                f"`darkroom endpoints reset {endpoint.name}`."
            )
            continue
        cleared += [endpoint.name] if states[0].key_cooldowns else []
    if cleared:
        session.note(f"Ended the cooldowns of {', '.join(cleared)}.")


def reset(session: Session, name: str) -> None:
    """Put an endpoint back into service. Its limits still count the calls that were made."""
    names = [endpoint.name for endpoint in load_current(session).endpoints]
    if name not in names:
        raise UsageMistake(f"No endpoint is named {name}: there are {', '.join(names)}.")
    before, after = session.stack.endpoint_states.report(name, _in_service)
    now = int(session.clock.now() * SECOND)
    text = f"{name} was: {_describe_state(before, now)}."
    text += " It is in service again." if before != after else " Nothing had to be reset."
    session.print_result(text, {"endpoint": name, "reset": before != after})


def _in_service(state: EndpointState) -> EndpointState:
    """Without what takes an endpoint out of service: breaker, pause, slowdown and cooldowns."""
    return EndpointState(
        **{f.name: getattr(state, f.name) for f in fields(state) if f.name in _KEPT}
    )


def load_file(file: Path) -> EndpointsSecret:
    """Endpoints from a file, or from standard input for `-`."""
    text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    return _parse(text, str(file))


def load_current(session: Session) -> EndpointsSecret:
    """The stack's endpoints. Raises CommandFailed if there are none or they are invalid."""
    text = session.stack.read_secret()
    if not text:
        raise CommandFailed(
            "The stack has no endpoints yet: run `darkroom endpoints push FILE` (or --from-env)."
        )
    return _parse(text, "The endpoints secret")


def _parse(text: str, name: str) -> EndpointsSecret:
    """Raises CommandFailed that names the field, or the place in the JSON; never a value."""
    try:
        return parse_endpoints(text, name)
    except ConfigurationError as error:
        raise CommandFailed(as_sentence(str(error))) from None


def _reject_foreign_models(secret: EndpointsSecret) -> None:
    """A model of another provider cannot exist at the provider's own URL."""
    for endpoint in secret.endpoints:
        owner = provider_of(endpoint.model)
        if endpoint.base_url is None and owner not in (None, endpoint.provider):
            names = PROVIDERS[owner].display_name, PROVIDERS[endpoint.provider].display_name
            raise CommandFailed(
                f"{endpoint.name}: the model {endpoint.model} is {names[0]}'s and the provider is "
                f"{names[1]}. Correct one of them, or give the base_url of a service that has it."
            )


def _warn(session: Session, secret: EndpointsSecret) -> None:
    for endpoint in secret.endpoints:
        for warning in endpoint_warnings(endpoint, session.today):
            session.warn(warning)
    if all(endpoint.weight == 0 for endpoint in secret.endpoints):
        session.warn("Every endpoint has weight 0: rows wait until one has more.")


def endpoint_warnings(endpoint: Endpoint, today: date) -> Iterator[str]:
    """What is likely a mistake, and the end of the endpoint's model."""
    if notice := retirement_notice(endpoint, endpoint.model, today):
        yield f"{endpoint.name}: {notice}."
    name = endpoint.model_is or endpoint.model
    model = find_model(endpoint.provider, name)
    names = [m.name for m in MODELS if m.provider is endpoint.provider]
    close = [] if model.known else get_close_matches(name, names, n=1)
    own_names = endpoint.base_url is not None and endpoint.model_is is None  # of a deployment
    if not model.known and (close or not own_names):
        hint = f": did you mean {close[0]}?" if close else ", docs/models.md lists those it knows."
        yield f"{endpoint.name}: Darkroom does not know the model {name}{hint}"
    if not model.known and own_names and not endpoint.prices.image:
        yield (
            f"{endpoint.name}: the price of the model {name} is not known; model_is (the model "
            "behind it) or prices give it one."
        )
    if endpoint.service_tier and endpoint.service_tier not in model.service_tiers:
        yield f"{endpoint.name}: {model.name} has no service_tier {endpoint.service_tier}."
    elif endpoint.service_tier and endpoint.location not in (None, "global"):
        yield f"{endpoint.name}: service_tier {endpoint.service_tier} needs the location global."
    if endpoint.base_url is not None:
        yield from _url_warnings(endpoint, urlsplit(endpoint.base_url))


def _url_warnings(endpoint: Endpoint, url: SplitResult) -> Iterator[str]:
    ending = PROVIDERS[endpoint.provider].base_url_ending
    if ending and endpoint.api_version is None and not url.path.strip("/"):
        yield f"{endpoint.name}: base_url has no path, most services need {ending}."
    if url.scheme == "http" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
        yield f"{endpoint.name}: base_url is http, keys and images are sent unencrypted."


def _with_keys(secret: EndpointsSecret) -> str:
    """The secret's JSON with its keys in the clear, for Secrets Manager only."""
    document = secret.model_dump(exclude_none=True)
    return json.dumps(document, default=SecretStr.get_secret_value, indent=1)


def _print(session: Session, secret: EndpointsSecret, states: Mapping[str, EndpointState]) -> None:
    now = int(session.clock.now() * SECOND)
    ordered = [endpoint for tier in secret.tiers() for endpoint in tier]
    if session.json:
        session.print_json([_as_json(e, states.get(e.name), now) for e in ordered])
        return
    for position, endpoint in enumerate(ordered):
        if position:
            session.out.print()
        session.print_fields(_fields(endpoint, states.get(endpoint.name), now))


def _fields(endpoint: Endpoint, state: EndpointState | None, now: int) -> Iterator[tuple[str, str]]:
    yield "endpoint", endpoint.name
    yield "tier", f"{endpoint.tier}, {endpoint.provider.value}, weight {endpoint.weight:g}"
    yield "model", endpoint.model + (f" ({endpoint.model_is})" if endpoint.model_is else "")
    for label, value in (
        ("quality", endpoint.quality),
        ("service tier", endpoint.service_tier),
        ("base URL", endpoint.base_url),
        ("organization", endpoint.organization),
        ("project", endpoint.project),
        ("location", endpoint.location),
        ("headers", ", ".join(endpoint.headers)),
    ):
        if value:
            yield label, value
    yield "limits", _limits(endpoint)
    retries = f"{endpoint.max_retries} {'retry' if endpoint.max_retries == 1 else 'retries'}"
    yield "timing", f"{endpoint.timeout_seconds:g} s per call, {retries}"
    cooldowns = _cooldowns(endpoint, state, now)
    keys = (_key(f, endpoint.model, cooldowns.get(f), now) for f in _fingerprints(endpoint))
    yield "keys", ", ".join(keys)
    if state is not None:
        every_key = bool(cooldowns) and len(cooldowns) == len(set(_fingerprints(endpoint)))
        yield "state", _describe_state(state, now, every_key_paused=every_key)


def _fingerprints(endpoint: Endpoint) -> list[str]:
    return [key_fingerprint(key) for key in endpoint.keys]


def _limits(endpoint: Endpoint) -> str:
    parts = [
        f"{limit:,} {unit}"
        for limit, unit in (
            (endpoint.requests_per_minute, "a minute"),
            (endpoint.images_per_minute, "images a minute"),
            (endpoint.input_images_per_minute, "input images a minute"),
            (endpoint.requests_per_day, "a day"),
            (endpoint.max_in_flight, "at a time"),
        )
        if limit
    ]
    return ", ".join(parts) or "none"


def _cooldowns(endpoint: Endpoint, state: EndpointState | None, now: int) -> dict[str, KeyCooldown]:
    """Of the keys that are cooling down, by fingerprint."""
    cooldowns = state.key_cooldowns if state else {}
    return {
        key_fingerprint(key): cooldowns[key_id]
        for key_id, key in endpoint.key_ids().items()
        if key_id in cooldowns and cooldowns[key_id].until > now
    }


def _key(fingerprint: str, model: str, cooldown: KeyCooldown | None, now: int) -> str:
    if cooldown is None:
        return fingerprint
    what = _COOLDOWNS.get(cooldown.reason, _COOLDOWNS[Outcome.KEY_REJECTED]).format(model=model)
    remaining = duration((cooldown.until - now) / SECOND)
    return f"{fingerprint} ({what} for {remaining})"


def _describe_state(state: EndpointState, now: int, *, every_key_paused: bool = False) -> str:
    if not state.revision:
        return "never used"
    match _breaker(state, now):
        case "open":
            remaining = duration((state.breaker_until - now) / SECOND)
            parts = [f"breaker open for {remaining}"]
        case "half open":
            parts = ["breaker half open, the next call is a probe"]
        case _:
            parts = ["out of service while its keys are paused" if every_key_paused else "ready"]
    if in_flight := _in_flight(state, now):
        parts.append(f"{plural(in_flight, 'call')} in flight")
    wait = max(state.next_slot, state.paused_until) - now
    if wait > SECOND:
        parts.append(f"next slot in {duration(wait / SECOND)}")
    failures = circuit_breaker.recent_failures(state, now)
    if failures >= 1:
        parts.append(plural(round(failures), "recent failure"))
    parts.append(f"{plural(state.calls, 'call')} so far")
    return ", ".join(parts)


def _breaker(state: EndpointState, now: int) -> str:
    if not state.breaker_open:
        return "closed"
    return "open" if state.breaker_until > now else "half open"


def _in_flight(state: EndpointState, now: int) -> int:
    return sum(until > now for until in state.leases.values())


def _as_json(endpoint: Endpoint, state: EndpointState | None, now: int) -> dict[str, Any]:
    dumped = endpoint.model_dump(mode="json", exclude={"api_keys", "credentials", "headers"})
    dumped["headers"] = list(endpoint.headers)
    dumped["keys"] = _fingerprints(endpoint)
    if state is not None:
        dumped["state"] = {
            "used": bool(state.revision),
            "breaker": _breaker(state, now),
            "breaker_until": _timestamp(state.breaker_until) if state.breaker_open else None,
            "in_flight": _in_flight(state, now),
            "next_slot": _timestamp(state.next_slot) if state.next_slot > now else None,
            "recent_failures": round(circuit_breaker.recent_failures(state, now), 2),
            "calls": state.calls,
            "cooling_down_keys": {
                fingerprint: {"until": _timestamp(cooldown.until), "reason": cooldown.reason.value}
                for fingerprint, cooldown in _cooldowns(endpoint, state, now).items()
            },
        }
    return dumped


def _timestamp(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / SECOND, UTC).isoformat(timespec="seconds")
