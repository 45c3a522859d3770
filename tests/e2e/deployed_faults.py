"""A deployed stack whose functions are killed while AWS and the providers fail.

The template as it is deployed, on MiniStack with its roles enforced and its own event sources and
schedule. The functions reach AWS through the faulting proxy. A worker of any function is killed
with SIGKILL; its invocation fails, as one whose environment crashed does on AWS.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from typer.testing import CliRunner

from darkroom.aws.ledger_table import LedgerTable
from darkroom.jobs import Counters
from darkroom_cli.main import app
from darkroom_local import stack
from darkroom_local.processes import LOOPBACK, ROOT, serving, wait_until
from darkroom_local.providers import Config, Fault, FaultKind, SimulatedEndpoint, When
from tests.e2e import faulting_proxy
from tests.e2e.faulting_proxy import AwsFault, FaultingProxy
from tests.e2e.harness import Results, StackHarness, encoded_image

NOTE_EVERY_SECONDS = 20.0
# Six of KINDS count as an endpoint's failures. With a tenth of the calls each, its circuit breaker
# opens again and again, so there are as many endpoints as keep some of them in service. They have a
# limit, since one without is slowed down from the rate at which its 429s came.
ENDPOINTS = tuple(f"{provider}-{n}" for provider in ("gemini", "openai") for n in range(4))
SETTINGS = {
    "max_retries": 0,
    "retry_delay_seconds": 0,
    "max_in_flight": 0,
    "requests_per_minute": 600,
    "timeout_seconds": 20,
}
# What an attempt, an endpoint or a user can cure; each kind fails its share of the calls.
KINDS = (
    FaultKind.RATE_LIMITED,
    FaultKind.SERVER_ERROR,
    FaultKind.OVERLOADED,
    FaultKind.DROP,
    FaultKind.DROP_AFTER,
    FaultKind.CUT_JSON,
    FaultKind.BROKEN_IMAGE,
    FaultKind.REFUSED,
    FaultKind.TEXT_ONLY,
)
# How often a worker of each function is killed, in proportion. The editor does most of the work.
KILLED = ("editor", "editor", "editor", "splitter", "reporter")


@dataclass(frozen=True)
class SoakRates:
    """How the run is disturbed. The shares are of each kind of fault, not of all together."""

    rows: int
    aws: float  # share of the functions' requests to DynamoDB, S3 and SQS
    providers: float  # share of the calls at each endpoint
    kill_every_requests: int  # of the functions to AWS: as many kills on a slow machine
    timeout_seconds: float
    workers: int = 16
    max_attempts: int = 3
    dead_ends: int = 3  # rows whose input image cannot be loaded while there are faults


@dataclass
class DeployedFaults:
    """Uploads to the stack, kills its functions, and reads what the run left."""

    harness: StackHarness
    proxy: FaultingProxy
    rates: SoakRates
    ledger: LedgerTable
    image_host: "ImageHost"
    kills: Counter[str] = field(default_factory=Counter)
    charged_before: Counter[str] = field(default_factory=Counter)
    phase: str = "faults"
    started: float = field(default_factory=time.monotonic)

    @property
    def figures(self) -> Path:
        return ROOT / "build" / f"soak-{self.rates.rows}-{self.phase}.json"

    def upload(self, key: str) -> str | None:
        """Upload the CSV; each instruction names its row to the simulated providers."""
        lines = ["image_url,instruction"]
        for row in range(self.rates.rows):
            image = f"{self.image_host.url}/hat.png" if row < self.rates.dead_ends else ""
            lines.append(f"{image},a hat [row:{row:06d}]")
        options = {"max-attempts": str(self.rates.max_attempts)}
        return self.harness.put(key, "\n".join(lines).encode(), options)

    def run_until_reported(self, job: str, version: str | None) -> Results:
        """Kill workers until the job is reported as done."""
        rng = random.Random(1)
        results = Results(self.harness.s3, self.harness.info.outputs["ResultsBucketName"], job)
        started = last_noted = time.monotonic()
        killed_at = 0
        while not (results.is_for(version) and results.summary["state"] == "done"):
            now = time.monotonic()
            assert now - started < self.rates.timeout_seconds, self.describe(job)
            if self.proxy.requests - killed_at > self.rates.kill_every_requests:
                self._kill(rng)
                killed_at = self.proxy.requests
            if now - last_noted > NOTE_EVERY_SECONDS:
                self.note(job)
                last_noted = now
            time.sleep(1.0)
        self.note(job)
        return results

    def _kill(self, rng: random.Random) -> None:
        running = self._workers()
        function = rng.choice([name for name in KILLED if running.get(name)] or [""])
        if function:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(running[function]), signal.SIGKILL)
                self.kills[function] += 1

    def _workers(self) -> dict[str, list[int]]:
        """Process ids of the functions' workers, by function."""
        port = self.harness.info.url.rpartition(":")[2]
        found: dict[str, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                pairs = (p.partition("=") for p in path.read_text(errors="replace").split("\0"))
                environment = {name: value for name, _, value in pairs}
            except OSError:  # it has ended, or is not ours
                continue
            function = environment.get("AWS_LAMBDA_FUNCTION_NAME", "").rpartition("-")[2]
            if function and environment.get("GATEWAY_PORT") == port:
                found.setdefault(function, []).append(int(path.parent.name))
        return found

    def charged_images(self) -> Counter[str]:
        """Images that the simulated providers charged for, by row."""
        charged = self.charged_before.copy()
        for stats in self.harness.simulator.stats().values():
            charged.update(stats["paid_by_marker"])
        return charged

    def stop_faults(self) -> None:
        self.phase = "redrive"
        self.image_host.is_down = False
        self.proxy.rates.clear()
        self.charged_before = self.charged_images()  # configuring resets the providers' counts
        healthy = {name: SimulatedEndpoint(mode="fast") for name in ENDPOINTS}
        self.harness.simulator.configure(Config(endpoints=healthy))

    def redrive(self, job: str) -> None:
        """As a user does."""
        environment = self.harness.info.environment()
        redriven = CliRunner(env=environment).invoke(app, ["redrive", job, "--json"])
        assert redriven.exit_code == 0, redriven.stderr

    def wait_until_none_dead(self, results: Results) -> Results:
        def is_done() -> bool:
            summary = results.summary
            return summary["state"] == "done" and not summary["counts"]["dead"]

        assert wait_until(is_done, self.rates.timeout_seconds, 1.0), self.describe(results.job)
        self.note(results.job)
        return results

    def note(self, job: str) -> None:
        """Write the figures of the run so far, for whoever wants to look while it is under way."""
        run, records = self.ledger.current(job), list(self.ledger.all(job))
        counters = self.ledger.counters(job, run.run) if run else Counters()
        figures = {
            "minutes": round((time.monotonic() - self.started) / 60, 1),
            "rows": self.rates.rows,
            "states": Counter(record.state.value for record in records),
            "counters": asdict(counters),
            "reasons": Counter(r.result.reason for r in records if r.result and r.result.reason),
            "rows_by_crashes": Counter(record.crashes for record in records),
            "kills": self.kills,
            "aws": dict(sorted(self.proxy.counts.items())),
            "operations": dict(self.proxy.operations.most_common()),
            "images_charged": self.charged_images().total(),
        }
        self.figures.parent.mkdir(exist_ok=True)
        self.figures.write_text(json.dumps(figures, indent=1))

    def describe(self, job: str) -> str:
        self.note(job)
        return f"not done in time: {self.figures.read_text()}"


@dataclass
class ImageHost:
    """A host of input images. While it is down, rows that name it spend their attempts.

    (Rows that failed at every endpoint would look like an outage, in which none is spent.)
    """

    url: str = ""
    is_down: bool = True


@contextmanager
def image_host() -> Iterator[ImageHost]:
    host = ImageHost()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if host.is_down else 200)
            self.end_headers()
            if not host.is_down:
                self.wfile.write(encoded_image())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

    with serving(ThreadingHTTPServer((LOOPBACK, 0), Handler)) as url:
        host.url = url
        yield host


