"""A provider that forgives nothing: a strict sliding minute, a limit in flight, outages."""

import random
from bisect import bisect_right
from dataclasses import dataclass, field

from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.endpoints import Endpoint
from darkroom.ports import Clock
from tests.fakes.dispatching import PICTURE
from tests.fakes.virtual_time import VirtualTime


@dataclass
class StrictProvider:
    """Implements ports.ImageEditor for one worker's clock at a time, by `for_worker`."""

    time: VirtualTime
    latency: float = 5.0
    failure_latency: float = 0.1
    per_minute: int = 0
    down: tuple[float, float] = (0.0, 0.0)  # seconds since the start
    started: float = field(init=False)
    arrivals: list[float] = field(default_factory=list)
    allowed: list[float] = field(default_factory=list)
    refused: int = 0
    failed: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.started = self.time.at

    def for_worker(self, clock: Clock, rng: random.Random, wire: float = 0.0) -> "Line":
        return Line(self, clock, rng, wire)

    def most_in_a_minute(self) -> int:
        times = sorted(self.arrivals)
        return max((bisect_right(times, t) - bisect_right(times, t - 60) for t in times), default=0)

    def _in_the_last_minute(self, now: float) -> int:
        return len([t for t in self.allowed[-self.per_minute :] if t > now - 60])

    def serve(self, clock: Clock, timeout: float) -> EditResult:
        now = self.time.at
        self.arrivals.append(now)
        if self.down[0] <= now - self.started < self.down[1]:
            self.failed.append(now)
            clock.sleep(self.failure_latency)
            raise CallFailed(Outcome.UNAVAILABLE, "503")
        if self.per_minute and self._in_the_last_minute(now) >= self.per_minute:
            self.refused += 1
            raise CallFailed(Outcome.RATE_LIMITED, "429")
        self.allowed.append(now)
        # A call goes on at the provider when its caller has died.
        lasts = min(self.latency, timeout)
        self.ends = [end for end in self.ends if end > now] + [now + lasts]
        self.most_in_flight = max(self.most_in_flight, len(self.ends))
        clock.sleep(lasts)
        return PICTURE


@dataclass
class Line:
    """One worker's way to the provider: up to `wire` seconds long."""

    provider: StrictProvider
    clock: Clock
    rng: random.Random
    wire: float

    def edit(
        self, plan: CallPlan, endpoint: Endpoint, key: SecretStr, timeout_seconds: float
    ) -> EditResult:
        if self.wire:
            self.clock.sleep(self.rng.uniform(0, self.wire))
        return self.provider.serve(self.clock, timeout_seconds)
