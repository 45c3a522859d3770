"""The configuration of simulated endpoints: the JSON of `--config` and `/_sim/configure`."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, Field


class FaultKind(StrEnum):
    """Ways in which the real APIs have failed."""

    RATE_LIMITED = "rate_limited"  # 429; see `hint`, `retry_after`, `per`
    QUOTA_SPENT = "quota_spent"  # 429 that does not pass with time; see `code`
    KEY_REJECTED = "key_rejected"  # `status` 401, 403 or 400 (Gemini's API_KEY_INVALID)
    SERVER_ERROR = "server_error"  # `status` 500, 502, 503, 504
    OVERLOADED = "overloaded"  # 503 UNAVAILABLE
    HTML = "html"  # a proxy's error page, with `status` 200 or 502
    HANG = "hang"  # accepts the request and does not respond for `seconds`
    DROP = "drop"  # closes the connection without a response
    DROP_AFTER = "drop_after"  # makes (and bills) the image, then closes the connection
    TRICKLE = "trickle"  # a success that takes `seconds`, a few bytes at a time
    TRICKLE_HEADERS = "trickle_headers"  # the same, one header byte at a time
    CUT_JSON = "cut_json"  # 200, half the body
    ODD_JSON = "odd_json"  # 200, JSON of another shape
    REFUSED = "refused"  # by content policy, with `category`
    TEXT_ONLY = "text_only"  # Gemini: text and no image; OpenAI: an empty list
    EMPTY = "empty"  # 200 without candidates, or without data
    BROKEN_IMAGE = "broken_image"  # base64 that is not an image
    BAD_REQUEST = "bad_request"  # 400 about an argument
    BAD_IMAGE = "bad_image"  # 400 about an input image
    MODEL_RETIRED = "model_retired"  # Gemini: 404; OpenAI: 400, as for any unknown image model
    ACCOUNT_BLOCKED = "account_blocked"  # 403 about the key's account, not about the row
    CONFLICT = "conflict"  # 409, to be retried
    TEAPOT = "teapot"  # 418: an undocumented status


class _Frozen(BaseModel, frozen=True, extra="forbid"):
    pass


class When(_Frozen):
    """A fault applies to the requests that match all conditions given here."""

    from_second: float = 0  # since the endpoint was configured
    until_second: float | None = None
    skip: int = 0  # the first `skip` matching requests succeed
    count: int | None = None  # then this many fail
    rate: float = Field(default=1, ge=0, le=1)  # share of them, drawn with the configured seed
    prompt_contains: str | None = None  # case-insensitive
    key: str | None = None
    model: str | None = None


class Fault(_Frozen):
    kind: FaultKind
    when: When = When()
    status: int | None = None
    hint: Literal["header", "body", "none"] = "header"  # where a 429 states the time to wait
    retry_after: float = 2  # seconds
    per: Literal["minute", "day", "both"] = "minute"
    category: str = "SAFETY"  # Gemini's finish or block reason; OpenAI's safety category
    blocked: Literal["prompt", "response"] = "response"  # where Gemini reports the refusal
    seconds: float = 30  # HANG, TRICKLE
    code: str | None = None  # QUOTA_SPENT at OpenAI, such as project_spend_limit_exceeded
    message: str | None = None  # of the error; Gemini's finishMessage of a refusal


class Fixed(_Frozen):
    kind: Literal["fixed"] = "fixed"
    seconds: float = 0


class Lognormal(_Frozen):
    kind: Literal["lognormal"] = "lognormal"
    median: float  # seconds
    sigma: float = 0.4
    maximum: float = 60


class BatchFaultKind(StrEnum):
    """Ways in which batches fail; `rate` is the share of batches, or of their requests."""

    SLOW = "slow"  # takes `seconds` instead
    EXPIRED = "expired"  # ends when `done` of the requests are done
    FAILED_VALIDATION = "failed_validation"
    ENQUEUED_LIMIT = "enqueued_limit"  # more is enqueued than the account may have
    LOST_ANSWER = "lost_answer"  # the batch is made, and the connection closed without a response
    NOT_CREATED = "not_created"  # 503, and no batch
    HIDDEN = "hidden"  # not in the list of batches for `seconds`
    CUT_DOWNLOAD = "cut_download"  # the connection breaks in the middle of a results file
    # Of requests:
    UNANSWERED = "unanswered"  # in none of the results files
    ERROR_LINES = "error_lines"  # fails for a transient cause
    DUPLICATE_LINES = "duplicate_lines"
    BROKEN_LINES = "broken_lines"  # cut in the middle
    SHUFFLED = "shuffled"  # the whole file; OpenAI promises no order anyway


class BatchFault(_Frozen):
    kind: BatchFaultKind
    rate: float = Field(default=1, ge=0, le=1)
    skip: int = 0  # batches (or downloads) without the fault first
    count: int | None = None  # then this many with it
    seconds: float = 60
    done: float = 0.5
    message: str | None = None  # of a failed validation


class SimulatedBatches(_Frozen):
    """The batch interface of an endpoint. `seconds` stand for the provider's 24 hours."""

    seconds: float = 0.2
    validation_seconds: float = 0
    max_enqueued_requests: int = 0  # over all batches under way; 0: no limit
    image_bytes: int = 0  # about the size of each image made; 0: as for single calls
    ignores_ranges: bool = False  # of downloads: always sends the whole file
    faults: tuple[BatchFault, ...] = ()


class SimulatedEndpoint(_Frozen):
    """One quota of a provider: everything under `http://host:port/NAME/`, in either API format."""

    requests_per_minute: int = Field(default=0, ge=0)  # 0: no limit
    requests_per_day: int = Field(default=0, ge=0)
    images_per_minute: int = Field(default=0, ge=0)  # made, `n` of a call
    input_images_per_minute: int = Field(default=0, ge=0)
    retired_models: tuple[str, ...] = ()
    deployments: dict[str, str] = {}  # Azure: a deployment's own name, and its model
    min_server_timeout: float = 10  # Gemini: seconds of X-Server-Timeout
    keys: tuple[str, ...] = ()  # empty: any key is valid
    # What a list of models contains: names, and the dates of their end (OpenAI).
    models: dict[str, str | None] = Field(default_factory=dict)
    limit_hint: Literal["header", "body", "none"] = "body"
    latency: Annotated[Fixed | Lognormal, Field(discriminator="kind")] = Fixed()
    mode: Literal["effects", "fast"] = "effects"  # fast: always the same small image
    thoughts: bool = False  # Gemini: an interim image in a thought part first
    faults: tuple[Fault, ...] = ()  # of single calls, and of the requests of a batch
    batches: SimulatedBatches = SimulatedBatches()


class Config(_Frozen):
    seed: int = 0
    endpoints: dict[str, SimulatedEndpoint] = {
        name: SimulatedEndpoint() for name in ("gemini-main", "openai-main")
    }
