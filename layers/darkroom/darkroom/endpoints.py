"""The endpoints secret: who may be called, with which keys, inside which limits."""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from darkroom.calls import Provider
from darkroom.errors import ConfigurationError

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
        faults = error.errors(include_input=False, include_url=False, include_context=False)
        told = "; ".join(f"{_field(f['loc'])}: {f['msg']}" for f in faults[:5])
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""  # noqa: PLR2004
        # The original error is left behind on purpose: it may carry what was typed.
        raise ConfigurationError(f"the endpoints are not usable: {told}{more}") from None


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "secret"
