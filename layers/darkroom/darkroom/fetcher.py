"""Loads the images that rows name, from the public web or from the stack's own buckets.

Web requests connect only to addresses that were checked and end within a total time. A host name is
looked up once per connection, and the connection goes to the very address that was checked, so a
lookup that changes between check and use has no effect. TLS still verifies the certificate against
the host name. Kept connections lead to checked addresses too, so they may be used again.
"""

import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpcore2
from botocore.exceptions import BotoCoreError, ClientError

from darkroom.aws.errors import DENIED_CODES, GONE_CODES, error_code
from darkroom.errors import DarkroomError, Reason, RetryRow, RowError, RowRejected
from darkroom.formatting import quoted
from darkroom.images.file_types import describe_unsupported, is_image
from darkroom.images.references import (
    HostList,
    ImageRules,
    StoredImage,
    WebImage,
    is_public,
    rejected,
)
from darkroom.providers.http import DeadlineBackend, HostUnknown, deadline, resolve, time_left
from darkroom.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MAX_BYTES = 50 * 1024 * 1024  # what OpenAI's edit endpoint takes; Gemini takes less
MAX_REDIRECTS = 5
MAX_RETRY_AFTER_SECONDS = 900.0
_MAX_ADDRESSES = 4  # of one host that are tried
_MAX_CONNECTIONS = 32
_MAX_KEPT_CONNECTIONS = 16
_KEPT_SECONDS = 20.0
_HEADERS = (
    (b"User-Agent", b"Darkroom image fetcher"),
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),
)
_OK = 200
_REDIRECTS = (301, 302, 303, 307, 308)
_MISSING = "does not exist (its server returned {status})"
_FORBIDDEN = "may not be read (its server returned {status}); a signed URL may have expired"
_PERMANENT = {401: _FORBIDDEN, 403: _FORBIDDEN, 404: _MISSING, 410: _MISSING}
_TRANSIENT = (408, 425, 429)
_SERVER_ERROR = 500
_S3_PERMANENT = {
    "InvalidObjectState": "is in an archive storage class: restore it first",
    "KeyTooLongError": "cannot be the key of an object",
    "InvalidRequest": "cannot be read from S3",
}

type Resolver = Callable[[str, int], Sequence[str]]


