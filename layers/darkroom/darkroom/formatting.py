"""How values appear in sentences: quoting, redaction, money, durations, validation errors."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_SHOWN_CHARS = 80
_LISTED = 12
EXAMPLES = 3  # rows or images named in a warning
_LISTED_PROBLEMS = 5
_SIGNED = re.compile(r"[?#].*", re.DOTALL)
# Up to the last @ before the path, or behind it where a password contains a slash.
_USER_INFO = re.compile(
    r"((?:^|:)//|^https?:[/\\]+)(?:[^/]*|[^/:]{1,100}:(?!\d{1,5}/)\S{0,200})@", re.IGNORECASE
)
_PARAMETERS = re.compile(r"\?[^?]*=.*", re.DOTALL)  # of a URL whose https:// was forgotten
# Of a text from outside: what is searched for secrets, what is searched for markup, what is shown.
_RAW_CHARACTERS, _MARKUP_CHARACTERS, DETAIL_CHARACTERS = 65_536, 4_096, 500
_DATA = re.compile(r"[A-Za-z0-9+/_-]{120,}={0,2}")
_KEY_LIKE = re.compile(
    r"\b(?:sk-[\w*.-]{4,}|AIza[\w*-]{8,}|AQ\.[\w*-]{8,}|ya29\.[\w*.-]{8,}|(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|Bearer\s{1,9}[\w.~+/*-]{8,}=*)"
)
_URL = re.compile(r"https?://[^\s<>\"']+")
_TITLE = re.compile(r"<title[^<>]*>([^<]*)</title", re.IGNORECASE)
_UNSEEN = re.compile(r"<(script|style)\b.*?</\1\s{0,9}>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")
# Embeddings, overrides and isolates: UAX #9, "Explicit Directional Embedding" to "… Isolates".
_REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")


def redact_url(reference: str) -> str:
    """An image reference without what gives access: a URL's query, fragment, user and password.

    A reference that is not quite a URL may be meant as one (`host/a.png?signature=…`).
    """
    signed = _SIGNED if "://" in reference else _PARAMETERS
    return signed.sub("?…", _USER_INFO.sub(r"\1…@", reference))


def redact_urls(text: str) -> str:
    """A text whose URLs do not give access."""
    return _URL.sub(lambda url: redact_url(url[0]), text)


def printable(text: str, keep: str = "") -> str:
    """The text with a placeholder for each control, format and surrogate character not in `keep`.

    What a terminal would act on: escape sequences, line breaks, reversed writing.
    """
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def in_written_order(text: str) -> str:
    """The text with a placeholder for each character that makes others show in another order.

    With U+202E, `photo_gpj.exe` shows as `photo_exe.jpg`. The marks that text from right to left
    needs between letters (U+200E, U+200F, U+061C) stay.
    """
    return text if text.isascii() else _REORDERING.sub("\N{REPLACEMENT CHARACTER}", text)


def clean_text(text: str, *secrets: str) -> str:
    """A text from outside (a provider, a web server), safe to store and to show anywhere.

    One line of at most 500 characters, without control characters, markup, image data, `secrets`,
    what looks like a key, or what gives access in URLs. A page becomes its title.
    """
    text = text[:_RAW_CHARACTERS]
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[key]")
    text = text[:_MARKUP_CHARACTERS]
    if (title := _TITLE.search(text)) is not None:
        text = title[1]
    text = _TAG.sub(" ", _UNSEEN.sub(" ", text))
    text = printable(" ".join(text.split()))
    text = redact_urls(text)
    text = _KEY_LIKE.sub("[key]", _DATA.sub("[data]", text))
    text = " ".join(text.split())
    return text if len(text) <= DETAIL_CHARACTERS else f"{text[: DETAIL_CHARACTERS - 2]} …"


def quoted(value: str) -> str:
    """A value from the user, in quotes: redacted, on one line, of limited length."""
    text = printable(redact_url(value))
    if len(text) > _SHOWN_CHARS:
        text = text[: _SHOWN_CHARS - 1] + "…"
    return f"'{text}'"


def quoted_list(names: Iterable[str]) -> str:
    """`'a', 'b' and 'c'`, cut after a dozen."""
    shown = [quoted(name) for name in names]
    if len(shown) > _LISTED:
        shown = [*shown[:_LISTED], f"{len(shown) - _LISTED} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def examples(first: Sequence[str], count: int) -> str:
    """`one; another; a third; and 7 more`: EXAMPLES of the first ones, of `count` in all."""
    shown = first[:EXAMPLES]
    more = count - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more" if more > 0 else "")


def plural(count: int, noun: str) -> str:
    """`1,000 rows`, `1 row`, `3 batches`."""
    ending = "es" if noun.endswith("ch") else "s"
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def money(usd: float) -> str:
    """`$12.30`; below a dollar as many as four decimals: `$0.039`."""
    if usd == 0 or abs(usd) >= 1:
        return f"${usd:,.2f}"
    whole, _, fraction = f"{usd:.4f}".rstrip("0").partition(".")
    return f"${whole}.{fraction.ljust(2, '0')}"


def duration(seconds: float) -> str:
    """`0.4 s`, `45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole == 0 and seconds > 0:
        return f"{seconds:.1f} s"
    for size, unit, small_size, small_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            remainder = whole % size // small_size
            return f"{whole // size} {unit}" + (f" {remainder} {small_unit}" if remainder else "")
    return f"{whole} s"


def describe_validation(
    error: "ValidationError", subject: str = "", fields: Mapping[str, str] | None = None
) -> str:
    """Every problem by its field, never with the value (it may be a key).

    A problem that only follows from another is left out: one inside the same field, or the lack of
    the field that an unknown one was meant to be. `fields` are the fields that an unknown one may
    mean, by their names and other names that people use.
    """
    fields = fields or {}
    found = error.errors(include_input=False, include_url=False, include_context=False)
    found.sort(key=lambda problem: problem["type"] != "extra_forbidden")  # unknown fields first
    inner = {p["loc"][:depth] for p in found for depth in range(len(p["loc"]))}
    meant = {(*p["loc"][:-1], _meant_field(p, fields)) for p in found}
    problems = [
        f"{_field_path(problem['loc'])}: {_validation_message(problem, fields or {})}".removeprefix(
            ": "
        )
        for problem in found
        if problem["loc"] not in inner | meant
    ]
    if len(problems) > _LISTED_PROBLEMS:
        more = len(problems) - _LISTED_PROBLEMS
        problems = [*problems[:_LISTED_PROBLEMS], f"and {more} more"]
    return (f"{subject}: " if subject else "") + "; ".join(problems)


def _field_path(location: tuple[int | str, ...]) -> str:
    """`("endpoints", 0, "api_keys")` -> `endpoints[0].api_keys`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).removeprefix(".")


def _meant_field(problem: "ErrorDetails", fields: Mapping[str, str]) -> str | None:
    """The field that an unknown one was probably meant to be; None for other problems."""
    if problem["type"] != "extra_forbidden":
        return None
    close = get_close_matches(str(problem["loc"][-1]).lower(), fields, n=1)
    return fields[close[0]] if close else None


def _validation_message(problem: "ErrorDetails", fields: Mapping[str, str]) -> str:
    if problem["type"] == "extra_forbidden":
        meant = _meant_field(problem, fields)
        return f"no such field, did you mean {meant}?" if meant else "no such field"
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    message = message.replace("Field required", "is missing")
    return message[:1].lower() + message[1:]
