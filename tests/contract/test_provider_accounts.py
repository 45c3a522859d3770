"""What is sent beside the request: keys, accounts, headers, and nothing of the environment."""

import json
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.endpoints import Endpoint
from darkroom.providers.gemini import GeminiImageEditor
from darkroom.providers.http import new_client
from darkroom.providers.openai import OpenAIImageEditor
from darkroom.providers.registry import Provider
from tests.corpus.answers import answers

KEY = "sk-test-0123456789abcdef"
TOKEN = "ya29.a-token-of-the-test"
ENVIRONMENT = {
    "OPENAI_ORG_ID": "org-of-the-environment",
    "OPENAI_PROJECT_ID": "proj-of-the-environment",
    "OPENAI_CUSTOM_HEADERS": "X-Internal: of-the-environment\nAuthorization: of-the-environment",
    "AZURE_OPENAI_AD_TOKEN": "of-the-environment",
    "AZURE_OPENAI_API_KEY": "of-the-environment",
    "GOOGLE_CLOUD_PROJECT": "of-the-environment",
    "GOOGLE_CLOUD_LOCATION": "of-the-environment",
    "GOOGLE_API_KEY": "of-the-environment",
    "GOOGLE_GENAI_API_VERSION": "of-the-environment",
    "GOOGLE_GEMINI_BASE_URL": "https://of-the-environment.example",
    "GOOGLE_VERTEX_BASE_URL": "https://of-the-environment.example",
}


class Recorded(httpx2.BaseTransport):
    """Answers with an image, or a token where one is asked for, and records the requests."""

    def __init__(self, provider: Provider, token: dict[str, Any] | None = None) -> None:
        self.requests: list[httpx2.Request] = []
        self._image = next(
            a for a in answers() if a.provider == provider and a.outcome is Outcome.SUCCEEDED
        )
        self._token = token or {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        if request.url.host == "oauth2.example":
            return httpx2.Response(400 if "error" in self._token else 200, json=self._token)
        return self._image.response()


def call(transport: Recorded, **fields: Any) -> EditResult:
    endpoint = Endpoint.model_validate({"name": "e", "api_keys": [KEY], **fields})
    kind = OpenAIImageEditor if endpoint.provider is Provider.OPENAI else GeminiImageEditor
    plan = CallPlan(endpoint.provider, endpoint.model, "make it warm")
    return kind(new_client(transport)).edit(plan, endpoint, endpoint.keys[0], 30)


@pytest.mark.parametrize(
    "fields",
    [
        {"provider": "openai", "base_url": "https://compatible.example/v1"},
        {"provider": "openai", "base_url": "https://e.example", "api_version": "2026-10-01"},
        {"provider": "gemini"},
        {"provider": "gemini", "location": "global"},
        {"provider": "gemini", "location": "europe-west4", "project": "shop"},
    ],
    ids=["compatible", "azure", "gemini", "platform", "region"],
)
def test_nothing_of_the_environment_is_sent(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    transport = Recorded(Provider(fields["provider"]))
    assert call(transport, **fields).images
    (request,) = transport.requests
    assert "of-the-environment" not in f"{request.url} {request.headers.raw} {request.content!r}"
    assert KEY in str(request.headers.raw)


def test_an_endpoint_has_its_own_headers_organization_and_project() -> None:
    transport = Recorded(Provider.OPENAI)
    headers = {"X-Gateway": "a", "cf-access-token": "b"}
    call(transport, provider="openai", organization="org-1", project="proj-1", headers=headers)
    sent = transport.requests[0].headers
    assert sent["authorization"] == f"Bearer {KEY}"
    assert (sent["openai-organization"], sent["openai-project"]) == ("org-1", "proj-1")
    assert (sent["x-gateway"], sent["cf-access-token"]) == ("a", "b")


def test_azure_gets_its_key_and_the_deployments_own_name() -> None:
    transport = Recorded(Provider.OPENAI)
    call(
        transport,
        provider="openai",
        base_url="https://e.openai.azure.com",
        api_version="2026-10-01",
        model="our-images",
        model_is="gpt-image-2",
    )
    (request,) = transport.requests
    assert request.url.path == "/openai/deployments/our-images/images/generations"
    assert request.headers["api-key"] == KEY
    assert "authorization" not in request.headers


def test_gemini_is_asked_for_images_only_and_for_the_flex_tier() -> None:
    transport = Recorded(Provider.GEMINI)
    call(transport, provider="gemini", service_tier="flex", headers={"X-Gateway": "a"})
    (request,) = transport.requests
    body = json.loads(request.content)
    assert body["generationConfig"]["responseModalities"] == ["IMAGE"]
    assert body["serviceTier"] == "flex"
    assert request.headers["x-goog-api-key"] == KEY
    assert request.headers["x-gateway"] == "a"


def service_account() -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    return {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": text,
        "client_email": "e@p.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.example/token",
    }


def on_platform(transport: Recorded, credentials: Any) -> EditResult:
    fields = {"project": "shop", "location": "europe-west4", "credentials": credentials}
    return call(transport, provider="gemini", api_keys=[], **fields)


def test_googles_enterprise_platform_is_called_with_a_token_of_the_credentials() -> None:
    transport, account = Recorded(Provider.GEMINI), service_account()
    assert on_platform(transport, account).images
    token, request = transport.requests
    assert str(token.url) == account["token_uri"]
    assert request.url.host == "europe-west4-aiplatform.googleapis.com"
    model = "/projects/shop/locations/europe-west4/publishers/google/models/gemini-3-pro-image"
    assert request.url.path.endswith(f"{model}:generateContent")
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert "x-goog-api-key" not in request.headers


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"location": "global"}, "aiplatform.googleapis.com/v1beta1/publishers/google"),
        (
            {"location": "global", "project": "shop"},
            "aiplatform.googleapis.com/v1beta1/projects/shop/locations/global/publishers/google",
        ),
        (
            {"location": "eu", "project": "shop", "api_version": "v1"},
            "aiplatform.eu.rep.googleapis.com/v1/projects/shop/locations/eu/publishers/google",
        ),
    ],
)
def test_the_enterprise_platform_takes_keys_of_its_own(fields: dict[str, str], url: str) -> None:
    transport = Recorded(Provider.GEMINI)
    call(transport, provider="gemini", **fields)
    (request,) = transport.requests
    assert str(request.url) == f"https://{url}/models/gemini-3-pro-image:generateContent"
    assert request.headers["x-goog-api-key"] == KEY


