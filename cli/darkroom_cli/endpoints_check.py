"""`darkroom endpoints check`: which keys and models the providers accept, at no cost."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

from pydantic import SecretStr

from darkroom.calls import AvailableModels, CallFailed, Outcome
from darkroom.endpoints import Endpoint, key_fingerprint
from darkroom.models.catalog import current_name, without_snapshot
from darkroom.providers.registry import PROVIDERS, Provider
from darkroom_cli.endpoints import endpoint_warnings, load_current, load_file
from darkroom_cli.session import Session

_CHECK_SECONDS = 20.0
_PARALLEL_CHECKS = 8


class ModelLister(Protocol):
    """An adapter of darkroom.providers."""

    def available_models(
        self, endpoint: Endpoint, key: SecretStr, timeout_seconds: float
    ) -> AvailableModels: ...


def check(session: Session, file: Path | None) -> bool:
    """List the models of every key. Whether every key is accepted and has its model.

    One call per key, which costs nothing; the endpoints' limits are not kept for it.
    """
    secret = load_current(session) if file is None else load_file(file)
    pairs = [(endpoint, key) for endpoint in secret.endpoints for key in endpoint.keys]
    editors = {p: resolve_name(PROVIDERS[p].adapter)() for p in {e.provider for e, _ in pairs}}
    with session.spinner("Asking the providers"), ThreadPoolExecutor(_PARALLEL_CHECKS) as pool:
        checks = list(pool.map(lambda pair: _check_key(editors, *pair), pairs))
    if session.json:
        session.print_json([found.as_json() for found in checks])
    else:
        for found in checks:
            session.print_fields(found.fields())
            session.out.print()
    for endpoint in secret.endpoints:
        for warning in endpoint_warnings(endpoint, session.today):
            session.warn(warning)
    return all(found.usable for found in checks)


def _check_key(
    editors: Mapping[Provider, ModelLister], endpoint: Endpoint, key: SecretStr
) -> "_KeyCheck":
    try:
        found = editors[endpoint.provider].available_models(endpoint, key, _CHECK_SECONDS)
    except CallFailed as failed:
        return _KeyCheck(endpoint, key_fingerprint(key), failed=failed)
    return _KeyCheck(endpoint, key_fingerprint(key), found)


@dataclass(frozen=True, slots=True)
class _KeyCheck:
    """What a provider's list of models says of one key."""

    endpoint: Endpoint
    key: str  # fingerprint
    found: AvailableModels | None = None
    failed: CallFailed | None = None

    @property
    def no_list(self) -> bool:
        """The service has none, which compatible ones need not have."""
        outcome = self.failed and self.failed.outcome
        return outcome is Outcome.BAD_REQUEST and self.endpoint.base_url is not None

    @property
    def sent_model(self) -> str:
        """The endpoint's, or what is sent for a name that was shut down."""
        return current_name(self.endpoint, self.endpoint.model).removeprefix("models/")

    @property
    def has_model(self) -> bool | None:
        """None where the list does not tell: other services, and Google's list is of pages."""
        if self.found is None:
            return None
        if without_snapshot(self.sent_model) in map(without_snapshot, self.found.ends):
            return True
        endpoint = self.endpoint
        elsewhere = endpoint.base_url or endpoint.location or endpoint.model_is
        return None if elsewhere else False

    @property
    def usable(self) -> bool:
        return (self.failed is None or self.no_list) and self.has_model is not False

    def fields(self) -> Iterator[tuple[str, str]]:
        yield "endpoint", self.endpoint.name
        yield "key", f"{self.key}: {self._key_status()}"
        yield "model", f"{self.endpoint.model}: {self._model_status()}"
        if limits := self._limits():
            yield "limits", ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in limits.items())

    def _key_status(self) -> str:
        if self.failed is None:
            return "accepted"
        if self.no_list:
            return "not checked, the service has no list of models"
        return f"{self.failed.outcome.value.replace('_', ' ')} ({self.failed.detail})"

    def _model_status(self) -> str:
        if self.found is None:
            return "not checked"
        if self.has_model is None:
            return "not in the service's list of models"
        if not self.has_model:
            close = get_close_matches(self.endpoint.model, self.found.ends, n=1)
            return "not available to this key" + (f", did you mean {close[0]}?" if close else "")
        end = self.found.ends.get(self.sent_model)
        return "available" + (f" until {end}" if end else "")

    def _limits(self) -> dict[str, int]:
        if self.found is None:
            return {}
        stated = asdict(self.found.provider_limits)
        return {name: n for name, n in stated.items() if n is not None}

    def as_json(self) -> dict[str, Any]:
        end = self.found and self.found.ends.get(self.sent_model)
        return {
            "endpoint": self.endpoint.name,
            "key": self.key,
            "accepted": None if self.no_list else self.failed is None,
            "reason": self.failed and self.failed.outcome.value,
            "detail": self.failed and self.failed.detail,
            "model": self.endpoint.model,
            "model_available": self.has_model,
            "model_ends_on": end.isoformat() if end else None,
            "limits": self._limits(),
        }
