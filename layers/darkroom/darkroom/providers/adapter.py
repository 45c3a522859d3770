"""What the adapters share: cached SDK clients, and one call whose errors become CallFailed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from threading import Lock
from typing import ClassVar

import httpx2
from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult
from darkroom.endpoints import Endpoint
from darkroom.providers.errors import (
    Failure,
    Rule,
    cause_without_key,
    classify,
    malformed_response,
    transport_failed,
)
from darkroom.providers.http import close_shared_client, deadline, shared_client

_TRANSPORT_ERRORS = (httpx2.HTTPError, httpx2.InvalidURL)


class SdkImageEditor[Client](ABC):
    """A ports.ImageEditor over a provider's SDK. Thread-safe.

    The SDK is imported with the first call: 400 ms that a cold start need not pay for.
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
        try:
            with deadline(timeout_seconds):
                return self._call(plan, endpoint, secret, timeout_seconds)
        except CallFailed:
            raise
        except Exception as error:  # noqa: BLE001 - SDKs raise what they never documented
            # An SDK may wrap the transport's error.
            transport = error if isinstance(error, _TRANSPORT_ERRORS) else error.__cause__
            if (failure := self._error_response(error)) is not None:
                from_row = plan.model != endpoint.model
                failed = classify(self.table, failure, model_from_row=from_row, key=secret)
            elif isinstance(transport, _TRANSPORT_ERRORS):
                failed = transport_failed(transport, timeout_seconds)
            else:
                failed = malformed_response(error, secret)
            raise failed from cause_without_key(error, secret)

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

    @abstractmethod
    def _new_client(self, *address: str | None) -> Client: ...

    @abstractmethod
    def _call(
        self, plan: CallPlan, endpoint: Endpoint, key: str, timeout_seconds: float
    ) -> EditResult:
        """Sends the plan and reads the response."""

    @abstractmethod
    def _error_response(self, error: Exception) -> Failure | None:
        """The provider's error response, if the SDK raised `error` for one."""
