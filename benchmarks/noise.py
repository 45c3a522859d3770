"""Dispatch when providers are noisy, down or slow: hours on a virtual clock, in seconds.

python -m benchmarks.noise [--only billing recovery] [--output FILE]

The real dispatcher and its rules, with many processes of several threads, a table in memory and a
provider that enforces a strict sliding minute. Nothing is random: each run gives the same figures.
Exits with status 1 when a figure is not as wanted.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from darkroom.aws.secrets import SecretsManagerSource
from darkroom.calls import CallFailed, Outcome
from darkroom_local.processes import ROOT
from tests.fakes.cost_fleet import CostFleet
from tests.fakes.dispatching import gemini, openai
from tests.fakes.fleet import Fleet
from tests.fakes.strict_provider import most_within
from tests.fakes.virtual_time import START

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Line:
    row: int
    scenario: str
    wanted: str
    seen: str
    ok: bool


type Scenario = Callable[[], Iterator[Line]]


def within(times: list[float], start: float, end: float) -> int:
    return len([t for t in times if start <= t - START < end])


def stray(share: float, failure: CallFailed) -> Callable[[float], CallFailed | None]:
    """Answers that share of the calls with the failure, at random."""
    rng = random.Random(1)
    return lambda _: failure if rng.random() < share else None


def stray_429s() -> Iterator[Line]:
    for rate in (60, 300):
        for percent, least in ((1, 90), (3, 85)):
            fleet = Fleet(gemini(requests_per_minute=rate, max_retries=2, retry_delay_seconds=5))
            noise = stray(percent / 100, CallFailed(Outcome.RATE_LIMITED, "429"))
            provider = fleet.provider(latency=5.0, per_minute=rate, noise=noise)
            fleet.run(provider, processes=2 + rate // 20, seconds=HOUR)
            used = 100 * within(provider.allowed, 60, HOUR) / (rate * 59)
            yield Line(
                1,
                f"{percent} % stray 429s at {rate}/min",
                f">= {least} % of the rate",
                f"{used:.1f} %",
                used >= least,
            )


def halved_limit() -> Iterator[Line]:
    for rate, latency in ((10, 20.0), (60, 5.0), (300, 5.0)):
        fleet = Fleet(gemini(requests_per_minute=rate, max_retries=2, retry_delay_seconds=5))
        provider = fleet.provider(latency=latency, per_minute=rate // 2)
        fleet.run(provider, processes=2 + rate // 20, seconds=HOUR)
        refused = 100 * provider.refused / len(provider.arrivals)
        used = 100 * within(provider.allowed, 60, HOUR) / (rate / 2 * 59)
        yield Line(
            1,
            f"a limit of {rate // 2}/min, configured as {rate}, calls of {latency:g} s",
            "< 10 % refused",
            f"{refused:.1f} % refused, {used:.0f} % of the real limit used",
            refused < 10,
        )


def scattered_503s() -> Iterator[Line]:
    for rate in (60, 300):
        fleet = Fleet(
            gemini(requests_per_minute=rate, max_retries=2, retry_delay_seconds=5), openai()
        )
        noise = stray(0.05, CallFailed(Outcome.UNAVAILABLE, "503"))
        provider = fleet.provider(latency=5.0, per_minute=rate, noise=noise)
        fleet.run(provider, fleet.provider(), processes=2 + rate // 20, seconds=HOUR)
        opened = int(fleet.telemetry.metrics["BreakerOpened"])
        fallback = sum(r.fallback for _, _, r in fleet.rows)
        yield Line(
            2,
            f"5 % of 503s at {rate}/min for an hour",
            "0 openings of the breaker",
            f"{opened} openings, {fallback} rows to the fallback",
            opened == 0,
        )


def wasted_calls() -> Iterator[Line]:
    for rate, latency in ((60, 5.0), (300, 5.0), (300, 20.0)):
        fleet = Fleet(
            gemini(requests_per_minute=rate, max_retries=2, retry_delay_seconds=5), openai()
        )
        provider = fleet.provider(latency=latency, per_minute=rate, outage=(120.0, 720.0))
        workers = 2 + int(rate * latency / 100)
        fleet.run(provider, fleet.provider(), processes=workers, seconds=800)
        wasted = len(provider.failed) / 10
        yield Line(
            2,
            f"an outage of 10 minutes at {rate}/min, calls of {latency:g} s",
            "<= 10 wasted calls a minute",
            f"{wasted:.1f}",
            wasted <= 10,
        )


def recovery() -> Iterator[Line]:
    for rate, processes in ((10, 12), (10, 50), (60, 50)):
        fleet = Fleet(gemini(requests_per_minute=rate, max_retries=2, retry_delay_seconds=5))
        provider = fleet.provider(latency=5.0, per_minute=rate, outage=(120.0, 180.0))
        fleet.run(provider, processes=processes, seconds=900)
        probe = min(t for t in provider.allowed if t - START >= 180) - START
        used = 100 * within(provider.allowed, probe + 30, probe + 330) / (5 * rate)
        yield Line(
            3,
            f"after an outage of 60 s, {processes * 4} threads at {rate}/min",
            "full rate within 30 s of the first good probe",
            f"{used:.1f} % of the rate from then on",
            used >= 95,
        )


def retry_after() -> Iterator[Line]:
    for rate in (10, 60):
        answered: list[float] = []

        def once(second: float, answered: list[float] = answered) -> CallFailed | None:
            if second < 300 or answered:
                return None
            answered.append(second)
            return CallFailed(Outcome.RATE_LIMITED, "429", retry_after_seconds=30.0)

        fleet = Fleet(gemini(requests_per_minute=rate, max_retries=2, retry_delay_seconds=5))
        provider = fleet.provider(latency=5.0, per_minute=rate, noise=once)
        fleet.run(provider, processes=8, seconds=600)
        asked = answered[0] + provider.failure_latency
        early = within(provider.arrivals, asked + 0.001, asked + 29.999)
        after = within(provider.arrivals, asked + 29.999, asked + 90)
        yield Line(
            4,
            f"a Retry-After of 30 s at {rate}/min, 32 threads",
            "no call before it is over",
            f"{early} calls; {after} in the minute after",
            early == 0 and after >= 0.8 * rate,
        )


def outage_of_the_only_tier() -> Iterator[Line]:
    for rows, retries in ((1, 2), (30, 2), (1, 0), (30, 0)):
        fleet = Fleet(
            gemini(requests_per_minute=10, max_retries=retries, retry_delay_seconds=5), rows=rows
        )
        provider = fleet.provider(latency=5.0, per_minute=10, outage=(0.0, 6 * HOUR))
        fleet.run(provider, seconds=7 * HOUR)
        dead = sum(row.dead for row in fleet.done)
        yield Line(
            5,
            f"6 h of outage, a job of {rows} rows, max_retries {retries}",
            "0 dead, all succeed after it",
            f"{dead} dead, {len(fleet.rows)} succeeded, {len(fleet.errors)} attempts spent",
            dead == 0 and len(fleet.rows) == rows,
        )


def daily_quota() -> Iterator[Line]:
    def spent(_: float) -> CallFailed:
        return CallFailed(Outcome.RATE_LIMITED, "day", daily=True, retry_after_seconds=38)

    fleet = Fleet(gemini(requests_per_minute=10, max_retries=2, retry_delay_seconds=5), openai())
    provider = fleet.provider(latency=5.0, per_minute=10, noise=spent)
    fleet.run(provider, fleet.provider(latency=20.0), processes=1, threads=1, seconds=6 * HOUR)
    yield Line(
        6,
        "the day's quota is spent, RetryInfo says 38 s",
        "1 call in 6 h, the other tier meanwhile",
        f"{len(provider.arrivals)} calls, {len(fleet.rows)} rows by the other tier",
        len(provider.arrivals) == 1 and len(fleet.rows) > 100,
    )


class SecretClient:
    """The part of a Secrets Manager client that is used, with a secret that a test replaces."""

    def __init__(self, document: str) -> None:
        self.document = document
        self.version = 1

    def get_secret_value(self, **_: object) -> Mapping[str, str]:
        return {"SecretString": self.document, "VersionId": str(self.version)}

    def push(self, document: str) -> None:
        self.document, self.version = document, self.version + 1


def document(**fields: object) -> str:
    endpoint = {
        "name": "gemini-main", "provider": "gemini", "requests_per_minute": 60,
        "max_in_flight": 0, **fields,
    }  # fmt: skip
    return json.dumps({"endpoints": [endpoint]})


def rejected_keys() -> Iterator[Line]:
    fleet = Fleet(gemini(), rows=300)
    client = SecretClient(document(api_keys=["revoked"]))
    fleet.secret_source_of = lambda clock: SecretsManagerSource(
        cast("SecretsManagerClient", client), "secret", clock, fleet.telemetry
    )
    rejected = 0

    def noise(second: float) -> CallFailed | None:
        nonlocal rejected
        if second < 1800:
            rejected += 1
            return CallFailed(Outcome.KEY_REJECTED, "401")
        return None

    provider = fleet.provider(latency=5.0, per_minute=60, noise=noise)
    fleet.time.start(lambda: client.push(document(api_keys=["good"])), after=1800.0)
    fleet.run(provider, processes=8, seconds=2 * HOUR)
    first = min(provider.allowed, default=float("inf")) - START - 1800
    waits = {d.waiting.detail for _, d in fleet.deferred if d.waiting}
    yield Line(
        7,
        "all keys rejected for 30 minutes, 300 rows, 8 processes",
        "no attempt spent; a corrected secret is used within 60 s",
        f"{len(fleet.errors)} attempts, {rejected} rejected calls, first call after {first:.0f} s, "
        f"{len(fleet.rows)} succeeded; {sorted(waits)[:1]}",
        not fleet.errors and first <= 60 and len(fleet.rows) == 300,
    )


def retries_under_load() -> Iterator[Line]:
    fleet = Fleet(gemini(requests_per_minute=10, max_retries=2, retry_delay_seconds=5))
    noise = stray(0.1, CallFailed(Outcome.UNAVAILABLE, "503"))
    provider = fleet.provider(latency=5.0, per_minute=10, noise=noise)
    fleet.run(provider, processes=12, seconds=HOUR)
    failing = provider.stray
    calls = sum(r.calls - 1 for _, _, r in fleet.rows)
    # All but those of rows whose retry was due when the run ended.
    retried = calls + 3 * len(fleet.errors)
    saved = sum(r.calls > 1 for _, _, r in fleet.rows)
    yield Line(
        8,
        f"{failing} calls fail at 10/min under a backlog, max_retries 2",
        "no retry is dropped: an attempt is spent after three calls",
        f"{saved} rows saved by a retry, {len(fleet.errors)} failed three times, "
        f"{failing - retried} calls not accounted for",
        failing - retried <= 4,
    )


def stalled_ledger() -> Iterator[Line]:
    for stall in (3.0, 5.0, 10.0):

        def delay(rng: random.Random, stall: float = stall) -> float:
            return stall if rng.random() < 0.05 else 0.02

        fleet = Fleet(gemini(requests_per_minute=60))
        provider = fleet.provider(latency=2.0, per_minute=60)
        fleet.run(
            provider, processes=8, seconds=1200,
            ledger_delay=delay,
        )  # fmt: skip
        most = most_within(60, provider.arrivals)
        yield Line(
            9,
            f"5 % of the ledger's writes take {stall:g} s, 60/min",
            "0 calls above the limit",
            f"{provider.refused} refused, {most} in the fullest minute",
            most <= 60,
        )


def slow_table() -> Iterator[Line]:
    for seconds, latency, rate, processes in (
        (0.6, 5.0, 60, 8),
        (0.6, 5.0, 0, 4),
        (1.0, 6.0, 30, 6),
    ):

        def delay(_: random.Random, seconds: float = seconds) -> float:
            return seconds

        fleet = Fleet(gemini(requests_per_minute=rate))
        provider = fleet.provider(latency=latency, per_minute=rate)
        fleet.run(
            provider, processes=processes, seconds=900, table_seconds=seconds,
            ledger_delay=delay,
        )  # fmt: skip
        # A row takes one reservation, one write of the ledger, and one settlement.
        by_threads = processes * 4 * 60 / (latency + 3 * seconds)
        possible = min(by_threads, rate * 60 / 62 if rate else by_threads)
        used = 100 * within(provider.allowed, 60, 900) / (possible * 14)
        yield Line(
            10,
            f"DynamoDB takes {seconds} s, {rate or 'no'} limit a minute, {processes * 4} threads",
            ">= 90 % of what the round trips allow",
            f"{used:.1f} %",
            used >= 90,
        )


def hanging_endpoint() -> Iterator[Line]:
    fleet = Fleet(
        gemini(requests_per_minute=10, max_in_flight=3, timeout_seconds=300, max_retries=2),
        openai(timeout_seconds=60),
    )

    def hang(_: float) -> CallFailed:
        return CallFailed(Outcome.UNAVAILABLE, "no answer within 300 s")

    provider = fleet.provider(failure_latency=300.0, noise=hang)
    fleet.run(provider, fleet.provider(latency=20.0), processes=4, seconds=2 * HOUR)
    opened = int(fleet.telemetry.metrics["BreakerOpened"])
    at_opening = next(
        (f["failures"] for _, event, f in fleet.telemetry.events if event == "breaker_opened"), 0
    )
    yield Line(
        11,
        "an endpoint hangs: time-out of 300 s, 3 in flight",
        "opens after at most 4 time-outs",
        f"opened {opened} time(s), first after {at_opening} time-outs; "
        f"{provider.stray} time-outs in 2 h",
        opened >= 1 and at_opening == 4,
    )


def time_for_the_fallback() -> Iterator[Line]:
    fleet = Fleet(
        gemini(requests_per_minute=6, timeout_seconds=300, max_retries=1, retry_delay_seconds=30),
        openai(timeout_seconds=300),
    )
    noise = stray(0.4, CallFailed(Outcome.UNAVAILABLE, "503"))
    provider = fleet.provider(latency=60.0, failure_latency=290.0, noise=noise)
    fleet.run(provider, fleet.provider(latency=250.0), processes=6, seconds=6 * HOUR)
    late = sum(seconds > 900 - 30 for _, seconds, _ in fleet.rows)
    yield Line(
        12,
        "tier 1 takes up to 290 s to fail, tier 2 may take 300 s",
        "always time for tier 2, or no call at all",
        f"{len(fleet.errors)} attempts lost of {len(fleet.rows)} rows, {late} rows late",
        not fleet.errors and not late,
    )


def deferrals() -> Iterator[Line]:
    fleet = Fleet(gemini(requests_per_minute=10))
    provider = fleet.provider(latency=20.0, per_minute=10)
    fleet.run(provider, processes=50, seconds=2 * HOUR)
    each = len(fleet.deferred) / len(fleet.rows)
    yield Line(
        13,
        "50 processes of 4 threads at 10/min",
        "<= 1 deferral per image",
        f"{each:.2f}",
        each <= 1,
    )


def billing() -> Iterator[Line]:
    """With the real editor; benchmarks/cost.py has all sizes and rates."""
    for processes, threads, rate, rows in ((4, 4, 10, 400), (50, 4, 60, 2400), (100, 10, 60, 3000)):
        fleet = CostFleet(rows, processes, threads, rate)
        fleet.run()
        ratio = fleet.billed_per_row / fleet.floor_per_row
        used = 100 * fleet.utilisation
        yield Line(
            18,
            f"{processes} x {threads} workers at {rate}/min, {rows} calls of about 20 s",
            "billed <= 1.5 x the floor, >= 96 % of the rate",
            f"{ratio:.2f} x, {used:.1f} %; {fleet.deferrals_per_row:.1f} returns an image, "
            f"{fleet.counts['deferred_with_images']} in all with images loaded",
            ratio <= 1.5 and used >= 96,
        )


# On-demand prices of DynamoDB in us-east-1, in US dollars for a million (1 KB written, 4 KB read).
WRITE_PRICE, READ_PRICE = 0.625, 0.125
RATE_FACTOR, ENDPOINTS_FACTOR = 10, 5  # of the full size to the simulated one


def scale() -> Iterator[Line]:
    """20 workers x 10 threads at 10 endpoints of 60/min, for 1,000 x 10 at 50 of 600/min."""
    endpoints, rate, minutes, rows = 10, 60, 5, 10_000_000
    fleet = Fleet(*(gemini(f"e{n}", requests_per_minute=rate) for n in range(endpoints)))
    provider = fleet.provider(latency=20.0)
    fleet.run(provider, processes=20, threads=10, seconds=60 * minutes)
    done, requests = len(provider.allowed), fleet.states.requests
    used = 100 * within(provider.allowed, 60, 60 * minutes) / (endpoints * rate * (minutes - 1))
    writes = (requests["reserve"] + requests["settle"] + requests["report"]) / done
    reads = requests["read"] / done
    of_each = rate * RATE_FACTOR / 60 * used / 100  # calls a second
    in_all = of_each * endpoints * ENDPOINTS_FACTOR
    dollars = rows / 1e6 * (writes * WRITE_PRICE + reads * READ_PRICE)
    yield Line(
        0,
        "1,000 x 10 workers, 50 endpoints of 600/min, 10 million rows: extrapolated from 20 x 10 "
        f"workers and 10 endpoints of 60/min, {minutes} minutes",
        ">= 90 % of the rate, < 1,000 writes and 3,000 reads a second for each item",
        f"{used:.1f} %; for each item {writes * of_each:.0f} writes and {reads * of_each:.0f} "
        f"reads a second, in all {writes * in_all:,.0f} and {reads * in_all:,.0f}; "
        f"{writes:.2f} writes and {reads:.2f} reads a row, ${dollars:.2f} for all rows",
        used >= 90 and writes * of_each < 1000 and reads * of_each < 3000,
    )


SCENARIOS: list[Scenario] = [
    stray_429s, halved_limit, scattered_503s, wasted_calls, recovery, retry_after,
    outage_of_the_only_tier, daily_quota, rejected_keys, retries_under_load, stalled_ledger,
    slow_table, hanging_endpoint, time_for_the_fallback, deferrals, billing, scale,
]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", nargs="+", default=[], help="names of scenarios")
    results = ROOT / "benchmarks" / "results" / "noise.json"
    options.add_argument("--output", type=Path, default=results)
    chosen = options.parse_args()
    began, lines = time.monotonic(), []
    print("| row | scenario | wanted | seen | |\n|---|---|---|---|---|")
    for scenario in SCENARIOS:
        if chosen.only and scenario.__name__ not in chosen.only:
            continue
        for line in scenario():
            lines.append(line)
            verdict = "" if line.ok else "**missed**"
            print(
                f"| {line.row} | {line.scenario} | {line.wanted} | {line.seen} | {verdict} |",
                flush=True,
            )
    print(f"\n{len(lines)} figures in {time.monotonic() - began:.0f} s")
    if not chosen.only:
        chosen.output.write_text(json.dumps([asdict(line) for line in lines], indent=0) + "\n")
    if not all(line.ok for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
