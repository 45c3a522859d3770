"""HTML that escapes by construction: text goes in as str, only `tag` makes markup.

A page of a few elements needs no template engine; a string that did not come from `tag` can only
ever be text.
"""

from collections.abc import Iterable
from html import escape

type Child = Safe | str | Iterable[Child] | None

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Safe(str):
    """Markup that is escaped already."""

    __slots__ = ()


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Safe:
    """One element. `class_` is class, `data_x` is data-x; None and False leave an attribute out."""
    head = name + "".join(_attribute(k, v) for k, v in attributes.items())
    if name in _VOID:
        return Safe(f"<{head}>")
    return Safe(f"<{head}>{render(children)}</{name}>")


def render(children: Child) -> Safe:
    """Children one after the other; text escaped."""
    if children is None:
        return Safe("")
    if isinstance(children, Safe):
        return children
    if isinstance(children, str):
        return Safe(escape(children, quote=False))
    return Safe("".join(render(child) for child in children))


def raw_text(name: str, content: str) -> Safe:
    """A style element: its content is not HTML and is written as it stands.

    Raises ValueError if the content would end the element.
    """
    if "</" in content:
        raise ValueError(f"the content of <{name}> must not contain '</'")
    return Safe(f"<{name}>{content}</{name}>")


def _attribute(name: str, value: str | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    written = name.rstrip("_").replace("_", "-")
    return f" {written}" if value is True else f' {written}="{escape(str(value))}"'
