"""Endpoints, the secret that lists them, and making it from environment variables.

Bulk editing scripts already use the variables: docs/limits.md lists them. What is not set gets the
provider's default from `providers/registry.py`.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from darkroom.csv_input.values import parse_model
from darkroom.errors import ConfigurationError
from darkroom.formatting import describe_validation, plural
from darkroom.providers.registry import PROVIDERS, Provider
from darkroom.rows import Quality

_DEFAULTS_BY_PROVIDER = ("model", "tier", "timeout_seconds", "max_retries", "retry_delay_seconds")
# A worker has 900 s. Beside its calls, a row needs time:
SLOT_WAIT_SECONDS = 20.0  # for its slot at each tier
AFTER_CALL_SECONDS = 30.0  # after a call, to store the image and settle the row
BEFORE_CALL_SECONDS = 60.0  # to claim the row and load its images
WORKER_SECONDS = 900.0
_MAX_PRICE = 1_000_000.0  # US dollars
MAX_TIMEOUT_SECONDS = 780.0  # of a call
# What an HTTP header can carry. Examples in documentation have dots in place of a key.
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")
_PLACEHOLDER = re.compile(r".*(…|\.\.\.).*|<.*>|\*+|your[-_ ].*", re.IGNORECASE | re.DOTALL)


def key_fingerprint(key: SecretStr) -> str:
    """Short digest that identifies a key in logs and state without showing it."""
    return hashlib.sha256(key.get_secret_value().encode()).hexdigest()[:12]


# Validators never include the value in a message: what was typed may be a key.


def _check_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text:
        raise ValueError("is empty")
    if _PLACEHOLDER.fullmatch(text):
        raise ValueError("is a placeholder of an example, put your key in its place")
    if _PRINTABLE.fullmatch(text) is None:
        raise ValueError("contains a blank, a line break or a character that no key has")
    return key


def _check_base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or _PRINTABLE.fullmatch(url) is None:
        raise ValueError("is not a URL such as https://host/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError("contains a user or password, put the key into api_keys or headers")
    if parts.query or parts.fragment:
        raise ValueError("contains a query, write the part before the question mark")
    return url


def _check_model(name: str) -> str:
    try:
        return parse_model(name)
    except ValueError:
        raise ValueError("is not a valid model name") from None


def _check_credentials(credentials: SecretStr) -> SecretStr:
    try:
        content = json.loads(credentials.get_secret_value())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or "type" not in content:
        raise ValueError("is not the JSON of a service account or of a workload identity")
    return credentials


def _project_of(credentials: Any) -> str | None:
    """The project of a service account; a workload identity names none."""
    try:
        project = json.loads(credentials)["project_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return project if isinstance(project, str) else None


type _Price = Annotated[float, Field(ge=0, le=_MAX_PRICE)]
type _ModelName = Annotated[str, AfterValidator(_check_model)]
type _Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$")]


class Prices(BaseModel):
    """An endpoint's own rates, in US dollars; what is not given is as in the model catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    text_in: _Price | None = None  # per million tokens
    image_in: _Price | None = None
    image_out: _Price | None = None
    text_out: _Price | None = None
    image: _Price | None = None  # of one image


