"""One row of the gallery: before and after side by side, and how it came about."""

from base64 import b64encode
from dataclasses import dataclass
from urllib.parse import quote

from darkroom.report.advice import advice
from darkroom.report.html import Child, Safe, tag
from darkroom.report.lines import ReportLine, RowStatus
from darkroom.report.page import PROVIDERS

MOST_THUMB_BYTES = 400_000
_MOST_SOURCES = 3
_LONG_SOURCE = 120
_LONG_INSTRUCTION = 260  # characters shown before the rest folds away


@dataclass(frozen=True, slots=True)
class Thumbs:
    """The small pictures of a row as the editor stored them; None where there is none."""

    before: bytes | None = None
    after: bytes | None = None


def provider_class(line: ReportLine) -> str:
    return line.provider if line.provider in PROVIDERS else "none"


def card(line: ReportLine, thumbs: Thumbs, job: str) -> Safe:
    """The row as an article with the id `r-<row>`."""
    return tag(
        "article",
        _pair(line, thumbs, job),
        tag(
            "div",
            _chips(line),
            _instruction(line),
            _boxes(line),
            _copies(line, job),
            _sources(line),
            _facts(line),
            class_="body",
        ),
        id=f"r-{line.row}",
        class_=f"card s-{line.status.value} p-{provider_class(line)}",
        aria_label=f"Row {line.row}, {line.status.value}",
    )


def relative(output: str, job: str) -> str:
    """The link from a page to a picture of the same job, in the bucket and in a download."""
    return quote(output.removeprefix(f"{job}/"))


def _pair(line: ReportLine, thumbs: Thumbs, job: str) -> Safe | None:
    if not line.outputs:
        return None  # nothing to look at: the words are the card
    before, after = _before(line, thumbs.before), _after(line, thumbs.after, job)
    return tag("div", before, after, class_="pair")


def _before(line: ReportLine, thumb: bytes | None) -> Safe:
    first = line.images[0] if line.images else None
    source = data_uri(thumb)
    if source is None:
        return _blank("No picture went in: made from text" if first is None else "No preview")
    picture: Safe = tag("img", src=source, alt=f"Before: {_name(first)}", **_LAZY)
    if first is not None and first.startswith("https://"):
        picture = tag("a", picture, href=first, rel="noreferrer", title="Open the source picture")
    more = len(line.images) - 1
    return tag("figure", picture, tag("figcaption", "Before" + (f" + {more}" if more > 0 else "")))


def _after(line: ReportLine, thumb: bytes | None, job: str) -> Safe:
    source = data_uri(thumb)
    if source is None:
        picture: Safe = tag("figcaption", "No preview")
    else:
        picture = tag("img", src=source, alt=f"After: {_told(line)}", **_LAZY)
    link = tag("a", picture, href=relative(line.outputs[0], job), title="Open the full picture")
    return tag("figure", link, tag("figcaption", "After"))


_LAZY = {"loading": "lazy", "decoding": "async"}


def _blank(text: str) -> Safe:
    return tag("figure", tag("span", text), class_="blank")


def _name(reference: str | None) -> str:
    if reference is None or reference.startswith("data:"):
        return "the picture"
    return reference.split("?", 1)[0].rsplit("/", 1)[-1] or "the picture"


def _told(line: ReportLine) -> str:
    return line.instruction[:120] or "the edited picture"


def data_uri(thumb: bytes | None) -> str | None:
    """The picture inline; None if there is none, or it is not one a page should carry."""
    if thumb is None or len(thumb) > MOST_THUMB_BYTES:
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


def _chips(line: ReportLine) -> Safe:
    chips: list[Child] = [
        tag("a", f"Row {line.row}", href=f"#r-{line.row}", class_="num"),
        _chip(line.status.value, f"c-{line.status.value}"),
    ]
    if line.reason and line.status is not RowStatus.SKIPPED:
        chips.append(_chip(line.reason.replace("_", " "), f"c-{line.status.value}"))
    if line.provider:
        chips.append(_chip(line.provider))
    if line.fallback:
        chips.append(_chip("fallback", "c-warn"))
    if line.earlier:
        chips.append(_chip("earlier upload"))
    return tag("div", chips, class_="chips")