def test_a_service_account_is_called_in_its_own_project() -> None:
    transport = Recorded(Provider.GEMINI)
    call(transport, provider="gemini", api_keys=[], credentials=service_account())
    assert "/projects/p/locations/global/" in transport.requests[-1].url.path


def test_the_enterprise_platform_is_asked_for_flex_in_headers() -> None:
    transport = Recorded(Provider.GEMINI)
    call(transport, provider="gemini", location="global", service_tier="flex")
    (request,) = transport.requests
    assert request.headers["x-vertex-ai-llm-request-type"] == "shared"
    assert request.headers["x-vertex-ai-llm-shared-request-type"] == "flex"
    assert "serviceTier" not in json.loads(request.content)


@pytest.mark.parametrize(
    ("credentials", "token", "problem"),
    [
        ({"type": "service_account"}, {}, "the endpoint's credentials are not usable"),
        ({"type": "unknown", "private_key": "5ecret"}, {}, "credentials are not usable"),
        (None, {"error": "invalid_grant", "error_description": "Invalid JWT"}, "invalid_grant"),
    ],
)
def test_credentials_that_cannot_be_used_are_the_endpoints_fault(
    credentials: Any, token: dict[str, Any], problem: str
) -> None:
    transport = Recorded(Provider.GEMINI, token)
    with pytest.raises(CallFailed) as caught:
        on_platform(transport, credentials or service_account())
    assert caught.value.outcome is Outcome.KEY_REJECTED
    assert problem in caught.value.detail
    assert "5ecret" not in caught.value.detail
    assert not caught.value.maybe_charged


LOCAL = [
    ("gemini", {"model": "gemini/../x"}, "make it warm"),
    ("openai", {}, "lone surrogate \ud800"),
]


@pytest.mark.parametrize(("provider", "fields", "prompt"), LOCAL)
def test_an_error_before_sending_is_the_rows_and_charges_nothing(
    provider: str, fields: dict[str, str], prompt: str
) -> None:
    """`model=gemini/../x` in one row must not open the endpoint's breaker for all others."""
    endpoint = Endpoint.model_validate({"name": "e", "provider": provider, "api_keys": [KEY]})
    kind = OpenAIImageEditor if provider == "openai" else GeminiImageEditor
    transport = Recorded(endpoint.provider)
    plan = CallPlan(endpoint.provider, fields.get("model", endpoint.model), prompt)
    with pytest.raises(CallFailed) as caught:
        kind(new_client(transport)).edit(plan, endpoint, SecretStr(KEY), 30)
    failed = caught.value
    assert transport.requests == []
    assert failed.outcome is Outcome.BAD_REQUEST
    assert not failed.maybe_charged
    assert failed.cost_micro_usd is None
    assert failed.detail.startswith("the request could not be made: ")