class Endpoint(BaseModel):
    """One quota at one provider: a base URL, a model, and the keys that share its limits.

    The limits (`requests_…`, `images_…`, `input_images_…`, `max_in_flight`): 0 means no limit.
    Times in seconds. `weight` 0 drains the endpoint: rows in progress finish, no others start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    provider: Provider
    tier: int = Field(default=1, ge=1)
    api_keys: tuple[Annotated[SecretStr, AfterValidator(_check_key)], ...] = ()
    base_url: Annotated[str, AfterValidator(_check_base_url)] | None = None
    api_version: _Id | None = None  # Azure OpenAI, or Gemini's (default v1)
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)  # sent with every call
    organization: _Id | None = None  # OpenAI's
    project: _Id | None = None  # OpenAI's, or the Google Cloud project
    location: _Id | None = None  # Google Cloud's: the endpoint is on its enterprise platform
    # Google Cloud's JSON, in place of `api_keys`
    credentials: Annotated[SecretStr, AfterValidator(_check_credentials)] | None = None
    model: _ModelName
    model_is: _ModelName | None = None  # the catalogue's model behind a deployment's own name
    quality: Quality | None = None  # of rows without one
    service_tier: Literal["flex"] | None = None
    prices: Prices = Prices()
    weight: float = Field(default=1, ge=0, le=1e6)
    requests_per_minute: int = Field(default=10, ge=0)
    images_per_minute: int = Field(default=0, ge=0)
    input_images_per_minute: int = Field(default=0, ge=0)
    burst: int = Field(default=1, ge=1)
    requests_per_day: int = Field(default=0, ge=0)
    max_in_flight: int = Field(default=4, ge=0)
    timeout_seconds: float = Field(gt=0, le=MAX_TIMEOUT_SECONDS)
    max_retries: int = Field(ge=0, le=10)
    retry_delay_seconds: float = Field(ge=0, le=60)

    @model_validator(mode="before")
    @classmethod
    def _add_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        # An unknown provider is one error, not one more for each of its defaults.
        known = given.get("provider") in list(Provider)
        entry = PROVIDERS[Provider(given["provider"]) if known else next(iter(Provider))]
        defaults: dict[str, Any] = {name: getattr(entry, name) for name in _DEFAULTS_BY_PROVIDER}
        if "credentials" in given:
            defaults["location"] = "global"
            if not given.get("api_keys"):
                given.pop("api_keys", None)
            if isinstance(given["credentials"], dict):
                given["credentials"] = json.dumps(given["credentials"])
            defaults["project"] = _project_of(given["credentials"])
        else:
            defaults["api_keys"] = ()
        return defaults | given

    @field_validator("api_keys", mode="before")
    @classmethod
    def _is_a_list_of_keys(cls, keys: Any) -> Any:
        if isinstance(keys, str | SecretStr):
            raise ValueError('write a list: ["…"]')  # noqa: TRY004 - pydantic reports ValueErrors
        if not keys:
            raise ValueError('is missing or empty, write a list: ["…"]')
        return keys

    @field_validator("headers")
    @classmethod
    def _headers_can_be_sent(cls, headers: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(
                value.get_secret_value()
            ):
                raise ValueError("contains a name or value that an HTTP header cannot have")
        return headers

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        entry = PROVIDERS[self.provider]
        if self.credentials is not None and self.api_keys:
            raise ValueError("credentials take the place of api_keys, remove one of them")
        if self.project is None and (self.credentials or self.location not in (None, "global")):
            raise ValueError("project is missing: write the ID of the Google Cloud project")
        if self.timeout_seconds < entry.min_timeout_seconds:
            raise ValueError(
                f"timeout_seconds: {entry.display_name} rejects deadlines under "
                f"{entry.min_timeout_seconds:g} seconds, write a longer one"
            )
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

    endpoints: tuple[Endpoint, ...]

    @model_validator(mode="before")
    @classmethod
    def _has_a_list_of_endpoints(cls, data: Any) -> Any:
        endpoints = data.get("endpoints", ()) if isinstance(data, dict) else None
        if not isinstance(endpoints, list | tuple):
            raise ValueError('write an object with a list: {"endpoints": [{"name": …}, …]}')  # noqa: TRY004 - pydantic reports ValueErrors
        return data

    @field_validator("endpoints")
    @classmethod
    def _names_are_unique(cls, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        if not endpoints:
            raise ValueError("is empty, list at least one endpoint")
        names = [e.name for e in endpoints]
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"endpoint names must be unique, {', '.join(repeated)} is used twice")
        return endpoints

    @model_validator(mode="after")
    def _calls_fit_into_a_workers_time(self) -> Self:
        longest = [max(e.timeout_seconds for e in tier) for tier in self.tiers()]
        at_most = MAX_TIMEOUT_SECONDS - (len(longest) - 1) * SLOT_WAIT_SECONDS
        if sum(longest) > at_most:
            raise ValueError(
                f"timeout_seconds: one call at each tier may take {sum(longest):g} s, but a worker "
                f"has at most {at_most:g} s for all of them; shorten the time-outs"
            )
        return self

    def tiers(self) -> Iterator[tuple[Endpoint, ...]]:
        """Endpoints grouped by tier, in the order in which the tiers are tried."""
        for tier in sorted({e.tier for e in self.endpoints}):
            yield tuple(e for e in self.endpoints if e.tier == tier)


# Other names that people and other tools use, with the fields they mean.
_FIELDS = {name: name for kind in (EndpointsSecret, Endpoint, Prices) for name in kind.model_fields}
_FIELDS |= {
    **dict.fromkeys(("rpm", "rate_limit", "requests_per_min"), "requests_per_minute"),
    **dict.fromkeys(("ipm", "images_per_min"), "images_per_minute"),
    **dict.fromkeys(("key", "token", "secret"), "api_keys"),
    **dict.fromkeys(("url", "endpoint", "api_base", "azure_endpoint"), "base_url"),
    **dict.fromkeys(("concurrency", "max_concurrent", "max_workers"), "max_in_flight"),
    "rpd": "requests_per_day",
    "retries": "max_retries",
    "retry_delay": "retry_delay_seconds",
    "deployment": "model",
    "priority": "tier",
    "type": "provider",
    "id": "name",
}


def parse_endpoints(text: str, subject: str = "the endpoints are not usable") -> EndpointsSecret:
    """Validate the secret's JSON. Raises ConfigurationError that names fields, never a value."""
    try:
        return EndpointsSecret.model_validate_json(text)
    except ValidationError as error:
        # Not chained: the original error may contain what was typed.
        raise ConfigurationError(describe_validation(error, subject, _FIELDS)) from None


