"""A provider that enforces its limits strictly, by a sliding minute, and has outages."""

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.endpoints import Endpoint
from darkroom.ports import Clock
from tests.fakes.dispatching import IMAGE
from tests.fakes.virtual_time import START, VirtualTime


def most_within(period: float, times: Sequence[float]) -> int:
    """The most arrivals in any half-open period: what a strict sliding window counts."""
    times = sorted(times)
    return max((bisect_left(times, t + period) - bisect_left(times, t) for t in times), default=0)


@dataclass
class StrictProvider:
    """Times of its records are true ones, in seconds; each worker calls it by a NetworkEditor."""

    time: VirtualTime
    latency: float = 5.0
    failure_latency: float = 0.1
    per_minute: int = 0
    outage: tuple[float, float] = (0.0, 0.0)  # seconds since the start
    noise: Callable[[float], CallFailed | None] = lambda _: None  # a stray failure at that second
    arrivals: list[float] = field(default_factory=list)
    allowed: list[float] = field(default_factory=list)
    refused: int = 0
    stray: int = 0
    failed: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    most_in_flight: int = 0

    def serve(self, clock: Clock, timeout: float) -> EditResult:
        now = self.time.at
        self.arrivals.append(now)
        if self.outage[0] <= now - START < self.outage[1]:
            self.failed.append(now)
            clock.sleep(self.failure_latency)
            raise CallFailed(Outcome.UNAVAILABLE, "503")
        stray = self.noise(now - START)
        if stray is not None:
            clock.sleep(min(self.failure_latency, timeout))
            self.stray += 1
            raise stray
        in_last_minute = sum(t > now - 60 for t in self.allowed[-self.per_minute :])
        if self.per_minute and in_last_minute >= self.per_minute:
            self.refused += 1
            raise CallFailed(Outcome.RATE_LIMITED, "429")
        self.allowed.append(now)
        # A call continues at the provider when its worker has died.
        seconds = min(self.latency, timeout)
        self.ends = [end for end in self.ends if end > now] + [now + seconds]
        self.most_in_flight = max(self.most_in_flight, len(self.ends))
        clock.sleep(seconds)
        return IMAGE


@dataclass
class NetworkEditor:
    """Implements ports.ImageEditor: one worker's calls, delayed by up to `network_delay`."""

    provider: StrictProvider
    clock: Clock
    rng: random.Random
    network_delay: float

    def edit(
        self, plan: CallPlan, endpoint: Endpoint, key: SecretStr, timeout_seconds: float
    ) -> EditResult:
        if self.network_delay:
            self.clock.sleep(self.rng.uniform(0, self.network_delay))
        return self.provider.serve(self.clock, timeout_seconds)
