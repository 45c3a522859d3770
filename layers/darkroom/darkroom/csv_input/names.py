"""Names of rows and images: valid as file names on every system, and unique within a job."""

import re
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

from darkroom.formatting import quoted

OUTPUT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_OTHER_FORMATS = (
    *(".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".ico"),
    *(".svg", ".pdf", ".psd", ".exr", ".tga", ".raw", ".dng"),
)
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?<![.])", re.ASCII)
_CONTENT_KEY = re.compile(r"row-[0-9a-f]{12}(_[1-9][0-9]*)?", re.ASCII)
_FORBIDDEN = re.compile(r'[\\:*?"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]')
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_WINDOWS_DEVICES = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE
)
_RESERVED_FOLDERS = ("images", "thumbs")
_MAX_PART_BYTES = 200  # file systems allow 255; copies and thumbnails add a few
_MAX_STEM_BYTES = 120  # of a name after an image: a key may follow
_WEB_URL = re.compile(r"https?://", re.IGNORECASE)
# Most URLs are so plain that their stem need not be parsed: a fifth of the time of a pass.
_PLAIN_URL = re.compile(
    r"https?://[a-z0-9.-]+/(?:[a-z0-9._-]*/)*([a-z0-9_-]{1,100})\.(?:png|jpe?g|webp)",
    re.ASCII | re.IGNORECASE,
)
_IMAGE_SUFFIX = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|avif|hei[cf])$", re.IGNORECASE)
_MAX_NAME_BYTES = 500  # an S3 key may have 1,024 with the job's prefix


def parse_key(text: str) -> str:
    """A value of the index column. Raises ValueError unless it can be part of file names."""
    if _KEY.fullmatch(text) is None or _WINDOWS_DEVICES.fullmatch(text):
        raise ValueError(
            f"{quoted(text)} cannot be used as a file name: use up to 100 letters (a-z), digits, "
            "dots, dashes and underscores, beginning with a letter or digit"
        )
    return text


def content_key(digest: str, occurrence: int) -> str:
    """The key of a row without an index: by its content, and its number among equal rows from 1.

    It can stand in the index column, where it identifies the same row.
    """
    return f"row-{digest}" + (f"_{occurrence}" if occurrence > 1 else "")


def is_content_key(key: str) -> bool:
    return _CONTENT_KEY.fullmatch(key) is not None


def parse_output_name(text: str) -> str:
    """The image's path below the job's `images/`; the extension `.png` is added where it has none.

    Raises ValueError for a path that leaves that folder, that some system cannot store, or whose
    extension is a format that no provider returns.
    """
    problem, name = None, normalize("NFC", text)
    parts = name.removeprefix("images/").split("/")
    suffix = "." + parts[-1].rpartition(".")[2].lower() if "." in parts[-1] else ""
    if forbidden := _FORBIDDEN.search(name):
        found = forbidden[0]
        shown = f"'{found}'" if found.isprintable() else f"the character U+{ord(found):04X}"
        problem = f"contains {shown}, which some systems do not allow in a file name"
    elif name.startswith("/"):
        problem = "begins with a slash: write a name or a path below the job's images folder"
    elif part_problems := [problem for part in parts if (problem := _part_problem(part))]:
        problem = part_problems[0]
    elif any(part.casefold() in _RESERVED_FOLDERS for part in parts[:-1]):
        problem = "uses a folder named images or thumbs, which are reserved for Darkroom's files"
    elif any(part.lower().endswith(OUTPUT_SUFFIXES) for part in parts[:-1]):
        problem = "uses a folder that is named like an image: no folder can hold both"
    elif suffix in _OTHER_FORMATS:
        problem = f"has the extension {suffix}: the formats are {', '.join(OUTPUT_SUFFIXES)}"
    else:
        name = "/".join(parts) + ("" if suffix in OUTPUT_SUFFIXES else ".png")
        if len(name.encode()) > _MAX_NAME_BYTES:
            problem = f"is longer than {_MAX_NAME_BYTES} bytes"
    if problem:
        raise ValueError(f"{quoted(text)} {problem}")
    return name


def is_portable(part: str) -> bool:
    """The name of a file or folder that every system can store, in any parent folder."""
    return _FORBIDDEN.search(part) is None and _part_problem(part) is None


def _part_problem(part: str) -> str | None:
    if part in ("", ".", ".."):
        return "leaves its folder or has an empty part: write a plain name or path"
    if part.startswith(".") or part != part.strip() or part.endswith("."):
        return "has a part that begins with a dot, or ends with a dot or a space"
    if _WINDOWS_DEVICES.fullmatch(part):
        return f"uses {part}, a name that Windows reserves for a device"
    if len(part.encode()) > _MAX_PART_BYTES:
        return f"has a part of more than {_MAX_PART_BYTES} bytes"
    return None


def file_stem(reference: str) -> str:
    """The file name of an image reference without its extension, as every system can store it.

    Empty if the reference has none.
    """
    plain = _PLAIN_URL.fullmatch(reference)
    name = plain[1] if plain else _parse_stem(reference)
    return f"_{name}" if _WINDOWS_DEVICES.fullmatch(name) else name


def _parse_stem(reference: str) -> str:
    path = reference
    if _WEB_URL.match(reference):
        try:
            path = unquote(urlsplit(reference).path)
        except ValueError:  # no valid URL
            return ""
    name = _IMAGE_SUFFIX.sub("", normalize("NFC", re.split(r"[/\\]", path)[-1]))
    name = _FORBIDDEN.sub("_", name).lstrip(" .").encode()[:_MAX_STEM_BYTES].decode(errors="ignore")
    return name.rstrip(" .")