# --- from environment variables -----------------------------------------------------------------

_COMMON_SETTINGS = {  # suffix of the variable -> field of every endpoint
    "TIMEOUT": "timeout_seconds",
    "MAX_RETRIES": "max_retries",
    "RETRY_DELAY": "retry_delay_seconds",
    "API_VERSION": "api_version",
    "MODEL": "model",
}
_ACCOUNT_SETTINGS = {"ORG_ID": "organization", "PROJECT_ID": "project"}  # at the provider's own URL
_SUFFIXES = {  # field -> suffix of its variable
    **{field: suffix for suffix, field in (_COMMON_SETTINGS | _ACCOUNT_SETTINGS).items()},
    "api_keys": "API_KEYS",
    "base_url": "BASE_URL",
    "requests_per_minute": "RATE_LIMIT",
    "weight": "WEIGHTS",
}
_URL_SUFFIXES = ("ENDPOINTS", "API_BASE", "BASE_URL")
_LIST_SUFFIXES = ("API_KEYS", "RATE_LIMITS", "RATE_LIMIT", "WEIGHTS")
_IMAGES_PER_MINUTE, _CONCURRENT = "IMAGE_GEN_IPM", "IMAGE_GEN_MAX_CONCURRENT"
_REPLACED = {  # variables of other tools that have no field of their own
    "MAX_WORKERS": "calls at a time are max_in_flight of an endpoint (4), over all workers"
}


def endpoints_from_environment(environment: Mapping[str, str]) -> EndpointsSecret:
    """Raises ConfigurationError with the variable and what to do, never with a key."""
    found = [
        endpoint
        for provider in PROVIDERS
        for endpoint in _endpoints_of(_ProviderVariables(environment, provider))
    ]
    if not found:
        keys = [name for entry in PROVIDERS.values() for name in entry.key_variables]
        unread = "".join(f". {note.rstrip('.')}" for note in _unread_variables(environment))
        raise ConfigurationError(
            "no provider is set in the environment: set "
            f"{', '.join(keys[:-1])} or {keys[-1]}, or a list of keys such as DG_OPENAI_API_KEYS"
            f"{unread}"
        )
    try:
        return EndpointsSecret.model_validate({"endpoints": found})
    except ValidationError as error:
        text = describe_validation(error, "the environment gives an endpoint that is not usable")
    for position, endpoint in enumerate(found):
        text = text.replace(f"endpoints[{position}]", str(endpoint["name"]))
    raise ConfigurationError(text)


def environment_notes(environment: Mapping[str, str], secret: EndpointsSecret) -> Iterator[str]:
    """What differs on purpose from the tools that use the variables, and what was not read."""
    limited = {_IMAGES_PER_MINUTE}
    for provider in Provider:
        variables = _ProviderVariables(environment, provider)
        named = [e for e in secret.endpoints if e.provider is provider]
        rate = variables.find("RATE_LIMITS", "RATE_LIMIT") or variables.first(limited)
        if named and rate is None:
            yield (
                f"{', '.join(e.name for e in named)}: {named[0].requests_per_minute} calls a "
                f"minute, since no limit is set; DG_{provider.value.upper()}_RATE_LIMIT changes "
                "that (0: no limit)."
            )
        for suffix, replacement in _REPLACED.items():
            if variable := variables.find(suffix):
                yield f"{variable.name} is not used: {replacement}."
    yield from _unread_variables(environment)


def _unread_variables(environment: Mapping[str, str]) -> Iterator[str]:
    suffixes = (*_URL_SUFFIXES, *_LIST_SUFFIXES, *_COMMON_SETTINGS, *_ACCOUNT_SETTINGS, *_REPLACED)
    prefixes = [f"{dg}{p.value.upper()}_" for p in Provider for dg in ("DG_", "")]
    read = {prefix + suffix for prefix in prefixes for suffix in suffixes}
    read |= {_IMAGES_PER_MINUTE, _CONCURRENT}
    read |= set(chain.from_iterable(entry.key_variables for entry in PROVIDERS.values()))
    for name in sorted(environment.keys() - read):
        plural_name = re.sub(r"_?\d+$", "S", name)  # OPENAI_API_KEY_2: several are in …_KEYS
        close = get_close_matches(plural_name, read, n=1, cutoff=0.85)
        prefix = next((p for p in prefixes if name.startswith(p)), "")
        if field := _FIELDS.get(name.removeprefix(prefix).lower()) if prefix else None:
            close = [prefix + _SUFFIXES[field]] if field in _SUFFIXES else close
        if close and prefix:
            yield f"{name} is not used: did you mean {close[0]}?"
        elif name.startswith(("DG_", "IMAGE_GEN_")):
            yield f"{name} is not used."


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

    def settings(self, fields: Mapping[str, str]) -> dict[str, str]:
        """The values that are set, by the names that `fields` has for their suffixes."""
        found = {field: self.find(suffix) for suffix, field in fields.items()}
        return {field: variable.value for field, variable in found.items() if variable}

    def first(self, names: Iterable[str]) -> _Variable | None:
        found = (_Variable(name, self.environment.get(name, "").strip()) for name in names)
        return next((variable for variable in found if variable.value), None)


