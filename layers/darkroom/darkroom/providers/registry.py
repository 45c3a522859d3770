"""The providers: one entry each, with everything that differs between them.

Adding a provider takes a member and an entry here, its adapters, and its models in
`models/catalog.py`. Other modules read the entry and never compare with a member.
"""

from dataclasses import dataclass
from enum import StrEnum


class Provider(StrEnum):
    """In the order in which endpoints from the environment are listed."""

    GEMINI = "gemini"
    OPENAI = "openai"


@dataclass(frozen=True, slots=True)
class ProviderEntry:
    """Times in seconds. `tier` to `retry_delay_seconds` are the defaults of an endpoint."""

    display_name: str
    company: str
    adapter: str  # "module:class" of its ports.ImageEditor, imported when first needed
    batches: str  # "module:class" of its ports.BatchProvider
    sdk_logger: str  # kept above DEBUG, where SDKs log whole requests
    model: str
    tier: int
    timeout_seconds: float
    min_timeout_seconds: float  # the shortest deadline that the API accepts
    max_retries: int
    retry_delay_seconds: float
    base_url_ending: str  # of services with a compatible API
    key_variables: tuple[str, ...]  # environment variables with one key, the first that is set
    model_prefixes: tuple[str, ...]  # of the names that it gives its models
    model_keywords: tuple[str, ...]  # parts of a name that suggest it where no prefix matches
    time_zone: str  # the one whose midnight resets daily quotas


# The API that compatible servers offer: it gets the model names that suggest no provider.
COMPATIBLE_API = Provider.OPENAI


def provider_of(model: str) -> Provider | None:
    """The provider whose naming scheme the model's name follows; None when it follows none."""
    name = model.removeprefix("models/").lower()
    return next((p for p in Provider if name.startswith(PROVIDERS[p].model_prefixes)), None)


def likely_provider_of(model: str) -> Provider:
    """`provider_of`, else by a keyword in the name, else COMPATIBLE_API."""
    name = model.lower()
    by_keyword = (p for p in Provider if any(k in name for k in PROVIDERS[p].model_keywords))
    return provider_of(model) or next(by_keyword, COMPATIBLE_API)


# Time-outs, retries and delays are defaults: an endpoint's own settings have precedence.
PROVIDERS: dict[Provider, ProviderEntry] = {
    Provider.GEMINI: ProviderEntry(
        display_name="Gemini",
        company="Google",
        adapter="darkroom.providers.gemini:GeminiImageEditor",
        batches="darkroom.providers.gemini_batch:GeminiBatches",
        sdk_logger="google_genai",
        model="gemini-3-pro-image",
        tier=1,
        timeout_seconds=60,
        # "Manually set deadline 1s is too short. Minimum allowed deadline is 10s.": the SDK sends
        # the time-out as X-Server-Timeout.
        min_timeout_seconds=10,
        max_retries=2,
        retry_delay_seconds=5,
        base_url_ending="",
        key_variables=(
            "DG_GEMINI_API_KEY",
            "GEMINI_API_KEY",
            "GOOGLE_GENAI_API_KEY",
            "GOOGLE_API_KEY",
        ),
        model_prefixes=("gemini-",),
        model_keywords=("gemini", "imagen", "nano-banana"),
        time_zone="America/Los_Angeles",
    ),
    Provider.OPENAI: ProviderEntry(
        display_name="OpenAI",
        company="OpenAI",
        adapter="darkroom.providers.openai:OpenAIImageEditor",
        batches="darkroom.providers.openai_batch:OpenAIBatches",
        sdk_logger="openai",
        model="gpt-image-2.6-sunburst",
        tier=2,
        timeout_seconds=300,
        min_timeout_seconds=0,
        max_retries=0,
        retry_delay_seconds=1,
        base_url_ending="/v1",
        key_variables=("DG_OPENAI_API_KEY", "OPENAI_API_KEY"),
        model_prefixes=("gpt-image-", "chatgpt-image-", "dall-e-"),
        model_keywords=(),
        time_zone="UTC",
    ),
}
