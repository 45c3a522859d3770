"""Classifies a provider's failures as outcomes.

Each adapter has a table of rules; the first that matches decides. What all providers share is here:
the form of a rule, transport errors, unusable responses, and delays.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isnan
from typing import Any

import httpx2

from darkroom.calls import CallFailed, Outcome
from darkroom.formatting import clean_text

_MAX_ERROR_BYTES = 1024 * 1024  # of a body that is parsed
_MAX_TOKENS = 1_000_000  # of a call: more is not a count
MAX_RULE_TEXT = 4_096  # characters that rules are matched against
_DELAY_IN_TEXT = re.compile(
    r"(?:retry|try again)\s{1,9}(?:after|in)\s{1,9}"
    r"(?:(?P<h>\d{1,6})h)?(?:(?P<m>\d{1,6})m(?!s))?"
    r"(?:(?P<s>\d{1,9}(?:\.\d{1,9})?)\s{0,9}(?P<unit>ms|s|seconds?)\b)?",
    re.IGNORECASE | re.ASCII,
)
# "input-images per min (IPM): Limit 5, Used 5, Requested 8." with or without colons.
_LIMIT_IN_TEXT = re.compile(
    r"\blimit:?\s{1,3}(?P<limit>\d[\d,]{0,11}).{0,80}?\brequested:?\s{1,3}(?P<asked>\d[\d,]{0,11})",
    re.IGNORECASE | re.ASCII,
)
# Cut JSON, or a page of a proxy; any other shape of a response is unknown.
_NOT_JSON_ERRORS = {"JSONDecodeError", "UnknownApiResponseError"}


@dataclass(frozen=True, slots=True)
class Failure:
    """A provider's error response. `names`: its codes, types and reasons, in lower case."""

    status: int
    names: frozenset[str]
    text: str  # at most MAX_RULE_TEXT characters, as the provider wrote it
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
    unknown: bool = False
    retry_once: bool = False

    def matches(self, failure: Failure) -> bool:
        if self.is_json is not None and self.is_json != failure.is_json:
            return False
        if self.statuses and failure.status not in self.statuses:
            return False
        if self.names and not self.names & failure.names:
            return False
        return not self.text or re.search(self.text, failure.text, re.IGNORECASE) is not None


def names(*found: Any) -> frozenset[str]:
    """`Failure.names` from values of any type, which may be missing."""
    return frozenset(str(name).lower() for name in found if isinstance(name, str | int) and name)


def error_body(response: httpx2.Response) -> dict[str, Any] | None:
    """The body's JSON object, out of a list if it is in one; None when it is anything else."""
    try:
        body = json.loads(response.content) if len(response.content) <= _MAX_ERROR_BYTES else None
    except (ValueError, RecursionError):
        return None
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    return body if isinstance(body, dict) else None


def error_text(response: httpx2.Response, *messages: Any) -> str:
    """The first message that is a text, else the start of the body."""
    found = next((m for m in messages if isinstance(m, str) and m), None)
    text = response.content[: 4 * MAX_RULE_TEXT].decode("utf-8", "replace")
    return (text if found is None else found)[:MAX_RULE_TEXT]


def classify(table: Sequence[Rule], failure: Failure, *, key: str) -> CallFailed:
    """The error to raise."""
    detail = clean_text(failure.text, key) or f"HTTP status {failure.status}"
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
    too_large = outcome is Outcome.RATE_LIMITED and _exceeds_limit_alone(failure.text)
    if too_large:
        outcome = Outcome.BAD_REQUEST
    return CallFailed(
        outcome,
        detail,
        retry_after_seconds=failure.retry_after_seconds,
        daily=rule.daily,
        maybe_charged=rule.maybe_charged,
        unknown=rule.unknown,
        retry_once=rule.retry_once,
        too_large_for_limit=too_large,
    )


def _exceeds_limit_alone(text: str) -> bool:
    """ "Limit 5, Used 0, Requested 8": the request can never pass."""
    found = _LIMIT_IN_TEXT.search(text)
    return found is not None and _whole(found["asked"]) > _whole(found["limit"])


def _whole(text: str) -> int:
    """ "10,000" -> 10000."""
    return int(text.replace(",", ""))


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


def not_sent(error: Exception, key: str) -> CallFailed:
    """BAD_REQUEST for an error before the request was sent: the row's values cannot be sent."""
    problem = clean_text(str(error), key) or type(error).__name__
    return CallFailed(Outcome.BAD_REQUEST, f"the request could not be made: {problem}")


def malformed_response(error: Exception, key: str) -> CallFailed:
    """UNAVAILABLE for a 200 that is not a response of this API."""
    return CallFailed(
        Outcome.UNAVAILABLE,
        f"the response does not have the form of this API: {clean_text(str(error), key)}",
        maybe_charged=True,
        unknown=type(error).__name__ not in _NOT_JSON_ERRORS,
    )


@contextmanager
def unusable_images(cost_micro_usd: int | None) -> Iterator[None]:
    """Raises CallFailed (unavailable) for any error while images are decoded.

    The call may have been billed: its cost is kept whatever the response contains.
    """
    try:
        yield
    except Exception as error:
        problem = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise CallFailed(
            Outcome.UNAVAILABLE,
            f"the response's image cannot be used: {problem}",
            maybe_charged=True,
            cost_micro_usd=cost_micro_usd,
        ) from error


def token_count(usage: Any, name: str) -> int | None:
    """A count of tokens in a response, 0 to a million; None for anything but a number."""
    count = getattr(usage, name, None)
    if isinstance(count, bool) or not isinstance(count, int | float) or isnan(count):
        return None
    return int(min(max(count, 0), _MAX_TOKENS))


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
        until = parsedate_to_datetime(value[:64])
        if until.tzinfo is not None:
            return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, OverflowError):
        pass
    return delay_in_text(text)


def decimal(text: str) -> float | None:
    """A number without sign or exponent; None for any other text."""
    digits = text.replace(".", "", 1)
    return float(text) if digits.isascii() and digits.isdecimal() else None


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