def _endpoints_of(variables: _ProviderVariables) -> list[dict[str, Any]]:
    """Fields of the provider's endpoints; empty when it has no key."""
    provider = variables.provider.value
    base_urls = variables.find(*_URL_SUFFIXES)
    groups = _key_groups(variables)
    if not groups:
        if base_urls is None:
            return []
        raise ConfigurationError(
            f"{base_urls.name} is set but no key: set {provider.upper()}_API_KEY "
            f"or DG_{provider.upper()}_API_KEYS"
        )
    # Without base URLs each group of keys is a quota of its own, at the provider's own.
    urls = [None] * len(groups) if base_urls is None else _base_urls(base_urls)
    keys = _keys(variables, groups, len(urls))
    common = variables.settings(_COMMON_SETTINGS)
    account = variables.settings(_ACCOUNT_SETTINGS)
    shared = _shared_limits(variables)
    limits = _one_each(variables, len(urls), "RATE_LIMITS", "RATE_LIMIT")
    weights = _one_each(variables, len(urls), "WEIGHTS")
    return [
        {
            "name": f"{provider}-{position + 1}" if len(urls) > 1 else provider,
            "provider": provider,
            "base_url": url,
            "api_keys": [SecretStr(key) for key in keys[position]],
            **shared,
            **({} if limits[position] is None else {"requests_per_minute": limits[position]}),
            "weight": weights[position],
            **common,
            **(account if url is None else {}),
        }
        for position, url in enumerate(urls)
    ]


def _shared_limits(variables: _ProviderVariables) -> dict[str, Any]:
    """Limits of every endpoint; a call makes one image at least."""
    fields: dict[str, Any] = {}
    for name, limits in (
        (_IMAGES_PER_MINUTE, ("images_per_minute", "requests_per_minute")),
        (_CONCURRENT, ("max_in_flight",)),
    ):
        if variable := variables.first([name]):
            if re.fullmatch(r"[0-9]{1,9}", variable.value) is None:
                raise ConfigurationError(f"{name} is not a whole number such as 60 (0: no limit)")
            fields |= dict.fromkeys(limits, variable.value)
    return fields


def _base_urls(variable: _Variable) -> list[str | None]:
    """One per endpoint; None is the provider's own."""
    urls = [url.strip() or None for url in variable.value.split(",")]
    for position, url in enumerate(urls, 1):
        try:
            if url is not None:
                _check_base_url(url)
        except ValueError as error:
            raise ConfigurationError(f"{variable.name}: item {position} {error}") from None
    return urls


def _key_groups(variables: _ProviderVariables) -> list[list[str]]:
    """The lists of keys, one or one per endpoint; empty when no key is set."""
    variable = variables.find("API_KEYS")
    if variable is None:
        one = variables.first(PROVIDERS[variables.provider].key_variables)
        return [[one.value]] if one else []
    groups = [
        [key.strip() for key in group.split(",") if key.strip()]
        for group in re.split(r"[;|]", variable.value)
    ]
    for position, group in enumerate(groups, 1):
        if not group:
            raise ConfigurationError(f"{variable.name}: group {position} has no key")
    return groups


def _keys(
    variables: _ProviderVariables, groups: list[list[str]], endpoints: int
) -> list[list[str]]:
    """One list of keys per endpoint."""
    if len(groups) == 1:
        return groups * endpoints
    if len(groups) != endpoints:
        variable = variables.find("API_KEYS")
        raise ConfigurationError(
            f"{variable.name if variable else ''} has {len(groups)} groups of keys for "
            f"{plural(endpoints, 'endpoint')}: write one group per endpoint, separated by ;, or "
            "one list for all"
        )
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
            f"{variable.name} has {plural(len(numbers), 'number')} for "
            f"{plural(endpoints, 'endpoint')}: write one for each"
        )
    return [*numbers]
