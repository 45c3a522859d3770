"""The endpoints secret, read from Secrets Manager and cached."""

import re
import threading
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from darkroom.aws.errors import error_code
from darkroom.endpoints import EndpointsSecret, parse_endpoints
from darkroom.errors import ConfigurationError
from darkroom.metrics import Metric
from darkroom.ports import Clock, Telemetry

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

CACHE_SECONDS = 30.0  # with the wait for a slot, a change is used everywhere within a minute
_NO_ENDPOINTS = re.compile(r'\s*\{\s*("endpoints"\s*:\s*\[\s*\]\s*)?\}\s*')  # as deployed
REFRESH_SECONDS = 15.0  # between two reads, however many keys are rejected


class SecretsManagerSource:
    """Implements ports.SecretSource. Thread-safe: one thread reads, the others do not wait for it.

    Read every CACHE_SECONDS. While the secret cannot be read or is not valid, the last valid one
    stays in use, with an error in the log at each try.
    """

    def __init__(
        self, client: "SecretsManagerClient", secret_id: str, clock: Clock, telemetry: Telemetry
    ) -> None:
        self._client = client
        self._secret_id = secret_id
        self._clock = clock
        self._telemetry = telemetry
        self._lock = threading.Lock()
        self._valid: EndpointsSecret | None = None
        self._version: str | None = None
        self._read_at = float("-inf")
        self._refresh_requested = False

    def endpoints(self) -> EndpointsSecret:
        valid = self._valid
        if valid is not None and not (self._due() and self._lock.acquire(blocking=False)):
            return valid  # still current, or another thread is reading
        if valid is None:
            self._lock.acquire()
        try:
            return self._read() if self._valid is None or self._due() else self._valid
        finally:
            self._lock.release()

    def refresh(self) -> None:
        """Read again at the next use, or REFRESH_SECONDS after the last read."""
        self._refresh_requested = True

    def _due(self) -> bool:
        age = self._clock.now() - self._read_at
        return age >= CACHE_SECONDS or (self._refresh_requested and age >= REFRESH_SECONDS)

    def _read(self) -> EndpointsSecret:
        self._read_at = self._clock.now()
        self._refresh_requested = False
        try:
            fresh, version = self._fetch()
        except ConfigurationError as error:
            self._telemetry.metric(Metric.SECRET_UNUSABLE)
            if self._valid is None:
                raise
            self._telemetry.error("secret_not_usable", detail=str(error), kept=self._version)
            return self._valid
        if version != self._version:
            names = [endpoint.name for endpoint in fresh.endpoints]
            self._telemetry.info("secret_read", version=version, endpoints=names)
        self._valid, self._version = fresh, version
        return fresh

    def _fetch(self) -> tuple[EndpointsSecret, str]:
        try:
            response = self._client.get_secret_value(SecretId=self._secret_id)
        except (ClientError, BotoCoreError) as error:
            kind = error_code(error) if isinstance(error, ClientError) else type(error).__name__
            raise ConfigurationError(f"the endpoints secret cannot be read ({kind})") from error
        text = response.get("SecretString", "")
        if not text.strip() or _NO_ENDPOINTS.fullmatch(text):
            raise ConfigurationError(
                "no endpoints are configured: push them with `darkroom endpoints push FILE`"
            )
        return parse_endpoints(text), response["VersionId"]
