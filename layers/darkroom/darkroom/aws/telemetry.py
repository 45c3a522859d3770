"""Metrics as CloudWatch EMF lines and structured logs, both through Powertools."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch import (
    AmazonCloudWatchEMFProvider,
)

from darkroom.metrics import NAMESPACE, Metric
from darkroom.providers.registry import PROVIDERS

_FLUSH_SECONDS = 60.0
_RESERVED = {*vars(logging.makeLogRecord({})), "message", "asctime"}

_bound: ContextVar[dict[str, object] | None] = ContextVar("darkroom_log_fields", default=None)


class PowertoolsTelemetry:
    """Implements ports.Telemetry. `flush` prints the metrics, at the end of an invocation.

    In a long invocation they are printed once a minute as well: alarms must not wait for its end,
    and CloudWatch counts a metric in the minute that its line names. A metric that has 100 values,
    the most that one EMF line may contain, is printed before.

    Dimensions: `Stack` alone, and for metrics about an endpoint also `Stack` with `Endpoint`, so
    that an alarm needs no list of endpoints.
    """

    def __init__(
        self, stack: str, service: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stack = stack
        self._clock = clock  # in seconds
        self._flush_at = float("inf")
        self._logger = Logger(service=service)
        # The SDKs log whole requests, with keys and images, at DEBUG.
        sdk_loggers = (entry.sdk_logger for entry in PROVIDERS.values())
        for name in (*sdk_loggers, "httpx2", "httpcore2", "botocore", "urllib3"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._lock = threading.Lock()
        self._pending: dict[str | None, AmazonCloudWatchEMFProvider] = {}  # by endpoint

    @contextmanager
    def bound(self, **fields: object) -> Iterator[None]:
        token = _bound.set({**(_bound.get() or {}), **fields})
        try:
            yield
        finally:
            _bound.reset(token)

    def correlate(self, request_id: str) -> None:
        """Add this invocation's request id to all further lines."""
        self._logger.set_correlation_id(request_id)

    def metric(self, metric: Metric, value: float = 1, *, endpoint: str | None = None) -> None:
        with self._lock:
            if endpoint not in self._pending:
                self._pending[endpoint] = self._provider(endpoint)
            self._pending[endpoint].add_metric(metric.value, metric.unit, value)
            now = self._clock()
            self._flush_at = min(self._flush_at, now + _FLUSH_SECONDS)
            due = now >= self._flush_at
        if due:
            self.flush()

    def info(self, event: str, **fields: object) -> None:
        self._logger.info(event, extra=self._fields(fields), stacklevel=3)

    def warning(self, event: str, **fields: object) -> None:
        self._logger.warning(event, extra=self._fields(fields), stacklevel=3)

    def error(self, event: str, **fields: object) -> None:
        self._logger.error(event, extra=self._fields(fields), stacklevel=3)

    def exception(self, event: str, **fields: object) -> None:
        # Called inside the caller's handler.
        self._logger.exception(event, extra=self._fields(fields), stacklevel=3)  # noqa: LOG004

    def flush(self) -> None:
        """Print the pending metrics, one EMF line per set of dimensions."""
        with self._lock:
            pending, self._pending = self._pending, {}
            self._flush_at = float("inf")
        for provider in pending.values():
            if provider.metric_set:  # a full set was printed already
                provider.flush_metrics()

    def _provider(self, endpoint: str | None) -> AmazonCloudWatchEMFProvider:
        # service="" keeps Powertools from adding a dimension that costs per combination.
        provider = AmazonCloudWatchEMFProvider(namespace=NAMESPACE, service="")
        provider.add_dimension("Stack", self._stack)
        if endpoint is not None:
            provider.add_dimensions(Stack=self._stack, Endpoint=endpoint)
        return provider

    @staticmethod
    def _fields(fields: dict[str, object]) -> dict[str, object]:
        both = {**(_bound.get() or {}), **fields}
        # logging rejects its own attribute names ("name", "args", ...) as extra fields.
        return {f"{k}_" if k in _RESERVED else k: v for k, v in both.items()}
