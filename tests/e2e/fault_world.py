"""A job among faults: workers killed, AWS and providers failing, and what is left of it all.

MiniStack, the faulting proxy, the simulated providers and worker processes; the real splitter,
editor and reporter.
"""

import csv
import io
import json
import multiprocessing
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from darkroom.bootstrap import Wiring
from darkroom.editor.batch import Timings
from darkroom.jobs import job_id
from darkroom.report.reporter import ReportOutcome
from darkroom.settings import Settings
from darkroom.splitter import CsvUploaded
from darkroom_local import faulting_proxy, ministack, simulation
from darkroom_local.faulting_proxy import AwsFault, FaultingProxy
from darkroom_local.providers.config import Config, Fault, FaultKind, SimulatedEndpoint, When
from tests.e2e import worker
from tests.fakes.services import FakeTelemetry

TIMINGS = Timings(
    lease_seconds=6.0,
    heartbeat_seconds=1.5,
    held_delay_seconds=1.0,
    aws_delay_seconds=0.5,
    backoff_seconds=0.2,
    backoff_cap_seconds=2.0,
)
FORKED = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Chaos:
    """`aws` is the share of requests that meet each kind of fault; `providers` of calls."""

    rows: int
    aws: float
    providers: float
    kill_every: float  # seconds
    kills: int = 10**9  # at most
    attempts: int = 6
    workers: int = 3
    threads: int = 4
    seconds: float = 55.0  # all must be done by then


@dataclass
class World:
    chaos: Chaos
    url: str  # MiniStack itself
    proxy: FaultingProxy
    providers_url: str
    settings: Settings
    wiring: Wiring
    kills: int = 0
    paid_before: Counter[str] = field(default_factory=Counter)
    processes: list[BaseProcess] = field(default_factory=list)

    def client(self, service: str) -> Any:
        return worker.client(service, self.url)

    # -- workers

    def start_worker(self) -> None:
        config = worker.WorkerConfig(self.proxy.url, self.url, self.settings, TIMINGS)
        process = FORKED.Process(target=_quiet_worker, args=(config,), daemon=True)
        process.start()
        self.processes.append(process)

    def kill_one(self, rng: random.Random) -> None:
        """SIGKILL, wherever it stands; another takes its place."""
        process = self.processes.pop(rng.randrange(len(self.processes)))
        process.kill()
        process.join()
        process.close()
        self.kills += 1
        self.start_worker()

    def stop_workers(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
            process.close()
        self.processes.clear()

    # -- the job

    def upload(self, key: str, rows: Sequence[Mapping[str, str]], **options: str) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        body = text.getvalue().encode()
        answer = self.client("s3").put_object(
            Bucket=self.settings.input_bucket, Key=key, Body=body, Metadata=options
        )
        version, sequence = answer.get("VersionId"), f"{time.time_ns():016X}"
        event = CsvUploaded(self.settings.input_bucket, key, version, sequence, len(body))
        self.wiring.splitter.split(event, lambda: 900.0)
        return job_id(key)

    def work(self, job: str, *, kill: bool = True, revive: bool = False) -> None:
        """Let the workers have the job, and kill one now and then, until all is settled.

        With `revive`, until nobody is dead: a report is due also between two redriven rows.
        """
        rng = random.Random(1)
        started = last_kill = time.monotonic()
        for _ in range(self.chaos.workers):
            self.start_worker()
        try:
            while not self._is_done(job, revive=revive):
                now = time.monotonic()
                assert now - started < self.chaos.seconds, self.state_of(job)
                if self._may_kill(kill) and now - last_kill > self.chaos.kill_every:
                    self.kill_one(rng)
                    last_kill = now
                time.sleep(0.1)
        finally:
            self.stop_workers()

    def _is_done(self, job: str, *, revive: bool) -> bool:
        run = self.wiring.ledger.current(job)
        if run is None or not self.wiring.ledger.report_due(job):
            return False
        return not (revive and self.wiring.ledger.counters(job, run.run).dead)

    def _may_kill(self, kill: bool) -> bool:
        return kill and self.kills < self.chaos.kills

    def report(self, job: str) -> None:
        assert self.wiring.reporter.report(job, "test") is ReportOutcome.MADE

    def redrive(self) -> int:
        """What SQS's own redrive does: the dead letters go back as they are."""
        sqs, moved = self.client("sqs"), 0
        while True:
            answer = sqs.receive_message(
                QueueUrl=self.settings.dead_letter_queue_url, MaxNumberOfMessages=10
            )
            if not answer.get("Messages"):
                return moved
            for message in answer["Messages"]:
                sqs.send_message(QueueUrl=self.settings.rows_queue_url, MessageBody=message["Body"])
                sqs.delete_message(
                    QueueUrl=self.settings.dead_letter_queue_url,
                    ReceiptHandle=message["ReceiptHandle"],
                )
                moved += 1

    # -- what is left of it

    def manifest(self, job: str) -> list[dict[str, str]]:
        text = self._object(f"{job}/manifest.csv").decode("utf-8-sig")
        return list(csv.DictReader(io.StringIO(text)))

    def summary(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._object(f"{job}/job.json"))
        return found

    def paid(self) -> Counter[str]:
        """Pictures each row was billed for, as the providers saw it."""
        paid = self.paid_before.copy()
        for stats in self.provider_stats().values():
            paid.update(stats["paid_by_marker"])
        return paid

    def provider_stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.providers_url}/_sim/stats") as answer:
            stats: dict[str, Any] = json.load(answer)["endpoints"]
        return stats

    def calm(self) -> None:
        """No more faults, anywhere."""
        self.proxy.rates.clear()
        self.paid_before = self.paid()  # the providers count anew
        config = Config(
            endpoints={name: SimulatedEndpoint(mode="fast") for name in self.provider_stats()}
        )
        body = config.model_dump_json().encode()
        request = urllib.request.Request(f"{self.providers_url}/_sim/configure", body)
        urllib.request.urlopen(request).close()

    def state_of(self, job: str) -> str:
        states: dict[str, int] = {}
        for record in self.wiring.ledger.all(job):
            states[record.state.value] = states.get(record.state.value, 0) + 1
        run = self.wiring.ledger.current(job)
        assert run is not None
        counters = self.wiring.ledger.counters(job, run.run)
        return f"not done in time: {states}, {counters}, {self.proxy.met}, kills={self.kills}"

    def _object(self, key: str) -> bytes:
        body: bytes = (
            self.client("s3")
            .get_object(Bucket=self.settings.results_bucket, Key=key)["Body"]
            .read()
        )
        return body