def _chip(text: str, kind: str = "") -> Safe:
    return tag("span", text, class_=f"chip {kind}".strip())


def _instruction(line: ReportLine) -> Safe | None:
    text = line.instruction.strip()
    if not text:
        return None
    if len(text) <= _LONG_INSTRUCTION:
        return tag("p", text, class_="say", dir="auto")
    start = text[:_LONG_INSTRUCTION].rsplit(None, 1)[0]
    fold = tag(
        "summary",
        tag("span", start, " … ", class_="cut"),
        _fold("all", "show all"),
        _fold("less", "show less"),
    )
    return tag("details", fold, tag("p", text), class_="say", dir="auto")


def _fold(kind: str, words: str) -> Safe:
    return tag("b", words, class_=f"fold-{kind}")


def _copies(line: ReportLine, job: str) -> Safe | None:
    """Links to the further pictures of a row with n > 1."""
    further = line.outputs[1:]
    links = ([tag("a", str(n), href=relative(o, job)), " "] for n, o in enumerate(further, 2))
    return tag("p", "More pictures: ", links, class_="more") if further else None


def _sources(line: ReportLine) -> Safe | None:
    """What went in, for a row without pictures to show."""
    if line.outputs or not line.images:
        return None
    shown = line.images[:_MOST_SOURCES]
    links = ([_source(reference), " "] for reference in shown)
    more = f"and {len(line.images) - len(shown)} more" if len(line.images) > len(shown) else None
    return tag("p", "Source: ", links, more, class_="more")


def _source(reference: str) -> Safe:
    text = reference if len(reference) <= _LONG_SOURCE else f"{reference[:_LONG_SOURCE]}…"
    if not reference.startswith("https://"):
        return tag("code", text)
    return tag("a", text, href=reference, rel="noreferrer")


def _boxes(line: ReportLine) -> list[Safe]:
    boxes: list[Safe] = []
    if line.status in (RowStatus.FAILED, RowStatus.DEAD):
        hint = tag("p", tag("b", "Next: "), advice(line.reason), class_="next")
        why = tag("p", line.detail) if line.detail else None
        boxes.append(tag("div", why, hint, class_=f"box b-{line.status.value}"))
    elif line.detail:
        boxes.append(tag("div", tag("p", line.detail), class_="box"))
    notes = list(line.warnings)
    if line.possible_duplicate_charges:
        notes.append(
            f"A crash hid {line.possible_duplicate_charges} answer(s) of the provider: "
            "it may have billed this row more than once."
        )
    if notes:
        boxes.append(tag("div", (tag("p", note) for note in notes), class_="box b-warn"))
    return boxes


def _facts(line: ReportLine) -> Safe | None:
    called = bool(line.endpoint or line.attempts)
    facts = {
        "Key": line.key if line.key and not _is_row_number(line) else "",
        "Model": line.model,
        "Endpoint": line.endpoint,
        "Cost": cost_text(line.cost_micro_usd) if called else "",
        "Attempts": str(line.attempts) if called else "",
        "Latency": seconds_text(line.latency_ms) if line.latency_ms else "",
    }
    pairs = [tag("div", tag("dt", k), tag("dd", v)) for k, v in facts.items() if v]
    return tag("dl", pairs, class_="facts") if pairs else None


def _is_row_number(line: ReportLine) -> bool:
    return line.key.isdecimal() and int(line.key) == line.row


def cost_text(micro_usd: int | None) -> str:
    """`39000` -> `$0.039`, at least cents."""
    if micro_usd is None:
        return "not known"
    text = f"{micro_usd / 1_000_000:.4f}".rstrip("0")
    whole, _, fraction = text.partition(".")
    return f"${int(whole):,}.{fraction.ljust(2, '0')}"


def seconds_text(ms: int) -> str:
    return f"{ms / 1000:.1f} s"
