"""What happened at an endpoint, for tests and benchmarks that must not trust the caller's word."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from darkroom_local.providers.limits import densest

MARKER = re.compile(r"\[row:([^\]]{1,64})\]")


@dataclass(slots=True)
class EndpointStats:
    """Counts since the endpoint was configured; `arrivals` in seconds since then."""

    window_seconds: float = 60
    calls: int = 0
    allowed: int = 0  # passed the limits
    refused: int = 0  # 429 by a limit, not by the script
    paid_images: int = 0  # pictures made, so billed, whether or not they reached the caller
    in_flight: int = 0
    most_in_flight: int = 0
    connections: set[int] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    calls_by_marker: Counter[str] = field(default_factory=Counter)
    paid_by_marker: Counter[str] = field(default_factory=Counter)
    arrivals: list[float] = field(default_factory=list)
    allowed_arrivals: list[float] = field(default_factory=list)

    def as_json(self, *, arrivals: bool) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "calls": self.calls,
            "allowed": self.allowed,
            "refused": self.refused,
            "paid_images": self.paid_images,
            "connections": len(self.connections),
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "most_in_window": densest(sorted(self.arrivals), self.window_seconds),
            "window_seconds": self.window_seconds,
            "statuses": {str(k): v for k, v in self.statuses.items()},
            "faults": dict(self.faults),
            "keys": dict(self.keys),
            "models": dict(self.models),
            "calls_by_marker": dict(self.calls_by_marker),
            "paid_by_marker": dict(self.paid_by_marker),
        }
        if arrivals:
            shown["arrivals"] = self.arrivals
            shown["allowed_arrivals"] = self.allowed_arrivals
        return shown


def marker_of(prompt: str) -> str | None:
    """`[row:000017]` in an instruction names the row in the statistics."""
    found = MARKER.search(prompt)
    return found.group(1) if found else None
