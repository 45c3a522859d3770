"""Gemini's Batch API, with a file of requests, in API-key mode.

Sources: google-genai 3.4 (batches, files, types.JobState), https://ai.google.dev/gemini-api/docs/batch-api
and https://ai.google.dev/api/batch-api; docs/batch.md says what neither confirms.

Requests are never sent inline: the answers would then be part of the batch itself, which can become
too large to be retrieved (150 images of 2K, paid and lost:
https://discuss.ai.google.dev/t/174261).
"""

import io
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import httpx2
from pydantic import SecretStr
from pydantic_core import from_json

from darkroom.batches.provider_batch import BatchGroup, BatchLimits, BatchStatus, ProviderBatch
from darkroom.calls import CallFailed, CallPlan, EditResult
from darkroom.endpoints import Endpoint
from darkroom.providers.batches import BATCHES_OF_A_PAGE, SdkBatches, checked_id
from darkroom.providers.errors import classify
from darkroom.providers.gemini import (
    BASE_URL,
    GeminiImageEditor,
    config_of_call,
    generate,
    ignore_warnings,
    new_genai_client,
)
from darkroom.providers.http import last_response

if TYPE_CHECKING:
    from google.genai import Client, types

_API_VERSION = "v1beta"  # files and batches are documented for no other
_OPERATION = "batchGenerateContent"
_JSONL = "application/jsonl"
_FILE = re.compile(r"files/[A-Za-z0-9_-]{1,100}")
# google.rpc.Code as HTTP statuses: https://github.com/googleapis/googleapis, google/rpc/code.proto.
_HTTP_STATUSES = dict(
    enumerate(
        (499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401), start=1
    )
)


