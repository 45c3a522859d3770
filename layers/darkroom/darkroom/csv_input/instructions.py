"""The job option `instruction`: one text for all rows, in which `{name}` is a cell of the row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter

from darkroom.errors import JobRejected
from darkroom.formatting import quoted

_BRACES = (
    "The option instruction: braces enclose the name of a column, as in {name}; write {{ and }} "
    "for braces of the text."
)


@dataclass(frozen=True, slots=True)
class InstructionTemplate:
    """The parts of an instruction: texts, each followed by the cell of a column (None: by none)."""

    parts: tuple[tuple[str, int | None], ...]
    header: tuple[str, ...]

    def fill(self, cells: Sequence[str]) -> str:
        """The instruction of one row. Raises ValueError where a cell that it names is empty."""
        return "".join(
            text if position is None else text + self._cell(cells, position)
            for text, position in self.parts
        ).strip()

    def cells(self, cells: Sequence[str]) -> list[str]:
        """Those of one row that its instruction contains."""
        positions = (position for _, position in self.parts if position is not None)
        return [cells[p].strip() if p < len(cells) else "" for p in positions]

    def _cell(self, cells: Sequence[str], position: int) -> str:
        cell = cells[position].strip() if position < len(cells) else ""
        if not cell:
            name = quoted(self.header[position])
            raise ValueError(f"it uses the column {name}, whose cell is empty in this row")
        return cell


def parse_template(
    instruction: str, header: tuple[str, ...], find_column: Callable[[str], int]
) -> InstructionTemplate:
    """Raises JobRejected for single braces, and whatever `find_column` raises."""
    try:
        fields = list(Formatter().parse(instruction))
    except ValueError as error:
        raise JobRejected(_BRACES) from error
    if any(specification or conversion for _, _, specification, conversion in fields):
        raise JobRejected(_BRACES)
    parts = tuple((text, None if name is None else find_column(name)) for text, name, *_ in fields)
    return InstructionTemplate(parts, header)
