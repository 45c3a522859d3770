"""HTTP that connects only to addresses it has checked, and ends when its time is up.

A host name is looked up once per connection and the very address that was checked is connected to,
so an answer that changes between check and use changes nothing. TLS still verifies the certificate
against the host name. Kept connections go to checked addresses, too, so they may be used again.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from time import monotonic as system_monotonic
from typing import TYPE_CHECKING, Any

import httpcore2
from botocore.exceptions import BotoCoreError, ClientError

from darkroom.errors import DarkroomError, Reason, RetryRow, RowRejected
from darkroom.formatting import quoted
from darkroom.images.file_types import describe_unsupported, is_image
from darkroom.images.references import HostList, ImageRules, StoredImage, WebImage, is_public
from darkroom.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


_MOST_ADDRESSES = 4  # of one name that are tried
_MAX_CONNECTIONS = 32
_KEPT_CONNECTIONS = 16
_KEEP_SECONDS = 20.0

SocketOptions = Iterable[Any] | None
Resolver = Callable[[str, int], Sequence[str]]
MayConnect = Callable[[str, int], bool]


class NotPublic(DarkroomError):
    """The host has no public address."""


class HostUnknown(DarkroomError):
    """The host name does not exist."""


class OutOfTime(httpcore2.TimeoutException):
    """The request's total time is up."""


