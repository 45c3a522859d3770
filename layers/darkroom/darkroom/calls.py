"""A call to a provider: what is sent, what comes back, and how it can fail."""

from dataclasses import dataclass, field
from enum import StrEnum

from darkroom.errors import DarkroomError, Reason
from darkroom.providers.registry import Provider


class Outcome(StrEnum):
    """What a call came to. Only RATE_LIMITED and UNAVAILABLE are transient."""

    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    NO_IMAGE = "no_image"
    BAD_REQUEST = "bad_request"
    RATE_LIMITED = "rate_limited"
    QUOTA_SPENT = "quota_spent"
    KEY_REJECTED = "key_rejected"
    UNAVAILABLE = "unavailable"

    @property
    def transient(self) -> bool:
        return self in (Outcome.RATE_LIMITED, Outcome.UNAVAILABLE)

    @property
    def blames_key(self) -> bool:
        return self in (Outcome.QUOTA_SPENT, Outcome.KEY_REJECTED)

    @property
    def blames_row(self) -> bool:
        return self in (Outcome.REFUSED, Outcome.NO_IMAGE, Outcome.BAD_REQUEST)


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One input picture, checked: `data` decodes as `mime` to `width` x `height` pixels."""

    data: bytes = field(repr=False)
    mime: str
    width: int
    height: int
    name: str  # shown in warnings: the URL or path it came from


@dataclass(frozen=True, slots=True)
class CallPlan:
    """A row's request fitted to one model: made by `planning.plan_call`, sent by an ImageEditor."""

    provider: Provider
    model: str
    prompt: str
    images: tuple[SourceImage, ...] = ()
    mask: SourceImage | None = None
    size: str | None = None  # OpenAI: "1024x1536" or "auto"
    aspect_ratio: str | None = None  # Gemini: "2:3"
    resolution: str | None = None  # Gemini: "2K"
    quality: str | None = None
    background: str | None = None
    output_format: str | None = None  # OpenAI: png, jpeg, webp
    n: int = 1
    warnings: tuple[str, ...] = ()
    worst_cost_micro_usd: int | None = None  # None: the price is not known


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counted them; None where it did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EditResult:
    """Images that decoded. `cost_micro_usd` is None where the model's price is not known."""

    images: tuple[bytes, ...] = field(repr=False)
    model: str = ""
    usage: Usage = Usage()
    cost_micro_usd: int | None = None
    text: str = ""


class CallFailed(DarkroomError):
    """A call did not give an image. `outcome` says what to do; `detail` is safe to show."""

    def __init__(
        self,
        outcome: Outcome,
        detail: str,
        *,
        retry_after_seconds: float | None = None,
        daily: bool = False,
        maybe_charged: bool = False,
        status_code: int | None = None,
        cost_micro_usd: int | None = None,
        unknown: bool = False,
    ) -> None:
        super().__init__(f"{outcome}: {detail}")
        self.outcome = outcome
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.daily = daily  # RATE_LIMITED: a day's quota, not a minute's
        self.maybe_charged = maybe_charged  # the provider may have done and billed the work
        self.status_code = status_code
        self.cost_micro_usd = cost_micro_usd  # a refusal or a text answer may be billed
        self.unknown = unknown  # UNAVAILABLE because no table has it: worth one more try, not many

    @property
    def reason(self) -> Reason:
        return Reason(self.outcome.value)
