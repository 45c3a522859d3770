"""Rows that will fail, grouped by why. No I/O."""

import re
from dataclasses import dataclass, field

MOST_GROUPS = 30  # different reasons or warnings that are told apart
_FIRST_ROWS = 5
_OWN_WORDS = re.compile(r"'[^']*'|\d[\d,.]*")  # what the row itself wrote, and its numbers


@dataclass(slots=True)
class Group:
    """Rows that fail for one reason, told by the first of them."""

    detail: str
    count: int = 0
    first: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Failures:
    """Rows that will fail, grouped by why: bounded, whatever the rows say."""

    count: int = 0
    groups: dict[str, Group] = field(default_factory=dict)

    def add(self, row: int, detail: str) -> None:
        self.count += 1
        why = _OWN_WORDS.sub("'…'", detail)
        if why not in self.groups and len(self.groups) >= MOST_GROUPS:
            why, detail = "", "other reasons"
        group = self.groups.setdefault(why, Group(detail))
        group.count += 1
        if len(group.first) < _FIRST_ROWS:
            group.first.append(row)