def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, as the system's resolver gives them.

    Raises HostUnknown, or httpcore2.ConnectError when the resolver fails for the moment.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            raise HostUnknown(host) from error
        raise httpcore2.ConnectError(f"name resolution failed: {error.strerror}") from error
    except UnicodeError as error:
        raise HostUnknown(host) from error
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class Deadline:
    """The end of the current request, for each thread its own. Times by the monotonic clock."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._of_thread = threading.local()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        self._of_thread.end = self._monotonic() + seconds
        try:
            yield
        finally:
            self._of_thread.end = None

    def shorten(self, timeout: float | None) -> float | None:
        """What is left of the total, if that is less. Raises OutOfTime when nothing is."""
        end = getattr(self._of_thread, "end", None)
        if end is None:
            return timeout
        left = float(end - self._monotonic())
        if left <= 0:
            raise OutOfTime
        return left if timeout is None else min(timeout, left)


class _TimedStream(httpcore2.NetworkStream):
    """Every read and write ends at the deadline, however slowly the bytes trickle."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.shorten(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.shorten(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        limit = self._deadline.shorten(timeout)
        stream = self._stream.start_tls(ssl_context, server_hostname, limit)
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class CheckedBackend(httpcore2.NetworkBackend):
    """Connects by checked address; `may_be_private(host, port)` exempts trusted hosts."""

    def __init__(
        self,
        deadline: Deadline,
        may_be_private: MayConnect,
        resolver: Resolver = resolve,
        inner: httpcore2.NetworkBackend | None = None,
    ) -> None:
        self._deadline = deadline
        self._may_be_private = may_be_private
        self._resolver = resolver
        self._inner = inner or httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore2.NetworkStream:
        found = self._resolver(host, port)
        usable = found if self._may_be_private(host, port) else [a for a in found if is_public(a)]
        if not usable:
            raise NotPublic(host)
        failure: Exception | None = None
        for address in usable[:_MOST_ADDRESSES]:
            try:
                stream = self._inner.connect_tcp(
                    address, port, self._deadline.shorten(timeout), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        raise failure or httpcore2.ConnectError(host)


def open_pool(
    backend: httpcore2.NetworkBackend, ssl_context: ssl.SSLContext | None = None
) -> httpcore2.ConnectionPool:
    """A thread-safe pool. It follows no redirects and reads no proxy from the environment."""
    return httpcore2.ConnectionPool(
        ssl_context=ssl_context or ssl.create_default_context(),
        max_connections=_MAX_CONNECTIONS,
        max_keepalive_connections=_KEPT_CONNECTIONS,
        keepalive_expiry=_KEEP_SECONDS,
        network_backend=backend,
    )


# Loads the images that rows name: from the public web, or from the stack's own buckets.


MAX_BYTES = 50 * 1024 * 1024  # what OpenAI's edit endpoint takes; Gemini takes less
MAX_REDIRECTS = 5
_HEADERS = (
    (b"User-Agent", b"Darkroom image fetcher"),
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),
)
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429)
_MISSING = (404, 410)
_FORBIDDEN = (401, 403)
_OK = 200
_SERVER_ERROR = 500
_S3_MISSING = ("NoSuchKey", "404", "NoSuchBucket", "MethodNotAllowed")
_S3_FORBIDDEN = ("AccessDenied", "403", "AllAccessDisabled")
_S3_PERMANENT = {
    "InvalidObjectState": "lies in an archive storage class: restore it first",
    "KeyTooLongError": "cannot be the key of an object",
    "InvalidRequest": "cannot be read from S3",
}


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Times in seconds. `total` bounds one image, redirects and trickling servers included."""

    total: float = 60.0
    connect: float = 10.0
    read: float = 20.0
    max_bytes: int = MAX_BYTES

    def timeouts(self) -> dict[str, float]:
        return {
            "connect": self.connect,
            "read": self.read,
            "write": self.read,
            "pool": self.total,
        }


class SafeImageFetcher:
    """The port ImageFetcher. Thread-safe; built once per process."""

    def __init__(
        self,
        s3: "S3Client",
        rules: ImageRules,
        limits: FetchLimits | None = None,
        *,
        resolver: Resolver = resolve,
        network: httpcore2.NetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
        monotonic: Callable[[], float] = system_monotonic,
    ) -> None:
        self._s3 = s3
        self._rules = rules
        self._limits = limits or FetchLimits()
        self._monotonic = monotonic
        self._deadline = Deadline(monotonic)
        backend = CheckedBackend(self._deadline, rules.trusted.matches, resolver, network)
        self._pool = open_pool(backend, ssl_context)

    @classmethod
    def from_settings(cls, s3: "S3Client", settings: Settings) -> "SafeImageFetcher":
        """Raises ConfigurationError that names the parameter."""
        rules = ImageRules(
            buckets=settings.image_buckets,
            allowed=HostList.parse(settings.allowed_image_hosts, "AllowedImageHosts"),
            trusted=HostList.parse(settings.trusted_image_hosts, "TrustedImageHosts"),
        )
        return cls(s3, rules)

    def close(self) -> None:
        """Close kept connections."""
        self._pool.close()

    def fetch(self, reference: str, base: str) -> bytes:
        """The bytes of an image. Raises RowRejected (bad_image) or RetryRow (image_unavailable)."""
        image = self._rules.resolve(reference, base)
        if isinstance(image, StoredImage):
            data = self._from_s3(image, reference)
        else:
            data = self._from_web(image, reference)
        if not is_image(data):
            raise _rejected(reference, describe_unsupported(data))
        return data

    def _from_web(self, image: WebImage, reference: str) -> bytes:
        with self._deadline.within(self._limits.total):
            try:
                for _ in range(MAX_REDIRECTS + 1):
                    answer = self._get(image, reference)
                    if isinstance(answer, bytes):
                        return answer
                    image = answer
            except NotPublic as error:
                raise _rejected(
                    reference,
                    f"is on {image.host}, which has no public address, so it is not loaded",
                ) from error
            except HostUnknown as error:
                raise _rejected(
                    reference, f"is on the host {image.host}, which does not exist"
                ) from error
            except httpcore2.TimeoutException as error:
                raise _unavailable(
                    reference, f"was not loaded in time: {image.host} is slow or does not answer"
                ) from error
            except httpcore2.UnsupportedProtocol as error:
                raise _rejected(reference, "is not an https:// URL") from error
            except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
                raise _connection_failed(reference, image.host, error) from error
        raise _rejected(reference, f"is redirected more than {MAX_REDIRECTS} times")

    def _get(self, image: WebImage, reference: str) -> bytes | WebImage:
        """The body, or where it has moved to."""
        url = httpcore2.URL(
            scheme=image.scheme.encode(),
            host=image.host.encode(),
            port=image.port,
            target=image.target.encode(),
        )
        extensions = {"timeout": self._limits.timeouts()}
        headers_sent = ((b"Host", image.authority.encode()), *_HEADERS)
        with self._pool.stream("GET", url, headers=headers_sent, extensions=extensions) as response:
            headers = {name.lower().decode("latin-1"): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                location = headers.get("location", b"").decode("utf-8", "replace")
                return self._redirected(image, location, reference)
            _check_status(response.status, headers, reference)
            self._check_length(headers.get("content-length", b"").decode("latin-1"), reference)
            return self._collect(response.iter_stream(), reference)

    def _redirected(self, image: WebImage, location: str, reference: str) -> WebImage:
        if not location:
            raise _rejected(reference, "is redirected, but its server does not say where to")
        try:
            return self._rules.redirect(image, location)
        except RowRejected as error:
            raise _rejected(reference, f"is redirected: {error.detail}") from error

    def _check_length(self, announced: str, reference: str) -> None:
        if announced.isdigit() and int(announced[:18]) > self._limits.max_bytes:
            raise self._too_large(reference)

    def _collect(self, chunks: Iterable[bytes], reference: str) -> bytes:
        data = bytearray()
        for chunk in chunks:
            data += chunk
            if len(data) > self._limits.max_bytes:
                raise self._too_large(reference)
            self._deadline.shorten(None)  # raises when the time is up
        return bytes(data)

    def _too_large(self, reference: str) -> RowRejected:
        limit = self._limits.max_bytes // (1024 * 1024)
        return _rejected(reference, f"is larger than {limit} MB: make it smaller")

    def _from_s3(self, image: StoredImage, reference: str) -> bytes:
        with self._deadline.within(self._limits.total):
            try:
                answer = self._s3.get_object(Bucket=image.bucket, Key=image.key)
                with closing(answer["Body"]) as body:
                    self._check_length(str(answer["ContentLength"]), reference)
                    return self._collect(body.iter_chunks(1 << 20), reference)
            except ClientError as error:
                raise _s3_failed(reference, image, error) from error
            except (BotoCoreError, httpcore2.TimeoutException) as error:
                raise _unavailable(
                    reference, f"could not be read from S3 ({type(error).__name__})"
                ) from error


def _rejected(reference: str, why: str) -> RowRejected:
    return RowRejected(Reason.BAD_IMAGE, f"image {quoted(reference)} {why}")


def _unavailable(reference: str, why: str, delay_seconds: float = 0.0) -> RetryRow:
    return RetryRow(
        Reason.IMAGE_UNAVAILABLE, f"image {quoted(reference)} {why}", delay_seconds=delay_seconds
    )


def _check_status(status: int, headers: Mapping[str, bytes], reference: str) -> None:
    if status in _MISSING:
        raise _rejected(reference, f"does not exist (its server answered {status})")
    if status in _FORBIDDEN:
        raise _rejected(
            reference,
            f"may not be read (its server answered {status}); a signed URL may be too old",
        )
    if status in _TRANSIENT or status >= _SERVER_ERROR:
        delay = headers.get("retry-after", b"").decode("latin-1")
        seconds = min(float(delay[:6]), 900.0) if delay.isascii() and delay.isdigit() else 0.0
        raise _unavailable(reference, f"could not be loaded: its server answered {status}", seconds)
    if status != _OK:
        raise _rejected(reference, f"could not be loaded: its server answered {status}")


def _connection_failed(reference: str, host: str, error: Exception) -> RowRejected | RetryRow:
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _rejected(reference, f"is on {host}, whose certificate is not valid for it")
    return _unavailable(reference, f"could not be loaded: {host} cannot be reached")


def _s3_failed(reference: str, image: StoredImage, error: ClientError) -> RowRejected | RetryRow:
    code = str(error.response.get("Error", {}).get("Code", ""))
    where = f"in the bucket {image.bucket} ({quoted(image.key)})"
    if code in _S3_MISSING:
        return _rejected(reference, f"is not there {where}")
    if code in _S3_FORBIDDEN:
        return _rejected(reference, f"is not there or may not be read {where}")
    if code in _S3_PERMANENT:
        return _rejected(reference, _S3_PERMANENT[code])
    return _unavailable(reference, f"could not be read: S3 answered {code}")