class GeminiBatches(SdkBatches["Client"], GeminiImageEditor):
    """A client of its own for each endpoint and key: the SDK's upload leaves out a call's headers.

    The SDK's types have neither a batch's counts nor its error; they are read from the response.
    """

    # 2 GB of a file; a bound of our own on the requests, of which Google documents no number.
    limits = BatchLimits(max_requests=50_000, max_file_bytes=2_000_000_000)
    statuses: ClassVar[Mapping[str, BatchStatus]] = {
        "JOB_STATE_UNSPECIFIED": BatchStatus.VALIDATING,
        "JOB_STATE_QUEUED": BatchStatus.VALIDATING,
        "JOB_STATE_PENDING": BatchStatus.VALIDATING,
        "JOB_STATE_RUNNING": BatchStatus.RUNNING,
        "JOB_STATE_SUCCEEDED": BatchStatus.SUCCEEDED,
        "JOB_STATE_PARTIALLY_SUCCEEDED": BatchStatus.SUCCEEDED,
        "JOB_STATE_FAILED": BatchStatus.FAILED,
        "JOB_STATE_EXPIRED": BatchStatus.EXPIRED,
        "JOB_STATE_CANCELLING": BatchStatus.CANCELLING,
        "JOB_STATE_CANCELLED": BatchStatus.CANCELLED,
    }

    def __init__(
        self, endpoint: Endpoint, key: SecretStr, http: httpx2.Client | None = None
    ) -> None:
        super().__init__(endpoint, key, http)
        self._base_url = (endpoint.base_url or BASE_URL).rstrip("/") + "/"
        self._version = endpoint.api_version or _API_VERSION
        ignore_warnings()

    def request_line(self, custom_id: str, plan: CallPlan) -> bytes:
        """The body of a live call, as the SDK would send it: no key is in it."""
        config = config_of_call(plan, self._endpoint, self._key, 1)
        generate(_recording_client(), plan, config)
        body = _recorded.body
        _recorded.body = b""
        return b'{"key":"%s","request":%s}\n' % (custom_id.encode("ascii"), body)

    def _unsupported(self) -> str | None:
        if self._endpoint.location is not None:
            return (
                "is on Google's enterprise platform, whose batches read and write Cloud Storage: "
                "mode=batch works with a Gemini API key"
            )
        return None

    def _group(self, plan: CallPlan) -> BatchGroup:
        return BatchGroup(plan.model, _OPERATION)

    @cached_property
    def _genai(self) -> "Client":
        return new_genai_client(
            self._http,
            {"api_key": self._key, "vertexai": False},
            base_url=self._base_url,
            api_version=self._version,
            headers={n: value.get_secret_value() for n, value in self._endpoint.headers.items()},
        )

    def _upload(self, name: str, requests: BinaryIO, timeout_seconds: float) -> str:
        from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

        config = types.UploadFileConfig(
            mime_type=_JSONL, display_name=name, http_options=_timeout(timeout_seconds)
        )
        # The SDK accepts every object with these methods, but looks for their class.
        file = requests if isinstance(requests, io.IOBase) else _Readable(requests)
        return _checked_file(self._genai.files.upload(file=file, config=config).name)

    def _start(
        self, name: str, group: BatchGroup, file: str, timeout_seconds: float
    ) -> ProviderBatch:
        from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

        config = types.CreateBatchJobConfig(
            display_name=name, http_options=_timeout(timeout_seconds)
        )
        job = self._genai.batches.create(
            model=group.model, src=types.BatchJobSource(file_name=file), config=config
        )
        return self._batch(job, _last_json())

    def _retrieve(self, batch_id: str, timeout_seconds: float) -> ProviderBatch:
        from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

        config = types.GetBatchJobConfig(http_options=_timeout(timeout_seconds))
        job = self._genai.batches.get(name=batch_id, config=config)
        return self._batch(job, _last_json())

    def _pages(self, timeout_seconds: float) -> Iterator[list[ProviderBatch]]:
        from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

        config = types.ListBatchJobsConfig(
            page_size=BATCHES_OF_A_PAGE, http_options=_timeout(timeout_seconds)
        )
        pager = self._genai.batches.list(config=config)
        while pager.page:
            yield [self._batch(job, {}) for job in pager.page]
            try:
                pager.next_page()
            except IndexError:  # the SDK's way to say that this was the last one
                return

    def _stop(self, batch_id: str, timeout_seconds: float) -> None:
        from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

        config = types.CancelBatchJobConfig(http_options=_timeout(timeout_seconds))
        self._genai.batches.cancel(name=batch_id, config=config)

    def _delete(self, file: str, timeout_seconds: float) -> None:
        from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

        config = types.DeleteFileConfig(http_options=_timeout(timeout_seconds))
        self._genai.files.delete(name=file, config=config)

    def _download(
        self, file: str, headers: dict[str, str], timeout_seconds: float
    ) -> AbstractContextManager[httpx2.Response]:
        """Not by the SDK, which returns the whole content or writes it into a file."""
        own = {n: value.get_secret_value() for n, value in self._endpoint.headers.items()}

        @contextmanager
        def opened() -> Iterator[httpx2.Response]:
            with self._http.stream(
                "GET",
                f"{self._base_url}download/{self._version}/{file}:download",
                params={"alt": "media"},
                headers={"x-goog-api-key": self._key, **own, **headers},
                timeout=timeout_seconds,
            ) as response:
                yield response.raise_for_status()

        return opened()

    def _batch(self, job: "types.BatchJob", operation: dict[str, Any]) -> ProviderBatch:
        """`operation`: the response's JSON, empty for a batch of a list."""
        metadata = operation.get("metadata") or {}
        stats, source = metadata.get("batchStats") or {}, metadata.get("inputConfig") or {}
        succeeded = _count(stats.get("successfulRequestCount"))
        ends_at = job.dest.file_name if job.dest else None
        state = str(getattr(job.state, "value", job.state))
        # A batch that has expired or was cancelled has no answers to wait for.
        answered = succeeded if state == "JOB_STATE_SUCCEEDED" else 0
        status = self._status(state, answered=answered, has_results=ends_at is not None)
        created = job.create_time or datetime.fromtimestamp(0, UTC)
        request_file = source.get("fileName")
        return ProviderBatch(
            checked_id(job.name),
            job.display_name or "",
            status,
            created.timestamp(),
            requests=_count(stats.get("requestCount")),
            succeeded=succeeded,
            failed=_count(stats.get("failedRequestCount")),
            request_file=_checked_file(request_file) if request_file else "",
            result_files=(_checked_file(ends_at),) if ends_at else (),
            failure=self._error(operation.get("error")) if status is BatchStatus.FAILED else None,
        )

    def _error(self, error: Any) -> CallFailed:
        """A google.rpc.Status: its code is a gRPC one, or that of HTTP."""
        fields = error if isinstance(error, dict) else {"message": "the batch failed"}
        code = fields.get("code")
        status = _HTTP_STATUSES.get(code, code) if isinstance(code, int) else None
        status = status if status is not None and 400 <= status < 600 else 500  # noqa: PLR2004
        answer = httpx2.Response(status, json={"error": fields})
        return classify(self.table, self._failure(answer, self._endpoint), key=self._key)

    def _custom_id(self, item: Any) -> str:
        return checked_id(item["key"])

    def _outcome(self, item: Any, plan: CallPlan) -> EditResult:
        from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

        body = item.get("response")
        if not body:
            raise self._error(item["error"])
        # Fields that the SDK does not know are left out, as it does with those of a live call.
        response = types.GenerateContentResponse.model_validate(body, extra="ignore")
        return self._read(response, plan, self._endpoint, self._key, body)


class _Recorded(threading.local):
    body: bytes = b""


_recorded = _Recorded()


@cache
def _recording_client() -> "Client":
    """A client that sends nothing: what it would have sent is in `_recorded` of its thread."""

    def record(request: httpx2.Request) -> httpx2.Response:
        _recorded.body = request.content
        return httpx2.Response(httpx2.codes.OK, json={})

    http = httpx2.Client(transport=httpx2.MockTransport(record), trust_env=False)
    return new_genai_client(http, {"api_key": "none", "vertexai": False}, api_version=_API_VERSION)


class _Readable(io.RawIOBase):
    """A binary file that is not an io.IOBase, such as tempfile's wrappers."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _timeout(seconds: float) -> "types.HttpOptions":
    from google.genai import types  # noqa: PLC0415 - see SdkImageEditor

    return types.HttpOptions(timeout=max(1, int(seconds * 1000)))


def _last_json() -> dict[str, Any]:
    """The last response's JSON: an operation, small because the answers are in a file."""
    response = last_response()
    body = from_json(response.content) if response is not None else {}
    return body if isinstance(body, dict) else {}


def _checked_file(name: Any) -> str:
    if not isinstance(name, str) or not _FILE.fullmatch(name):
        raise ValueError("no usable name of a file")
    return name


def _count(text: Any) -> int:
    """An int64, which JSON has as a text."""
    return int(text) if isinstance(text, str | int) and str(text).isdecimal() else 0
