"""A job under faults: workers are killed while AWS and the providers fail.

MiniStack, the faulting proxy, the simulated providers and worker processes; the real splitter,
editor and reporter.
"""

import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from darkroom.bootstrap import Wiring
from darkroom.editor.leases import Timings
from darkroom.jobs import job_id
from darkroom.ports import Telemetry
from darkroom.report.reporter import ReportOutcome
from darkroom.settings import Settings
from darkroom.splitter import CsvUploaded
from darkroom_local import ministack, stack
from darkroom_local.providers import Config, Fault, FaultKind, SimulatedEndpoint, Simulator, When
from tests.e2e import faulting_proxy, worker
from tests.e2e.faulting_proxy import AwsFault, FaultingProxy
from tests.e2e.harness import Results
from tests.fakes.services import FakeTelemetry
from tests.tables import create_table

TIMINGS = Timings(
    lease_seconds=6.0,
    heartbeat_seconds=1.5,
    held_delay_seconds=1.0,
    aws_delay_seconds=0.5,
    backoff_seconds=0.2,
    backoff_cap_seconds=2.0,
)
FORKSERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class FaultRates:
    """How a run is disturbed."""

    rows: int
    aws: float  # share of requests that get each kind of fault
    providers: float  # share of calls
    kill_every_seconds: float
    max_kills: int = 10**9
    max_attempts: int = 6
    workers: int = 3
    threads: int = 4
    timeout_seconds: float = 55.0
    # Rows that fail at every endpoint. Several at once look like an outage: no attempt is spent.
    dead_ends: int = 3


@dataclass
class FaultHarness:
    rates: FaultRates
    url: str  # MiniStack itself
    proxy: FaultingProxy
    providers: Simulator
    settings: Settings
    wiring: Wiring
    kills: int = 0
    charged_before: Counter[str] = field(default_factory=Counter)
    processes: list[BaseProcess] = field(default_factory=list)

    def client(self, service: str) -> Any:
        return worker.client(service, self.url)

    def upload(
        self, key: str, lines: Sequence[str], *, header: str = "instruction", **options: str
    ) -> str:
        """Upload a CSV and split it; returns the job."""
        body = "\n".join((header, *lines)).encode()
        answer = self.client("s3").put_object(
            Bucket=self.settings.input_bucket, Key=key, Body=body, Metadata=options
        )
        version, sequence = answer.get("VersionId"), f"{time.time_ns():016X}"
        event = CsvUploaded(self.settings.input_bucket, key, version, sequence, len(body))
        self.wiring.splitter.split(event, lambda: 900.0)
        return job_id(key)

    def process(self, job: str, *, kill: bool = True, until_none_dead: bool = False) -> None:
        """Run workers, and kill one now and then, until every row is settled.

        After a redrive wait with `until_none_dead`: a report is due also between two redriven rows.
        """
        rng = random.Random(1)
        started = last_kill = time.monotonic()
        for _ in range(self.rates.workers):
            self._start_worker()
        try:
            while not self._is_done(job, until_none_dead):
                now = time.monotonic()
                assert now - started < self.rates.timeout_seconds, self._state_of(job)
                may_kill = kill and self.kills < self.rates.max_kills
                if may_kill and now - last_kill > self.rates.kill_every_seconds:
                    self._kill_worker(rng.randrange(len(self.processes)))
                    self.kills += 1
                    self._start_worker()
                    last_kill = now
                time.sleep(0.1)
        finally:
            while self.processes:
                self._kill_worker(0)

    def _start_worker(self) -> None:
        arguments = (self.proxy.url, self.url, self.settings)
        process = FORKSERVER.Process(target=_run_worker, args=arguments, daemon=True)
        process.start()
        self.processes.append(process)

    def _kill_worker(self, index: int) -> None:
        """SIGKILL, at any point of its work."""
        process = self.processes.pop(index)
        process.kill()
        process.join()
        process.close()

    def _is_done(self, job: str, until_none_dead: bool) -> bool:
        run = self.wiring.ledger.current(job)
        if run is None or not self.wiring.ledger.report_due(job):
            return False
        return not (until_none_dead and self.wiring.ledger.counters(job, run.run).dead)

    def counting(self, count: Callable[[str, str, Any], None], telemetry: Telemetry) -> Wiring:
        """The use cases again, without the faulting proxy.

        `count` is called with the service, the operation and the body of each AWS request.
        """

        def client(service: str) -> Any:
            made = self.client(service)
            made.meta.events.register(
                "before-call",
                lambda model, params, **_: count(service, model.name, params["body"]),
            )
            return made

        return Wiring(
            self.settings,
            telemetry,
            client=client,
            timings=TIMINGS,
            start_function=lambda function, event: None,
        )

    def report(self, job: str) -> Results:
        assert self.wiring.reporter.report(job, "test") is ReportOutcome.MADE
        return Results(self.client("s3"), self.settings.results_bucket, job)

    def redrive(self) -> int:
        """Send the dead letters back to the rows queue unchanged, as SQS's own redrive does."""
        sqs, moved = self.client("sqs"), 0
        source, target = self.settings.dead_letter_queue_url, self.settings.rows_queue_url
        while messages := sqs.receive_message(QueueUrl=source).get("Messages"):
            for message in messages:
                sqs.send_message(QueueUrl=target, MessageBody=message["Body"])
                sqs.delete_message(QueueUrl=source, ReceiptHandle=message["ReceiptHandle"])
                moved += 1
        return moved

    def charged_images(self) -> Counter[str]:
        """Images that the simulated providers charged for, by row."""
        charged = self.charged_before.copy()
        for stats in self.providers.stats().values():
            charged.update(stats["paid_by_marker"])
        return charged

    def stop_faults(self) -> None:
        self.proxy.rates.clear()
        self.charged_before = self.charged_images()  # configuring resets the providers' counts
        healthy = {name: SimulatedEndpoint(mode="fast") for name in self.providers.stats()}
        self.providers.configure(Config(endpoints=healthy))

    def _state_of(self, job: str) -> str:
        states = Counter(record.state.value for record in self.wiring.ledger.all(job))
        run = self.wiring.ledger.current(job)
        assert run is not None
        counters = self.wiring.ledger.counters(job, run.run)
        return f"not done in time: {states}, {counters}, {self.proxy.counts}, kills={self.kills}"


