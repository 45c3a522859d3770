"""Endpoints, the secret that lists them, and making it from environment variables.

Bulk editing scripts already use the variables: docs/limits.md lists them. What is not set gets the
provider's default from `providers/registry.py`.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from darkroom.errors import ConfigurationError
from darkroom.formatting import describe_validation
from darkroom.providers.registry import PROVIDERS, Provider

_DEFAULTS_BY_PROVIDER = ("model", "tier", "timeout_seconds", "max_retries", "retry_delay_seconds")
# A worker has 900 s. Beside its calls, a row needs time:
SLOT_WAIT_SECONDS = 20.0  # for its slot at each tier
AFTER_CALL_SECONDS = 30.0  # after a call, to store the image and settle the row
_BEFORE_CALL_SECONDS = 60.0  # to claim the row and load its images
_MAX_CALL_SECONDS = 900 - SLOT_WAIT_SECONDS - AFTER_CALL_SECONDS - _BEFORE_CALL_SECONDS
_MAX_PRICE = 1_000_000.0  # US dollars
_NO_ENDPOINTS = re.compile(r'\s*\{\s*("endpoints"\s*:\s*\[\s*\]\s*)?\}\s*')
_BASE_URL = re.compile(r"https?://[^/\s]")
_COMMON_SETTINGS = {  # suffix of the variable -> field of every endpoint
    "TIMEOUT": "timeout_seconds",
    "MAX_RETRIES": "max_retries",
    "RETRY_DELAY": "retry_delay_seconds",
    "API_VERSION": "api_version",
    "MODEL": "model",
}


def key_fingerprint(key: SecretStr) -> str:
    """Short digest that identifies a key in logs and state without showing it."""
    return hashlib.sha256(key.get_secret_value().encode()).hexdigest()[:12]


class Prices(BaseModel):
    """An endpoint's own rates, in US dollars; what is not given is as in the model catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    text_in: float | None = Field(default=None, ge=0, le=_MAX_PRICE)  # per million tokens
    image_in: float | None = Field(default=None, ge=0, le=_MAX_PRICE)
    image_out: float | None = Field(default=None, ge=0, le=_MAX_PRICE)
    text_out: float | None = Field(default=None, ge=0, le=_MAX_PRICE)
    image: float | None = Field(default=None, ge=0, le=_MAX_PRICE)  # of one image


