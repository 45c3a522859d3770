"""The endpoints secret: defaults, validation, keys that never show, and environment variables."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from darkroom.endpoints import (
    Endpoint,
    EndpointsSecret,
    endpoints_from_environment,
    environment_notes,
    key_fingerprint,
    parse_endpoints,
)
from darkroom.errors import ConfigurationError
from darkroom.formatting import describe_validation
from darkroom.providers.registry import Provider

KEY = "sk-very-secret-1234"


def secret(**fields: object) -> EndpointsSecret:
    endpoint = {"name": "a", "provider": "gemini", "api_keys": [KEY], **fields}
    return EndpointsSecret.model_validate_json(json.dumps({"endpoints": [endpoint]}))


@pytest.mark.parametrize(
    ("provider", "defaults"), [("gemini", (1, 60, 2, 5, 10, 4)), ("openai", (2, 300, 0, 1, 10, 4))]
)
def test_a_providers_defaults_are_those_of_the_fallback_guide(
    provider: str, defaults: tuple[float, ...]
) -> None:
    (e,) = secret(provider=provider).endpoints
    assert (e.tier, e.timeout_seconds, e.max_retries, e.retry_delay_seconds) == defaults[:4]
    assert (e.requests_per_minute, e.max_in_flight) == defaults[4:]


def test_null_means_the_default() -> None:
    (endpoint,) = secret(base_url=None, model=None).endpoints
    assert endpoint.model == "gemini-3-pro-image"


def test_unknown_key_is_an_error_that_names_it() -> None:
    with pytest.raises(ValidationError, match="request_per_minute"):
        secret(request_per_minute=3)


def test_unknown_keys_are_named_first_among_many_errors() -> None:
    wrong = dict.fromkeys(("weight", "burst", "tier", "max_retries", "max_in_flight"), "x")
    with pytest.raises(ValidationError) as error:
        secret(**wrong, request_per_minute=3)
    text = describe_validation(error.value)
    assert text.startswith("endpoints[0].request_per_minute: no such field; ")
    assert text.endswith("; and 1 more")


URL = "https://proxy.example/v1"
ONE_ERROR = [
    # What was written, and the whole sentence: each cause is one error.
    ({"rpm": 3}, "rpm: no such field, did you mean requests_per_minute?"),
    ({"Requests_Per_Min": 3}, "Requests_Per_Min: no such field, did you mean requests_per_minute?"),
    ({"api_key": KEY}, "api_key: no such field, did you mean api_keys?"),
    ({"surprise": KEY}, "surprise: no such field"),
    ({"prices": {"imge": 1}}, "prices.imge: no such field, did you mean image?"),
    ({"provider": "gemnii", "model": None}, "provider: input should be 'gemini' or 'openai'"),
    ({"provider": None}, "provider: is missing"),
    ({"api_keys": KEY}, 'api_keys: write a list: ["…"]'),
    ({"api_keys": []}, 'api_keys: is missing or empty, write a list: ["…"]'),
    ({"api_keys": None}, 'api_keys: is missing or empty, write a list: ["…"]'),
    ({"api_keys": [KEY, 5]}, "api_keys[1]: input should be a valid string"),
    ({"api_keys": [[KEY]]}, "api_keys[0]: input should be a valid string"),
    ({"api_keys": [""]}, "api_keys[0]: is empty"),
    *(
        ({"api_keys": [key]}, "api_keys[0]: is a placeholder of an example, put your key in its pl")
        for key in ("…", "...", "sk-…", "<your key>", "YOUR_API_KEY", "***")
    ),
    *(
        (
            {"api_keys": [key]},
            "api_keys[0]: contains a blank, a line break or a charact",
        )
        for key in (f"{KEY}\n", f"{KEY} ", f"a\r\nx-evil: {KEY}", f"{KEY}ü", f"{KEY}\u200b")
    ),
    (
        {"base_url": f"https://user:{KEY}@h/v1"},
        "base_url: contains a user or password, put",
    ),
    ({"base_url": f"https://h/v1?key={KEY}"}, "base_url: contains a query"),
    *(
        ({"base_url": url}, "base_url: is not a URL such as https://host/v1")
        for url in (
            "h/v1",
            "ftp://h",
            "https://",
            "https://h:99999",
            "https://h/a b",
            "https://h\n",
        )
    ),
    (
        {"headers": {"x y": "1"}},
        "headers: contains a name or value that an HTTP h",
    ),
    (
        {"headers": {"x": f"1\n{KEY}"}},
        "headers: contains a name or value that an HT",
    ),
    *(
        ({"model": model}, "model: is not a valid model name")
        for model in ("gemini/../x", "a\nb", "a b", "", KEY + "/")
    ),
    ({"model_is": "a/../b"}, "model_is: is not a valid model name"),
    ({"quality": "best"}, "quality: input should be 'auto', 'low'"),
    ({"service_tier": "fast"}, "service_tier: input should be 'flex'"),
    ({"prices": {"image": -1}}, "prices.image: input should be greater than or equal to 0"),
    ({"weight": -1}, "weight: input should be greater than or equal to 0"),
    ({"name": "no spaces"}, "name: string should match pattern"),
    ({"timeout_seconds": 900}, "timeout_seconds: input should be less than or equal to 780"),
    ({"credentials": "not json"}, "credentials: is not the JSON of a service account"),
    ({"credentials": {"type": "service_account"}}, ": credentials take the place of api_keys"),
    ({"api_keys": [], "credentials": {"type": "external_account"}}, ": project is missing"),
    ({"location": "europe-west4"}, ": project is missing"),
]


@pytest.mark.parametrize(("fields", "sentence"), ONE_ERROR)
def test_each_mistake_is_one_error_that_names_the_field_and_never_the_value(
    fields: dict[str, object], sentence: str
) -> None:
    endpoint = {"name": "a", "provider": "gemini", "api_keys": [KEY], **fields}
    with pytest.raises(ConfigurationError) as caught:
        parse_endpoints(json.dumps({"endpoints": [endpoint]}), "")
    assert str(caught.value).removeprefix("endpoints[0]").startswith((sentence, f".{sentence}"))
    assert "; " not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("text", ['{"endpoints": []}', "{}", '{"endpoint": []}', "[]", "{"])
def test_a_secret_without_endpoints_is_rejected(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not usable: "):
        parse_endpoints(text)


def test_the_fields_of_enterprise_access_are_read() -> None:
    account = {"type": "service_account", "private_key": KEY}
    (endpoint,) = secret(api_keys=None, credentials=account, project="my-project").endpoints
    assert (endpoint.project, endpoint.location) == ("my-project", "global")
    (key,) = endpoint.keys
    assert json.loads(key.get_secret_value()) == account
    assert KEY not in repr(endpoint)
    (endpoint,) = secret(headers={"cf-aig-authorization": KEY}, weight=0).endpoints
    assert KEY not in repr(endpoint)
    assert endpoint.weight == 0


def test_a_key_is_not_in_repr_or_dump_but_has_a_fingerprint() -> None:
    (endpoint,) = secret().endpoints
    assert KEY not in repr(endpoint)
    assert KEY not in endpoint.model_dump_json()
    assert key_fingerprint(SecretStr(KEY)) != key_fingerprint(SecretStr(KEY + "x"))
    assert KEY not in key_fingerprint(SecretStr(KEY))


def test_two_endpoints_cannot_share_a_name() -> None:
    one = {"name": "a", "provider": "gemini", "api_keys": [KEY]}
    with pytest.raises(ValidationError, match="a is used twice"):
        EndpointsSecret.model_validate({"endpoints": [one, one]})


def test_tiers_are_ordered_from_the_first() -> None:
    (endpoint,) = secret().endpoints
    listed = EndpointsSecret(
        endpoints=tuple(
            endpoint.model_copy(update={"name": name, "tier": tier})
            for name, tier in (("c", 3), ("a", 1), ("b", 1))
        )
    )
    assert [[e.name for e in tier] for tier in listed.tiers()] == [["a", "b"], ["c"]]


# --- from environment variables -----------------------------------------------------------------


def endpoints(**variables: str) -> tuple[Endpoint, ...]:
    return endpoints_from_environment(variables).endpoints


def keys(endpoint: Endpoint) -> list[str]:
    return [key.get_secret_value() for key in endpoint.api_keys]


def test_one_key_of_each_provider_gives_gemini_with_openai_as_fallback() -> None:
    first, second = endpoints(OPENAI_API_KEY="sk-1", GEMINI_API_KEY="g-1")
    assert (first.provider, second.provider) == (Provider.GEMINI, Provider.OPENAI)
    assert (first.name, first.tier, keys(first)) == ("gemini", 1, ["g-1"])
    assert (second.name, second.tier, keys(second)) == ("openai", 2, ["sk-1"])
    assert (first.requests_per_minute, first.max_in_flight, first.timeout_seconds) == (10, 4, 60)


@pytest.mark.parametrize("name", ["GOOGLE_GENAI_API_KEY", "GEMINI_API_KEY", "DG_GEMINI_API_KEY"])
def test_every_variable_for_the_gemini_key_is_read(name: str) -> None:
    (only,) = endpoints(**{name: "g"})
    assert (only.provider, keys(only)) == (Provider.GEMINI, ["g"])


def test_one_base_url_is_used() -> None:
    (only,) = endpoints(OPENAI_API_KEY="k", OPENAI_API_BASE="https://proxy.example/v1")
    assert only.base_url == "https://proxy.example/v1"


def test_lists_give_several_endpoints_that_share_all_keys() -> None:
    made = endpoints(
        DG_OPENAI_ENDPOINTS="https://a.example/v1, ,https://b.example/v1",
        DG_OPENAI_API_KEYS="k1,k2",
        DG_OPENAI_RATE_LIMITS="60,30,0",
        DG_OPENAI_WEIGHTS="3,1,2",
    )
    assert [e.name for e in made] == ["openai-1", "openai-2", "openai-3"]
    assert [e.base_url for e in made] == ["https://a.example/v1", None, "https://b.example/v1"]
    assert [keys(e) for e in made] == [["k1", "k2"]] * 3
    assert [e.requests_per_minute for e in made] == [60, 30, 0]
    assert [e.weight for e in made] == [3, 1, 2]


@pytest.mark.parametrize("separator", [";", "|"])
def test_each_group_of_keys_belongs_to_one_endpoint(separator: str) -> None:
    made = endpoints(
        DG_GEMINI_ENDPOINTS="https://a.example,https://b.example",
        DG_GEMINI_API_KEYS=f"k1,k2{separator}k3",
    )
    assert [keys(e) for e in made] == [["k1", "k2"], ["k3"]]


def test_one_rate_limit_applies_to_every_endpoint_unless_there_is_a_list() -> None:
    both = {"DG_OPENAI_ENDPOINTS": "https://a.example,https://b.example", "OPENAI_API_KEY": "k"}
    assert [e.requests_per_minute for e in endpoints(**both, DG_OPENAI_RATE_LIMIT="7")] == [7, 7]
    made = endpoints(**both, DG_OPENAI_RATE_LIMIT="7", DG_OPENAI_RATE_LIMITS="1,2")
    assert [e.requests_per_minute for e in made] == [1, 2]


def test_time_outs_retries_and_model_are_read() -> None:
    (only,) = endpoints(
        OPENAI_API_KEY="k",
        DG_OPENAI_TIMEOUT="120",
        DG_OPENAI_MAX_RETRIES="3",
        DG_OPENAI_RETRY_DELAY="2.5",
        DG_OPENAI_MODEL="gpt-image-2",
    )
    assert (only.timeout_seconds, only.max_retries, only.retry_delay_seconds) == (120, 3, 2.5)
    assert only.model == "gpt-image-2"


def test_the_dg_variable_takes_precedence_and_empty_means_not_set() -> None:
    (only,) = endpoints(DG_OPENAI_API_KEY="long", OPENAI_API_KEY="short", GEMINI_API_KEY=" ")
    assert keys(only) == ["long"]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "no provider is set"),
        ({"DG_OPENAI_ENDPOINTS": "https://a.example"}, "DG_OPENAI_ENDPOINTS is set but no key"),
        ({"OPENAI_API_KEY": "k", "OPENAI_API_BASE": "a.example"}, "OPENAI_API_BASE: item 1"),
        ({"OPENAI_API_KEY": "k", "DG_OPENAI_RATE_LIMIT": "many"}, "DG_OPENAI_RATE_LIMIT contains"),
        ({"OPENAI_API_KEY": "k", "DG_OPENAI_WEIGHTS": "1,2"}, "DG_OPENAI_WEIGHTS has 2 number"),
        ({"OPENAI_API_KEY": "k", "DG_OPENAI_WEIGHTS": "-1"}, "openai.weight: input should be gr"),
        ({"OPENAI_API_KEY": "k", "DG_OPENAI_RATE_LIMIT": "1.5"}, "openai.requests_per_minute"),
        ({"OPENAI_API_KEY": "k", "DG_OPENAI_TIMEOUT": "0"}, "openai.timeout_seconds"),
        (
            {"DG_OPENAI_API_KEYS": "a;b;c", "DG_OPENAI_ENDPOINTS": "https://a.b,https://c.d"},
            "DG_OPENAI_API_KEYS has 3 groups of keys for 2 endpoints",
        ),
        (
            {"DG_OPENAI_API_KEYS": "a;", "DG_OPENAI_ENDPOINTS": "https://a.b,https://c.d"},
            "group 2 has no key",
        ),
    ],
)
def test_a_mistake_is_reported_with_its_variable(variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        endpoints(**variables)
    assert sentence in str(caught.value)


def test_no_error_shows_a_key() -> None:
    for faulty in ({"DG_OPENAI_WEIGHTS": "-1"}, {"DG_OPENAI_TIMEOUT": "never"}):
        with pytest.raises(ConfigurationError) as caught:
            endpoints(OPENAI_API_KEY="sk-very-secret", **faulty)
        assert "sk-very-secret" not in str(caught.value)
        assert caught.value.__cause__ is None


def notes(**variables: str) -> list[str]:
    return [*environment_notes(variables, endpoints_from_environment(variables))]


def test_groups_of_keys_without_urls_are_quotas_of_their_own() -> None:
    made = endpoints(DG_GEMINI_API_KEYS="k1,k2;k3", DG_GEMINI_RATE_LIMITS="10,60")
    assert [e.name for e in made] == ["gemini-1", "gemini-2"]
    assert [keys(e) for e in made] == [["k1", "k2"], ["k3"]]
    assert [e.requests_per_minute for e in made] == [10, 60]
    assert [e.base_url for e in made] == [None, None]


def test_images_per_minute_and_concurrency_of_the_fallback_guide_are_read() -> None:
    limits = {"IMAGE_GEN_IPM": "60", "IMAGE_GEN_MAX_CONCURRENT": "8"}
    first, second = endpoints(GEMINI_API_KEY="g", OPENAI_API_KEY="o", **limits)
    for endpoint in (first, second):
        assert (endpoint.images_per_minute, endpoint.requests_per_minute) == (60, 60)
        assert endpoint.max_in_flight == 8
    (only,) = endpoints(OPENAI_API_KEY="o", DG_OPENAI_RATE_LIMIT="7", **limits)
    assert (only.images_per_minute, only.requests_per_minute) == (60, 7)
    assert notes(OPENAI_API_KEY="o", **limits) == []
    with pytest.raises(ConfigurationError, match="IMAGE_GEN_IPM is not a whole number"):
        endpoints(OPENAI_API_KEY="o", IMAGE_GEN_IPM="many")


def test_an_account_is_sent_to_its_provider_only() -> None:
    account = {"OPENAI_API_KEY": "k", "OPENAI_ORG_ID": "org-1", "OPENAI_PROJECT_ID": "proj_1"}
    (only,) = endpoints(**account)
    assert (only.organization, only.project) == ("org-1", "proj_1")
    (only,) = endpoints(**account, OPENAI_API_BASE=URL)
    assert (only.organization, only.project) == (None, None)


def test_what_differs_from_other_tools_is_noted() -> None:
    (note,) = notes(OPENAI_API_KEY="k")
    assert "openai: 10 calls a minute, since no limit is set; DG_OPENAI_RATE_LIMIT" in note
    assert notes(OPENAI_API_KEY="k", DG_OPENAI_RATE_LIMIT="0") == []
    assert notes(OPENAI_API_KEY="k", OPENAI_RATE_LIMITS="5", PATH="/bin", OPENAI_LOG="x") == []
    (note,) = notes(OPENAI_API_KEY="k", DG_OPENAI_RATE_LIMIT="5", DG_OPENAI_MAX_WORKERS="8")
    assert "DG_OPENAI_MAX_WORKERS is not used: calls at a time are max_in_flight" in note


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("DG_OPENAI_API_KEY_2", "did you mean DG_OPENAI_API_KEYS?"),
        ("DG_GEMINI_RATELIMIT", "did you mean DG_GEMINI_RATE_LIMIT?"),
        ("OPENAI_RATE_LIMT", "did you mean OPENAI_RATE_LIMIT?"),
        ("DG_LOG_LEVEL", "DG_LOG_LEVEL is not used"),
        ("IMAGE_GEN_RETRIES", "IMAGE_GEN_RETRIES is not used"),
    ],
)
def test_a_variable_that_looks_like_ours_and_is_not_is_noted(name: str, note: str) -> None:
    value = "sk-very-secret"
    (found,) = notes(OPENAI_API_KEY="k", DG_OPENAI_RATE_LIMIT="5", **{name: value})
    assert found.startswith(f"{name} is not used")
    assert note in found
    assert value not in found


def test_a_deadline_that_gemini_rejects_is_refused_in_the_secret() -> None:
    """ "Manually set deadline 4s is too short. Minimum allowed deadline is 10s." """
    fields = {"name": "e", "provider": "gemini", "api_keys": ["k"]}
    assert Endpoint.model_validate(fields | {"timeout_seconds": 10}).timeout_seconds == 10
    with pytest.raises(ValidationError, match="Gemini rejects deadlines under 10 seconds"):
        Endpoint.model_validate(fields | {"timeout_seconds": 9.9})
    assert Endpoint.model_validate(fields | {"provider": "openai", "timeout_seconds": 5})


_ODD = st.one_of(
    st.sampled_from([KEY, f"{KEY}\n", f" {KEY}", f"https://me:{KEY}@h/v1", [KEY], {"key": KEY}]),
    st.sampled_from([f"https://h/v1?key={KEY}", "\x1b[2J", "\ud800", 1e400, -1, 2**70, None, True]),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
)


@given(st.dictionaries(st.sampled_from([*Endpoint.model_fields]), _ODD, max_size=4))
def test_any_secret_is_read_or_refused_without_showing_a_value(fields: dict[str, object]) -> None:
    endpoint = {"name": "a", "provider": "gemini", "api_keys": [KEY], **fields}
    try:
        read = parse_endpoints(json.dumps({"endpoints": [endpoint]}))
    except ConfigurationError as error:
        refused = str(error)
    else:
        refused = ""
        shown = {"name", "model", "model_is", "api_version", "organization", "project", "location"}
        if not any(KEY in str(fields.get(name)) for name in shown):  # these are no secrets
            assert KEY not in f"{read!r} {read}"
    assert KEY not in refused
    assert refused.isprintable()


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin-1")))
def test_any_text_in_place_of_a_secret_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_endpoints(KEY + text)
    assert KEY not in str(refused.value)