def _run_worker(url: str, poller_url: str, settings: Settings) -> None:
    """In the child process: work with all output redirected."""
    with Path(os.environ.get("DARKROOM_WORKER_LOG", os.devnull)).open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        worker.run(url, poller_url, settings, TIMINGS)


def provider_faults(rate: float) -> Config:
    """All endpoints fail in every way that another attempt can cure, and refuse a few rows."""
    faults = (
        Fault(kind=FaultKind.OVERLOADED, when=When(prompt_contains="dead end")),
        Fault(kind=FaultKind.SERVER_ERROR, status=500, when=When(rate=rate)),
        Fault(kind=FaultKind.DROP, when=When(rate=rate)),
        Fault(kind=FaultKind.DROP_AFTER, when=When(rate=rate)),
        Fault(kind=FaultKind.OVERLOADED, when=When(rate=rate)),
        Fault(kind=FaultKind.BROKEN_IMAGE, when=When(rate=rate / 4)),
        Fault(kind=FaultKind.REFUSED, when=When(rate=rate / 4)),
    )
    names = ("gemini-a", "gemini-b", "openai-a", "openai-b")
    return Config(endpoints={name: SimulatedEndpoint(mode="fast", faults=faults) for name in names})


@contextmanager
def running(rates: FaultRates, folder: Path) -> Iterator[FaultHarness]:
    FORKSERVER.set_forkserver_preload(["tests.e2e.worker", "openai", "google.genai"])
    config = provider_faults(rates.providers)
    with ExitStack() as cleanup:
        aws = cleanup.enter_context(ministack.running(auth=False))
        aws_faults = dict.fromkeys(AwsFault, rates.aws)
        proxy = cleanup.enter_context(faulting_proxy.running(aws.url, aws_faults))
        process, providers_url = stack.start_providers(folder, config)
        cleanup.callback(process.stop)
        fields = ("max_retries", "retry_delay_seconds", "max_in_flight")
        override = {**dict.fromkeys(fields, 0), "timeout_seconds": 20}
        overrides = dict.fromkeys(config.endpoints, override)
        secret = stack.endpoints_secret(providers_url, config, overrides)
        settings = _create_resources(aws.url, secret, rates.threads)
        wiring = worker.wiring(aws.url, settings, TIMINGS, FakeTelemetry())
        yield FaultHarness(rates, aws.url, proxy, Simulator(providers_url), settings, wiring)


def _create_resources(url: str, secret: Mapping[str, Any], threads: int) -> Settings:
    s3, sqs = worker.client("s3", url), worker.client("sqs", url)
    dynamodb, secrets = worker.client("dynamodb", url), worker.client("secretsmanager", url)
    for bucket in ("input", "results"):
        s3.create_bucket(Bucket=bucket)
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for table in ("ledger", "endpoints"):
        create_table(dynamodb, table, table)
    created = secrets.create_secret(Name="endpoints", SecretString=json.dumps(secret))
    return Settings(
        stack_name="faults",
        input_bucket="input",
        results_bucket="results",
        ledger_table="ledger",
        endpoints_table="endpoints",
        endpoints_secret_arn=created["ARN"],
        rows_queue_url=sqs.create_queue(QueueName="rows")["QueueUrl"],
        batch_rows_queue_url=sqs.create_queue(QueueName="batch-rows")["QueueUrl"],
        dead_letter_queue_url=sqs.create_queue(QueueName="dead")["QueueUrl"],
        lost_events_queue_url=sqs.create_queue(QueueName="lost-events")["QueueUrl"],
        jobs_topic_arn="none",
        splitter_function="none",
        reporter_function="none",
        collector_function="none",
        rows_per_worker=threads,
        trusted_image_hosts="127.0.0.1",
    )
