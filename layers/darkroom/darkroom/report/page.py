"""The frame of every page: head, content security policy, style sheet."""

from base64 import b64encode
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from importlib.resources import files

from darkroom.report.html import Child, raw_text, tag
from darkroom.report.lines import RowStatus

PROVIDERS = ("gemini", "openai", "none")  # "none": no provider was called for the row
STATUSES = tuple(s.value for s in RowStatus)


def page(title: str, *content: Child) -> bytes:
    """A whole document. It loads nothing from anywhere and runs no script, and says so."""
    style = stylesheet()
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="robots", content="noindex"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        raw_text("style", style),
    )
    body = tag("body", tag("div", content, class_="page"))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n".encode()


@cache
def stylesheet() -> str:
    """The style sheet with the rules that make the filters work without a script."""
    written = files("darkroom.report").joinpath("gallery.css").read_text("utf-8")
    return written + "\n" + "\n".join(_filter_rules()) + "\n"


def _filter_rules() -> Iterable[str]:
    for status in STATUSES:
        yield f"body:has(#s-{status}:checked) .card:not(.s-{status}) {{ display: none; }}"
    for provider in PROVIDERS:
        yield f"body:has(#p-{provider}:checked) .card:not(.p-{provider}) {{ display: none; }}"
    # Said when no card is left: the element carries a class for every choice without a card.
    for status in ("all", *STATUSES):
        for provider in ("all", *PROVIDERS):
            chosen = f"body:has(#s-{status}:checked):has(#p-{provider}:checked)"
            yield f"{chosen} .none.x-{status}-{provider} {{ display: block; }}"
