"""The endpoints secret, read from Secrets Manager and kept while it is good."""

import threading
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from darkroom.endpoints import EndpointsSecret, parse_endpoints
from darkroom.errors import ConfigurationError
from darkroom.ports import Clock, Telemetry

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient


KEEP_SECONDS = 300.0
# A rejected key asks for a new look at once; a storm of them asks no more often than this.
LOOK_AGAIN_SECONDS = 15.0


class SecretsManagerSource:
    """Implements ports.SecretSource. Thread-safe: one thread reads, the others do not wait for it.

    Read every 5 minutes. A secret that cannot be read or is not valid leaves the last good one in
    force, with an error in the log at each try.
    """

    def __init__(
        self, client: "SecretsManagerClient", secret_id: str, clock: Clock, telemetry: Telemetry
    ) -> None:
        self._client = client
        self._secret_id = secret_id
        self._clock = clock
        self._telemetry = telemetry
        self._lock = threading.Lock()
        self._good: EndpointsSecret | None = None
        self._version: str | None = None
        self._read_at = float("-inf")
        self._wanted = False

    def endpoints(self) -> EndpointsSecret:
        """Raises ConfigurationError when there never was a good secret."""
        good = self._good
        if good is not None and not self._due():
            return good
        if good is not None and not self._lock.acquire(blocking=False):
            return good  # another thread is reading
        if good is None:
            self._lock.acquire()
        try:
            return self._read() if self._good is None or self._due() else self._good
        finally:
            self._lock.release()

    def refresh(self) -> None:
        """Read again at the next use, or LOOK_AGAIN_SECONDS after the last read."""
        self._wanted = True

    def _due(self) -> bool:
        age = self._clock.now() - self._read_at
        return age >= KEEP_SECONDS or (self._wanted and age >= LOOK_AGAIN_SECONDS)

    def _read(self) -> EndpointsSecret:
        self._read_at = self._clock.now()
        self._wanted = False
        try:
            fresh, version = self._fetch()
        except ConfigurationError as error:
            if self._good is None:
                raise
            self._telemetry.error("secret_not_usable", detail=str(error), kept=self._version)
            return self._good
        if version != self._version:
            names = [endpoint.name for endpoint in fresh.endpoints]
            self._telemetry.info("secret_read", version=version, endpoints=names)
        self._good, self._version = fresh, version
        return fresh

    def _fetch(self) -> tuple[EndpointsSecret, str]:
        try:
            answer = self._client.get_secret_value(SecretId=self._secret_id)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "unknown")
            raise ConfigurationError(f"the endpoints secret cannot be read ({code})") from error
        except BotoCoreError as error:
            kind = type(error).__name__
            raise ConfigurationError(f"the endpoints secret cannot be read ({kind})") from error
        return parse_endpoints(answer.get("SecretString", "")), answer["VersionId"]
