"""The endpoints secret: defaults, validation, and keys that never show."""

import json

import pytest
from pydantic import SecretStr, ValidationError

from darkroom.endpoints import Endpoint, EndpointsSecret, key_fingerprint

KEY = "sk-very-secret-1234"


def _secret(**fields: object) -> EndpointsSecret:
    endpoint = {"name": "a", "provider": "gemini", "api_keys": [KEY], **fields}
    return EndpointsSecret.model_validate_json(json.dumps({"endpoints": [endpoint]}))


@pytest.mark.parametrize(
    ("provider", "tier", "timing"), [("gemini", 1, (60, 2, 5)), ("openai", 2, (300, 0, 1))]
)
def test_a_providers_defaults_are_those_of_the_fallback_guide(
    provider: str, tier: int, timing: tuple[float, int, float]
) -> None:
    (endpoint,) = _secret(provider=provider).endpoints
    seconds, retries, delay = timing
    assert (endpoint.timeout_seconds, endpoint.max_retries) == (seconds, retries)
    assert endpoint.retry_delay_seconds == delay
    assert (endpoint.tier, endpoint.requests_per_minute, endpoint.max_in_flight) == (tier, 10, 4)


def test_null_means_the_default() -> None:
    (endpoint,) = _secret(base_url=None, model=None).endpoints
    assert endpoint.model == "gemini-3-pro-image"


def test_unknown_key_is_an_error_that_names_it() -> None:
    with pytest.raises(ValidationError, match="request_per_minute"):
        _secret(request_per_minute=3)


@pytest.mark.parametrize(
    "fields",
    [
        {"provider": "gemnii"},
        {"weight": 0},
        {"api_keys": []},
        {"api_keys": [KEY, 5]},
        {"name": "no spaces"},
        {"timeout_seconds": 900},
        {"surprise": KEY},
    ],
)
def test_validation_errors_never_show_a_key(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        _secret(**fields)
    assert KEY not in str(caught.value)


def test_a_key_is_not_in_repr_or_dump_but_has_a_fingerprint() -> None:
    (endpoint,) = _secret().endpoints
    assert KEY not in repr(endpoint)
    assert KEY not in endpoint.model_dump_json()
    assert key_fingerprint(SecretStr(KEY)) != key_fingerprint(SecretStr(KEY + "x"))
    assert KEY not in key_fingerprint(SecretStr(KEY))


def test_two_endpoints_cannot_share_a_name() -> None:
    one = {"name": "a", "provider": "gemini", "api_keys": [KEY]}
    with pytest.raises(ValidationError, match="a is used twice"):
        EndpointsSecret.model_validate({"endpoints": [one, one]})


def test_tiers_are_ordered_from_the_first() -> None:
    def endpoint(name: str, tier: int) -> Endpoint:
        return Endpoint.model_validate(
            {"name": name, "provider": "gemini", "api_keys": [KEY], "tier": tier}
        )

    secret = EndpointsSecret(endpoints=(endpoint("c", 3), endpoint("a", 1), endpoint("b", 1)))
    assert [[e.name for e in tier] for tier in secret.tiers()] == [["a", "b"], ["c"]]
