"""A call to a provider: the request, the result, and how it can fail."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import date
from enum import StrEnum
from math import isnan

from darkroom.endpoints import MAX_TIMEOUT_SECONDS, Endpoint
from darkroom.errors import DarkroomError, Reason
from darkroom.providers.registry import Provider

MAX_RETRY_AFTER_SECONDS = 24 * 3600.0


class Outcome(StrEnum):
    """The outcome of a call. Only RATE_LIMITED and UNAVAILABLE are transient."""

    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    NO_IMAGE = "no_image"
    BAD_REQUEST = "bad_request"
    BAD_IMAGE = "bad_image"  # the provider cannot read an image of the row
    MODEL_UNAVAILABLE = "model_unavailable"  # the endpoint's own model is unknown or retired
    RATE_LIMITED = "rate_limited"
    QUOTA_SPENT = "quota_spent"
    KEY_REJECTED = "key_rejected"
    UNAVAILABLE = "unavailable"

    @property
    def transient(self) -> bool:
        return self in (Outcome.RATE_LIMITED, Outcome.UNAVAILABLE)

    @property
    def key_at_fault(self) -> bool:
        """The secret or the account has to be corrected: no row can succeed with this key."""
        return self in (Outcome.QUOTA_SPENT, Outcome.KEY_REJECTED, Outcome.MODEL_UNAVAILABLE)

    @property
    def row_at_fault(self) -> bool:
        return self in (
            Outcome.REFUSED,
            Outcome.NO_IMAGE,
            Outcome.BAD_REQUEST,
            Outcome.BAD_IMAGE,
        )


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One input image, verified: `data` decodes as `mime` to `width` x `height` pixels."""

    data: bytes = field(repr=False)
    mime: str
    width: int
    height: int
    name: str  # for warnings: its URL or path


@dataclass(frozen=True, slots=True)
class CallPlan:
    """A row's request fitted to one model: made by `models.planner`, sent by an ImageEditor."""

    provider: Provider
    model: str
    prompt: str
    images: tuple[SourceImage, ...] = ()
    mask: SourceImage | None = None
    size: str | None = None  # OpenAI: "1024x1536" or "auto"
    aspect_ratio: str | None = None  # Gemini: "2:3"
    resolution: str | None = None  # Gemini: "2K"
    quality: str | None = None
    output_format: str | None = None  # OpenAI: png, jpeg, webp
    n: int = 1
    settings: Mapping[str, str | int] = field(default_factory=dict)  # see Model.settings
    model_of_row: bool = False  # the row or its job named another model than the endpoint's
    warnings: tuple[str, ...] = ()
    worst_cost_micro_usd: int | None = None  # None: unknown price


# Larger images take longer: 4K from Gemini as much as two minutes, which are billed also if nobody
# waits for them. The time-out of an endpoint is that of an ordinary image, about a megapixel.
_TIME_FACTORS = {"2K": 1.5, "4K": 3.0}
_PIXELS_OF_4K = 6_000_000
# Flex answers take 1 to 15 minutes: https://ai.google.dev/gemini-api/docs/flex-inference.
_FLEX_SECONDS = 780.0


def timeout_of_call(plan: CallPlan, endpoint: Endpoint) -> float:
    """The time-out in seconds of a call: the endpoint's, longer for what takes longer."""
    factor = _TIME_FACTORS.get(plan.resolution or "", 1.0)
    width, _, height = (plan.size or "").partition("x")
    if width.isdecimal() and height.isdecimal() and int(width) * int(height) >= _PIXELS_OF_4K:
        factor = _TIME_FACTORS["2K"]  # of endpoints whose ordinary time-out is minutes
    longer = max(endpoint.timeout_seconds * factor, _FLEX_SECONDS if endpoint.service_tier else 0.0)
    return max(endpoint.timeout_seconds, min(longer, MAX_TIMEOUT_SECONDS))


@dataclass(frozen=True, slots=True)
class ProviderLimits:
    """An account's limits per minute as the provider states them in a response; None: not stated.

    Each counts what the field of Endpoint with the same name counts.
    """

    requests_per_minute: int | None = None
    images_per_minute: int | None = None
    input_images_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class AvailableModels:
    """What a key may use, by the provider's list of models: their names, with the end if stated."""

    ends: Mapping[str, date | None]
    provider_limits: ProviderLimits = ProviderLimits()


@dataclass(frozen=True, slots=True)
class EditResult:
    """Images that were decoded. `cost_micro_usd` is None where the model's price is unknown."""

    images: tuple[bytes, ...] = field(repr=False)
    model: str = ""
    cost_micro_usd: int | None = None
    provider_limits: ProviderLimits = ProviderLimits()


@dataclass(eq=False, repr=False)
class CallFailed(DarkroomError):
    """A call without an image. `outcome` determines what follows; `detail` is safe to show."""

    outcome: Outcome
    detail: str
    _: KW_ONLY
    retry_after_seconds: float | None = None  # 0 to a day
    daily: bool = False  # RATE_LIMITED by the quota of a day, not of a minute
    maybe_charged: bool = False  # the provider may have done and billed the work
    cost_micro_usd: int | None = None  # a refusal or a text may be billed
    unknown: bool = False  # UNAVAILABLE because no rule matches: one more try, not many
    retry_once: bool = False  # by chance, though the row's: one more call, at the same endpoint
    too_large_for_limit: bool = False  # BAD_REQUEST at this endpoint only: its limit is lower
    provider_limits: ProviderLimits = ProviderLimits()

    def __post_init__(self) -> None:
        super().__init__(f"{self.outcome}: {self.detail}")
        wait = self.retry_after_seconds
        if wait is not None:
            usable = not isnan(wait) and wait >= 0
            self.retry_after_seconds = min(wait, MAX_RETRY_AFTER_SECONDS) if usable else None

    @property
    def reason(self) -> Reason:
        return Reason(self.outcome.value)

    def retries(self, max_retries: int) -> int:
        """How many more calls at the same endpoint make sense; `max_retries` is the endpoint's."""
        if self.outcome.row_at_fault:
            return 1 if self.retry_once else 0
        return min(max_retries, 1) if self.unknown or self.maybe_charged else max_retries
