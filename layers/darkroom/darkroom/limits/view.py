"""What this process last saw of the endpoints: every answer of the table passes through here."""

import threading
from collections import deque

from darkroom.limits.endpoint_state import SECOND, EndpointState

MEMORY = 60 * SECOND  # over which the rate of calls is observed
FEW_CALLS = 5
OVERTAKEN = 5 * SECOND  # answers may overtake each other by this; an older one is a new item's


class View:
    """The newest state seen of each endpoint, shared by the process's threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[EndpointState, int]] = {}
        self._counts: dict[str, deque[tuple[int, int]]] = {}

    def state(self, endpoint: str) -> EndpointState | None:
        seen = self._seen.get(endpoint)
        return seen[0] if seen else None

    def age(self, endpoint: str, now: int) -> int:
        seen = self._seen.get(endpoint)
        return now - seen[1] if seen else now

    def saw(self, endpoint: str, state: EndpointState, now: int) -> None:
        with self._lock:
            known = self._seen.get(endpoint)
            if known is not None and known[0].rev > state.rev and now - known[1] < OVERTAKEN:
                return
            self._seen[endpoint] = (state, now)
            counts = self._counts.setdefault(endpoint, deque())
            counts.append((now, state.calls))
            while counts[0][0] < now - MEMORY:
                counts.popleft()

    def observed_interval(self, endpoint: str) -> int:
        """Time between calls of all workers, lately; 0 when too few were seen to tell."""
        with self._lock:
            counts = self._counts.get(endpoint)
            if not counts:
                return 0
            (since, first), (until, last) = counts[0], counts[-1]
            return (until - since) // (last - first) if last - first >= FEW_CALLS else 0