def default_names(row: int, key: str, images: Sequence[str]) -> list[str]:
    """Names for the image of a row that has no output_name, the best first.

    The last one is unique within the job, like `key`.
    """
    plain = plain_names(row, key, images)
    return [*plain, name_with_key(plain[0], key)]


def plain_names(row: int, key: str, images: Sequence[str]) -> list[str]:
    """Of the default names those that do not depend on a key by content.

    `images` are the row's references.
    """
    index = "" if is_content_key(key) else key
    stem = file_stem(images[0]) if images else ""
    if not stem:
        return [f"{index or f'{row:06d}'}.png"]
    return [f"{stem}.png", f"{stem}-{index}.png"] if index else [f"{stem}.png"]


def name_with_key(name: str, key: str) -> str:
    """The name that an image takes where another row's has `name`."""
    digest = key.removeprefix("row-")
    if digest == key:
        digest = blake2b(key.encode(), digest_size=6).hexdigest()
    stem, _, suffix = name.rpartition(".")
    return f"{stem}-{digest}.{suffix}"


def image_names(output_name: str, n: int) -> list[str]:
    """The paths of all `n` images of a row, as ResultPaths.image names them."""
    if n == 1:
        return [output_name]
    stem, _, suffix = output_name.rpartition(".")
    return [output_name, *(f"{stem}-{copy}.{suffix}" for copy in range(1, n))]


class TooManyNames(Exception):
    """A table of names is full."""


_MAX_SLOTS = 2**25


class _NameTable:
    """A number for each name, in 12 bytes per slot: a million names take 25 MB.

    At most `max_slots` slots, two thirds of them used: 22 million names in 403 MB by default, and
    half as much again while the table grows. A pass over a CSV has three tables: two of this size,
    and one of the rows' contents, which needs half of it for MAX_ROWS (reader.py). Of the 1,769 MB
    of the splitter and the reporter they take at most 1.2 GB.

    Names are stored as 64-bit digests (in a job of a million names, two collide with a probability
    of 1 in 40 million) and compared ignoring case, as the file systems of macOS and Windows do.
    """

    def __init__(self, max_slots: int = _MAX_SLOTS) -> None:
        self._count, self._max_slots = 0, max_slots
        self._resize(1024)

    def _find(self, name: str) -> tuple[int, int]:
        """The name's digest, and the slot that has it, or would get it."""
        folded = name.lower() if name.isascii() else normalize("NFC", name).casefold()
        digest = blake2b(folded.encode(), digest_size=8).digest()
        number = int.from_bytes(digest) or 1
        return number, self._slot(number)

    def _insert(self, number: int, slot: int, value: int) -> None:
        """Use an empty slot. Raises TooManyNames when the table is full."""
        if (self._count + 1) * 3 > len(self._numbers) * 2:
            if len(self._numbers) >= self._max_slots:
                raise TooManyNames
            self._grow()
            slot = self._slot(number)
        self._numbers[slot] = number
        self._values[slot] = value
        self._count += 1

    def _slot(self, number: int) -> int:
        mask = len(self._numbers) - 1
        slot = number & mask
        while self._numbers[slot] not in (0, number):
            slot = (slot + 1) & mask
        return slot

    def _resize(self, slots: int) -> None:
        self._numbers = array("Q", [0]) * slots
        self._values = array("I", [0]) * slots

    def _grow(self) -> None:
        numbers, values = self._numbers, self._values
        self._resize(2 * len(numbers))
        for number, value in zip(numbers, values, strict=True):
            if number:
                slot = self._slot(number)
                self._numbers[slot] = number
                self._values[slot] = value


class UsedNames(_NameTable):
    """Which row used a name first."""

    def first_user(self, name: str, row: int) -> int | None:
        """The row that used the name before. If there was none, `row` is recorded as the first.

        Raises TooManyNames for a new name when the table is full.
        """
        number, slot = self._find(name)
        if self._numbers[slot]:
            return self._values[slot]
        self._insert(number, slot, row)
        return None


class NameCounts(_NameTable):
    """How often each name was used."""

    def add(self, name: str) -> int:
        """Count the name once more: 1 for the first time.

        Raises TooManyNames for a new name when the table is full.
        """
        number, slot = self._find(name)
        if self._numbers[slot]:
            self._values[slot] += 1
            return self._values[slot]
        self._insert(number, slot, 1)
        return 1

    def count(self, name: str) -> int:
        return self._values[self._find(name)[1]]


class ImageNames:
    """Chooses names for the images of rows without an output_name, unique within the job.

    First `add` every row of the CSV. Then a row gets the first of its names that no other row has
    among its own: so which name it gets does not depend on the order of the rows.
    """

    def __init__(self, max_slots: int = _MAX_SLOTS) -> None:
        self._counts = NameCounts(max_slots)
        self._full = False

    def add(self, names: Sequence[str], n: int) -> None:
        """`names` as of `plain_names`, or an output_name alone; `n` images of the row."""
        try:
            for name in names:
                for image in image_names(name, n):
                    self._counts.add(image)
        except TooManyNames:
            self._full = True

    def choose(self, names: Sequence[str], n: int) -> str:
        """One of `names`, as of `default_names`."""
        for name in () if self._full else names[:-1]:
            if all(self._counts.count(image) == 1 for image in image_names(name, n)):
                return name
        return names[-1]
