"""Wiring: which adapter implements which port. Built once per process, at the first event.

Imports are inside the methods, so that each Lambda function loads only what it needs.
"""
# ruff: noqa: PLC0415, TID251

import os
import pkgutil
import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property, partial
from math import inf
from typing import TYPE_CHECKING, Any

from darkroom.ports import SystemClock
from darkroom.providers.registry import PROVIDERS, Provider
from darkroom.settings import Settings

if TYPE_CHECKING:
    from pydantic import SecretStr

    from darkroom.aws.batch_table import BatchTable
    from darkroom.aws.endpoint_table import DynamoDBEndpointStates
    from darkroom.aws.events import LostUploads
    from darkroom.aws.ledger_table import LedgerTable
    from darkroom.aws.s3 import S3CsvStore, S3ObjectStore
    from darkroom.aws.secrets import SecretsManagerSource
    from darkroom.aws.sqs import SqsRowQueue
    from darkroom.aws.telemetry import PowertoolsTelemetry
    from darkroom.batches.collector import Collector
    from darkroom.batches.endpoints import BatchEndpoints
    from darkroom.batches.returns import RowReturns
    from darkroom.batches.submitter import RowSubmitter, Submitter
    from darkroom.dispatch.dispatcher import TieredDispatcher
    from darkroom.editor.batch import Completion, EditorBatch
    from darkroom.editor.image_storage import ImageStorage
    from darkroom.editor.leases import Timings
    from darkroom.editor.row_editor import RowEditor
    from darkroom.editor.waiting import CurrentRuns, JobWaits
    from darkroom.endpoints import Endpoint
    from darkroom.fetcher import SafeImageFetcher
    from darkroom.images.memory import MemoryBudget
    from darkroom.ports import BatchProvider, ImageEditor, Telemetry
    from darkroom.report.reporter import Reporter
    from darkroom.splitter import CsvUploaded, Splitter
    from darkroom.sweep import Sweep

# A claim that was written and not answered is a lease that nobody ends, and its row seems to have
# crashed its worker. So does a batch whose collector could not end its lease. The heartbeat, every
# 30 s, may be kept waiting by a few such requests.
LEDGER_PATIENCE_SECONDS = 10.0
# A report makes thousands of requests to S3, and begins again when one of them fails. An editor has
# its own rule: it returns the row, or repeats the upload of a paid image until its deadline.
REPORT_PATIENCE_SECONDS = 30.0


@contextmanager
def invocation(request_id: str) -> Iterator["Wiring"]:
    """Around each event: log lines carry its request id; metrics are printed at its end."""
    wiring, telemetry = _wiring()
    telemetry.correlate(request_id)
    try:
        yield wiring
    finally:
        telemetry.flush()


@cache
def _wiring() -> tuple["Wiring", "PowertoolsTelemetry"]:
    from darkroom.aws.telemetry import PowertoolsTelemetry

    settings = Settings.from_environment()
    service = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "darkroom")
    telemetry = PowertoolsTelemetry(settings.stack_name, service)
    return Wiring(settings, telemetry), telemetry