class NoPublicAddress(DarkroomError):
    """The host has no public address."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """`total_seconds` bounds one image, redirects and slow servers included."""

    total_seconds: float = 60.0
    connect_seconds: float = 10.0
    read_seconds: float = 20.0
    max_bytes: int = MAX_BYTES


class WebImageFetcher:
    """Loads images from the public web and from trusted hosts. Thread-safe."""

    def __init__(
        self,
        rules: ImageRules,
        limits: FetchLimits | None = None,
        *,
        resolver: Resolver = resolve,
        network: httpcore2.NetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.rules = rules
        self.limits = limits or FetchLimits()
        self._resolver = resolver
        # The pool is thread-safe. It follows no redirects and uses no proxy of the environment.
        self._pool = httpcore2.ConnectionPool(
            ssl_context=ssl_context or ssl.create_default_context(),
            max_connections=_MAX_CONNECTIONS,
            max_keepalive_connections=_MAX_KEPT_CONNECTIONS,
            keepalive_expiry=_KEPT_SECONDS,
            network_backend=DeadlineBackend(self._permitted_addresses, network),
        )

    def close(self) -> None:
        """Closes kept connections."""
        self._pool.close()

    def fetch(self, url: str) -> bytes:
        """The bytes at an https:// URL. Raises RowRejected or RetryRow, as ports.ImageFetcher."""
        image = self.rules.check_url(url)
        with deadline(self.limits.total_seconds):
            return self.fetch_image(image, url)

    def fetch_image(self, image: WebImage, reference: str) -> bytes:
        """The same for a checked URL, within the current deadline."""
        for _ in range(MAX_REDIRECTS + 1):
            try:
                found = self._get(image, reference)
            except RowError:
                raise
            except Exception as error:
                raise _web_failure(reference, image.host, error) from error
            if isinstance(found, bytes):
                return found
            image = found
        raise rejected(reference, f"is redirected more than {MAX_REDIRECTS} times")

    def _permitted_addresses(self, host: str, port: int) -> Sequence[str]:
        """The public addresses of a host, or all of a trusted one. Raises NoPublicAddress."""
        found = self._resolver(host, port)
        if not self.rules.trusted.matches(host, port):
            found = [address for address in found if is_public(address)]
        if not found:
            raise NoPublicAddress(host)
        return found[:_MAX_ADDRESSES]

    def _get(self, image: WebImage, reference: str) -> bytes | WebImage:
        """The body, or the target of a redirect."""
        url = httpcore2.URL(
            scheme=image.scheme.encode(),
            host=image.host.encode(),
            port=image.port,
            target=image.target.encode(),
        )
        connect, read = self.limits.connect_seconds, self.limits.read_seconds
        pool = self.limits.total_seconds
        timeouts = {"connect": connect, "read": read, "write": read, "pool": pool}
        headers_sent = ((b"Host", image.authority.encode()), *_HEADERS)
        with self._pool.stream(
            "GET", url, headers=headers_sent, extensions={"timeout": timeouts}
        ) as response:
            headers = {name.lower().decode("latin-1"): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                location = headers.get("location", b"").decode("utf-8", "replace")
                return self._redirected(image, location, reference)
            _check_status(response.status, headers, reference)
            length = headers.get("content-length", b"").decode("latin-1")
            return _collect(length, response.iter_stream(), reference, self.limits.max_bytes)

    def _redirected(self, image: WebImage, location: str, reference: str) -> WebImage:
        if not location:
            raise rejected(
                reference, "is redirected, but its server does not give the new location"
            )
        try:
            return self.rules.redirect(image, location)
        except RowRejected as error:
            raise rejected(reference, f"is redirected: {error.detail}") from error


class SafeImageFetcher:
    """The port ImageFetcher. Thread-safe; built once per process."""

    def __init__(self, s3: "S3Client", web: WebImageFetcher) -> None:
        self._s3 = s3
        self._web = web

    @classmethod
    def from_settings(cls, s3: "S3Client", settings: Settings) -> "SafeImageFetcher":
        """Raises ConfigurationError that names the parameter."""
        rules = ImageRules(
            buckets=settings.image_buckets,
            allowed=HostList.parse(settings.allowed_image_hosts, "AllowedImageHosts"),
            trusted=HostList.parse(settings.trusted_image_hosts, "TrustedImageHosts"),
            confined_buckets=settings.confined_buckets,
        )
        return cls(s3, WebImageFetcher(rules))

    def close(self) -> None:
        """Closes kept connections."""
        self._web.close()

    def fetch(self, reference: str, base: str) -> bytes:
        image = self._web.rules.resolve(reference, base)
        with deadline(self._web.limits.total_seconds):
            if isinstance(image, StoredImage):
                data = self._from_s3(image, reference)
            else:
                data = self._web.fetch_image(image, reference)
        if not is_image(data):
            raise rejected(reference, describe_unsupported(data))
        return data

    def _from_s3(self, image: StoredImage, reference: str) -> bytes:
        try:
            response = self._s3.get_object(Bucket=image.bucket, Key=image.key)
            with closing(response["Body"]) as body:
                length = str(response["ContentLength"])
                chunks = body.iter_chunks(1 << 20)
                return _collect(length, chunks, reference, self._web.limits.max_bytes)
        except ClientError as error:
            raise _s3_failure(reference, image, error) from error
        except (BotoCoreError, httpcore2.TimeoutException) as error:
            raise _unavailable(
                reference, f"could not be read from S3 ({type(error).__name__})"
            ) from error


def _collect(announced: str, chunks: Iterable[bytes], reference: str, limit: int) -> bytes:
    """The body. `announced`: its Content-Length, or ""."""
    too_large = rejected(reference, f"is larger than {limit // 1024**2} MB: make it smaller")
    if announced.isdecimal() and int(announced[:18]) > limit:
        raise too_large
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > limit:
            raise too_large
        time_left()  # raises at the deadline
    return bytes(data)


def _unavailable(reference: str, problem: str, delay_seconds: float = 0.0) -> RetryRow:
    return RetryRow(
        Reason.IMAGE_UNAVAILABLE,
        f"image {quoted(reference)} {problem}",
        delay_seconds=delay_seconds,
    )


def _check_status(status: int, headers: Mapping[str, bytes], reference: str) -> None:
    if status in _TRANSIENT or status >= _SERVER_ERROR:
        delay = headers.get("retry-after", b"").decode("latin-1")
        seconds = float(delay[:6]) if delay.isascii() and delay.isdigit() else 0.0
        raise _unavailable(
            reference,
            f"could not be loaded: its server returned {status}",
            min(seconds, MAX_RETRY_AFTER_SECONDS),
        )
    if status != _OK:
        problem = _PERMANENT.get(status, "could not be loaded: its server returned {status}")
        raise rejected(reference, problem.format(status=status))


def _web_failure(reference: str, host: str, error: Exception) -> RowError:
    if isinstance(error, NoPublicAddress):
        return rejected(
            reference, f"is on {host}, which has no public address, so it is not loaded"
        )
    if isinstance(error, HostUnknown):
        return rejected(reference, f"is on the host {host}, which does not exist")
    if isinstance(error, httpcore2.TimeoutException):
        return _unavailable(
            reference, f"was not loaded in time: {host} is slow or does not respond"
        )
    if isinstance(error, httpcore2.UnsupportedProtocol):
        return rejected(reference, "is not an https:// URL")
    if isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError):
        return rejected(reference, f"is on {host}, whose certificate is not valid for it")
    return _unavailable(reference, f"could not be loaded: {host} cannot be reached")


def _s3_failure(reference: str, image: StoredImage, error: ClientError) -> RowError:
    code = error_code(error)
    missing = f"was not found in bucket {image.bucket} ({quoted(image.key)})"
    if code in GONE_CODES:
        return rejected(reference, missing)
    if code in DENIED_CODES:
        return rejected(reference, f"{missing}, or may not be read")
    if code in _S3_PERMANENT:
        return rejected(reference, _S3_PERMANENT[code])
    return _unavailable(reference, f"could not be read: S3 returned {code}")
