"""The frame of every HTML page that Darkroom writes, and how values appear in it.

Pages extend templates/base.html: its policy allows one style sheet and one script by their hashes.
"""

from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from darkroom.formatting import duration, in_written_order, money, plural, redact_url, redact_urls

TEMPLATES = Path(__file__).parent / "templates"
_MAX_EMBEDDED_BYTES = 400_000


def page_environment(*folders: Path) -> Environment:
    """Templates of `folders`, and those here. Values are escaped, undefined names are errors."""
    environment = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        data_uri=_data_uri,
        digest=_digest,
        duration=duration,
        image_name=image_name,
        is_public_link=_is_public_link,
        money=money,
        percent="{:.1%}".format,
        plural=plural,
        rate=_rate,
        redact_url=redact_url,
        redact_urls=redact_urls,
        seconds=lambda ms: f"{ms / 1000:.1f} s",
        thousands="{:,}".format,
        utc="{0.day} {0:%b %Y, %H:%M:%S} UTC".format,
    )
    return environment


def _finalize(value: object) -> object:
    """Every value of a template before it is escaped."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return in_written_order(value)
    return value


def _digest(text: str) -> str:
    """The hash by which a policy allows an inline style sheet or script."""
    return b64encode(sha256(text.encode()).digest()).decode()


def _data_uri(thumb: bytes | None) -> str | None:
    """The image inline; None if there is none, or none that a page may embed."""
    if thumb is None or len(thumb) > _MAX_EMBEDDED_BYTES:
        return None
    if thumb[:4] == b"RIFF" and thumb[8:12] == b"WEBP":
        mime = "webp"
    elif thumb.startswith(b"\x89PNG"):
        mime = "png"
    elif thumb.startswith(b"\xff\xd8"):
        mime = "jpeg"
    else:
        return None
    return f"data:image/{mime};base64,{b64encode(thumb).decode()}"


def image_name(reference: str | None) -> str:
    if reference is None or reference.startswith("data:"):
        return "the image"
    return redact_url(reference).removesuffix("?…").rsplit("/", 1)[-1] or "the image"


def _is_public_link(reference: str) -> bool:
    """A URL without what gives access. Anybody with the page can read what it links to."""
    shown = in_written_order(redact_url(reference))
    return reference.startswith("https://") and shown == reference


def _rate(per_second: float) -> str:
    """`38.4 a minute`; slower ones by the hour or the day: `3.0 an hour`."""
    for unit, seconds in (("a minute", 60), ("an hour", 3_600)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:,.1f} {unit}"
    return f"{per_second * 86_400:,.1f} a day"
