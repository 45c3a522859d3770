"""The endpoints secret from the environment variables that bulk editing scripts already use.

For each provider P (OPENAI, GEMINI), `DG_P_…` before `P_…`:

| variable | meaning |
|---|---|
| `P_API_KEY` (Gemini also `GOOGLE_GENAI_API_KEY`, `GOOGLE_API_KEY`) | one key |
| `P_API_KEYS` | several, comma-separated, all for every endpoint; or one group per endpoint, groups separated by `;` or `|` |
| `P_API_BASE`, `P_BASE_URL` | one base URL |
| `P_ENDPOINTS` | several base URLs, comma-separated; an empty item is the provider's own |
| `P_RATE_LIMIT` | requests per minute of each endpoint, 0 for none |
| `P_RATE_LIMITS`, `P_WEIGHTS` | one number per endpoint, comma-separated |
| `P_TIMEOUT`, `P_MAX_RETRIES`, `P_RETRY_DELAY`, `P_API_VERSION`, `P_MODEL` | of each endpoint |

What is not set gets the endpoint's default. Gemini is the first tier, OpenAI the second.
"""  # noqa: E501 - a table reads better unbroken

import re
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr, ValidationError

from darkroom.calls import Provider
from darkroom.endpoints import EndpointsSecret
from darkroom.errors import ConfigurationError

_KEY_NAMES = {
    Provider.OPENAI: ("DG_OPENAI_API_KEY", "OPENAI_API_KEY"),
    Provider.GEMINI: (
        "DG_GEMINI_API_KEY",
        "GEMINI_API_KEY",
        "GOOGLE_GENAI_API_KEY",
        "GOOGLE_API_KEY",
    ),
}
_SHARED_FIELDS = {
    "TIMEOUT": "timeout_seconds",
    "MAX_RETRIES": "max_retries",
    "RETRY_DELAY": "retry_delay_seconds",
    "API_VERSION": "api_version",
    "MODEL": "model",
}


def endpoints_from_environment(environment: Mapping[str, str]) -> EndpointsSecret:
    """Raises ConfigurationError that names the variable and says what to do, never a key."""
    found = [
        endpoint
        for provider in (Provider.GEMINI, Provider.OPENAI)
        for endpoint in _of_provider(_Variables(environment, provider))
    ]
    if not found:
        raise ConfigurationError(
            "no provider is set in the environment: set GEMINI_API_KEY or GOOGLE_GENAI_API_KEY, "
            "OPENAI_API_KEY, or the DG_GEMINI_… and DG_OPENAI_… variables"
        )
    try:
        return EndpointsSecret.model_validate({"endpoints": found})
    except ValidationError as error:
        raise ConfigurationError(_told(error, found)) from None


class _Variables:
    """One provider's variables; an empty one counts as not set."""

    def __init__(self, environment: Mapping[str, str], provider: Provider) -> None:
        self.provider = provider
        self._environment = environment

    def get(self, *suffixes: str) -> tuple[str, str] | None:
        """(name, value) of the first that is set, DG_ before plain."""
        upper = self.provider.value.upper()
        return self.first(*(f"{p}{upper}_{s}" for s in suffixes for p in ("DG_", "")))

    def first(self, *names: str) -> tuple[str, str] | None:
        for name in names:
            value = self._environment.get(name, "").strip()
            if value:
                return name, value
        return None


def _of_provider(variables: _Variables) -> list[dict[str, Any]]:
    urls = _base_urls(variables)
    keys = _keys(variables, len(urls))
    if not keys:
        told = variables.get("ENDPOINTS", "API_BASE", "BASE_URL")
        if told:
            raise ConfigurationError(
                f"{told[0]} is set but no key: set {variables.provider.value.upper()}_API_KEY "
                f"or DG_{variables.provider.value.upper()}_API_KEYS"
            )
        return []
    limits = _per_endpoint(variables, "RATE_LIMITS", len(urls))
    one_limit = variables.get("RATE_LIMIT")
    if limits is None and one_limit is not None:
        limits = [_number(*one_limit)] * len(urls)
    weights = _per_endpoint(variables, "WEIGHTS", len(urls))
    shared = {
        attribute: told[1]
        for suffix, attribute in _SHARED_FIELDS.items()
        if (told := variables.get(suffix)) is not None
    }
    several = len(urls) > 1
    name = variables.provider.value
    return [
        {
            "name": f"{name}-{position + 1}" if several else name,
            "provider": name,
            "base_url": url,
            "api_keys": [SecretStr(key) for key in keys[position]],
            "requests_per_minute": limits[position] if limits else None,
            "weight": weights[position] if weights else None,
            **shared,
        }
        for position, url in enumerate(urls)
    ]


def _base_urls(variables: _Variables) -> list[str | None]:
    several = variables.get("ENDPOINTS")
    told = several or variables.get("API_BASE", "BASE_URL")
    if told is None:
        return [None]
    urls = [url.strip() or None for url in told[1].split(",")]
    for position, url in enumerate(urls, 1):
        if url is not None and not re.match(r"https?://[^/\s]", url):
            raise ConfigurationError(
                f"{told[0]}: item {position} is not a base URL; write it with https:// in front"
            )
    return urls


def _keys(variables: _Variables, endpoints: int) -> list[list[str]]:
    """One list of keys per endpoint; empty when no key is set."""
    several = variables.get("API_KEYS")
    if several is None:
        one = variables.first(*_KEY_NAMES[variables.provider])
        return [[one[1]]] * endpoints if one else []
    name, value = several
    groups = [
        [key.strip() for key in group.split(",") if key.strip()]
        for group in re.split(r"[;|]", value)
    ]
    if len(groups) == 1:
        groups *= endpoints
    if len(groups) != endpoints:
        raise ConfigurationError(
            f"{name} has {len(groups)} groups of keys for {endpoints} endpoint(s): write one "
            "group per endpoint, separated by ;, or one list for all"
        )
    for position, group in enumerate(groups, 1):
        if not group:
            raise ConfigurationError(f"{name}: group {position} has no key")
    return groups


def _per_endpoint(variables: _Variables, suffix: str, endpoints: int) -> list[float] | None:
    told = variables.get(suffix)
    if told is None:
        return None
    name, value = told
    numbers = [_number(name, item) for item in value.split(",")]
    if len(numbers) != endpoints:
        raise ConfigurationError(
            f"{name} has {len(numbers)} number(s) for {endpoints} endpoint(s): write one for each"
        )
    return numbers


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"{name} holds something that is not a number") from None


def _told(error: ValidationError, endpoints: list[dict[str, Any]]) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    if where[:1] == ["endpoints"] and len(where) > 2:  # noqa: PLR2004 - endpoints.N.field
        where = [str(endpoints[int(where[1])]["name"]), *where[2:]]
    return (
        f"the environment gives an endpoint that is not usable: {'.'.join(where)}: {first['msg']}"
    )
