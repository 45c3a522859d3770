"""Which fault, if any, a request meets."""

import random
from dataclasses import dataclass

from darkroom_local.providers.config import Fault, SimulatedEndpoint, When


@dataclass(frozen=True, slots=True)
class Ask:
    """What an edit request asks for, in either wire format, as far as the script looks at it."""

    prompt: str
    key: str
    model: str


class FaultScript:
    """The endpoint's faults in their order; the first whose `when` holds is the one."""

    def __init__(self, endpoint: SimulatedEndpoint, seed: str) -> None:
        self._faults = endpoint.faults
        self._matched = [0] * len(self._faults)
        self._failed = [0] * len(self._faults)
        self._random = random.Random(seed)  # noqa: S311 - a script, not a secret

    def meet(self, ask: Ask, elapsed: float) -> Fault | None:
        """`elapsed`: seconds since the endpoint was configured."""
        for position, fault in enumerate(self._faults):
            if _holds(fault.when, ask, elapsed) and self._draw(position, fault.when):
                return fault
        return None

    def _draw(self, position: int, when: When) -> bool:
        self._matched[position] += 1
        if self._matched[position] <= when.skip:
            return False
        if when.count is not None and self._failed[position] >= when.count:
            return False
        if when.rate < 1 and self._random.random() >= when.rate:
            return False
        self._failed[position] += 1
        return True


def _holds(when: When, ask: Ask, elapsed: float) -> bool:
    if elapsed < when.from_second:
        return False
    if when.until_second is not None and elapsed >= when.until_second:
        return False
    if when.prompt_contains and when.prompt_contains.lower() not in ask.prompt.lower():
        return False
    if when.key is not None and when.key != ask.key:
        return False
    return when.model is None or when.model == ask.model
