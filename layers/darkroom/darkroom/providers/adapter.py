"""What the adapters share: cached SDK clients, and one call whose errors become CallFailed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from threading import Lock
from typing import ClassVar

import httpx2
from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome, ProviderLimits
from darkroom.endpoints import Endpoint
from darkroom.models.catalog import model_advice
from darkroom.providers.errors import (
    Failure,
    Rule,
    cause_without_key,
    classify,
    malformed_response,
    not_sent,
    transport_failed,
)
from darkroom.providers.http import Exchange, close_shared_client, deadline, shared_client

_TRANSPORT_ERRORS = (httpx2.HTTPError, httpx2.InvalidURL)


class SdkImageEditor[Client](ABC):
    """A ports.ImageEditor over a provider's SDK. Thread-safe.

    The SDK is imported with the first call: 400 ms that a cold start need not pay for. What failed
    is read from the HTTP exchange, not from the exception: SDKs raise what they never documented
    when a response does not have the expected form.
    """

    sdk: ClassVar[str]  # the module of the SDK
    table: ClassVar[Sequence[Rule]]

    def __init__(self, http: httpx2.Client | None = None) -> None:
        self._own_http = http
        self._clients: dict[tuple[str | None, ...], Client] = {}
        self._lock = Lock()

    def edit(
        self, plan: CallPlan, endpoint: Endpoint, key: SecretStr, timeout_seconds: float
    ) -> EditResult:
        secret = key.get_secret_value()
        import_module(self.sdk)  # seconds on a busy machine, which are not the provider's
        with deadline(timeout_seconds) as exchange:
            try:
                result = self._call(plan, endpoint, secret, timeout_seconds)
            except CallFailed as failure:
                failure.provider_limits = self._provider_limits(exchange)
                raise
            except Exception as error:  # noqa: BLE001 - SDKs raise what they never documented
                failed = self._failed(error, exchange, plan, endpoint, secret, timeout_seconds)
                raise failed from cause_without_key(error, secret)
        return replace(result, provider_limits=self._provider_limits(exchange))

    def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        with self._lock:
            self._clients.clear()
        if self._own_http is None:
            close_shared_client()

    @property
    def _http(self) -> httpx2.Client:
        return self._own_http or shared_client()

    def _client(self, *address: str | None) -> Client:
        """The client for an address, without a key: each call passes its own."""
        with self._lock:
            if address not in self._clients:
                self._clients[address] = self._new_client(*address)
            return self._clients[address]

    def _failed(  # noqa: PLR0917 - of one call
        self,
        error: Exception,
        exchange: Exchange,
        plan: CallPlan,
        endpoint: Endpoint,
        key: str,
        timeout_seconds: float,
    ) -> CallFailed:
        response = exchange.response
        if response is not None and response.status_code != httpx2.codes.OK:
            failure = self._failure(response, endpoint)
            failed = classify(self.table, failure, model_from_row=plan.model_of_row, key=key)
            if failed.outcome is Outcome.MODEL_UNAVAILABLE:
                failed.detail = f"{failed.detail.rstrip('.')}: {model_advice(endpoint)}"
            failed.provider_limits = self._provider_limits(exchange)
            return failed
        # An SDK may wrap the transport's error.
        transport = error if isinstance(error, _TRANSPORT_ERRORS) else error.__cause__
        of_endpoint = exchange.sent or not _is_http_url(endpoint.base_url)
        if isinstance(transport, _TRANSPORT_ERRORS) and of_endpoint:
            return transport_failed(transport, timeout_seconds)
        return malformed_response(error, key) if exchange.sent else not_sent(error, key)

    def _limits_in(self, response: httpx2.Response) -> ProviderLimits:  # noqa: ARG002 - an adapter's own
        """The account's limits as the response states them. Must not raise."""
        return ProviderLimits()

    def _provider_limits(self, exchange: Exchange) -> ProviderLimits:
        response = exchange.response
        return ProviderLimits() if response is None else self._limits_in(response)

    @abstractmethod
    def _new_client(self, *address: str | None) -> Client: ...

    @abstractmethod
    def _call(
        self, plan: CallPlan, endpoint: Endpoint, key: str, timeout_seconds: float
    ) -> EditResult:
        """Sends the plan and reads the response."""

    @abstractmethod
    def _failure(self, response: httpx2.Response, endpoint: Endpoint) -> Failure:
        """What an error response says. Must not raise, whatever the response contains."""


def _is_http_url(base_url: str | None) -> bool:
    """True also for the provider's own."""
    try:
        return base_url is None or httpx2.URL(base_url).scheme in ("http", "https")
    except httpx2.InvalidURL:
        return False
