"""One simulated endpoint at run time: its limits, faults, latency and statistics."""

import random
from bisect import bisect_right
from collections import Counter, deque
from dataclasses import dataclass, field
from math import inf
from typing import Any

from darkroom_local.providers.api import ImageRequest
from darkroom_local.providers.config import Fault, Fixed, SimulatedEndpoint, When

MINUTE_SECONDS, DAY_SECONDS = 60, 86_400


@dataclass(slots=True)
class SlidingWindow:
    """At most `limit` allowed arrivals in any `seconds`; rejected ones do not count.

    An arrival of several (images, say) counts as so many.
    """

    limit: int  # 0: no limit
    seconds: float
    _allowed: deque[float] = field(default_factory=deque)

    def take(self, now: float, count: int = 1) -> float:
        """0 when the arrival is allowed, else the seconds until the next one would be."""
        wait = self.wait(now, count)
        if wait == 0 and self.limit:
            self._allowed.extend([now] * count)
        return wait

    def wait(self, now: float, count: int = 1) -> float:
        """The same without counting it; infinite for more than the limit."""
        while self._allowed and self._allowed[0] <= now - self.seconds:
            self._allowed.popleft()
        too_many = len(self._allowed) + count - self.limit
        if not self.limit or too_many <= 0:
            return 0.0
        if count > self.limit:
            return inf
        return max(1e-6, self._allowed[too_many - 1] + self.seconds - now)

    @property
    def used(self) -> int:
        return len(self._allowed)


def max_in_window(arrivals: list[float], seconds: float) -> int:
    """The most arrivals in any half-open window of `seconds`. `arrivals` must be sorted."""
    return max(
        (bisect_right(arrivals, t) - bisect_right(arrivals, t - seconds) for t in arrivals),
        default=0,
    )


class FaultScript:
    """The endpoint's faults in order; the first one that applies to a request is used."""

    def __init__(self, faults: tuple[Fault, ...], seed: str) -> None:
        self._faults = faults
        self._matched = [0] * len(faults)
        self._failed = [0] * len(faults)
        self._rng = random.Random(seed)  # noqa: S311 - reproducible, not secret

    def next_fault(self, request: ImageRequest, elapsed: float) -> Fault | None:
        """`elapsed`: seconds since the endpoint was configured."""
        for index, fault in enumerate(self._faults):
            if _matches(fault.when, request, elapsed) and self._draw(index, fault.when):
                return fault
        return None

    def _draw(self, index: int, when: When) -> bool:
        self._matched[index] += 1
        skipped = self._matched[index] <= when.skip
        spent = when.count is not None and self._failed[index] >= when.count
        if skipped or spent or (when.rate < 1 and self._rng.random() >= when.rate):
            return False
        self._failed[index] += 1
        return True


def _matches(when: When, request: ImageRequest, elapsed: float) -> bool:
    return (
        elapsed >= when.from_second
        and (when.until_second is None or elapsed < when.until_second)
        and (when.prompt_contains or "").lower() in request.prompt.lower()
        and when.key in (None, request.key)
        and when.model in (None, request.model)
    )


@dataclass
class EndpointStats:
    """Counts since the endpoint was configured; `arrivals` in seconds since then."""

    refused: int = 0  # 429 by a limit, not by a configured fault
    paid_images: int = 0  # made, and therefore billed, whether or not they reached the caller
    half_price_images: int = 0  # of the paid ones: made in a batch, or in the flex tier
    batches: int = 0  # made, whether or not the caller was told
    batch_requests: int = 0
    files: int = 0  # stored now
    connections: set[int] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    service_tiers: Counter[str] = field(default_factory=Counter)
    calls_by_marker: Counter[str] = field(default_factory=Counter)
    paid_by_marker: Counter[str] = field(default_factory=Counter)
    arrivals: list[float] = field(default_factory=list)
    allowed_arrivals: list[float] = field(default_factory=list)  # passed the limits

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {
            "calls": len(self.arrivals),
            "allowed": len(self.allowed_arrivals),
            "connections": len(self.connections),
            "max_in_window": max_in_window(sorted(self.arrivals), MINUTE_SECONDS),
        }


class EndpointState:
    """`now` and all other times are those of the event loop's clock, in seconds."""

    def __init__(self, name: str, config: SimulatedEndpoint, seed: int, now: float) -> None:
        self.name = name
        self.config = config
        self.since = now
        self.minute = SlidingWindow(config.requests_per_minute, MINUTE_SECONDS)
        self.day = SlidingWindow(config.requests_per_day, DAY_SECONDS)
        self.images = {
            "images": SlidingWindow(config.images_per_minute, MINUTE_SECONDS),
            "input-images": SlidingWindow(config.input_images_per_minute, MINUTE_SECONDS),
        }
        self.faults = FaultScript(config.faults, f"{seed}/{name}/faults")
        self.stats = EndpointStats()
        self._rng = random.Random(f"{seed}/{name}/latency")  # noqa: S311 - not secret

    def latency(self) -> float:
        """Drawn for each response, in seconds."""
        latency = self.config.latency
        if isinstance(latency, Fixed):
            return latency.seconds
        drawn = latency.median * self._rng.lognormvariate(0, latency.sigma)
        return min(latency.maximum, drawn)

    def record_arrival(self, arrived: float, connection: int, key: str) -> None:
        self.stats.connections.add(connection)
        self.stats.arrivals.append(arrived - self.since)
        self.stats.keys[key] += 1

    def exceeded_limit(self, arrived: float) -> tuple[float, str] | None:
        """The seconds to wait and the limit's period if the arrival exceeds a limit."""
        for window, period in ((self.minute, "minute"), (self.day, "day")):
            if (wait := window.take(arrived)) > 0:
                self.stats.refused += 1
                return wait, period
        self.stats.allowed_arrivals.append(arrived - self.since)
        return None

    def exceeded_image_limit(
        self, arrived: float, request: ImageRequest
    ) -> tuple[str, SlidingWindow, int, float] | None:
        """The first limit of images that the request exceeds: unit, window, count, wait."""
        counts = {"images": request.n, "input-images": len(request.images)}
        for unit, count in counts.items():
            if (wait := self.images[unit].wait(arrived, count)) > 0:
                self.stats.refused += 1
                return unit, self.images[unit], count, wait
        for unit, count in counts.items():
            self.images[unit].take(arrived, count)
        return None

    def record_request(self, request: ImageRequest) -> None:
        self.stats.models[request.model] += 1
        self.stats.service_tiers[request.service_tier] += 1
        self.stats.calls_by_marker.update(request.markers)

    def record_paid_images(self, request: ImageRequest, *, in_batch: bool = False) -> None:
        self.stats.paid_images += request.n
        half_price = in_batch or request.service_tier == "flex"
        self.stats.half_price_images += request.n if half_price else 0
        self.stats.paid_by_marker.update(dict.fromkeys(request.markers, request.n))
