"""Wiring: which adapter stands behind which port. Built once per process, at the first event.

Imports are inside the functions, so that each Lambda loads only what it needs.
"""
# ruff: noqa: PLC0415, TID251

import os
import pkgutil
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from darkroom.providers.registry import PROVIDERS, Provider
from darkroom.settings import Settings

if TYPE_CHECKING:
    from darkroom.aws.ledger_table import LedgerTable
    from darkroom.aws.s3 import S3ObjectStore
    from darkroom.aws.sqs import SqsRowQueue
    from darkroom.aws.telemetry import PowertoolsTelemetry
    from darkroom.dispatch.dispatcher import Dispatcher
    from darkroom.editor.batch import Completion, EditorBatch
    from darkroom.editor.row_editor import RowEditor
    from darkroom.jobs import Run
    from darkroom.ports import ImageEditor, SystemClock
    from darkroom.report.reporter import Reporter
    from darkroom.splitter import CsvUploaded, Splitter


@contextmanager
def invocation(request_id: str) -> Iterator[None]:
    """Around each event: lines carry its request id, metrics are printed at its end."""
    telemetry().correlate(request_id)
    try:
        yield
    finally:
        telemetry().flush()


@cache
def splitter() -> "Splitter":
    from darkroom.aws.events import continuation_event
    from darkroom.aws.s3 import S3CsvStore
    from darkroom.splitter import Splitter

    def continue_later(upload: "CsvUploaded") -> None:
        _start(os.environ["AWS_LAMBDA_FUNCTION_NAME"], continuation_event(upload))

    return Splitter(
        runs=_ledger(),
        rows=_ledger(),
        queue=_queue(),
        store=S3CsvStore(_client("s3")),
        clock=_clock(),
        telemetry=telemetry(),
        continue_later=continue_later,
        request_report=_request_report,
        check_complete=_completion().check,
    )


@cache
def editor() -> "EditorBatch":
    from darkroom.editor.batch import EditorBatch
    from darkroom.editor.heartbeat import Heartbeat

    return EditorBatch(
        editor=_row_editor(),
        runs=_ledger(),
        queue=_queue(),
        heartbeat=Heartbeat(_queue(), _ledger(), telemetry()),
        completion=_completion(),
        clock=_clock(),
        telemetry=telemetry(),
        threads=_settings().rows_per_worker,
    )


@cache
def reporter() -> "Reporter":
    from darkroom.aws.events import SnsTopic
    from darkroom.aws.s3 import S3CsvStore, S3Uploads
    from darkroom.csv_input.reader import JobRows, read_job_rows
    from darkroom.report.reporter import Reporter

    csv_store = S3CsvStore(_client("s3"))

    def job_rows(run: "Run") -> JobRows:
        return read_job_rows(lambda offset: csv_store.read(run.source, offset), run.options)

    return Reporter(
        runs=_ledger(),
        rows=_ledger(),
        store=_results(),
        uploads=S3Uploads(_client("s3"), _settings().results_bucket),
        job_rows=job_rows,
        notify=SnsTopic(_client("sns"), _settings().jobs_topic_arn).publish,
        clock=_clock(),
        telemetry=telemetry(),
    )


def _row_editor() -> "RowEditor":
    from darkroom.editor.image_storage import ImageStorage
    from darkroom.editor.row_editor import RowEditor
    from darkroom.fetcher import SafeImageFetcher

    return RowEditor(
        rows=_ledger(),
        images=ImageStorage(_results(), _clock(), telemetry()),
        queue=_queue(),
        fetcher=SafeImageFetcher.from_settings(_client("s3"), _settings()),
        dispatcher=_dispatcher(),
        clock=_clock(),
        telemetry=telemetry(),
        on_unknown_outcome=_settings().on_unknown_outcome,
    )


def _dispatcher() -> "Dispatcher":
    from darkroom.aws.endpoint_table import DynamoDBEndpointStates
    from darkroom.aws.secrets import SecretsManagerSource
    from darkroom.dispatch.dispatcher import Dispatcher

    secret = SecretsManagerSource(
        _client("secretsmanager"), _settings().endpoints_secret_arn, _clock(), telemetry()
    )
    states = DynamoDBEndpointStates(_client("dynamodb"), _settings().endpoints_table)
    return Dispatcher(secret, states, _image_editor, _clock(), random.Random(), telemetry())  # noqa: S311


@cache
def _image_editor(provider: Provider) -> "ImageEditor":
    """Each SDK is imported when its provider is first needed: openai only in a fallback."""
    adapter: ImageEditor = pkgutil.resolve_name(PROVIDERS[provider].adapter)()
    return adapter


@cache
def telemetry() -> "PowertoolsTelemetry":
    from darkroom.aws.telemetry import PowertoolsTelemetry

    service = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "darkroom")
    return PowertoolsTelemetry(_settings().stack_name, service)


@cache
def _settings() -> Settings:
    return Settings.from_environment()


@cache
def _clock() -> "SystemClock":
    from darkroom.ports import SystemClock

    return SystemClock()


@cache
def _client(service: str) -> Any:
    """A boto3 client: its retries cover throttles, its pool serves all threads of a function."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 5},
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=32,
        tcp_keepalive=True,
    )
    return boto3.client(service, config=config)  # type: ignore[call-overload]


@cache
def _ledger() -> "LedgerTable":
    from darkroom.aws.ledger_table import LedgerTable

    return LedgerTable(_client("dynamodb"), _settings().ledger_table)


@cache
def _queue() -> "SqsRowQueue":
    from darkroom.aws.sqs import SqsRowQueue

    return SqsRowQueue(
        _client("sqs"), _settings().rows_queue_url, _settings().dead_letter_queue_url
    )


@cache
def _results() -> "S3ObjectStore":
    from darkroom.aws.s3 import S3ObjectStore

    return S3ObjectStore(_client("s3"), _settings().results_bucket)


def _completion() -> "Completion":
    from darkroom.editor.batch import Completion

    return Completion(_ledger(), _request_report, telemetry())


def _request_report(job: str) -> None:
    _start(_settings().reporter_function, {"job": job})


def _start(function: str, event: dict[str, object]) -> None:
    from darkroom.aws.events import LambdaFunctions

    LambdaFunctions(_client("lambda")).start(function, event)
