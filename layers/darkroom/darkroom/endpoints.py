"""The endpoints secret: who may be called, with which keys, inside which limits."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from darkroom.calls import Provider
from darkroom.errors import ConfigurationError
from darkroom.formatting import describe_validation

DEFAULT_MODELS = {Provider.GEMINI: "gemini-3-pro-image", Provider.OPENAI: "gpt-image-1.5"}
# Source B (the fallback guide): time-outs, retries and base delays per provider.
DEFAULT_TIMING: dict[Provider, dict[str, float]] = {
    Provider.GEMINI: {"timeout_seconds": 60, "max_retries": 2, "retry_delay_seconds": 5},
    Provider.OPENAI: {"timeout_seconds": 300, "max_retries": 0, "retry_delay_seconds": 1},
}
DEFAULT_TIERS = {Provider.GEMINI: 1, Provider.OPENAI: 2}


def key_fingerprint(key: SecretStr) -> str:
    """Short digest that names a key in logs and state without showing it."""
    return hashlib.sha256(key.get_secret_value().encode()).hexdigest()[:12]


class Endpoint(BaseModel):
    """One quota at one provider: a base URL, a model, keys that share its limits.

    `requests_per_minute`, `requests_per_day`, `max_in_flight`: 0 means no limit. Times in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    provider: Provider
    tier: int = Field(default=1, ge=1)
    api_keys: tuple[SecretStr, ...] = Field(min_length=1)
    base_url: str | None = None
    api_version: str | None = None  # Azure OpenAI, or Gemini's (default v1)
    model: str
    weight: float = Field(default=1, gt=0)
    requests_per_minute: int = Field(default=10, ge=0)
    burst: int = Field(default=1, ge=1)
    requests_per_day: int = Field(default=0, ge=0)
    max_in_flight: int = Field(default=4, ge=0)
    timeout_seconds: float = Field(gt=0, le=840)
    max_retries: int = Field(ge=0, le=10)
    retry_delay_seconds: float = Field(ge=0, le=60)

    @model_validator(mode="before")
    @classmethod
    def _provider_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        try:
            provider = Provider(data.get("provider", ""))
        except ValueError:
            return data  # the field's own check names it
        defaults: dict[str, Any] = {
            **DEFAULT_TIMING[provider],
            "model": DEFAULT_MODELS[provider],
            "tier": DEFAULT_TIERS[provider],
        }
        return defaults | {k: v for k, v in data.items() if v is not None}


class EndpointsSecret(BaseModel):
    """What the secret holds. Unknown keys are an error that names them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoints: tuple[Endpoint, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [e.name for e in self.endpoints]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"endpoint names must be unique, {', '.join(twice)} is used twice")
        return self

    def tiers(self) -> Iterator[tuple[Endpoint, ...]]:
        """Endpoints grouped by tier, the first to be tried first."""
        for tier in sorted({e.tier for e in self.endpoints}):
            yield tuple(e for e in self.endpoints if e.tier == tier)


def parse_endpoints(text: str) -> EndpointsSecret:
    """The secret's JSON, checked. Raises ConfigurationError that names fields, never a value."""
    try:
        return EndpointsSecret.model_validate_json(text)
    except ValidationError as error:
        # The original error is left behind on purpose: it may carry what was typed.
        raise ConfigurationError(
            describe_validation(error, "the endpoints are not usable")
        ) from None


# The endpoints secret from the environment variables that bulk editing scripts already use.
#
# For each provider P (OPENAI, GEMINI), `DG_P_…` before `P_…`:
#
# | variable | meaning |
# |---|---|
# | `P_API_KEY` (Gemini also `GOOGLE_GENAI_API_KEY`, `GOOGLE_API_KEY`) | one key |
# | `P_API_KEYS` | several for every endpoint, comma-separated; or a group per endpoint (`;`, `|`) |
# | `P_API_BASE`, `P_BASE_URL` | one base URL |
# | `P_ENDPOINTS` | several base URLs, comma-separated; an empty item is the provider's own |
# | `P_RATE_LIMIT` | requests per minute of each endpoint, 0 for none |
# | `P_RATE_LIMITS`, `P_WEIGHTS` | one number per endpoint, comma-separated |
# | `P_TIMEOUT`, `P_MAX_RETRIES`, `P_RETRY_DELAY`, `P_API_VERSION`, `P_MODEL` | of each endpoint |
#
# What is not set gets the endpoint's default. Gemini is the first tier, OpenAI the second.


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
        raise ConfigurationError(_describe(error, found)) from None


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


def _describe(error: ValidationError, endpoints: list[dict[str, Any]]) -> str:
    """The problems, with each endpoint by its name instead of its position."""
    text = describe_validation(error, "the environment gives an endpoint that is not usable")
    for position, endpoint in enumerate(endpoints):
        text = text.replace(f"endpoints[{position}]", str(endpoint["name"]))
    return text