@contextmanager
def running(rates: SoakRates) -> Iterator[DeployedFaults]:
    """Deploy the stack and lead its functions' requests through the proxy."""
    overrides = dict.fromkeys(ENDPOINTS, SETTINGS)
    parameters = {"WorkerProcesses": str(rates.workers)}
    with stack.running(
        stack="darkroom-soak",
        config=_provider_faults(rates.providers),
        overrides=overrides,
        parameters=parameters,
    ) as info:
        aws_faults = dict.fromkeys(AwsFault, rates.aws)
        with faulting_proxy.running(info.url, aws_faults) as proxy, image_host() as images:
            for name in ("Splitter", "Editor", "Reporter"):
                _lead_through(info, info.outputs[f"{name}FunctionName"], proxy.url)
            ledger = LedgerTable(info.client("dynamodb"), info.outputs["LedgerTableName"])
            yield DeployedFaults(StackHarness(info), proxy, rates, ledger, images)


def _lead_through(info: stack.StackInfo, function: str, url: str) -> None:
    """Publish a version of the function that reaches AWS at `url`, and make it the live one."""
    lambdas = info.client("lambda")
    configuration = lambdas.get_function_configuration(FunctionName=function)
    variables = configuration["Environment"]["Variables"] | {"AWS_ENDPOINT_URL": url}
    lambdas.update_function_configuration(
        FunctionName=function, Environment={"Variables": variables}
    )
    version = lambdas.publish_version(FunctionName=function)["Version"]
    lambdas.update_alias(FunctionName=function, Name="live", FunctionVersion=version)


def _provider_faults(rate: float) -> Config:
    faults = tuple(Fault(kind=kind, retry_after=1, when=When(rate=rate)) for kind in KINDS)
    endpoint = SimulatedEndpoint(mode="fast", faults=faults)
    return Config(endpoints=dict.fromkeys(ENDPOINTS, endpoint))
