"""Loads the images that rows name: from the public web, or from the stack's own buckets."""

import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from time import monotonic as system_monotonic
from typing import TYPE_CHECKING

import httpcore2
from botocore.exceptions import BotoCoreError, ClientError

from darkroom.adapters.safe_http import (
    CheckedBackend,
    Deadline,
    HostUnknown,
    NotPublic,
    Resolver,
    open_pool,
    resolve,
)
from darkroom.errors import Reason, RetryRow, RowRejected
from darkroom.images.image_urls import HostList, ImageRules, StoredImage, WebImage
from darkroom.images.sniffing import is_image, what_else
from darkroom.settings import Settings
from darkroom.texts import shown

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

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
            raise _rejected(reference, what_else(data))
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
    return RowRejected(Reason.BAD_IMAGE, f"image {shown(reference)} {why}")


def _unavailable(reference: str, why: str, delay_seconds: float = 0.0) -> RetryRow:
    return RetryRow(
        Reason.IMAGE_UNAVAILABLE, f"image {shown(reference)} {why}", delay_seconds=delay_seconds
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
    where = f"in the bucket {image.bucket} ({shown(image.key)})"
    if code in _S3_MISSING:
        return _rejected(reference, f"is not there {where}")
    if code in _S3_FORBIDDEN:
        return _rejected(reference, f"is not there or may not be read {where}")
    if code in _S3_PERMANENT:
        return _rejected(reference, _S3_PERMANENT[code])
    return _unavailable(reference, f"could not be read: S3 answered {code}")