class Endpoint(BaseModel):
    """One quota at one provider: a base URL, a model, and the keys that share its limits.

    The limits (`requests_…`, `images_…`, `input_images_…`, `max_in_flight`): 0 means no limit.
    Times in seconds. `weight` 0 drains the endpoint: rows in progress finish, no others start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    provider: Provider
    tier: int = Field(default=1, ge=1)
    api_keys: tuple[SecretStr, ...] = ()
    base_url: str | None = None
    api_version: str | None = None  # Azure OpenAI, or Gemini's (default v1)
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)  # sent with every call
    organization: str | None = None  # OpenAI's
    project: str | None = None  # OpenAI's, or the Google Cloud project
    location: str | None = None  # Google Cloud's: the endpoint is on its enterprise platform
    credentials: SecretStr | None = None  # Google Cloud's JSON, in place of `api_keys`
    model: str
    model_is: str | None = None  # the catalogue's model behind a deployment's own name
    quality: str | None = None  # of rows without one
    service_tier: Literal["flex"] | None = None
    prices: Prices = Prices()
    weight: float = Field(default=1, ge=0, le=1e6)
    requests_per_minute: int = Field(default=10, ge=0)
    images_per_minute: int = Field(default=0, ge=0)
    input_images_per_minute: int = Field(default=0, ge=0)
    burst: int = Field(default=1, ge=1)
    requests_per_day: int = Field(default=0, ge=0)
    max_in_flight: int = Field(default=4, ge=0)
    timeout_seconds: float = Field(gt=0)
    max_retries: int = Field(ge=0, le=10)
    retry_delay_seconds: float = Field(ge=0, le=60)

    @model_validator(mode="before")
    @classmethod
    def _add_provider_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        try:
            entry = PROVIDERS[Provider(data.get("provider", ""))]
        except ValueError:
            return data  # the field's own validation reports it
        defaults = {name: getattr(entry, name) for name in _DEFAULTS_BY_PROVIDER}
        given = {name: value for name, value in data.items() if value is not None}
        if isinstance(given.get("credentials"), dict):
            given["credentials"] = json.dumps(given["credentials"])
        return defaults | given

    @model_validator(mode="after")
    def _has_keys_or_credentials(self) -> Self:
        if not self.keys:
            raise ValueError('api_keys: is missing or empty, write a list such as ["…"]')
        if self.credentials is not None and self.api_keys:
            raise ValueError("credentials: takes the place of api_keys, remove one of them")
        return self

    def key_ids(self) -> dict[str, SecretStr]:
        """The keys by what a cooldown belongs to: the key with the model and the base URL."""
        target = f"\n{self.model}\n{self.base_url or ''}"
        return {
            key_fingerprint(SecretStr(key.get_secret_value() + target)): key for key in self.keys
        }

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        """What calls authenticate with: the API keys, or the credentials as the only one."""
        return self.api_keys or ((self.credentials,) if self.credentials else ())


class EndpointsSecret(BaseModel):
    """The content of the secret. An unknown field is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoints: tuple[Endpoint, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [e.name for e in self.endpoints]
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"endpoint names must be unique, {', '.join(repeated)} is used twice")
        return self

    @model_validator(mode="after")
    def _calls_fit_into_a_workers_time(self) -> Self:
        longest = [max(e.timeout_seconds for e in tier) for tier in self.tiers()]
        at_most = _MAX_CALL_SECONDS - (len(longest) - 1) * SLOT_WAIT_SECONDS
        if sum(longest) > at_most:
            what = "a call" if len(longest) == 1 else "one call at each tier"
            raise ValueError(
                f"timeout_seconds: {what} may take {sum(longest):g} s, but a worker has at most "
                f"{at_most:g} s for it; shorten the time-outs"
            )
        return self

    def tiers(self) -> Iterator[tuple[Endpoint, ...]]:
        """Endpoints grouped by tier, in the order in which the tiers are tried."""
        for tier in sorted({e.tier for e in self.endpoints}):
            yield tuple(e for e in self.endpoints if e.tier == tier)


def parse_endpoints(text: str) -> EndpointsSecret:
    """Validate the secret's JSON. Raises ConfigurationError that names fields, never a value."""
    if not text.strip() or _NO_ENDPOINTS.fullmatch(text):
        raise ConfigurationError(
            "no endpoints are configured: push them with `darkroom endpoints push FILE`"
        )
    try:
        return EndpointsSecret.model_validate_json(text)
    except ValidationError as error:
        # Not chained: the original error may contain what was typed.
        raise ConfigurationError(
            describe_validation(error, "the endpoints are not usable")
        ) from None


def endpoints_from_environment(environment: Mapping[str, str]) -> EndpointsSecret:
    """Raises ConfigurationError with the variable and what to do, never with a key."""
    found = [
        endpoint
        for provider in PROVIDERS
        for endpoint in _endpoints_of(_ProviderVariables(environment, provider))
    ]
    if not found:
        keys = [name for entry in PROVIDERS.values() for name in entry.key_variables]
        raise ConfigurationError(
            "no provider is set in the environment: set "
            f"{', '.join(keys[:-1])} or {keys[-1]}, or a list of keys such as DG_OPENAI_API_KEYS"
        )
    try:
        return EndpointsSecret.model_validate({"endpoints": found})
    except ValidationError as error:
        text = describe_validation(error, "the environment gives an endpoint that is not usable")
    for position, endpoint in enumerate(found):
        text = text.replace(f"endpoints[{position}]", str(endpoint["name"]))
    raise ConfigurationError(text)


