"""Names of rows and pictures: safe as file names on every system, and used once per job."""

import re
from array import array
from collections.abc import Callable
from hashlib import blake2b
from unicodedata import normalize

from darkroom.errors import Reason, RowRejected
from darkroom.formatting import quoted

OUTPUT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_OTHER_FORMATS = (
    *(".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".ico"),
    *(".svg", ".pdf", ".psd", ".exr", ".tga", ".raw", ".dng"),
)
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?<![.])", re.ASCII)
_FORBIDDEN = re.compile(r'[\\:*?"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]')
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.ASCII | re.IGNORECASE)
_OUR_FOLDERS = ("images", "thumbs")
_LONGEST_PART = 200  # bytes; file systems take 255, copies and thumbnails add a few
_LONGEST_NAME = 500  # bytes; an S3 key takes 1,024 with the job's prefix


def default_key(row: int) -> str:
    """Row 7 -> `000007`."""
    return f"{row:06d}"


def check_key(value: str, column: str) -> str:
    """A value of the index column that can name the row's files. Raises RowRejected (bad_input)."""
    if _KEY.fullmatch(value) is None or _WINDOWS_DEVICES.fullmatch(value):
        raise RowRejected(
            Reason.BAD_INPUT,
            f"column {column}: {quoted(value)} cannot name a file: use up to 100 letters (a-z), "
            "digits, dots, dashes and underscores, beginning with a letter or digit",
        )
    return value


def check_output_name(value: str, column: str) -> str:
    """The picture's path under the job's `images/`, with an extension; `.png` where it has none.

    Raises RowRejected (bad_input) for a name that would leave that folder, that some system cannot
    store, or that asks for a format no provider gives.
    """

    def refuse(why: str) -> RowRejected:
        return RowRejected(Reason.BAD_INPUT, f"column {column}: {quoted(value)} {why}")

    name = normalize("NFC", value)
    found = _FORBIDDEN.search(name)
    if found:
        raise refuse(
            f"holds {_character(found[0])}, which some systems cannot store in a file name"
        )
    if name.startswith("/"):
        raise refuse("begins with a slash: give a name or a path below the job's images folder")
    parts = name.removeprefix("images/").split("/")
    for part in parts:
        _check_part(part, refuse)
    if any(part.casefold() in _OUR_FOLDERS for part in parts[:-1]):
        raise refuse("uses a folder named images or thumbs, where Darkroom keeps its own files")
    name = "/".join(parts)
    suffix = "." + parts[-1].rpartition(".")[2].lower() if "." in parts[-1] else ""
    if suffix in _OTHER_FORMATS:
        raise refuse(f"asks for {suffix}: the formats are {', '.join(OUTPUT_SUFFIXES)}")
    if suffix not in OUTPUT_SUFFIXES:
        name += ".png"
    if len(name.encode()) > _LONGEST_NAME:
        raise refuse(f"is longer than {_LONGEST_NAME} bytes")
    return name


def _check_part(part: str, refuse: Callable[[str], RowRejected]) -> None:
    if part in ("", ".", ".."):
        raise refuse("leaves its folder or has an empty part: give a plain name or path")
    if part.startswith(".") or part != part.strip() or part.endswith("."):
        raise refuse("has a part that begins with a dot, or ends with a dot or a blank")
    if _WINDOWS_DEVICES.fullmatch(part):
        raise refuse(f"uses {part}, a name Windows keeps for a device")
    if len(part.encode()) > _LONGEST_PART:
        raise refuse(f"has a part of more than {_LONGEST_PART} bytes")


def _character(character: str) -> str:
    return f"'{character}'" if character.isprintable() else f"the character U+{ord(character):04X}"


def copies(output_name: str, n: int) -> list[str]:
    """The paths of all pictures of a row that asks for `n`, as ResultPaths.image names them."""
    stem, _, suffix = output_name.rpartition(".")
    return [output_name, *(f"{stem}-{copy}.{suffix}" for copy in range(1, n))]


class UsedNames:
    """Which row was first to use a name, in 12 bytes a slot: a million names take 25 MB.

    Names are kept as 64-bit digests (two of a million names meet by chance once in 40 million jobs)
    and compared without regard to case, as the disks of macOS and Windows do.
    """

    def __init__(self) -> None:
        self._count = 0
        self._resize(1024)

    def first_user(self, name: str, row: int) -> int | None:
        """The row that uses the name already, or None: it is `row`'s from now on."""
        digest = blake2b(normalize("NFC", name).casefold().encode(), digest_size=8).digest()
        number = int.from_bytes(digest) or 1
        slot = self._slot(number)
        if self._numbers[slot]:
            return self._rows[slot]
        self._numbers[slot] = number
        self._rows[slot] = row
        self._count += 1
        if self._count * 3 > len(self._numbers) * 2:
            self._grow()
        return None

    def _slot(self, number: int) -> int:
        mask = len(self._numbers) - 1
        slot = number & mask
        while self._numbers[slot] not in (0, number):
            slot = (slot + 1) & mask
        return slot

    def _resize(self, slots: int) -> None:
        self._numbers = array("Q", bytes(8 * slots))
        self._rows = array("I", bytes(4 * slots))

    def _grow(self) -> None:
        numbers, rows = self._numbers, self._rows
        self._resize(2 * len(numbers))
        for number, row in zip(numbers, rows, strict=True):
            if number:
                slot = self._slot(number)
                self._numbers[slot] = number
                self._rows[slot] = row
