"""Small helpers for sentences that people read."""

import re
from collections.abc import Iterable

SHOWN_CHARS = 80
_LISTED = 12
_SIGNED = re.compile(r"[?#].*", re.DOTALL)
_USER_INFO = re.compile(r"://[^/]*@")


def unsigned(reference: str) -> str:
    """An image reference without what gives access: a URL's query, fragment, user and password."""
    if "://" not in reference:
        return reference
    return _SIGNED.sub("?…", _USER_INFO.sub("://…@", reference))


def shown(value: str) -> str:
    """The user's own words in quotes, on one line, cut, and `unsigned`."""
    text = unsigned(value)
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if len(text) > SHOWN_CHARS:
        text = text[: SHOWN_CHARS - 1] + "…"
    return f"'{text}'"


def listed(names: Iterable[str]) -> str:
    """`'a', 'b' and 'c'`, cut after a dozen."""
    words = [shown(name) for name in names]
    if len(words) > _LISTED:
        words = [*words[:_LISTED], f"{len(words) - _LISTED} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
