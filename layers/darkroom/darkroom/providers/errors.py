"""Classifies a provider's failures as outcomes.

Each adapter has a table of rules; the first that matches decides. What all providers share is here:
the form of a rule, transport errors, unusable responses, delays, and details that are safe to show.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from darkroom.calls import CallFailed, Outcome

DETAIL_CHARACTERS = 500
_NOT_FOUND = 404
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{120,}={0,2}")
_KEY_LIKE = re.compile(r"\b(?:sk-[\w*.-]{4,}|AIza[\w*-]{8,}|AQ\.[\w*-]{8,})")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
_DELAY_IN_TEXT = re.compile(
    r"(?:retry|try again)\s+(?:after|in)\s+"
    r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?!s))?(?:(?P<s>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|seconds?)\b)?",
    re.IGNORECASE,
)
# Cut JSON, or a page of a proxy; any other shape of a response is unknown.
_NOT_JSON_ERRORS = {"JSONDecodeError", "UnknownApiResponseError"}


@dataclass(frozen=True, slots=True)
class Failure:
    """A provider's error response. `names`: its codes, types and reasons, in lower case."""

    status: int
    names: frozenset[str]
    text: str
    is_json: bool = True  # False: most likely a proxy's page
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches when all of its conditions hold. An empty field always holds."""

    outcome: Outcome
    statuses: Sequence[int] = ()
    names: frozenset[str] = frozenset()  # one of them
    text: str = ""  # regular expression, case-insensitive
    is_json: bool | None = None
    daily: bool = False
    maybe_charged: bool = False

    def matches(self, failure: Failure) -> bool:
        if self.is_json is not None and self.is_json != failure.is_json:
            return False
        if self.statuses and failure.status not in self.statuses:
            return False
        if self.names and not self.names & failure.names:
            return False
        return not self.text or re.search(self.text, failure.text, re.IGNORECASE) is not None


def names(*found: Any) -> frozenset[str]:
    """`Failure.names` from values that may be missing."""
    return frozenset(str(name).lower() for name in found if name not in (None, ""))


def classify(
    table: Sequence[Rule], failure: Failure, *, model_from_row: bool, key: str
) -> CallFailed:
    """The error to raise. `model_from_row`: the row named the model, not the endpoint."""
    detail = safe_text(failure.text, key) or f"HTTP status {failure.status}"
    rule = next((rule for rule in table if rule.matches(failure)), None)
    if rule is None:
        return CallFailed(
            Outcome.UNAVAILABLE,
            f"an unknown response (HTTP status {failure.status}): {detail}",
            retry_after_seconds=failure.retry_after_seconds,
            maybe_charged=True,
            unknown=True,
        )
    outcome = rule.outcome
    if outcome is Outcome.KEY_REJECTED and failure.status == _NOT_FOUND and model_from_row:
        outcome = Outcome.BAD_REQUEST
    return CallFailed(
        outcome,
        detail,
        retry_after_seconds=failure.retry_after_seconds,
        daily=rule.daily,
        maybe_charged=rule.maybe_charged,
    )


# What to report of a transport error, and whether the provider may have done the work. The first
# that fits decides: subclasses before their bases.
TRANSPORT_TABLE: tuple[tuple[type[Exception], str, bool], ...] = (
    (httpx2.ConnectTimeout, "no connection in time", False),
    (httpx2.PoolTimeout, "no free connection in time", False),
    (httpx2.WriteTimeout, "the request could not be sent in time", False),
    (httpx2.ReadTimeout, "no response in time", True),
    (httpx2.ConnectError, "the connection could not be made", False),
    (httpx2.ProxyError, "the proxy refused", False),
    (httpx2.UnsupportedProtocol, "base_url is not an http(s) URL", False),
    (httpx2.InvalidURL, "base_url is not an http(s) URL", False),
    (httpx2.WriteError, "the connection broke while sending", False),
    (httpx2.LocalProtocolError, "the request was malformed", False),
    (httpx2.ReadError, "the connection broke before the response", True),
    (httpx2.RemoteProtocolError, "the response was cut off", True),
    (httpx2.DecodingError, "the response's encoding is broken", True),
    (httpx2.HTTPError, "the connection failed", True),
)


def transport_failed(error: BaseException | None, timeout_seconds: float) -> CallFailed:
    """UNAVAILABLE for a transport error (httpx2's own, or one an SDK wrapped)."""
    for kind, sentence, maybe_charged in TRANSPORT_TABLE:
        if isinstance(error, kind):
            late = f" ({timeout_seconds:g} s)" if isinstance(error, httpx2.TimeoutException) else ""
            return CallFailed(Outcome.UNAVAILABLE, f"{sentence}{late}", maybe_charged=maybe_charged)
    return CallFailed(Outcome.UNAVAILABLE, "the connection failed", maybe_charged=True)


def malformed_response(error: Exception, key: str) -> CallFailed:
    """UNAVAILABLE for a 200 that is not a response of this API."""
    return CallFailed(
        Outcome.UNAVAILABLE,
        f"the response does not have the form of this API: {safe_text(str(error), key)}",
        maybe_charged=True,
        unknown=type(error).__name__ not in _NOT_JSON_ERRORS,
    )


@contextmanager
def unusable_images(cost_micro_usd: int | None) -> Iterator[None]:
    """Raises CallFailed (unavailable) for a ValueError while images are decoded."""
    try:
        yield
    except ValueError as error:
        raise CallFailed(
            Outcome.UNAVAILABLE,
            f"the response's image cannot be used: {error}",
            maybe_charged=True,
            cost_micro_usd=cost_micro_usd,
        ) from error


def safe_text(text: str, key: str) -> str:
    """One line of at most 500 characters, without keys, image data or markup."""
    if key:
        text = text.replace(key, "[key]")
    if (title := _TITLE.search(text)) is not None:
        text = title[1]
    text = _TAG.sub(" ", text)
    text = _KEY_LIKE.sub("[key]", _BASE64_RUN.sub("[data]", text))
    text = " ".join(text.split())
    return text if len(text) <= DETAIL_CHARACTERS else f"{text[: DETAIL_CHARACTERS - 2]} …"


def cause_without_key(error: BaseException, key: str) -> BaseException | None:
    """The error to raise from: `error`, or None if its text or a cause's contains the key."""
    cause: BaseException | None = error
    while cause is not None:
        if key and key in f"{cause} {cause!r}":
            return None
        cause = cause.__cause__ or cause.__context__
    return error


def retry_after(headers: Mapping[str, str], text: str, now: datetime | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms`, `Retry-After` (seconds or date), or the text."""
    milliseconds = decimal(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "").strip()
    if (seconds := decimal(value)) is not None:
        return seconds
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return delay_in_text(text)
    if until.tzinfo is None:
        return delay_in_text(text)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())


def decimal(text: str) -> float | None:
    """A number without sign or exponent; None for any other text."""
    return float(text) if text.replace(".", "", 1).isdecimal() else None


def delay_in_text(text: str) -> float | None:
    """ "Please try again in 6m1.5s" -> 361.5; None when it names no delay."""
    for found in _DELAY_IN_TEXT.finditer(text):
        if not any(found.group("h", "m", "s")):
            continue
        seconds = float(found["s"] or 0)
        if found["unit"] == "ms":
            seconds /= 1000
        return int(found["h"] or 0) * 3600 + int(found["m"] or 0) * 60 + seconds
    return None