def aws_client(service: str) -> Any:
    """A boto3 client: its retries cover throttling, its pool serves all threads of a function."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 5},
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=32,
        tcp_keepalive=True,
    )
    return boto3.client(service, config=config)  # type: ignore[call-overload]  # any service's name


class Wiring:
    """The use cases of the functions with their adapters, each built once, at first use.

    A caller outside Lambda passes what differs there: where clients connect to, shorter timings,
    and how another function is started.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: "Telemetry",
        *,
        client: Callable[[str], Any] = aws_client,
        timings: "Timings | None" = None,
        start_function: Callable[[str, Mapping[str, object]], None] | None = None,
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._client = cache(client)
        self._given_timings = timings
        self._given_start = start_function
        self._clock = SystemClock()

    @cached_property
    def splitter(self) -> "Splitter":
        from darkroom.splitter import Splitter

        return Splitter(
            runs=self.ledger,
            rows=self.ledger,
            queue=self._queue,
            batch_queue=self._batch_queue,
            store=self._csv_store,
            clock=self._clock,
            telemetry=self._telemetry,
            continue_later=self._continue_later,
            request_report=self._request_report,
            show_progress=self._report_progress,
            retention_seconds=self._settings.results_retention_days * 86_400.0 or inf,
            check_complete=self._completion.check,
        )

    @cached_property
    def sweep(self) -> "Sweep":
        from darkroom.sweep import Sweep

        return Sweep(
            runs=self.ledger,
            rows=self.ledger,
            queue=self._queue,
            batch_queue=self._batch_queue,
            batches=self.batches,
            clock=self._clock,
            telemetry=self._telemetry,
            lost_events=self._lost_uploads,
            start_splitter=self._continue_later,
            request_report=self._request_report,
        )

    @cached_property
    def editor(self) -> "EditorBatch":
        from darkroom.editor.batch import EditorBatch

        return EditorBatch(
            editor=self._row_editor,
            dispatcher=self._dispatcher,
            rows=self.ledger,
            runs=self._current_runs,
            waits=self._job_waits,
            queue=self._queue,
            completion=self._completion,
            clock=self._clock,
            telemetry=self._telemetry,
            threads=self._settings.rows_per_worker,
            timings=self._timings,
        )

    @cached_property
    def submitter(self) -> "Submitter":
        from darkroom.batches.submitter import Submitter

        worker = self._row_submitter
        return Submitter(
            worker=worker,
            drafts=worker.drafts,
            endpoints=worker.endpoints,
            returns=self._row_returns,
            rows=self.ledger,
            runs=self._current_runs,
            waits=self._job_waits,
            queue=self._batch_queue,
            completion=self._completion,
            clock=self._clock,
            telemetry=self._telemetry,
        )

    @cached_property
    def collector(self) -> "Collector":
        from darkroom.batches.collector import Collector

        worker = self._row_submitter
        return Collector(
            batches=self.batches,
            rows=self.ledger,
            runs=self._current_runs,
            waits=self._job_waits,
            endpoints=worker.endpoints,
            images=worker.images,
            worker=worker,
            returns=self._row_returns,
            completion=self._completion,
            clock=self._clock,
            telemetry=self._telemetry,
            continue_later=self._continue_collection,
            on_unknown_outcome=self._settings.on_unknown_outcome,
        )

    @cached_property
    def reporter(self) -> "Reporter":
        from darkroom.csv_input.reader import read_job_rows
        from darkroom.report.reporter import Reporter

        csv_store, sns = self._csv_store, self._client("sns")
        return Reporter(
            runs=self.ledger,
            rows=self.ledger,
            store=self._results(REPORT_PATIENCE_SECONDS),
            job_rows=lambda run: read_job_rows(partial(csv_store.read, run.source), run.options),
            notify=lambda subject, body: sns.publish(
                TopicArn=self._settings.jobs_topic_arn, Subject=subject, Message=body
            ),
            continue_later=self._continue_report,
            clock=self._clock,
            telemetry=self._telemetry,
        )

    @cached_property
    def ledger(self) -> "LedgerTable":
        from darkroom.aws.ledger_table import LedgerTable

        return LedgerTable(
            self._client("dynamodb"),
            self._settings.ledger_table,
            lease_seconds=self._timings.lease_seconds,
            patience_seconds=LEDGER_PATIENCE_SECONDS,
        )

    @cached_property
    def _row_editor(self) -> "RowEditor":
        from darkroom.editor.row_editor import RowEditor

        return RowEditor(
            rows=self.ledger,
            runs=self._current_runs,
            waits=self._job_waits,
            images=self._images,
            queue=self._queue,
            fetcher=self._fetcher,
            dispatcher=self._dispatcher,
            batch_queue=self._batch_queue,
            clock=self._clock,
            telemetry=self._telemetry,
            memory=self._memory,
            on_unknown_outcome=self._settings.on_unknown_outcome,
            timings=self._timings,
        )

    @cached_property
    def _row_submitter(self) -> "RowSubmitter":
        from darkroom.batches.drafts import Drafts
        from darkroom.batches.submitter import RowSubmitter

        endpoints, clock, telemetry = self._batch_endpoints, self._clock, self._telemetry
        return RowSubmitter(
            rows=self.ledger,
            runs=self._current_runs,
            waits=self._job_waits,
            images=self._images,
            queue=self._batch_queue,
            fetcher=self._fetcher,
            endpoints=endpoints,
            drafts=Drafts(self.batches, endpoints, clock, telemetry, _new_batch_name),
            live_queue=self._queue,
            clock=clock,
            telemetry=telemetry,
            memory=self._memory,
            on_unknown_outcome=self._settings.on_unknown_outcome,
        )

    @cached_property
    def _images(self) -> "ImageStorage":
        from darkroom.editor.image_storage import ImageStorage

        return ImageStorage(self._results(), self.ledger, self._clock, self._telemetry)

    @cached_property
    def _memory(self) -> "MemoryBudget":
        from darkroom.images.memory import MemoryBudget

        return MemoryBudget.of_function(self._settings.aws_lambda_function_memory_size)

    @cached_property
    def _row_returns(self) -> "RowReturns":
        from darkroom.batches.returns import RowReturns

        return RowReturns(
            self.ledger, self._current_runs, self._row_submitter, self._queue, self._batch_queue
        )

    @cached_property
    def _batch_endpoints(self) -> "BatchEndpoints":
        from darkroom.batches.endpoints import BatchEndpoints
        from darkroom.dispatch.state_cache import StateCache

        rng = random.Random()  # noqa: S311  # for weights
        states = StateCache(self._endpoint_states, self._clock, self._telemetry)
        return BatchEndpoints(
            self._secret_source, states, batch_provider, self._clock, self._telemetry, rng
        )

    @cached_property
    def _fetcher(self) -> "SafeImageFetcher":
        from darkroom.fetcher import SafeImageFetcher

        return SafeImageFetcher.from_settings(self._client("s3"), self._settings)

    @cached_property
    def _secret_source(self) -> "SecretsManagerSource":
        from darkroom.aws.secrets import SecretsManagerSource

        return SecretsManagerSource(
            self._client("secretsmanager"),
            self._settings.endpoints_secret_arn,
            self._clock,
            self._telemetry,
        )

    @cached_property
    def _endpoint_states(self) -> "DynamoDBEndpointStates":
        from darkroom.aws.endpoint_table import DynamoDBEndpointStates

        return DynamoDBEndpointStates(self._client("dynamodb"), self._settings.endpoints_table)

    @cached_property
    def _dispatcher(self) -> "TieredDispatcher":
        from darkroom.dispatch.account_limits import AccountLimits, ObservedEditor
        from darkroom.dispatch.dispatcher import TieredDispatcher

        limits = AccountLimits(self._secret_source, self._telemetry)

        def editor_of(provider: Provider) -> "ImageEditor":
            return ObservedEditor(_image_editor(provider), limits)

        rng = random.Random()  # noqa: S311  # for jitter
        states, telemetry = self._endpoint_states, self._telemetry
        return TieredDispatcher(limits, states, editor_of, self._clock, rng, telemetry)

    @cached_property
    def _current_runs(self) -> "CurrentRuns":
        from darkroom.editor.waiting import CurrentRuns

        return CurrentRuns(self.ledger, self._clock)

    @cached_property
    def _job_waits(self) -> "JobWaits":
        from darkroom.editor.waiting import JobWaits

        return JobWaits(
            self._current_runs,
            self.ledger,
            self._report_progress,
            self._clock,
            self._telemetry,
        )

    @cached_property
    def _timings(self) -> "Timings":
        from darkroom.editor.leases import TIMINGS

        return self._given_timings or TIMINGS

    @cached_property
    def _queue(self) -> "SqsRowQueue":
        from darkroom.aws.sqs import SqsRowQueue

        settings = self._settings
        return SqsRowQueue(
            self._client("sqs"), settings.rows_queue_url, settings.dead_letter_queue_url
        )

    @cached_property
    def _batch_queue(self) -> "SqsRowQueue":
        from darkroom.aws.sqs import SqsRowQueue

        settings = self._settings
        return SqsRowQueue(
            self._client("sqs"), settings.batch_rows_queue_url, settings.dead_letter_queue_url
        )

    @cached_property
    def batches(self) -> "BatchTable":
        from darkroom.aws.batch_table import BatchTable

        return BatchTable(
            self._client("dynamodb"),
            self._settings.ledger_table,
            patience_seconds=LEDGER_PATIENCE_SECONDS,
        )

    @cached_property
    def _lost_uploads(self) -> "LostUploads":
        from darkroom.aws.events import LostUploads

        def start(event: Mapping[str, object]) -> None:
            self._start_function(self._settings.splitter_function, event)

        return LostUploads(self._client("sqs"), self._settings.lost_events_queue_url, start)

    def _results(self, patience_seconds: float = 0.0) -> "S3ObjectStore":
        from darkroom.aws.s3 import S3ObjectStore

        return S3ObjectStore(
            self._client("s3"), self._settings.results_bucket, patience_seconds=patience_seconds
        )

    @cached_property
    def _csv_store(self) -> "S3CsvStore":
        from darkroom.aws.s3 import S3CsvStore

        return S3CsvStore(self._client("s3"))

    @cached_property
    def _completion(self) -> "Completion":
        from darkroom.editor.batch import Completion

        return Completion(self.ledger, self._request_report, self._telemetry)

    def _request_report(self, job: str) -> None:
        self._start_function(self._settings.reporter_function, {"job": job})

    def _report_progress(self, job: str) -> None:
        event = {"job": job, "progress": True}
        self._start_function(self._settings.reporter_function, event)

    def _continue_report(self, job: str, owner: str) -> None:
        self._start_function(self._settings.reporter_function, {"job": job, "owner": owner})

    def _continue_collection(self, batch: str) -> None:
        self._start_function(self._settings.collector_function, {"batch": batch})

    def _continue_later(self, upload: "CsvUploaded") -> None:
        from darkroom.aws.events import continuation_event

        self._start_function(self._settings.splitter_function, continuation_event(upload))

    @cached_property
    def _start_function(self) -> Callable[[str, Mapping[str, object]], None]:
        from darkroom.aws.events import start_function

        return self._given_start or partial(start_function, self._client("lambda"))


def _new_batch_name() -> str:
    """Unique, and what every provider accepts as a name."""
    return f"darkroom-{uuid.uuid4().hex}"


@cache
def _image_editor(provider: Provider) -> "ImageEditor":
    """Each SDK is imported when its provider is first needed: openai only in a fallback."""
    adapter: ImageEditor = pkgutil.resolve_name(PROVIDERS[provider].adapter)()
    return adapter


def batch_provider(endpoint: "Endpoint", key: "SecretStr") -> "BatchProvider":
    """The batch interface of an endpoint's provider."""
    adapter: BatchProvider = pkgutil.resolve_name(PROVIDERS[endpoint.provider].batches)(
        endpoint, key
    )
    return adapter