def _quiet_worker(config: worker.WorkerConfig) -> None:
    import os  # noqa: PLC0415  # only in the child
    import sys  # noqa: PLC0415

    with Path(os.environ.get("DARKROOM_WORKER_LOG", os.devnull)).open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        worker.run(config)


def provider_faults(rate: float) -> Config:
    """Both providers fail in every way that another attempt cures, and refuse a little."""
    dead_end = When(prompt_contains="dead end")
    transient = (
        Fault(kind=FaultKind.OVERLOADED, when=dead_end),
        Fault(kind=FaultKind.SERVER_ERROR, status=500, when=When(rate=rate)),
        Fault(kind=FaultKind.DROP, when=When(rate=rate)),
        Fault(kind=FaultKind.DROP_AFTER, when=When(rate=rate)),
        Fault(kind=FaultKind.OVERLOADED, when=When(rate=rate)),
        Fault(kind=FaultKind.BROKEN_IMAGE, when=When(rate=rate / 4)),
        Fault(kind=FaultKind.REFUSED, when=When(rate=rate / 4)),
    )
    names = ("gemini-a", "gemini-b", "openai-a", "openai-b")
    return Config(
        endpoints={name: SimulatedEndpoint(mode="fast", faults=transient) for name in names}
    )


@contextmanager
def world(chaos: Chaos, folder: Path) -> Iterator[World]:
    FORKED.set_forkserver_preload(["tests.e2e.worker", "openai", "google.genai"])
    config = provider_faults(chaos.providers)
    rates = dict.fromkeys(AwsFault, chaos.aws)
    with ExitStack() as stack:
        aws = stack.enter_context(ministack.running(auth=False))
        proxy = stack.enter_context(faulting_proxy.running(aws.url, rates))
        providers = simulation.start(folder, config)
        stack.callback(providers.stop)
        plain = {"max_retries": 0, "retry_delay_seconds": 0, "timeout_seconds": 20}
        overrides = {name: {**plain, "max_in_flight": 0} for name in config.endpoints}
        secret = simulation.secret_for(providers.url, config, overrides)
        settings = _resources(aws.url, secret, chaos.threads)
        wiring = worker.wiring(aws.url, settings, TIMINGS, FakeTelemetry())
        yield World(chaos, aws.url, proxy, providers.url, settings, wiring)


def _resources(url: str, secret: Mapping[str, Any], threads: int) -> Settings:
    s3, sqs = worker.client("s3", url), worker.client("sqs", url)
    dynamodb, secrets = worker.client("dynamodb", url), worker.client("secretsmanager", url)
    for bucket in ("input", "results"):
        s3.create_bucket(Bucket=bucket)
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for table, keys in (("ledger", ("job", "item")), ("endpoints", ("endpoint",))):
        kinds = ("HASH", "RANGE")
        dynamodb.create_table(
            TableName=table,
            KeySchema=[
                {"AttributeName": k, "KeyType": kind} for k, kind in zip(keys, kinds, strict=False)
            ],
            AttributeDefinitions=[{"AttributeName": k, "AttributeType": "S"} for k in keys],
            BillingMode="PAY_PER_REQUEST",
        )
    named = secrets.create_secret(Name="endpoints", SecretString=json.dumps(secret))
    return Settings(
        stack_name="faults",
        input_bucket="input",
        results_bucket="results",
        ledger_table="ledger",
        endpoints_table="endpoints",
        endpoints_secret_arn=named["ARN"],
        rows_queue_url=sqs.create_queue(QueueName="rows")["QueueUrl"],
        dead_letter_queue_url=sqs.create_queue(QueueName="dead")["QueueUrl"],
        jobs_topic_arn="none",
        reporter_function="none",
        rows_per_worker=threads,
        trusted_image_hosts="127.0.0.1",
    )
