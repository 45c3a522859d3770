"""What the adapters share: cached SDK clients, and one call whose errors become CallFailed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from importlib import import_module
from threading import Lock
from typing import ClassVar

import httpx2
from pydantic import SecretStr

from darkroom.calls import (
    AvailableModels,
    CallFailed,
    CallPlan,
    EditResult,
    Outcome,
    ProviderLimits,
)
from darkroom.endpoints import Endpoint
from darkroom.models.catalog import Model, model_advice, model_at, row_model_advice
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


@dataclass(frozen=True, slots=True)
class CallOwner:
    """Whose a call is, for the description of its failure."""

    endpoint: Endpoint
    key: str = field(repr=False)
    timeout_seconds: float
    model_of_row: str | None  # the model, if the row or its job named it


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
        model = plan.model if plan.model_of_row else None
        call = CallOwner(endpoint, key.get_secret_value(), timeout_seconds, model)
        result, limits = self._bounded(
            call, lambda: self._call(plan, endpoint, call.key, timeout_seconds)
        )
        return replace(result, provider_limits=limits)

    def available_models(
        self, endpoint: Endpoint, key: SecretStr, timeout_seconds: float
    ) -> AvailableModels:
        """The models that the provider lists for the key. Costs nothing. Raises CallFailed."""
        # A list that is not found says nothing about the endpoint's model.
        call = CallOwner(endpoint, key.get_secret_value(), timeout_seconds, model_of_row="")
        ends, limits = self._bounded(
            call, lambda: self._list_models(endpoint, call.key, timeout_seconds)
        )
        return AvailableModels(ends, limits)

    def _bounded[Result](
        self, call: CallOwner, send: Callable[[], Result], *, streamed: bool = False
    ) -> tuple[Result, ProviderLimits]:
        """The result of `send` and the limits that its response states. Raises CallFailed."""
        import_module(self.sdk)  # seconds on a busy machine, which are not the provider's
        with deadline(call.timeout_seconds, streamed=streamed) as exchange:
            try:
                result = send()
            except CallFailed as failure:
                failure.provider_limits = self._provider_limits(exchange)
                raise
            except Exception as error:  # noqa: BLE001 - SDKs raise what they never documented
                failed = self._failed(error, exchange, call)
                raise failed from cause_without_key(error, call.key)
        return result, self._provider_limits(exchange)

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

    def _failed(self, error: Exception, exchange: Exchange, call: CallOwner) -> CallFailed:
        response, endpoint, key = exchange.response, call.endpoint, call.key
        if response is not None and response.status_code != httpx2.codes.OK:
            failure = self._failure(response, endpoint)
            failed = classify(self.table, failure, key=key)
            if failed.outcome is Outcome.MODEL_UNAVAILABLE:
                self._explain_model(failed, call)
            failed.provider_limits = self._provider_limits(exchange)
            return failed
        # An SDK may wrap the transport's error.
        transport = error if isinstance(error, _TRANSPORT_ERRORS) else error.__cause__
        of_endpoint = exchange.sent or not _is_http_url(endpoint.base_url)
        if isinstance(transport, _TRANSPORT_ERRORS) and of_endpoint:
            return transport_failed(transport, call.timeout_seconds)
        return malformed_response(error, key) if exchange.sent else not_sent(error, key)

    @staticmethod
    def _explain_model(failed: CallFailed, call: CallOwner) -> None:
        """Say which model to name instead. One that the row named is the row's fault."""
        advice, name = model_advice(call.endpoint), call.model_of_row
        if name is not None:
            advice, failed.outcome = row_model_advice(call.endpoint, name), Outcome.BAD_REQUEST
        if advice:
            failed.detail = f"{failed.detail.rstrip('.')}: {advice}"

    def _model(self, endpoint: Endpoint, plan: CallPlan) -> Model:
        """The plan's model, with the prices of its calls."""
        return model_at(endpoint, plan.model)

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
    def _list_models(
        self, endpoint: Endpoint, key: str, timeout_seconds: float
    ) -> Mapping[str, date | None]:
        """Each model's name with its end, if the provider states one."""

    @abstractmethod
    def _failure(self, response: httpx2.Response, endpoint: Endpoint) -> Failure:
        """What an error response says. Must not raise, whatever the response contains."""


def _is_http_url(base_url: str | None) -> bool:
    """True also for the provider's own."""
    try:
        return base_url is None or httpx2.URL(base_url).scheme in ("http", "https")
    except httpx2.InvalidURL:
        return False