class _Variable(NamedTuple):
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class _ProviderVariables:
    """The variables of one provider; an empty one counts as not set."""

    environment: Mapping[str, str]
    provider: Provider

    def find(self, *suffixes: str) -> _Variable | None:
        """The first that is set, `DG_…` before plain."""
        prefix = self.provider.value.upper()
        return self.first(f"{dg}{prefix}_{s}" for s in suffixes for dg in ("DG_", ""))

    def first(self, names: Iterable[str]) -> _Variable | None:
        found = (_Variable(name, self.environment.get(name, "").strip()) for name in names)
        return next((variable for variable in found if variable.value), None)


def _endpoints_of(variables: _ProviderVariables) -> list[dict[str, Any]]:
    """Fields of the provider's endpoints; empty when it has no key."""
    provider = variables.provider.value
    base_urls = variables.find("ENDPOINTS", "API_BASE", "BASE_URL")
    urls = _base_urls(base_urls)
    keys = _keys(variables, len(urls))
    if not keys:
        if base_urls is None:
            return []
        raise ConfigurationError(
            f"{base_urls.name} is set but no key: set {provider.upper()}_API_KEY "
            f"or DG_{provider.upper()}_API_KEYS"
        )
    settings = {
        field: variable.value
        for suffix, field in _COMMON_SETTINGS.items()
        if (variable := variables.find(suffix)) is not None
    }
    limits = _one_each(variables, len(urls), "RATE_LIMITS", "RATE_LIMIT")
    weights = _one_each(variables, len(urls), "WEIGHTS")
    return [
        {
            "name": f"{provider}-{position + 1}" if len(urls) > 1 else provider,
            "provider": provider,
            "base_url": url,
            "api_keys": [SecretStr(key) for key in keys[position]],
            "requests_per_minute": limits[position],
            "weight": weights[position],
            **settings,
        }
        for position, url in enumerate(urls)
    ]


def _base_urls(variable: _Variable | None) -> list[str | None]:
    """One per endpoint; None is the provider's own."""
    if variable is None:
        return [None]
    urls = [url.strip() or None for url in variable.value.split(",")]
    for position, url in enumerate(urls, 1):
        if url is not None and not _BASE_URL.match(url):
            raise ConfigurationError(
                f"{variable.name}: item {position} is not a base URL; start it with https://"
            )
    return urls


def _keys(variables: _ProviderVariables, endpoints: int) -> list[list[str]]:
    """One list of keys per endpoint; empty when no key is set."""
    variable = variables.find("API_KEYS")
    if variable is None:
        one = variables.first(PROVIDERS[variables.provider].key_variables)
        return [[one.value]] * endpoints if one else []
    groups = [
        [key.strip() for key in group.split(",") if key.strip()]
        for group in re.split(r"[;|]", variable.value)
    ]
    if len(groups) == 1:
        groups *= endpoints
    if len(groups) != endpoints:
        raise ConfigurationError(
            f"{variable.name} has {len(groups)} groups of keys for {endpoints} endpoint(s): write "
            "one group per endpoint, separated by ;, or one list for all"
        )
    for position, group in enumerate(groups, 1):
        if not group:
            raise ConfigurationError(f"{variable.name}: group {position} has no key")
    return groups


def _one_each(
    variables: _ProviderVariables, endpoints: int, suffix: str, *common: str
) -> list[float | None]:
    """One number per endpoint: of its own, the `common` variable's, or None for the default."""
    own = variables.find(suffix)
    variable = own or variables.find(*common)
    if variable is None:
        return [None] * endpoints
    try:
        numbers = [float(item) for item in (variable.value.split(",") if own else [variable.value])]
    except ValueError:
        raise ConfigurationError(
            f"{variable.name} contains something that is not a number"
        ) from None
    if own is None:
        numbers *= endpoints
    if len(numbers) != endpoints:
        raise ConfigurationError(
            f"{variable.name} has {len(numbers)} number(s) for {endpoints} endpoint(s): write one "
            "for each"
        )
    return [*numbers]
