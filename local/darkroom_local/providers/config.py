"""What a simulated endpoint is and when it fails: the JSON of `--config` and `/_sim/configure`."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class FaultKind(StrEnum):
    """Each is a way the real APIs were seen to fail. `server.py` says what goes over the wire."""

    RATE_LIMITED = "rate_limited"  # 429; see `hint`, `retry_after`, `per`
    QUOTA_SPENT = "quota_spent"  # 429 that no waiting cures
    KEY_REJECTED = "key_rejected"  # `status` 401, 403 or 400 (Gemini's API_KEY_INVALID)
    SERVER_ERROR = "server_error"  # `status` 500, 502, 503, 504
    OVERLOADED = "overloaded"  # 503 UNAVAILABLE
    HTML = "html"  # a proxy's page, with `status` 200 or 502
    HANG = "hang"  # takes the request and says nothing for `seconds`
    DROP = "drop"  # closes the connection before answering
    DROP_AFTER = "drop_after"  # does the work (and bills it), then closes
    TRICKLE = "trickle"  # a good answer, `seconds` long, some bytes at a time
    TRICKLE_HEADERS = "trickle_headers"  # the same, one header byte at a time
    CUT_JSON = "cut_json"  # 200, half the body
    ODD_JSON = "odd_json"  # 200, JSON of another shape
    REFUSED = "refused"  # by content policy, with `category`
    TEXT_ONLY = "text_only"  # Gemini: text and no image; OpenAI: an empty list
    EMPTY = "empty"  # 200 without candidates, or without data
    BROKEN_IMAGE = "broken_image"  # base64 that is no picture
    BAD_REQUEST = "bad_request"  # 400 about an argument
    MODEL_RETIRED = "model_retired"  # 404
    TEAPOT = "teapot"  # 418: a status that no table has


class When(BaseModel):
    """A fault applies to the requests for which all that is given here holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_second: float = 0  # since the endpoint was configured
    until_second: float | None = None
    skip: int = 0  # the first `skip` matching requests go free
    count: int | None = None  # then this many fail
    rate: float = Field(default=1, ge=0, le=1)  # share of them, drawn with the config's seed
    prompt_contains: str | None = None  # case-insensitive
    key: str | None = None
    model: str | None = None


class Fault(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FaultKind
    when: When = When()
    status: int | None = None
    hint: Literal["header", "body", "none"] = "header"  # where a 429 says how long to wait
    retry_after: float = 2  # seconds
    per: Literal["minute", "day", "both"] = "minute"
    category: str = "SAFETY"  # Gemini's finish or block reason; OpenAI's safety category
    blocked: Literal["prompt", "answer"] = "answer"  # where Gemini's refusal shows
    seconds: float = 30  # HANG, TRICKLE
    message: str | None = None


class Fixed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fixed"] = "fixed"
    seconds: float = 0


class Lognormal(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["lognormal"] = "lognormal"
    median: float  # seconds
    sigma: float = 0.4
    most: float = 60


class SimulatedEndpoint(BaseModel):
    """One quota of a provider: everything under `http://host:port/NAME/`, either wire format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int = Field(default=0, ge=0)  # 0: no limit
    window_seconds: float = Field(default=60, gt=0)
    requests_per_day: int = Field(default=0, ge=0)
    max_in_flight: int = Field(default=0, ge=0)  # 0: no limit; more get a 429
    keys: tuple[str, ...] = ()  # empty: any key is good
    retired_models: tuple[str, ...] = ()
    limit_hint: Literal["header", "body", "none"] = "body"
    latency: Annotated[Fixed | Lognormal, Field(discriminator="kind")] = Fixed()
    mode: Literal["paint", "fast"] = "paint"  # fast: a canned picture, for benchmarks
    thoughts: bool = False  # Gemini: an interim image in a thought part first
    faults: tuple[Fault, ...] = ()


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    endpoints: dict[str, SimulatedEndpoint] = Field(
        default_factory=lambda: {
            "gemini-main": SimulatedEndpoint(),
            "openai-main": SimulatedEndpoint(),
        }
    )
