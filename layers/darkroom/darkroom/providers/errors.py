"""From a provider's failure to an outcome: the rules' form, and what all providers share.

The rules themselves are data, one table per provider; the first rule that holds decides.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from darkroom.calls import CallFailed, Outcome

DETAIL_CHARACTERS = 500
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{120,}={0,2}")
_KEY_LIKE = re.compile(r"\b(?:sk-[\w*.-]{4,}|AIza[\w*-]{8,}|AQ\.[\w*-]{8,})")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
_DELAY_IN_TEXT = re.compile(
    r"(?:retry|try again)\s+(?:after|in)\s+"
    r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?!s))?(?:(?P<s>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|seconds?)\b)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A provider's "no" in our words. `names`: its codes, types and reasons, in lower case."""

    status: int
    names: frozenset[str]
    text: str
    is_json: bool = True  # False: a proxy's page, most likely


@dataclass(frozen=True, slots=True)
class Rule:
    """Holds when all that it gives holds. An empty field asks for nothing."""

    outcome: Outcome
    statuses: tuple[int, ...] = ()  # a range as (500, 599) with `span`
    span: bool = False
    names: frozenset[str] = frozenset()  # one of them
    text: str = ""  # regular expression, case ignored
    is_json: bool | None = None
    daily: bool = False
    maybe_charged: bool = False

    def holds(self, failure: Failure) -> bool:
        if self.is_json is not None and self.is_json != failure.is_json:
            return False
        if self.statuses and not self._has_status(failure.status):
            return False
        if self.names and not self.names & failure.names:
            return False
        return not self.text or re.search(self.text, failure.text, re.IGNORECASE) is not None

    def _has_status(self, status: int) -> bool:
        if self.span:
            return self.statuses[0] <= status <= self.statuses[-1]
        return status in self.statuses


def names(*found: Any) -> frozenset[str]:
    return frozenset(str(name).lower() for name in found if name not in (None, ""))


def classify(
    table: Sequence[Rule],
    failure: Failure,
    *,
    model_is_the_rows: bool,
    retry_after_seconds: float | None,
    key: str,
) -> CallFailed:
    """The error to raise. `model_is_the_rows`: the row named the model, not the endpoint."""
    detail = safe_text(failure.text, key) or f"HTTP status {failure.status}"
    for rule in table:
        if not rule.holds(failure):
            continue
        outcome = rule.outcome
        if outcome is Outcome.KEY_REJECTED and failure.status == _NOT_FOUND and model_is_the_rows:
            outcome = Outcome.BAD_REQUEST
        return CallFailed(
            outcome,
            detail,
            retry_after_seconds=retry_after_seconds,
            daily=rule.daily,
            maybe_charged=rule.maybe_charged,
            status_code=failure.status,
        )
    return CallFailed(
        Outcome.UNAVAILABLE,
        f"an answer that is not known (HTTP status {failure.status}): {detail}",
        retry_after_seconds=retry_after_seconds,
        maybe_charged=True,
        status_code=failure.status,
        unknown=True,
    )


_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Broken:
    """How a call broke off: what to say, and whether the provider may have done the work."""

    sentence: str
    maybe_charged: bool


# The first that fits; subclasses before their bases.
TRANSPORT_TABLE: tuple[tuple[type[Exception], Broken], ...] = (
    (httpx2.ConnectTimeout, Broken("no connection in time", maybe_charged=False)),
    (httpx2.PoolTimeout, Broken("no free connection in time", maybe_charged=False)),
    (httpx2.WriteTimeout, Broken("the request could not be sent in time", maybe_charged=False)),
    (httpx2.ReadTimeout, Broken("no answer in time", maybe_charged=True)),
    (httpx2.ConnectError, Broken("the connection could not be made", maybe_charged=False)),
    (httpx2.ProxyError, Broken("the proxy refused", maybe_charged=False)),
    (httpx2.UnsupportedProtocol, Broken("base_url is no http(s) URL", maybe_charged=False)),
    (httpx2.InvalidURL, Broken("base_url is no http(s) URL", maybe_charged=False)),
    (httpx2.WriteError, Broken("the connection broke while sending", maybe_charged=False)),
    (httpx2.LocalProtocolError, Broken("the request was malformed", maybe_charged=False)),
    (httpx2.ReadError, Broken("the connection broke before the answer", maybe_charged=True)),
    (httpx2.RemoteProtocolError, Broken("the answer was cut off", maybe_charged=True)),
    (httpx2.DecodingError, Broken("the answer's encoding is broken", maybe_charged=True)),
    (httpx2.HTTPError, Broken("the connection failed", maybe_charged=True)),
)


def broken_off(error: BaseException | None, timeout_seconds: float) -> CallFailed:
    """UNAVAILABLE for a transport error (httpx2's own, or one an SDK wrapped)."""
    for kind, broken in TRANSPORT_TABLE:
        if isinstance(error, kind):
            late = f" ({timeout_seconds:g} s)" if isinstance(error, httpx2.TimeoutException) else ""
            return CallFailed(
                Outcome.UNAVAILABLE,
                f"{broken.sentence}{late}",
                maybe_charged=broken.maybe_charged,
            )
    return CallFailed(Outcome.UNAVAILABLE, "the connection failed", maybe_charged=True)


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
    """What to raise from: the error itself, unless its text or its cause's has the key in it."""
    seen: BaseException | None = error
    while seen is not None:
        if key and key in f"{seen} {seen!r}":
            return None
        seen = seen.__cause__ or seen.__context__
    return error


def delay_of(headers: Mapping[str, str], text: str, now: datetime | None = None) -> float | None:
    """Seconds to wait by `Retry-After` (seconds or date), `retry-after-ms`, or the text."""
    milliseconds = headers.get("retry-after-ms", "")
    if milliseconds.replace(".", "", 1).isdigit():
        return float(milliseconds) / 1000
    after = headers.get("retry-after", "").strip()
    if after.replace(".", "", 1).isdigit():
        return float(after)
    if after:
        try:
            until = parsedate_to_datetime(after)
        except ValueError:
            until = None
        if until is not None and until.tzinfo is not None:
            return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())
    return delay_in_text(text)


def delay_in_text(text: str) -> float | None:
    """ "Please try again in 6m1.5s" -> 361.5; None when it says nothing."""
    for found in _DELAY_IN_TEXT.finditer(text):
        if not any(found.group("h", "m", "s")):
            continue
        seconds = float(found["s"] or 0)
        if found["unit"] == "ms":
            seconds /= 1000
        return int(found["h"] or 0) * 3600 + int(found["m"] or 0) * 60 + seconds
    return None
