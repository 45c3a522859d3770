"""The header row: which column means what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from darkroom.errors import JobRejected
from darkroom.jobs import JobOptions
from darkroom.texts import listed, shown

# The names a column may go by, the most particular first.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "images": ("image_url", "input_images", "images", "image"),
    "instruction": ("instruction", "prompt"),
    "index": ("index", "id"),
    "mask": ("mask_url", "mask"),
    "aspect_ratio": ("aspect_ratio",),
    "resolution": ("resolution",),
    "size": ("size",),
    "quality": ("quality",),
    "background": ("background",),
    "n": ("n",),
    "output_name": ("output_name",),
    "model": ("model",),
}
KNOWN_NAMES = frozenset(name for names in ALIASES.values() for name in names)
_LONGEST_NAME = 100


def normalized(name: str) -> str:
    """Header names are compared without regard to case, spaces and dashes: "Image URL"."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Columns:
    """Where each field lies in a row. Columns that mean nothing here are carried on."""

    header: tuple[str, ...]
    positions: Mapping[str, int]
    warnings: tuple[str, ...] = field(default=())

    def has(self, field_name: str) -> bool:
        return field_name in self.positions

    def name(self, field_name: str) -> str:
        """The column's name as the user wrote it."""
        return self.header[self.positions[field_name]]

    def cell(self, cells: Sequence[str], field_name: str) -> str:
        """The field's cell without surrounding blanks; empty where there is none."""
        position = self.positions.get(field_name)
        if position is None or position >= len(cells):
            return ""
        return cells[position].strip()

    def align(self, cells: Sequence[str]) -> tuple[str, ...]:
        """As many cells as the header has names."""
        width = len(self.header)
        return tuple(cells[:width]) + ("",) * (width - len(cells))


def read_columns(header: tuple[str, ...], options: JobOptions) -> Columns:
    """Raises JobRejected: no header, no instruction column, a named column that is not there."""
    names = [normalized(name) for name in header]
    positions: dict[str, int] = {}
    warnings: list[str] = []
    chosen = {"instruction": options.instruction_column, "output_name": options.output_name_column}
    for field_name, aliases in ALIASES.items():
        wanted = chosen.get(field_name)
        if wanted is not None:
            option = f"{field_name.replace('_', '-')}-column"
            positions[field_name] = _find_named(wanted, option, header)
            continue
        present = [alias for alias in aliases if alias in names]
        if not present:
            continue
        if names.count(present[0]) > 1:
            raise JobRejected(
                f"The header row has the column {shown(present[0])} {names.count(present[0])} "
                "times: keep one."
            )
        positions[field_name] = names.index(present[0])
        if len(present) > 1:
            warnings.append(
                f"The columns {listed(present)} mean the same: {shown(present[0])} is used, "
                "the others are only carried into the manifest."
            )
    if "instruction" not in positions:
        raise JobRejected(_no_instruction(header))
    return Columns(header, positions, tuple(warnings))


def _find_named(wanted: str, option: str, header: tuple[str, ...]) -> int:
    if header.count(wanted) == 1:
        return header.index(wanted)
    matches = [i for i, name in enumerate(header) if normalized(name) == normalized(wanted)]
    if len(matches) == 1:
        return matches[0]
    problem = "is there more than once" if matches else "is not there"
    raise JobRejected(
        f"The column {shown(wanted)} that {option} names {problem}: the columns are "
        f"{listed(header)}."
    )


def _no_instruction(header: tuple[str, ...]) -> str:
    for name in header:
        if "://" in name or len(name) > _LONGEST_NAME or name.replace(".", "").isdigit():
            return (
                f"The file has no header row: its first row holds {shown(name)}. Add one such as "
                "image_url,instruction."
            )
    return (
        f"No column says what to do: the columns are {listed(header)}. Name one instruction (or "
        "prompt), or say which it is with the option instruction-column."
    )
