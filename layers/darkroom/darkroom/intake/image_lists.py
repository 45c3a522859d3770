"""The cell that names a row's images: one, a JSON list, or several between commas or bars."""

import json
import re

from darkroom.errors import Reason, RowRejected
from darkroom.texts import shown

MAX_IMAGES = 16  # what the most generous model takes
_LONGEST_REFERENCE = 8_192  # presigned URLs with session tokens take about 2,000
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_STARTS_URL = re.compile(r"\s*(https?|s3)://", re.IGNORECASE)
_ENDS_AS_IMAGE = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic)$", re.IGNORECASE)
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def split_references(cell: str, column: str) -> tuple[str, ...]:
    """References in the order written; none for an empty cell.

    A cell that begins with `[` is a JSON list. Else `|` and line ends separate, and where there are
    none, commas do. A comma belongs to the URL before it (`…/w_400,h_300/a.jpg`) unless a blank or
    another URL follows it, or what stands on both sides ends like an image's name.

    Raises RowRejected (bad_input).
    """
    if cell.startswith("["):
        references = _from_json(cell, column)
    elif "|" in cell or "\n" in cell:
        references = [part.strip() for part in re.split(r"[|\r\n]+", cell)]
    else:
        references = _split_commas(cell)
    references = [reference for reference in references if reference]
    if len(references) > MAX_IMAGES:
        raise RowRejected(
            Reason.BAD_INPUT,
            f"column {column} names {len(references)} images: no model takes more than "
            f"{MAX_IMAGES}",
        )
    for reference in references:
        check_reference(reference, column)
    return tuple(references)


def check_reference(reference: str, column: str) -> None:
    """An https, http or s3 URL or a path; what may be fetched is decided when it is.

    Raises RowRejected (bad_input).
    """
    problem = None
    scheme = _SCHEME.match(reference)
    if len(reference) > _LONGEST_REFERENCE:
        problem = f"is longer than {_LONGEST_REFERENCE:,} characters"
    elif _FORBIDDEN.search(reference):
        problem = "holds a control character"
    elif scheme and scheme[1].lower() == "data":
        raise RowRejected(
            Reason.BAD_INPUT,
            f"column {column} holds the image itself (data:): upload the image to S3 and name it",
        )
    elif scheme and (scheme[1].lower() not in ("https", "http", "s3") or not scheme[2]):
        problem = "is neither an https:// or s3:// URL nor a path relative to the CSV"
    elif scheme and not reference[scheme.end() :].strip("/"):
        problem = "names no host or bucket"
    if problem:
        raise RowRejected(Reason.BAD_INPUT, f"column {column}: {shown(reference)} {problem}")


def _from_json(cell: str, column: str) -> list[str]:
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise RowRejected(
            Reason.BAD_INPUT,
            f"column {column} begins like a JSON list but is none: {shown(cell)}, write "
            '["a.jpg", "b.jpg"]',
        ) from error
    if not all(isinstance(value, str) for value in values):
        raise RowRejected(
            Reason.BAD_INPUT, f"column {column}: the JSON list must hold texts only: {shown(cell)}"
        )
    return [value.strip() for value in values]


def _split_commas(cell: str) -> list[str]:
    pieces = cell.split(",")
    references = [pieces[0]]
    for piece in pieces[1:]:
        if _separates(references[-1], piece):
            references.append(piece)
        else:
            references[-1] += "," + piece
    return [reference.strip() for reference in references]


def _separates(before: str, after: str) -> bool:
    """Whether the comma between them ends a reference."""
    if not _STARTS_URL.match(before) or _STARTS_URL.match(after) or after[:1].isspace():
        return True
    if not after.strip():
        return True
    return bool(_ENDS_AS_IMAGE.search(before) and _ENDS_AS_IMAGE.search(after))
